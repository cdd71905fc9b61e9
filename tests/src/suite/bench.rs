//! Benchmarks: in a machine, with their results copied out, or on this one.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::build::{self, Profile};
use super::closing::closing;
use super::run::{conclude, judge};
use super::{Program, Suite, Verdict, budget, kernel, run};
use crate::cache;
use crate::cluster::nodeless::Nodeless;
use crate::command::{Command, Stream};
use crate::process;
use crate::progress::Progress;

/// API servers of the simulation: one alone may not have as many connections open as 5,000 reporters need.
const API_SERVERS: u16 = 2;

/// Builds the create benchmark, runs it in one machine and copies its result to `bench/create.json` in cargo's output
/// folder.
///
/// # Errors
/// If it cannot be built.
pub fn create(release: bool, arguments: &[String]) -> Result<Verdict> {
    let driver = build::driver(if release { Profile::Release } else { Profile::Debug })?;
    measure("create", Suite::BenchCreate, driver, arguments)
}

/// Builds the journal benchmark, with a driver that can do without its journal, runs it in one machine and copies its
/// result to `bench/journal.json` in cargo's output folder.
///
/// # Errors
/// If it cannot be built.
pub fn journal(release: bool, arguments: &[String]) -> Result<Verdict> {
    let driver = build::driver_with_crash_points(if release { Profile::Release } else { Profile::Debug })?;
    measure("journal", Suite::BenchJournal, driver, arguments)
}

/// Builds the capacity benchmark and the capacity-reporter, both optimised, starts etcd and API servers on this machine,
/// and measures real reporters of simulated nodes against them. The result is `bench/capacity-simulation.json` in cargo's
/// output folder.
///
/// # Errors
/// If something cannot be built or started.
pub fn capacity_simulation(sizes: &[String]) -> Result<Verdict> {
    let reporter = build::reporter(Profile::Release)?;
    let program = build::load_program("bench_capacity")?;
    let nodeless = Nodeless::start("bench-capacity", API_SERVERS, &Progress::default())?;
    let access = nodeless.folder().join("access.json");
    std::fs::write(&access, serde_json::to_vec(&nodeless.access())?)?;
    let to = cache::target().join("bench/capacity-simulation.json");
    std::fs::create_dir_all(to.parent().context("the result needs a folder")?)?;
    let command = Command::new(program).arg("simulation").args(sizes);
    let command = command.env("QUARRY_REPORTER_BIN", reporter).env("QUARRY_BENCH_RESULT", &to);
    let command = nodeless.inside(command.env("QUARRY_ACCESS", access));
    let verdict = here(&command, Suite::BenchCapacity).unwrap_or_else(|error| Verdict::None(format!("{error:#}")));
    if let Some(kept) = nodeless.stop(verdict != Verdict::Pass)? {
        eprintln!("testbed: logs are kept in {}", kept.display());
    }
    Ok(conclude("bench-capacity", verdict))
}

/// Runs a program on this machine, with its output shown, and judges it.
fn here(command: &Command, suite: Suite) -> Result<Verdict> {
    let mut output = Vec::new();
    let exit = process::run_streaming(command, budget(suite), |stream, bytes| match stream {
        Stream::Stdout => {
            output.extend_from_slice(bytes);
            // A closed standard output is no reason to give up.
            std::io::stdout().lock().write_all(bytes).ok();
        }
        Stream::Stderr => drop(std::io::stderr().write_all(bytes)),
    })?;
    Ok(judge(exit, closing(&String::from_utf8_lossy(&output))))
}

fn measure(bench: &str, suite: Suite, driver: PathBuf, arguments: &[String]) -> Result<Verdict> {
    let name = format!("bench-{bench}");
    let tests = build::test_program(&format!("bench_{bench}"))?;
    // Where the program in the machine leaves its result.
    let result = format!("/run/quarry/{name}.json");
    let command = Command::new(tests).args(arguments);
    let command = command.env("QUARRY_DRIVER_BIN", driver).env("QUARRY_BENCH_RESULT", &result);
    let to = cache::target().join(format!("bench/{bench}.json"));
    let program = Program { name: name.clone(), command, budget: budget(suite), result: Some((result.into(), to)) };
    Ok(run(&program, |folder| kernel::machine(&name, false, folder)))
}
