//! What the capacity-reporter, which may talk to Kubernetes, and the driver, which may not, tell each other: the gRPC edge
//! of `quarry.v1.Capacity` on the driver's CSI socket.

pub mod claims;
pub mod service;
