//! Benchmarks: in a machine, with their results copied out, or on this one.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::build::{self, Profile};
use super::closing::closing;
use super::run::{conclude, judge};
use super::{Program, Suite, Verdict, budget, kernel, run};
use crate::bench::RESULT;
use crate::cache;
use crate::cluster::nodeless::Nodeless;
use crate::cluster::release::Release;
use crate::cluster::{NodeSettings, Parts};
use crate::command::{Command, Stream};
use crate::process;
use crate::progress::Progress;
use crate::vm::VmSpec;

/// API servers of the simulation: one alone may not have as many connections open as 5,000 reporters need.
const API_SERVERS: u16 = 2;
/// How often each change is measured on a real node.
const SAMPLES: usize = 30;

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
pub fn scrape(release: bool) -> Result<Verdict> {
    let driver = build::driver(if release { Profile::Release } else { Profile::Debug })?;
    measure("scrape", Suite::BenchScrape, driver, &[])
}

/// Builds the scrape benchmark, optimised, and measures the driver's HTTP endpoint alone on this machine. The result is the
/// part `endpoint` of `bench/scrape.json`.
///
/// # Errors
/// If it cannot be built.
pub fn scrape_endpoint() -> Result<Verdict> {
    let program = build::load_program("bench_scrape")?;
    let folder = tempfile::tempdir()?;
    let result = folder.path().join("result.json");
    let command = Command::new(program).arg("endpoint").env(RESULT, &result);
    let verdict = here(&command, Suite::BenchScrape)?;
    if verdict == Verdict::Pass {
        part("scrape", "endpoint", &std::fs::read(&result)?)?;
    }
    Ok(conclude("bench-scrape, endpoint", verdict))
}

/// Builds the capacity benchmark and the capacity-reporter, both optimised, starts etcd and API servers on this machine,
/// and measures real reporters of simulated nodes against them. The result is the part `simulation` of
/// `bench/capacity.json` in cargo's output folder.
///
/// # Errors
/// If something cannot be built or started.
pub fn capacity_simulation(sizes: &[String]) -> Result<Verdict> {
    let reporter = build::reporter(Profile::Release)?;
    let program = build::load_program("bench_capacity")?;
    let nodeless = Nodeless::start("bench-capacity", API_SERVERS, &Progress::default())?;
    let access = nodeless.folder().join("access.json");
    std::fs::write(&access, serde_json::to_vec(&nodeless.access())?)?;
    let result = nodeless.folder().join("result.json");
    let command = Command::new(program).arg("simulation").args(sizes);
    let command = command.env("QUARRY_REPORTER_BIN", reporter).env(RESULT, &result);
    let command = nodeless.inside(command.env("QUARRY_ACCESS", access));
    let mut verdict = here(&command, Suite::BenchCapacity).unwrap_or_else(|error| Verdict::None(format!("{error:#}")));
    if verdict == Verdict::Pass
        && let Err(error) =
            std::fs::read(&result).map_err(Into::into).and_then(|found| part("capacity", "simulation", &found))
    {
        verdict = Verdict::None(format!("{error:#}"));
    }
    if let Some(kept) = nodeless.stop(verdict != Verdict::Pass)? {
        eprintln!("testbed: logs are kept in {}", kept.display());
    }
    Ok(conclude("bench-capacity, simulation", verdict))
}

/// Builds the capacity benchmark and what a cluster needs, starts one of a single node, and measures on that how long
/// changes take until they are published. The result is the part `cluster` of `bench/capacity.json`.
///
/// # Errors
/// If something cannot be built.
pub fn capacity_cluster() -> Result<Verdict> {
    let program = build::load_program("bench_capacity")?;
    let progress = Progress::default();
    let parts = Parts::make(true, &progress)?;
    let verdict = on_a_node(&program, &parts, &progress).unwrap_or_else(|error| Verdict::None(format!("{error:#}")));
    Ok(conclude("bench-capacity, cluster", verdict))
}

fn on_a_node(program: &Path, parts: &Parts, progress: &Progress) -> Result<Verdict> {
    // Room for as many thick volumes as are made beside a thin pool, which gets most of it.
    let node = NodeSettings { data_disk: 24 << 30, ..NodeSettings::usual("quarry-1") };
    let name = node.name.clone();
    let cluster = parts.start(vec![node], progress)?;
    let measured = (|| {
        progress.step("install the chart", || Release::of(cluster.folder()).install(&[&name], &[]))?;
        let orders = serde_json::json!({
            "kubeconfig": cluster.folder().join("admin.kubeconfig"),
            "node": name,
            "provisioner": parts.program("csi-provisioner")?,
            "samples": SAMPLES,
        });
        let result = "/run/bench-capacity.json";
        let command = Command::new(program).args(["cluster", &orders.to_string()]).env(RESULT, result);
        let measure = || cluster.node(&name)?.run(&command, budget(Suite::BenchCapacity));
        let outcome = progress.step("measure on the node", measure)?;
        let said = outcome.stdout_text();
        print!("{said}");
        let verdict = judge(outcome.exit, closing(&said));
        if verdict == Verdict::Pass {
            let cat = Command::new("cat").arg(result);
            let found = cluster.node(&name)?.run(&cat, Duration::from_secs(60))?.success()?;
            part("capacity", "cluster", &found.stdout)?;
        } else {
            eprint!("{}", String::from_utf8_lossy(&outcome.stderr));
        }
        Ok(verdict)
    })();
    if matches!(measured, Ok(Verdict::Pass)) {
        cluster.stop()?;
    } else {
        eprintln!("testbed: consoles, logs and events are kept in {}", cluster.stop_and_keep()?.display());
    }
    measured
}

/// Puts a part of a benchmark's result into its file; the rest stays as it is.
fn part(bench: &str, name: &str, found: &[u8]) -> Result<()> {
    let to = cache::target().join(format!("bench/{bench}.json"));
    std::fs::create_dir_all(to.parent().context("the result needs a folder")?)?;
    let mut all: serde_json::Map<String, serde_json::Value> = match std::fs::read(&to) {
        Ok(before) => serde_json::from_slice(&before).with_context(|| format!("{} is no result", to.display()))?,
        Err(_) => serde_json::Map::new(),
    };
    all.insert(name.to_owned(), serde_json::from_slice(found).context("the result is no JSON")?);
    std::fs::write(&to, serde_json::to_vec_pretty(&all)?).with_context(|| format!("cannot write {}", to.display()))?;
    eprintln!("testbed: result in {}", to.display());
    Ok(())
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
    let command = command.env("QUARRY_DRIVER_BIN", driver).env(RESULT, &result);
    let to = cache::target().join(format!("bench/{bench}.json"));
    let program = Program {
        name: name.clone(),
        command,
        budget: budget(suite),
        side_by_side: false,
        result: Some((result.into(), to)),
    };
    Ok(run(&program, machine))
}
