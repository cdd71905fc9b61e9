//! The machines themselves, proved from this side.

use std::io::Write as _;

use anyhow::{Result, bail};

use super::closing::closing;
use super::run::judge;
use super::{Suite, Verdict, budget, build};
use crate::command::{Command, Stream};
use crate::process;

/// Builds the suite and runs it on this machine.
///
/// # Errors
/// If it cannot be built, or is not done within its budget.
pub fn suite(filter: &[String]) -> Result<Verdict> {
    let tests = build::test_program("bed")?;
    let mut output = Vec::new();
    let command = Command::new(tests).arg("--test-threads=1").args(filter);
    let exit = process::run_streaming(&command, budget(Suite::Bed), |stream, bytes| match stream {
        Stream::Stdout => {
            output.extend_from_slice(bytes);
            let mut out = std::io::stdout().lock();
            out.write_all(bytes).and_then(|()| out.flush()).ok();
        }
        Stream::Stderr => drop(std::io::stderr().write_all(bytes)),
    })?;
    match judge(exit, closing(&String::from_utf8_lossy(&output))) {
        Verdict::None(reason) => bail!("suite bed: no verdict: {reason}"),
        verdict => Ok(verdict),
    }
}
