//! NodeGetVolumeStats: how full a volume is.
//!
//! **Invariant.** No process and no LVM: kubelet asks once a minute for each volume of each pod. Only what is really
//! mounted is measured; for an empty directory the system would answer with the node's own root filesystem.

use std::path::PathBuf;

use quarry_proto::csi::v1 as proto;
use quarry_proto::csi::v1::VolumeUsage;
use quarry_proto::csi::v1::volume_usage::Unit;
use tonic::{Code, Status};

use crate::csi::status;
use crate::filesystem::stats::Figures;
use crate::filesystem::{DeviceError, MountTable, MountTableError, Mounted, StatsError, TargetError};
use crate::volume::VolumeHandle;

use super::request::{self, RequestError};
use super::{Context, Volumes, owner};

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum VolumeStatsError {
    /// The request's ids and paths.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The path cannot be looked at.
    #[error("volume_path")]
    Path(#[source] TargetError),
    /// What is mounted is unknown.
    #[error(transparent)]
    Table(#[from] MountTableError),
    /// The volume is not there.
    #[error("volume {handle} is not at volume_path {}: {found}", path.display())]
    NotThere {
        /// The volume.
        handle: VolumeHandle,
        /// Where it should be.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// The filesystem does not answer.
    #[error(transparent)]
    Stats(#[from] StatsError),
    /// The device does not.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl From<VolumeStatsError> for Status {
    fn from(error: VolumeStatsError) -> Self {
        use VolumeStatsError as E;
        let code = match &error {
            E::Request(error) => error.code(),
            E::NotThere { .. } => Code::NotFound,
            E::Stats(StatsError::NoAnswer { .. }) => Code::Unavailable,
            E::Path(_) | E::Table(_) | E::Stats(_) | E::Device(_) => Code::Internal,
        };
        status::from(code, &error)
    }
}

/// Measures a published or staged volume.
pub async fn measure<V: Volumes>(
    context: &Context<V>,
    request: &proto::NodeGetVolumeStatsRequest,
) -> Result<proto::NodeGetVolumeStatsResponse, VolumeStatsError> {
    if request.volume_path.is_empty() {
        return Err(RequestError::Empty("volume_path").into());
    }
    let handle = request::volume(&request.volume_id, context.volumes.node())?;
    let path = PathBuf::from(&request.volume_path);
    let not_there = |found: &str| VolumeStatsError::NotThere {
        handle: handle.clone(),
        path: path.clone(),
        found: found.to_owned(),
    };
    // CSI wants NOT_FOUND for every path at which the volume is not, also for one at which none could be.
    if request::path("volume_path", &request.volume_path).is_err() {
        return Err(not_there("no volume is ever there, since the path is not absolute or does not end in a name"));
    }
    let Some(place) = request::place(&path).map_err(VolumeStatsError::Path)? else {
        return Err(not_there("no such folder"));
    };
    let table = MountTable::read()?;
    let Some(mount) = table.at(&place) else { return Err(not_there("nothing is mounted there")) };
    if !owner::is_of(mount, &handle) {
        return Err(not_there(&format!("{} is mounted there", mount.describe())));
    }
    let usage = if let Mounted::Node(number) = mount.mounted {
        // What of a raw device is in use, only its user knows.
        vec![usage(Unit::Bytes, Figures { total: number.size()?, ..Figures::default() })]
    } else {
        let figures = context.stats.usage(&place).await?;
        let mut usage = vec![usage(Unit::Bytes, figures.bytes)];
        // btrfs makes inodes at need and shows none; "0 of 0" would read as full.
        if figures.inodes.total > 0 {
            usage.push(self::usage(Unit::Inodes, figures.inodes));
        }
        usage
    };
    Ok(proto::NodeGetVolumeStatsResponse { usage })
}

fn usage(unit: Unit, figures: Figures) -> VolumeUsage {
    let figure = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    VolumeUsage {
        available: figure(figures.available),
        total: figure(figures.total),
        used: figure(figures.used),
        unit: unit.into(),
    }
}
