//! The journal on disk: one thread writes, and whoever comes while it does shares the next write.
//!
//! **Invariant.** What [`Journal::contents`] shows is on disk.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::oneshot;

use super::aside::set_aside;
use super::store::{OpenError, Store};
use super::witness::Witness;
use super::{Change, Contents, Journal, JournalError, JournalStatus};

/// The store's folder and the note beside it, in the state folder.
const FOLDER: &str = "journal";
const WITNESS: &str = "journal.sequence";

/// How many writes are made in one.
const TOGETHER: usize = 256;

/// How long an opener waits for another process to let go of the journal.
const LOCK_WAIT: Duration = Duration::from_secs(30);

/// How long the end waits for the writer. A sound disk needs milliseconds; one that hangs must not hold up the process's
/// end, and what waits there was never answered.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// The journal of a node.
#[derive(Debug)]
pub struct SledJournal {
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<WriterThread>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct WriterThread {
    handle: JoinHandle<()>,
    /// Its other end is dropped after the store. A mutex, since a receiver alone cannot be shared.
    closed: Mutex<mpsc::Receiver<()>>,
}

/// A journal that was opened, and what was found.
#[derive(Debug)]
pub struct Opened {
    /// The journal.
    pub journal: SledJournal,
    /// Why it begins anew, if it does though there was one.
    pub rebuilt: Option<Rebuilt>,
}

/// A journal that was there is not any more; what it held is found again in LVM as far as it can be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebuilt {
    /// What was wrong.
    pub why: String,
    /// Where the damaged one is now.
    pub aside: Option<PathBuf>,
}

/// Why the journal did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenJournalError {
    /// The store.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The damaged one cannot be set aside, or the note not be opened.
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
    /// The opening thread died.
    #[error("opening the journal was cut off")]
    Cut(#[from] tokio::task::JoinError),
}

struct Request {
    what: &'static str,
    changes: Vec<Change>,
    done: oneshot::Sender<Result<(), JournalError>>,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    contents: RwLock<Arc<Contents>>,
    status: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    status: JournalStatus,
    since: Option<Instant>,
}

impl SledJournal {
    /// Opens the journal in the state folder. A damaged one is set aside; one that another process holds is waited for.
    ///
    /// # Errors
    /// [`OpenJournalError`]: a newer format, a disk that cannot be used, a lock that is not given back in time.
    pub async fn open(state_dir: &Path) -> Result<Opened, OpenJournalError> {
        let give_up = Instant::now() + LOCK_WAIT;
        loop {
            let dir = state_dir.to_owned();
            match tokio::task::spawn_blocking(move || open_blocking(&dir)).await? {
                Err(OpenJournalError::Store(OpenError::Locked(folder))) if Instant::now() < give_up => {
                    tracing::warn!(journal = %folder.display(), "another process has the journal open; waiting for it");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                opened => return opened,
            }
        }
    }

    fn start(store: Store, contents: Contents, witness: Witness, folder: PathBuf, rebuilt: bool) -> io::Result<Self> {
        let mut progress = Progress::default();
        progress.status.sequence = store.sequence();
        progress.status.rows = contents.len();
        progress.status.rebuilds = u64::from(rebuilt);
        progress.status.bytes = store.bytes().unwrap_or(0);
        let contents = RwLock::new(Arc::new(contents));
        let shared = Arc::new(Shared { folder, contents, status: Mutex::new(progress) });
        let (requests, inbox) = mpsc::channel();
        let writer = Writer { store: Some(store), witness, shared: Arc::clone(&shared) };
        let writer = WriterThread::spawn(move || writer.run(&inbox))?;
        Ok(Self { requests: Some(requests), writer: Some(writer), shared })
    }
}

fn open_blocking(state_dir: &Path) -> Result<Opened, OpenJournalError> {
    let (folder, note) = (state_dir.join(FOLDER), state_dir.join(WITNESS));
    let (witness, noted) =
        Witness::open(&note).map_err(|source| OpenJournalError::Io { action: "open", path: note.clone(), source })?;
    let was_there = folder.exists();
    let opened = Store::open(&folder).and_then(|(store, contents)| match noted {
        Some(noted) if was_there && store.sequence() < noted => {
            let what = format!("it ends at write {}, and write {noted} had been on disk", store.sequence());
            Err(OpenError::Damaged { folder: folder.clone(), what })
        }
        _ => Ok((store, contents)),
    });
    let (store, contents, rebuilt) = match opened {
        Ok((store, contents)) => {
            let missing = !was_there && noted.is_some();
            let rebuilt = missing.then(|| Rebuilt { why: "it was missing".to_owned(), aside: None });
            (store, contents, rebuilt)
        }
        Err(OpenError::Damaged { what, .. }) => {
            let aside = set_aside(&folder, Timestamp::now()).map_err(|source| OpenJournalError::Io {
                action: "set aside",
                path: folder.clone(),
                source,
            })?;
            let (store, contents) = Store::open(&folder)?;
            (store, contents, Some(Rebuilt { why: what, aside: Some(aside) }))
        }
        Err(error) => return Err(error.into()),
    };
    // From here on the note counts this journal's writes, not those of one that is gone.
    let in_note = |source| OpenJournalError::Io { action: "write", path: note, source };
    witness.note(store.sequence()).map_err(in_note)?;
    let started = SledJournal::start(store, contents, witness, folder.clone(), rebuilt.is_some());
    let journal =
        started.map_err(|source| OpenJournalError::Io { action: "start a thread for", path: folder, source })?;
    Ok(Opened { journal, rebuilt })
}

#[tonic::async_trait]
impl Journal for SledJournal {
    async fn write(&self, what: &'static str, changes: Vec<Change>) -> Result<(), JournalError> {
        let (done, answer) = oneshot::channel();
        self.shared.progress().status.backlog += 1;
        let sent = self.requests.as_ref().map(|requests| requests.send(Request { what, changes, done }));
        let ended = || JournalError {
            folder: self.shared.folder.display().to_string(),
            reason: "its writer has ended".to_owned(),
        };
        match sent {
            Some(Ok(())) => answer.await.unwrap_or_else(|_| Err(ended())),
            _ => Err(ended()),
        }
    }

