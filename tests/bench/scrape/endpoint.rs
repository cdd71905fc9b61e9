//! The driver's HTTP endpoint alone, on this machine's own processor: what is known of each volume is there, as in a driver
//! (which keeps it from one scrape to the next), and is copied, written out and sent. All volumes are active, thin, and
//! ask for a weight and limits, so that each has every series there is.

use std::fmt;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use quarry_driver::engine::inventory::{Inventory, VolumeFigures};
use quarry_driver::io::{Reason, State};
use quarry_driver::telemetry::health::Health;
use quarry_driver::telemetry::http::{self as served, Endpoint};
use quarry_driver::telemetry::inventory::Shares;
use quarry_driver::telemetry::metrics::{Metrics, Origin, Snapshot, Source};
use quarry_driver::volume::LvName;
use quarry_tests::bench::median;
use quarry_tests::in_vm;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::VOLUMES;
use crate::http::{get, kib, series, times};
use crate::volume::figures;

/// The results of one run.
#[derive(Debug, Serialize)]
pub struct Results {
    machine: String,
    rows: Vec<Row>,
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Row {
    volumes: usize,
    series: usize,
    kib: f64,
    /// The median of an answer of `/livez`, which costs nothing but HTTP.
    livez_ms: f64,
    /// The median of a scrape.
    scrape_ms: f64,
    /// The slowest.
    worst_ms: f64,
}

/// Measures.
pub fn run() -> Result<Results> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let rows = VOLUMES.iter().map(|volumes| measure(&runtime, *volumes)).collect::<Result<_>>()?;
    Ok(Results { machine: in_vm::machine()?, rows })
}

fn measure(runtime: &tokio::runtime::Runtime, volumes: usize) -> Result<Row> {
    let origin = Origin { node: "node-1".to_owned(), config: String::new(), each_volume: true };
    let known = Known { inventory: inventory(volumes), shares: shares(volumes)? };
    let endpoint =
        Endpoint { health: Health::default(), metrics: Arc::new(Metrics::new(origin)?), source: Arc::new(known) };
    let listener = runtime.block_on(served::bind(([127, 0, 0, 1], 0).into()))?;
    let address = listener.local_addr()?.to_string();
    let end = CancellationToken::new();
    let server = runtime.spawn(endpoint.serve(listener, end.clone()));

    let text = get(&address, "/metrics")?.1;
    let states = text.lines().filter(|line| line.starts_with("quarry_volume_io_state{")).count();
    ensure!(states == volumes, "{states} of {volumes} volumes are in the text");
    let livez = times(&address, "/livez")?;
    let scrapes = times(&address, "/metrics")?;
    end.cancel();
    runtime.block_on(server)?;
    Ok(Row {
        volumes,
        series: series(&text),
        kib: kib(&text),
        livez_ms: median(&livez)?,
        scrape_ms: median(&scrapes)?,
        worst_ms: scrapes.iter().copied().fold(0.0, f64::max),
    })
}

/// What a driver knows of its volumes.
struct Known {
    inventory: Inventory,
    shares: Shares,
}

impl Source for Known {
    fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot { ready: true, inventory: self.inventory.clone(), ..Snapshot::default() };
        snapshot.shares.0 = self.shares.clone();
        snapshot
    }
}

fn name(number: usize) -> String {
    format!("pvc-{number:08x}-0000-4000-8000-000000000000")
}

fn target(number: usize) -> String {
    format!("/var/lib/kubelet/pods/{number:08x}-0000-4000-8000-000000000000/volumes/kubernetes.io~csi/data/mount")
}

fn inventory(volumes: usize) -> Inventory {
    let volume = |number: usize| VolumeFigures {
        claim_namespace: format!("namespace-{}", number % 20),
        claim: format!("data-postgres-{number}"),
        targets: vec![target(number)],
        ..figures(&name(number), "nvme0n1", number as u64 * 65_536, 1_234_567)
    };
    Inventory { volumes: (0..volumes).map(volume).collect(), ..Inventory::default() }
}

/// Every second volume's weight is not enforced.
fn shares(volumes: usize) -> Result<Shares> {
    let state = |number: usize| match number % 2 {
        0 => State::Enforced,
        _ => State::NotEnforced(Reason::Uncalibrated { disk: "nvme0n1".to_owned(), why: None }),
    };
    let named = (0..volumes).map(|number| {
        let lv = LvName::parse(&name(number)).context("not a name of a volume")?;
        Ok(((lv, target(number)), state(number)))
    });
    named.collect()
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the endpoint alone, optimised; {}", self.machine)?;
        let heads = ["volumes", "series", "KiB", "livez, ms", "scrape, ms", "worst, ms"];
        writeln!(
            f,
            "\n{:>8} {:>8} {:>8} {:>10} {:>11} {:>10}",
            heads[0], heads[1], heads[2], heads[3], heads[4], heads[5]
        )?;
        for row in &self.rows {
            write!(f, "{:>8} {:>8} {:>8.0}", row.volumes, row.series, row.kib)?;
            writeln!(f, " {:>10.2} {:>11.2} {:>10.2}", row.livez_ms, row.scrape_ms, row.worst_ms)?;
        }
        Ok(())
    }
}
