//! A journal that is gone with the process: what the benchmark compares the real one with. In no released driver.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Change, Contents, Journal, JournalError, JournalStatus};

/// Keeps its rows in memory only.
#[derive(Debug, Default)]
pub struct Forgetful {
    contents: Mutex<Arc<Contents>>,
}

#[tonic::async_trait]
impl Journal for Forgetful {
    async fn write(&self, _: &'static str, changes: Vec<Change>) -> Result<(), JournalError> {
        let mut contents = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        let contents = Arc::make_mut(&mut contents);
        changes.into_iter().for_each(|change| contents.apply(change));
        Ok(())
    }

    fn contents(&self) -> Arc<Contents> {
        Arc::clone(&self.contents.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn status(&self) -> JournalStatus {
        JournalStatus { rows: self.contents().len(), ..JournalStatus::default() }
    }
}
