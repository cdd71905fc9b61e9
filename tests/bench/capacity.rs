//! What the capacity-reporter costs and how fast it is (`testbed bench capacity`): reporters of simulated nodes, and one on
//! a node of a real cluster.

#[path = "capacity/cluster.rs"]
mod cluster;
#[path = "../../capacity-reporter/tests/reporter/driver.rs"]
#[expect(dead_code, reason = "the reporter's own tests order it to do more")]
#[expect(clippy::unwrap_used, reason = "written for tests, where a helper that fails is a failure")]
mod driver;
#[path = "capacity/exposition.rs"]
mod exposition;
#[path = "capacity/herd.rs"]
mod herd;
#[path = "capacity/results.rs"]
mod results;
#[path = "capacity/scrape.rs"]
mod scrape;
#[path = "capacity/shipped.rs"]
mod shipped;
#[path = "capacity/simulation.rs"]
mod simulation;
#[path = "capacity/world.rs"]
mod world;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use quarry_tests::bench;
use quarry_tests::cluster::nodeless::Access;
use quarry_tests::in_vm::machine;

use results::Results;

/// The StorageClasses of the simulation, each a device class of the same name.
pub const CLASSES: [&str; 3] = ["a", "b", "c"];
/// How many nodes there are, unless arguments say otherwise.
const SIZES: [usize; 3] = [100, 1000, 5000];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["herd", socket, authority] => {
            let served = herd::serve(Path::new(socket), Path::new(authority));
            served.map_or_else(|error| bench::fail(&error), |()| ExitCode::SUCCESS)
        }
        ["simulation", sizes @ ..] => bench::main("capacity", || simulate(sizes)),
        ["cluster", orders] => bench::main("capacity", || in_cluster(orders)),
        other => bench::fail(&anyhow::anyhow!("this is not understood: {other:?}; use `testbed bench capacity`")),
    }
}

fn variable(name: &str) -> Result<std::ffi::OsString> {
    std::env::var_os(name).with_context(|| format!("{name} is not set: use `testbed bench capacity`"))
}

fn in_cluster(orders: &str) -> Result<cluster::Figures> {
    let orders = serde_json::from_str(orders).context("the orders")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(cluster::run(orders))
}

fn simulate(sizes: &[&str]) -> Result<Results> {
    let reporter = PathBuf::from(variable("QUARRY_REPORTER_BIN")?);
    let access = std::fs::read(PathBuf::from(variable("QUARRY_ACCESS")?))?;
    let access: Access = serde_json::from_slice(&access).context("the cluster's description")?;
    let mut sizes: Vec<usize> = sizes
        .iter()
        .map(|size| size.parse().with_context(|| format!("{size:?} is no number")))
        .collect::<Result<_>>()?;
    if sizes.is_empty() {
        sizes = SIZES.to_vec();
    }
    if !sizes.is_sorted() {
        bail!("the sizes {sizes:?} do not grow");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let simulation = runtime.block_on(simulation::run(access, reporter, &sizes))?;
    Ok(Results { machine: machine()?, simulation })
}
