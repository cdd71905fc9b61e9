//! Latency and LVM processes of creating and deleting volumes, in a virtual machine (`testbed bench create`).
//!
//! The driver, over its socket, next to one bare LVM process and next to the command sequences of other drivers, in
//! turns, in one run. Only ratios are to be believed: an emulated machine makes a process's start expensive.

#[path = "create/contender.rs"]
mod contender;
#[path = "create/table.rs"]
mod table;

use std::process::ExitCode;

use anyhow::Result;
use quarry_tests::bench;
use quarry_tests::in_vm::{self, DriverSpec, DriverUnderTest, VolumeGroup, lvm};

use contender::Contender;
use table::{Measured, Results};

/// How often each operation is measured, unless the first argument says otherwise.
const ROUNDS: usize = 15;

fn main() -> ExitCode {
    bench::main("create", run)
}

fn run() -> Result<Results> {
    in_vm::require()?;
    let rounds = bench::first_argument("rounds", ROUNDS)?;
    let group = VolumeGroup::fresh("bench")?;
    // The debug log tells each command that the driver runs, which is how its processes are counted.
    let mut spec = DriverSpec::for_group(group.name());
    spec.env.push(("QUARRY_LOG_FILTER".to_owned(), "warn,quarry_driver::exec=debug".to_owned()));
    let driver = DriverUnderTest::start(spec)?;
    lvm("lvcreate", &["-y", "--type", "thin-pool", "-L", "3g", "-Z", "y", "-n", "quarry-pool", group.name()])?
        .success()?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let contenders = contender::all(&runtime, &driver, &group)?;
    let mut measured: Vec<Measured> = contenders.iter().map(|contender| Measured::new(contender.name())).collect();
    for round in 0..=rounds {
        for (contender, measured) in contenders.iter().zip(&mut measured) {
            let volume = format!("bench-{round}");
            let (create, create_processes) = contender.timed(|| contender.create(&volume))?;
            let (delete, delete_processes) = contender.timed(|| contender.delete(&volume))?;
            // The first round warms caches up.
            if round > 0 {
                measured.add(create, create_processes, delete, delete_processes);
            }
        }
    }
    Results::of(measured, rounds)
}
