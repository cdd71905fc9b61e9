//! Folders for what a run writes: disks, consoles, logs. They are under cargo's output folder, and are gone after a run
//! unless it did not pass.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::cache;
use crate::process::{self, SignalHook};

/// A folder of one run. Dropping it removes it, unless it is kept.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    keep: bool,
    _hook: SignalHook,
}

/// The folders of all runs of this name that go on now, and their process ids.
///
/// # Errors
/// If the folders cannot be listed.
pub fn running(name: &str) -> Result<Vec<(PathBuf, i32)>> {
    let base = cache::target().join("testbed");
    if !base.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&base).with_context(|| format!("cannot read {}", base.display()))? {
        let path = entry?.path();
        let file_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some((of, pid)) = file_name.rsplit_once('-')
            && of == name
            && !path.join(KEPT).exists()
            && let Ok(pid) = pid.parse()
            && Path::new("/proc").join(format!("{pid}")).exists()
        {
            found.push((path, pid));
        }
    }
    Ok(found)
}

/// Marks a folder that the next run of the same name replaces, and nobody else removes.
const KEPT: &str = "kept";

impl Scratch {
    /// Makes `testbed/<name>-<process id>`. Removes what earlier runs of this name kept, and what killed runs of any
    /// name left behind.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn new(name: &str) -> Result<Self> {
        Self::in_folder(&cache::target().join("testbed"), name)
    }

    fn in_folder(base: &Path, name: &str) -> Result<Self> {
        std::fs::create_dir_all(base).with_context(|| format!("cannot make {}", base.display()))?;
        sweep(base, name)?;
        let path = base.join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let removed = path.clone();
        let hook = process::on_signal(move || drop(std::fs::remove_dir_all(removed)));
        Ok(Self { path, keep: false, _hook: hook })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps the folder for a person to look at, less the disks, which are large. Returns its path.
    ///
    /// # Errors
    /// If a disk cannot be removed.
    pub fn keep(mut self) -> Result<PathBuf> {
        self.keep = true;
        remove_disks(&self.path)?;
        std::fs::write(self.path.join(KEPT), "")?;
        Ok(self.path.clone())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            eprintln!("testbed: cannot remove {}: {error}", self.path.display());
        }
    }
}

fn remove_disks(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            remove_disks(&path)?;
        } else if path.extension().is_some_and(|extension| extension == "img") {
            std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

fn sweep(base: &Path, name: &str) -> Result<()> {
    for entry in std::fs::read_dir(base).with_context(|| format!("cannot read {}", base.display()))? {
        let path = entry?.path();
        let file_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some((of, pid)) = file_name.rsplit_once('-') else { continue };
        let running = pid.parse::<u32>().is_err() || Path::new("/proc").join(pid).exists();
        let kept = path.join(KEPT).exists();
        if (kept && of == name) || (!kept && !running) {
            // Another run may sweep at the same time.
            std::fs::remove_dir_all(&path).or_else(|error| if path.exists() { Err(error) } else { Ok(()) })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_folder_stays_without_its_disks_until_the_next_run_of_its_name() {
        let base = tempfile::tempdir().unwrap();
        let scratch = Scratch::in_folder(base.path(), "kernel").unwrap();
        std::fs::write(scratch.path().join("console-1.log"), "x").unwrap();
        std::fs::write(scratch.path().join("a.img"), "x").unwrap();
        let kept = scratch.keep().unwrap();
        assert!(kept.join("console-1.log").exists() && !kept.join("a.img").exists());
        drop(Scratch::in_folder(base.path(), "other").unwrap());
        assert!(kept.exists());
        let again = Scratch::in_folder(base.path(), "kernel").unwrap();
        assert!(!again.path().join("console-1.log").exists());
    }

    #[test]
    fn what_a_killed_run_left_is_swept_and_a_living_one_is_let_be() {
        let base = tempfile::tempdir().unwrap();
        // No process has a number above the kernel's largest pid_max.
        let dead = base.path().join("kernel-4999999");
        let living = base.path().join("kernel-1");
        std::fs::create_dir_all(&dead).unwrap();
        std::fs::create_dir_all(&living).unwrap();
        let own = Scratch::in_folder(base.path(), "sanity").unwrap();
        assert!(!dead.exists() && living.exists());
        let path = own.path().to_owned();
        drop(own);
        assert!(!path.exists());
    }
}
