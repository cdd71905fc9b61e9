//! Reads the status lines of thin pools and thin volumes.
//!
//! Invariant: a word that this file does not know is an error, not a default. The lines are described in the
//! kernel's `Documentation/admin-guide/device-mapper/thin-provisioning.rst`.

/// Bytes of a block of a pool's metadata device.
pub const METADATA_BLOCK: u64 = 4096;

/// What a target tells of itself.
#[derive(Debug, Clone, PartialEq)]
pub enum TargetStatus {
    /// A thin pool (in LVM: the device whose name ends in `-tpool`).
    ThinPool(PoolStatus),
    /// A thin volume.
    Thin(ThinStatus),
    /// Another kind, with its line as it is.
    Other {
        /// The kind: `linear`, `striped`, `snapshot`, …
        kind: String,
        /// Its status.
        line: String,
    },
}

/// State of a thin pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolStatus {
    /// The pool works, or works with limits.
    Working(PoolUse),
    /// The pool failed: reads and writes of all its volumes fail.
    Failed,
    /// The kernel could not find out.
    Unknown,
}

/// Figures and modes of a thin pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolUse {
    /// Last transaction that the pool was told; LVM's metadata must have the same.
    pub transaction_id: u64,
    /// Metadata blocks in use, of [`METADATA_BLOCK`] bytes.
    pub used_metadata_blocks: u64,
    /// Metadata blocks in all.
    pub total_metadata_blocks: u64,
    /// Data blocks in use, of the pool's chunk size.
    pub used_data_blocks: u64,
    /// Data blocks in all.
    pub total_data_blocks: u64,
    /// What the pool allows.
    pub mode: PoolMode,
    /// What becomes of discards.
    pub discards: Discards,
    /// Writes that need a new block fail at once when there is none, instead of waiting.
    pub error_if_no_space: bool,
    /// The metadata must be checked off line before the pool can be written again.
    pub needs_check: bool,
}

/// What a thin pool allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// Everything.
    ReadWrite,
    /// Reading only: its metadata is full or damaged.
    ReadOnly,
    /// No write that needs a new block.
    OutOfDataSpace,
}

/// What becomes of a discard sent to a thin volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discards {
    /// Frees the block and goes on to the disk.
    PassDown,
    /// Frees the block.
    NoPassDown,
    /// Nothing.
    Ignore,
}

/// State of a thin volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ThinStatus {
    /// It works.
    Working {
        /// Sectors that have a place in the pool, shared ones too.
        mapped_sectors: u64,
        /// Highest sector that has one.
        highest_mapped_sector: Option<u64>,
    },
    /// Its pool failed.
    Failed,
    /// The kernel could not find out.
    Unknown,
}

/// A status line that is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the {kind} target says {line:?}: {what}")]
pub struct StatusError {
    /// Kind of the target.
    pub kind: &'static str,
    /// The line.
    pub line: String,
    /// What is wrong with it.
    pub what: String,
}

impl TargetStatus {
    /// Reads a target's line; of kinds other than thin pools and thin volumes it is passed on as it is.
    ///
    /// # Errors
    /// [`StatusError`] if a thin pool's or thin volume's line is of a form unknown here.
    pub fn parse(kind: &str, line: &str) -> Result<Self, StatusError> {
        match kind {
            "thin-pool" => parse_pool(line).map(Self::ThinPool),
            "thin" => parse_thin(line).map(Self::Thin),
            _ => Ok(Self::Other { kind: kind.to_owned(), line: line.to_owned() }),
        }
    }
}

fn parse_pool(line: &str) -> Result<PoolStatus, StatusError> {
    let wrong = |what: &str| StatusError { kind: "thin-pool", line: line.to_owned(), what: what.to_owned() };
    match line {
        "Fail" => return Ok(PoolStatus::Failed),
        "Error" => return Ok(PoolStatus::Unknown),
        _ => {}
    }
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let [transaction, metadata, data, _held_root, modes @ ..] = words.as_slice() else {
        return Err(wrong("at least four words are expected"));
    };
    let fraction = |text: &str, what: &str| {
        let parts = text.split_once('/');
        parts.and_then(|(used, total)| Some((used.parse().ok()?, total.parse().ok()?))).ok_or_else(|| wrong(what))
    };
    let (used_metadata_blocks, total_metadata_blocks) = fraction(metadata, "the second word is not used/total")?;
    let (used_data_blocks, total_data_blocks) = fraction(data, "the third word is not used/total")?;
    let mut mode = None;
    let mut discards = None;
    let mut error_if_no_space = None;
    let mut needs_check = false;
    // Kernels append words: by word, not by place. Numbers (the low-water mark) and "-" say nothing here.
    for word in modes {
        match *word {
            "rw" => mode = Some(PoolMode::ReadWrite),
            "ro" => mode = Some(PoolMode::ReadOnly),
            "out_of_data_space" => mode = Some(PoolMode::OutOfDataSpace),
            "discard_passdown" => discards = Some(Discards::PassDown),
            "no_discard_passdown" => discards = Some(Discards::NoPassDown),
            "ignore_discard" => discards = Some(Discards::Ignore),
            "error_if_no_space" => error_if_no_space = Some(true),
            "queue_if_no_space" => error_if_no_space = Some(false),
            "needs_check" => needs_check = true,
            "-" => {}
            number if number.bytes().all(|byte| byte.is_ascii_digit()) => {}
            other => return Err(wrong(&format!("the word {other:?} is not known"))),
        }
    }
    Ok(PoolStatus::Working(PoolUse {
        transaction_id: transaction.parse().map_err(|_| wrong("the first word is no number"))?,
        used_metadata_blocks,
        total_metadata_blocks,
        used_data_blocks,
        total_data_blocks,
        mode: mode.ok_or_else(|| wrong("rw, ro or out_of_data_space is missing"))?,
        discards: discards.ok_or_else(|| wrong("the word on discards is missing"))?,
        error_if_no_space: error_if_no_space.ok_or_else(|| wrong("error_ or queue_if_no_space is missing"))?,
        needs_check,
    }))
}

