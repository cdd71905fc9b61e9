//! Brings journal and LVM together after a start, and whenever a volume group comes (back): the plan, then its steps.
//!
//! What only changes the journal is done at once, in one write. What needs LVM goes on in the background, each volume
//! locked, so that a disk that hangs delays only its own volumes.

mod plan;
#[cfg(test)]
mod property;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub use plan::{GroupSeen, MountSeen, Seen, Step, plan};

use crate::filesystem::{MountTable, Mounted};
use crate::journal::{Change, Entry, Key, Origin};
use crate::lvm::dm_name::split_device_name;
use crate::telemetry::chain;
use crate::volume::{LvName, VolumeHandle};

use super::locks::VolumeGuard;
use super::records::{now, record_of};
use super::survey::{Surveyed, survey};
use super::{Engine, Reading};

impl Engine {
    /// Plans from what is known of LVM now, writes what concerns the journal alone, and begins the rest. Returns at once;
    /// volumes that others have locked are left to them.
    pub async fn recover(self: &Arc<Self>) {
        self.recovery_put_off.store(false, Ordering::Relaxed);
        let seen = self.seen().await;
        let concerned: BTreeSet<LvName> = plan(&self.journaled(), &seen).iter().map(volume_of).cloned().collect();
        if concerned.is_empty() {
            return;
        }
        // The plan is made again with the volumes locked: others may have finished meanwhile what they were at.
        let locked = concerned.into_iter().filter_map(|lv| Some((lv.clone(), self.lock(&lv, "recovery").ok()?)));
        let mut locked: std::collections::BTreeMap<LvName, VolumeGuard> = locked.collect();
        let journal = self.journaled();
        let seen = self.seen().await;
        let steps = plan(&journal, &seen).into_iter().filter(|step| locked.contains_key(volume_of(step)));
        let (mut changes, mut finish) = (Vec::new(), Vec::new());
        for step in steps {
            say(&step);
            match step {
                Step::Journal(change) => changes.push(change),
                Step::Lost(_) => {}
                Step::FinishCreate(_) | Step::FinishDelete(_) => finish.push(step),
            }
        }
        if !changes.is_empty()
            && let Err(error) = self.journal.write("recovery", changes).await
        {
            tracing::error!(%error, "recovery is put off until the journal takes writes");
            self.recovery_put_off.store(true, Ordering::Relaxed);
            return;
        }
        for step in finish {
            let Some(guard) = locked.remove(volume_of(&step)) else { continue };
            let engine = Arc::clone(self);
            self.background.spawn(async move {
                engine.finish(step).await;
                drop(guard);
            });
        }
    }

    async fn finish(&self, step: Step) {
        let (lv, outcome) = match step {
            Step::FinishCreate(lv) => {
                let outcome = self.finish_create(&lv).await;
                (lv, outcome.map_err(|error| chain(&*error)))
            }
            Step::FinishDelete(lv) => {
                let handle = VolumeHandle { node: self.node.clone(), lv: lv.clone() };
                let outcome = self.delete(&handle).await;
                (lv, outcome.map_err(|error| chain(&error)))
            }
            Step::Journal(_) | Step::Lost(_) => return,
        };
        match outcome {
            Ok(()) => tracing::info!(volume = %lv, "an operation that was cut off is finished"),
            Err(error) => {
                tracing::error!(volume = %lv, error, "an operation that was cut off cannot be finished; the next request tries again");
            }
        }
    }

    async fn finish_create(&self, lv: &LvName) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let claim = self.journaled().operations.get(lv).and_then(|operation| operation.claim.clone());
        let handle = VolumeHandle { node: self.node.clone(), lv: lv.clone() };
        let volume = self.find(&handle).await?;
        self.finish_creation(&volume).await?;
        let volume = self.prepare(&volume).await?;
        Ok(self.record_created(&volume, claim, Origin::Unanswered).await?)
    }

    /// What is there, as far as it is known without reading disks again.
    pub async fn seen(&self) -> Seen {
        let groups = self.groups_seen();
        let mut ours: BTreeSet<LvName> = groups.iter().flat_map(|group| group.ours.keys().cloned()).collect();
        // A volume whose disk is gone may be mounted still.
        ours.extend(self.journaled().volumes.keys().cloned());
        let journal = self.journaled();
        let known = journal.staged.keys().chain(journal.published.keys()).map(|(_, path)| path.clone()).collect();
        let mounts = tokio::task::spawn_blocking(move || mounts_of(&ours, &known)).await;
        let mounts = match mounts {
            Ok(Ok(mounts)) => Some(mounts),
            Ok(Err(error)) => {
                tracing::error!(error = chain(&error), "what is mounted is not known");
                None
            }
            Err(_) => None,
        };
        Seen { groups, none_gone: self.groups.none_gone().is_ok(), mounts, now: now() }
    }

    /// Every volume, by what is known; nothing is looked at for this.
    #[must_use]
    pub fn surveyed_now(&self) -> Vec<Surveyed> {
        let none_gone = self.groups.none_gone().is_ok();
        let seen = Seen { groups: self.groups_seen(), none_gone, mounts: None, now: now() };
        survey(&self.journaled(), &seen)
    }

    fn groups_seen(&self) -> Vec<GroupSeen> {
        let groups = self.groups.all();
        groups
            .iter()
            .map(|group| {
                let mut seen = self.group_seen(&group.known());
                // A command of an earlier driver may be about to make what is not there yet.
                seen.whole &= group.is_settled();
                seen
            })
            .collect()
    }

    fn group_seen(&self, reading: &Reading) -> GroupSeen {
        let mut seen = GroupSeen {
            uuid: reading.vg_uuid().to_string(),
            name: reading.name().to_owned(),
            whole: reading.is_complete(),
            ..GroupSeen::default()
        };
        for (name, volume) in reading.volumes(&self.node) {
            match (LvName::parse(&name), volume) {
                (Some(lv), Ok(volume)) => {
                    seen.ours.insert(lv, record_of(&volume, None, Origin::Adopted, now()));
                }
                // Its tags may be those of a volume that the journal knows: nothing here is absent.
                (Some(lv), Err(error)) => {
                    seen.unreadable.insert(lv, chain(&error));
                    seen.whole = false;
                }
                (None, _) => {}
            }
        }
        seen
    }
}

