//! Metrics of the journal and of the volumes' states.

use prometheus::{Gauge, IntCounter, IntGauge, IntGaugeVec, Opts, Registry};

use crate::journal::JournalStatus;

/// The gauges and counters.
#[derive(Debug)]
pub struct StoreMetrics {
    volumes: IntGaugeVec,
    rows: IntGauge,
    bytes: IntGauge,
    backlog: IntGauge,
    oldest: Gauge,
    writes: IntCounter,
    syncs: IntCounter,
    seconds: prometheus::Counter,
    failing: IntGauge,
    rebuilds: IntCounter,
}

impl StoreMetrics {
    /// All of them, registered, at zero.
    ///
    /// # Errors
    /// A name that is there twice or is none: a defect.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let volumes = Opts::new("quarry_volumes", "Volumes by how they stand (`quarry-driver volumes` tells which).");
        let metrics = Self {
            volumes: IntGaugeVec::new(volumes, &["state"])?,
            rows: IntGauge::new("quarry_journal_rows", "Rows in the journal.")?,
            bytes: IntGauge::new("quarry_journal_size_bytes", "The size of the journal's file.")?,
            backlog: IntGauge::new("quarry_journal_backlog", "Writes that wait for the journal's disk.")?,
            oldest: Gauge::new(
                "quarry_journal_write_age_seconds",
                "For how long the journal's disk has been at the write under way; 0 where there is none.",
            )?,
            writes: IntCounter::new("quarry_journal_writes_total", "Writes that are on the journal's disk.")?,
            syncs: IntCounter::new(
                "quarry_journal_syncs_total",
                "Synchronisations of the journal's disk; fewer than writes, where writes came together.",
            )?,
            seconds: prometheus::Counter::new(
                "quarry_journal_sync_seconds_total",
                "Time that the journal's disk took for them.",
            )?,
            failing: IntGauge::new("quarry_journal_failing", "1 where the last write of the journal failed, else 0.")?,
            rebuilds: IntCounter::new(
                "quarry_journal_rebuilds_total",
                "Journals that were damaged or missing and begun anew since the driver's start.",
            )?,
        };
        registry.register(Box::new(metrics.volumes.clone()))?;
        for gauge in [&metrics.rows, &metrics.bytes, &metrics.backlog, &metrics.failing] {
            registry.register(Box::new(gauge.clone()))?;
        }
        registry.register(Box::new(metrics.oldest.clone()))?;
        for counter in [&metrics.writes, &metrics.syncs, &metrics.rebuilds] {
            registry.register(Box::new(counter.clone()))?;
        }
        registry.register(Box::new(metrics.seconds.clone()))?;
        Ok(metrics)
    }

    /// Brings them up to date.
    pub fn set(&self, journal: &JournalStatus, volumes: &[(&'static str, usize)]) {
        let whole = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        for (state, count) in volumes {
            self.volumes.with_label_values(&[state]).set(whole(*count));
        }
        self.rows.set(whole(journal.rows));
        self.bytes.set(i64::try_from(journal.bytes).unwrap_or(i64::MAX));
        self.backlog.set(whole(journal.backlog));
        self.oldest.set(journal.write_under_way.unwrap_or_default().as_secs_f64());
        self.failing.set(i64::from(journal.failing.is_some()));
        for (counter, count) in
            [(&self.writes, journal.writes), (&self.syncs, journal.syncs), (&self.rebuilds, journal.rebuilds)]
        {
            counter.inc_by(count.saturating_sub(counter.get()));
        }
        self.seconds.inc_by((journal.writing.as_secs_f64() - self.seconds.get()).max(0.0));
    }
}
