//! What is counted and measured, in Prometheus' text format.
//!
//! Names begin with `quarry_`, units are base units, each series has the node, and labels have few values: programs, RPCs,
//! codes, volume groups, pools. Only what is known of each volume is labelled with the volume, and can be left out.
//! docs/metrics.md lists all of them.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{
    CounterVec, Encoder as _, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use super::exposition::Exposition;
use super::inventory;
use super::store::StoreMetrics;
use crate::engine::inventory::Inventory;
use crate::exec::{Counts, Kind};
use crate::io::State;
use crate::io::control::Publication;
use crate::journal::JournalStatus;

/// Upper ends of the histogram's buckets in seconds: from an answer out of memory to the answer limit of a mount.
const BUCKETS: [f64; 13] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 100.0];

/// What is asked of the driver's parts when somebody looks.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Processes, by what they are.
    pub commands: Counts,
    /// How many run.
    pub running: usize,
    /// The age of the oldest of these.
    pub oldest: Duration,
    /// How many operations on volumes are under way.
    pub operations: usize,
    /// How many requests were answered while their work went on.
    pub answered_early: u64,
    /// How many copies of volume groups' metadata were written.
    pub copies: u64,
    /// How many could not be written.
    pub copies_failed: u64,
    /// Each volume group, and whether it is readable.
    pub groups: Vec<(String, bool)>,
    /// Whether everything is in order.
    pub ready: bool,
    /// How the journal fares.
    pub journal: JournalStatus,
    /// How many volumes there are in each state.
    pub volumes: Vec<(&'static str, usize)>,
    /// What became of weights and limits.
    pub shares: (BTreeMap<Publication, State>, crate::io::Counts),
    /// Volume groups, pools, classes, disks and volumes.
    pub inventory: Inventory,
}

/// Whose metrics they are.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// The node, as Kubernetes calls it.
    pub node: String,
    /// A hash of the configuration.
    pub config: String,
    /// Whether each volume has series of its own.
    pub each_volume: bool,
}

/// Where the values of a [`Snapshot`] come from.
pub trait Source: Send + Sync {
    /// The values now; waits for nothing.
    fn snapshot(&self) -> Snapshot;
}

/// All metrics.
#[derive(Debug)]
pub struct Metrics {
    origin: Origin,
    registry: Registry,
    requests: HistogramVec,
    started: IntCounterVec,
    killed: IntCounterVec,
    time: CounterVec,
    running: IntGauge,
    oldest: Gauge,
    operations: IntGauge,
    answered_early: IntCounter,
    copies: IntCounter,
    copies_failed: IntCounter,
    readable: IntGaugeVec,
    ready: IntGauge,
    store: StoreMetrics,
    shares: IntGaugeVec,
    shares_repaired: IntCounter,
    /// One at a time brings the values up to date and writes them out.
    turn: Mutex<()>,
}

