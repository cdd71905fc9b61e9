//! The crash suite: the driver, LVM's commands, or both die at every point of every operation, on real LVM; then the
//! driver is started again and asked again, as its callers would, and everything must be as if nothing had happened
//! (`testbed suite crash`).
//!
//! **Invariant.** No list of points is written by hand: each operation is run once to its end and tells which points
//! it passes, and which calls LVM makes to device-mapper. Each of them gets its death and a line in the table.

mod invariant;
mod jobs;
mod lane;
mod lvm_deaths;
mod operation;
mod orders;
#[path = "../kernel/pod.rs"]
#[expect(dead_code, reason = "the kernel suite asks for more")]
#[expect(clippy::unwrap_used, reason = "a step of a test that fails is a panic, in helpers too")]
mod pod;
mod points;
mod random;
mod report;
#[path = "../kernel/scene.rs"]
#[expect(dead_code, reason = "the kernel suite asks for more")]
#[expect(clippy::unwrap_used, clippy::expect_used, reason = "a step of a test that fails is a panic, in helpers too")]
mod scene;

use std::process::ExitCode;

use quarry_tests::in_vm;
use quarry_tests::sample::Sample;

fn main() -> ExitCode {
    let sample = match in_vm::require().and_then(|()| Sample::from_environment()) {
        Ok(sample) => sample,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let filter: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let report = jobs::run(&filter, sample);
    report.print();
    if report.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
