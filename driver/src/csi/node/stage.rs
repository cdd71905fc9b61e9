//! NodeStageVolume: the device is made live, and a filesystem is made where there is none, checked where there is one,
//! and mounted.
//!
//! **Invariant.** mkfs runs in two cases only: the volume's stage is `new` and its device is proven empty, or its stage
//! is `formatting`, so that a mkfs of ours was cut off before anything could be mounted. The stage `formatting` is on
//! disk before mkfs begins, and `formatted` before the first mount.

use std::path::PathBuf;
use std::time::Duration;

use quarry_proto::csi::v1 as proto;
use tonic::{Code, Status};

use crate::csi::status;
use crate::device_number::DeviceNumber;
use crate::engine::{ActivateError, Busy, Device, FindError, TagChangeError, Volume};
use crate::filesystem::{
    CheckError, Content as Found, DeviceError, FormatError, Ground, MountError, MountRequest, MountTable,
    MountTableError, ProbeError, Proof, TargetError, device, target,
};
use crate::journal::JournalError;
use crate::volume::capability::CapabilityError;
use crate::volume::parameters::{self, ParameterError};
use crate::volume::{Content, FilesystemType, Provisioning, Stage, VolumeHandle, tags};

use super::request::{self, RequestError, Use};
use super::{Context, Volumes};

/// How long a node in `/dev` may lag behind its live device.
pub(super) const NODE_LAG: Duration = Duration::from_secs(10);

