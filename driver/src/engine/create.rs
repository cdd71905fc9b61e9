//! Makes volumes.
//!
//! **Invariant.** A volume is made by one `lvcreate` with all its tags. Success is told only when the volume group's
//! metadata says so, and the disks' caches are flushed. A repeated request finds the volume and compares what shapes it.

use crate::config::DeviceClass;
use crate::journal::{Claim, JournalError, OperationKind, Origin};
use crate::lvm::flush::{self, FlushError};
use crate::lvm::runner::LvmError;
use crate::lvm::verbs;
use crate::volume::capacity::{Bound, PoolGrowth, PoolPlan, PoolStep};
use crate::volume::io::IoWish;
use crate::volume::size::{SizeError, SizeRange};
use crate::volume::tags::{self, POOL_MARK, TagError};
use crate::volume::{Bytes, Content, LvName, Provisioning, Stage, Tags};

use super::changes::Reason;
use super::group::{Group, Unreadable};
use super::groups::Freshness;
use super::pod::{NotTogether, PodClaim};
use super::room;
use super::underway::Place;
use super::{Engine, Volume};

/// A checked request for a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateRequest {
    /// The name in the request.
    pub csi_name: String,
    /// The LV name that follows from it.
    pub lv: LvName,
    /// What kind of disk.
    pub device_class: String,
    /// Thin or thick.
    pub provisioning: Provisioning,
    /// Filesystem or raw block.
    pub content: Content,
    /// Arguments for mkfs.
    pub mkfs_options: Vec<String>,
    /// A share of the disk, and limits; they shape nothing.
    pub io: IoWish,
    /// How large.
    pub range: SizeRange,
    /// The claim it is for, where csi-provisioner says; it shapes nothing.
    pub claim: Option<Claim>,
    /// The other claims of the pod that waits for this one, as far as somebody says; empty where it stands alone.
    pub siblings: Vec<PodClaim>,
}

impl CreateRequest {
    /// As one of several claims of a pod; nothing where it is not one.
    pub(super) fn as_pod_claim(&self, size: Bytes) -> Option<PodClaim> {
        let claim = self.claim.clone().filter(|_| !self.siblings.is_empty())?;
        Some(PodClaim {
            claim,
            lv: self.lv.clone(),
            class: self.device_class.clone(),
            provisioning: self.provisioning,
            content: self.content,
            requested: self.range.required.unwrap_or(size),
        })
    }
}

