//! A logical volume of ours, as it stands.

use crate::lvm::metadata::LvmUuid;
use crate::volume::{Bytes, LvName, Provisioning, Tags, VolumeHandle};

/// A volume of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// What Kubernetes calls it.
    pub handle: VolumeHandle,
    /// The name of its volume group.
    pub vg: String,
    /// The UUID of its volume group.
    pub vg_uuid: LvmUuid,
    /// Its UUID.
    pub uuid: LvmUuid,
    /// Its size.
    pub size: Bytes,
    /// Thin or thick.
    pub provisioning: Provisioning,
    /// The thin pool it lives in.
    pub pool: Option<String>,
    /// What its tags say.
    pub tags: Tags,
}

impl Volume {
    /// Its LV name.
    #[must_use]
    pub fn lv(&self) -> &LvName {
        &self.handle.lv
    }
}
