//! What a person sees while something takes long: steps with elapsed times, and a sign of life.

use std::io::Write as _;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

/// How long a step is silent at most.
const SIGN_OF_LIFE: Duration = Duration::from_secs(20);

/// Times steps from a common start.
#[derive(Debug, Clone)]
pub struct Progress {
    begin: Instant,
}

impl Default for Progress {
    fn default() -> Self {
        Self { begin: Instant::now() }
    }
}

impl Progress {
    /// Prints one line with the time since the start.
    pub fn say(&self, text: &str) {
        // A closed terminal is no reason to fail.
        writeln!(std::io::stderr().lock(), "[{:6.1} s] {text}", self.begin.elapsed().as_secs_f32()).ok();
    }

    /// Does `work`, saying what it is before, that it goes on during, and how long it took after.
    ///
    /// # Errors
    /// What `work` returns.
    pub fn step<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let begin = Instant::now();
        self.say(what);
        let (done, watch) = mpsc::channel::<()>();
        let (progress, label) = (self.clone(), what.to_owned());
        let watcher = thread::spawn(move || {
            while watch.recv_timeout(SIGN_OF_LIFE) == Err(mpsc::RecvTimeoutError::Timeout) {
                progress.say(&format!("  ... still: {label} ({} s)", begin.elapsed().as_secs()));
            }
        });
        let outcome = work();
        drop(done);
        watcher.join().ok();
        match &outcome {
            Ok(_) => self.say(&format!("  done in {:.1} s", begin.elapsed().as_secs_f32())),
            Err(_) => self.say(&format!("  FAILED after {:.1} s: {what}", begin.elapsed().as_secs_f32())),
        }
        outcome
    }

    /// The time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }
}