/// Why a volume was not made, or not seen to be.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// This node has no such device class.
    #[error("node {node} has no device class {class:?}; it has {known}")]
    NoClass {
        /// This node.
        node: String,
        /// What was asked for.
        class: String,
        /// What there is.
        known: String,
    },
    /// This node has no such volume group.
    #[error("node {node} has no volume group {vg:?}, which its device class {class:?} names")]
    NoGroup {
        /// This node.
        node: String,
        /// The class.
        class: String,
        /// The group.
        vg: String,
    },
    /// There is not enough room.
    #[error(
        "no room for {wanted} {provisioning} in volume group {vg} of node {node}: at most {largest} now; what limits it is {bound}"
    )]
    NoRoom {
        /// This node.
        node: String,
        /// The group.
        vg: String,
        /// The volume's size.
        wanted: Bytes,
        /// Thin or thick.
        provisioning: Provisioning,
        /// The largest possible.
        largest: Bytes,
        /// Why.
        bound: Bound,
    },
    /// Nobody knows whether there is enough room.
    #[error("the kernel did not tell in time how full thin pool {vg}/{pool} of node {node} is; ask again")]
    RoomUnknown {
        /// This node.
        node: String,
        /// The group.
        vg: String,
        /// The pool.
        pool: String,
    },
    /// It would fit, and the other claims of its pod would not.
    #[error(
        "claims {} of one pod need {} together, node {node} has room for {}: none of them is made here, so that the pod \
         can go to a node where all fit", refused.claims, refused.needed, refused.rooms
    )]
    NotTogether {
        /// This node.
        node: String,
        /// The claims, and what there is.
        refused: NotTogether,
    },
    /// No size in whole extents fits.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// A volume group could not be read, so nobody knows whether the volume exists.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// The volume exists, with other properties.
    #[error("volume {lv} exists with {field} {existing}; the request says {requested}")]
    Different {
        /// The volume.
        lv: LvName,
        /// What differs.
        field: &'static str,
        /// What is there.
        existing: String,
        /// What was asked for.
        requested: String,
    },
    /// The name belongs to a logical volume that is not ours.
    #[error(
        "volume group {vg} has a logical volume {lv} without the tag {:?}: it is not Quarry's and is left alone",
        tags::MARK
    )]
    Foreign {
        /// The group.
        vg: String,
        /// The name.
        lv: LvName,
    },
    /// The volume exists and its tags are not understood.
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
    /// LVM refused; nothing was made.
    #[error("cannot make {what} in volume group {vg}")]
    Lvm {
        /// The group.
        vg: String,
        /// A volume or the pool.
        what: String,
        /// LVM's reason.
        #[source]
        source: LvmError,
    },
    /// The command was lost: whether the volume exists is to be seen.
    #[error("whether {what} was made in volume group {vg} is not known yet")]
    OutcomeUnknown {
        /// The group.
        vg: String,
        /// A volume or the pool.
        what: String,
        /// What happened.
        #[source]
        source: LvmError,
    },
    /// LVM reported success and its metadata does not show the volume.
    #[error("lvcreate reported success, but the metadata of volume group {vg} does not show {lv}")]
    Vanished {
        /// The group.
        vg: String,
        /// The name.
        lv: LvName,
    },
    /// LVM reported success and its metadata does not show a larger pool.
    #[error("lvextend reported success, but the metadata of volume group {vg} shows thin pool {pool} as it was")]
    NotGrown {
        /// The group.
        vg: String,
        /// The pool.
        pool: String,
    },
    /// The volume was made and may be lost in a power cut.
    #[error(transparent)]
    Flush(#[from] FlushError),
    /// What is to be done, or was done, cannot be written down.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The volume was made once, and is not there any more.
    #[error(
        "volume {lv} was made before, in volume group {vg}, and its logical volume has vanished: it is not made anew, \
         since its data is lost. `quarry-driver forget {lv}` accepts the loss"
    )]
    Lost {
        /// The volume.
        lv: LvName,
        /// Where it was.
        vg: String,
    },
    /// Its deletion was begun.
    #[error("volume {0} is being deleted")]
    BeingDeleted(LvName),
    /// The volume was made, and making it usable (zeroing, activating) failed; it goes on at the next request.
    #[error("volume {lv} exists and is not ready")]
    Unprepared {
        /// The name.
        lv: LvName,
        /// What failed.
        #[source]
        source: super::prepare::PrepareError,
    },
}

impl Engine {
    /// Makes the volume, or finds it made. The caller holds its lock.
    ///
    /// # Errors
    /// [`CreateError`].
    pub async fn create(&self, request: &CreateRequest) -> Result<Volume, CreateError> {
        let volume = match self.existing(request).await? {
            Some(volume) => {
                let finished = self.finish_creation(&volume).await;
                finished.map_err(|source| CreateError::Unprepared { lv: request.lv.clone(), source })?;
                volume
            }
            None => self.make(request).await?,
        };
        let prepared = self.prepare(&volume).await;
        let volume = prepared.map_err(|source| CreateError::Unprepared { lv: request.lv.clone(), source })?;
        self.record_created(&volume, request.claim.clone(), Origin::Asked).await?;
        if request.claim.as_ref().is_some_and(|claim| self.holds.forget(claim)) {
            self.changes.hint(Reason::HoldEnded);
        }
        Ok(volume)
    }

