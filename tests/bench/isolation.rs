//! What shares come out of weights, with no control, with iocost and with BFQ, in a virtual machine with disks of 600
//! operations a second (`testbed bench isolation`). Real fio in cgroups as the kubelet makes them, on thick and thin volumes.
//!
//! Only ratios are to be believed; each line is of one run of both tenants side by side.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark that fails is a panic")]

#[expect(dead_code, reason = "the isolation suite needs more of it")]
#[path = "../isolation/load.rs"]
mod load;
#[expect(dead_code, reason = "the kernel suite needs more of it")]
#[path = "../kernel/pod.rs"]
mod pod;
#[path = "isolation/run.rs"]
mod run;
#[expect(dead_code, reason = "the kernel suite needs more of it")]
#[path = "../kernel/scene.rs"]
mod scene;
#[expect(dead_code, reason = "the isolation suite needs more of it")]
#[path = "../isolation/tenant.rs"]
mod tenant;

use std::fmt;
use std::process::ExitCode;

use anyhow::Result;
use quarry_tests::{bench, in_vm};
use serde::Serialize;

fn main() -> ExitCode {
    bench::main("isolation", measure)
}

/// The results of one run.
#[derive(Debug, Serialize)]
struct Results {
    machine: String,
    /// Seconds that the calibration took.
    calibration_s: f64,
    /// What `quarry-driver calibrate` said.
    calibration: String,
    rows: Vec<run::Row>,
    peaks: Vec<run::Peak>,
}

fn measure() -> Result<Results> {
    in_vm::require()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let measured = runtime.block_on(run::all());
    let machine = in_vm::describe()?;
    let run::Measured { calibration_s, calibration, rows, peaks } = measured;
    Ok(Results { machine, calibration_s, calibration, rows, peaks })
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.machine)?;
        writeln!(f, "calibrated in {:.0} s:\n{}", self.calibration_s, self.calibration)?;
        writeln!(
            f,
            "{:<8} {:<34} {:>7} {:>8} {:>9} {:>9} {:>9}",
            "control", "two tenants", "asked", "got", "IOPS", "p50, ms", "p99, ms"
        )?;
        for row in &self.rows {
            let run::Row { control, what, asked, got, sum_iops, victim_p50_ms, victim_p99_ms, .. } = row;
            writeln!(
                f,
                "{control:<8} {what:<34} {:>7} {:>8} {sum_iops:>9.0} {victim_p50_ms:>9.1} {victim_p99_ms:>9.1}",
                format!("1:{asked:.0}"),
                format!("1:{got:.2}"),
            )?;
        }
        writeln!(f, "(latencies are those of the second tenant)\n")?;
        writeln!(f, "{:<8} {:<22} {:>9} {:>18}", "control", "one tenant alone", "IOPS", "of no control's")?;
        for run::Peak { control, what, iops, part } in &self.peaks {
            writeln!(f, "{control:<8} {what:<22} {iops:>9.0} {:>17.0}%", part * 100.0)?;
        }
        Ok(())
    }
}
