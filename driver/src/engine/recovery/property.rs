//! Random histories with crashes, on a world of maps, against an oracle that only knows what callers were told.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::plan::{GroupSeen, Seen, Step, plan};
use crate::journal::{Change, Contents, Key, Operation, OperationKind, Origin, VolumeRecord};
use crate::volume::LvName;

const GROUPS: [&str; 2] = ["vg-a", "vg-b"];

/// What happens. A crash comes after that many of an operation's steps.
#[derive(Debug, Clone)]
enum Event {
    Create {
        name: u8,
        group: usize,
        crash: Option<u8>,
    },
    Delete {
        name: u8,
        crash: Option<u8>,
    },
    /// An administrator removes a volume of ours.
    Vanish {
        name: u8,
    },
    /// Somebody makes a logical volume that is not ours.
    Foreign {
        name: u8,
        group: usize,
    },
    /// A disk goes, or comes back.
    Readable {
        group: usize,
        whole: bool,
    },
    JournalLost,
    /// The driver is restarted, and again after a crash in the recovery itself.
    Restart {
        crash: Option<u8>,
    },
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let crash = || prop::option::of(0..6_u8);
    let event = prop_oneof![
        6 => (0..4_u8, 0..2_usize, crash()).prop_map(|(name, group, crash)| Event::Create { name, group, crash }),
        5 => (0..4_u8, crash()).prop_map(|(name, crash)| Event::Delete { name, crash }),
        1 => (0..4_u8).prop_map(|name| Event::Vanish { name }),
        1 => (0..4_u8, 0..2_usize).prop_map(|(name, group)| Event::Foreign { name, group }),
        2 => (0..2_usize, any::<bool>()).prop_map(|(group, whole)| Event::Readable { group, whole }),
        1 => Just(Event::JournalLost),
        2 => crash().prop_map(|crash| Event::Restart { crash }),
    ];
    prop::collection::vec(event, 1..30)
}

#[derive(Debug, Clone, PartialEq)]
struct Lv {
    uuid: String,
    ours: bool,
    /// What follows lvcreate (wiping, zeroing) was done.
    finished: bool,
}

#[derive(Debug, Default)]
struct World {
    lvm: BTreeMap<usize, BTreeMap<LvName, Lv>>,
    hidden: BTreeSet<usize>,
    journal: Contents,
    made: u64,
}

/// What callers were told, and what others did.
#[derive(Debug, Default)]
struct Oracle {
    created: BTreeMap<LvName, String>,
    deleted: BTreeSet<String>,
    vanished: BTreeSet<String>,
    foreign: BTreeSet<String>,
    journal_was_lost: bool,
}

/// The driver died.
struct Crash;

/// Counts down to a crash.
struct Fuse(Option<u8>);

impl Fuse {
    fn burn(&mut self) -> Result<(), Crash> {
        match &mut self.0 {
            None => Ok(()),
            Some(0) => Err(Crash),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }
}

fn lv(name: u8) -> LvName {
    LvName::parse(&format!("pvc-{name}")).unwrap()
}

fn record(group: usize, lv: &LvName, uuid: &str, origin: Origin) -> VolumeRecord {
    VolumeRecord {
        vg: GROUPS[group].to_owned(),
        vg_uuid: GROUPS[group].to_owned(),
        uuid: uuid.to_owned(),
        size: 1,
        class: "default".to_owned(),
        provisioning: "thin".to_owned(),
        content: "ext4".to_owned(),
        csi_name: lv.to_string(),
        claim: None,
        origin,
        since: 0,
    }
}

impl World {
    fn seen(&self) -> Seen {
        let groups = (0..GROUPS.len()).map(|group| {
            let volumes = self.lvm.get(&group).into_iter().flatten().filter(|_| !self.hidden.contains(&group));
            let ours = volumes.filter(|(_, volume)| volume.ours);
            let ours = ours.map(|(lv, volume)| (lv.clone(), record(group, lv, &volume.uuid, Origin::Adopted)));
            GroupSeen {
                uuid: GROUPS[group].to_owned(),
                whole: !self.hidden.contains(&group),
                ours: ours.collect(),
                ..GroupSeen::default()
            }
        });
        Seen { groups: groups.collect(), none_gone: true, mounts: None, now: 0 }
    }

    fn find(&mut self, name: &LvName) -> Option<(usize, &mut Lv)> {
        let volumes = self.lvm.iter_mut().filter_map(|(group, volumes)| Some((*group, volumes.get_mut(name)?)));
        volumes.max_by_key(|(_, volume)| volume.ours)
    }

