//! Latency of creating and deleting volumes, in a virtual machine (`testbed bench create`).
//!
//! What is measured in one run is compared by ratios only: absolute times of an emulated machine mean nothing.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use quarry_tests::in_vm::{self, VolumeGroup, lvm};
use serde::Serialize;

/// How often each operation is measured.
const ROUNDS: usize = 20;

/// What is told of one operation.
#[derive(Debug, Serialize)]
struct Measured {
    p50_ms: f64,
    p90_ms: f64,
    rounds: usize,
}

fn main() -> ExitCode {
    match run() {
        Ok(count) => {
            println!("{count} passed, 0 failed");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{error:#}\n0 passed, 1 failed");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<usize> {
    in_vm::require()?;
    let to = std::env::var_os("QUARRY_BENCH_RESULT")
        .context("QUARRY_BENCH_RESULT is not set: use `testbed bench create`")?;
    let group = VolumeGroup::fresh("bench")?;
    lvm("lvcreate", &["-y", "--type", "thin-pool", "-L", "2g", "-n", "pool", group.name()])?.success()?;
    let mut times: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for round in 0..ROUNDS {
        let name = format!("v{round}");
        let path = format!("{}/{name}", group.name());
        let create = ["-y", "-V", "1g", "--thinpool", "pool", "-n", &name, group.name()];
        times.entry("bare thin lvcreate").or_default().push(timed(|| lvm("lvcreate", &create)?.success().map(drop))?);
        times
            .entry("bare thin lvremove")
            .or_default()
            .push(timed(|| lvm("lvremove", &["-y", &path])?.success().map(drop))?);
    }
    let results: BTreeMap<&str, Measured> = times.into_iter().map(|(name, times)| (name, summary(times))).collect();
    for (name, measured) in &results {
        println!(
            "{name:<24} p50 {:>8.1} ms  p90 {:>8.1} ms  ({} rounds)",
            measured.p50_ms, measured.p90_ms, measured.rounds
        );
    }
    std::fs::write(&to, serde_json::to_vec_pretty(&results)?).context("cannot write the result")?;
    Ok(results.len())
}

/// Milliseconds that it took.
fn timed(operation: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begin = Instant::now();
    operation()?;
    Ok(begin.elapsed().as_secs_f64() * 1000.0)
}

fn summary(mut times: Vec<f64>) -> Measured {
    times.sort_by(f64::total_cmp);
    let at = |percent: usize| times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))).copied();
    Measured { p50_ms: at(50).unwrap_or(f64::NAN), p90_ms: at(90).unwrap_or(f64::NAN), rounds: times.len() }
}
