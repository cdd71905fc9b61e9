//! Shares and limits of a disk's tenants.

use std::path::Path;

use anyhow::Result;

use super::build::{self, Profile};
use super::{Program, Suite, Verdict, budget, run};
use crate::command::Command;
use crate::vm::{Disk, VmSpec};

/// What each disk does at most: little enough that an emulated machine is not the narrower place.
const IOPS: u32 = 600;

/// Builds the suite and runs it in one machine with four slow disks.
///
/// `filter` goes to the test program: names of tests, `--exact`, `--skip NAME` ...
///
/// # Errors
/// If it cannot be built.
pub fn suite(filter: &[String]) -> Result<Verdict> {
    let tests = build::test_program("isolation")?;
    let driver = build::driver(Profile::Debug)?;
    let command = Command::new(tests).args(["--test-threads=1", "--nocapture"]).args(filter);
    let command = command.env("QUARRY_DRIVER_BIN", driver).env("RUST_BACKTRACE", "1");
    let program = Program {
        name: "isolation".to_owned(),
        command,
        budget: budget(Suite::Isolation),
        side_by_side: false,
        result: None,
    };
    Ok(run(&program, |folder| machine("isolation", folder)))
}

/// A machine with four slow disks.
pub(super) fn machine(name: &str, folder: &Path) -> VmSpec {
    let mut spec = VmSpec::new(name, folder);
    spec.memory_mib = 3072;
    spec.disks = (0..4).map(|n| Disk::mib(&format!("scratch{n}"), 1024).limited(IOPS)).collect();
    spec
}
