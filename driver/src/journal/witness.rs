//! A note beside the journal of how far it had come.
//!
//! A log whose end is cut off at a record opens without an error, as if the last writes had never been. The note tells
//! that they were. It is written after the journal is on disk and not synchronised itself, so it costs next to nothing;
//! a power cut may lose it, which only makes it say less.
//!
//! **Invariant.** The note is never ahead of what the journal's disk holds.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// The note's file, open.
#[derive(Debug)]
pub struct Witness {
    file: File,
}

/// A sequence number of eight bytes and its checksum of four, little endian.
const LENGTH: usize = 12;

impl Witness {
    /// Opens or makes the note; what it said, if that can be read.
    ///
    /// # Errors
    /// The system's.
    pub fn open(path: &Path) -> io::Result<(Self, Option<u64>)> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut bytes = [0; LENGTH];
        let read = file.read_at(&mut bytes, 0)?;
        let (number, sum) = bytes.split_at(8);
        let sound = read == LENGTH && crc32fast::hash(number).to_le_bytes() == sum;
        let sequence = number.try_into().map(u64::from_le_bytes).ok().filter(|_| sound);
        Ok((Self { file }, sequence))
    }

    /// Notes that the journal's disk holds everything up to this number.
    ///
    /// # Errors
    /// The system's.
    pub fn note(&self, sequence: u64) -> io::Result<()> {
        let number = sequence.to_le_bytes();
        let mut bytes = [0; LENGTH];
        bytes[..8].copy_from_slice(&number);
        bytes[8..].copy_from_slice(&crc32fast::hash(&number).to_le_bytes());
        self.file.write_all_at(&bytes, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_is_remembered_and_a_torn_note_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sequence");
        let (witness, before) = Witness::open(&path).unwrap();
        assert_eq!(before, None);
        witness.note(41).unwrap();
        witness.note(42).unwrap();
        assert_eq!(Witness::open(&path).unwrap().1, Some(42));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[0] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(Witness::open(&path).unwrap().1, None);
    }
}
