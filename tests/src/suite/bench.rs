//! Benchmarks in a machine; their results are copied out.

use anyhow::Result;

use super::build::{self, Profile};
use super::{Program, Suite, Verdict, budget, kernel, run};
use crate::cache;
use crate::command::Command;

/// Where the program in the machine leaves its result.
const RESULT: &str = "/run/quarry/bench-create.json";

/// Builds the create benchmark, runs it in one machine and copies its result to `bench/create.json` in cargo's output
/// folder.
///
/// # Errors
/// If it cannot be built.
pub fn create(release: bool, arguments: &[String]) -> Result<Verdict> {
    let tests = build::test_program("bench_create")?;
    let driver = build::driver(if release { Profile::Release } else { Profile::Debug })?;
    let command =
        Command::new(tests).args(arguments).env("QUARRY_DRIVER_BIN", driver).env("QUARRY_BENCH_RESULT", RESULT);
    let to = cache::target().join("bench/create.json");
    let budget = budget(Suite::BenchCreate);
    let program = Program { name: "bench-create".to_owned(), command, budget, result: Some((RESULT.into(), to)) };
    Ok(run(&program, |folder| kernel::machine("bench-create", false, folder)))
}
