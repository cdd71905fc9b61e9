//! Which volume groups hold volumes of ours, kept across restarts.
//!
//! A group that held volumes and is not found now makes nothing absent: its disk may come back. And a group is known by
//! its UUID: another one of the same name is not it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::crash;

/// The file's name in the state folder.
const FILE: &str = "volume-groups.json";

/// The groups that hold volumes: name by UUID.
#[derive(Debug)]
pub struct Pins {
    path: PathBuf,
    groups: Mutex<BTreeMap<String, String>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    /// Name by UUID.
    groups: BTreeMap<String, String>,
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
                file.groups
            }
        };
        Ok(Self { path, groups: Mutex::new(groups) })
    }

    /// The groups that hold volumes as far as is known: UUID and name.
    #[must_use]
    pub fn all(&self) -> Vec<(String, String)> {
        let groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.iter().map(|(uuid, name)| (uuid.clone(), name.clone())).collect()
    }

    /// The UUID that a group of that name must have.
    #[must_use]
    pub fn uuid_of(&self, name: &str) -> Option<String> {
        let groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.iter().find(|(_, pinned)| *pinned == name).map(|(uuid, _)| uuid.clone())
    }

    /// Notes whether a group holds volumes; the file is written when that is new.
    ///
    /// # Errors
    /// [`PinError::Io`].
    pub fn note(&self, uuid: &str, name: &str, holds: bool) -> Result<(), PinError> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let before = if holds { groups.insert(uuid.to_owned(), name.to_owned()) } else { groups.remove(uuid) };
        let unchanged = if holds { before.as_deref() == Some(name) } else { before.is_none() };
        if unchanged {
            return Ok(());
        }
        let file = File { version: VERSION, groups: groups.clone() };
        self.write(&file).map_err(|source| PinError::Io { action: "write", path: self.path.clone(), source })
    }

    /// Forgets groups by name or UUID; those that were noted.
    ///
    /// # Errors
    /// [`PinError::Io`].
    pub fn forget(&self, group: &str) -> Result<Vec<(String, String)>, PinError> {
        let of: Vec<(String, String)> =
            self.all().into_iter().filter(|(uuid, name)| uuid == group || name == group).collect();
        for (uuid, name) in &of {
            self.note(uuid, name, false)?;
        }
        Ok(of)
    }

    fn write(&self, file: &File) -> io::Result<()> {
        let new = self.path.with_extension("new");
        crash::point("pins.write.before");
        let mut out = fs::File::create(&new)?;
        crash::point("pins.write.created");
        out.write_all(&serde_json::to_vec_pretty(file)?)?;
        out.sync_all()?;
        crash::point("pins.write.written");
        fs::rename(&new, &self.path)?;
        crash::point("pins.write.renamed");
        fs::File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
        crash::point("pins.write.after");
        Ok(())
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
        pins.note("u1", "quarry", true).unwrap();
        pins.note("u2", "fast", true).unwrap();
        pins.note("u2", "fast", false).unwrap();
        let pins = Pins::open(dir.path()).unwrap();
        assert_eq!(pins.all(), [("u1".to_owned(), "quarry".to_owned())]);
        assert_eq!(pins.uuid_of("quarry").as_deref(), Some("u1"));
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
