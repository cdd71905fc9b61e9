//! What a request says of itself for its one line in the log: which volume it is about, and for which claim.
//!
//! **Invariant.** Only ids and names are noted: a request may carry secrets, and is never logged as a whole.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

/// What is noted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Note {
    /// The volume: its name or id, as the request has it.
    pub volume: Option<String>,
    /// The claim that it is for, as `namespace/name`.
    pub claim: Option<String>,
}

tokio::task_local! {
    static NOTE: Arc<Mutex<Note>>;
}

/// Runs a request to its answer, with what was noted meanwhile.
pub async fn noted<F: Future>(request: F) -> (F::Output, Note) {
    let note = Arc::new(Mutex::new(Note::default()));
    let answer = NOTE.scope(Arc::clone(&note), request).await;
    let note = note.lock().unwrap_or_else(PoisonError::into_inner).clone();
    (answer, note)
}

/// Adds to the note of the request that is served; nothing where none is.
pub fn note(add: impl FnOnce(&mut Note)) {
    // Outside of a request, as in tests of one part, there is nobody to tell.
    let _ = NOTE.try_with(|note| add(&mut note.lock().unwrap_or_else(PoisonError::into_inner)));
}
