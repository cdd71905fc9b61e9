//! The volume groups of this node that Quarry has to do with: those that device classes name, and all that hold
//! volumes of ours, configured or not.
//!
//! **Invariant.** A volume is "absent" only when every group that holds or held volumes was found and read whole.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

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
    turn: tokio::sync::Mutex<()>,
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
        let on_unread = |group: &Group| group.known().devices().iter().any(|device| unread.contains(device));
        let kept: Vec<Arc<Group>> =
            self.all().into_iter().filter(|group| !is_found(group) && on_unread(group)).collect();
        let mut devices: Vec<ListedDevice> = ours.iter().flat_map(|found| listed_devices(&found.state)).collect();
        devices.extend(kept.iter().flat_map(|group| listed_devices(group.known().state())));
        self.system_dir.list_devices(&devices)?;
        let mut found = BTreeMap::new();
        for Found { state, listed } in ours {
            let reading = Reading::new(state);
            let uuid = reading.vg_uuid();
            if !reading.is_complete() {
                tracing::error!(vg = reading.name(), what = %reading.state().completeness, "volume group is not whole");
            }
            let group = match self.by_uuid(uuid) {
                Ok(known) => {
                    known.learn(reading)?;
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
        Ok(())
    }

    /// All groups on the node: those on devices that the configuration lists, and those on any other device unless
    /// every class lists its own; and the devices that could not be read.
    async fn discover(&self) -> Result<(Vec<Found>, BTreeSet<PathBuf>), ListError> {
        let classes = &self.config.device_classes;
        let listed: Vec<PathBuf> = classes.iter().flat_map(|class| class.devices.iter().cloned()).collect();
        let (mut all, mut unread) = (Vec::new(), BTreeSet::new());
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
        groups.get(&uuid).cloned().ok_or_else(|| Unreadable::Gone { vg: String::new(), uuid: uuid.to_string() })
    }

    /// The group of that name, if it is in use.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<Arc<Group>> {
        self.all().into_iter().find(|group| group.name() == name)
    }

    /// The group that has a logical volume of that name, freshly read: one of ours before any other. `None` says that
    /// none has, affirmed: all were read whole.
    ///
    /// # Errors
    /// [`Unreadable`] when no volume of ours was found and some group could not be read whole, or is gone.
    pub async fn locate(&self, lv: &LvName) -> Result<Option<(Arc<Group>, Arc<Reading>)>, Unreadable> {
        let (mut foreign, mut trouble) = (None, None);
        for group in self.all() {
            match group.read().await {
                Ok(reading) if reading.is_ours(lv) => return Ok(Some((group, reading))),
                Ok(reading) => {
                    if !reading.is_complete() {
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
        match trouble {
            Some(error) => Err(error),
            None => self.none_gone().map(|()| foreign),
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
        let here = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        let is_here = |uuid: &str| here.keys().any(|known| known.to_string() == uuid);
        match self.pins.all().into_iter().find(|(uuid, _)| !is_here(uuid)) {
            Some((uuid, vg)) => Err(Unreadable::Gone { vg, uuid }),
            None => Ok(()),
        }
    }
}

/// A group as a scan found it.
struct Found {
    state: GroupState,
    /// The devices that the scan was limited to; none where it was not.
    listed: Vec<PathBuf>,
}

/// The groups of a scan, its problems logged, the devices with problems noted.
fn found(discovery: Discovery, listed: &[PathBuf], unread: &mut BTreeSet<PathBuf>) -> Vec<Found> {
    for trouble in &discovery.problems {
        let (device, problem) = (trouble.device.display(), chain(&trouble.problem));
        tracing::warn!(%device, problem, "a block device is left out");
        unread.insert(trouble.device.clone());
    }
    discovery.groups.into_iter().map(|state| Found { state, listed: listed.to_vec() }).collect()
}

fn listed_devices(state: &GroupState) -> Vec<ListedDevice> {
    let devices = state.devices.iter();
    devices.map(|(uuid, path)| ListedDevice { path: path.clone(), pv_uuid: uuid.compact() }).collect()
}
