//! The volume groups of this node that Quarry has to do with: those that device classes name, and all that hold
//! volumes of ours, configured or not.
//!
//! **Invariant.** A volume is "absent" only when every group that holds or held volumes was found and read whole.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::lvm::block_devices::ListError;
use crate::lvm::discover::{Discovery, Scanner};
use crate::lvm::metadata::LvmUuid;
use crate::lvm::metadata::assemble::GroupState;
use crate::lvm::system_dir::{ListedDevice, SystemDir, SystemDirError};
use crate::telemetry::chain;
use crate::volume::LvName;

use super::Reading;
use super::backups::Backups;
use super::group::{Group, Unreadable};
use super::pins::{PinError, Pins};

/// How long a disk may take to show its metadata before it counts as hanging.
const READ_LIMIT: Duration = Duration::from_secs(10);

/// The groups in use, by UUID.
#[derive(Debug)]
pub struct Groups {
    config: Arc<Config>,
    pins: Arc<Pins>,
    backups: Arc<Backups>,
    system_dir: SystemDir,
    scanner: Scanner,
    groups: RwLock<BTreeMap<LvmUuid, Arc<Group>>>,
    sights: RwLock<Sights>,
    turn: tokio::sync::Mutex<()>,
}

/// What the last look at all devices left open.
#[derive(Debug, Clone, Default)]
pub struct Sights {
    /// The devices that could not be read, and why.
    pub unread: BTreeMap<PathBuf, String>,
    /// Groups that are wanted and were not found, and since when.
    pub missing: BTreeMap<String, Instant>,
}

/// Which groups must be read anew for an answer, whatever it takes, and for which the last whole reading will do where a
/// disk hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness<'a> {
    /// All are read: for whoever concludes that a volume is absent.
    All,
    /// The one in which a volume of this class is to be. A group that cannot be read, or not whole, keeps none from being
    /// made elsewhere: what was in it when it was last read is known, and one that was not read since the start counts
    /// only if it held volumes of the class.
    For {
        /// The group.
        group: LvmUuid,
        /// The class.
        class: &'a str,
    },
    /// None need be: for whoever only tells what is known.
    Known,
}

