//! Reads the log of device-mapper's target `log-writes` and writes it onto another disk, up to any entry.
//!
//! The target logs a write once it is known to be on stable storage: ordinary ones when a flush that came after them
//! has ended, before that flush itself. So what the log holds up to a mark is what a disk holds after a power cut at
//! that moment, if it lost everything that it may lose. Between two flushes the log has what the second made stable, in
//! the order of completion: at the moment before that flush ended, the disk may have held any part of it.
//!
//! The format is that of the kernel's `drivers/md/dm-log-writes.c`, version 1: a first sector that describes the log,
//! then for each entry a sector with its head, followed by its data.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;

const FLUSH: u64 = 1;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;

/// Bytes copied at a time.
const PIECE: usize = 1 << 20;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// These bytes of the disk became the bytes of the log at `source`.
    Write {
        /// First byte on the disk.
        offset: u64,
        /// Number of bytes.
        length: u64,
        /// First byte in the log.
        source: u64,
    },
    /// These bytes of the disk were given up; they read as zeroes since.
    Discard {
        /// First byte on the disk.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
    /// Everything before is on stable storage. A flush that came with data is followed by the write.
    Flush,
    /// Somebody set a mark of this name.
    Mark(String),
}

/// A log, its heads read.
#[derive(Debug)]
pub struct WriteLog {
    path: PathBuf,
    file: File,
    entries: Vec<Entry>,
}

impl WriteLog {
    /// Reads all heads. The device with the target must be gone: only then the log is whole.
    ///
    /// # Errors
    /// If it cannot be read, is no log of version 1, or an entry is none.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let entries = read_entries(&file).with_context(|| format!("cannot read the log {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file, entries })
    }

    /// All entries.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The place of the mark of that name.
    ///
    /// # Errors
    /// If there is no such mark, or several.
    pub fn mark(&self, name: &str) -> Result<usize> {
        let places = self.entries.iter().enumerate().filter(|(_, entry)| **entry == Entry::Mark(name.to_owned()));
        match places.map(|(place, _)| place).collect::<Vec<_>>().as_slice() {
            [place] => Ok(*place),
            places => bail!("{} has the mark {name:?} {} times", self.path.display(), places.len()),
        }
    }

    /// Writes one entry onto a disk.
    ///
    /// # Errors
    /// If the log cannot be read or the disk not be written.
    pub fn apply(&self, entry: &Entry, disk: &File) -> Result<()> {
        match *entry {
            Entry::Flush | Entry::Mark(_) => Ok(()),
            Entry::Write { offset, length, source } => pieces(length, |at, size| {
                let mut bytes = vec![0; size];
                self.file.read_exact_at(&mut bytes, source + at)?;
                disk.write_all_at(&bytes, offset + at)
            })
            .with_context(|| format!("cannot replay {length} bytes at byte {offset}")),
            Entry::Discard { offset, length } => {
                pieces(length, |at, size| disk.write_all_at(&vec![0; size], offset + at))
                    .with_context(|| format!("cannot replay the discarding of {length} bytes at byte {offset}"))
            }
        }
    }
}

fn pieces(length: u64, mut each: impl FnMut(u64, usize) -> io::Result<()>) -> io::Result<()> {
    let mut at = 0;
    while at < length {
        let size = usize::try_from(length - at).map_or(PIECE, |left| left.min(PIECE));
        each(at, size)?;
        at += size as u64;
    }
    Ok(())
}

