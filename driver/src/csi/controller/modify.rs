//! ControllerModifyVolume: another share of the disk, other limits.

use quarry_proto::csi::v1 as proto;
use tonic::{Code, Status};

use crate::csi::status;
use crate::engine::{Busy, Engine, ModifyError, TagChangeError};
use crate::volume::VolumeHandle;

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ModifyVolumeError {
    /// No id.
    #[error("volume_id is empty")]
    NoId,
    /// An id that Quarry never gave out.
    #[error("volume_id is {0:?}, which is not the id of a volume of ours")]
    NotOurs(String),
    /// An operation on that volume is under way.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The engine's reason.
    #[error(transparent)]
    Engine(#[from] ModifyError),
}

impl From<ModifyVolumeError> for Status {
    fn from(error: ModifyVolumeError) -> Self {
        use ModifyVolumeError as E;
        let code = match &error {
            // external-resizer calls the change infeasible by this code alone, and lets the user take it back.
            E::NoId | E::Engine(ModifyError::Parameter(_)) => Code::InvalidArgument,
            E::NotOurs(_) => Code::NotFound,
            E::Busy(_) => Code::Aborted,
            E::Engine(ModifyError::Find(error)) => status::of_find(error),
            E::Engine(ModifyError::Tags(TagChangeError::Unreadable(_))) => Code::Unavailable,
            E::Engine(ModifyError::Tags(_)) => Code::Internal,
        };
        status::from(code, &error)
    }
}

/// The volume to change.
///
/// # Errors
/// [`ModifyVolumeError`] for an id that cannot be one.
pub fn validate(request: &proto::ControllerModifyVolumeRequest) -> Result<VolumeHandle, ModifyVolumeError> {
    if request.volume_id.is_empty() {
        return Err(ModifyVolumeError::NoId);
    }
    VolumeHandle::parse(&request.volume_id).ok_or_else(|| ModifyVolumeError::NotOurs(request.volume_id.clone()))
}

/// Changes the volume, whose lock the caller holds.
///
/// # Errors
/// [`ModifyVolumeError::Engine`].
pub async fn modify(
    engine: &Engine,
    handle: VolumeHandle,
    request: proto::ControllerModifyVolumeRequest,
) -> Result<proto::ControllerModifyVolumeResponse, ModifyVolumeError> {
    engine.modify(&handle, &request.mutable_parameters).await?;
    Ok(proto::ControllerModifyVolumeResponse {})
}
