//! Deletes volumes.
//!
//! **Invariant.** "Gone" is told only when the metadata of the volume's group, read whole, does not show it any more,
//! and the disks' caches are flushed; for a volume that is not found, only when LVM itself affirms that no volume group
//! has it. LVM removes by UUID, so a name that changed hands meanwhile is safe.

use crate::journal::JournalError;
use crate::lvm::flush::{self, FlushError};
use crate::lvm::report;
use crate::lvm::runner::LvmError;
use crate::lvm::verbs;
use crate::volume::tags::MARK;
use crate::volume::{LvName, VolumeHandle};

use super::Engine;
use super::changes::Reason;
use super::group::Unreadable;
use super::groups::Freshness;
use super::usage::{Usage, UsageError};

/// Why a volume was not deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// It lives elsewhere.
    #[error("volume {handle} lives on node {}, this is node {here}", handle.node)]
    OtherNode {
        /// The volume.
        handle: VolumeHandle,
        /// This node.
        here: String,
    },
    /// Somebody uses it.
    #[error("volume {lv} is in use: {usage}")]
    InUse {
        /// The volume.
        lv: LvName,
        /// By whom.
        usage: Usage,
    },
    /// Whether somebody uses it could not be found out.
    #[error(transparent)]
    Use(#[from] UsageError),
    /// The LV of that name is not ours.
    #[error("logical volume {vg}/{lv} does not have the tag {MARK:?}: it is not Quarry's and is left alone")]
    Foreign {
        /// The group.
        vg: String,
        /// The name.
        lv: LvName,
    },
    /// A volume group that may hold it could not be read.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// LVM refused.
    #[error("cannot remove {vg}/{lv}")]
    Lvm {
        /// The group.
        vg: String,
        /// The volume.
        lv: LvName,
        /// LVM's reason.
        #[source]
        source: LvmError,
    },
    /// The command was lost.
    #[error("whether {vg}/{lv} was removed is not known yet")]
    OutcomeUnknown {
        /// The group.
        vg: String,
        /// The volume.
        lv: LvName,
        /// What happened.
        #[source]
        source: LvmError,
    },
    /// LVM reported success and the volume is still there.
    #[error("lvremove reported success, but the metadata of volume group {vg} still shows {lv}")]
    StillThere {
        /// The group.
        vg: String,
        /// The volume.
        lv: LvName,
    },
    /// Somebody else removed the volume in this very moment.
    #[error("volume group {vg} had {lv} a moment ago and has it no more; ask again")]
    Disappeared {
        /// The group.
        vg: String,
        /// The volume.
        lv: LvName,
    },
    /// LVM lists a volume that was not there a moment ago.
    #[error("volume group {vg} shows {lv} now and did not a moment ago; ask again")]
    Appeared {
        /// The group.
        vg: String,
        /// The volume.
        lv: LvName,
    },
    /// What is to be done, or was done, cannot be written down.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The volume is gone and may come back in a power cut.
    #[error(transparent)]
    Flush(#[from] FlushError),
}

impl Engine {
    /// Deletes the volume, or finds it gone. The caller holds its lock.
    ///
    /// # Errors
    /// [`DeleteError`].
    pub async fn delete(&self, handle: &VolumeHandle) -> Result<(), DeleteError> {
        if handle.node != self.node {
            return Err(DeleteError::OtherNode { handle: handle.clone(), here: self.node.to_string() });
        }
        let lv = &handle.lv;
        let found = match self.groups.locate(lv, Freshness::All).await {
            // Nobody but this driver could have made another one since.
            Err(_) if self.deleted.has(lv) => return Ok(()),
            found => found?,
        };
        let Some((group, _)) = found else {
            self.affirm_absent(lv).await?;
            return Ok(self.record_deleted(lv).await?);
        };
        let vg = group.name().to_owned();
        let mut writer = group.writer().await;
        writer.ready(self.runner.as_ref()).await?;
        let reading = group.read().await?;
        if !reading.is_ours(lv) {
            return match reading.has(lv) {
                true => Err(DeleteError::Foreign { vg, lv: lv.clone() }),
                false => Err(DeleteError::Disappeared { vg, lv: lv.clone() }),
            };
        }
        // LVM changes nothing in a group without one of its disks.
        if !reading.state().completeness.missing.is_empty() {
            let what = reading.state().completeness.to_string();
            return Err(Unreadable::Incomplete { vg, what }.into());
        }
        let Some(uuid) = reading.uuid_of(lv) else { return Err(DeleteError::Disappeared { vg, lv: lv.clone() }) };
        let usage = super::usage::of(reading.vg_uuid(), uuid).await?;
        if let Some(usage) = usage {
            return Err(DeleteError::InUse { lv: lv.clone(), usage });
        }
        // Others may change the group while the journal's disk works.
        drop(writer);
        let before = self.journaled().operations.get(lv).cloned();
        self.intend_delete(&uuid.to_string(), lv, &group).await?;
        let mut writer = group.writer().await;
        writer.ready(self.runner.as_ref()).await?;
        if let Err(source) = writer.run(self.runner.as_ref(), verbs::remove(&vg, lv, uuid)).await {
            if source.outcome_unknown() {
                return Err(DeleteError::OutcomeUnknown { vg, lv: lv.clone(), source });
            }
            drop(writer);
            // LVM refused, so somebody uses it after all: it is not being deleted.
            self.restore_intent(lv, before).await?;
            return Err(DeleteError::Lvm { vg, lv: lv.clone(), source });
        }
        let reading = group.read().await?;
        self.changes.hint(Reason::Deleted);
        if reading.uuid_of(lv).is_some_and(|present| present == uuid) {
            return Err(DeleteError::StillThere { vg, lv: lv.clone() });
        }
        flush::flush(reading.devices()).await?;
        drop(writer);
        self.record_deleted(lv).await?;
        self.deleted.note(lv);
        tracing::info!(volume = %lv, vg, "volume deleted");
        Ok(())
    }

    /// Asks LVM whether any volume group has the name. Every group that holds or held volumes of ours was read whole
    /// before this is called.
    async fn affirm_absent(&self, lv: &LvName) -> Result<(), DeleteError> {
        let unread = |source: Box<dyn std::error::Error + Send + Sync>| Unreadable::report(source);
        let reply = self.runner.run(verbs::list()).await.map_err(|error| unread(error.into()))?;
        let rows = report::parse(&reply.stdout).map_err(|error| unread(error.into()))?;
        if let Some(row) = rows.iter().find(|row| row.missing_pvs > 0) {
            return Err(Unreadable::incomplete(&row.vg).into());
        }
        match rows.iter().find(|row| row.lv == lv.as_str()) {
            None => {
                tracing::info!(volume = %lv, "asked to delete a volume that is gone already");
                Ok(())
            }
            Some(row) => Err(DeleteError::Appeared { vg: row.vg.clone(), lv: lv.clone() }),
        }
    }
}
