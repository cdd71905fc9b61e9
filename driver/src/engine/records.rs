//! What the engine writes into the journal: intents before it changes anything, records after.

use std::path::Path;

use jiff::Timestamp;

use crate::journal::{
    Change, Claim, Contents, Entry, Journal, JournalError, Key, Operation, OperationKind, Origin, Pod, Published,
    Staged, VolumeRecord,
};
use crate::volume::LvName;

use super::group::Group;
use super::{Engine, Volume};

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    Timestamp::now().as_second()
}

/// A volume as the journal keeps it.
#[must_use]
pub fn record_of(volume: &Volume, claim: Option<Claim>, origin: Origin, since: i64) -> VolumeRecord {
    VolumeRecord {
        vg: volume.vg.clone(),
        vg_uuid: volume.vg_uuid.to_string(),
        uuid: volume.uuid.to_string(),
        size: volume.size.0,
        class: volume.tags.class.clone(),
        provisioning: volume.provisioning.to_string(),
        content: volume.tags.content.name().to_owned(),
        csi_name: volume.tags.csi_name.clone().unwrap_or_else(|| volume.lv().to_string()),
        claim,
        origin,
        since,
    }
}

impl Engine {
    /// The journal.
    #[must_use]
    pub fn journal(&self) -> &std::sync::Arc<dyn Journal> {
        &self.journal
    }

    /// What the journal holds.
    #[must_use]
    pub fn journaled(&self) -> std::sync::Arc<Contents> {
        self.journal.contents()
    }

    /// Before a volume is made.
    pub(super) async fn intend_create(
        &self,
        lv: &LvName,
        group: &Group,
        claim: Option<Claim>,
    ) -> Result<(), JournalError> {
        self.deleted.forget(lv);
        let operation = Operation {
            kind: OperationKind::Create,
            vg: group.name().to_owned(),
            vg_uuid: group.uuid().to_string(),
            uuid: None,
            claim,
            since: now(),
        };
        self.journal.write("create-intent", vec![Change::Put(Entry::Operation(lv.clone(), operation))]).await
    }

    /// After a volume was made, or seen made: costs nothing where all is written already.
    pub(super) async fn record_created(
        &self,
        volume: &Volume,
        claim: Option<Claim>,
        origin: Origin,
    ) -> Result<(), JournalError> {
        let lv = volume.lv();
        let known = self.journal.contents();
        let operation = known.operations.get(lv);
        let changes: Vec<Change> = recorded(&known, volume, claim, origin)
            .map(|record| Change::Put(Entry::Volume(lv.clone(), record)))
            .into_iter()
            .chain(operation.map(|_| Change::Remove(Key::Operation(lv.clone()))))
            .collect();
        if changes.is_empty() { Ok(()) } else { self.journal.write("create-record", changes).await }
    }

    /// Before a volume is deleted.
    pub(super) async fn intend_delete(
        &self,
        volume_uuid: &str,
        lv: &LvName,
        group: &Group,
    ) -> Result<(), JournalError> {
        let known = self.journal.contents();
        let is_this = |operation: &&Operation| {
            operation.kind == OperationKind::Delete && operation.uuid.as_deref() == Some(volume_uuid)
        };
        if known.operations.get(lv).filter(is_this).is_some() {
            return Ok(());
        }
        let operation = Operation {
            kind: OperationKind::Delete,
            vg: group.name().to_owned(),
            vg_uuid: group.uuid().to_string(),
            uuid: Some(volume_uuid.to_owned()),
            claim: known.volumes.get(lv).and_then(|record| record.claim.clone()),
            since: now(),
        };
        self.journal.write("delete-intent", vec![Change::Put(Entry::Operation(lv.clone(), operation))]).await
    }

    /// After a volume was deleted, or seen to be gone: nothing is known of it any more.
    pub(super) async fn record_deleted(&self, lv: &LvName) -> Result<(), JournalError> {
        let keys = self.journal.contents().keys_of(lv);
        if keys.is_empty() {
            return Ok(());
        }
        self.journal.write("delete-record", keys.into_iter().map(Change::Remove).collect()).await
    }