/// Where volumes of ours are mounted. A device's name says whose it is.
fn mounts_of(
    ours: &BTreeSet<LvName>,
    known: &BTreeSet<String>,
) -> Result<BTreeSet<MountSeen>, crate::filesystem::MountTableError> {
    let table = MountTable::read()?;
    let mounts = table.iter().filter_map(|mount| {
        let number = match mount.mounted {
            Mounted::Filesystem(number) | Mounted::Node(number) => number,
            Mounted::Other => return None,
        };
        let (_, name) = split_device_name(&number.mapper_name().ok()??)?;
        let lv = LvName::parse(&name).filter(|lv| ours.contains(lv))?;
        let path = mount.target.display().to_string();
        let (pod_uid, read_only) = (pod_of_path(&path), mount.is_read_only());
        // Somebody may have mounted it elsewhere by hand: that is not kubelet's doing.
        let is_kubelets = pod_uid.is_some() || path.contains("/plugins/kubernetes.io/csi/") || known.contains(&path);
        is_kubelets.then_some(MountSeen { lv, path, pod_uid, read_only })
    });
    Ok(mounts.collect())
}

/// The UID of the pod that a kubelet's target path belongs to: behind `pods` for filesystems, the last part of
/// `.../volumeDevices/publish/<volume>/<pod uid>` for raw block volumes.
#[must_use]
pub fn pod_of_path(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').collect();
    let of_filesystem = parts.windows(3).find(|w| w[0] == "pods" && w[2].starts_with("volume")).map(|w| w[1]);
    let of_block = || {
        let at = parts.windows(2).position(|w| w == ["volumeDevices", "publish"])?;
        parts.get(at + 3).copied()
    };
    of_filesystem.or_else(of_block).filter(|uid| !uid.is_empty()).map(str::to_owned)
}

fn volume_of(step: &Step) -> &LvName {
    match step {
        Step::FinishCreate(lv) | Step::FinishDelete(lv) | Step::Lost(lv) => lv,
        Step::Journal(Change::Remove(key)) => match key {
            Key::Operation(lv) | Key::Volume(lv) | Key::Staged(lv, _) | Key::Published(lv, _) => lv,
        },
        Step::Journal(Change::Put(entry)) => match entry {
            Entry::Operation(lv, _) | Entry::Volume(lv, _) | Entry::Staged(lv, ..) | Entry::Published(lv, ..) => lv,
        },
    }
}

fn say(step: &Step) {
    match step {
        // Told by the audit, once.
        Step::Lost(_) => {}
        Step::FinishCreate(lv) => tracing::warn!(volume = %lv, "finishing a creation that was cut off"),
        Step::FinishDelete(lv) => tracing::warn!(volume = %lv, "finishing a deletion that was cut off"),
        Step::Journal(Change::Put(Entry::Volume(lv, record))) if record.origin == Origin::Adopted => {
            tracing::warn!(volume = %lv, vg = record.vg, "a volume of ours is taken into the journal");
        }
        Step::Journal(change) => tracing::info!(?change, "the journal follows what is there"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_path_names_its_pod() {
        let filesystem = "/var/lib/kubelet/pods/8a-1/volumes/kubernetes.io~csi/pvc-1/mount";
        let block = "/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/publish/pvc-1/8a-1";
        let staging = "/var/lib/kubelet/plugins/kubernetes.io/csi/lvm.quarry.storage/0a/globalmount";
        let block_staging = "/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/staging/pvc-1";
        for (path, pod) in [(filesystem, Some("8a-1")), (block, Some("8a-1")), (staging, None), (block_staging, None)] {
            assert_eq!(pod_of_path(path).as_deref(), pod, "{path}");
        }
    }
}
