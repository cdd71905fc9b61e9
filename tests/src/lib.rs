//! The test bed: virtual machines, and the suites that run in them, as a library. `main.rs` is its command line.

pub mod artifacts;
pub mod bench;
pub mod cache;
pub mod cluster;
pub mod command;
pub mod in_vm;
pub mod log_writes;
pub mod process;
pub mod progress;
pub mod sample;
pub mod scratch;
pub mod suite;
pub mod vm;
pub mod wait;
