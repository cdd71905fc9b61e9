//! The driver and LVM's commands killed at every point.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Program, Suite, Verdict, budget, build, kernel, run};
use crate::command::Command;
use crate::sample;

/// Builds the suite and runs it in one machine. `filter` goes to it: parts of names of what to do.
///
/// # Errors
/// If it cannot be built.
pub fn suite(filter: &[String]) -> Result<Verdict> {
    let tests = build::test_program("crash")?;
    let driver = build::driver_with_crash_points(build::Profile::Debug)?;
    let mut command = Command::new(tests).args(filter).env("QUARRY_DRIVER_BIN", driver).env("RUST_BACKTRACE", "1");
    let mut budget = budget(Suite::Crash);
    if let Ok(text) = std::env::var(SECONDS) {
        let seconds = text.parse().with_context(|| format!("{SECONDS} is {text:?}, should be a number of seconds"))?;
        budget += Duration::from_secs(seconds);
        command = command.env(SECONDS, text);
    }
    if let Ok(text) = std::env::var(sample::VARIABLE) {
        command = command.env(sample::VARIABLE, text);
    }
    let program = Program { name: "crash".to_owned(), command, budget, side_by_side: false, result: None };
    Ok(run(&program, |folder| kernel::machine("crash", false, folder)))
}

/// How long the driver is killed at random under load.
const SECONDS: &str = "QUARRY_CRASH_SECONDS";
