//! Keeps copies of the volume groups' metadata, for the day that a disk's own is destroyed.
//!
//! The driver reads LVM's text anyway, so a copy costs no process: a reading hands its text over when it is new, a task
//! writes it some seconds later. `vgcfgrestore -f` takes the files.
//!
//! **Invariant.** No request waits for a copy or fails for it, and only a reading that was whole is copied.

mod folder;
mod thinning;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::lvm::metadata::{LvmUuid, header};
use crate::telemetry::chain;

use super::Reading;
use folder::{BackupFolder, Copy};

/// The folder's name in the state folder.
const FOLDER: &str = "lvm-backup";

/// A group's copies are at least this far apart; so old the newest may be while the driver runs.
const PERIOD: Duration = Duration::from_secs(10);

/// How long the last copies may take at the driver's end.
const LAST_COPIES: Duration = Duration::from_secs(5);

/// The copies of all groups.
#[derive(Debug)]
pub struct Backups {
    folder: PathBuf,
    groups: Mutex<BTreeMap<LvmUuid, Group>>,
    new: Notify,
    written: AtomicU64,
    failures: AtomicU64,
}

/// What is known of one group's copies.
#[derive(Debug, Default)]
struct Group {
    /// The text that was last seen: written, or about to be.
    seen: Option<Fingerprint>,
    /// A text to write.
    pending: Option<Arc<Copy>>,
    /// When one was last written, or tried to be.
    tried: Option<Instant>,
    failing: bool,
}

/// Tells texts of one group apart. Not its sequence number alone: `vgcfgrestore` repeats numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fingerprint {
    seqno: u64,
    length: usize,
    checksum: u32,
}