fn number(bytes: &[u8], at: usize) -> u64 {
    bytes.iter().skip(at).take(8).rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn read_entries(file: &File) -> Result<Vec<Entry>> {
    let mut head = [0; 512];
    file.read_exact_at(&mut head, 0)?;
    ensure!(number(&head, 0) == MAGIC, "it does not begin as a log of dm-log-writes does");
    ensure!(number(&head, 8) == VERSION, "its version is {}, not {VERSION}", number(&head, 8));
    let (count, sector) = (number(&head, 16), number(&head, 24) & 0xffff_ffff);
    ensure!((512..=4096).contains(&sector) && sector.is_power_of_two(), "its sectors have {sector} bytes");
    let mut entries = Vec::new();
    let mut at = sector;
    for ordinal in 0..count {
        file.read_exact_at(&mut head, at)?;
        let [offset, length, flags, data] = [0, 8, 16, 24].map(|place| number(&head, place));
        at += sector;
        if flags & MARK != 0 {
            let name = usize::try_from(data).ok().and_then(|size| head.get(32..32 + size));
            let name = name.with_context(|| format!("the mark at entry {ordinal} is {data} bytes long"))?;
            entries.push(Entry::Mark(String::from_utf8_lossy(name).into_owned()));
            continue;
        }
        if flags & FLUSH != 0 {
            entries.push(Entry::Flush);
        }
        let bytes = |sectors: u64| {
            sectors.checked_mul(sector).with_context(|| format!("entry {ordinal} is of {sectors} sectors"))
        };
        let (offset, length) = (bytes(offset)?, bytes(length)?);
        if flags & DISCARD != 0 {
            entries.push(Entry::Discard { offset, length });
        } else if length > 0 {
            entries.push(Entry::Write { offset, length, source: at });
            at += length;
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log as the kernel would write it, with sectors of 512 bytes.
    struct Log(Vec<u8>);

    impl Log {
        fn new(version: u64) -> Self {
            let mut log = Self(Vec::new());
            log.sector(&[MAGIC, version, 0, 512], &[]);
            log
        }

        fn sector(&mut self, numbers: &[u64], rest: &[u8]) {
            let mut sector: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            sector.extend(rest);
            sector.resize(512, 0);
            self.0.extend(sector);
        }

        fn entry(mut self, sector: u64, sectors: u64, flags: u64, data: &[u8]) -> Self {
            let mark = if flags & MARK == 0 { &[][..] } else { data };
            self.sector(&[sector, sectors, flags, mark.len() as u64], mark);
            if flags & MARK == 0 {
                self.0.extend(data);
            }
            self.0[16] += 1;
            self
        }

        fn read(&self) -> Result<WriteLog> {
            let file = tempfile::NamedTempFile::new()?;
            std::fs::write(file.path(), &self.0)?;
            WriteLog::read(file.path())
        }
    }

    #[test]
    fn a_log_is_replayed_up_to_any_entry() {
        let log = Log::new(1)
            .entry(0, 2, 0, &[1; 1024])
            .entry(0, 0, FLUSH, &[])
            .entry(0, 0, MARK, b"first")
            .entry(3, 1, FLUSH | 2, &[3; 512])
            .entry(1, 1, DISCARD, &[])
            .entry(0, 0, MARK, b"second");
        let log = log.read().unwrap();
        let kinds = [
            Entry::Write { offset: 0, length: 1024, source: 1024 },
            Entry::Flush,
            Entry::Mark("first".to_owned()),
            Entry::Flush,
            Entry::Write { offset: 1536, length: 512, source: 3584 },
            Entry::Discard { offset: 512, length: 512 },
            Entry::Mark("second".to_owned()),
        ];
        assert_eq!(log.entries(), kinds);
        assert_eq!((log.mark("first").unwrap(), log.mark("second").unwrap()), (2, 6));
        assert!(log.mark("third").unwrap_err().to_string().contains("\"third\" 0 times"));

        let disk = tempfile::tempfile().unwrap();
        disk.set_len(2048).unwrap();
        let first_bytes = || -> Vec<u8> {
            let mut bytes = vec![9; 2048];
            disk.read_exact_at(&mut bytes, 0).unwrap();
            bytes.chunks(512).map(|sector| sector[0]).collect()
        };
        log.entries()[..2].iter().for_each(|entry| log.apply(entry, &disk).unwrap());
        assert_eq!(first_bytes(), [1, 1, 0, 0]);
        log.entries()[2..].iter().for_each(|entry| log.apply(entry, &disk).unwrap());
        assert_eq!(first_bytes(), [1, 0, 0, 3]);
    }

    #[test]
    fn what_is_no_log_or_a_newer_one_is_refused() {
        let said = |log: Log| format!("{:#}", log.read().unwrap_err());
        assert!(said(Log(vec![0; 4096])).contains("does not begin"));
        assert!(said(Log::new(2)).contains("its version is 2"));
        let mut short = Log::new(1).entry(0, 0, FLUSH, &[]);
        short.0[16] = 2;
        assert!(short.read().is_err(), "the second entry is not there");
        let mut wide = Log::new(1).entry(0, 0, MARK, b"x");
        wide.0[512 + 24] = 0xff;
        wide.0[512 + 25] = 0xff;
        assert!(said(wide).contains("65535 bytes"));
    }
}
