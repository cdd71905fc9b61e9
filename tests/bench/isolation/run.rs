//! The measurements: for each means of control the same pairs of tenants.

use std::time::Instant;

use serde::Serialize;

use crate::load::{Job, Outcome, READ, WRITE, run};
use crate::scene::{Scene, THICK, THIN};
use crate::tenant::{Class, Tenant, fresh, with_io};

/// Two tenants side by side.
#[derive(Debug, Serialize)]
pub struct Row {
    pub control: &'static str,
    pub what: &'static str,
    /// The second one's weight in terms of the first one's.
    pub asked: f64,
    /// What it got, in operations.
    pub got: f64,
    pub sum_iops: f64,
    pub victim_p50_ms: f64,
    pub victim_p99_ms: f64,
    /// The second one's part of all operations.
    pub victim_part: f64,
}

/// One tenant alone.
#[derive(Debug, Serialize)]
pub struct Peak {
    pub control: &'static str,
    pub what: &'static str,
    pub iops: f64,
    /// In terms of what it does without control.
    pub part: f64,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Measured {
    pub calibration_s: f64,
    pub calibration: String,
    pub rows: Vec<Row>,
    pub peaks: Vec<Peak>,
}

struct Pair {
    what: &'static str,
    thin: bool,
    weights: (&'static str, &'static str),
    jobs: (Job, Job),
}

const fn syncs(depth: u32) -> Job {
    Job { sync: true, ..Job::new("randwrite", depth) }
}

const PAIRS: [Pair; 8] = [
    Pair { what: "thick, reads", thin: false, weights: ("100", "100"), jobs: (READ, READ) },
    Pair { what: "thick, reads", thin: false, weights: ("100", "300"), jobs: (READ, READ) },
    Pair { what: "thick, reads", thin: false, weights: ("100", "800"), jobs: (READ, READ) },
    Pair { what: "thick, writes", thin: false, weights: ("100", "800"), jobs: (WRITE, WRITE) },
    Pair {
        what: "thick, depth 256 against 4",
        thin: false,
        weights: ("100", "100"),
        jobs: (Job::new("randread", 256), Job::new("randread", 4)),
    },
    Pair { what: "thick, synced writes", thin: false, weights: ("100", "800"), jobs: (syncs(16), syncs(16)) },
    Pair { what: "thin overwritten", thin: true, weights: ("100", "800"), jobs: (WRITE, WRITE) },
    Pair {
        what: "thin, synced writes (not promised)",
        thin: true,
        weights: ("100", "800"),
        jobs: (syncs(16), syncs(16)),
    },
];

const ALONE: [(&str, Job); 2] = [("thick, reads", READ), ("thick, writes", WRITE)];

/// Measures everything, on one disk.
pub async fn all() -> Measured {
    let mut measured = Measured::default();
    let mut peaks: Vec<(&'static str, f64)> = Vec::new();
    for (control, io) in [
        ("none", "io: {weights: off}\n"),
        ("iocost", "io: {calibration: onRequest}\n"),
        ("bfq", "io: {weights: bfq}\n"),
    ] {
        let group = fresh("bench");
        let configuration = with_io(&group, io);
        let mut scene = Scene::with_config(group, &configuration).await;
        if control == "iocost" {
            let begin = Instant::now();
            measured.calibration = scene.driver.calibrate().unwrap();
            measured.calibration_s = begin.elapsed().as_secs_f64();
        }
        let mut tenants = Vec::new();
        for (number, kind) in [(1, THICK), (2, THICK), (3, THIN), (4, THIN)] {
            tenants
                .push(Tenant::new(&scene, number, Class::Guaranteed, &[kind, &[("ioWeight", "100")]].concat()).await);
        }
        let state = if control == "none" { "not-enforced" } else { "enforced" };
        for pair in &PAIRS {
            let (a, b) = if pair.thin { (&tenants[2], &tenants[3]) } else { (&tenants[0], &tenants[1]) };
            for (tenant, weight) in [(a, pair.weights.0), (b, pair.weights.1)] {
                tenant.modify(&scene, &[("ioWeight", weight)]).await.unwrap();
                // What was seen in the pair before is told for a while.
                tenant.becomes_within(&scene, std::time::Duration::from_secs(60), state, "").await;
            }
            let outcomes = run(&[(a, pair.jobs.0), (b, pair.jobs.1)]);
            measured.rows.push(row(control, pair, &outcomes));
        }
        for (what, job) in ALONE {
            let iops = run(&[(&tenants[0], job)])[0].iops;
            if control == "none" {
                peaks.push((what, iops));
            }
            let free = peaks.iter().find(|(name, _)| *name == what).map_or(iops, |(_, iops)| *iops);
            measured.peaks.push(Peak { control, what, iops, part: iops / free });
        }
        for tenant in tenants {
            tenant.end(&scene).await;
        }
        assert!(scene.driver.stop().unwrap().success());
        scene.driver.restore_io().unwrap();
    }
    measured
}

fn row(control: &'static str, pair: &Pair, outcomes: &[Outcome]) -> Row {
    let weight = |text: &str| text.parse::<f64>().unwrap();
    let (a, b) = (&outcomes[0], &outcomes[1]);
    Row {
        control,
        what: pair.what,
        asked: weight(pair.weights.1) / weight(pair.weights.0),
        got: b.iops / a.iops,
        sum_iops: a.iops + b.iops,
        victim_p50_ms: b.p50_ms,
        victim_p99_ms: b.p99_ms,
        victim_part: b.iops / (a.iops + b.iops),
    }
}
