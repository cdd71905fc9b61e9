//! Finds volumes.

use crate::volume::tags::{MARK, TagError};
use crate::volume::{LvName, VolumeHandle};

use super::group::Unreadable;
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
        if handle.node != self.node {
            return Err(FindError::OtherNode { handle: handle.clone(), here: self.node.to_string() });
        }
        let lv = &handle.lv;
        let Some((group, reading)) = self.groups.locate(lv).await? else {
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

    /// All volumes of ours on this node, freshly read.
    ///
    /// # Errors
    /// [`Unreadable`] when a group that holds or held volumes is not there or cannot be read whole: a shorter list
    /// would say that its volumes are gone.
    pub async fn list(&self) -> Result<Vec<Volume>, Unreadable> {
        self.groups.none_gone()?;
        let mut all = Vec::new();
        for group in self.groups.all() {
            let reading = group.read().await?;
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
