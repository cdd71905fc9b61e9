//! LVM: its commands, and its volume groups' own metadata.
//!
//! **Invariant.** State is changed only by LVM's own commands, given through [`runner::Runner`], but for what one that was
//! killed left undone in the kernel ([`repair`]); it is read from the metadata on the physical volumes and from
//! device-mapper, without a process.

pub mod block_devices;
pub mod command;
pub mod discover;
pub mod dm;
pub mod dm_name;
pub mod dm_status;
mod dm_wire;
pub mod flush;
pub mod metadata;
pub mod pool;
pub mod repair;
pub mod report;
pub mod runner;
pub mod system_dir;
pub mod verbs;
pub mod watch;
