//! What is counted and measured, in Prometheus' text format.
//!
//! Names begin with `quarry_capacity_`; labels have few values: the node, verbs and what came of them, StorageClasses.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{
    Encoder as _, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

/// Upper ends of the histogram's buckets in seconds.
const BUCKETS: [f64; 10] = [0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 30.0];

/// All metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    rounds: IntCounter,
    delay: Histogram,
    driver: IntGauge,
    objects: IntGauge,
    behind: IntGauge,
    unreadable: IntGauge,
    janitor: IntGauge,
    agreed: GaugeVec,
    /// The classes of the last round.
    known: Mutex<BTreeSet<String>>,
}

impl Metrics {
    /// All of them at zero, of a node without a name.
    ///
    /// # Errors
    /// A name that is there twice or is none: a defect.
    pub fn new() -> Result<Self, prometheus::Error> {
        Self::of_node("")
    }

    /// All of them at zero, each with the node, as Kubernetes calls it.
    ///
    /// # Errors
    /// A name that is there twice or is none: a defect.
    pub fn of_node(node: &str) -> Result<Self, prometheus::Error> {
        let registry = match node {
            "" => Registry::new(),
            node => Registry::new_custom(None, Some([("node".to_owned(), node.to_owned())].into()))?,
        };
        let build =
            GaugeVec::new(Opts::new("quarry_capacity_build_info", "The reporter's version; always 1."), &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        registry.register(Box::new(build))?;
        let metrics = Self {
            requests: IntCounterVec::new(
                Opts::new(
                    "quarry_capacity_requests_total",
                    "Requests to the API server besides watches, by verb and what came of them (ok, or the HTTP status).",
                ),
                &["verb", "result"],
            )?,
            rounds: IntCounter::new(
                "quarry_capacity_rounds_total",
                "How often the driver was asked for its figures and these were compared with the objects.",
            )?,
            delay: Histogram::with_opts(
                HistogramOpts::new(
                    "quarry_capacity_publish_delay_seconds",
                    "From the driver's word that something changed to the last object written for it.",
                )
                .buckets(BUCKETS.to_vec()),
            )?,
            driver: IntGauge::new("quarry_capacity_driver_connected", "1 where the driver answers, else 0.")?,
            objects: IntGauge::new("quarry_capacity_objects", "How many objects this node has.")?,
            behind: IntGauge::new(
                "quarry_capacity_objects_behind",
                "How many changes of objects have failed and wait to be tried again.",
            )?,
            unreadable: IntGauge::new(
                "quarry_capacity_classes_unreadable",
                "StorageClasses whose figures the driver could not tell; published as 0.",
            )?,
            janitor: IntGauge::new(
                "quarry_capacity_janitor",
                "1 where this reporter cleans up after nodes that have lost the driver, else 0.",
            )?,
            agreed: GaugeVec::new(
                Opts::new(
                    "quarry_capacity_object_timestamp_seconds",
                    "When the StorageClass's object was last seen to say what the driver says, in seconds since 1970.",
                ),
                &["storage_class"],
            )?,
            known: Mutex::default(),
            registry,
        };
        let registry = &metrics.registry;
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.rounds.clone()))?;
        registry.register(Box::new(metrics.delay.clone()))?;
        for gauge in [&metrics.driver, &metrics.objects, &metrics.behind, &metrics.unreadable, &metrics.janitor] {
            registry.register(Box::new(gauge.clone()))?;
        }
        registry.register(Box::new(metrics.agreed.clone()))?;
        Ok(metrics)
    }

    /// Notes which of all classes have an object that says what the driver says.
    pub fn agreed<'a>(&self, all: impl Iterator<Item = &'a str>, agreed: impl Iterator<Item = &'a str>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now: BTreeSet<String> = all.map(str::to_owned).collect();
        for gone in known.difference(&now) {
            // One that never agreed has no value.
            let _ = self.agreed.remove_label_values(&[gone]);
        }
        *known = now;
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        agreed.for_each(|class| self.agreed.with_label_values(&[class]).set(time));
    }

    /// Notes a request and what came of it.
    pub fn requested<T>(&self, verb: &str, result: &Result<T, crate::apply::RequestError>) {
        let result = match result {
            Ok(_) => "ok".to_owned(),
            Err(error) => error.code().map_or_else(|| "no answer".to_owned(), |code| code.to_string()),
        };
        self.requests.with_label_values(&[verb, result.as_str()]).inc();
    }

    /// How many requests there were so far, whatever came of them.
    #[must_use]
    pub fn requests(&self) -> u64 {
        use prometheus::core::Collector as _;
        let families = self.requests.collect();
        let values = families.iter().flat_map(|family| family.get_metric()).map(|m| m.get_counter().get_value());
        values.map(|value| value as u64).sum()
    }

    /// Notes that figures were compared with objects.
    pub fn round(&self, objects: usize, behind: usize, unreadable: usize) {
        let whole = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.rounds.inc();
        self.objects.set(whole(objects));
        self.behind.set(whole(behind));
        self.unreadable.set(whole(unreadable));
    }

    /// Notes how long a change took from the driver to the API server.
    pub fn published(&self, took: Duration) {
        self.delay.observe(took.as_secs_f64());
    }

    /// Notes whether the driver answers.
    pub fn connected(&self, connected: bool) {
        self.driver.set(i64::from(connected));
    }

    /// Notes whether this reporter is the janitor.
    pub fn janitor(&self, active: bool) {
        self.janitor.set(i64::from(active));
    }

    /// Whether the driver answers and nothing waits to be tried again.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.driver.get() == 1 && self.behind.get() == 0 && self.rounds.get() > 0
    }

    /// Everything as text.
    ///
    /// # Errors
    /// If it cannot be written down: a defect.
    pub fn text(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}
