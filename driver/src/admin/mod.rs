//! What an administrator on the node asks of the driver: its volumes, and to accept losses.
//!
//! [`service`] answers on the driver's CSI socket, [`command`] asks there, or looks itself where no driver runs.

pub mod command;
pub mod service;
mod status;
mod table;
