//! Who gets how much of a disk: weights (`io.weight`, `io.bfq.weight`) and limits (`io.max`) of cgroup v2, set for the
//! pods that have volumes, and read back.
//!
//! **Invariant.** A share is called enforced only after the kernel was seen to have everything that it depends on: the
//! disk's cost model or scheduler, the pod's weight, its QoS class's weight. Nothing of another's is overwritten, and what
//! was there before is noted. No request waits for any of this.

mod activity;
mod arrivals;
pub mod block_stat;
pub mod calibrate;
pub mod control;
pub mod cost;
pub mod facts;
mod keyed;
pub mod leave;
mod lines;
mod models;
pub mod monitor;
pub mod notes;
pub mod plan;
pub mod pods;
mod settle;
pub mod state;
pub mod sysfs;

use crate::device_number::DeviceNumber;
use crate::volume::LvName;
use crate::volume::io::IoWish;

pub use control::{Control, Counts};
pub use state::{Reason, State};

/// A volume at a pod: whom to give what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// The volume.
    pub volume: LvName,
    /// Where it is published.
    pub target: String,
    /// The pod's UID, where it is known.
    pub pod: Option<String>,
    /// What the volume asks for.
    pub wish: IoWish,
    /// Its thin pool as `VG/POOL`; none where it is thick.
    pub pool: Option<String>,
    /// The volume's device; none where it is not live, or the kernel did not say.
    pub device: Option<DeviceNumber>,
}
