//! What was on disks and cgroups before the driver changed them, on file: so that a driver that was started anew knows
//! what is its own, and everything can be put back.
//!
//! **Invariant.** A note is on file before the change that it is about. Notes of an earlier boot say nothing: the kernel
//! has forgotten all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const FILE: &str = "io.json";

/// What a disk had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskNote {
    /// Its line in `io.cost.qos`, without the number.
    pub qos: Option<String>,
    /// Its line in `io.cost.model`, without the number.
    pub model: Option<String>,
    /// Its scheduler, where that was changed.
    pub scheduler: Option<String>,
    /// BFQ's `low_latency`, where BFQ was on already.
    pub low_latency: Option<String>,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OnFile {
    boot: String,
    disks: BTreeMap<String, DiskNote>,
    /// Files of cgroups in which a device has a line of ours.
    lines: BTreeSet<(PathBuf, String)>,
}

/// The notes of this boot.
#[derive(Debug)]
pub struct Notes {
    path: PathBuf,
    held: OnFile,
}

/// The notes cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum NotesError {
    /// A file.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It is not what was written.
    #[error("{} is not understood; it tells what was set on disks and cgroups in this boot: put these back by hand and delete it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
}

impl Notes {
    /// Opens the notes in the state folder. `boot` is this boot's id (`/proc/sys/kernel/random/boot_id`).
    ///
    /// # Errors
    /// [`NotesError`].
    pub fn open(state_dir: &Path, boot: &str) -> Result<Self, NotesError> {
        let path = state_dir.join(FILE);
        let held = match fs::read(&path) {
            Ok(text) => {
                let held = serde_json::from_slice::<OnFile>(&text);
                held.map_err(|source| NotesError::Damaged { path: path.clone(), source })?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => OnFile::default(),
            Err(source) => return Err(NotesError::Io { action: "read", path, source }),
        };
        let held = if held.boot == boot { held } else { OnFile { boot: boot.to_owned(), ..OnFile::default() } };
        Ok(Self { path, held })
    }

    /// What a disk had, where it was changed.
    #[must_use]
    pub fn disk(&self, name: &str) -> Option<&DiskNote> {
        self.held.disks.get(name)
    }

    /// All of them.
    #[must_use]
    pub fn disks(&self) -> &BTreeMap<String, DiskNote> {
        &self.held.disks
    }

    /// The lines of ours: a cgroup's file, and the device's number.
    #[must_use]
    pub fn lines(&self) -> &BTreeSet<(PathBuf, String)> {
        &self.held.lines
    }

    /// Whether anything of ours is anywhere.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.disks.is_empty() && self.held.lines.is_empty()
    }

    /// Before a disk is changed.
    ///
    /// # Errors
    /// [`NotesError`]; then the disk must not be changed.
    pub fn note_disk(&mut self, name: &str, note: DiskNote) -> Result<(), NotesError> {
        self.held.disks.insert(name.to_owned(), note);
        self.write()
    }

    /// After a disk was put back.
    ///
    /// # Errors
    /// [`NotesError`].
    pub fn forget_disk(&mut self, name: &str) -> Result<(), NotesError> {
        self.held.disks.remove(name);
        self.write()
    }

    /// Before lines are written, and after others were taken back: these are all that are there.
    ///
    /// # Errors
    /// [`NotesError`]; then no line must be written.
    pub fn set_lines(&mut self, lines: BTreeSet<(PathBuf, String)>) -> Result<(), NotesError> {
        if lines == self.held.lines {
            return Ok(());
        }
        self.held.lines = lines;
        self.write()
    }

    /// Not synchronised: what a power cut takes is of a boot that is over.
    fn write(&self) -> Result<(), NotesError> {
        let new = self.path.with_extension("json.new");
        let text = serde_json::to_vec_pretty(&self.held).map_err(io::Error::other);
        let written = text.and_then(|text| fs::write(&new, text)).and_then(|()| fs::rename(&new, &self.path));
        written.map_err(|source| NotesError::Io { action: "write", path: self.path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_last_through_a_restart_and_not_through_a_boot() {
        let dir = tempfile::tempdir().unwrap();
        let note = DiskNote { qos: Some("enable=0".to_owned()), model: None, scheduler: None, low_latency: None };
        let mut notes = Notes::open(dir.path(), "one").unwrap();
        assert!(notes.is_empty());
        notes.note_disk("sda", note.clone()).unwrap();
        let line = (PathBuf::from("/sys/fs/cgroup/kubepods/pod1/io.max"), "253:1".to_owned());
        notes.set_lines([line.clone()].into()).unwrap();
        let again = Notes::open(dir.path(), "one").unwrap();
        assert_eq!((again.disk("sda"), again.lines().contains(&line)), (Some(&note), true));
        assert!(Notes::open(dir.path(), "two").unwrap().is_empty());
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(matches!(Notes::open(dir.path(), "one"), Err(NotesError::Damaged { .. })));
    }
}
