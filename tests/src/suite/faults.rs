//! The driver when disks hang, fail, fill up and come back.

use anyhow::Result;

use super::build::{self, Profile};
use super::{Program, Suite, Verdict, budget, kernel, run};
use crate::command::Command;

/// Builds the suite and runs it in one machine.
///
/// `filter` goes to the test program: names of tests, `--exact`, `--skip NAME` ...
///
/// # Errors
/// If it cannot be built.
pub fn suite(filter: &[String]) -> Result<Verdict> {
    let tests = build::test_program("faults")?;
    let driver = build::driver(Profile::Debug)?;
    let command = Command::new(tests).arg("--test-threads=1").args(filter);
    let command = command.env("QUARRY_DRIVER_BIN", driver).env("RUST_BACKTRACE", "1");
    let program = Program {
        name: "faults".to_owned(),
        command,
        budget: budget(Suite::Faults),
        side_by_side: false,
        result: None,
    };
    Ok(run(&program, |folder| kernel::machine("faults", false, folder)))
}