/// Why a volume was not staged.
#[derive(Debug, thiserror::Error)]
pub enum StageVolumeError {
    /// The request's ids and paths.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Its capability.
    #[error(transparent)]
    Capability(#[from] CapabilityError),
    /// Its volume context.
    #[error("volume_context")]
    VolumeContext(#[source] ParameterError),
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
    /// The mkfs options are not those the volume was created with.
    #[error(
        "volume_context has the mkfs options {options:?}, which are not those that volume {handle} was created with; \
         take the volume context of CreateVolume"
    )]
    OtherOptions {
        /// The volume.
        handle: VolumeHandle,
        /// What was sent.
        options: String,
    },
    /// Another operation is under way.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// There is no such volume here.
    #[error(transparent)]
    Find(#[from] FindError),
    /// It still shows what earlier volumes left.
    #[error("volume {0} is not zeroed yet; its CreateVolume has to end first")]
    Unzeroed(VolumeHandle),
    /// It cannot be made live.
    #[error(transparent)]
    Activate(#[from] ActivateError),
    /// Its node in `/dev` is not there.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The staging path cannot be used.
    #[error("staging_target_path")]
    StagingPath(#[source] TargetError),
    /// What is mounted is unknown.
    #[error(transparent)]
    Table(#[from] MountTableError),
    /// What is on the device is unknown.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The device holds what it should not.
    #[error(
        "volume {handle} was never formatted by Quarry, yet {device} holds {found}; nothing is written to it. If that \
         may be lost, wipe it (`wipefs -a`); if not, copy it away"
    )]
    NotEmpty {
        /// The volume.
        handle: VolumeHandle,
        /// Its device.
        device: String,
        /// What is there.
        found: String,
    },
    /// The device does not hold what it should.
    #[error("volume {handle} was formatted as {expected}, yet {device} holds {found}; nothing is written to it")]
    Replaced {
        /// The volume.
        handle: VolumeHandle,
        /// Its filesystem.
        expected: FilesystemType,
        /// Its device.
        device: String,
        /// What is there.
        found: String,
    },
    /// A filesystem is mounted of a volume that never got one by us.
    #[error("volume {handle} was never formatted by Quarry, yet its device is mounted at {mounted}")]
    MountedUnformatted {
        /// The volume.
        handle: VolumeHandle,
        /// Where.
        mounted: String,
    },
    /// How far the preparation is could not be written down.
    #[error(transparent)]
    Stage(#[from] TagChangeError),
    /// mkfs.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// fsck.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// mount.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// What was done cannot be written down.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl From<StageVolumeError> for Status {
    fn from(error: StageVolumeError) -> Self {
        use StageVolumeError as E;
        let code = match &error {
            E::Request(error) => error.code(),
            E::Capability(_) | E::VolumeContext(_) | E::OtherContent { .. } | E::OtherOptions { .. } => {
                Code::InvalidArgument
            }
            E::Busy(_) => Code::Aborted,
            E::Find(error) => status::of_find(error),
            E::StagingPath(TargetError::NotADirectory { .. } | TargetError::NotAbsolute(_)) => Code::InvalidArgument,
            E::Unzeroed(_)
            | E::NotEmpty { .. }
            | E::Probe(ProbeError::Written { .. })
            | E::Replaced { .. }
            | E::MountedUnformatted { .. }
            | E::Mount(MountError::Occupied { .. } | MountError::TurnedReadOnly { .. }) => Code::FailedPrecondition,
            E::Mount(MountError::OtherwiseMounted { .. }) => Code::AlreadyExists,
            E::Activate(ActivateError::Unreadable(_)) | E::Stage(TagChangeError::Unreadable(_)) | E::Journal(_) => {
                Code::Unavailable
            }
            E::Activate(_)
            | E::Device(_)
            | E::StagingPath(_)
            | E::Table(_)
            | E::Probe(_)
            | E::Stage(_)
            | E::Format(_)
            | E::Check(_)
            | E::Mount(_) => Code::Internal,
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
    used: Use,
    mkfs_options: Vec<String>,
}

/// Checks a request as far as it goes without looking at the volume.
pub fn validate<V: Volumes>(volumes: &V, request: &proto::NodeStageVolumeRequest) -> Result<Wish, StageVolumeError> {
    let staging = request::path("staging_target_path", &request.staging_target_path)?;
    let used = Use::read(request.volume_capability.as_ref())?;
    let mkfs_options = parameters::from_context(&request.volume_context).map_err(StageVolumeError::VolumeContext)?;
    // Last: what the request lacks is wrong whatever volume it means.
    let handle = request::volume(&request.volume_id, volumes.node())?;
    Ok(Wish { handle, staging, used, mkfs_options })
}

/// Stages a volume whose lock the caller holds.
pub async fn stage<V: Volumes>(
    context: &Context<V>,
    wish: Wish,
) -> Result<proto::NodeStageVolumeResponse, StageVolumeError> {
    let volume = context.volumes.find(&wish.handle).await?;
    let is = volume.tags.content;
    if !wish.used.fits(is) {
        return Err(StageVolumeError::OtherContent { handle: wish.handle, is, asked: wish.used.capability.content });
    }
    if volume.tags.stage == Stage::Unzeroed {
        return Err(StageVolumeError::Unzeroed(wish.handle));
    }
    let staging = target::resolve(&wish.staging).map_err(StageVolumeError::StagingPath)?;
    if MountTable::read()?.at(&staging).is_none() {
        target::demand_directory(&staging).map_err(StageVolumeError::StagingPath)?;
    }
    let (device, number) = live_device(&*context.volumes, &volume).await?;
    if let Content::Filesystem(fs) = volume.tags.content {
        let place = Place { context, wish: &wish, staging: staging.clone(), device, number, fs };
        place.stage(volume.clone()).await?;
    }
    context.volumes.record_staged(&volume, &staging).await?;
    Ok(proto::NodeStageVolumeResponse {})
}

async fn live_device<V: Volumes>(volumes: &V, volume: &Volume) -> Result<(Device, DeviceNumber), StageVolumeError> {
    let device = volumes.activate(volume).await?;
    let number = DeviceNumber { major: device.major, minor: device.minor };
    device::wait_for(&device.path, number, NODE_LAG).await?;
    Ok((device, number))
}

/// A filesystem volume and where it is to be mounted.
struct Place<'a, V> {
    context: &'a Context<V>,
    wish: &'a Wish,
    staging: PathBuf,
    device: Device,
    number: DeviceNumber,
    fs: FilesystemType,
}

impl<V: Volumes> Place<'_, V> {
    async fn stage(&self, volume: Volume) -> Result<(), StageVolumeError> {
        let table = MountTable::read()?;
        let mounted = table.users_of(self.number).next();
        if let (Some(mount), true) = (mounted, volume.tags.stage != Stage::Formatted) {
            let (handle, mounted) = (volume.handle, mount.target.display().to_string());
            return Err(StageVolumeError::MountedUnformatted { handle, mounted });
        }
        if table.at(&self.staging).is_none() {
            self.prepare(volume, mounted.is_some()).await?;
        }
        // Mounts, or compares what is mounted there.
        let request = MountRequest {
            device: &self.device.path,
            number: self.number,
            target: &self.staging,
            fs: self.fs,
            flags: &self.wish.used.capability.mount_flags,
        };
        self.context.filesystems.mount(request).await?;
        Ok(())
    }

    /// Sees to it that there is a sound filesystem.
    async fn prepare(&self, volume: Volume, mounted: bool) -> Result<(), StageVolumeError> {
        let proof = match (volume.tags.stage, volume.provisioning) {
            (Stage::New, Provisioning::Thin) => Proof::Zeroes,
            _ => Proof::NoSignature,
        };
        let filesystems = &self.context.filesystems;
        let found = filesystems.probe(&self.device.path, volume.size.0, proof).await?;
        let expected = match &found {
            Found::Empty => None,
            Found::Found(signature) => Some(signature.kind.as_deref() == Some(self.fs.name())),
        };
        let ground = match (volume.tags.stage, expected) {
            (Stage::Formatted, Some(true)) if mounted => return Ok(()),
            (Stage::Formatted, Some(true)) => {
                filesystems.check(&self.device.path, self.fs).await?;
                return Ok(());
            }
            (Stage::Formatted, _) => return Err(self.replaced(volume, &found)),
            (Stage::New, None) if volume.provisioning == Provisioning::Thin => Ground::Unwritten,
            (Stage::New, None) => Ground::Leftovers,
            (Stage::Formatting, None | Some(true)) => Ground::CutOff,
            (Stage::New | Stage::Formatting, _) => {
                let (handle, device) = (volume.handle, self.device.path.display().to_string());
                return Err(StageVolumeError::NotEmpty { handle, device, found: name(&found) });
            }
            (Stage::Unzeroed, _) => return Err(StageVolumeError::Unzeroed(volume.handle)),
        };
        let options = &self.wish.mkfs_options;
        if tags::mkfs_hash(options) != volume.tags.mkfs_hash {
            let (handle, options) = (volume.handle, options.join(" "));
            return Err(StageVolumeError::OtherOptions { handle, options });
        }
        let volumes = &self.context.volumes;
        let volume = volumes.set_stage(&volume, Stage::Formatting).await?;
        filesystems.format(&self.device.path, self.fs, ground, options).await?;
        volumes.set_stage(&volume, Stage::Formatted).await?;
        Ok(())
    }

    fn replaced(&self, volume: Volume, found: &Found) -> StageVolumeError {
        let (handle, device) = (volume.handle, self.device.path.display().to_string());
        StageVolumeError::Replaced { handle, expected: self.fs, device, found: name(found) }
    }
}

fn name(found: &Found) -> String {
    match found {
        Found::Empty => "nothing".to_owned(),
        Found::Found(signature) => signature.name().to_owned(),
    }
}
