//! The Quarry node plugin as a library.
//!
//! Knowledge runs one way: `csi` knows `engine` and `filesystem`; `engine` knows `volume` and `lvm`, and asks
//! `filesystem` where a device is mounted; nothing knows `csi`. Only `exec` starts processes. See ARCHITECTURE.md.

pub mod admin;
pub mod args;
pub mod capacity;
pub mod command_line;
pub mod config;
pub mod crash;
pub mod csi;
pub mod device_number;
pub mod durable;
pub mod engine;
pub mod exec;
pub mod filesystem;
pub mod io;
pub mod journal;
pub mod lvm;
pub mod run;
pub mod telemetry;
pub mod volume;
