//! The journal: what the driver is about to do, and what LVM cannot know.
//!
//! Intents are written before their side effects, records after them. LVM's tags stay the truth of what exists: the
//! journal may be deleted at any time and no volume is lost. What it adds: an operation that was cut off is finished or
//! taken back at the next start; a volume whose logical volume vanished is known to be lost; and what is staged and
//! published where, and for which pod.
//!
//! Filesystems and zeroing need no intents of their own: a volume's stage, a tag in LVM's metadata, says how far they are.
//!
//! **Invariant.** When [`Journal::write`] returns, its changes survive a power cut, all of them or, on an error, none.

mod aside;
mod contents;
#[cfg(feature = "crash-points")]
mod forgetful;
mod row;
mod sled_journal;
mod store;
mod witness;

use std::sync::Arc;
use std::time::Duration;

use crate::telemetry::health::{Check, Fault};

pub use contents::Contents;
#[cfg(feature = "crash-points")]
pub use forgetful::Forgetful;
pub use row::{Change, Claim, Entry, Key, Operation, OperationKind, Origin, Pod, Published, Staged, VolumeRecord};
pub use sled_journal::{OpenJournalError, Opened, Rebuilt, SledJournal};

/// Keeps rows across restarts. The one implementation is [`SledJournal`]; the trait is the seam for another store.
#[tonic::async_trait]
pub trait Journal: Send + Sync + std::fmt::Debug {
    /// Makes all the changes or none; they are on disk when this returns. Writers at the same time share one
    /// synchronisation of the disk. `what` names the write in logs, e.g. `create.intent`.
    ///
    /// # Errors
    /// [`JournalError`]; nothing was changed as far as later reads say, and the next write tries to mend the store.
    async fn write(&self, what: &'static str, changes: Vec<Change>) -> Result<(), JournalError>;

    /// What it holds, from memory.
    fn contents(&self) -> Arc<Contents>;

    /// How it fares.
    fn status(&self) -> JournalStatus;
}

/// A write that takes longer than this is told: the disk of the state folder hangs.
const SLOW: Duration = Duration::from_secs(10);

/// Tells what is amiss with a journal.
#[derive(Debug)]
pub struct JournalCheck(pub Arc<dyn Journal>);

impl Check for JournalCheck {
    fn faults(&self) -> Vec<Fault> {
        let status = self.0.status();
        let fault = |reason: String, since| Fault { subject: "journal".to_owned(), reason, since };
        let failing = status.failing.map(|reason| fault(format!("it takes no writes: {reason}"), None));
        let hanging = status.write_under_way.filter(|age| *age > SLOW);
        let hanging = hanging.map(|age| fault("a write of its disk does not end".to_owned(), Some(age)));
        failing.into_iter().chain(hanging).collect()
    }
}

/// The journal's disk did not take a write; UNAVAILABLE, the caller retries.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot write the journal in {folder}: {reason}")]
pub struct JournalError {
    /// Its folder.
    pub folder: String,
    /// What the system or the store said.
    pub reason: String,
}

/// How the journal fares.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct JournalStatus {
    /// How many rows it holds.
    pub rows: usize,
    /// The number of the last write.
    pub sequence: u64,
    /// The size of its log file in bytes.
    pub bytes: u64,
    /// Writes that wait.
    pub backlog: usize,
    /// Writes done since the start.
    pub writes: u64,
    /// Synchronisations of the disk since the start: fewer than writes, where writes came together.
    pub syncs: u64,
    /// Time spent in them.
    pub writing: Duration,
    /// Why the last write failed, if it did.
    pub failing: Option<String>,
    /// How many journals were damaged or missing since the start, and begun anew.
    pub rebuilds: u64,
    /// For how long the write under way has been.
    pub write_under_way: Option<Duration>,
}