impl Metrics {
    /// All of them at zero.
    ///
    /// # Errors
    /// A name that is there twice or is none: a defect.
    pub fn new(origin: Origin) -> Result<Self, prometheus::Error> {
        let registry = Registry::new_custom(None, Some([("node".to_owned(), origin.node.clone())].into()))?;
        let build = GaugeVec::new(Opts::new("quarry_build_info", "The driver's version; always 1."), &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        registry.register(Box::new(build))?;
        let config = Opts::new("quarry_config_info", "A hash of the driver's configuration; always 1.");
        let config = GaugeVec::new(config, &["hash"])?;
        config.with_label_values(&[&origin.config]).set(1.0);
        registry.register(Box::new(config))?;
        let start = Gauge::new("quarry_start_time_seconds", "When the driver was started, in seconds since 1970.")?;
        start.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        registry.register(Box::new(start))?;
        let requests = HistogramOpts::new(
            "quarry_request_duration_seconds",
            "How long CSI requests took until they were answered, by RPC and code of the answer.",
        );
        let process = ["program", "verb"];
        let metrics = Self {
            requests: HistogramVec::new(requests.buckets(BUCKETS.to_vec()), &["rpc", "code"])?,
            started: IntCounterVec::new(
                Opts::new("quarry_commands_started_total", "Processes started, by program and verb of lvm."),
                &process,
            )?,
            killed: IntCounterVec::new(
                Opts::new("quarry_commands_timed_out_total", "Processes killed because they did not end."),
                &process,
            )?,
            time: CounterVec::new(
                Opts::new("quarry_commands_seconds_total", "For how long processes ran that have ended."),
                &process,
            )?,
            running: IntGauge::new("quarry_commands_running", "Processes that run now.")?,
            oldest: Gauge::new(
                "quarry_command_oldest_age_seconds",
                "For how long the oldest running process has been running; 0 where none runs.",
            )?,
            operations: IntGauge::new("quarry_operations_running", "Operations on volumes that are under way.")?,
            answered_early: IntCounter::new(
                "quarry_operations_overdue_total",
                "Requests answered ABORTED at their limit while their operation went on.",
            )?,
            copies: IntCounter::new(
                "quarry_metadata_copies_total",
                "Copies of volume groups' metadata written to the state folder.",
            )?,
            copies_failed: IntCounter::new(
                "quarry_metadata_copies_failed_total",
                "Copies of volume groups' metadata that could not be written; each is tried again.",
            )?,
            readable: IntGaugeVec::new(
                Opts::new(
                    "quarry_volume_group_readable",
                    "1 where the volume group was there and read whole when it was last looked at, else 0.",
                ),
                &["volume_group"],
            )?,
            ready: IntGauge::new("quarry_ready", "1 where nothing is amiss (/readyz answers 200), else 0.")?,
            store: StoreMetrics::new(&registry)?,
            shares: IntGaugeVec::new(
                Opts::new(
                    "quarry_io_publications",
                    "Published volumes by what became of their weight and limits (`quarry-driver volumes` tells why).",
                ),
                &["state"],
            )?,
            shares_repaired: IntCounter::new(
                "quarry_io_repaired_total",
                "Settings of disks and cgroups that somebody had changed, and that were put right.",
            )?,
            turn: Mutex::new(()),
            origin,
            registry,
        };
        let registry = &metrics.registry;
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.started.clone()))?;
        registry.register(Box::new(metrics.killed.clone()))?;
        registry.register(Box::new(metrics.time.clone()))?;
        registry.register(Box::new(metrics.running.clone()))?;
        registry.register(Box::new(metrics.oldest.clone()))?;
        registry.register(Box::new(metrics.operations.clone()))?;
        registry.register(Box::new(metrics.answered_early.clone()))?;
        registry.register(Box::new(metrics.copies.clone()))?;
        registry.register(Box::new(metrics.copies_failed.clone()))?;
        registry.register(Box::new(metrics.readable.clone()))?;
        registry.register(Box::new(metrics.ready.clone()))?;
        registry.register(Box::new(metrics.shares.clone()))?;
        registry.register(Box::new(metrics.shares_repaired.clone()))?;
        Ok(metrics)
    }

    /// Notes a request that was answered.
    pub fn answered(&self, rpc: &str, code: &str, took: Duration) {
        self.requests.with_label_values(&[rpc, code]).observe(took.as_secs_f64());
    }

    /// Where more metrics may be registered.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Everything as text.
    ///
    /// # Errors
    /// If it cannot be written down: a defect.
    pub fn text(&self, snapshot: &Snapshot) -> Result<Vec<u8>, prometheus::Error> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.running.set(whole(snapshot.running));
        self.oldest.set(snapshot.oldest.as_secs_f64());
        self.operations.set(whole(snapshot.operations));
        self.ready.set(i64::from(snapshot.ready));
        self.store.set(&snapshot.journal, &snapshot.volumes);
        // Groups come and go.
        self.readable.reset();
        for (group, readable) in &snapshot.groups {
            self.readable.with_label_values(&[group]).set(i64::from(*readable));
        }
        let (shares, counts) = &snapshot.shares;
        for name in State::NAMES {
            let count = shares.values().filter(|state| state.name() == name).count();
            self.shares.with_label_values(&[name]).set(whole(count));
        }
        catch_up(&self.shares_repaired, counts.repaired);
        catch_up(&self.answered_early, snapshot.answered_early);
        catch_up(&self.copies, snapshot.copies);
        catch_up(&self.copies_failed, snapshot.copies_failed);
        let processes = [(&self.started, &snapshot.commands.started), (&self.killed, &snapshot.commands.killed)];
        for (counter, counts) in processes {
            for (Kind { program, verb }, count) in counts {
                catch_up(&counter.with_label_values(&[program, verb]), *count);
            }
        }
        for (Kind { program, verb }, time) in &snapshot.commands.time {
            let counter = self.time.with_label_values(&[program, verb]);
            counter.inc_by((time.as_secs_f64() - counter.get()).max(0.0));
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        let mut exposition = Exposition::default();
        let Origin { node, each_volume, .. } = &self.origin;
        inventory::write(&mut exposition, node, &snapshot.inventory, shares, *each_volume);
        text.extend(exposition.into_bytes());
        Ok(text)
    }
}

