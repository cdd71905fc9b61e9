//! The journal's rows in sled: one log file, atomic batches, each made durable.
//!
//! What sled 0.34 does not do by itself is done here. Its `flush` writes to the page cache only, so the file is
//! synchronised through a second descriptor. And a damaged log opens without an error and with rows missing, so a
//! row of its own holds how many rows there are and a checksum over them, changed in the same batch. (A log that is
//! damaged in the middle usually opens as if it ended there: that is the witness's to tell.)
//!
//! **Invariant.** A store that opened holds exactly the rows of its last complete write.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::contents::Contents;
use super::row::{Change, Entry};
use crate::durable::{sync_folder, sync_parent};

/// The format that this driver writes; one that is newer is refused.
const FORMAT: u32 = 1;
/// Rows about the journal itself.
const FORMAT_KEY: &[u8] = b"!format";
const SUMMARY_KEY: &[u8] = b"!summary";

/// What all rows together must be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Summary {
    /// How many writes there were.
    sequence: u64,
    /// How many rows there are.
    rows: u64,
    /// The sum of their checksums, wrapped.
    digest: u64,
}

/// An open store.
pub struct Store {
    db: sled::Db,
    /// sled's log file, to synchronise it.
    log: File,
    folder: PathBuf,
    sums: BTreeMap<Vec<u8>, u64>,
    summary: Summary,
}

/// Why a store did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("another process has the journal {} open", .0.display())]
    Locked(PathBuf),
    /// A newer driver wrote it.
    #[error(
        "the journal {} has format {format}; this driver knows formats up to {FORMAT}: a newer Quarry wrote it",
        folder.display()
    )]
    Newer {
        /// Its folder.
        folder: PathBuf,
        /// Its format.
        format: u32,
    },
    /// The disk or its permissions: nothing is known of the journal itself.
    #[error("cannot open the journal {}", folder.display())]
    Io {
        /// Its folder.
        folder: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It is not what was written.
    #[error("the journal {} is damaged: {what}", folder.display())]
    Damaged {
        /// Its folder.
        folder: PathBuf,
        /// What is wrong.
        what: String,
    },
}

impl Store {
    /// Opens the store in a folder, made if it is not there, and reads all of it.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(folder: &Path) -> Result<(Self, Contents), OpenError> {
        // sled panics on some damage.
        let opened = catch_unwind(AssertUnwindSafe(|| Self::open_unguarded(folder)));
        opened.unwrap_or_else(|panic| {
            Err(OpenError::Damaged { folder: folder.to_owned(), what: format!("sled panicked: {}", text_of(&*panic)) })
        })
    }

    fn open_unguarded(folder: &Path) -> Result<(Self, Contents), OpenError> {
        let config = sled::Config::new().path(folder).cache_capacity(4 << 20).flush_every_ms(None);
        let db = config.open().map_err(|error| of_sled(folder, error))?;
        let io = |source| OpenError::Io { folder: folder.to_owned(), source };
        let log = File::options().write(true).open(folder.join("db")).map_err(io)?;
        let mut store = Self { db, log, folder: folder.to_owned(), sums: BTreeMap::new(), summary: Summary::default() };
        let contents = store.read()?;
        if store.summary.sequence == 0 {
            store.apply(&[]).map_err(io)?;
            // The files' names.
            sync_folder(folder).and_then(|()| sync_parent(folder)).map_err(io)?;
        }
        Ok((store, contents))
    }

    fn read(&mut self) -> Result<Contents, OpenError> {
        let damaged = |what: String| OpenError::Damaged { folder: self.folder.clone(), what };
        let get = |key: &[u8]| self.db.get(key).map_err(|error| of_sled(&self.folder, error));
        let format = get(FORMAT_KEY)?;
        let format = format.map(|bytes| String::from_utf8_lossy(&bytes).parse::<u32>());
        match format.transpose() {
            Ok(Some(format)) if format > FORMAT => {
                return Err(OpenError::Newer { folder: self.folder.clone(), format });
            }
            Ok(_) => {}
            Err(error) => return Err(damaged(format!("its format is not a number: {error}"))),
        }
        let expected = match get(SUMMARY_KEY)? {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|error| damaged(format!("its summary: {error}")))?,
            None => Summary::default(),
        };
        let (mut contents, mut sums) = (Contents::default(), BTreeMap::new());
        let mut found = Summary { sequence: expected.sequence, ..Summary::default() };
        for row in self.db.iter() {
            let (key, value) = row.map_err(|error| of_sled(&self.folder, error))?;
            if key.starts_with(b"!") {
                continue;
            }
            let sum = checksum(&key, &value);
            contents.put(Entry::parse(&key, &value).map_err(|error| damaged(error.to_string()))?);
            sums.insert(key.to_vec(), sum);
            found.rows += 1;
            found.digest = found.digest.wrapping_add(sum);
        }
        if found != expected {
            let what = format!("{} rows were written, {} are there, or some are older", expected.rows, found.rows);
            return Err(damaged(what));
        }
        (self.sums, self.summary) = (sums, found);
        Ok(contents)
    }

    /// Makes all the changes or none, and brings them to the disk.
    ///
    /// # Errors
    /// The store's or the system's. What is in the store then is unknown: it is to be opened anew.
    pub fn apply(&mut self, changes: &[Change]) -> io::Result<()> {
        catch_unwind(AssertUnwindSafe(|| self.apply_unguarded(changes)))
            .unwrap_or_else(|panic| Err(io::Error::other(format!("sled panicked: {}", text_of(&*panic)))))
    }

    fn apply_unguarded(&mut self, changes: &[Change]) -> io::Result<()> {
        let (mut batch, mut summary) = (sled::Batch::default(), self.summary);
        summary.sequence += 1;
        for change in changes {
            let (key, value) = match change {
                Change::Put(entry) => (entry.key(), Some(entry.to_json()?)),
                Change::Remove(key) => (key.clone(), None),
            };
            let key = key.to_text().into_bytes();
            let sum = value.as_ref().map(|value| checksum(&key, value));
            let before = match sum {
                Some(sum) => self.sums.insert(key.clone(), sum),
                None => self.sums.remove(&key),
            };
            summary.rows = summary.rows + u64::from(sum.is_some()) - u64::from(before.is_some());
            summary.digest = summary.digest.wrapping_add(sum.unwrap_or(0)).wrapping_sub(before.unwrap_or(0));
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        batch.insert(SUMMARY_KEY, serde_json::to_vec(&summary)?);
        batch.insert(FORMAT_KEY, FORMAT.to_string().into_bytes());
        self.db.apply_batch(batch).map_err(to_io)?;
        crate::crash::point("journal.applied");
        self.db.flush().map_err(to_io)?;
        crate::crash::point("journal.flushed");
        self.log.sync_data()?;
        self.summary = summary;
        Ok(())
    }

    /// The number of the last write.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.summary.sequence
    }

    /// The size of the log file in bytes.
    ///
    /// # Errors
    /// The system's.
    pub fn bytes(&self) -> io::Result<u64> {
        Ok(self.log.metadata()?.len())
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("folder", &self.folder).field("summary", &self.summary).finish_non_exhaustive()
    }
}

