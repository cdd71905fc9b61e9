//! The driver's and the reporter's real registries behind their real HTTP endpoints, with some of everything in them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quarry_capacity_reporter::apply::RequestError;
use quarry_capacity_reporter::telemetry as reporter;
use quarry_driver::config::Config;
use quarry_driver::engine::inventory::{ClassFigures, Inventory, VolumeFigures, of_group, of_pools};
use quarry_driver::engine::{Fill, Reading};
use quarry_driver::exec::Kind;
use quarry_driver::io::facts::{DiskFacts, ModelFacts};
use quarry_driver::io::{Reason, State};
use quarry_driver::lvm::metadata::assemble::{Completeness, GroupState, MetadataRoom};
use quarry_driver::lvm::metadata::model::VolumeGroup;
use quarry_driver::telemetry::health::Health;
use quarry_driver::telemetry::http::{self, Endpoint};
use quarry_driver::telemetry::metrics::{Metrics, Origin, Snapshot, Source};
use quarry_driver::volume::LvName;
use quarry_tests::cache;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::volume::figures;

/// What a metric is, by the text of `/metrics`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exposed {
    /// `gauge`, `counter` or `histogram`.
    pub kind: String,
    /// What it says of itself.
    pub help: String,
    /// The labels of its series.
    pub labels: BTreeSet<String>,
}

/// A driver's figures: those that grow do so with time.
struct Driver {
    begin: Instant,
    reading: Reading,
}

impl Driver {
    fn new() -> Self {
        Self { begin: Instant::now(), reading: reading() }
    }
}

/// A volume group with a thin pool, thin volumes, a snapshot and a thick volume, as LVM wrote it.
fn reading() -> Reading {
    let fixture = cache::workspace().join("driver/tests/fixtures/lvm/thin.json");
    let fixture: Value = serde_json::from_str(&std::fs::read_to_string(fixture).unwrap()).unwrap();
    let group = VolumeGroup::from_text(text_of(&fixture).unwrap().as_bytes()).unwrap();
    Reading::new(GroupState {
        devices: [(group.physical_volumes[0].uuid, "/dev/vdc".into())].into(),
        room: MetadataRoom { largest_text: 1 << 19, text: group.text_size },
        group: group.into(),
        completeness: Completeness::default(),
        text: None,
    })
}

fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => text.contains("Text Format Volume Group").then(|| text.clone()),
        Value::Array(values) => values.iter().find_map(text_of),
        Value::Object(values) => values.values().find_map(text_of),
        _ => None,
    }
}

/// What grows, in whole steps since the start.
fn grown(begin: Instant, step: Duration) -> u64 {
    u64::try_from(begin.elapsed().as_millis() / step.as_millis()).unwrap()
}

impl Source for Driver {
    fn snapshot(&self) -> Snapshot {
        let ticks = grown(self.begin, Duration::from_millis(100));
        let mut snapshot = Snapshot {
            running: 1,
            oldest: Duration::from_secs(3),
            operations: 2,
            answered_early: ticks / 10,
            copies: ticks / 5,
            copies_failed: ticks / 20,
            groups: vec![("quarry".to_owned(), true), ("gone".to_owned(), false)],
            ready: false,
            volumes: [("ready", 1), ("lost", 1), ("orphan", 1), ("unknown", 0), ("unreadable", 0)].into(),
            inventory: self.inventory(ticks),
            ..Snapshot::default()
        };
        let kind = Kind { program: "lvm".to_owned(), verb: "lvcreate".to_owned() };
        snapshot.commands.started.insert(kind.clone(), ticks);
        snapshot.commands.killed.insert(kind.clone(), ticks / 10);
        snapshot.commands.time.insert(kind, Duration::from_millis(20 * ticks));
        snapshot.journal.writes = 2 * ticks;
        snapshot.journal.syncs = ticks;
        snapshot.journal.writing = Duration::from_millis(4 * ticks);
        let states = [State::Enforced, State::NotEnforced(Reason::Uncalibrated { disk: "vdc".to_owned(), why: None })];
        let volumes = ["pvc-1", "pvc-2"].map(|name| LvName::parse(name).unwrap());
        snapshot.shares.0 = volumes.into_iter().map(|lv| (lv, "/target".to_owned())).zip(states).collect();
        snapshot.shares.1.repaired = ticks / 10;
        snapshot
    }
}

