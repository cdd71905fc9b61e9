//! What is to be done at a start: a pure function of what the journal says and what is there.
//!
//! | journal | volume of ours there | affirmed absent | a foreign one of its name | group not read |
//! |---|---|---|---|---|
//! | nothing | adopt | – | leave | – |
//! | creation begun | finish, record | drop the intent | drop the intent | leave |
//! | volume | keep; what LVM says wins | report lost, never make anew | report lost | leave |
//! | deletion begun | finish | drop all rows | drop all rows | leave |
//!
//! **Invariant.** Where a volume group was not read whole, nothing is concluded from what it does not show.

use std::collections::{BTreeMap, BTreeSet};

use crate::journal::{Change, Contents, Entry, Key, Operation, OperationKind, Origin, Published, Staged, VolumeRecord};
use crate::volume::LvName;

/// What is there.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The volume groups that were found.
    pub groups: Vec<GroupSeen>,
    /// Whether every volume group that held volumes was found.
    pub none_gone: bool,
    /// Where volumes are mounted; nothing where that could not be asked.
    pub mounts: Option<BTreeSet<MountSeen>>,
    /// The time, in seconds since 1970.
    pub now: i64,
}

/// A volume group as it was found.
#[derive(Debug, Clone, Default)]
pub struct GroupSeen {
    /// Its UUID.
    pub uuid: String,
    /// Whether it was read whole: only then is absent what it does not show.
    pub whole: bool,
    /// Its name.
    pub name: String,
    /// Logical volumes that have our tag and others that are not understood: what about them.
    pub unreadable: BTreeMap<LvName, String>,
    /// Volumes of ours, as the journal would record them.
    pub ours: BTreeMap<LvName, VolumeRecord>,
}

/// A mount of a volume.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MountSeen {
    /// The volume.
    pub lv: LvName,
    /// Where.
    pub path: String,
    /// The UID of the pod whose it is, by its path; a staging path belongs to none.
    pub pod_uid: Option<String>,
    /// Whether it is read-only.
    pub read_only: bool,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "a handful at a time, moved once")]
pub enum Step {
    /// Change the journal only.
    Journal(Change),
    /// Finish a creation that was cut off: wipe, zero, record.
    FinishCreate(LvName),
    /// Finish a deletion that was cut off.
    FinishDelete(LvName),
    /// Tell that a volume is lost.
    Lost(LvName),
}

/// What is to be done so that journal and LVM agree. Doing it twice does nothing twice.
#[must_use]
pub fn plan(journal: &Contents, seen: &Seen) -> Vec<Step> {
    let mut steps = Vec::new();
    let names = journal.operations.keys().chain(journal.volumes.keys());
    let names: BTreeSet<&LvName> = names.chain(seen.groups.iter().flat_map(|group| group.ours.keys())).collect();
    for lv in names {
        let (operation, record) = (journal.operations.get(lv), journal.volumes.get(lv));
        let there = seen.groups.iter().find_map(|group| group.ours.get(lv));
        match (operation, there) {
            (Some(operation), there) => begun(&mut steps, journal, seen, (lv, operation, there)),
            (None, Some(there)) => steps.extend(record_of(lv, record, there)),
            (None, None) => {
                if record.is_some_and(|record| is_gone(seen, &record.vg_uuid)) {
                    steps.push(Step::Lost(lv.clone()));
                }
            }
        }
    }
    steps.extend(seen.mounts.iter().flat_map(|mounts| mounted(journal, seen, mounts)).map(Step::Journal));
    steps
}

