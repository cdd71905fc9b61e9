//! What the programs of all benchmarks have in common: a table on standard output, the same as JSON in a file, and a closing
//! line.

use std::fmt::Display;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// The variable that names the file for the results.
pub const RESULT: &str = "QUARRY_BENCH_RESULT";

/// Measures, prints the table and writes the file. `testbed bench NAME` starts such a program.
#[must_use]
pub fn main<R: Serialize + Display>(name: &str, measure: impl FnOnce() -> Result<R>) -> ExitCode {
    match to(name).and_then(|to| write(&to, &measure()?)) {
        Ok(()) => {
            println!("1 passed, 0 failed");
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

/// The end of a program that measured nothing.
#[must_use]
pub fn fail(error: &anyhow::Error) -> ExitCode {
    println!("{error:#}\n0 passed, 1 failed");
    ExitCode::FAILURE
}

/// Known before anything is measured.
fn to(name: &str) -> Result<PathBuf> {
    let to = std::env::var_os(RESULT).with_context(|| format!("{RESULT} is not set: use `testbed bench {name}`"))?;
    Ok(PathBuf::from(to))
}

fn write(to: &PathBuf, results: &(impl Serialize + Display)) -> Result<()> {
    print!("{results}");
    let text = serde_json::to_vec_pretty(results)?;
    std::fs::write(to, text).with_context(|| format!("cannot write {}", to.display()))
}

/// The number that is the program's first argument.
///
/// # Errors
/// It is no number, or 0; `what` is counted by it.
pub fn first_argument<N: FromStr + PartialEq + Default>(what: &str, otherwise: N) -> Result<N> {
    let Some(text) = std::env::args().nth(1) else { return Ok(otherwise) };
    let number = text.parse().ok().filter(|number| *number != N::default());
    number.with_context(|| format!("the number of {what} is {text:?}; it must be a number, at least 1"))
}

/// The middle one.
///
/// # Errors
/// There are none.
pub fn median(samples: &[f64]) -> Result<f64> {
    let mut samples = samples.to_vec();
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().context("no samples")
}

/// A process's resident memory in MiB.
///
/// # Errors
/// There is no such process.
pub fn resident_mib(pid: i32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.split_whitespace().next().context("no number")?.parse()?;
    Ok(kib / 1024.0)
}
