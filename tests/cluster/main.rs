//! What a user of Kubernetes gets from the driver, on a cluster of two nodes that `testbed suite cluster` starts.
//!
//! The tests share the cluster and run one after the other; each has a namespace of its own and leaves nothing: no
//! claim, no volume, no logical volume.

mod bed;
mod capacity;
mod driver;
mod nodes;
mod objects;
mod volumes;
