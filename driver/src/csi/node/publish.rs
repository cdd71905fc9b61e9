//! NodePublishVolume: shows a staged volume to one pod, a filesystem as a directory, a raw device as a file.
//!
//! **Invariant.** Only what is staged is shown, only where nothing else is mounted, and to a second pod only where the
//! access mode allows it.

use std::collections::HashMap;
use std::path::PathBuf;

use quarry_proto::csi::v1 as proto;
use tonic::{Code, Status};

use crate::csi::status;
use crate::device_number::DeviceNumber;
use crate::engine::recovery::pod_of_path;
use crate::engine::{Busy, FindError, UsageError};
use crate::filesystem::{DeviceError, MountError, MountTable, MountTableError, Mounted, TargetError, device, target};
use crate::journal::{JournalError, Pod};
use crate::volume::capability::{Access, CapabilityError};
use crate::volume::{Content, Stage, VolumeHandle};

use super::request::{self, RequestError, Use};
use super::stage::NODE_LAG;
use super::{Context, Volumes};

/// Why a volume was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishVolumeError {
    /// The request's ids and paths.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Its capability.
    #[error(transparent)]
    Capability(#[from] CapabilityError),
    /// The volume is something else.
    #[error("volume {handle} is a {is}; volume_capability asks for a {asked}")]
    OtherContent {
        /// The volume.
        handle: VolumeHandle,
        /// What it was created as.
        is: Content,
        /// What is asked for.
        asked: Content,
    },
    /// Staging is needed and was not named.
    #[error("staging_target_path is empty; a volume is staged before it is published")]
    NoStagingPath,
    /// Another operation is under way.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// There is no such volume here.
    #[error(transparent)]
    Find(#[from] FindError),
    /// The kernel does not say whether it is live.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// It is not staged.
    #[error("volume {handle} is not staged at {}: {found}", staging.display())]
    NotStaged {
        /// The volume.
        handle: VolumeHandle,
        /// Where it should be.
        staging: PathBuf,
        /// What is there.
        found: String,
    },
    /// One pod has it already.
    #[error(
        "volume {handle} is in use at {}; its access mode allows one pod at a time (ReadWriteOncePod)",
        user.display()
    )]
    SecondPod {
        /// The volume.
        handle: VolumeHandle,
        /// Where it is published.
        user: PathBuf,
    },
    /// Its node in `/dev` is not there.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The target or staging path cannot be used.
    #[error("{field}")]
    Path {
        /// Which.
        field: &'static str,
        /// Why.
        #[source]
        source: TargetError,
    },
    /// What is mounted is unknown.
    #[error(transparent)]
    Table(#[from] MountTableError),
    /// mount.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// What was done cannot be written down.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl From<PublishVolumeError> for Status {
    fn from(error: PublishVolumeError) -> Self {
        use PublishVolumeError as E;
        let code = match &error {
            E::Request(error) => error.code(),
            E::Capability(_)
            | E::OtherContent { .. }
            | E::Path {
                source: TargetError::NotADirectory { .. } | TargetError::NotAFile { .. } | TargetError::NotAbsolute(_),
                ..
            } => Code::InvalidArgument,
            E::Busy(_) => Code::Aborted,
            E::Find(error) => status::of_find(error),
            E::NoStagingPath
            | E::NotStaged { .. }
            | E::SecondPod { .. }
            | E::Mount(MountError::Occupied { .. } | MountError::TurnedReadOnly { .. }) => Code::FailedPrecondition,
            E::Mount(MountError::OtherwiseMounted { .. }) => Code::AlreadyExists,
            E::Journal(_) => Code::Unavailable,
            E::Usage(_) | E::Device(_) | E::Path { .. } | E::Table(_) | E::Mount(_) => Code::Internal,
        };
        status::from(code, &error)
    }
}

const TARGET: &str = "target_path";
const STAGING: &str = "staging_target_path";

/// A checked request.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The volume.
    pub handle: VolumeHandle,
    staging: PathBuf,
    target: PathBuf,
    used: Use,
    read_only: bool,
    pod: Option<Pod>,
}