    /// The volume of that name wherever it is on this node, compared with the request.
    async fn existing(&self, request: &CreateRequest) -> Result<Option<Volume>, CreateError> {
        let class = self.config.class(&request.device_class);
        let own = class.and_then(|class| self.groups.by_name(&class.volume_group));
        let freshness =
            own.map_or(Freshness::All, |group| Freshness::For { group: group.uuid(), class: &request.device_class });
        let Some((group, reading)) = self.groups.locate(&request.lv, freshness).await? else { return Ok(None) };
        let vg = group.name().to_owned();
        let lv = request.lv.clone();
        if !reading.is_ours(&lv) {
            return Err(CreateError::Foreign { vg, lv });
        }
        let volume = reading
            .volume(&self.node, &lv)
            .map_err(|source| CreateError::Tags { vg, lv: lv.clone(), source })?
            .ok_or_else(|| CreateError::Vanished { vg: group.name().to_owned(), lv })?;
        if self.journaled().begun(&request.lv) == Some(OperationKind::Delete) {
            return Err(CreateError::BeingDeleted(request.lv.clone()));
        }
        compare(&volume, request)?;
        Ok(Some(volume))
    }

    /// Makes a volume of which it is affirmed that there is none.
    async fn make(&self, request: &CreateRequest) -> Result<Volume, CreateError> {
        let known = self.journaled();
        if let Some(record) = known.volumes.get(&request.lv) {
            if known.begun(&request.lv) != Some(OperationKind::Delete) {
                // It is lost only if its own group was read whole and does not show it.
                let group = self.groups.all().into_iter().find(|group| group.uuid().to_string() == record.vg_uuid);
                let (vg, uuid) = (record.vg.clone(), record.vg_uuid.clone());
                let reading = group.ok_or(Unreadable::Gone { vg, uuid })?.read().await?;
                if !reading.is_complete() {
                    let what = reading.state().completeness.to_string();
                    return Err(Unreadable::Incomplete { vg: record.vg.clone(), what }.into());
                }
                return Err(CreateError::Lost { lv: request.lv.clone(), vg: record.vg.clone() });
            }
            // Its deletion was done and only not written down.
            self.record_deleted(&request.lv).await?;
        }
        let (class, group) = self.class_and_group(&request.device_class).await?;
        // What cannot be is refused before anything is written.
        let reading = group.known();
        let size = request.range.volume_size(request.content, reading.extent())?;
        let place = self.set_aside(request, &class, &group, size).await?;
        self.intend_create(&request.lv, &group, request.claim.clone()).await?;
        let made = self.make_intended(request, &class, &group, &place).await;
        if made.is_err() {
            self.take_back(&request.lv, &group).await;
        }
        made
    }

    /// After a creation that failed: the intent goes when nothing was made. Where that cannot be seen, it stays, and the
    /// next request, or the next start, decides.
    async fn take_back(&self, lv: &LvName, group: &Group) {
        let nothing_made = group.read().await.is_ok_and(|reading| reading.is_complete() && !reading.has(lv));
        if nothing_made && let Err(error) = self.drop_intent(lv).await {
            tracing::error!(%error, volume = %lv, "the intent of a creation that made nothing stays in the journal");
        }
    }

    async fn make_intended(
        &self,
        request: &CreateRequest,
        class: &DeviceClass,
        group: &Group,
        place: &Place<'_>,
    ) -> Result<Volume, CreateError> {
        let mut writer = group.writer().await;
        writer.ready(self.runner.as_ref()).await?;
        let mut reading = group.read().await?;
        let size = request.range.volume_size(request.content, reading.extent())?;
        let mut step = self.admit(place, class, &reading, request.provisioning, size).await?;
        if matches!(step, PoolStep::Make(_))
            && self.clear_unfinished_pool(group, &mut writer, &reading, &class.thin_pool).await?
        {
            reading = group.read().await?;
            step = self.admit(place, class, &reading, request.provisioning, size).await?;
        }
        match step {
            PoolStep::AsIs => {}
            PoolStep::Make(plan) => self.make_pool(group, &mut writer, &class.thin_pool, &plan).await?,
            PoolStep::Grow(growth) => self.grow_pool(group, &mut writer, &class.thin_pool, &growth).await?,
        }
        let stage = if request.provisioning == Provisioning::Thick && request.content == Content::Block {
            Stage::Unzeroed
        } else {
            Stage::New
        };
        let tags =
            Tags::new(&class.name, request.content, stage, &request.mkfs_options, &request.csi_name, &request.lv)
                .with_io(request.io);
        let command = match request.provisioning {
            Provisioning::Thin => verbs::create_thin(group.name(), &class.thin_pool, &request.lv, size, &tags.to_lvm()),
            Provisioning::Thick => {
                let extents = size.0 / reading.extent().0;
                let wipe = request.content != Content::Block;
                verbs::create_thick(group.name(), &request.lv, extents, wipe, &tags.to_lvm())
            }
        };
        self.run_create(group, &mut writer, command, format!("volume {}", request.lv)).await?;
        let reading = group.read().await?;
        self.changes.hint(Reason::Made);
        flush::flush(reading.devices()).await?;
        drop(writer);
        tracing::info!(volume = %request.lv, vg = group.name(), %size, provisioning = %request.provisioning, content = %request.content, "volume made");
        reading
            .volume(&self.node, &request.lv)
            .map_err(|source| CreateError::Tags { vg: group.name().to_owned(), lv: request.lv.clone(), source })?
            .ok_or_else(|| CreateError::Vanished { vg: group.name().to_owned(), lv: request.lv.clone() })
    }

