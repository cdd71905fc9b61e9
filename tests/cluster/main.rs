//! What a user of Kubernetes gets from the driver, on a cluster of two nodes that `testbed suite cluster` starts.
//!
//! The tests share the cluster and run one after the other; each has a namespace of its own and leaves nothing: no
//! claim, no volume, no logical volume.

mod capacity;
mod driver;
#[expect(dead_code, reason = "the observe suite needs more of it")]
#[expect(clippy::unwrap_used, reason = "written for tests, where a helper that fails is a failure")]
#[path = "../observe/files.rs"]
mod files;
mod nodes;
mod observe;
mod picture;
mod shares;
mod volumes;

/// The nodes, as the suite makes them: the first has the larger disk, no udevd and no systemd, the second has both.
const NODES: [&str; 2] = ["quarry-1", "quarry-2"];