    fn contents(&self) -> Arc<Contents> {
        Arc::clone(&self.shared.contents.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn status(&self) -> JournalStatus {
        let progress = self.shared.progress();
        JournalStatus { write_under_way: progress.since.map(|since| since.elapsed()), ..progress.status.clone() }
    }
}

/// The store is closed, its lock given back, when this is done; unless its disk hangs.
impl Drop for SledJournal {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take() {
            writer.wait(CLOSE_WAIT, &self.shared.folder);
        }
    }
}

impl WriterThread {
    fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let (closing, closed) = mpsc::channel();
        let handle = thread::Builder::new().name("journal".to_owned()).spawn(move || {
            // Moved in here, so dropped at the end, also of a panic.
            let _closing: mpsc::Sender<()> = closing;
            work();
        })?;
        Ok(Self { handle, closed: Mutex::new(closed) })
    }

    /// Waits until the thread has closed the store, but not longer than `limit`.
    fn wait(self, limit: Duration, folder: &Path) {
        let closed = self.closed.into_inner().unwrap_or_else(PoisonError::into_inner).recv_timeout(limit);
        if closed == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::error!(journal = %folder.display(), ?limit, "the journal's disk hangs: its writer is left behind");
        } else if self.handle.join().is_err() {
            tracing::error!("the journal's writer panicked");
        }
    }
}

impl Shared {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread that has the store.
struct Writer {
    /// None after a write that failed: what is on disk is unknown until it is opened anew.
    store: Option<Store>,
    witness: Witness,
    shared: Arc<Shared>,
}

impl Writer {
    fn run(mut self, inbox: &mpsc::Receiver<Request>) {
        while let Ok(first) = inbox.recv() {
            let mut requests = vec![first];
            requests.extend(inbox.try_iter().take(TOGETHER - 1));
            let start = Instant::now();
            self.shared.progress().since = Some(start);
            let outcome = self.write(&requests);
            self.account(&requests, start, &outcome);
            for request in requests {
                // Whoever asked may have gone away; what was written stays written.
                let _ = request.done.send(outcome.clone());
            }
        }
    }

