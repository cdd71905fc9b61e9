//! The capacity-reporter: keeps what the scheduler is told about a node's room true.
//!
//! It stands between the driver, which knows the room and has no rights in Kubernetes, and the API server. What is asked
//! of either is in `driver` and in `apply`, `claims`, `janitor`, `clean`; what there should be is decided in `plan`, a
//! pure function.

pub mod apply;
pub mod args;
pub mod claims;
pub mod classes;
pub mod clean;
pub mod command_line;
pub mod driver;
pub mod follow;
pub mod identity;
pub mod janitor;
pub mod lease;
pub mod object;
pub mod objects;
pub mod pace;
pub mod plan;
pub mod publish;
pub mod quantity;
pub mod restore_io;
pub mod run;
pub mod shares;
pub mod telemetry;
