//! A disk that hangs or fails when it is told to, by device-mapper.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::disks;
use crate::command::Command;
use crate::process;

/// How long one dmsetup may take; nothing here waits for a disk.
const LIMIT: Duration = Duration::from_secs(60);

/// Where it begins on the disk below, in sectors: so far in that nobody takes the disk below for the same physical volume.
const OFFSET: u64 = 2048;

/// A device over a part of a scratch disk. Dropping it heals and removes it; nothing may use it any more.
#[derive(Debug)]
pub struct WeakDisk {
    name: String,
    path: PathBuf,
    below: PathBuf,
    sectors: u64,
    pulled: AtomicBool,
}

impl WeakDisk {
    /// A sound disk of `mib` MiB; what is on it is left from its last user.
    ///
    /// # Errors
    /// Outside a machine, if no scratch disk is free, or device-mapper's.
    pub fn new(mib: u64) -> Result<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let below = disks::take(1)?.pop().context("no disk was taken")?;
        let name = format!("weak{}", MADE.fetch_add(1, Ordering::Relaxed));
        let disk = Self {
            path: Path::new("/dev/mapper").join(&name),
            name,
            below,
            sectors: mib * 2048,
            pulled: AtomicBool::new(false),
        };
        disk.plug_in()?;
        Ok(disk)
    }

    /// Its node in `/dev/mapper`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn sound(&self) -> String {
        format!("0 {} linear {} {OFFSET}", self.sectors, self.below.display())
    }

    /// From now on every read and write waits.
    ///
    /// # Errors
    /// Device-mapper's.
    pub fn hang(&self) -> Result<()> {
        dmsetup(&["suspend", "--noudevsync", "--nolockfs", "--noflush", &self.name])
    }

    /// From now on every read and write fails, as those of a disk that was pulled.
    ///
    /// # Errors
    /// Device-mapper's.
    pub fn fail(&self) -> Result<()> {
        self.replace(&format!("0 {} error", self.sectors))
    }

    /// From now on every write fails, and reads go on.
    ///
    /// # Errors
    /// Device-mapper's.
    pub fn fail_writes(&self) -> Result<()> {
        // Never up, always down, for as long as it can count.
        self.replace(&format!("0 {} flakey {} {OFFSET} 0 100000 1 error_writes", self.sectors, self.below.display()))
    }

    /// Whatever was the matter, it is there and sound again; what waited goes on.
    ///
    /// # Errors
    /// Device-mapper's.
    pub fn heal(&self) -> Result<()> {
        if self.pulled.load(Ordering::Relaxed) { self.plug_in() } else { self.replace(&self.sound()) }
    }

    fn replace(&self, table: &str) -> Result<()> {
        dmsetup(&["load", &self.name, "--table", table])?;
        // What waits in a suspended device is handed to the new table; what is under way is not waited for.
        dmsetup(&["suspend", "--noudevsync", "--nolockfs", "--noflush", &self.name])?;
        dmsetup(&["resume", "--noudevsync", &self.name])
    }

    /// Takes the device away altogether, as a pulled disk's; nothing may have it open.
    ///
    /// # Errors
    /// Device-mapper's.
    pub fn pull(&self) -> Result<()> {
        dmsetup(&["remove", "--noudevsync", "--retry", &self.name])?;
        self.pulled.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn plug_in(&self) -> Result<()> {
        dmsetup(&["create", &self.name, "--noudevsync", "--table", &self.sound()])?;
        self.pulled.store(false, Ordering::Relaxed);
        // Without udevd nobody makes the node.
        dmsetup(&["mknodes", &self.name])
    }
}

impl Drop for WeakDisk {
    fn drop(&mut self) {
        // What was on it was wiped by who used it as a volume group.
        let removed = self.heal().and_then(|()| self.pull());
        disks::give_back(std::slice::from_ref(&self.below));
        if let Err(error) = removed {
            eprintln!("cannot remove the disk {}: {error:#}", self.name);
            assert!(std::thread::panicking(), "{} is left behind", self.name);
        }
    }
}

fn dmsetup(arguments: &[&str]) -> Result<()> {
    process::run(&Command::new("dmsetup").args(arguments), LIMIT)?.success().map(drop)
}
