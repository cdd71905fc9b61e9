//! What the kernel counts of a block device: its file `stat` in sysfs (kernel documentation, block/stat.rst).

use std::fs;
use std::path::Path;

use super::sysfs::SysfsError;

/// Bytes of a sector in these counters, whatever the device's own are.
const SECTOR: u64 = 512;

/// A device's counters since it appeared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockStat {
    /// Reads that ended.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Writes that ended.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Milliseconds that operations were in the queue, summed over them.
    pub queued_ms: u64,
    /// Flushes that ended; 0 where the kernel does not count them, as before 5.5.
    pub flushes: u64,
}

impl BlockStat {
    /// Of the device whose folder in sysfs this is.
    ///
    /// # Errors
    /// [`SysfsError`]; also when the device is gone.
    pub fn of(folder: &Path) -> Result<Self, SysfsError> {
        let path = folder.join("stat");
        let text = fs::read_to_string(&path).map_err(|source| SysfsError::Read { path: path.clone(), source })?;
        Self::parse(&text).ok_or(SysfsError::Text { path, text })
    }

    /// Of a disk, by its name in `/sys/block`.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn of_disk(sys: &Path, name: &str) -> Result<Self, SysfsError> {
        Self::of(&sys.join("block").join(name))
    }

    /// Nothing where it is not understood.
    fn parse(text: &str) -> Option<Self> {
        let numbers: Vec<u64> = text.split_ascii_whitespace().map_while(|word| word.parse().ok()).collect();
        Some(Self {
            reads: *numbers.first()?,
            read_bytes: numbers.get(2)?.saturating_mul(SECTOR),
            writes: *numbers.get(4)?,
            written_bytes: numbers.get(6)?.saturating_mul(SECTOR),
            queued_ms: *numbers.get(10)?,
            flushes: numbers.get(15).copied().unwrap_or_default(),
        })
    }

    /// Bytes moved.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.read_bytes.saturating_add(self.written_bytes)
    }
}

/// A counter to reckon with.
#[expect(clippy::cast_precision_loss, reason = "2^53 milliseconds or bytes, and differences of seconds")]
pub(super) const fn counted(counter: u64) -> f64 {
    counter as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn a_devices_counters_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let stat = |text: &str| {
            fs::write(folder.path().join("stat"), text).unwrap();
            BlockStat::of(folder.path())
        };
        let old =
            "     100        5     2000       40      200        7     6000       90        0      120      130\n";
        let expected = BlockStat {
            reads: 100,
            read_bytes: 1_024_000,
            writes: 200,
            written_bytes: 3_072_000,
            queued_ms: 130,
            flushes: 0,
        };
        assert_eq!(stat(old).unwrap(), expected);
        assert_eq!(expected.bytes(), 4_096_000);
        let new = format!("{} 1 2 3 4 11 6\n", old.trim_end());
        assert_eq!(stat(&new).unwrap(), BlockStat { flushes: 11, ..expected });
        assert!(matches!(stat("1 2 3"), Err(SysfsError::Text { .. })));
        assert!(
            matches!(BlockStat::of(&folder.path().join("gone")), Err(SysfsError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound)
        );
    }
}
