//! Decides what a volume group is, out of the texts on all its physical volumes.
//!
//! Invariant: the valid text with the highest `seqno` wins, as in LVM; whatever could not be read, is missing or
//! disagrees is in [`Completeness`], so that nobody takes a partial view for the whole.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::LvmUuid;
use super::header::largest_text;
use super::model::VolumeGroup;
use super::place::ModelError;
use super::read::{AreaOnDisk, PvOnDisk, ReadError};

/// A volume group as all that could be read of it shows it.
#[derive(Debug, Clone)]
pub struct GroupState {
    /// The group.
    pub group: Arc<VolumeGroup>,
    /// The devices of its physical volumes, of those that were found.
    pub devices: BTreeMap<LvmUuid, PathBuf>,
    /// What the view lacks.
    pub completeness: Completeness,
    /// Room for a longer metadata text.
    pub room: MetadataRoom,
    /// The text that the group was made of, as LVM wrote it, until somebody takes it: it is as long as the group has
    /// volumes.
    pub text: Option<Arc<[u8]>>,
}

/// What is wrong with the view of a volume group.
#[derive(Debug, Clone, Default)]
pub struct Completeness {
    /// Physical volumes that were not found, or that the group has gone on without.
    pub missing: Vec<MissingVolume>,
    /// Metadata areas of the group's own physical volumes that could not be read: they might hold a newer text.
    pub unread: Vec<UnreadArea>,
    /// Two texts that cannot both be true.
    pub conflicts: Vec<Conflict>,
    /// Areas behind the others. LVM uses the newest text and brings them up to date at its next change; seen
    /// also while a commit goes from one physical volume to the next.
    pub stale: Vec<StaleArea>,
    /// Devices that carry a text of this group but are no part of it according to the newest: a physical
    /// volume that came back after the group went on without it, or a copy that somebody made.
    pub outdated: Vec<OutdatedDevice>,
}

impl Completeness {
    /// Whether the group was read whole: nothing missing, nothing unread, no contradiction. Only then does "not
    /// listed" mean "absent". Stale areas and outdated devices do not change what LVM itself takes for true.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.unread.is_empty() && self.conflicts.is_empty()
    }

    /// Whether a second look may show something better, as after a commit that was going on.
    #[must_use]
    pub fn may_settle(&self) -> bool {
        !(self.unread.is_empty() && self.conflicts.is_empty() && self.stale.is_empty())
    }
}

impl std::fmt::Display for Completeness {
    /// One sentence for an error message; "complete" if nothing is wrong.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut all: Vec<String> = Vec::new();
        for missing in &self.missing {
            let state = match &missing.device {
                Some(device) => format!("is on {} but the group has gone on without it", device.display()),
                None => format!("was not found (last seen on {})", missing.hint),
            };
            all.push(format!("physical volume {} {state}", missing.uuid));
        }
        for unread in &self.unread {
            let (device, offset) = (unread.device.display(), unread.offset);
            let mut sentence = format!("the metadata at byte {offset} of {device} is not readable: {}", unread.problem);
            // This is a report, not an error's Display: the causes have no other way out.
            let mut cause = std::error::Error::source(&unread.problem);
            while let Some(error) = cause {
                sentence.push_str(&format!(": {error}"));
                cause = error.source();
            }
            all.push(sentence);
        }
        all.extend(self.conflicts.iter().map(|conflict| conflict.what.clone()));
        for stale in &self.stale {
            let (device, offset) = (stale.device.display(), stale.offset);
            all.push(format!("the metadata at byte {offset} of {device} is behind the others"));
        }
        for outdated in &self.outdated {
            let device = outdated.device.display();
            all.push(format!("{device} claims to belong to the group, which does not know it"));
        }
        if all.is_empty() {
            return f.write_str("complete");
        }
        f.write_str(&all.join("; "))
    }
}

/// A physical volume that the group should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingVolume {
    /// Its identifier.
    pub uuid: LvmUuid,
    /// Device it was last seen on, from the text.
    pub hint: String,
    /// Where it is now, if it is there but the group has gone on without it.
    pub device: Option<PathBuf>,
}

/// A metadata area that might hold a newer text.
#[derive(Debug, Clone)]
pub struct UnreadArea {
    /// Device it is on.
    pub device: PathBuf,
    /// Where it starts, in bytes.
    pub offset: u64,
    /// Why its contents are not known.
    pub problem: AreaProblem,
}

/// Why a metadata area's contents are not known.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AreaProblem {
    /// The bytes could not be read or fail a checksum.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The checksums match, but the text is not understood.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// Texts that contradict one another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// A device involved.
    pub device: PathBuf,
    /// The contradiction, in words.
    pub what: String,
}