impl Driver {
    fn inventory(&self, ticks: u64) -> Inventory {
        let classes = Config::zero().device_classes;
        let fill = |_| Some(Fill { data_used_blocks: 16 + ticks, metadata_used: 65_536 });
        let mut group = of_group(&self.reading, Some(1.0));
        // So that each metric has a value.
        group.logical_volumes_limit = Some(255);
        let volume = |name: &str, state, weight, times: u64| VolumeFigures {
            state,
            weight: Some(weight),
            ..figures(name, "vdc", (1 << 20) + ticks * 65_536, u32::try_from(ticks * times).unwrap())
        };
        let class = &classes[0];
        Inventory {
            groups: vec![group],
            pools: of_pools(&self.reading, &classes, fill),
            classes: vec![ClassFigures {
                name: class.name.clone(),
                group: class.volume_group.clone(),
                pool: class.thin_pool.clone(),
                reserve: 0,
                ratio: class.overprovision_ratio,
                thin_room: Some(1 << 28),
                thick_room: Some(1 << 27),
            }],
            volumes: vec![volume("pvc-1", "ready", 800, 3), volume("pvc-2", "orphan", 200, 1)],
            disks: vec![DiskFacts {
                disk: "vdc".to_owned(),
                enabled: true,
                vrate: Some(1.0),
                model: Some(ModelFacts { bytes: [1000, 900], sequential: [20, 18], random: [10, 9] }),
            }],
        }
    }
}

/// Serves both on loopback until the token is cancelled; the driver's address and the reporter's.
pub async fn serve(end: &CancellationToken) -> (SocketAddr, SocketAddr) {
    let loopback = "127.0.0.1:0".parse().unwrap();
    let origin = Origin { node: "node-1".to_owned(), config: "e3b0c44298fc1c14".to_owned(), each_volume: true };
    let metrics = Arc::new(Metrics::new(origin).unwrap());
    let endpoint =
        Endpoint { health: Health::default(), metrics: Arc::clone(&metrics), source: Arc::new(Driver::new()) };
    let listener = http::bind(loopback).await.unwrap();
    let driver = listener.local_addr().unwrap();
    tokio::spawn(endpoint.serve(listener, end.clone()));

    let counted = Arc::new(reporter::metrics::Metrics::of_node("node-1").unwrap());
    let listener = reporter::http::bind(loopback).await.unwrap();
    let capacity = listener.local_addr().unwrap();
    tokio::spawn(reporter::http::serve(listener, Arc::clone(&counted)));

    answer_and_count(&metrics, &counted);
    let end = end.clone();
    tokio::spawn(async move {
        while !end.is_cancelled() {
            answer_and_count(&metrics, &counted);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    (driver, capacity)
}

fn answer_and_count(metrics: &Metrics, counted: &reporter::metrics::Metrics) {
    metrics.answered("CreateVolume", "OK", Duration::from_millis(120));
    metrics.answered("NodeStageVolume", "INTERNAL", Duration::from_millis(30));
    counted.connected(true);
    counted.round(2, 0, 0);
    counted.janitor(true);
    counted.requested("apply", &Ok::<(), RequestError>(()));
    counted.published(Duration::from_millis(40));
    counted.agreed(["quarry-thin"].into_iter(), ["quarry-thin"].into_iter());
}

/// What a driver exposes that leaves out the series of single volumes.
pub fn without_volumes() -> BTreeMap<String, Exposed> {
    let origin = Origin { node: "node-1".to_owned(), config: String::new(), each_volume: false };
    let text = Metrics::new(origin).unwrap().text(&Driver::new().snapshot()).unwrap();
    parse(&String::from_utf8(text).unwrap())
}

/// What a text of `/metrics` exposes, by name.
pub fn parse(text: &str) -> BTreeMap<String, Exposed> {
    let mut exposed: BTreeMap<String, Exposed> = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            exposed.entry(name.to_owned()).or_default().help = help.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            exposed.entry(name.to_owned()).or_default().kind = kind.to_owned();
        } else {
            let (name, labels) = line.split_once('{').unwrap_or_else(|| panic!("a series without a node: {line}"));
            let (labels, _) = labels.rsplit_once('}').unwrap();
            let names = labels.split("\",").map(|pair| pair.split_once('=').unwrap().0.to_owned());
            let family = family(&exposed, name).unwrap_or_else(|| panic!("{name} has no TYPE"));
            exposed.get_mut(&family).unwrap().labels.extend(names.filter(|label| label != "le"));
        }
    }
    exposed
}

/// The metric that a series belongs to: itself, or a histogram.
pub fn family(exposed: &BTreeMap<String, Exposed>, series: &str) -> Option<String> {
    let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| {
        let name = series.strip_suffix(suffix)?;
        exposed.get(name).filter(|metric| metric.kind == "histogram").map(|_| name.to_owned())
    });
    histogram.or_else(|| exposed.contains_key(series).then(|| series.to_owned()))
}

/// Everything that both expose, by name.
pub async fn everything() -> BTreeMap<String, Exposed> {
    let end = CancellationToken::new();
    let (driver, reporter) = serve(&end).await;
    let mut all = BTreeMap::new();
    for address in [driver, reporter] {
        all.extend(parse(&super::prometheus::get(address, "/metrics").await));
    }
    end.cancel();
    all
}
