//! What tests inside a machine stand on: its disks, fresh volume groups, and the real driver.
//!
//! **Invariant.** Everything here refuses to work outside a machine that the test bed booted: it wipes disks.

mod disks;
mod driver;
mod host;
mod lvm;
mod weak_disk;

use std::path::Path;

use anyhow::{Result, bail};

pub use disks::{scratch_disks, wipe};
pub use driver::{Csi, DriverSpec, DriverUnderTest};
pub use host::{describe, machine};
pub use lvm::{Row, VgOptions, VolumeGroup, lvm};
pub use weak_disk::WeakDisk;

/// Fails unless this is a machine that the test bed booted.
///
/// # Errors
/// Says how to run the tests properly.
pub fn require() -> Result<()> {
    let ours =
        std::fs::read_to_string("/proc/cmdline").is_ok_and(|line| line.split_whitespace().any(|w| w == "quarry.vm=1"));
    if !ours || !Path::new(crate::vm::initramfs::ORDER).exists() {
        bail!("these tests wipe disks and run only in a virtual machine of the test bed: use `testbed suite NAME`");
    }
    Ok(())
}

/// Whether udevd runs in this machine.
///
/// # Errors
/// As [`require`].
pub fn has_udevd() -> Result<bool> {
    require()?;
    Ok(Path::new("/run/udev/control").exists())
}
