//! What was measured, as tables and as JSON.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::simulation::Size;

/// Milliseconds.
#[derive(Debug, Clone, Copy, Serialize, Default)]
pub struct Percentiles {
    /// How many were measured.
    pub samples: usize,
    /// The median.
    pub p50_ms: f64,
    /// The 99th of a hundred.
    pub p99_ms: f64,
    /// The largest.
    pub max_ms: f64,
}

impl Percentiles {
    /// Of these; all zero where there are none.
    #[must_use]
    pub fn of(samples: &[Duration]) -> Self {
        let mut sorted: Vec<f64> = samples.iter().map(|sample| sample.as_secs_f64() * 1000.0).collect();
        sorted.sort_by(f64::total_cmp);
        let at = |percent: usize| {
            sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
        };
        Self { samples: sorted.len(), p50_ms: at(50), p99_ms: at(99), max_ms: at(100) }
    }
}

/// So much of each.
#[must_use]
pub fn per(sum: f64, of: usize) -> f64 {
    sum / of.max(1) as f64
}

/// All results of a run.
#[derive(Debug, Serialize)]
pub struct Results {
    /// What it ran on.
    pub machine: String,
    /// The simulation, by size.
    pub simulation: Vec<Size>,
}

/// One line of the table: what it is, and its value with so many nodes.
type Row = (&'static str, fn(&Size) -> f64);

/// The table's parts with their lines.
const PARTS: &[(&str, &[Row])] = &[
    (
        "objects",
        &[("capacity objects", |size| size.objects as f64), ("reporters that run", |size| size.running as f64)],
    ),
    (
        "start, at most 16 at a time in each process",
        &[
            ("reporters started", |size| size.started as f64),
            ("until all have published, s", |size| size.start_s),
            ("requests besides watches, of one", |size| size.start_requests),
            ("failed requests, of all", |size| size.start_failed as f64),
            ("API servers' processor time, of one, ms", |size| size.start_cpu_ms),
        ],
    ),
    (
        "nothing changes",
        &[
            ("looked at for, s", |size| size.idle.seconds),
            ("requests besides watches, of all", |size| size.idle.requests as f64),
            ("watches open", |size| size.idle.watches),
            ("watches taken up anew, of all, 1/s", |size| size.idle.watches_per_s),
            ("watch events (bookmarks), to all, 1/s", |size| size.idle.events_per_s),
            ("their bytes, to all, 1/s", |size| size.idle.bytes_per_s),
            ("API servers' processors, of one core, %", |size| size.idle.cpu * 100.0),
        ],
    ),
    (
        "one node's three figures change",
        &[
            ("driver's word to watcher, p50, ms", |size| size.one.delay.p50_ms),
            ("p99, ms", |size| size.one.delay.p99_ms),
            ("max, ms", |size| size.one.delay.max_ms),
            ("requests", |size| size.one.requests),
            ("watch events to reporters", |size| size.one.events),
            ("bytes of an event", |size| size.one.event_bytes),
        ],
    ),
    (
        "the three figures of all whose reporter runs change at once",
        &[
            ("until all are published, s", |size| size.all.seconds),
            ("driver's word to watcher, p50, ms", |size| size.all.delay.p50_ms),
            ("p99, ms", |size| size.all.delay.p99_ms),
            ("requests, of one node", |size| size.all.requests),
            ("failed requests, of all", |size| size.all.failed.values().sum::<u64>() as f64),
            ("watch events to reporters, of one node", |size| size.all.events),
            ("API servers' processor time, of one node, ms", |size| size.all.cpu_ms),
        ],
    ),
    (
        "memory",
        &[
            ("a reporter as shipped, resident, KiB", |size| size.reporter.resident as f64),
            ("its peak, KiB", |size| size.reporter.peak as f64),
            ("the one that cleans up, resident, KiB", |size| size.janitor.memory.resident as f64),
            ("its peak, KiB", |size| size.janitor.memory.peak as f64),
            ("its requests every five minutes", |size| size.janitor.requests),
            ("API servers, both, MiB", |size| size.api_servers_mib as f64),
            ("etcd, MiB", |size| size.etcd_mib as f64),
        ],
    ),
];

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.machine)?;
        writeln!(
            f,
            "Simulation: real etcd and two real API servers; Node objects without nodes; on each the reporter's real \
             code with a simulated driver and a token of its own, most of them many in a process, five as shipped.\n\
             Where fewer reporters run than there are nodes, the others' objects are there and unwatched.\n\
             Growth: the last column by the first."
        )?;
        write!(f, "{:<48}", "nodes")?;
        for size in &self.simulation {
            write!(f, " {:>10}", size.nodes)?;
        }
        writeln!(f, " {:>8}", "growth")?;
        for (part, rows) in PARTS {
            writeln!(f, "{part}")?;
            for (what, value) in *rows {
                write!(f, "  {what:<46}")?;
                for size in &self.simulation {
                    write!(f, " {:>10}", number(value(size)))?;
                }
                let growth = match (self.simulation.first(), self.simulation.last()) {
                    (Some(first), Some(last)) if value(first) > 0.0 => format!("x{:.1}", value(last) / value(first)),
                    _ => String::new(),
                };
                writeln!(f, " {growth:>8}")?;
            }
        }
        Ok(())
    }
}

/// With as many digits as say something.
fn number(value: f64) -> String {
    match value {
        value if value.fract() == 0.0 || value >= 1000.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
