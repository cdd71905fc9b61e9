//! Makes a volume's device appear, and finds out whether it is there, without a process where it is.

use std::path::PathBuf;

use crate::lvm::dm_name;
use crate::lvm::runner::LvmError;
use crate::lvm::verbs;

use super::group::Unreadable;
use super::usage::{self, UsageError};
use super::{Engine, Volume};

/// A volume's block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its node in `/dev/mapper`.
    pub path: PathBuf,
    /// Its major number.
    pub major: u32,
    /// Its minor number; it changes at reboot.
    pub minor: u32,
}

/// Why a volume has no device.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// Its group is gone or unreadable.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// The kernel did not say whether it has one.
    #[error(transparent)]
    State(#[from] UsageError),
    /// LVM refused, or was lost.
    #[error("cannot activate {vg}/{lv}")]
    Lvm {
        /// The group.
        vg: String,
        /// The volume.
        lv: String,
        /// LVM's reason.
        #[source]
        source: LvmError,
    },
    /// LVM reported success and there is no device.
    #[error("{vg}/{lv} has no live device after it was activated")]
    NoDevice {
        /// The group.
        vg: String,
        /// The volume.
        lv: String,
    },
}

/// Why a volume's device is still there.
#[derive(Debug, thiserror::Error)]
pub enum DeactivateError {
    /// Its group is gone or unreadable.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// The kernel did not say whether it is there, or used.
    #[error(transparent)]
    State(#[from] UsageError),
    /// LVM refused, or was lost.
    #[error("cannot deactivate {vg}/{lv}")]
    Lvm {
        /// The group.
        vg: String,
        /// The volume.
        lv: String,
        /// LVM's reason.
        #[source]
        source: LvmError,
    },
}

impl Engine {
    /// The volume's device, activated if need be: no process when it is there.
    ///
    /// # Errors
    /// [`ActivateError`].
    pub async fn activate(&self, volume: &Volume) -> Result<Device, ActivateError> {
        if let Some(device) = self.device(volume).await? {
            return Ok(device);
        }
        let (vg, lv) = (&volume.vg, volume.lv());
        let group = self.groups.by_uuid(volume.vg_uuid)?;
        let mut writer = group.writer().await;
        writer.ready(self.runner.as_ref()).await?;
        let refused = |source| ActivateError::Lvm { vg: vg.clone(), lv: lv.to_string(), source };
        let mut activated = writer.run(self.runner.as_ref(), verbs::activate(vg, lv.as_str())).await;
        if activated.is_err() {
            // A lost command may have left the pool a transaction behind; repairing is harmless where it has not.
            writer.suspect();
            writer.ready(self.runner.as_ref()).await?;
            activated = writer.run(self.runner.as_ref(), verbs::activate(vg, lv.as_str())).await;
        }
        activated.map_err(refused)?;
        drop(writer);
        self.device(volume).await?.ok_or_else(|| ActivateError::NoDevice { vg: vg.clone(), lv: lv.to_string() })
    }

    /// Takes the volume's device away, when nobody uses it; where it is in use it stays, which is no error.
    ///
    /// # Errors
    /// [`DeactivateError`].
    pub async fn deactivate(&self, volume: &Volume) -> Result<(), DeactivateError> {
        if self.device(volume).await?.is_none() {
            return Ok(());
        }
        if let Some(user) = usage::of(volume.vg_uuid, volume.uuid).await? {
            tracing::info!(volume = %volume.lv(), %user, "device is in use and stays active");
            return Ok(());
        }
        let group = self.groups.by_uuid(volume.vg_uuid)?;
        let mut writer = group.writer().await;
        writer.ready(self.runner.as_ref()).await?;
        let command = verbs::deactivate(&volume.vg, volume.lv().as_str());
        let done = writer.run(self.runner.as_ref(), command).await;
        done.map(drop).map_err(|source| DeactivateError::Lvm {
            vg: volume.vg.clone(),
            lv: volume.lv().to_string(),
            source,
        })
    }

    /// The volume's device, if it has a live one.
    ///
    /// # Errors
    /// [`UsageError`] when the kernel does not say.
    pub async fn device(&self, volume: &Volume) -> Result<Option<Device>, UsageError> {
        let status = usage::status(volume.vg_uuid, volume.uuid).await?;
        let live = status.filter(|status| status.live_table && !status.suspended);
        Ok(live.map(|status| Device {
            path: PathBuf::from("/dev/mapper").join(dm_name::device_name(&volume.vg, volume.lv().as_str())),
            major: status.number.major,
            minor: status.number.minor,
        }))
    }
}