    /// Removes what a killed `lvcreate` left of the pool that is to be made. True if there was something.
    async fn clear_unfinished_pool(
        &self,
        group: &Group,
        writer: &mut super::group::Writer<'_>,
        reading: &super::Reading,
        pool: &str,
    ) -> Result<bool, CreateError> {
        let found = reading.state().group.logical_volume(pool);
        let Some(left) = found.filter(|lv| room::is_unfinished_pool(lv)) else { return Ok(false) };
        tracing::warn!(vg = group.name(), pool, "removing what a killed lvcreate left of the thin pool");
        let command = verbs::remove(group.name(), pool, left.uuid);
        self.run_create(group, writer, command, format!("room for thin pool {pool}")).await?;
        Ok(true)
    }

    async fn make_pool(
        &self,
        group: &Group,
        writer: &mut super::group::Writer<'_>,
        pool: &str,
        plan: &PoolPlan,
    ) -> Result<(), CreateError> {
        let command = verbs::create_pool(group.name(), pool, plan, POOL_MARK);
        self.run_create(group, writer, command, format!("thin pool {pool}")).await?;
        self.changes.hint(Reason::PoolMade);
        tracing::info!(vg = group.name(), pool, data = %plan.data, metadata = %plan.metadata, chunk = %plan.chunk, "thin pool made");
        Ok(())
    }

    /// Enlarges a thin pool that the driver made. It is on disk when this returns: should the volume then fail, the pool
    /// stays as large, for the next one.
    async fn grow_pool(
        &self,
        group: &Group,
        writer: &mut super::group::Writer<'_>,
        pool: &str,
        growth: &PoolGrowth,
    ) -> Result<(), CreateError> {
        let command = verbs::grow_pool(group.name(), pool, growth);
        self.run_create(group, writer, command, format!("room in thin pool {pool}")).await?;
        let reading = group.read().await?;
        self.changes.hint(Reason::PoolGrown);
        let metadata = &reading.state().group;
        let lv = metadata.logical_volume(pool);
        let size = lv.map(|lv| metadata.size_of(lv));
        let own = lv.and_then(|lv| metadata.logical_volume(&lv.thin_pool()?.metadata)).map(|lv| metadata.size_of(lv));
        let reached = |wanted: Option<Bytes>, is: Option<u64>| wanted.is_none_or(|wanted| is >= Some(wanted.0));
        if !reached(growth.data, size) || !reached(growth.metadata, own) {
            return Err(CreateError::NotGrown { vg: group.name().to_owned(), pool: pool.to_owned() });
        }
        flush::flush(reading.devices()).await?;
        tracing::info!(vg = group.name(), pool, size, metadata = own, "thin pool enlarged");
        Ok(())
    }