    fn write(&mut self, requests: &[Request]) -> Result<(), JournalError> {
        let failed = |reason: String| JournalError { folder: self.shared.folder.display().to_string(), reason };
        let changes: Vec<Change> = requests.iter().flat_map(|request| request.changes.iter().cloned()).collect();
        let store = match &mut self.store {
            Some(store) => store,
            None => {
                let known = Arc::clone(&self.shared.contents.read().unwrap_or_else(PoisonError::into_inner));
                let mended =
                    mend(&self.shared.folder, &known).map_err(|error| failed(crate::telemetry::chain(&error)))?;
                tracing::warn!(journal = %self.shared.folder.display(), "the journal takes writes again");
                self.store.insert(mended)
            }
        };
        point("before", requests);
        if let Err(error) = store.apply(&changes) {
            self.store = None;
            return Err(failed(error.to_string()));
        }
        point("after", requests);
        let sequence = store.sequence();
        let mut contents = self.shared.contents.write().unwrap_or_else(PoisonError::into_inner);
        let contents = Arc::make_mut(&mut contents);
        changes.into_iter().for_each(|change| contents.apply(change));
        if let Err(error) = self.witness.note(sequence) {
            // It only says less now.
            tracing::warn!(%error, "cannot note how far the journal is");
        }
        Ok(())
    }

    fn account(&self, requests: &[Request], start: Instant, outcome: &Result<(), JournalError>) {
        let took = start.elapsed();
        let rows = self.shared.contents.read().unwrap_or_else(PoisonError::into_inner).len();
        let mut progress = self.shared.progress();
        progress.since = None;
        let status = &mut progress.status;
        status.backlog -= requests.len();
        status.writing += took;
        status.syncs += 1;
        status.rows = rows;
        if let Some(store) = &self.store {
            status.sequence = store.sequence();
            status.bytes = store.bytes().unwrap_or(status.bytes);
        }
        match outcome {
            Ok(()) => {
                status.writes += requests.len() as u64;
                status.failing = None;
            }
            Err(error) => status.failing = Some(error.reason.clone()),
        }
        drop(progress);
        for request in requests {
            let (what, us) = (request.what, took.as_micros());
            match outcome {
                Ok(()) => tracing::debug!(what, us, "journal written"),
                Err(error) => tracing::error!(what, us, reason = error.reason, "journal not written"),
            }
        }
    }
}

/// Where a test may have the driver die.
fn point(when: &str, requests: &[Request]) {
    for request in requests {
        crate::crash::point(format_args!("journal.{}.{when}", request.what));
    }
}

/// Opens the store again after a failed write and makes it what is known to have been on disk.
fn mend(folder: &Path, known: &Contents) -> Result<Store, OpenError> {
    let (mut store, found) = match Store::open(folder) {
        Err(OpenError::Damaged { what, .. }) => {
            let io = |source| OpenError::Io { folder: folder.to_owned(), source };
            let aside = set_aside(folder, Timestamp::now()).map_err(io)?;
            tracing::error!(what, aside = %aside.display(), "the journal is damaged: set aside and written anew");
            Store::open(folder)?
        }
        opened => opened?,
    };
    let changes = known.changes_from(&found);
    if !changes.is_empty() {
        store.apply(&changes).map_err(|source| OpenError::Io { folder: folder.to_owned(), source })?;
    }
    Ok(store)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Entry, Staged};
    use crate::volume::LvName;

    fn staged(number: u32) -> Change {
        let lv = LvName::parse(&format!("pvc-{number}")).unwrap();
        Change::Put(Entry::Staged(lv, "/path".to_owned(), Staged { since: 0 }))
    }

    #[tokio::test]
    async fn writers_at_the_same_time_share_the_disks_synchronisation() {
        let dir = tempfile::tempdir().unwrap();
        let opened = SledJournal::open(dir.path()).await.unwrap();
        assert_eq!(opened.rebuilt, None);
        let journal = Arc::new(opened.journal);
        let tasks: Vec<_> = (0..200)
            .map(|number| {
                let journal = Arc::clone(&journal);
                tokio::spawn(async move { journal.write("test", vec![staged(number)]).await })
            })
            .collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        let status = journal.status();
        assert_eq!((status.writes, status.rows, status.backlog), (200, 200, 0));
        assert!(status.syncs < 200, "{} synchronisations for 200 writes", status.syncs);
        drop(journal);
        let again = SledJournal::open(dir.path()).await.unwrap();
        assert_eq!((again.journal.contents().len(), again.rebuilt), (200, None));
    }

