//! Accepts losses, on a person's word: a volume whose logical volume has vanished, a volume group that will not come back.

use std::sync::Arc;

use crate::journal::{Change, JournalError};
use crate::volume::{LvName, VolumeHandle};

use super::delete::DeleteError;
use super::locks::Busy;
use super::pins::PinError;
use super::survey::{State, Surveyed, survey};
use super::{Engine, VolumeGuard};

/// Why something was not forgotten or removed.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    /// Nothing of that name is known.
    #[error("there is no volume {0:?}; `quarry-driver volumes` lists them by name")]
    NoVolume(String),
    /// It is not lost.
    #[error(
        "volume {lv} is {state}: only a volume that is lost, or whose volume group is gone, can be forgotten{}",
        problem.as_ref().map(|problem| format!(" ({problem})")).unwrap_or_default()
    )]
    NotLost {
        /// The volume.
        lv: LvName,
        /// How it stands.
        state: State,
        /// What is wrong with it.
        problem: Option<String>,
    },
    /// It is somebody's.
    #[error("volume {lv} is {state}{}: only what nobody has asked for can be removed", if *used { " and in use" } else { "" })]
    NotAnOrphan {
        /// The volume.
        lv: LvName,
        /// How it stands.
        state: State,
        /// Whether it is staged or published.
        used: bool,
    },
    /// The group is there.
    #[error("volume group {0} is on this node: its volumes are not lost")]
    GroupIsHere(String),
    /// No such group held volumes.
    #[error("no volume group {0:?} that held volumes is missing")]
    NoGroup(String),
    /// An operation on the volume is under way.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The note of which groups hold volumes.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// Deleting it.
    #[error(transparent)]
    Delete(#[from] DeleteError),
}

impl Engine {
    /// Every volume that LVM shows or the journal knows.
    pub async fn survey(&self) -> Vec<Surveyed> {
        // The journal first: what is made in between is then shown as adopted for a moment, not as lost.
        let journal = self.journaled();
        survey(&journal, &self.seen().await)
    }

    async fn surveyed(&self, name: &str) -> Result<(VolumeGuard, Surveyed), ForgetError> {
        let lv = LvName::parse(name).ok_or_else(|| ForgetError::NoVolume(name.to_owned()))?;
        let guard = self.lock(&lv, "an administrator's command")?;
        let volume = self.survey().await.into_iter().find(|volume| volume.lv == lv);
        Ok((guard, volume.ok_or_else(|| ForgetError::NoVolume(name.to_owned()))?))
    }

    /// Forgets a volume that is lost, or whose volume group is gone.
    ///
    /// # Errors
    /// [`ForgetError`].
    pub async fn forget_volume(&self, name: &str) -> Result<(), ForgetError> {
        let (_guard, volume) = self.surveyed(name).await?;
        let group_is_here = |uuid: &str| self.groups.all().iter().any(|group| group.uuid().to_string() == uuid);
        let gone = match (volume.state, &volume.record) {
            (State::Lost, _) => true,
            (State::Unknown, Some(record)) => !group_is_here(&record.vg_uuid),
            _ => false,
        };
        if !gone {
            return Err(ForgetError::NotLost { lv: volume.lv, state: volume.state, problem: volume.problem });
        }
        self.record_deleted(&volume.lv).await?;
        tracing::warn!(volume = %volume.lv, "forgotten: its loss was accepted");
        Ok(())
    }

    /// Forgets a volume group that is gone, by name or UUID, and every volume that was in it; their names.
    ///
    /// # Errors
    /// [`ForgetError`].
    pub async fn forget_group(&self, group: &str) -> Result<Vec<LvName>, ForgetError> {
        let here = self.groups.all().into_iter().find(|here| here.uuid().to_string() == group || here.name() == group);
        let journal = self.journaled();
        let is_of = |vg: &str, uuid: &str| vg == group || uuid == group;
        // Another group of that name may be here: then only the UUID says which is meant.
        if let Some(here) = here {
            return Err(ForgetError::GroupIsHere(format!("{} ({})", here.name(), here.uuid())));
        }
        let volumes: Vec<LvName> = journal
            .volumes
            .iter()
            .filter(|(_, record)| is_of(&record.vg, &record.vg_uuid))
            .map(|(lv, _)| lv.clone())
            .collect();
        let guards: Vec<VolumeGuard> =
            volumes.iter().map(|lv| self.lock(lv, "an administrator's command")).collect::<Result<_, _>>()?;
        let changes: Vec<Change> = volumes.iter().flat_map(|lv| journal.keys_of(lv)).map(Change::Remove).collect();
        let pinned = self.groups.forget(group)?;
        if pinned.is_empty() && changes.is_empty() {
            return Err(ForgetError::NoGroup(group.to_owned()));
        }
        if !changes.is_empty() {
            self.journal.write("group-forgotten", changes).await?;
        }
        drop(guards);
        tracing::warn!(vg = group, volumes = volumes.len(), "forgotten: the loss of a volume group was accepted");
        Ok(volumes)
    }

    /// Deletes a volume that nobody has asked for: an orphan, or one that was adopted and is not in use.
    ///
    /// # Errors
    /// [`ForgetError`].
    pub async fn remove_orphan(self: &Arc<Self>, name: &str) -> Result<(), ForgetError> {
        let (_guard, volume) = self.surveyed(name).await?;
        let used = !volume.staged.is_empty() || !volume.published.is_empty();
        if used || !matches!(volume.state, State::Orphan | State::Unanswered | State::Adopted) {
            return Err(ForgetError::NotAnOrphan { lv: volume.lv, state: volume.state, used });
        }
        tracing::warn!(volume = %volume.lv, state = %volume.state, "removing a volume on an administrator's word");
        Ok(self.delete(&VolumeHandle { node: self.node.clone(), lv: volume.lv }).await?)
    }
}
