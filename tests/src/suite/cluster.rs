//! The driver in Kubernetes: one cluster for the whole suite, the chart installed by Helm, the tests on this machine.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::build;
use super::closing::closing;
use super::run::{conclude, judge};
use super::{Suite, Verdict, budget};
use crate::cluster::release::Release;
use crate::cluster::{CgroupDriver, Cluster, NodeSettings, Parts, control};
use crate::command::{Command, Stream};
use crate::process;
use crate::progress::Progress;

const NAME: &str = "cluster";

/// Builds the suite and what a cluster needs, starts one and runs the suite against it.
///
/// `filter` goes to the test program: names of tests, `--exact`, `--skip NAME` ...
///
/// # Errors
/// If something cannot be built.
pub fn suite(filter: &[String]) -> Result<Verdict> {
    run(NAME, Suite::Cluster, nodes(), filter)
}

/// Builds the suite of this name and what a cluster needs, starts one of these nodes and runs the suite against it.
pub(super) fn run(name: &str, suite: Suite, nodes: Vec<NodeSettings>, filter: &[String]) -> Result<Verdict> {
    let tests = build::test_program(name)?;
    let progress = Progress::default();
    let parts = Parts::make(true, &progress)?;
    let command = Command::new(tests).arg("--test-threads=1").args(filter);
    let verdict = in_cluster(name, budget(suite), nodes, &parts, &command, &progress);
    Ok(conclude(name, verdict.unwrap_or_else(|error| Verdict::None(format!("{error:#}")))))
}

/// Two nodes that differ: in size, so that "the larger one" means something, and in that only one has udevd and systemd.
fn nodes() -> Vec<NodeSettings> {
    let larger = NodeSettings { udev: false, ..NodeSettings::usual("quarry-1") };
    let smaller =
        NodeSettings { data_disk: 6 << 30, cgroup_driver: CgroupDriver::Systemd, ..NodeSettings::usual("quarry-2") };
    vec![larger, smaller]
}

fn in_cluster(
    name: &str,
    limit: Duration,
    nodes: Vec<NodeSettings>,
    parts: &Parts,
    tests: &Command,
    progress: &Progress,
) -> Result<Verdict> {
    let begin = Instant::now();
    let cluster = Arc::new(parts.start(nodes, progress)?);
    let verdict = with_driver(&cluster, tests, limit.saturating_sub(begin.elapsed()), progress);
    let cluster = Cluster::unshare(cluster)?;
    if matches!(verdict, Ok(Verdict::Pass)) {
        cluster.stop()?;
    } else {
        eprintln!("testbed: consoles, logs, events and LVM's state are kept in {}", cluster.stop_and_keep()?.display());
    }
    eprintln!("testbed: suite {name}: {:.1} s of {} s", begin.elapsed().as_secs_f32(), limit.as_secs());
    verdict
}

fn with_driver(cluster: &Arc<Cluster>, tests: &Command, limit: Duration, progress: &Progress) -> Result<Verdict> {
    let names: Vec<&str> = cluster.nodes().collect();
    progress.step("install the chart", || Release::of(cluster.folder()).install(&names, &[]))?;
    control::serve(cluster, None)?;
    let command = tests.clone().env(crate::cluster::FOLDER_VARIABLE, cluster.folder());
    let mut output = Vec::new();
    let exit = process::run_streaming(&command, limit, |stream, bytes| match stream {
        Stream::Stdout => {
            output.extend_from_slice(bytes);
            let mut out = std::io::stdout().lock();
            // A closed standard output is no reason to give up the suite.
            out.write_all(bytes).and_then(|()| out.flush()).ok();
        }
        Stream::Stderr => drop(std::io::stderr().write_all(bytes)),
    })?;
    Ok(judge(exit, closing(&String::from_utf8_lossy(&output))))
}