    #[test]
    fn a_writer_that_hangs_does_not_hold_up_the_end() {
        let (release, hang) = mpsc::channel::<()>();
        let writer = WriterThread::spawn(move || hang.recv().unwrap()).unwrap();
        writer.wait(Duration::from_millis(10), Path::new("/journal"));
        // The thread is there still, for nobody waited until its end.
        release.send(()).unwrap();

        let ended = Arc::new(Mutex::new(false));
        let mark = Arc::clone(&ended);
        let writer = WriterThread::spawn(move || *mark.lock().unwrap() = true).unwrap();
        writer.wait(Duration::from_secs(600), Path::new("/journal"));
        assert!(*ended.lock().unwrap(), "a sound one is waited for");
    }

    #[tokio::test]
    async fn a_journal_that_is_cut_short_is_set_aside_and_reported() {
        let dir = tempfile::tempdir().unwrap();
        let journal = SledJournal::open(dir.path()).await.unwrap().journal;
        journal.write("test", vec![staged(1)]).await.unwrap();
        // The log as it was at this moment, put back later: what a disk that lost its last writes shows.
        let early = std::fs::read(dir.path().join("journal/db")).unwrap();
        journal.write("test", vec![staged(2)]).await.unwrap();
        drop(journal);
        std::fs::remove_dir_all(dir.path().join("journal")).unwrap();
        std::fs::create_dir(dir.path().join("journal")).unwrap();
        std::fs::write(dir.path().join("journal/db"), early).unwrap();
        let opened = SledJournal::open(dir.path()).await.unwrap();
        let rebuilt = opened.rebuilt.clone().unwrap();
        assert!(rebuilt.aside.as_ref().is_some_and(|aside| aside.join("db").exists()), "{rebuilt:?}");
        assert!(opened.journal.contents().is_empty());
        opened.journal.write("test", vec![staged(3)]).await.unwrap();
        drop(opened);
        let again = SledJournal::open(dir.path()).await.unwrap();
        assert_eq!((again.rebuilt, again.journal.contents().len()), (None, 1));
    }

    #[tokio::test]
    async fn no_damage_to_the_log_is_a_loss_in_silence() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("journal");
        let journal = SledJournal::open(dir.path()).await.unwrap().journal;
        for number in 0..60 {
            journal.write("test", vec![staged(number)]).await.unwrap();
        }
        drop(journal);
        let files: Vec<(PathBuf, Vec<u8>)> = [folder.join("db"), dir.path().join(WITNESS)]
            .map(|path| (path.clone(), std::fs::read(path).unwrap()))
            .to_vec();
        let used = files[0].1.iter().rposition(|byte| *byte != 0).unwrap();
        let (mut noticed, mut harmless) = (0, 0);
        for trial in 0..24 {
            std::fs::remove_dir_all(&folder).unwrap();
            std::fs::create_dir(&folder).unwrap();
            let mut log = files[0].1.clone();
            log[used * trial / 24..][..64].fill(0xa5);
            std::fs::write(&files[0].0, log).unwrap();
            std::fs::write(&files[1].0, &files[1].1).unwrap();
            let opened = SledJournal::open(dir.path()).await.unwrap();
            match opened.rebuilt {
                Some(_) => noticed += 1,
                None => {
                    assert_eq!(opened.journal.contents().len(), 60, "rows are missing, and nobody was told");
                    harmless += 1;
                }
            }
        }
        assert!(noticed > 12, "{noticed} noticed, {harmless} did no harm");
    }

    #[tokio::test]
    async fn a_journal_that_was_deleted_is_begun_anew_and_reported() {
        let dir = tempfile::tempdir().unwrap();
        drop(SledJournal::open(dir.path()).await.unwrap());
        std::fs::remove_dir_all(dir.path().join("journal")).unwrap();
        let opened = SledJournal::open(dir.path()).await.unwrap();
        assert_eq!(opened.rebuilt, Some(Rebuilt { why: "it was missing".to_owned(), aside: None }));
    }

    #[tokio::test]
    async fn after_a_write_that_failed_the_store_is_mended_and_nothing_known_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("journal");
        let (mut store, _) = Store::open(&folder).unwrap();
        store.apply(&[staged(1), staged(2)]).unwrap();
        drop(store);
        let mut known = Contents::default();
        for change in [staged(1), staged(3)] {
            known.apply(change);
        }
        drop(mend(&folder, &known).unwrap());
        assert_eq!(Store::open(&folder).unwrap().1, known);
    }
}
