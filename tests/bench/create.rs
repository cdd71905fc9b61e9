//! Latency and LVM processes of creating and deleting volumes, in a virtual machine (`testbed bench create`).
//!
//! The driver, over its socket, next to one bare LVM process and next to the command sequences of other drivers, in
//! turns, in one run. Only ratios are to be believed: an emulated machine makes a process's start expensive.

#[path = "create/contender.rs"]
mod contender;
#[path = "create/table.rs"]
mod table;

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use quarry_tests::in_vm::{self, DriverSpec, DriverUnderTest, VolumeGroup, lvm};

use contender::Contender;
use table::{Measured, Results};

/// How often each operation is measured, unless the first argument says otherwise.
const ROUNDS: usize = 15;

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
    let rounds = match std::env::args().nth(1) {
        Some(text) => text.parse().with_context(|| format!("the number of rounds is {text:?}; it must be a number"))?,
        None => ROUNDS,
    };
    ensure!(rounds > 0, "the number of rounds is 0; it must be at least 1");
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
    let results = Results::of(measured, rounds)?;
    print!("{results}");
    std::fs::write(&to, serde_json::to_vec_pretty(&results)?).context("cannot write the result")?;
    Ok(contenders.len())
}
