//! What the scheduler is told about room: a cluster of three nodes of unequal size, the chart installed by Helm.

use anyhow::Result;

use super::{Suite, Verdict, cluster};
use crate::cluster::NodeSettings;

/// Builds the suite and what a cluster needs, starts one and runs the suite against it.
///
/// `filter` goes to the test program, as for the suite `cluster`.
///
/// # Errors
/// If something cannot be built.
pub fn suite(filter: &[String]) -> Result<Verdict> {
    cluster::run("capacity", Suite::Capacity, nodes(), filter)
}

/// Three nodes, no two of a size, one without udevd.
fn nodes() -> Vec<NodeSettings> {
    let node = |name: &str, gib: u64| NodeSettings { data_disk: gib << 30, ..NodeSettings::usual(name) };
    vec![NodeSettings { udev: false, ..node("quarry-1", 9) }, node("quarry-2", 6), node("quarry-3", 4)]
}
