//! The folder of a running cluster, and what tells it from one that a killed test bed left behind.
//!
//! **Invariant.** A folder is in use exactly as long as somebody holds the lock on the file `lock` in it; the kernel
//! gives the lock back however its holder ends.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::cache;

const LOCK: &str = "lock";

/// A locked folder; dropping it removes it.
#[derive(Debug)]
pub(super) struct RunFolder {
    folder: tempfile::TempDir,
    _lock: File,
}

impl RunFolder {
    /// Makes a new folder and removes those that nobody uses any more.
    pub(super) fn create() -> Result<Self> {
        let shelf = cache::folder("run")?;
        for stale in folders(&shelf)?.into_iter().filter(|f| !in_use(f)) {
            fs::remove_dir_all(&stale).with_context(|| format!("cannot remove the left-over {}", stale.display()))?;
        }
        let folder = tempfile::Builder::new()
            .prefix("cluster-")
            .tempdir_in(&shelf)
            .context("cannot make the cluster's folder")?;
        let lock = File::create(folder.path().join(LOCK)).context("cannot make the cluster's lock")?;
        lock.lock().context("cannot lock the cluster's folder")?;
        Ok(Self { folder, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// The folders of all clusters that run on this machine now.
///
/// # Errors
/// When the cache cannot be read.
pub fn running() -> Result<Vec<PathBuf>> {
    Ok(folders(&cache::folder("run")?)?.into_iter().filter(|f| in_use(f)).collect())
}

fn folders(shelf: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(shelf).with_context(|| format!("cannot read {}", shelf.display()))?;
    let paths = entries.flatten().map(|e| e.path());
    Ok(paths.filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("cluster-"))).collect())
}

fn in_use(folder: &Path) -> bool {
    // Without a lock file it is being made or being removed: leave it for the next time unless it is empty of life.
    match File::open(folder.join(LOCK)) {
        Ok(lock) => lock.try_lock().is_err(),
        Err(_) => false,
    }
}
