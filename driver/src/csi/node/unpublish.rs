//! NodeUnpublishVolume: takes a volume away from a pod, and removes the place where it was.
//!
//! **Invariant.** LVM is not asked: a volume whose disk is lost must still be unpublished, or its pod never ends. And
//! what lies beneath the target is removed only if it is empty.

use std::path::PathBuf;

use quarry_proto::csi::v1 as proto;
use tonic::{Code, Status};

use crate::csi::status;
use crate::engine::Busy;
use crate::filesystem::{MountError, TargetError, target};
use crate::journal::Key;
use crate::volume::VolumeHandle;

use super::request::{self, RequestError};
use super::{Context, Volumes, owner};

/// Why a volume was not unpublished.
#[derive(Debug, thiserror::Error)]
pub enum UnpublishVolumeError {
    /// The request's ids and paths.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Another operation is under way.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The target cannot be looked at or removed.
    #[error("target_path")]
    Target(#[source] TargetError),
    /// umount, or something else is mounted there.
    #[error(transparent)]
    Mount(#[from] MountError),
}

impl From<UnpublishVolumeError> for Status {
    fn from(error: UnpublishVolumeError) -> Self {
        use UnpublishVolumeError as E;
        let code = match &error {
            E::Request(error) => error.code(),
            E::Busy(_) => Code::Aborted,
            E::Mount(MountError::Occupied { .. })
            | E::Target(TargetError::HoldsData(_) | TargetError::NotADirectory { .. }) => Code::FailedPrecondition,
            E::Target(_) | E::Mount(_) => Code::Internal,
        };
        status::from(code, &error)
    }
}

/// A checked request.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The volume.
    pub handle: VolumeHandle,
    target: PathBuf,
}

/// Checks a request.
pub fn validate<V: Volumes>(
    volumes: &V,
    request: &proto::NodeUnpublishVolumeRequest,
) -> Result<Wish, UnpublishVolumeError> {
    let target = request::path("target_path", &request.target_path)?;
    // Last: what the request lacks is wrong whatever volume it means.
    let handle = request::volume(&request.volume_id, volumes.node())?;
    Ok(Wish { handle, target })
}

/// Unpublishes a volume whose lock the caller holds.
pub async fn unpublish<V: Volumes>(
    context: &Context<V>,
    wish: Wish,
) -> Result<proto::NodeUnpublishVolumeResponse, UnpublishVolumeError> {
    let place = request::place(&wish.target).map_err(UnpublishVolumeError::Target)?;
    if let Some(place) = &place {
        let expected = format!("volume {}", wish.handle);
        context.filesystems.unmount(place, &expected, |mount| owner::is_of(mount, &wish.handle)).await?;
        target::remove(place).map_err(UnpublishVolumeError::Target)?;
    }
    let path = place.unwrap_or(wish.target).display().to_string();
    context.volumes.record_released(Key::Published(wish.handle.lv, path)).await;
    Ok(proto::NodeUnpublishVolumeResponse {})
}
