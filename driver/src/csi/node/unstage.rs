//! NodeUnstageVolume: unmounts.
//!
//! The device stays live. Taking it away would cost an LVM command here and another at the next stage, both waiting for
//! the volume group's writer, and would save a few kilobytes of kernel memory; deleting a volume takes its device away
//! in the same command anyway, and after a reboot NodeStageVolume makes it live again.
//!
//! **Invariant.** LVM is not asked: a volume whose disk is lost must still be unstaged.

use std::path::PathBuf;

use quarry_proto::csi::v1 as proto;
use tonic::{Code, Status};

use crate::csi::status;
use crate::engine::Busy;
use crate::filesystem::{MountError, TargetError};
use crate::journal::Key;
use crate::volume::VolumeHandle;

use super::request::{self, RequestError};
use super::{Context, Volumes, owner};

/// Why a volume was not unstaged.
#[derive(Debug, thiserror::Error)]
pub enum UnstageVolumeError {
    /// The request's ids and paths.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Another operation is under way.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The staging path cannot be looked at.
    #[error("staging_target_path")]
    StagingPath(#[source] TargetError),
    /// umount, or something else is mounted there.
    #[error(transparent)]
    Mount(#[from] MountError),
}

impl From<UnstageVolumeError> for Status {
    fn from(error: UnstageVolumeError) -> Self {
        use UnstageVolumeError as E;
        let code = match &error {
            E::Request(error) => error.code(),
            E::Busy(_) => Code::Aborted,
            E::Mount(MountError::Occupied { .. }) => Code::FailedPrecondition,
            E::StagingPath(_) | E::Mount(_) => Code::Internal,
        };
        status::from(code, &error)
    }
}

/// A checked request.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The volume.
    pub handle: VolumeHandle,
    staging: PathBuf,
}

/// Checks a request.
pub fn validate<V: Volumes>(
    volumes: &V,
    request: &proto::NodeUnstageVolumeRequest,
) -> Result<Wish, UnstageVolumeError> {
    let staging = request::path("staging_target_path", &request.staging_target_path)?;
    // Last: what the request lacks is wrong whatever volume it means.
    let handle = request::volume(&request.volume_id, volumes.node())?;
    Ok(Wish { handle, staging })
}

/// Unstages a volume whose lock the caller holds. The directory is its maker's to remove.
pub async fn unstage<V: Volumes>(
    context: &Context<V>,
    wish: Wish,
) -> Result<proto::NodeUnstageVolumeResponse, UnstageVolumeError> {
    let place = request::place(&wish.staging).map_err(UnstageVolumeError::StagingPath)?;
    if let Some(staging) = &place {
        let expected = format!("volume {}", wish.handle);
        context.filesystems.unmount(staging, &expected, |mount| owner::is_of(mount, &wish.handle)).await?;
    }
    let path = place.unwrap_or(wish.staging).display().to_string();
    context.volumes.record_released(Key::Staged(wish.handle.lv, path)).await;
    Ok(proto::NodeUnstageVolumeResponse {})
}