impl Backups {
    /// In the state folder; nothing is written before there is something to keep.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self {
            folder: state_dir.join(FOLDER),
            groups: Mutex::default(),
            new: Notify::new(),
            written: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }

    /// How many copies were written since the start.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// How many could not be written since the start.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Takes the text out of a reading, to be written if it is new and the group was read whole. Some milliseconds at
    /// most, and no file is touched.
    pub fn learn(&self, reading: &mut Reading) {
        let Some(text) = reading.take_text().filter(|_| reading.is_complete()) else { return };
        let (uuid, seqno) = (reading.vg_uuid(), reading.state().group.seqno);
        let seen = Fingerprint { seqno, length: text.len(), checksum: header::checksum(&text) };
        let mut groups = self.groups();
        let group = groups.entry(uuid).or_default();
        if group.seen == Some(seen) {
            return;
        }
        group.seen = Some(seen);
        let (vg, vg_uuid) = (reading.name().to_owned(), uuid.to_string());
        group.pending = Some(Arc::new(Copy { vg, vg_uuid, seqno, text }));
        drop(groups);
        self.new.notify_one();
    }

    /// Writes copies until `done` is cancelled, and then once more what is still to be written.
    pub async fn keep(self: Arc<Self>, done: CancellationToken) {
        loop {
            let next = self.groups().values().filter_map(Group::due).min();
            let due = async {
                match next {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = done.cancelled() => break,
                () = self.new.notified() => {}
                () = due => self.write(|group| group.due().is_some_and(|due| due <= Instant::now())).await,
            }
        }
        let last = self.write(|group| group.pending.is_some());
        if tokio::time::timeout(LAST_COPIES, last).await.is_err() {
            tracing::error!(folder = %self.folder.display(), "the last copies of the volume groups' metadata were not written in time");
        }
    }

    /// Writes the pending copies of the groups that are chosen, one after the other.
    async fn write(&self, chosen: impl Fn(&Group) -> bool) {
        let due: Vec<LvmUuid> =
            self.groups().iter().filter(|(_, group)| chosen(group)).map(|(uuid, _)| *uuid).collect();
        for uuid in due {
            let Some(copy) = self.groups().get_mut(&uuid).and_then(Group::begin) else { continue };
            let (folder, of_thread) = (BackupFolder::new(&self.folder, &copy.vg), Arc::clone(&copy));
            let written = tokio::task::spawn_blocking(move || folder.add(&of_thread, Timestamp::now())).await;
            let result = written.unwrap_or_else(|panicked| Err(std::io::Error::other(panicked)));
            let mut groups = self.groups();
            let group = groups.entry(uuid).or_default();
            match result {
                Ok(path) => {
                    if path.is_some() {
                        self.written.fetch_add(1, Ordering::Relaxed);
                    }
                    if std::mem::take(&mut group.failing) {
                        tracing::info!(vg = copy.vg, "copies of the volume group's metadata are written again");
                    }
                    tracing::debug!(vg = copy.vg, seqno = copy.seqno, ?path, "metadata copied");
                }
                Err(error) => {
                    self.failures.fetch_add(1, Ordering::Relaxed);
                    // Tried again each period: said once.
                    if !std::mem::replace(&mut group.failing, true) {
                        let (vg, folder) = (&copy.vg, self.folder.display());
                        tracing::error!(vg, %folder, error = chain(&error), "cannot write a copy of the volume group's metadata");
                    }
                    group.pending.get_or_insert(copy);
                }
            }
        }
    }

    fn groups(&self) -> MutexGuard<'_, BTreeMap<LvmUuid, Group>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Group {
    /// When the pending copy may be written; none without one.
    fn due(&self) -> Option<Instant> {
        let earliest = self.tried.map_or_else(Instant::now, |tried| tried + PERIOD);
        self.pending.as_ref().map(|_| earliest)
    }

    fn begin(&mut self) -> Option<Arc<Copy>> {
        self.tried = Some(Instant::now());
        self.pending.take()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::lvm::metadata::assemble::{Completeness, Conflict, GroupState, MetadataRoom};
    use crate::lvm::metadata::model::VolumeGroup;

    fn reading(seqno: u64, note: &str) -> Reading {
        let text = format!(
            r#"vg {{
id = "oWJdY3-ZzO2-xDxg-beqd-gbAU-R1lE-YGMcfv"
seqno = {seqno}
format = "lvm2"
status = ["RESIZEABLE", "READ", "WRITE"]
flags = []
extent_size = 8192
max_lv = 0
physical_volumes {{
}}
}}
contents = "Text Format Volume Group"
version = 1
# {note}
"#
        );
        let text: Arc<[u8]> = text.into_bytes().into();
        Reading::new(GroupState {
            group: Arc::new(VolumeGroup::from_text(&text).unwrap()),
            devices: BTreeMap::new(),
            completeness: Completeness::default(),
            room: MetadataRoom { largest_text: 0, text: 0 },
            text: Some(text),
        })
    }

    fn kept(dir: &tempfile::TempDir) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(dir.path().join("lvm-backup/vg"))
            .map(|entries| entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
            .unwrap_or_default();
        names.sort();
        names
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_text_is_written_at_once_the_next_ones_only_each_period_the_last_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let backups = Arc::new(Backups::new(dir.path()));
        let done = CancellationToken::new();
        let task = tokio::spawn(Arc::clone(&backups).keep(done.clone()));
        backups.learn(&mut reading(1, ""));
        tokio::time::sleep(PERIOD / 2).await;
        assert_eq!((kept(&dir).len(), backups.written()), (1, 1));
        for seqno in 2..=20 {
            backups.learn(&mut reading(seqno, ""));
        }
        backups.learn(&mut reading(20, ""));
        tokio::time::sleep(PERIOD / 4).await;
        assert_eq!(backups.written(), 1);
        tokio::time::sleep(PERIOD).await;
        assert_eq!(backups.written(), 2, "the newest of them, and none twice");
        assert!(kept(&dir)[1].ends_with("-0000000020.vg"), "{:?}", kept(&dir));
        // The same number with other contents, as after a vgcfgrestore.
        backups.learn(&mut reading(20, "restored"));
        done.cancel();
        task.await.unwrap();
        assert_eq!((kept(&dir).len(), backups.written(), backups.failures()), (3, 3, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_read_whole_is_not_kept_and_its_text_is_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let backups = Arc::new(Backups::new(dir.path()));
        let mut state = reading(1, "").state().clone();
        state.completeness.conflicts.push(Conflict { device: "/dev/vda".into(), what: "two truths".to_owned() });
        let mut torn = Reading::new(state);
        backups.learn(&mut torn);
        assert_eq!(torn.take_text(), None);
        let done = CancellationToken::new();
        done.cancel();
        Arc::clone(&backups).keep(done).await;
        assert_eq!((backups.written(), kept(&dir).len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_that_cannot_be_written_is_counted_and_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let obstacle = dir.path().join("lvm-backup");
        std::fs::write(&obstacle, "no folder").unwrap();
        let backups = Arc::new(Backups::new(dir.path()));
        let task = tokio::spawn(Arc::clone(&backups).keep(CancellationToken::new()));
        backups.learn(&mut reading(7, ""));
        tokio::time::sleep(PERIOD * 5 / 2).await;
        assert_eq!((backups.written(), backups.failures()), (0, 3));
        std::fs::remove_file(&obstacle).unwrap();
        tokio::time::sleep(PERIOD).await;
        assert_eq!((backups.written(), kept(&dir).len()), (1, 1));
        task.abort();
    }
}
