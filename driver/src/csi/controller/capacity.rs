//! GetCapacity.

use quarry_proto::csi::v1 as proto;
use tonic::{Code, Status};

use crate::csi::{capability, status, topology};
use crate::engine::{Engine, RoomError};
use crate::volume::capability::CapabilityError;
use crate::volume::parameters::{ParameterError, Parameters};
use crate::volume::{Bytes, Content, size};

/// Why no capacity was told.
#[derive(Debug, thiserror::Error)]
pub enum GetCapacityError {
    /// The parameters.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    /// The capabilities.
    #[error(transparent)]
    Capability(#[from] CapabilityError),
    /// The volume group could not be read, so zero would be a guess that lasts; or there is none.
    #[error(transparent)]
    Engine(#[from] RoomError),
}

impl From<GetCapacityError> for Status {
    fn from(error: GetCapacityError) -> Self {
        let code = match &error {
            GetCapacityError::Parameter(_) | GetCapacityError::Capability(_) => Code::InvalidArgument,
            GetCapacityError::Engine(RoomError::Unreadable(_)) => Code::Unavailable,
            // Whoever publishes figures publishes none for this.
            GetCapacityError::Engine(RoomError::Absent(_)) => Code::NotFound,
        };
        status::from(code, &error)
    }
}

/// What one CreateVolume with these parameters would get now: both as capacity and as the largest volume, since a
/// scheduler compares a claim with the latter.
///
/// # Errors
/// [`GetCapacityError`].
pub async fn get(
    engine: &Engine,
    request: &proto::GetCapacityRequest,
) -> Result<proto::GetCapacityResponse, GetCapacityError> {
    let parameters = Parameters::parse(&request.parameters)?;
    let content = if request.volume_capabilities.is_empty() {
        parameters.fs_type.map_or(Content::Block, Content::Filesystem)
    } else {
        capability::read_all(&request.volume_capabilities, parameters.fs_type)?
    };
    let here = request.accessible_topology.as_ref().is_none_or(|topology| topology::allows(topology, engine.node()));
    let room = if here { engine.room(&parameters.device_class, parameters.provisioning).await? } else { Bytes(0) };
    // Less than the smallest volume is no room at all.
    let least = size::minimum(content);
    let room = if room < least { Bytes(0) } else { room };
    Ok(proto::GetCapacityResponse {
        available_capacity: room.as_i64(),
        maximum_volume_size: Some(room.as_i64()),
        minimum_volume_size: Some(least.as_i64()),
    })
}