/// Why the groups could not be looked up.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The devices file.
    #[error(transparent)]
    SystemDir(#[from] SystemDirError),
    /// The note of which groups hold volumes.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The node's block devices.
    #[error(transparent)]
    Discover(#[from] ListError),
}

impl Groups {
    /// No groups yet; [`Groups::scan`] finds them.
    #[must_use]
    pub fn new(config: Arc<Config>, pins: Arc<Pins>, backups: Arc<Backups>, system_dir: SystemDir) -> Self {
        Self {
            config,
            pins,
            backups,
            system_dir,
            scanner: Scanner::new(READ_LIMIT),
            groups: RwLock::default(),
            sights: RwLock::default(),
            turn: tokio::sync::Mutex::new(()),
        }
    }

    /// Looks at all block devices and takes up the groups that concern us. LVM is told of exactly their devices.
    ///
    /// # Errors
    /// [`ScanError`] when the devices cannot be listed or the result not be noted.
    pub async fn scan(&self) -> Result<(), ScanError> {
        let _turn = self.turn.lock().await;
        let (all, unread) = self.discover().await?;
        let ours = self.select(all);
        // A disk that could not be read says nothing: a group on it stays known, and says itself what is wrong with it.
        let is_found = |group: &Group| ours.iter().any(|found| found.state.group.uuid == group.uuid());
        let on_unread = |group: &Group| group.known().devices().iter().any(|device| unread.contains_key(device));
        let kept: Vec<Arc<Group>> =
            self.all().into_iter().filter(|group| !is_found(group) && on_unread(group)).collect();
        let mut devices: Vec<ListedDevice> = ours.iter().flat_map(|found| listed_devices(&found.state)).collect();
        devices.extend(kept.iter().flat_map(|group| listed_devices(group.known().state())));
        self.system_dir.list_devices(&devices)?;
        let mut found = BTreeMap::new();
        for Found { state, listed } in ours {
            let reading = Reading::new(state);
            let uuid = reading.vg_uuid();
            let known_trouble = self.by_uuid(uuid).is_ok_and(|group| group.condition().trouble.is_some());
            if !reading.is_complete() && !known_trouble {
                tracing::error!(vg = reading.name(), what = %reading.state().completeness, "volume group is not whole");
            }
            let group = match self.by_uuid(uuid) {
                Ok(known) => {
                    // What was read without the disk that could not be is less than what is known.
                    if reading.is_complete() || !on_unread(&known) {
                        known.learn(reading)?;
                    }
                    known
                }
                Err(_) => {
                    tracing::info!(vg = reading.name(), %uuid, devices = ?reading.devices(), "volume group found");
                    let (pins, backups) = (Arc::clone(&self.pins), Arc::clone(&self.backups));
                    Arc::new(Group::new(reading, pins, backups, self.scanner.clone(), listed)?)
                }
            };
            found.insert(uuid, group);
        }
        found.extend(kept.into_iter().map(|group| (group.uuid(), group)));
        *self.groups.write().unwrap_or_else(PoisonError::into_inner) = found;
        self.note_sights(unread);
        Ok(())
    }

    fn note_sights(&self, unread: BTreeMap<PathBuf, String>) {
        // Looked at every few seconds while something is amiss, told once.
        let before = self.sights().unread;
        for (device, problem) in unread.iter().filter(|(device, _)| !before.contains_key(*device)) {
            tracing::warn!(device = %device.display(), problem, "a block device is left out");
        }
        for device in before.keys().filter(|device| !unread.contains_key(*device)) {
            tracing::info!(device = %device.display(), "a block device is no longer left out");
        }
        let classes = self.config.device_classes.iter().map(|class| class.volume_group.clone());
        let wanted = classes.filter(|vg| self.by_name(vg).is_none()).chain(self.gone().into_iter().map(|(_, vg)| vg));
        let mut sights = self.sights.write().unwrap_or_else(PoisonError::into_inner);
        let since = |vg: &String| sights.missing.get(vg).copied().unwrap_or_else(Instant::now);
        let missing = wanted.map(|vg| (vg.clone(), since(&vg))).collect();
        *sights = Sights { unread, missing };
    }

    /// What the last look at all devices left open.
    #[must_use]
    pub fn sights(&self) -> Sights {
        self.sights.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All groups on the node: those on devices that the configuration lists, and those on any other device unless
    /// every class lists its own; and the devices that could not be read.
    async fn discover(&self) -> Result<(Vec<Found>, BTreeMap<PathBuf, String>), ListError> {
        let classes = &self.config.device_classes;
        let listed: Vec<PathBuf> = classes.iter().flat_map(|class| class.devices.iter().cloned()).collect();
        let (mut all, mut unread) = (Vec::new(), BTreeMap::new());
        if !listed.is_empty() {
            all.extend(found(self.scanner.scan(&listed).await?, &listed, &mut unread));
        }
        if classes.iter().any(|class| class.devices.is_empty()) || classes.is_empty() {
            all.extend(found(self.scanner.scan(&[]).await?, &[], &mut unread));
        }
        // A group on listed devices is found twice; the first finding knows of loop devices too.
        let mut seen = BTreeSet::new();
        all.retain(|found| seen.insert(found.state.group.uuid));
        Ok((all, unread))
    }

    /// Of all groups on the node, those that hold volumes of ours or that a device class names; of several groups with
    /// one name only the one that is known to be ours, and none where that is not known.
    fn select(&self, all: Vec<Found>) -> Vec<Found> {
        let names: Vec<String> = all.iter().map(|found| found.state.group.name.clone()).collect();
        let wanted = |found: &Found| {
            let (name, uuid) = (&found.state.group.name, found.state.group.uuid.to_string());
            let holds = found.state.group.logical_volumes.values().any(|lv| lv.has_tag(crate::volume::tags::MARK));
            if !holds && !self.config.device_classes.iter().any(|class| class.volume_group == *name) {
                return false;
            }
            match self.pins.uuid_of(name) {
                Some(pinned) if pinned == uuid => true,
                Some(pinned) => {
                    tracing::error!(
                        vg = name,
                        uuid,
                        pinned,
                        "a volume group has the name of one that held volumes and another UUID: not used"
                    );
                    false
                }
                None if names.iter().filter(|other| *other == name).count() > 1 => {
                    tracing::error!(
                        vg = name,
                        uuid,
                        "several volume groups have one name: none is used (vgrename UUID NEW-NAME)"
                    );
                    false
                }
                None => true,
            }
        };
        all.into_iter().filter(wanted).collect()
    }

    /// Takes up a group as it was read, without its disks.
    #[cfg(test)]
    pub fn adopt(&self, reading: Reading) {
        let (pins, backups) = (Arc::clone(&self.pins), Arc::clone(&self.backups));
        let group = Arc::new(Group::new(reading, pins, backups, self.scanner.clone(), Vec::new()).unwrap());
        group.settle();
        self.groups.write().unwrap().insert(group.uuid(), group);
    }

    /// All groups in use.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Group>> {
        self.groups.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The group with that UUID.
    ///
    /// # Errors
    /// [`Unreadable::Gone`] when it is not there any more.
    pub fn by_uuid(&self, uuid: LvmUuid) -> Result<Arc<Group>, Unreadable> {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        groups.get(&uuid).cloned().ok_or_else(|| {
            let uuid = uuid.to_string();
            let vg = self.pins.all().into_iter().find(|(pinned, _)| *pinned == uuid).map(|(_, name)| name);
            Unreadable::Gone { vg: vg.unwrap_or_default(), uuid }
        })
    }

    /// The group of that name, if it is in use.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<Arc<Group>> {
        self.all().into_iter().find(|group| group.name() == name)
    }

    /// The group that has a logical volume of that name: one of ours before any other, and as soon as it is seen,
    /// whatever other groups do. `None` says that none has, affirmed as far as `freshness` asks.
    ///
    /// # Errors
    /// [`Unreadable`] when no volume of ours was found and some group could not be read whole, or is gone.
    pub async fn locate(
        &self,
        lv: &LvName,
        freshness: Freshness<'_>,
    ) -> Result<Option<(Arc<Group>, Arc<Reading>)>, Unreadable> {
        let mut reads = tokio::task::JoinSet::new();
        for group in self.all() {
            let known = freshness == Freshness::Known;
            let beside = matches!(freshness, Freshness::For { group: own, .. } if own != group.uuid());
            reads.spawn(async move {
                let read = match (known, beside) {
                    (true, _) => group.read_or_known().await,
                    (_, true) => Ok(group.read_or_known().await.unwrap_or_else(|_| group.known())),
                    (false, false) => group.read().await,
                };
                (group, read, beside)
            });
        }
        let (mut foreign, mut trouble) = (None, None);
        while let Some(read) = reads.join_next().await {
            let Ok((group, read, beside)) = read else {
                let source = "reading it was cut off".into();
                trouble = Some(Unreadable::Group { vg: "?".to_owned(), source });
                continue;
            };
            match read {
                Ok(reading) if reading.is_ours(lv) => {
                    // The other reads go on to their ends, and are noted.
                    reads.detach_all();
                    return Ok(Some((group, reading)));
                }
                Ok(reading) => {
                    if !reading.is_complete() && !beside {
                        let what = reading.state().completeness.to_string();
                        trouble = Some(Unreadable::Incomplete { vg: group.name().to_owned(), what });
                    }
                    if reading.has(lv) {
                        foreign = Some((group, reading));
                    }
                }
                Err(error) => trouble = Some(error),
            }
        }
        match (trouble, freshness) {
            (Some(error), _) => Err(error),
            (None, Freshness::For { class, .. }) => {
                self.none_gone_of(|uuid| self.pins.may_hold(uuid, class)).map(|()| foreign)
            }
            (None, _) => self.none_gone().map(|()| foreign),
        }
    }

    /// Forgets groups that held volumes and are gone, by name or UUID.
    ///
    /// # Errors
    /// [`PinError`].
    pub fn forget(&self, group: &str) -> Result<Vec<(String, String)>, PinError> {
        self.pins.forget(group)
    }

    /// Whether every group that held volumes when it was last seen is there.
    ///
    /// # Errors
    /// [`Unreadable::Gone`] naming the first that is not.
    pub fn none_gone(&self) -> Result<(), Unreadable> {
        self.none_gone_of(|_| true)
    }

    fn none_gone_of(&self, concerns: impl Fn(&str) -> bool) -> Result<(), Unreadable> {
        match self.gone().into_iter().find(|(uuid, _)| concerns(uuid)) {
            Some((uuid, vg)) => Err(Unreadable::Gone { vg, uuid }),
            None => Ok(()),
        }
    }

    /// The groups that held volumes when they were last seen and are not there: UUID and name.
    #[must_use]
    pub fn gone(&self) -> Vec<(String, String)> {
        let here = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        let is_here = |uuid: &str| here.keys().any(|known| known.to_string() == uuid);
        self.pins.all().into_iter().filter(|(uuid, _)| !is_here(uuid)).collect()
    }
}

/// A group as a scan found it.
struct Found {
    state: GroupState,
    /// The devices that the scan was limited to; none where it was not.
    listed: Vec<PathBuf>,
}

/// The groups of a scan, the devices with problems noted.
fn found(discovery: Discovery, listed: &[PathBuf], unread: &mut BTreeMap<PathBuf, String>) -> Vec<Found> {
    for trouble in &discovery.problems {
        unread.insert(trouble.device.clone(), chain(&trouble.problem));
    }
    discovery.groups.into_iter().map(|state| Found { state, listed: listed.to_vec() }).collect()
}

fn listed_devices(state: &GroupState) -> Vec<ListedDevice> {
    let devices = state.devices.iter();
    devices.map(|(uuid, path)| ListedDevice { path: path.clone(), pv_uuid: uuid.compact() }).collect()
}