/// Checks a request as far as it goes without looking at the volume.
pub fn validate<V: Volumes>(
    volumes: &V,
    request: &proto::NodePublishVolumeRequest,
) -> Result<Wish, PublishVolumeError> {
    let target = request::path(TARGET, &request.target_path)?;
    let used = Use::read(request.volume_capability.as_ref())?;
    if used.capability.content == Content::Block && request.readonly {
        // A read-only bind of a device node stops nobody from writing to the device.
        return Err(CapabilityError::ReadOnlyBlock { field: "readonly" }.into());
    }
    if request.staging_target_path.is_empty() {
        return Err(PublishVolumeError::NoStagingPath);
    }
    let staging = request::path(STAGING, &request.staging_target_path)?;
    let read_only = request.readonly || used.capability.access == Access::NodeReaders;
    // Last: what the request lacks is wrong whatever volume it means.
    let handle = request::volume(&request.volume_id, volumes.node())?;
    let pod = pod(&request.volume_context, &request.target_path);
    Ok(Wish { handle, staging, target, used, read_only, pod })
}

/// The pod, as kubelet names it (the CSIDriver object asks it to), or else as the target path does.
fn pod(context: &HashMap<String, String>, target: &str) -> Option<Pod> {
    let get = |key| context.get(key).filter(|value| !value.is_empty()).cloned();
    let uid = get("csi.storage.k8s.io/pod.uid").or_else(|| pod_of_path(target))?;
    let (namespace, name) = (get("csi.storage.k8s.io/pod.namespace"), get("csi.storage.k8s.io/pod.name"));
    Some(Pod { uid, namespace, name })
}

/// Publishes a volume whose lock the caller holds.
pub async fn publish<V: Volumes>(
    context: &Context<V>,
    wish: Wish,
) -> Result<proto::NodePublishVolumeResponse, PublishVolumeError> {
    let volume = context.volumes.find(&wish.handle).await?;
    let is = volume.tags.content;
    if !wish.used.fits(is) {
        return Err(PublishVolumeError::OtherContent { handle: wish.handle, is, asked: wish.used.capability.content });
    }
    let staging =
        request::place(&wish.staging).map_err(|source| PublishVolumeError::Path { field: STAGING, source })?;
    let staging = staging.unwrap_or_else(|| wish.staging.clone());
    let not_staged = |found: &str| PublishVolumeError::NotStaged {
        handle: wish.handle.clone(),
        staging: staging.clone(),
        found: found.to_owned(),
    };
    let device = match context.volumes.device(&volume).await? {
        Some(device) if volume.tags.stage != Stage::Unzeroed => device,
        Some(_) => return Err(not_staged("it is not zeroed yet")),
        None => return Err(not_staged("its device is not live")),
    };
    let number = DeviceNumber { major: device.major, minor: device.minor };

    let target = make_way(&wish)?;
    let table = MountTable::read()?;
    let published = table.at(&target).is_some();
    if !published && wish.used.capability.access == Access::OnePod {
        let others = |user: &PathBuf| *user != staging && *user != target;
        if let Some(user) = table.users_of(number).map(|mount| mount.target.clone()).find(others) {
            return Err(PublishVolumeError::SecondPod { handle: wish.handle.clone(), user });
        }
    }
    let in_target = |source| PublishVolumeError::Path { field: TARGET, source };
    if volume.tags.content == Content::Block {
        device::wait_for(&device.path, number, NODE_LAG).await?;
        if !published {
            target::make_file(&target).map_err(in_target)?;
        }
        context.filesystems.bind_node(&device.path, &target, number).await?;
    } else {
        let Some(staged) = table.at(&staging) else { return Err(not_staged("nothing is mounted there")) };
        if staged.mounted != Mounted::Filesystem(number) {
            return Err(not_staged(&format!("{} is mounted there", staged.describe())));
        }
        // A pod that runs may go on reading; none is begun on a volume that it cannot write to.
        let for_writing = !published && !staged.has("ro");
        if for_writing && (staged.filesystem_is_read_only() || !context.filesystems.takes_writes(&staging).await?) {
            return Err(MountError::TurnedReadOnly { target: staging }.into());
        }
        if !published {
            target::make_directory(&target).map_err(in_target)?;
        }
        context.filesystems.bind(&staging, &target, number, wish.read_only).await?;
    }
    context.volumes.record_published(&volume, &target, wish.pod, wish.read_only).await?;
    Ok(proto::NodePublishVolumeResponse {})
}

/// The target as the mount table names it; the folders above it are made if they are missing.
fn make_way(wish: &Wish) -> Result<PathBuf, PublishVolumeError> {
    let failed = |source| PublishVolumeError::Path { field: TARGET, source };
    if let Some(place) = request::place(&wish.target).map_err(failed)? {
        return Ok(place);
    }
    if let Some(parent) = wish.target.parent() {
        target::make_directory(parent).map_err(failed)?;
    }
    target::resolve(&wish.target).map_err(failed)
}
