//! What the scheduler is told about room, and what comes of it: on a cluster of three nodes of unequal size that
//! `testbed suite capacity` starts.
//!
//! The tests share the cluster and run one after the other; each has a namespace of its own and leaves nothing but the
//! thin pools.
//!
//! What an admin does behind the driver's back is done by `lvcreate --activate n --zero n`: on the node without udevd nobody
//! makes the device file that it would clear.

mod disruption;
mod fill;
mod leaving;
mod objects;
mod pair;

/// The nodes, as the suite makes them: each smaller than the one before; the first has no udevd.
const NODES: [&str; 3] = ["quarry-1", "quarry-2", "quarry-3"];
/// The classes of the chart.
const CLASSES: [&str; 2] = ["quarry-thin", "quarry-thick"];
/// How many objects there are while nothing else is asked for.
const OBJECTS: usize = NODES.len() * CLASSES.len();
