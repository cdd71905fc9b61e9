//! Benchmarks in a machine; their results are copied out.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::build::{self, Profile};
use super::{Program, Suite, Verdict, budget, kernel, run};
use crate::cache;
use crate::command::Command;
use crate::vm::VmSpec;

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

/// Builds the isolation benchmark, runs it in one machine with slow disks and copies its result to
/// `bench/isolation.json` in cargo's output folder.
///
/// # Errors
/// If it cannot be built.
pub fn isolation(release: bool) -> Result<Verdict> {
    let driver = build::driver(if release { Profile::Release } else { Profile::Debug })?;
    measure_in("isolation", Suite::BenchIsolation, driver, &[], |folder| {
        super::isolation::machine("bench-isolation", folder)
    })
}

/// Builds the scrape benchmark, runs it in one machine and copies its result to `bench/scrape.json` in cargo's output
/// folder.
///
/// # Errors
/// If it cannot be built.
pub fn scrape(release: bool, arguments: &[String]) -> Result<Verdict> {
    let driver = build::driver(if release { Profile::Release } else { Profile::Debug })?;
    measure("scrape", Suite::BenchScrape, driver, arguments)
}

fn measure(bench: &str, suite: Suite, driver: PathBuf, arguments: &[String]) -> Result<Verdict> {
    measure_in(bench, suite, driver, arguments, |folder| kernel::machine(&format!("bench-{bench}"), false, folder))
}

fn measure_in(
    bench: &str,
    suite: Suite,
    driver: PathBuf,
    arguments: &[String],
    machine: impl Fn(&Path) -> VmSpec,
) -> Result<Verdict> {
    let name = format!("bench-{bench}");
    let tests = build::test_program(&format!("bench_{bench}"))?;
    // Where the program in the machine leaves its result.
    let result = format!("/run/quarry/{name}.json");
    let command = Command::new(tests).args(arguments);
    let command = command.env("QUARRY_DRIVER_BIN", driver).env("QUARRY_BENCH_RESULT", &result);
    let to = cache::target().join(format!("bench/{bench}.json"));
    let program = Program { name: name.clone(), command, budget: budget(suite), result: Some((result.into(), to)) };
    Ok(run(&program, machine))
}
