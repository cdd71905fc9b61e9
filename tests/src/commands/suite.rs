//! `testbed suite`: runs a suite in a machine.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use quarry_tests::artifacts::{Binaries, Store};
use quarry_tests::progress::Progress;
use quarry_tests::suite::{self, Verdict};

/// What `testbed suite` takes.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Debug, Subcommand)]
enum Suite {
    /// The test bed's machines themselves.
    Bed {
        /// Which tests, and options of the test program.
        #[arg(last = true)]
        filter: Vec<String>,
    },
    /// The driver on real LVM.
    Kernel {
        #[command(flatten)]
        udevd: Udevd,
        /// Which tests, and options of the test program.
        #[arg(last = true)]
        filter: Vec<String>,
    },
    /// The driver killed at every point, and LVM's commands too.
    Crash {
        /// Parts of names of what to do, all of it without any.
        #[arg(last = true)]
        filter: Vec<String>,
    },
    /// The driver when disks hang, fail, fill up and come back.
    Faults {
        /// Which tests, and options of the test program.
        #[arg(last = true)]
        filter: Vec<String>,
    },
    /// Shares and limits of a disk's tenants.
    Isolation {
        /// Which tests, and options of the test program.
        #[arg(last = true)]
        filter: Vec<String>,
    },
    /// The driver in Kubernetes: a cluster of two nodes.
    Cluster {
        /// Which tests, and options of the test program.
        #[arg(last = true)]
        filter: Vec<String>,
    },
    /// What the scheduler is told about room: a cluster of three nodes.
    Capacity {
        /// Which tests, and options of the test program.
        #[arg(last = true)]
        filter: Vec<String>,
    },
    /// Power cuts, replayed from records of what was on stable storage.
    Power {
        /// Which tests, and options of the test program.
        #[arg(last = true)]
        filter: Vec<String>,
    },
    /// csi-sanity against the driver.
    Sanity {
        #[command(flatten)]
        udevd: Udevd,
        /// Use this csi-sanity instead of building it.
        #[arg(long, env = "QUARRY_CSI_SANITY")]
        binary: Option<PathBuf>,
    },
}

/// In which machine: one without udevd unless said otherwise; both flags mean both, one after the other.
#[derive(Debug, Clone, Copy, Args)]
struct Udevd {
    /// In a machine with udevd.
    #[arg(long)]
    udev: bool,
    /// In a machine without udevd.
    #[arg(long)]
    no_udev: bool,
}

impl Udevd {
    fn machines(self) -> &'static [bool] {
        match (self.no_udev, self.udev) {
            (true, true) => &[false, true],
            (false, true) => &[true],
            (_, false) => &[false],
        }
    }
}

/// Runs it; the first verdict that is no pass is the end.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.suite {
        Suite::Bed { filter } => Ok(suite::bed::suite(&filter)?.exit_code()),
        Suite::Kernel { udevd, filter } => each(udevd, |udev| suite::kernel::suite(udev, &filter)),
        Suite::Crash { filter } => suite::crash::suite(&filter).map(|verdict| verdict.exit_code()),
        Suite::Faults { filter } => Ok(suite::faults::suite(&filter)?.exit_code()),
        Suite::Isolation { filter } => Ok(suite::isolation::suite(&filter)?.exit_code()),
        Suite::Cluster { filter } => suite::cluster::suite(&filter).map(|verdict| verdict.exit_code()),
        Suite::Capacity { filter } => suite::capacity::suite(&filter).map(|verdict| verdict.exit_code()),
        Suite::Power { filter } => Ok(suite::power::suite(&filter)?.exit_code()),
        Suite::Sanity { udevd, binary } => {
            let binary = binary.map_or_else(csi_sanity, Ok)?;
            each(udevd, |udev| suite::sanity::suite(&binary, udev))
        }
    }
}

/// The csi-sanity of the cache, built if it is not there.
fn csi_sanity() -> Result<PathBuf> {
    Binaries::build(&Store::open()?, &["csi-tools"], &Progress::default())?.path("csi-sanity")
}

fn each(udevd: Udevd, suite: impl Fn(bool) -> Result<Verdict>) -> Result<ExitCode> {
    for udev in udevd.machines() {
        let verdict = suite(*udev)?;
        if verdict != Verdict::Pass {
            return Ok(verdict.exit_code());
        }
    }
    Ok(ExitCode::SUCCESS)
}
