//! The volumes that are being made: their room is given away before LVM knows of them.
//!
//! **Invariant.** Of two creations at once each counts those that began before it, so that no room is promised twice; a
//! volume that its group's metadata shows is counted there alone.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::lvm::metadata::LvmUuid;
use crate::volume::capacity::{Demand, Ledger, Policy};
use crate::volume::{Bytes, LvName, Provisioning};

use super::changes::Reason;
use super::{Engine, Reading};

/// The volumes that are being made, in the order in which they began.
#[derive(Debug, Default)]
pub struct UnderWay {
    entries: Mutex<Entries>,
}

/// See [`UnderWay`].
#[derive(Debug, Default)]
pub struct Entries {
    next: u64,
    all: BTreeMap<u64, BeingMade>,
}

/// A volume that is being made.
#[derive(Debug, Clone)]
pub struct BeingMade {
    /// Its name.
    pub lv: LvName,
    /// Its volume group.
    pub vg: LvmUuid,
    /// What its class's configuration says.
    pub policy: Policy,
    /// Thin or thick.
    pub provisioning: Provisioning,
    /// Its size.
    pub size: Bytes,
}

/// A volume's place among those that are being made, given up when dropped.
#[derive(Debug)]
#[must_use = "its room is free again when this is dropped"]
pub struct Place<'a> {
    engine: &'a Engine,
    number: u64,
}

impl UnderWay {
    /// All of them; nobody else begins while this is held.
    pub fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a thin volume is being made in the group.
    #[must_use]
    pub fn has_thin(&self, vg: LvmUuid) -> bool {
        self.entries().all.values().any(|entry| entry.vg == vg && entry.provisioning == Provisioning::Thin)
    }
}

impl Entries {
    /// Whether the volume is being made.
    #[must_use]
    pub fn has(&self, lv: &LvName) -> bool {
        self.all.values().any(|entry| entry.lv == *lv)
    }

    /// Takes from a group's ledger what is being made there and not shown by its reading: all, or what began before a
    /// place. One that does not fit any more is refused when its turn comes, and takes nothing.
    pub fn take_from(&self, ledger: &mut Ledger, reading: &Reading, before: Option<&Place<'_>>) {
        let earlier = self.all.iter().filter(|(number, _)| before.is_none_or(|place| **number < place.number));
        for (_, entry) in earlier.filter(|(_, entry)| entry.vg == reading.vg_uuid() && !reading.has(&entry.lv)) {
            let BeingMade { policy, provisioning, size, .. } = entry;
            let demand = Demand { group: reading.name(), policy, provisioning: *provisioning, size: *size };
            if let Err(room) = ledger.make(&demand) {
                tracing::debug!(volume = %entry.lv, largest = %room.largest, "what is being made does not fit any more");
            }
        }
    }

    /// Adds a volume behind all others.
    pub fn add<'a>(&mut self, engine: &'a Engine, entry: BeingMade) -> Place<'a> {
        let number = self.next;
        self.next += 1;
        self.all.insert(number, entry);
        engine.changes.hint(Reason::BeingMade);
        Place { engine, number }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.engine.under_way.entries().all.remove(&self.number);
        self.engine.changes.hint(Reason::NotMade);
    }
}
