//! How every volume stands: what LVM shows and what the journal knows, side by side. Pure.

use std::collections::BTreeSet;
use std::fmt;

use crate::journal::{Contents, OperationKind, Origin, Published, VolumeRecord};
use crate::volume::LvName;

use super::recovery::Seen;

/// How long a volume whose CreateVolume was finished by a restart may wait for its caller to ask again (csi-provisioner
/// asks every few minutes at the latest) before it counts as an orphan.
const PATIENCE_SECONDS: i64 = 15 * 60;

/// How a volume stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// It is there, and somebody asked for it.
    Ready,
    /// It is being made.
    Creating,
    /// It is being deleted.
    Deleting,
    /// A restart finished its creation; its caller has not asked again yet.
    Unanswered,
    /// The same, and the caller will hardly ask any more.
    Orphan,
    /// It is there and nothing is known of who asked for it: the journal was lost, or metadata restored.
    Adopted,
    /// Its logical volume has vanished, affirmed.
    Lost,
    /// Its volume group is not there or was not read whole: nobody knows.
    Unknown,
    /// It has our tag, and its other tags are not understood.
    Unreadable,
}

impl State {
    /// As a word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Creating => "creating",
            Self::Deleting => "deleting",
            Self::Unanswered => "unanswered",
            Self::Orphan => "orphan",
            Self::Adopted => "adopted",
            Self::Lost => "lost",
            Self::Unknown => "unknown",
            Self::Unreadable => "unreadable",
        }
    }

    /// Every state there is.
    pub const ALL: [Self; 9] = [
        Self::Ready,
        Self::Creating,
        Self::Deleting,
        Self::Unanswered,
        Self::Orphan,
        Self::Adopted,
        Self::Lost,
        Self::Unknown,
        Self::Unreadable,
    ];
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surveyed {
    /// Its LV name.
    pub lv: LvName,
    /// How it stands.
    pub state: State,
    /// What is known of it: what LVM shows, with the claim and origin of the journal; or what the journal remembers.
    pub record: Option<VolumeRecord>,
    /// Whether the journal has a record that is true.
    pub recorded: bool,
    /// What is wrong, for a person.
    pub problem: Option<String>,
    /// Where it is staged.
    pub staged: Vec<String>,
    /// Where it is published.
    pub published: Vec<(String, Published)>,
}

/// All volumes by name.
#[must_use]
pub fn survey(journal: &Contents, seen: &Seen) -> Vec<Surveyed> {
    let shown = seen.groups.iter().flat_map(|group| group.ours.keys().chain(group.unreadable.keys()));
    let names: BTreeSet<&LvName> = journal.operations.keys().chain(journal.volumes.keys()).chain(shown).collect();
    names.into_iter().map(|lv| one(journal, seen, lv)).collect()
}

fn one(journal: &Contents, seen: &Seen, lv: &LvName) -> Surveyed {
    let there = seen.groups.iter().find_map(|group| group.ours.get(lv));
    let unreadable = seen.groups.iter().find_map(|group| Some((group, group.unreadable.get(lv)?)));
    let known = journal.volumes.get(lv);
    let same = known.filter(|record| there.is_none_or(|there| there.uuid == record.uuid));
    let operation = journal.operations.get(lv);
    let record = match (there, same) {
        (Some(there), Some(same)) => {
            Some(VolumeRecord { claim: same.claim.clone(), origin: same.origin, since: same.since, ..there.clone() })
        }
        (Some(there), None) => {
            let claim = operation.and_then(|operation| operation.claim.clone());
            Some(VolumeRecord { claim, ..there.clone() })
        }
        (None, same) => same.cloned(),
    };
    let (state, problem) = match (operation.map(|operation| operation.kind), there, unreadable) {
        (_, None, Some((group, why))) => (State::Unreadable, Some(format!("{}/{lv}: {why}", group.name))),
        (Some(OperationKind::Create), ..) => (State::Creating, None),
        (Some(OperationKind::Delete), ..) => (State::Deleting, None),
        (None, Some(_), _) => match record.as_ref().map(|record| (record.origin, seen.now - record.since)) {
            Some((Origin::Unanswered, age)) if age > PATIENCE_SECONDS => {
                let problem =
                    format!("made {} min ago by a request that was cut off; nobody asked for it since", age / 60);
                (State::Orphan, Some(problem))
            }
            Some((Origin::Unanswered, _)) => (State::Unanswered, None),
            Some((Origin::Adopted, _)) => (State::Adopted, None),
            _ => (State::Ready, None),
        },
        (None, None, _) => absent(seen, known),
    };
    Surveyed {
        lv: lv.clone(),
        state,
        recorded: known.is_some() && same.is_some(),
        record,
        problem,
        staged: journal.staged_paths(lv).map(str::to_owned).collect(),
        published: journal.published_of(lv).map(|(path, row)| (path.to_owned(), row.clone())).collect(),
    }
}