/// A counter that others count for: it only ever grows.
fn catch_up(counter: &IntCounter, count: u64) {
    counter.inc_by(count.saturating_sub(counter.get()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_follow_what_was_counted_and_groups_come_and_go() {
        let origin = Origin { node: "n".to_owned(), config: "c0ffee".to_owned(), each_volume: true };
        let metrics = Metrics::new(origin).unwrap();
        let kind = Kind { program: "lvm".to_owned(), verb: "lvcreate".to_owned() };
        let mut snapshot =
            Snapshot { groups: vec![("a".to_owned(), true), ("b".to_owned(), false)], ..Snapshot::default() };
        snapshot.commands.started.insert(kind.clone(), 3);
        snapshot.journal.rebuilds = 1;
        snapshot.volumes.push(("lost", 2));
        metrics.answered("CreateVolume", "ABORTED", Duration::from_millis(1500));
        let text = |snapshot: &Snapshot| String::from_utf8(metrics.text(snapshot).unwrap()).unwrap();
        let first = text(&snapshot);
        for line in [
            "# TYPE quarry_commands_started_total counter",
            "# HELP quarry_volume_group_readable 1 where the volume group was there",
            "quarry_commands_started_total{program=\"lvm\",verb=\"lvcreate\",node=\"n\"} 3",
            "quarry_volume_group_readable{volume_group=\"b\",node=\"n\"} 0",
            "quarry_request_duration_seconds_count{code=\"ABORTED\",rpc=\"CreateVolume\",node=\"n\"} 1",
            "quarry_request_duration_seconds_bucket{code=\"ABORTED\",rpc=\"CreateVolume\",node=\"n\",le=\"1\"} 0",
            "quarry_ready{node=\"n\"} 0",
            "quarry_config_info{hash=\"c0ffee\",node=\"n\"} 1",
            "quarry_journal_rebuilds_total{node=\"n\"} 1",
            "quarry_volumes{state=\"lost\",node=\"n\"} 2",
        ] {
            assert!(first.lines().any(|found| found.starts_with(line)), "no {line:?} in\n{first}");
        }
        snapshot.commands.started.insert(kind, 4);
        snapshot.groups.pop();
        snapshot.ready = true;
        let second = text(&snapshot);
        assert!(
            second.contains("verb=\"lvcreate\",node=\"n\"} 4\n") && second.contains("\nquarry_ready{node=\"n\"} 1\n"),
            "{second}"
        );
        assert!(!second.contains("volume_group=\"b\""), "{second}");
    }
}
