//! Things that take long to make, kept outside the checkout under a hash of what they are made from.
//!
//! **Invariant.** What lies under its name is whole: it is made in a folder beside and renamed. Two test beds that want
//! the same thing do not make it twice: the second waits for the first.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use super::image::hex;
use crate::cache;

/// How many versions of one thing are kept beside the newest, for going back and forth between branches.
const KEPT: usize = 3;

/// A folder of made things.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// A hash over everything that decides what a thing becomes.
#[derive(Debug, Clone, Default)]
pub struct Key(Sha256);

impl Key {
    /// Takes a value in.
    #[must_use]
    pub fn with(mut self, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        // The length keeps ("ab", "c") and ("a", "bc") apart.
        self.0.update((value.len() as u64).to_le_bytes());
        self.0.update(value);
        self
    }

    /// Takes the content of a file in.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn with_file(self, path: &Path) -> Result<Self> {
        Ok(self.with(fs::read(path).with_context(|| format!("cannot read {}", path.display()))?))
    }

    /// The hash, short enough for a file name.
    #[must_use]
    pub fn name(self) -> String {
        let mut name = hex(&self.0.finalize());
        name.truncate(16);
        name
    }
}

impl Store {
    /// The store in the cache.
    ///
    /// # Errors
    /// When there is no cache.
    pub fn open() -> Result<Self> {
        Ok(Self { root: cache::folder("artifacts")? })
    }

    /// A store below this folder.
    #[must_use]
    pub fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// The folder of the thing `kind`/`key`; `make` fills it when it does not exist yet.
    ///
    /// # Errors
    /// What `make` returns, or when the store cannot be written.
    pub fn folder(&self, kind: &str, key: Key, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let shelf = self.root.join(kind);
        fs::create_dir_all(&shelf).with_context(|| format!("cannot make {}", shelf.display()))?;
        let place = shelf.join(key.name());
        let lock_path = shelf.join(".lock");
        let lock = File::create(&lock_path).with_context(|| format!("cannot make {}", lock_path.display()))?;
        // Held until the file is closed, also when this process is killed.
        lock.lock().with_context(|| format!("cannot lock {}", lock_path.display()))?;
        if !place.exists() {
            let scratch = tempfile::Builder::new().prefix(".new-").tempdir_in(&shelf)?;
            make(scratch.path())?;
            fs::rename(scratch.keep(), &place).with_context(|| format!("cannot place {}", place.display()))?;
        }
        // Marks it as used, for `tidy`.
        File::create(place.join(".used")).with_context(|| format!("cannot write into {}", place.display()))?;
        tidy(&shelf, &place);
        Ok(place)
    }
}

/// Removes what was not used for longest, and what a killed run left half made. Best effort: it only saves room.
fn tidy(shelf: &Path, current: &Path) {
    let Ok(entries) = fs::read_dir(shelf) else { return };
    let mut things = Vec::new();
    for path in entries.flatten().map(|e| e.path()).filter(|p| p.is_dir() && p != current) {
        if path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(".new-")) {
            // The lock is ours, so nobody is making it.
            fs::remove_dir_all(&path).ok();
        } else {
            let used = fs::metadata(path.join(".used")).and_then(|m| m.modified());
            things.push((used.unwrap_or(std::time::UNIX_EPOCH), path));
        }
    }
    things.sort();
    for (_, path) in things.iter().rev().skip(KEPT) {
        fs::remove_dir_all(path).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    #[test]
    fn a_thing_is_made_once_and_a_failed_one_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(folder.path().to_owned());
        let key = || Key::default().with("a");
        assert!(store.folder("x", key(), |_| bail!("no luck")).is_err());
        let path = store.folder("x", key(), |p| Ok(fs::write(p.join("f"), "1")?)).unwrap();
        let again = store.folder("x", key(), |_| bail!("made twice")).unwrap();
        assert_eq!((fs::read_to_string(again.join("f")).unwrap(), path), ("1".into(), again));
    }

    #[test]
    fn a_few_old_things_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(folder.path().to_owned());
        for n in 0..8 {
            store.folder("x", Key::default().with([n]), |_| Ok(())).unwrap();
        }
        let left = fs::read_dir(folder.path().join("x")).unwrap().flatten().filter(|e| e.path().is_dir()).count();
        assert_eq!(left, KEPT + 1);
    }

    #[test]
    fn keys_differ_where_values_are_cut_differently() {
        assert_ne!(Key::default().with("ab").with("c").name(), Key::default().with("a").with("bc").name());
    }
}
