//! What a scrape of `/metrics` costs with up to a thousand volumes (`testbed bench scrape`): the whole driver, in a virtual
//! machine (time, size, and whether a process was started for it; only ratios are to be believed), and its endpoint
//! alone.

#[path = "journal/crowd.rs"]
mod crowd;
#[path = "scrape/endpoint.rs"]
mod endpoint;
#[path = "scrape/http.rs"]
mod http;
#[path = "../observe/volume.rs"]
mod volume;

use std::fmt;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use quarry_proto::csi::v1 as csi;
use quarry_tests::bench::{self, median};
use quarry_tests::in_vm::{self, DriverSpec, DriverUnderTest, lvm};
use serde::Serialize;

use http::{get, kib, series, times};

/// Where the driver serves HTTP.
const ADDRESS: &str = "127.0.0.1:9808";
const VOLUMES: [usize; 3] = [0, 100, 1000];
/// What a driver runs for each scrape that has no model of its own, as OpenEBS LocalPV-LVM does.
const REPORTS: [&str; 3] = ["lvs", "vgs", "pvs"];
/// How often these are run for each line of the table.
const RUNS: usize = 3;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("endpoint") => bench::main("scrape", endpoint::run),
        _ => bench::main("scrape", run),
    }
}

/// The results of one run.
#[derive(Debug, Serialize)]
struct Results {
    machine: String,
    rows: Vec<Row>,
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Row {
    volumes: usize,
    /// Whether each volume has series of its own.
    each_volume: bool,
    series: usize,
    kib: f64,
    /// The median of an answer of `/livez`, which costs nothing but HTTP.
    livez_ms: f64,
    /// The median of a scrape.
    scrape_ms: f64,
    /// The slowest.
    worst_ms: f64,
    /// How many times `/livez` that is.
    ratio: f64,
    /// Processes that the driver started meanwhile.
    processes: f64,
    /// The driver's resident memory after that, in MiB.
    resident_mib: f64,
    /// The median of `lvs`, `vgs` and `pvs`, one after the other, each with all of its fields.
    reports_ms: f64,
    /// How many scrapes that is.
    reports_ratio: f64,
}

fn run() -> Result<Results> {
    in_vm::require()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut rows = Vec::new();
    for volumes in VOLUMES {
        let group = crowd::group(volumes)?;
        for each_volume in [true, false] {
            let mut spec = DriverSpec::for_group(group.name());
            spec.arguments = vec![format!("--http-address={ADDRESS}"), format!("--volume-metrics={each_volume}")];
            let driver = DriverUnderTest::start(spec)?;
            runtime.block_on(serves(&driver, volumes))?;
            rows.push(measure(&driver, volumes, each_volume)?);
        }
    }
    Ok(Results { machine: in_vm::describe()?, rows })
}

/// It lists all of them.
async fn serves(driver: &DriverUnderTest, volumes: usize) -> Result<()> {
    let mut csi = driver.connect().await?;
    let listed = csi.controller.list_volumes(csi::ListVolumesRequest::default()).await?.into_inner().entries.len();
    ensure!(listed == volumes, "{listed} volumes are listed, there should be {volumes}");
    Ok(())
}

fn measure(driver: &DriverUnderTest, volumes: usize, each_volume: bool) -> Result<Row> {
    let text = get(ADDRESS, "/metrics")?.1;
    let before = started(&text);
    let livez = times(ADDRESS, "/livez")?;
    let scrapes = times(ADDRESS, "/metrics")?;
    let processes = started(&get(ADDRESS, "/metrics")?.1) - before;
    let of_volumes = text.lines().filter(|line| line.starts_with("quarry_volume_info{")).count();
    ensure!(of_volumes == if each_volume { volumes } else { 0 }, "{of_volumes} volumes are in the text");
    let (livez_ms, scrape_ms) = (median(&livez)?, median(&scrapes)?);
    let resident_mib = bench::resident_mib(driver.pid().context("the driver does not run")?)?;
    let reports_ms = median(&(0..RUNS).map(|_| reports()).collect::<Result<Vec<f64>>>()?)?;
    Ok(Row {
        volumes,
        each_volume,
        series: series(&text),
        kib: kib(&text),
        livez_ms,
        scrape_ms,
        worst_ms: scrapes.iter().copied().fold(0.0, f64::max),
        ratio: scrape_ms / livez_ms,
        processes,
        resident_mib,
        reports_ms,
        reports_ratio: reports_ms / scrape_ms,
    })
}

/// Milliseconds of the processes that would be run instead.
fn reports() -> Result<f64> {
    let begin = Instant::now();
    for program in REPORTS {
        lvm(program, &["-a", "-o", "all", "--reportformat", "json", "--units", "b"])?.success()?;
    }
    Ok(begin.elapsed().as_secs_f64() * 1e3)
}

/// All processes that the driver ever started.
fn started(text: &str) -> f64 {
    let lines = text.lines().filter(|line| line.starts_with("quarry_commands_started_total{"));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.machine)?;
        writeln!(
            f,
            "\n{:>8} {:>12} {:>8} {:>8} {:>10} {:>11} {:>10} {:>8} {:>10} {:>12} {:>17} {:>10}",
            "volumes",
            "each volume",
            "series",
            "KiB",
            "livez, ms",
            "scrape, ms",
            "worst, ms",
            "x livez",
            "processes",
            "memory, MiB",
            "lvs+vgs+pvs, ms",
            "x scrape"
        )?;
        for row in &self.rows {
            write!(f, "{:>8} {:>12} {:>8} {:>8.0}", row.volumes, row.each_volume, row.series, row.kib)?;
            write!(f, " {:>10.2} {:>11.2} {:>10.2}", row.livez_ms, row.scrape_ms, row.worst_ms)?;
            write!(f, " {:>8.1} {:>10} {:>12.1}", row.ratio, row.processes, row.resident_mib)?;
            writeln!(f, " {:>17.0} {:>10.0}", row.reports_ms, row.reports_ratio)?;
        }
        Ok(())
    }
}
