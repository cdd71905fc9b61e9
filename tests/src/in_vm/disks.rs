//! The disks of a machine that tests may wipe.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::require;
use crate::command::Command;
use crate::process;

/// Disks whose serial number begins so are for tests.
const SERIAL: &str = "scratch";

/// All disks that tests may wipe, in order: `/dev/vda`, `/dev/vdb` ...
///
/// # Errors
/// Outside a machine, or if it has none.
pub fn scratch_disks() -> Result<Vec<PathBuf>> {
    require()?;
    let mut disks = Vec::new();
    for entry in std::fs::read_dir("/sys/block").context("cannot read /sys/block")? {
        let entry = entry?;
        let serial = std::fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
        if serial.starts_with(SERIAL) {
            disks.push(Path::new("/dev").join(entry.file_name()));
        }
    }
    disks.sort();
    if disks.is_empty() {
        bail!("this machine has no disk whose serial number begins with {SERIAL:?}");
    }
    Ok(disks)
}

static TAKEN: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Takes so many scratch disks that nobody in this process has.
pub(super) fn take(count: usize) -> Result<Vec<PathBuf>> {
    let all = scratch_disks()?;
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let free: Vec<PathBuf> = all.iter().filter(|disk| !taken.contains(*disk)).take(count).cloned().collect();
    if free.len() < count {
        bail!("wanted {count} scratch disks, but only {} of {} are free", free.len(), all.len());
    }
    taken.extend(free.iter().cloned());
    Ok(free)
}

pub(super) fn give_back(disks: &[PathBuf]) {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    taken.retain(|disk| !disks.contains(disk));
}

/// Forgets everything on a disk that nothing uses any more: all of it reads as zeroes after.
///
/// # Errors
/// Outside a machine, or if the disk is in use.
pub fn wipe(disk: &Path) -> Result<()> {
    require()?;
    let run = |command: Command| process::run(&command, Duration::from_secs(60))?.success().map(drop);
    run(Command::new("wipefs").args(["--all", "--quiet"]).arg(disk))?;
    run(Command::new("blkdiscard").arg("--zeroout").arg(disk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_disk_is_touched_outside_a_machine() {
        let error = wipe(Path::new("/dev/null")).unwrap_err().to_string();
        assert!(error.contains("only in a virtual machine of the test bed"), "{error}");
        assert!(scratch_disks().is_err());
    }
}