fn parse_thin(line: &str) -> Result<ThinStatus, StatusError> {
    let wrong = |what: &str| StatusError { kind: "thin", line: line.to_owned(), what: what.to_owned() };
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    match words.as_slice() {
        ["Fail"] => Ok(ThinStatus::Failed),
        ["Error"] => Ok(ThinStatus::Unknown),
        // A thin volume whose pool is suspended before its first use says a lone "-".
        ["-"] => Ok(ThinStatus::Unknown),
        [mapped, highest] => Ok(ThinStatus::Working {
            mapped_sectors: mapped.parse().map_err(|_| wrong("the first word is no number"))?,
            highest_mapped_sector: match *highest {
                "-" => None,
                number => Some(number.parse().map_err(|_| wrong("the second word is no number"))?),
            },
        }),
        _ => Err(wrong("two words are expected")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As Linux 6.1 writes it for a pool that LVM made.
    const POOL: &str = "3 115/1024 320/1600 - rw discard_passdown error_if_no_space - 256";

    #[test]
    fn a_working_pool_is_read() {
        let expected = PoolUse {
            transaction_id: 3,
            used_metadata_blocks: 115,
            total_metadata_blocks: 1024,
            used_data_blocks: 320,
            total_data_blocks: 1600,
            mode: PoolMode::ReadWrite,
            discards: Discards::PassDown,
            error_if_no_space: true,
            needs_check: false,
        };
        let status = TargetStatus::parse("thin-pool", POOL).unwrap();
        assert_eq!(status, TargetStatus::ThinPool(PoolStatus::Working(expected)));
    }

    #[test]
    fn pools_in_trouble_are_told_apart() {
        let parse = |line| match TargetStatus::parse("thin-pool", line).unwrap() {
            TargetStatus::ThinPool(status) => status,
            other => panic!("{other:?}"),
        };
        assert_eq!(parse("Fail"), PoolStatus::Failed);
        assert_eq!(parse("Error"), PoolStatus::Unknown);
        let line = "7 4161/4161 9/1600 12 ro no_discard_passdown queue_if_no_space needs_check 256";
        let PoolStatus::Working(pool) = parse(line) else { panic!("a read-only pool still tells its figures") };
        assert_eq!((pool.mode, pool.needs_check), (PoolMode::ReadOnly, true));
        assert!(!pool.error_if_no_space);
        let full = "7 41/4161 1600/1600 - out_of_data_space ignore_discard error_if_no_space - 256";
        let PoolStatus::Working(pool) = parse(full) else { panic!("a full pool still tells its figures") };
        assert_eq!((pool.mode, pool.discards), (PoolMode::OutOfDataSpace, Discards::Ignore));
    }

    #[test]
    fn thin_volumes_are_read() {
        let parse = |line| TargetStatus::parse("thin", line).unwrap();
        let working = |mapped_sectors, highest_mapped_sector| {
            TargetStatus::Thin(ThinStatus::Working { mapped_sectors, highest_mapped_sector })
        };
        assert_eq!(parse("40960 40959"), working(40960, Some(40959)));
        assert_eq!(parse("0 -"), working(0, None));
        assert_eq!(parse("Fail"), TargetStatus::Thin(ThinStatus::Failed));
        assert_eq!(parse("Error"), TargetStatus::Thin(ThinStatus::Unknown));
    }

    #[test]
    fn unknown_forms_are_errors() {
        for line in [
            "",
            "3",
            "3 115 320/1600 - rw discard_passdown error_if_no_space -",
            "x 115/1024 320/1600 - rw discard_passdown error_if_no_space -",
            "3 115/1024 320/1600 - discard_passdown error_if_no_space -",
            "3 115/1024 320/1600 - rw discard_passdown error_if_no_space melted",
        ] {
            let error = TargetStatus::parse("thin-pool", line).unwrap_err();
            assert!(error.to_string().contains(&format!("{line:?}")), "{error}");
        }
        for line in ["", "1", "a b", "1 b", "1 2 3"] {
            assert!(TargetStatus::parse("thin", line).is_err(), "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn any_line_gives_an_answer(kind in "thin|thin-pool|linear", line in "[ -~]{0,60}") {
            let _ = TargetStatus::parse(&kind, &line);
        }
    }
}