    fn begin(&mut self, lv: &LvName, kind: OperationKind, group: usize, uuid: Option<String>) {
        let vg = GROUPS[group].to_owned();
        let operation = Operation { kind, vg: vg.clone(), vg_uuid: vg, uuid, claim: None, since: 0 };
        self.journal.put(crate::journal::Entry::Operation(lv.clone(), operation));
    }

    fn record(&mut self, name: &LvName, origin: Origin) {
        let Some((group, volume)) = self.find(name) else { return };
        let made = record(group, name, &volume.uuid.clone(), origin);
        self.journal.put(crate::journal::Entry::Volume(name.clone(), made));
        self.journal.apply(Change::Remove(Key::Operation(name.clone())));
    }

    fn forget(&mut self, name: &LvName) {
        for key in self.journal.keys_of(name) {
            self.journal.apply(Change::Remove(key));
        }
    }

    /// As the engine does it, step by step. True when the caller is told of success.
    fn create(&mut self, name: &LvName, group: usize, fuse: &mut Fuse) -> Result<bool, Crash> {
        let begun = self.journal.begun(name);
        let all_read = self.hidden.is_empty();
        match self.find(name) {
            Some((of, volume)) if volume.ours => {
                let hidden = self.hidden.contains(&of);
                if hidden || begun == Some(OperationKind::Delete) {
                    return Ok(false);
                }
                if begun == Some(OperationKind::Create)
                    && let Some((_, volume)) = self.find(name)
                {
                    volume.finished = true;
                }
            }
            Some(_) => return Ok(false),
            None if !all_read => return Ok(false),
            None => {
                if self.journal.volumes.contains_key(name) {
                    if begun != Some(OperationKind::Delete) {
                        return Ok(false);
                    }
                    self.forget(name);
                    fuse.burn()?;
                }
                self.begin(name, OperationKind::Create, group, None);
                fuse.burn()?;
                self.made += 1;
                let made = Lv { uuid: format!("uuid-{}", self.made), ours: true, finished: false };
                self.lvm.entry(group).or_default().insert(name.clone(), made);
                fuse.burn()?;
                if let Some((_, volume)) = self.find(name) {
                    volume.finished = true;
                }
                fuse.burn()?;
            }
        }
        self.record(name, Origin::Asked);
        fuse.burn()?;
        Ok(true)
    }

    fn delete(&mut self, name: &LvName, fuse: &mut Fuse) -> Result<bool, Crash> {
        let all_read = self.hidden.is_empty();
        match self.find(name) {
            Some((group, volume)) => {
                let (ours, uuid) = (volume.ours, volume.uuid.clone());
                if !ours || self.hidden.contains(&group) {
                    return Ok(false);
                }
                self.begin(name, OperationKind::Delete, group, Some(uuid));
                fuse.burn()?;
                self.lvm.entry(group).or_default().remove(name);
                fuse.burn()?;
            }
            None if all_read => {}
            None => return Ok(false),
        }
        self.forget(name);
        fuse.burn()?;
        Ok(true)
    }

    fn recover(&mut self, fuse: &mut Fuse) -> Result<Vec<Step>, Crash> {
        let steps = plan(&self.journal, &self.seen());
        for step in &steps {
            if let Step::Journal(change) = step {
                self.journal.apply(change.clone());
            }
        }
        fuse.burn()?;
        for step in &steps {
            match step {
                Step::FinishCreate(name) => {
                    if let Some((_, volume)) = self.find(name) {
                        volume.finished = true;
                    }
                    fuse.burn()?;
                    self.record(name, Origin::Unanswered);
                }
                Step::FinishDelete(name) => drop(self.delete(name, fuse)?),
                Step::Journal(_) | Step::Lost(_) => {}
            }
        }
        Ok(steps)
    }

    /// Restarts until no crash comes.
    fn restart(&mut self, crash: Option<u8>) -> Vec<Step> {
        self.check_plan();
        match self.recover(&mut Fuse(crash)) {
            Ok(steps) => steps,
            Err(Crash) => self.restart(None),
        }
    }