/// A metadata area with an older text than the one in force, or with none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaleArea {
    /// Device it is on.
    pub device: PathBuf,
    /// Where it starts, in bytes.
    pub offset: u64,
    /// `seqno` of its text, if it has one.
    pub seqno: Option<u64>,
}

/// A device that names a group which does not name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutdatedDevice {
    /// The device.
    pub device: PathBuf,
    /// Identifier in its label.
    pub pv_uuid: LvmUuid,
    /// `seqno` of its text.
    pub seqno: u64,
}

/// How much longer the metadata text may grow: more logical volumes and tags need it, LVM fails without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetadataRoom {
    /// Largest text that every metadata area in use takes, in bytes; 0 if none could be read.
    pub largest_text: u64,
    /// The present text, in bytes.
    pub text: u64,
}

impl MetadataRoom {
    /// Bytes that the text may grow by.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.largest_text.saturating_sub(self.text)
    }
}

/// A device that was read and is a physical volume.
#[derive(Debug, Clone)]
pub struct FoundVolume {
    /// The device.
    pub device: PathBuf,
    /// What is on it.
    pub on_disk: PvOnDisk,
}

/// All groups that the texts name, and what belongs to none of them.
#[derive(Debug, Clone, Default)]
pub struct Assembly {
    /// The groups, by identifier.
    pub groups: Vec<GroupState>,
    /// Metadata areas that could not be read on physical volumes that no group lists.
    pub unattributed: Vec<UnreadArea>,
    /// Physical volumes in no group.
    pub orphans: Vec<OrphanVolume>,
}

/// A physical volume that no group lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrphanVolume {
    /// The device.
    pub device: PathBuf,
    /// Its identifier.
    pub pv_uuid: LvmUuid,
    /// Its label says that it belongs to a group: that group was not found, or not this volume in it.
    pub in_use: bool,
}

/// A valid text with the place it was read from.
struct Source<'a> {
    volume: &'a FoundVolume,
    group: Arc<VolumeGroup>,
    text: Option<&'a Arc<[u8]>>,
}

/// Puts together what several physical volumes say. Each identifier must come once (see `discover`, which
/// takes out duplicates).
#[must_use]
pub fn assemble(volumes: &[FoundVolume]) -> Assembly {
    let mut parsed = Texts::default();
    let mut by_group: BTreeMap<LvmUuid, Vec<Source<'_>>> = BTreeMap::new();
    for volume in volumes {
        for area in &volume.on_disk.areas {
            if let Ok(Some(group)) = parsed.of(area) {
                let text = area.contents.as_ref().ok().and_then(|contents| contents.text.as_ref());
                by_group.entry(group.uuid).or_default().push(Source { volume, group, text });
            }
        }
    }
    let groups: Vec<GroupState> =
        by_group.values().filter_map(|sources| assemble_group(sources, volumes, &mut parsed)).collect();
    let mut assembly = Assembly { groups, ..Assembly::default() };
    for volume in volumes {
        let pv_uuid = volume.on_disk.label.pv_uuid;
        if assembly.groups.iter().any(|state| state.devices.contains_key(&pv_uuid)) {
            continue;
        }
        assembly.orphans.push(OrphanVolume {
            device: volume.device.clone(),
            pv_uuid,
            in_use: volume.on_disk.label.in_use == Some(true),
        });
        for area in &volume.on_disk.areas {
            if let Err(problem) = parsed.of(area) {
                assembly.unattributed.push(unread(&volume.device, area, problem));
            }
        }
    }
    claimed_twice(&mut assembly.groups);
    assembly
}

fn unread(device: &Path, area: &AreaOnDisk, problem: AreaProblem) -> UnreadArea {
    UnreadArea { device: device.to_owned(), offset: area.place.offset, problem }
}

