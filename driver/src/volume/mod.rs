//! What a volume is: its name, handle, size, parameters and tags, and how much room there is for one.
//!
//! **Invariant.** Everything here is pure: no input or output, no clock, nothing asynchronous. A StorageClass
//! parameter, a size rule or a capacity figure is decided here and nowhere else.

pub mod capability;
pub mod capacity;
pub mod handle;
pub mod io;
pub mod name;
pub mod parameters;
pub mod size;
pub mod tags;

pub use capability::{Capability, Content, FilesystemType};
pub use handle::{TopologyValue, VolumeHandle};
pub use name::LvName;
pub use parameters::{Parameters, Provisioning};
pub use size::Bytes;
pub use tags::{Stage, Tags};
