//! How long each suite may take.

use std::time::Duration;

/// A suite of the test bed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// The machines of the test bed themselves.
    Bed,
    /// The driver on real LVM, without udevd.
    Kernel,
    /// The same with udevd.
    KernelUdev,
    /// Disks that hang, fail, fill up and come back.
    Faults,
    /// Shares and limits of a disk's tenants.
    Isolation,
    /// csi-sanity against the driver.
    Sanity,
    /// The driver killed at every point, and LVM's commands too.
    Crash,
    /// The driver in Kubernetes on two nodes.
    Cluster,
    /// What the scheduler is told about room, on three nodes.
    Capacity,
    /// Power cuts.
    Power,
    /// Latencies and process counts of create and delete.
    BenchCreate,
    /// Shares by weights, with different means of control.
    BenchIsolation,
    /// What the journal costs; starting with many volumes.
    BenchJournal,
    /// What a scrape of the metrics costs.
    BenchScrape,
    /// Many capacity-reporters of simulated nodes.
    BenchCapacity,
}

/// Wall time from starting the machine to its power-off, without building. A suite that takes longer has no verdict.
/// Twice to four times of what two cores need without KVM.
#[must_use]
pub fn budget(suite: Suite) -> Duration {
    let minutes = match suite {
        Suite::Bed => 15,
        Suite::Kernel => 50,
        Suite::KernelUdev => 30,
        Suite::Faults => 30,
        Suite::Isolation => 20,
        Suite::Sanity => 25,
        Suite::Crash => 90,
        Suite::Cluster => 90,
        Suite::Capacity => 120,
        Suite::Power => 20,
        Suite::BenchCreate => 20,
        Suite::BenchJournal => 30,
        Suite::BenchIsolation => 30,
        Suite::BenchScrape => 20,
        Suite::BenchCapacity => 40,
    };
    Duration::from_secs(minutes * 60)
}
