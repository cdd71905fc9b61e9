//! What the journal costs, and how the driver starts with many volumes, in a virtual machine (`testbed bench journal`).
//!
//! The state folder is on a disk of its own, because the journal's price is the disk's synchronisation. Only ratios are
//! to be believed.

#[path = "journal/crowd.rs"]
mod crowd;
#[path = "journal/load.rs"]
mod load;
#[path = "journal/start.rs"]
mod start;

use std::fmt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, anyhow};
use quarry_tests::bench;
use quarry_tests::command::Command;
use quarry_tests::in_vm::{self, DriverSpec, VolumeGroup, scratch_disks};
use quarry_tests::process;
use serde::Serialize;

/// Where the driver's state is.
const STATE: &str = "/run/bench-state";
/// How many volumes are made in each measurement, unless the first argument says otherwise.
const VOLUMES: usize = 32;

fn main() -> ExitCode {
    bench::main("journal", run)
}

/// The results of one run.
#[derive(Debug, Serialize)]
struct Results {
    machine: String,
    /// The median of fdatasync after 400 bytes, in microseconds, on the journal's disk.
    fdatasync_us: f64,
    /// The median of a journal write, in microseconds; a creation has two.
    journal_write_us: f64,
    load: Vec<load::Row>,
    start: Vec<start::Row>,
}

fn run() -> Result<Results> {
    in_vm::require()?;
    let volumes = bench::first_argument("volumes", VOLUMES)?;
    mount_state()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let fdatasync_us = load::fdatasync(Path::new(STATE))?;
    let (load, journal_write_us) = {
        let group = VolumeGroup::fresh("bench")?;
        load::measure(&runtime, &group, volumes)?
    };
    let start = start::measure(&runtime)?;
    Ok(Results { machine: in_vm::describe()?, fdatasync_us, journal_write_us, load, start })
}

/// The last of the machine's disks, with a filesystem, for the state folder.
fn mount_state() -> Result<()> {
    let disk = scratch_disks()?.pop().ok_or_else(|| anyhow!("no disk for the state folder"))?;
    let run = |command: Command| process::run(&command, Duration::from_secs(120))?.success().map(drop);
    run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk))?;
    std::fs::create_dir_all(STATE)?;
    run(Command::new("mount").arg(&disk).arg(STATE))
}

/// A driver on a group, with its state on the disk.
fn spec(group: &str, state: &str) -> DriverSpec {
    let mut spec = DriverSpec::for_group(group);
    spec.arguments = vec!["--state-dir".to_owned(), format!("{STATE}/{state}")];
    spec.env.push(("QUARRY_LOG_FILTER".to_owned(), "warn,quarry_driver::journal=debug".to_owned()));
    spec
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.machine)?;
        let (write, sync) = (self.journal_write_us, self.fdatasync_us);
        writeln!(
            f,
            "a journal write takes {:.2} x one fdatasync of that disk ({write:.0} and {sync:.0} us), a creation has two",
            write / sync
        )?;
        writeln!(
            f,
            "\n{:>8} {:>8} {:>14} {:>14} {:>7} {:>8}",
            "at once", "volumes", "with, /s", "without, /s", "ratio", "syncs"
        )?;
        for row in &self.load {
            let load::Row { at_once, volumes, with_per_s, without_per_s, ratio, syncs } = row;
            writeln!(f, "{at_once:>8} {volumes:>8} {with_per_s:>14.2} {without_per_s:>14.2} {ratio:>7.2} {syncs:>8}")?;
        }
        writeln!(
            f,
            "\n{:>8} {:>16} {:>16} {:>7} {:>14}",
            "volumes", "first start, s", "start, s", "ratio", "memory, MiB"
        )?;
        for row in &self.start {
            let start::Row { volumes, first_s, again_s, ratio, resident_mib } = row;
            writeln!(f, "{volumes:>8} {first_s:>16.2} {again_s:>16.2} {ratio:>7.2} {resident_mib:>14.1}")?;
        }
        Ok(())
    }
}
