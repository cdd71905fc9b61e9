//! The test bed: virtual machines, and the suites that run in them, as a library. `main.rs` is its command line.

pub mod cache;
pub mod command;
pub mod in_vm;
pub mod process;
pub mod scratch;
pub mod suite;
pub mod vm;
pub mod wait;
