//! The gRPC edge: requests in, answers and status codes out.
//!
//! Each RPC has one error type, and one `From<ItsError> for tonic::Status` is the only place that picks its codes:
//! codes are instructions to the callers (retry here, retry elsewhere, give up), so they are decided where they can be
//! seen together.
//!
//! **Invariant.** Nothing below knows of gRPC, and no request is logged whole: it may hold secrets.

pub mod authority;
pub mod call;
pub mod capability;
pub mod controller;
pub mod detached;
pub mod identity;
pub mod intake;
pub mod node;
pub mod registration;
pub mod socket;
pub mod status;
pub mod topology;

/// The driver's name, as StorageClasses and the CSIDriver object carry it.
pub const DRIVER_NAME: &str = "lvm.quarry.storage";