fn checksum(key: &[u8], value: &[u8]) -> u64 {
    let hash = Sha256::new().chain_update(key).chain_update([0]).chain_update(value).finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    u64::from_le_bytes(first)
}

/// Errors that say nothing of the journal itself are told apart from damage, which is set aside.
fn of_sled(folder: &Path, error: sled::Error) -> OpenError {
    let folder = folder.to_owned();
    match error {
        // sled knows no better than this text.
        sled::Error::Io(error) if error.to_string().contains("could not acquire lock") => OpenError::Locked(folder),
        sled::Error::Io(source) if is_the_disks(&source) => OpenError::Io { folder, source },
        error => OpenError::Damaged { folder, what: error.to_string() },
    }
}

fn is_the_disks(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    // EIO has no kind of its own.
    let failed = error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
    failed
        || matches!(
            error.kind(),
            K::PermissionDenied | K::StorageFull | K::QuotaExceeded | K::ReadOnlyFilesystem | K::NotADirectory
        )
}

fn to_io(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(error) => error,
        error => io::Error::other(error),
    }
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Key, Staged};
    use crate::volume::LvName;

    fn staged(number: u32) -> Change {
        let lv = LvName::parse(&format!("pvc-{number}")).unwrap();
        Change::Put(Entry::Staged(lv, "/a/staging/path".to_owned(), Staged { since: i64::from(number) }))
    }

    #[test]
    fn what_was_written_is_there_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("journal");
        let (mut store, contents) = Store::open(&folder).unwrap();
        assert!(contents.is_empty());
        store.apply(&[staged(1), staged(2)]).unwrap();
        store
            .apply(&[Change::Remove(Key::Staged(LvName::parse("pvc-1").unwrap(), "/a/staging/path".to_owned()))])
            .unwrap();
        let sequence = store.sequence();
        assert!(matches!(Store::open(&folder), Err(OpenError::Locked(_))));
        drop(store);
        let (store, contents) = Store::open(&folder).unwrap();
        assert_eq!((contents.len(), store.sequence()), (1, sequence));
        assert!(contents.staged.keys().all(|(lv, _)| lv.as_str() == "pvc-2"));
    }

    #[test]
    fn a_newer_format_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        store.db.insert(FORMAT_KEY, b"2").unwrap();
        store.db.flush().unwrap();
        drop(store);
        for _ in 0..2 {
            assert!(matches!(Store::open(dir.path()), Err(OpenError::Newer { format: 2, .. })));
        }
    }
}
