//! Changes the tags of a volume: how far it is, and what may change of what it asks for.

use crate::lvm::flush::{self, FlushError};
use crate::lvm::runner::LvmError;
use crate::lvm::verbs;
use crate::volume::tags::TagError;
use crate::volume::{Stage, Tags};

use super::group::Unreadable;
use super::{Engine, Volume};

/// Why a volume's tags were not changed.
#[derive(Debug, thiserror::Error)]
pub enum TagChangeError {
    /// Its group is gone or unreadable.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// LVM refused, or was lost.
    #[error("cannot change the tags of {vg}/{lv} from {from:?} to {to:?}")]
    Lvm {
        /// The group.
        vg: String,
        /// The volume.
        lv: String,
        /// The tags it has and should not.
        from: Vec<String>,
        /// The tags it was to get.
        to: Vec<String>,
        /// LVM's reason.
        #[source]
        source: LvmError,
    },
    /// The new tags may not survive a power cut.
    #[error(transparent)]
    Flush(#[from] FlushError),
    /// The volume is gone, or its tags are not what they should be.
    #[error("volume {vg}/{lv} does not show the tags {to:?} after they were set")]
    NotShown {
        /// The group.
        vg: String,
        /// The volume.
        lv: String,
        /// The tags it was to get.
        to: Vec<String>,
        /// What is wrong with the tags, where they are the reason.
        #[source]
        source: Option<TagError>,
    },
}

impl Engine {
    /// Replaces the volume's stage.
    ///
    /// # Errors
    /// [`TagChangeError`].
    pub async fn set_stage(&self, volume: &Volume, stage: Stage) -> Result<Volume, TagChangeError> {
        self.set_tags(volume, Tags { stage, ..volume.tags.clone() }).await
    }

    /// Replaces the tags that differ: one command, on disk when this returns. Tags that are not ours stay.
    ///
    /// # Errors
    /// [`TagChangeError`].
    pub(super) async fn set_tags(&self, volume: &Volume, tags: Tags) -> Result<Volume, TagChangeError> {
        let (vg, lv) = (volume.vg.clone(), volume.lv());
        let (has, wants) = (volume.tags.to_lvm(), tags.to_lvm());
        let only = |one: &[String], other: &[String]| -> Vec<String> {
            one.iter().filter(|tag| !other.contains(tag)).cloned().collect()
        };
        let (from, to) = (only(&has, &wants), only(&wants, &has));
        if from.is_empty() && to.is_empty() {
            return Ok(volume.clone());
        }
        let group = self.groups.by_uuid(volume.vg_uuid)?;
        let mut writer = group.writer().await;
        writer.ready(self.runner.as_ref()).await?;
        let command = verbs::retag(&vg, lv, &from, &to);
        writer.run(self.runner.as_ref(), command).await.map_err(|source| TagChangeError::Lvm {
            vg: vg.clone(),
            lv: lv.to_string(),
            from,
            to: to.clone(),
            source,
        })?;
        let reading = group.read().await?;
        flush::flush(reading.devices()).await?;
        let not_shown = |source| TagChangeError::NotShown { vg, lv: lv.to_string(), to, source };
        match reading.volume(&self.node, lv) {
            Ok(Some(now)) if now.tags == tags => Ok(now),
            Ok(_) => Err(not_shown(None)),
            Err(error) => Err(not_shown(Some(error))),
        }
    }
}