/// An operation that was begun and not seen to end.
fn begun(
    steps: &mut Vec<Step>,
    journal: &Contents,
    seen: &Seen,
    (lv, operation, there): (&LvName, &Operation, Option<&VolumeRecord>),
) {
    let forget_all = || journal.keys_of(lv).into_iter().map(|key| Step::Journal(Change::Remove(key)));
    match (operation.kind, there) {
        (OperationKind::Create, Some(_)) => steps.push(Step::FinishCreate(lv.clone())),
        (OperationKind::Create, None) => {
            // A creation follows an affirmed absence, so there is no record beside it that would be a loss.
            if is_gone_there(seen, &operation.vg_uuid) {
                steps.extend(forget_all());
            }
        }
        (OperationKind::Delete, Some(there)) if Some(&there.uuid) == operation.uuid.as_ref() => {
            steps.push(Step::FinishDelete(lv.clone()));
        }
        // Another volume has the name now: made after the deletion by somebody who had no journal.
        (OperationKind::Delete, Some(there)) => {
            steps.push(Step::Journal(Change::Remove(Key::Operation(lv.clone()))));
            steps.extend(record_of(lv, journal.volumes.get(lv), there));
        }
        (OperationKind::Delete, None) => {
            if is_gone_there(seen, &operation.vg_uuid) {
                steps.extend(forget_all());
            }
        }
    }
}

/// A volume without an operation: its record is made what LVM says.
fn record_of(lv: &LvName, record: Option<&VolumeRecord>, there: &VolumeRecord) -> Option<Step> {
    let same = record.filter(|record| record.uuid == there.uuid);
    let wanted = VolumeRecord {
        claim: same.and_then(|record| record.claim.clone()),
        origin: same.map_or(Origin::Adopted, |record| record.origin),
        since: same.map_or(there.since, |record| record.since),
        ..there.clone()
    };
    (record != Some(&wanted)).then(|| Step::Journal(Change::Put(Entry::Volume(lv.clone(), wanted))))
}

/// Whether that group was read whole, so that what it does not show is not in it.
fn is_gone_there(seen: &Seen, vg_uuid: &str) -> bool {
    seen.groups.iter().any(|group| group.uuid == vg_uuid && group.whole)
}

/// Whether a volume that was in that group and is found nowhere is gone: it may have been moved to another group.
fn is_gone(seen: &Seen, vg_uuid: &str) -> bool {
    is_gone_there(seen, vg_uuid) && seen.none_gone && seen.groups.iter().all(|group| group.whole)
}

/// What is staged and published is what is mounted: rows without a mount go, mounts without a row get one. A raw block
/// volume is staged without a mount: its row stays while its volume is there.
fn mounted(journal: &Contents, seen: &Seen, mounts: &BTreeSet<MountSeen>) -> Vec<Change> {
    let is_block = |lv: &LvName| {
        let there = seen.groups.iter().find_map(|group| group.ours.get(lv));
        there.or_else(|| journal.volumes.get(lv)).is_some_and(|volume| volume.content == "block")
    };
    let is_mounted = |lv: &LvName, path: &String| mounts.iter().any(|mount| mount.lv == *lv && mount.path == *path);
    let staged = journal.staged.keys().filter(|(lv, path)| !is_mounted(lv, path) && !is_block(lv));
    let staged = staged.map(|(lv, path)| Change::Remove(Key::Staged(lv.clone(), path.clone())));
    let published = journal.published.keys().filter(|(lv, path)| !is_mounted(lv, path));
    let published = published.map(|(lv, path)| Change::Remove(Key::Published(lv.clone(), path.clone())));
    let found = mounts.iter().filter_map(|mount| {
        let (key, lv, path) = ((mount.lv.clone(), mount.path.clone()), mount.lv.clone(), mount.path.clone());
        if journal.staged.contains_key(&key) || journal.published.contains_key(&key) {
            return None;
        }
        Some(Change::Put(match &mount.pod_uid {
            Some(uid) => {
                let pod = crate::journal::Pod { uid: uid.clone(), namespace: None, name: None };
                let row = Published { pod: Some(pod), read_only: mount.read_only, io_weight: None, since: seen.now };
                Entry::Published(lv, path, row)
            }
            None => Entry::Staged(lv, path, Staged { since: seen.now }),
        }))
    });
    staged.chain(published).chain(found).collect()
}