/// The state of one group, if any of its texts lists the physical volume that it lies on.
fn assemble_group(sources: &[Source<'_>], volumes: &[FoundVolume], parsed: &mut Texts) -> Option<GroupState> {
    let lists_itself = |source: &&Source<'_>| {
        let own = source.volume.on_disk.label.pv_uuid;
        source.group.physical_volume(own).is_some()
    };
    // LVM writes a text only onto volumes that the text lists; any other was copied there.
    let newest = sources.iter().filter(lists_itself).max_by_key(|source| source.group.seqno)?;
    let group = Arc::clone(&newest.group);
    let mut completeness = Completeness::default();
    let mut devices = BTreeMap::new();
    let mut largest = None;
    for physical in &group.physical_volumes {
        let found = volumes.iter().find(|volume| volume.on_disk.label.pv_uuid == physical.uuid);
        if found.is_none() || physical.missing {
            completeness.missing.push(MissingVolume {
                uuid: physical.uuid,
                hint: physical.device_hint.clone(),
                device: found.map(|volume| volume.device.clone()),
            });
        }
        let Some(volume) = found else { continue };
        devices.insert(physical.uuid, volume.device.clone());
        if physical.missing {
            // LVM does not write to it any more; what it holds is old by definition.
            continue;
        }
        for area in &volume.on_disk.areas {
            if area.contents.as_ref().is_ok_and(|contents| contents.header.ignored) {
                continue;
            }
            let limit = largest_text(area.place.size);
            largest = Some(largest.map_or(limit, |other: u64| other.min(limit)));
            compare(&group, &volume.device, area, parsed, &mut completeness);
        }
    }
    for source in sources {
        let pv_uuid = source.volume.on_disk.label.pv_uuid;
        let known = completeness.outdated.iter().any(|other| other.pv_uuid == pv_uuid);
        if group.physical_volume(pv_uuid).is_none() && !known {
            completeness.outdated.push(OutdatedDevice {
                device: source.volume.device.clone(),
                pv_uuid,
                seqno: source.group.seqno,
            });
        }
    }
    let room = MetadataRoom { largest_text: largest.unwrap_or(0), text: group.text_size };
    Some(GroupState { group, devices, completeness, room, text: newest.text.cloned() })
}

/// Notes how the area of one of the group's own physical volumes differs from the text in force.
fn compare(group: &VolumeGroup, device: &Path, area: &AreaOnDisk, parsed: &mut Texts, completeness: &mut Completeness) {
    let stale = |seqno| StaleArea { device: device.to_owned(), offset: area.place.offset, seqno };
    let conflict = |what| Conflict { device: device.to_owned(), what };
    match parsed.of(area) {
        Err(problem) => completeness.unread.push(unread(device, area, problem)),
        Ok(None) => completeness.stale.push(stale(None)),
        Ok(Some(other)) if other.uuid != group.uuid => completeness.conflicts.push(conflict(format!(
            "{} is a physical volume of {} ({}), but its own metadata says {} ({})",
            device.display(),
            group.name,
            group.uuid,
            other.name,
            other.uuid
        ))),
        Ok(Some(other)) if other.seqno < group.seqno => completeness.stale.push(stale(Some(other.seqno))),
        // Its text does not list the volume that it lies on, or it would have won.
        Ok(Some(other)) if other.seqno > group.seqno => completeness
            .conflicts
            .push(conflict(format!("{} carries a newer metadata text that does not list it", device.display()))),
        Ok(Some(other)) if *other != *group => completeness.conflicts.push(conflict(format!(
            "the metadata on {} has the same seqno {} as on other devices, but other contents",
            device.display(),
            group.seqno
        ))),
        Ok(Some(_)) => {}
    }
}

/// One physical volume cannot belong to two groups.
fn claimed_twice(groups: &mut [GroupState]) {
    for at in 0..groups.len() {
        let found: Vec<Conflict> = groups
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != at)
            .flat_map(|(_, other)| {
                let mine = &groups[at].devices;
                let shared = other.devices.iter().filter(|(uuid, _)| mine.contains_key(uuid));
                shared.map(|(uuid, device)| Conflict {
                    device: device.clone(),
                    what: format!(
                        "physical volume {uuid} on {} is listed by volume group {} ({}) too",
                        device.display(),
                        other.group.name,
                        other.group.uuid
                    ),
                })
            })
            .collect();
        groups[at].completeness.conflicts.extend(found);
    }
}

type Parsed = Result<Arc<VolumeGroup>, ModelError>;

/// Texts already parsed: the copies on several physical volumes are mostly the same bytes.
#[derive(Default)]
struct Texts {
    known: Vec<(Arc<[u8]>, Parsed)>,
}

impl Texts {
    /// The group that an area's text describes; none without a text or in an ignored area.
    fn of(&mut self, area: &AreaOnDisk) -> Result<Option<Arc<VolumeGroup>>, AreaProblem> {
        let contents = area.contents.as_ref().map_err(Clone::clone)?;
        let Some(text) = contents.text.as_ref().filter(|_| !contents.header.ignored) else {
            return Ok(None);
        };
        if let Some((_, known)) = self.known.iter().find(|(bytes, _)| bytes == text) {
            return Ok(Some(known.clone()?));
        }
        let parsed = VolumeGroup::from_text(text).map(Arc::new);
        self.known.push((Arc::clone(text), parsed.clone()));
        Ok(Some(parsed?))
    }
}
