//! Finds volumes.

use crate::volume::tags::{MARK, TagError};
use crate::volume::{LvName, VolumeHandle};

use super::group::Unreadable;
use super::groups::Freshness;
use super::{Engine, Volume};

/// Why a volume was not found.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// It lives elsewhere.
    #[error("volume {handle} lives on node {}, this is node {here}", handle.node)]
    OtherNode {
        /// The volume.
        handle: VolumeHandle,
        /// This node.
        here: String,
    },
    /// There was one, and its logical volume has vanished, affirmed.
    #[error(
        "volume {handle} was in volume group {vg}, and its logical volume has vanished: its data is lost. \
         `quarry-driver forget {}` accepts the loss",
        handle.lv
    )]
    Lost {
        /// The volume.
        handle: VolumeHandle,
        /// Where it was.
        vg: String,
    },
    /// There is none, affirmed.
    #[error("volume {0} does not exist on this node")]
    Absent(VolumeHandle),
    /// The LV of that name is not ours.
    #[error("logical volume {vg}/{lv} does not have the tag {MARK:?}: it is not Quarry's")]
    Foreign {
        /// The group.
        vg: String,
        /// The name.
        lv: LvName,
    },
    /// Its tags are not understood.
    #[error("logical volume {vg}/{lv}")]
    Tags {
        /// The group.
        vg: String,
        /// The name.
        lv: LvName,
        /// What about them.
        #[source]
        source: TagError,
    },
    /// A volume group that may hold it could not be read.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

impl Engine {
    /// The volume with that handle, freshly read from LVM's metadata.
    ///
    /// # Errors
    /// [`FindError`].
    pub async fn find(&self, handle: &VolumeHandle) -> Result<Volume, FindError> {
        self.find_among(handle, Freshness::All).await
    }

    /// The volume with that handle as it was last seen, where its disk hangs; for telling of it, not for using it.
    ///
    /// # Errors
    /// [`FindError`]; absent is a volume only where every group was read.
    pub async fn find_known(&self, handle: &VolumeHandle) -> Result<Volume, FindError> {
        match self.find_among(handle, Freshness::Known).await {
            // Of a group that hangs the last reading says what was there, not that there is no more.
            Err(FindError::Absent(_) | FindError::Lost { .. }) => self.find(handle).await,
            told => told,
        }
    }

    async fn find_among(&self, handle: &VolumeHandle, freshness: Freshness<'_>) -> Result<Volume, FindError> {
        if handle.node != self.node {
            return Err(FindError::OtherNode { handle: handle.clone(), here: self.node.to_string() });
        }
        let lv = &handle.lv;
        let Some((group, reading)) = self.groups.locate(lv, freshness).await? else {
            return Err(self.absent_or_lost(handle));
        };
        let vg = group.name().to_owned();
        match reading.volume(&self.node, lv) {
            Ok(Some(volume)) => Ok(volume),
            Ok(None) => Err(FindError::Foreign { vg, lv: lv.clone() }),
            Err(source) => Err(FindError::Tags { vg, lv: lv.clone(), source }),
        }
    }

    /// What it means that no volume group has it.
    fn absent_or_lost(&self, handle: &VolumeHandle) -> FindError {
        let known = self.journaled();
        let deleting = known.operations.contains_key(&handle.lv);
        match known.volumes.get(&handle.lv).filter(|_| !deleting) {
            Some(record) => FindError::Lost { handle: handle.clone(), vg: record.vg.clone() },
            None => FindError::Absent(handle.clone()),
        }
    }

    /// All volumes of ours on this node, freshly read; where a disk hangs, as they were last seen.
    ///
    /// # Errors
    /// [`Unreadable`] when a group that holds or held volumes is not there or its metadata cannot be read: a shorter
    /// list would say that its volumes are gone.
    pub async fn list(&self) -> Result<Vec<Volume>, Unreadable> {
        self.groups.none_gone()?;
        let mut all = Vec::new();
        for group in self.groups.all() {
            let reading = group.read_or_known().await?;
            if !reading.state().completeness.unread.is_empty() {
                let what = reading.state().completeness.to_string();
                return Err(Unreadable::Incomplete { vg: group.name().to_owned(), what });
            }
            for (lv, volume) in reading.volumes(&self.node) {
                match volume {
                    Ok(volume) => all.push(volume),
                    Err(source) => {
                        return Err(Unreadable::Group { vg: format!("{}/{lv}", group.name()), source: source.into() });
                    }
                }
            }
        }
        Ok(all)
    }
}