    /// Nothing is concluded of what could not be read.
    fn check_plan(&self) {
        let hidden: Vec<&str> = self.hidden.iter().map(|group| GROUPS[*group]).collect();
        for step in plan(&self.journal, &self.seen()) {
            let name = match &step {
                Step::Lost(name) | Step::Journal(Change::Remove(Key::Volume(name) | Key::Operation(name))) => name,
                _ => continue,
            };
            let of_record = self.journal.volumes.get(name).map(|record| record.vg_uuid.as_str());
            let of_operation = self.journal.operations.get(name).map(|operation| operation.vg_uuid.as_str());
            let vg = of_operation.or(of_record).unwrap_or_default();
            let is_there = self.lvm.values().any(|volumes| volumes.get(name).is_some_and(|lv| lv.ours));
            assert!(!hidden.contains(&vg) || is_there, "{step:?} of a group that was not read");
        }
    }
}

fn run(events: Vec<Event>) {
    let (mut world, mut oracle) = (World::default(), Oracle::default());
    for event in events {
        match event {
            Event::Create { name, group, crash } => {
                let name = lv(name);
                match world.create(&name, group, &mut Fuse(crash)) {
                    Ok(true) => {
                        let uuid = world.find(&name).unwrap().1.uuid.clone();
                        oracle.created.insert(name, uuid);
                    }
                    Ok(false) => {}
                    Err(Crash) => drop(world.restart(crash)),
                }
            }
            Event::Delete { name, crash } => {
                let name = lv(name);
                let uuid = world.find(&name).filter(|(_, volume)| volume.ours).map(|(_, volume)| volume.uuid.clone());
                let outcome = world.delete(&name, &mut Fuse(crash));
                if !matches!(outcome, Ok(false)) {
                    // Once the caller asked, it may be gone.
                    oracle.created.remove(&name);
                }
                match outcome {
                    Ok(true) => oracle.deleted.extend(uuid),
                    Ok(false) => {}
                    Err(Crash) => drop(world.restart(crash)),
                }
            }
            Event::Vanish { name } => {
                let name = lv(name);
                if let Some((group, volume)) = world.find(&name)
                    && volume.ours
                {
                    oracle.vanished.insert(volume.uuid.clone());
                    oracle.created.remove(&name);
                    world.lvm.entry(group).or_default().remove(&name);
                }
            }
            Event::Foreign { name, group } => {
                world.made += 1;
                let uuid = format!("foreign-{}", world.made);
                let volumes = world.lvm.entry(group).or_default();
                if let Entry::Vacant(free) = volumes.entry(lv(name)) {
                    free.insert(Lv { uuid: uuid.clone(), ours: false, finished: true });
                    oracle.foreign.insert(uuid);
                }
            }
            Event::Readable { group, whole } => {
                if whole {
                    world.hidden.remove(&group)
                } else {
                    world.hidden.insert(group)
                };
            }
            Event::JournalLost => {
                world.journal = Contents::default();
                oracle.journal_was_lost = true;
                world.restart(None);
            }
            Event::Restart { crash } => drop(world.restart(crash)),
        }
    }
    world.hidden.clear();
    world.restart(None);
    check(&world, &oracle);
}

fn check(world: &World, oracle: &Oracle) {
    let steps = plan(&world.journal, &world.seen());
    let lost: BTreeSet<&LvName> =
        steps.iter().filter_map(|s| if let Step::Lost(lv) = s { Some(lv) } else { None }).collect();
    assert_eq!(steps.len(), lost.len(), "recovering again would do something again: {steps:?}");
    assert!(world.journal.operations.is_empty(), "{:?}", world.journal.operations);
    let all: BTreeMap<&str, (&LvName, &Lv)> =
        world.lvm.values().flatten().map(|(name, volume)| (volume.uuid.as_str(), (name, volume))).collect();
    for (name, uuid) in &oracle.created {
        let Some((_, volume)) = all.get(uuid.as_str()) else { panic!("{name}, acknowledged, is gone") };
        assert!(volume.finished || oracle.journal_was_lost, "{name} was never wiped");
    }
    for uuid in &oracle.deleted {
        assert!(!all.contains_key(uuid.as_str()), "{uuid}, deleted, is there");
    }
    for uuid in &oracle.foreign {
        assert!(all.contains_key(uuid.as_str()), "{uuid} was not ours and is gone");
    }
    let ours: BTreeMap<&LvName, &str> =
        all.values().filter(|(_, v)| v.ours).map(|(n, v)| (*n, v.uuid.as_str())).collect();
    for (name, uuid) in &ours {
        assert_eq!(world.journal.volumes.get(*name).map(|record| record.uuid.as_str()), Some(*uuid), "{name}");
    }
    for (name, record) in &world.journal.volumes {
        let is_lost = !ours.contains_key(name);
        assert_eq!(is_lost, lost.contains(name), "{name}");
        assert!(!is_lost || oracle.vanished.contains(&record.uuid), "{name} is said to be lost, and nobody took it");
    }
}

proptest! {
    #[test]
    fn whatever_happens_nothing_is_lost_leaked_or_doubled(events in events()) {
        run(events);
    }
}
