//! The Quarry node plugin as a library; `main.rs` is its command line.

pub mod exec;
pub mod lvm;
