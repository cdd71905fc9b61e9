//! Makes volumes.
//!
//! **Invariant.** A volume is made by one `lvcreate` with all its tags. Success is told only when the volume group's
//! metadata says so, and the disks' caches are flushed. A repeated request finds the volume and compares what shapes it.

mod error;
mod pool;
mod request;

use crate::config::DeviceClass;
use crate::journal::{OperationKind, Origin};
use crate::lvm::flush;
use crate::lvm::verbs;
use crate::volume::capacity::PoolStep;
use crate::volume::{Content, LvName, Provisioning, Stage, Tags};

use super::changes::Reason;
use super::group::{Group, Unreadable, Writer};
use super::groups::Freshness;
use super::underway::Place;
use super::{Engine, Volume};

pub use error::CreateError;
pub use request::CreateRequest;

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
        request::compare(&volume, request)?;
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

    async fn run_create(
        &self,
        group: &Group,
        writer: &mut Writer<'_>,
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
