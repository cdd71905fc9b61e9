//! Work that outlives the request it came from.
//!
//! A caller that gives up, or is answered before the work is done, must not stop it: an interrupted lvcreate, mkfs or
//! mount leaves things half done. So every operation runs in a task of its own, which holds the volume's lock to its
//! end; the request only waits for it, up to a limit.
//!
//! **Invariant.** An operation that was begun is carried to its end, whatever becomes of the request, unless the driver
//! itself ends; then none is begun any more.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tonic::Status;

use crate::crash;

/// Runs operations in tasks of their own.
#[derive(Debug, Clone, Default)]
pub struct Detached {
    tasks: TaskTracker,
    register: Arc<Register>,
}

/// Which operations run.
#[derive(Debug, Default)]
struct Register {
    state: Mutex<State>,
    answered_early: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// No operation is begun any more.
    closed: bool,
    next: u64,
    running: BTreeMap<u64, (&'static str, String, Instant)>,
}

/// An operation that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// What is done.
    pub operation: &'static str,
    /// To which volume.
    pub volume: String,
    /// For how long.
    pub age: Duration,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operation, volume, age } = self;
        write!(f, "{operation} of volume {volume} ({:.1} s)", age.as_secs_f64())
    }
}

/// An entry in the register, struck out when dropped.
struct Entry(Arc<Register>, u64);

impl Register {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(self: &Arc<Self>, operation: &'static str, volume: &str) -> Result<Entry, Status> {
        let mut state = self.state();
        if state.closed {
            return Err(ending());
        }
        let number = state.next;
        state.next += 1;
        state.running.insert(number, (operation, volume.to_owned(), Instant::now()));
        Ok(Entry(Arc::clone(self), number))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.0.state().running.remove(&self.1);
    }
}

/// The answer to a request that comes while the driver ends.
#[must_use]
pub fn ending() -> Status {
    Status::unavailable("the driver is ending and takes no new requests; ask again when it has been started again")
}

