//! Which volume groups hold volumes of ours, kept across restarts.
//!
//! A group that held volumes and is not found now makes nothing absent: its disk may come back. And a group is known by
//! its UUID: another one of the same name is not it. Which device classes its volumes are of is kept too: a volume of
//! another class is not among those that cannot be seen.
//!
//! **Invariant.** Asking never waits for a disk, also while the file is being written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::durable;

/// The file's name in the state folder.
const FILE: &str = "volume-groups.json";

/// The groups that hold volumes.
#[derive(Debug)]
pub struct Pins {
    path: PathBuf,
    groups: Mutex<BTreeMap<String, Pin>>,
    /// Held while the file is written.
    writing: Mutex<()>,
}

/// A group that holds volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pin {
    name: String,
    /// The device classes of its volumes; nothing where they are not known.
    classes: Option<BTreeSet<String>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    /// Name by UUID.
    groups: BTreeMap<String, String>,
    /// Device classes by UUID.
    #[serde(default)]
    classes: BTreeMap<String, BTreeSet<String>>,
}

const VERSION: u32 = 1;

/// The file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The system's reason.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file's contents.
    #[error("{} is damaged; if the volume groups on this node are the ones it should have, remove the file", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        #[source]
        source: serde_json::Error,
    },
    /// The file is from the future.
    #[error("{} has version {version}, this driver knows version {VERSION}: a newer Quarry wrote it", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
}

impl Pins {
    /// Reads the file in the state folder; there is none at first.
    ///
    /// # Errors
    /// [`PinError`].
    pub fn open(state_dir: &Path) -> Result<Self, PinError> {
        let path = state_dir.join(FILE);
        let groups = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(source) => return Err(PinError::Io { action: "read", path, source }),
            Ok(json) => {
                let file: File =
                    serde_json::from_slice(&json).map_err(|source| PinError::Damaged { path: path.clone(), source })?;
                if file.version != VERSION {
                    return Err(PinError::Newer { path, version: file.version });
                }
                let mut classes = file.classes;
                let pin = |(uuid, name)| {
                    let classes = classes.remove(&uuid);
                    (uuid, Pin { name, classes })
                };
                file.groups.into_iter().map(pin).collect()
            }
        };
        Ok(Self { path, groups: Mutex::new(groups), writing: Mutex::new(()) })
    }

    fn groups(&self) -> MutexGuard<'_, BTreeMap<String, Pin>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The groups that hold volumes as far as is known: UUID and name.
    #[must_use]
    pub fn all(&self) -> Vec<(String, String)> {
        self.groups().iter().map(|(uuid, pin)| (uuid.clone(), pin.name.clone())).collect()
    }

    /// The UUID that a group of that name must have.
    #[must_use]
    pub fn uuid_of(&self, name: &str) -> Option<String> {
        self.groups().iter().find(|(_, pin)| pin.name == name).map(|(uuid, _)| uuid.clone())
    }

    /// Whether volumes of that device class may be in the group.
    #[must_use]
    pub fn may_hold(&self, uuid: &str, class: &str) -> bool {
        let groups = self.groups();
        // A class without a name: one that a volume's tags did not tell.
        let holds = |classes: &BTreeSet<String>| classes.contains(class) || classes.contains("");
        groups.get(uuid).is_some_and(|pin| pin.classes.as_ref().is_none_or(holds))
    }

    /// Notes of which classes a group holds volumes, none at all where it holds no volumes; the file is written when that
    /// is new.
    ///
    /// # Errors
    /// [`PinError::Io`].
    pub fn note(&self, uuid: &str, name: &str, classes: BTreeSet<String>) -> Result<(), PinError> {
        let wanted = (!classes.is_empty()).then(|| Pin { name: name.to_owned(), classes: Some(classes) });
        if self.groups().get(uuid) == wanted.as_ref() {
            return Ok(());
        }
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut groups = self.groups().clone();
        match wanted {
            Some(pin) => groups.insert(uuid.to_owned(), pin),
            None => groups.remove(uuid),
        };
        let classes = groups.iter().filter_map(|(uuid, pin)| Some((uuid.clone(), pin.classes.clone()?)));
        let names = groups.iter().map(|(uuid, pin)| (uuid.clone(), pin.name.clone()));
        let file = File { version: VERSION, groups: names.collect(), classes: classes.collect() };
        self.write(&file).map_err(|source| PinError::Io { action: "write", path: self.path.clone(), source })?;
        *self.groups() = groups;
        Ok(())
    }

    /// Forgets groups by name or UUID; those that were noted.
    ///
    /// # Errors
    /// [`PinError::Io`].
    pub fn forget(&self, group: &str) -> Result<Vec<(String, String)>, PinError> {
        let of: Vec<(String, String)> =
            self.all().into_iter().filter(|(uuid, name)| uuid == group || name == group).collect();
        for (uuid, name) in &of {
            self.note(uuid, name, BTreeSet::new())?;
        }
        Ok(of)
    }

    fn write(&self, file: &File) -> io::Result<()> {
        durable::replace(&self.path, &serde_json::to_vec_pretty(file)?, "pins")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_with_volumes_are_remembered_and_empty_ones_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let pins = Pins::open(dir.path()).unwrap();
        assert!(pins.all().is_empty());
        let classes = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        pins.note("u1", "quarry", classes(&["a", "b"])).unwrap();
        pins.note("u2", "fast", classes(&["a"])).unwrap();
        pins.note("u2", "fast", classes(&[])).unwrap();
        let pins = Pins::open(dir.path()).unwrap();
        assert_eq!(pins.all(), [("u1".to_owned(), "quarry".to_owned())]);
        assert_eq!(pins.uuid_of("quarry").as_deref(), Some("u1"));
        assert!(pins.may_hold("u1", "b") && !pins.may_hold("u1", "c") && !pins.may_hold("u2", "a"));
    }

    #[test]
    fn a_group_whose_classes_were_not_noted_may_hold_volumes_of_any() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{\"version\":1,\"groups\":{\"u1\":\"quarry\"}}").unwrap();
        assert!(Pins::open(dir.path()).unwrap().may_hold("u1", "any"));
    }

    #[test]
    fn a_damaged_or_newer_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{\"version\":1,").unwrap();
        assert!(matches!(Pins::open(dir.path()), Err(PinError::Damaged { .. })));
        fs::write(dir.path().join(FILE), "{\"version\":2,\"groups\":{}}").unwrap();
        assert!(matches!(Pins::open(dir.path()), Err(PinError::Newer { version: 2, .. })));
    }
}
