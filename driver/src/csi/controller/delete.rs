//! DeleteVolume.

use quarry_proto::csi::v1 as proto;
use tonic::{Code, Status};

use crate::csi::status;
use crate::engine::{Busy, DeleteError, Engine};
use crate::volume::VolumeHandle;

/// Why a volume was not deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteVolumeError {
    /// No id.
    #[error("volume_id is empty")]
    NoId,
    /// An operation on that volume is under way.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The engine's reason.
    #[error(transparent)]
    Engine(#[from] DeleteError),
}

impl From<DeleteVolumeError> for Status {
    fn from(error: DeleteVolumeError) -> Self {
        use DeleteVolumeError as E;
        let code = match &error {
            E::NoId => Code::InvalidArgument,
            E::Busy(_)
            | E::Engine(
                DeleteError::OutcomeUnknown { .. } | DeleteError::Appeared { .. } | DeleteError::Disappeared { .. },
            ) => Code::Aborted,
            E::Engine(DeleteError::OtherNode { .. } | DeleteError::InUse { .. } | DeleteError::Foreign { .. }) => {
                Code::FailedPrecondition
            }
            E::Engine(DeleteError::Unreadable(_) | DeleteError::Journal(_)) => Code::Unavailable,
            E::Engine(
                DeleteError::Lvm { .. } | DeleteError::Flush(_) | DeleteError::StillThere { .. } | DeleteError::Use(_),
            ) => Code::Internal,
        };
        status::from(code, &error)
    }
}

/// The volume to delete; nothing for an id that Quarry never gave out, whose deletion succeeds.
///
/// # Errors
/// [`DeleteVolumeError::NoId`].
pub fn validate(request: &proto::DeleteVolumeRequest) -> Result<Option<VolumeHandle>, DeleteVolumeError> {
    if request.volume_id.is_empty() {
        return Err(DeleteVolumeError::NoId);
    }
    let handle = VolumeHandle::parse(&request.volume_id);
    if handle.is_none() {
        tracing::warn!(
            volume_id = request.volume_id,
            "asked to delete a volume whose id is not one of ours: nothing to do"
        );
    }
    Ok(handle)
}

/// Deletes the volume, whose lock the caller holds.
///
/// # Errors
/// [`DeleteVolumeError::Engine`].
pub async fn delete(engine: &Engine, handle: VolumeHandle) -> Result<proto::DeleteVolumeResponse, DeleteVolumeError> {
    engine.delete(&handle).await?;
    Ok(proto::DeleteVolumeResponse {})
}