impl Detached {
    /// Runs `work` and waits for it up to `limit`; then the answer is ABORTED and the work goes on.
    ///
    /// The lock of the volume belongs into `work`, taken before: while the work goes on, a retry of the request must
    /// find it taken.
    ///
    /// # Errors
    /// The work's own error; ABORTED at the limit, naming operation, volume and age; INTERNAL if the work panicked;
    /// UNAVAILABLE, with nothing begun, once the driver ends.
    pub async fn run<T, E>(
        &self,
        operation: &'static str,
        volume: &str,
        limit: Duration,
        work: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, Status>
    where
        T: Send + 'static,
        E: Into<Status> + Send + 'static,
    {
        let entry = self.register.begin(operation, volume)?;
        let start = Instant::now();
        // The first answer goes to the request; one that comes too late for it is told to the log.
        let (answer, mut answered) = tokio::sync::oneshot::channel();
        let name = volume.to_owned();
        let task = self.tasks.spawn(async move {
            crash::point(format_args!("call.{operation}.begin"));
            let outcome = work.await.map_err(Into::into);
            crash::point(format_args!("call.{operation}.reply"));
            drop(entry);
            if let Err(late) = answer.send(outcome) {
                report_late(operation, &name, start, late.err().as_ref());
            }
        });
        let Ok(outcome) = tokio::time::timeout(limit, &mut answered).await else {
            // The answer may have come in this very moment.
            return answered.try_recv().unwrap_or_else(|_| {
                self.register.answered_early.fetch_add(1, Ordering::Relaxed);
                let age = start.elapsed().as_secs_f64();
                Err(Status::aborted(format!("{operation} of volume {volume} still runs after {age:.1} s; ask again")))
            });
        };
        match outcome {
            Ok(outcome) => outcome,
            Err(_) => Err(Status::internal(format!("{operation} of volume {volume} {}", why(task.await)))),
        }
    }

    /// Waits until no operation runs any more; none is begun after this was called.
    pub async fn finish(&self) {
        self.register.state().closed = true;
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The operations that run, the oldest first.
    #[must_use]
    pub fn running(&self) -> Vec<Operation> {
        let state = self.register.state();
        let operations = state.running.values();
        operations
            .map(|(operation, volume, since)| Operation { operation, volume: volume.clone(), age: since.elapsed() })
            .collect()
    }

    /// How many requests were answered ABORTED at their limit while their work went on.
    #[must_use]
    pub fn answered_early(&self) -> u64 {
        self.register.answered_early.load(Ordering::Relaxed)
    }
}

fn report_late(operation: &'static str, volume: &str, start: Instant, error: Option<&Status>) {
    let seconds = start.elapsed().as_secs();
    match error {
        None => tracing::info!(operation, volume, seconds, "done, after its request had been answered"),
        Some(status) => {
            let (code, message) = (status.code(), status.message());
            tracing::error!(operation, volume, seconds, ?code, message, "failed, after its request had been answered");
        }
    }
}

/// Why a task ended without an outcome.
fn why(ended: Result<(), tokio::task::JoinError>) -> String {
    match ended {
        Err(error) if error.is_panic() => {
            let panic = error.into_panic();
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            format!("panicked: {}", text.as_deref().unwrap_or("no message"))
        }
        _ => "was cut off by the end of the driver".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use tonic::Code;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_slow_operation_is_answered_at_the_limit_and_goes_on() {
        let (detached, done) = (Detached::default(), Arc::new(AtomicBool::new(false)));
        let end = Arc::clone(&done);
        let work = async move {
            tokio::time::sleep(Duration::from_secs(60)).await;
            end.store(true, Ordering::SeqCst);
            Ok::<_, Status>(())
        };
        let status = detached.run("staging", "n/pvc-1", LIMIT, work).await.unwrap_err();
        assert_eq!(status.code(), Code::Aborted);
        assert_eq!(status.message(), "staging of volume n/pvc-1 still runs after 10.0 s; ask again");
        assert!(!done.load(Ordering::SeqCst));
        let running: Vec<String> = detached.running().iter().map(ToString::to_string).collect();
        assert_eq!((running, detached.answered_early()), (vec!["staging of volume n/pvc-1 (10.0 s)".to_owned()], 1));
        detached.finish().await;
        assert!(done.load(Ordering::SeqCst) && detached.running().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_goes_away_stops_nothing() {
        let (detached, done) = (Detached::default(), Arc::new(AtomicBool::new(false)));
        let end = Arc::clone(&done);
        let work = async move {
            tokio::time::sleep(Duration::from_secs(5)).await;
            end.store(true, Ordering::SeqCst);
            Ok::<_, Status>(())
        };
        let caller = tokio::time::timeout(Duration::from_secs(1), detached.run("staging", "v", LIMIT, work)).await;
        assert!(caller.is_err(), "the caller should have given up");
        detached.finish().await;
        assert!(done.load(Ordering::SeqCst));
    }

    #[tokio::test(start_paused = true)]
    async fn outcome_and_error_pass_through() {
        let detached = Detached::default();
        assert_eq!(detached.run("x", "v", LIMIT, async { Ok::<_, Status>(7) }).await.unwrap(), 7);
        let refused = detached.run("x", "v", LIMIT, async { Err::<(), _>(Status::not_found("gone")) }).await;
        assert_eq!(refused.unwrap_err().code(), Code::NotFound);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_begun_once_the_end_has_come() {
        let detached = Detached::default();
        detached.finish().await;
        let begun = Arc::new(AtomicBool::new(false));
        let begin = Arc::clone(&begun);
        let work = async move {
            begin.store(true, Ordering::SeqCst);
            Ok::<_, Status>(())
        };
        let status = detached.run("staging", "v", LIMIT, work).await.unwrap_err();
        assert_eq!((status.code(), begun.load(Ordering::SeqCst)), (Code::Unavailable, false));
        assert!(status.message().contains("the driver is ending"), "{status:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_internal_and_frees_what_the_work_held() {
        let (detached, lock) = (Detached::default(), Arc::new(()));
        let guard = Arc::clone(&lock);
        let work = async move {
            let _guard = guard;
            if true {
                panic!("a bug");
            }
            Ok::<_, Status>(())
        };
        let status = detached.run("staging", "v", LIMIT, work).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Internal, "staging of volume v panicked: a bug"));
        assert_eq!(Arc::strong_count(&lock), 1);
        assert_eq!(detached.run("staging", "v", LIMIT, async { Ok::<_, Status>(1) }).await.unwrap(), 1);
    }
}