/// A volume that the journal knows and LVM does not show.
fn absent(seen: &Seen, known: Option<&VolumeRecord>) -> (State, Option<String>) {
    let Some(record) = known else { return (State::Unknown, None) };
    let vg = &record.vg;
    let problem = match seen.groups.iter().find(|group| group.uuid == record.vg_uuid) {
        None => format!("its volume group {vg} ({}) is not on this node now", record.vg_uuid),
        Some(group) if !group.whole => format!("its volume group {vg} was not read whole"),
        Some(_) if !seen.none_gone || seen.groups.iter().any(|group| !group.whole) => {
            format!("it is not in volume group {vg} any more, and another group, where it may be, cannot be read")
        }
        Some(_) => return (State::Lost, Some(format!("its logical volume in {vg} has vanished"))),
    };
    (State::Unknown, Some(problem))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::recovery::GroupSeen;
    use crate::journal::{Entry, Operation};

    fn lv(name: &str) -> LvName {
        LvName::parse(name).unwrap()
    }

    fn record(uuid: &str, origin: Origin) -> VolumeRecord {
        VolumeRecord {
            vg: "quarry".to_owned(),
            vg_uuid: "vg".to_owned(),
            uuid: uuid.to_owned(),
            size: 1 << 30,
            class: "default".to_owned(),
            provisioning: "thin".to_owned(),
            content: "ext4".to_owned(),
            csi_name: "x".to_owned(),
            claim: None,
            origin,
            since: 0,
        }
    }

    fn states(journal: &Contents, seen: &Seen) -> Vec<(String, State)> {
        survey(journal, seen).into_iter().map(|volume| (volume.lv.to_string(), volume.state)).collect()
    }

    #[test]
    fn every_combination_has_its_word() {
        let mut journal = Contents::default();
        for (name, origin) in [("asked", Origin::Asked), ("gone", Origin::Asked), ("late", Origin::Unanswered)] {
            journal.put(Entry::Volume(lv(name), record(name, origin)));
        }
        let begun = Operation {
            kind: OperationKind::Delete,
            vg: "quarry".to_owned(),
            vg_uuid: "vg".to_owned(),
            uuid: None,
            claim: None,
            since: 0,
        };
        journal.put(Entry::Operation(lv("leaving"), begun));
        let shown = ["asked", "late", "leaving", "stranger"];
        let ours = shown.map(|name| (lv(name), record(name, Origin::Adopted))).into_iter().collect();
        let group =
            GroupSeen { uuid: "vg".to_owned(), name: "quarry".to_owned(), whole: true, ours, ..GroupSeen::default() };
        let mut seen = Seen { groups: vec![group], none_gone: true, mounts: None, now: PATIENCE_SECONDS };
        let expected = |late, gone| {
            vec![
                ("asked".to_owned(), State::Ready),
                ("gone".to_owned(), gone),
                ("late".to_owned(), late),
                ("leaving".to_owned(), State::Deleting),
                ("stranger".to_owned(), State::Adopted),
            ]
        };
        assert_eq!(states(&journal, &seen), expected(State::Unanswered, State::Lost));
        seen.now += 1;
        assert_eq!(states(&journal, &seen), expected(State::Orphan, State::Lost));
        seen.groups[0].whole = false;
        assert_eq!(states(&journal, &seen), expected(State::Orphan, State::Unknown));
        seen.groups[0].whole = true;
        seen.none_gone = false;
        assert_eq!(states(&journal, &seen), expected(State::Orphan, State::Unknown));
    }
}
