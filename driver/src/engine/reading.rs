//! One reading of a volume group: what its metadata said at one moment.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::lvm::metadata::LvmUuid;
use crate::lvm::metadata::assemble::GroupState;
use crate::lvm::metadata::model;
use crate::volume::capacity::{GroupSpace, MetadataArea};
use crate::volume::tags::TagError;
use crate::volume::{Bytes, LvName, Provisioning, Tags, TopologyValue, VolumeHandle};

use super::Volume;

/// A volume group as it was read.
#[derive(Debug, Clone)]
pub struct Reading {
    state: GroupState,
}

impl Reading {
    /// Of a state of the metadata.
    #[must_use]
    pub fn new(state: GroupState) -> Self {
        Self { state }
    }

    /// Takes out the text that it was read from: it would double the reading's memory.
    pub fn take_text(&mut self) -> Option<Arc<[u8]>> {
        self.state.text.take()
    }

    /// The metadata's state.
    #[must_use]
    pub fn state(&self) -> &GroupState {
        &self.state
    }

    /// The group's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.state.group.name
    }

    /// The group's UUID.
    #[must_use]
    pub fn vg_uuid(&self) -> LvmUuid {
        self.state.group.uuid
    }

    /// The size of an extent.
    #[must_use]
    pub fn extent(&self) -> Bytes {
        Bytes(self.state.group.extent_size)
    }

    /// The devices of the physical volumes that are there.
    #[must_use]
    pub fn devices(&self) -> Vec<PathBuf> {
        self.state.devices.values().cloned().collect()
    }

    /// Bytes that LVM can give to a new volume from one of these devices; nothing where it is none of them.
    #[must_use]
    pub fn free_on(&self, device: &Path) -> Option<u64> {
        let (uuid, _) = self.state.devices.iter().find(|(_, path)| *path == device)?;
        let volume = self.state.group.physical_volumes.iter().find(|volume| volume.uuid == *uuid)?;
        Some(volume.allocatable_extents() * self.state.group.extent_size)
    }

    /// Whether it was read whole: only then does "not listed" mean "absent".
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.state.completeness.is_complete()
    }

    /// Whether the group has a logical volume of that name, ours or not.
    #[must_use]
    pub fn has(&self, lv: &LvName) -> bool {
        self.state.group.logical_volume(lv.as_str()).is_some()
    }

    /// Whether the group has a logical volume of that name with our tag.
    #[must_use]
    pub fn is_ours(&self, lv: &LvName) -> bool {
        self.state.group.logical_volume(lv.as_str()).is_some_and(is_ours)
    }

    /// The UUID of the logical volume of that name.
    #[must_use]
    pub fn uuid_of(&self, lv: &LvName) -> Option<LvmUuid> {
        self.state.group.logical_volume(lv.as_str()).map(|lv| lv.uuid)
    }

    /// The volume of ours with that name; nothing where there is none.
    ///
    /// # Errors
    /// [`TagError`] where it is ours and its tags are not understood.
    pub fn volume(&self, node: &TopologyValue, lv: &LvName) -> Result<Option<Volume>, TagError> {
        match self.state.group.logical_volume(lv.as_str()).filter(|lv| is_ours(lv)) {
            None => Ok(None),
            Some(found) => self.describe(node, lv.clone(), found).map(Some),
        }
    }

    /// All volumes of ours, each with its name; those with tags that are not understood as errors.
    pub fn volumes(&self, node: &TopologyValue) -> impl Iterator<Item = (String, Result<Volume, TagError>)> {
        let ours = self.state.group.logical_volumes.values().filter(|lv| is_ours(lv));
        ours.filter_map(|lv| Some((lv, LvName::parse(&lv.name)?)))
            .map(|(found, lv)| (found.name.clone(), self.describe(node, lv, found)))
    }

    /// Whether any logical volume is ours.
    #[must_use]
    pub fn holds_volumes(&self) -> bool {
        self.state.group.logical_volumes.values().any(is_ours)
    }

    /// The device classes of the volumes of ours. A volume whose tags do not tell it counts as one of a class without a name.
    #[must_use]
    pub fn classes(&self) -> BTreeSet<String> {
        let ours = self.state.group.logical_volumes.values().filter(|lv| is_ours(lv));
        let class = |lv: &model::LogicalVolume| {
            let tags = Tags::parse(&lv.tags.iter().cloned().collect());
            tags.map_or_else(|_| String::new(), |tags| tags.class)
        };
        ours.map(class).collect()
    }

    fn describe(&self, node: &TopologyValue, lv: LvName, found: &model::LogicalVolume) -> Result<Volume, TagError> {
        let (provisioning, pool) = match found.provisioning() {
            model::Provisioning::Thin { pool } => (Provisioning::Thin, Some(pool.to_owned())),
            // Every other layout (an admin may mirror or cache a volume) takes extents of its own.
            _ => (Provisioning::Thick, None),
        };
        Ok(Volume {
            handle: VolumeHandle { node: node.clone(), lv },
            vg: self.name().to_owned(),
            vg_uuid: self.vg_uuid(),
            uuid: found.uuid,
            size: Bytes(self.state.group.size_of(found)),
            provisioning,
            pool,
            tags: Tags::parse(&found.tags.iter().cloned().collect())?,
        })
    }

    /// The group's space.
    #[must_use]
    pub fn space(&self) -> GroupSpace {
        let group = &self.state.group;
        let visible = group.logical_volumes.values().filter(|lv| group.is_visible(lv)).count();
        let visible = u64::try_from(visible).unwrap_or(u64::MAX);
        GroupSpace {
            extent: self.extent(),
            total_extents: group.extent_count(),
            // Of `cling` that is less than there may be: several stretches of one physical volume would do.
            free_extents: match group.allocates_anywhere() {
                true => group.allocatable_extents(),
                false => group.longest_allocatable(),
            },
            spare: Bytes(group.pool_metadata_spare().map_or(0, |spare| group.size_of(spare))),
            metadata: MetadataArea {
                limit: self.state.room.largest_text,
                used: self.state.room.text,
                volumes: u64::try_from(group.logical_volumes.len()).unwrap_or(u64::MAX),
            },
            slots: (group.max_logical_volumes > 0).then(|| group.max_logical_volumes.saturating_sub(visible)),
            complete: self.is_complete(),
            changeable: group.writeable && !group.exported && group.lock_type.is_none(),
        }
    }
}

fn is_ours(lv: &model::LogicalVolume) -> bool {
    lv.has_tag(crate::volume::tags::MARK)
}