    async fn run_create(
        &self,
        group: &Group,
        writer: &mut super::group::Writer<'_>,
        command: crate::lvm::command::Command,
        what: String,
    ) -> Result<(), CreateError> {
        let vg = group.name().to_owned();
        match writer.run(self.runner.as_ref(), command).await {
            Ok(_) => Ok(()),
            Err(source) if source.outcome_unknown() => Err(CreateError::OutcomeUnknown { vg, what, source }),
            Err(source) => Err(CreateError::Lvm { vg, what, source }),
        }
    }
}

/// Whether an existing volume is what a repeated request asks for. Metadata keys, secrets and order do not count.
fn compare(volume: &Volume, request: &CreateRequest) -> Result<(), CreateError> {
    let different = |field, existing: String, requested: String| {
        Err(CreateError::Different { lv: request.lv.clone(), field, existing, requested })
    };
    if let Some(name) = &volume.tags.csi_name
        && *name != request.csi_name
    {
        return different("name", name.clone(), request.csi_name.clone());
    }
    if volume.tags.class != request.device_class {
        return different("deviceClass", volume.tags.class.clone(), request.device_class.clone());
    }
    if volume.provisioning != request.provisioning {
        return different("provisioning", volume.provisioning.to_string(), request.provisioning.to_string());
    }
    if volume.tags.content != request.content {
        return different("content", volume.tags.content.to_string(), request.content.to_string());
    }
    let hash = tags::mkfs_hash(&request.mkfs_options);
    if volume.tags.mkfs_hash != hash {
        let say =
            |hash: &Option<String>| hash.as_ref().map_or("none".to_owned(), |hash| format!("with the hash {hash}"));
        return different("mkfsOptions", say(&volume.tags.mkfs_hash), say(&hash));
    }
    if !request.range.contains(volume.size) {
        let say = |bytes: Option<Bytes>| bytes.map_or("any".to_owned(), |bytes| bytes.to_string());
        let requested = format!("at least {}, at most {}", say(request.range.required), say(request.range.limit));
        return different("size", volume.size.to_string(), requested);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvm::metadata::LvmUuid;
    use crate::volume::{FilesystemType, TopologyValue, VolumeHandle};

    fn request() -> CreateRequest {
        CreateRequest {
            csi_name: "pvc-1".into(),
            lv: LvName::for_csi_name("pvc-1").unwrap(),
            device_class: "default".into(),
            provisioning: Provisioning::Thin,
            content: Content::Filesystem(FilesystemType::Ext4),
            mkfs_options: vec![],
            io: IoWish::default(),
            range: SizeRange::new(1 << 30, 0).unwrap(),
            claim: None,
            siblings: vec![],
        }
    }

    fn volume(request: &CreateRequest) -> Volume {
        Volume {
            handle: VolumeHandle { node: TopologyValue::for_node("n"), lv: request.lv.clone() },
            vg: "quarry".into(),
            vg_uuid: LvmUuid::from_bytes(&[b'u'; 32]).unwrap(),
            uuid: LvmUuid::from_bytes(&[b'v'; 32]).unwrap(),
            size: Bytes(1 << 30),
            provisioning: request.provisioning,
            pool: None,
            tags: Tags::new(
                &request.device_class,
                request.content,
                Stage::Formatted,
                &request.mkfs_options,
                &request.csi_name,
                &request.lv,
            ),
        }
    }

    #[test]
    fn a_repeated_request_is_compared_in_what_shapes_the_volume() {
        let volume = volume(&request());
        assert!(compare(&volume, &request()).is_ok());
        type Change = fn(&mut CreateRequest);
        let changes: [(Change, &str); 5] = [
            (|r| r.device_class = "nvme".into(), "deviceClass"),
            (|r| r.provisioning = Provisioning::Thick, "provisioning"),
            (|r| r.content = Content::Block, "content"),
            (|r| r.mkfs_options = vec!["-K".into()], "mkfsOptions"),
            (|r| r.range = SizeRange::new(2 << 30, 0).unwrap(), "size"),
        ];
        for (change, named) in changes {
            let mut request = request();
            change(&mut request);
            assert!(
                matches!(compare(&volume, &request), Err(CreateError::Different { field, .. }) if field == named),
                "{named}"
            );
        }
    }
}
