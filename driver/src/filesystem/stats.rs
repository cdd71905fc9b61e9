//! How full a filesystem is.
//!
//! **Invariant.** Asking never hangs the asker: a filesystem on a dead disk may never answer, so the question is put in
//! a thread of its own, with a limit, and at most one such thread exists per path however often it is asked.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Bytes and inodes of a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in all.
    pub bytes: Figures,
    /// Inodes in all; a filesystem that makes them at need (btrfs) shows 0.
    pub inodes: Figures,
}

/// Figures of one unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    /// All.
    pub total: u64,
    /// In use.
    pub used: u64,
    /// What a user without privileges may still take.
    pub available: u64,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// An earlier question has no answer yet.
    #[error("the filesystem at {} has not answered for {} s", path.display(), age.as_secs())]
    NoAnswer {
        /// Where it is mounted.
        path: PathBuf,
        /// For how long.
        age: Duration,
    },
    /// The system refused.
    #[error("cannot measure the filesystem at {}", path.display())]
    System {
        /// Where it is mounted.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Asks filesystems how full they are.
#[derive(Debug, Clone)]
pub struct Stats {
    limit: Duration,
    asked: Arc<Mutex<HashMap<PathBuf, Instant>>>,
}

impl Stats {
    /// `limit`: how long one question may take.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        Self { limit, asked: Arc::default() }
    }

    /// The figures of the filesystem at a path. Whether anything is mounted there is the caller's to know: for a plain
    /// directory these are the figures of the filesystem it lies on.
    ///
    /// # Errors
    /// [`StatsError::NoAnswer`] at the limit, and at once while an earlier question for the path has no answer.
    pub async fn usage(&self, path: &Path) -> Result<Usage, StatsError> {
        self.ask(path, |path| {
            let figures = rustix::fs::statvfs(path)?;
            Ok(usage(&figures))
        })
        .await
    }

    async fn ask(
        &self,
        path: &Path,
        question: impl FnOnce(&Path) -> io::Result<Usage> + Send + 'static,
    ) -> Result<Usage, StatsError> {
        let start = Instant::now();
        {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(since) = asked.get(path) {
                return Err(StatsError::NoAnswer { path: path.to_owned(), age: since.elapsed() });
            }
            asked.insert(path.to_owned(), start);
        }
        let answered = Answered { asked: Arc::clone(&self.asked), path: path.to_owned() };
        let question = super::blocking(move || question(&answered.path));
        match tokio::time::timeout(self.limit, question).await {
            Ok(answer) => answer.map_err(|source| StatsError::System { path: path.to_owned(), source }),
            Err(_) => Err(StatsError::NoAnswer { path: path.to_owned(), age: start.elapsed() }),
        }
    }
}

/// Frees the path when the thread ends, however it ends.
struct Answered {
    asked: Arc<Mutex<HashMap<PathBuf, Instant>>>,
    path: PathBuf,
}

impl Drop for Answered {
    fn drop(&mut self) {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.path);
    }
}

fn usage(figures: &rustix::fs::StatVfs) -> Usage {
    // f_frsize is the unit of the counts, f_bsize only what is good for reading.
    let bytes = |blocks: u64| blocks.saturating_mul(figures.f_frsize);
    Usage {
        bytes: Figures {
            total: bytes(figures.f_blocks),
            used: bytes(figures.f_blocks.saturating_sub(figures.f_bfree)),
            available: bytes(figures.f_bavail),
        },
        inodes: Figures {
            total: figures.f_files,
            used: figures.f_files.saturating_sub(figures.f_ffree),
            available: figures.f_favail,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_real_filesystem_answers_with_figures_that_add_up() {
        let usage = Stats::new(Duration::from_secs(60)).usage(Path::new("/")).await.unwrap();
        assert!(usage.bytes.total > 0 && usage.bytes.used > 0);
        assert!(usage.bytes.used + usage.bytes.available <= usage.bytes.total);
        let error = Stats::new(Duration::from_secs(60)).usage(Path::new("/no/such/path")).await.unwrap_err();
        assert!(matches!(error, StatsError::System { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_filesystem_that_hangs_costs_one_thread_and_no_caller() {
        let stats = Stats::new(Duration::from_millis(50));
        let (answer, wait) = std::sync::mpsc::channel::<()>();
        let path = Path::new("/hung");
        let hang = move |_: &Path| {
            wait.recv().map_err(io::Error::other)?;
            Ok(Usage { bytes: Figures::default(), inodes: Figures::default() })
        };
        assert!(matches!(stats.ask(path, hang).await, Err(StatsError::NoAnswer { .. })));
        for _ in 0..3 {
            let again = stats.ask(path, |_| panic!("a second thread was started")).await;
            assert!(matches!(again, Err(StatsError::NoAnswer { .. })));
        }
        assert!(stats.usage(Path::new("/")).await.is_ok(), "another path is served meanwhile");

        answer.send(()).unwrap();
        let limit = Instant::now() + Duration::from_secs(30);
        while stats.asked.lock().unwrap().contains_key(path) {
            assert!(Instant::now() < limit, "the answer did not free the path");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
