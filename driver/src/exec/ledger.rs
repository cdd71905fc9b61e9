//! Which commands run, since when, and how many there were.
//!
//! **Invariant.** A command is listed as running until its process is gone, whoever still waits for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a process counts as. Few values: names of volumes are no part of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// The program, e.g. `lvm`.
    pub program: String,
    /// The verb of an `lvm`; empty for other programs.
    pub verb: String,
}

/// How many processes there were.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Started.
    pub started: BTreeMap<Kind, u64>,
    /// Killed at their limit; 0 of those of which none was, so that the first one is seen as an increase.
    pub killed: BTreeMap<Kind, u64>,
    /// For how long those ran that are gone, together.
    pub time: BTreeMap<Kind, Duration>,
}

/// A command that runs.
#[derive(Debug, Clone)]
pub struct Running {
    /// Its command line.
    pub line: String,
    /// For how long.
    pub age: Duration,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pages: Mutex<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    next: u64,
    running: BTreeMap<u64, (String, Instant)>,
    counts: Counts,
}

/// A command on the ledger; struck off when this is dropped, so also if its thread dies.
#[derive(Debug)]
pub(super) struct Entry {
    ledger: Arc<Ledger>,
    number: u64,
    kind: Kind,
}

impl Ledger {
    pub(super) fn begin(ledger: &Arc<Self>, kind: Kind, line: String) -> Entry {
        let mut pages = ledger.pages();
        let number = pages.next;
        pages.next += 1;
        pages.running.insert(number, (line, Instant::now()));
        *pages.counts.started.entry(kind.clone()).or_default() += 1;
        pages.counts.killed.entry(kind.clone()).or_default();
        drop(pages);
        Entry { ledger: Arc::clone(ledger), number, kind }
    }

    pub(super) fn running(&self) -> Vec<Running> {
        // Numbers are given out in order, so the oldest comes first.
        self.pages()
            .running
            .values()
            .map(|(line, since)| Running { line: line.clone(), age: since.elapsed() })
            .collect()
    }

    pub(super) fn counts(&self) -> Counts {
        self.pages().counts.clone()
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// The process is gone.
    pub(super) fn end(self, killed: bool) {
        let mut pages = self.ledger.pages();
        let age = pages.running.get(&self.number).map(|(_, since)| since.elapsed()).unwrap_or_default();
        *pages.counts.time.entry(self.kind.clone()).or_default() += age;
        if killed {
            *pages.counts.killed.entry(self.kind.clone()).or_default() += 1;
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.ledger.pages().running.remove(&self.number);
    }
}
