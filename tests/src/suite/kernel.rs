//! The driver and LVM on a real kernel.

use std::path::Path;

use anyhow::Result;

use super::build::{self, Profile};
use super::{Program, Suite, Verdict, budget, run};
use crate::command::Command;
use crate::vm::{Disk, VmSpec};

/// Builds the suite and runs it in one machine.
///
/// `filter` goes to the test program: names of tests, `--exact`, `--skip NAME` ...
///
/// # Errors
/// If it cannot be built.
pub fn suite(udev: bool, filter: &[String]) -> Result<Verdict> {
    let tests = build::test_program("kernel")?;
    let driver = build::driver(Profile::Debug)?;
    let (name, suite) = if udev { ("kernel-udev", Suite::KernelUdev) } else { ("kernel", Suite::Kernel) };
    let command = Command::new(tests).arg("--test-threads=1").args(filter);
    let command = command.env("QUARRY_DRIVER_BIN", driver).env("RUST_BACKTRACE", "1");
    let program = Program { name: name.to_owned(), command, budget: budget(suite), result: None };
    Ok(run(&program, |folder| machine(name, udev, folder)))
}

/// A machine with six scratch disks, two of them large.
pub(super) fn machine(name: &str, udev: bool, folder: &Path) -> VmSpec {
    let mut spec = VmSpec::new(name, folder);
    spec.udev = udev;
    spec.memory_mib = 3072;
    spec.disks = (0..6).map(|n| Disk::gib(&format!("scratch{n}"), if n < 2 { 16 } else { 4 })).collect();
    spec
}