    /// After an operation that changed nothing.
    pub(super) async fn drop_intent(&self, lv: &LvName) -> Result<(), JournalError> {
        if !self.journal.contents().operations.contains_key(lv) {
            return Ok(());
        }
        self.journal.write("intent-dropped", vec![Change::Remove(Key::Operation(lv.clone()))]).await
    }

    /// After a deletion that changed nothing: what was under way before it is so again.
    pub(super) async fn restore_intent(&self, lv: &LvName, before: Option<Operation>) -> Result<(), JournalError> {
        match before {
            None => self.drop_intent(lv).await,
            Some(before) => {
                self.journal.write("intent-restored", vec![Change::Put(Entry::Operation(lv.clone(), before))]).await
            }
        }
    }

    /// After a volume was staged.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn record_staged(&self, volume: &Volume, path: &Path) -> Result<(), JournalError> {
        let (lv, path) = (volume.lv(), path.display().to_string());
        let known = self.journal.contents();
        let mut changes = self.asked_for(&known, volume);
        if !known.staged.contains_key(&(lv.clone(), path.clone())) {
            changes.push(Change::Put(Entry::Staged(lv.clone(), path, Staged { since: now() })));
        }
        if changes.is_empty() { Ok(()) } else { self.journal.write("staged", changes).await }
    }

    /// After a volume was published.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn record_published(
        &self,
        volume: &Volume,
        path: &Path,
        pod: Option<Pod>,
        read_only: bool,
    ) -> Result<(), JournalError> {
        let (lv, path) = (volume.lv(), path.display().to_string());
        let known = self.journal.contents();
        let mut changes = self.asked_for(&known, volume);
        let io_weight = volume.tags.io.weight.map(|weight| weight.get());
        let is_same = |row: &&Published| row.pod == pod && row.read_only == read_only && row.io_weight == io_weight;
        if known.published.get(&(lv.clone(), path.clone())).filter(is_same).is_none() {
            let row = Published { pod, read_only, io_weight, since: now() };
            changes.push(Change::Put(Entry::Published(lv.clone(), path, row)));
        }
        if !changes.is_empty() {
            self.journal.write("published", changes).await?;
        }
        self.tenancy.notify_one();
        Ok(())
    }

    /// After a volume was unstaged or unpublished. A row that cannot be removed keeps no pod from ending: the next start
    /// removes what the kernel does not show.
    pub async fn record_released(&self, key: Key) {
        let known = self.journal.contents();
        let is_there = match &key {
            Key::Staged(lv, path) => known.staged.contains_key(&(lv.clone(), path.clone())),
            Key::Published(lv, path) => known.published.contains_key(&(lv.clone(), path.clone())),
            Key::Operation(_) | Key::Volume(_) => false,
        };
        if !is_there {
            return;
        }
        let what = if matches!(key, Key::Staged(..)) { "unstaged" } else { "unpublished" };
        let _told = NotifyAtEnd(&self.tenancy);
        if let Err(error) = self.journal.write(what, vec![Change::Remove(key)]).await {
            tracing::error!(%error, "a row stays in the journal until the next start");
        }
    }

    /// Somebody uses a volume: it is no orphan.
    fn asked_for(&self, known: &Contents, volume: &Volume) -> Vec<Change> {
        let claim = known.volumes.get(volume.lv()).and_then(|record| record.claim.clone());
        let record = recorded(known, volume, claim, Origin::Asked);
        record.map(|record| Change::Put(Entry::Volume(volume.lv().clone(), record))).into_iter().collect()
    }
}

/// Tells of a change when it was made.
struct NotifyAtEnd<'a>(&'a tokio::sync::Notify);

impl Drop for NotifyAtEnd<'_> {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// The record that a volume must have, unless it is there.
fn recorded(known: &Contents, volume: &Volume, claim: Option<Claim>, origin: Origin) -> Option<VolumeRecord> {
    let before = known.volumes.get(volume.lv()).filter(|record| record.uuid == volume.uuid.to_string());
    let claim = claim.or_else(|| before.and_then(|record| record.claim.clone()));
    // Who was asked for once is not an orphan again.
    let origin = match before.map(|record| record.origin) {
        Some(Origin::Asked) => Origin::Asked,
        _ => origin,
    };
    let record = record_of(volume, claim, origin, before.map_or_else(now, |record| record.since));
    (before != Some(&record)).then_some(record)
}
