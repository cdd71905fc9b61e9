//! The CSI controller service of one node: requests in, the engine's results out.

mod capacity;
mod create;
mod delete;
mod list;
mod validate;

use std::sync::Arc;

use quarry_proto::csi::v1 as proto;
use quarry_proto::csi::v1::controller_server::Controller;
use quarry_proto::csi::v1::controller_service_capability::rpc::Type;
use quarry_proto::csi::v1::controller_service_capability::{Rpc, Type as CapabilityType};
use tonic::{Request, Response, Status};

use crate::csi::detached::Detached;
use crate::engine::Engine;

use create::CreateVolumeError;
use delete::DeleteVolumeError;

/// Serves CSI's controller RPCs.
#[derive(Debug, Clone)]
pub struct ControllerService {
    engine: Arc<Engine>,
    detached: Detached,
}

/// Exactly what is served.
const CAPABILITIES: [Type; 5] = [
    Type::CreateDeleteVolume,
    Type::ListVolumes,
    Type::GetCapacity,
    Type::GetVolume,
    Type::SingleNodeMultiWriter,
];

impl ControllerService {
    /// Serves the engine's volumes; `detached` runs the work that outlives its request.
    #[must_use]
    pub fn new(engine: Arc<Engine>, detached: Detached) -> Self {
        Self { engine, detached }
    }
}
