//! One operation per volume at a time.
//!
//! A second request for a volume does not wait: it is told what is going on and since when, and its caller retries.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The operations under way, by volume.
#[derive(Debug, Clone, Default)]
pub struct VolumeLocks {
    held: Arc<Mutex<HashMap<String, Holder>>>,
}

#[derive(Debug)]
struct Holder {
    operation: &'static str,
    since: Instant,
}

/// A volume's lock; given back when dropped.
#[derive(Debug)]
#[must_use = "the volume is locked as long as this lives"]
pub struct VolumeGuard {
    locks: VolumeLocks,
    volume: String,
}

/// Another operation on the volume is under way; ABORTED, the caller retries.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Busy {
    /// The volume's LV name.
    pub volume: String,
    /// What is being done to it.
    pub operation: &'static str,
    /// For how long.
    pub age: Duration,
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { volume, operation, age } = self;
        write!(f, "volume {volume} is busy: {operation} has been running for {:.1} s", age.as_secs_f64())
    }
}

impl VolumeLocks {
    /// Takes the lock of a volume, by its LV name.
    ///
    /// # Errors
    /// [`Busy`] when it is taken.
    pub fn take(&self, volume: &str, operation: &'static str) -> Result<VolumeGuard, Busy> {
        let mut held = self.held();
        if let Some(holder) = held.get(volume) {
            let Holder { operation, since } = holder;
            return Err(Busy { volume: volume.to_owned(), operation, age: since.elapsed() });
        }
        held.insert(volume.to_owned(), Holder { operation, since: Instant::now() });
        Ok(VolumeGuard { locks: self.clone(), volume: volume.to_owned() })
    }

    /// How many volumes are locked.
    #[must_use]
    pub fn count(&self) -> usize {
        self.held().len()
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, Holder>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for VolumeGuard {
    fn drop(&mut self) {
        self.locks.held().remove(&self.volume);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_request_for_a_volume_is_told_of_the_first() {
        let locks = VolumeLocks::default();
        let guard = locks.take("pvc-1", "CreateVolume").unwrap();
        let busy = locks.take("pvc-1", "DeleteVolume").unwrap_err();
        assert_eq!((busy.volume.as_str(), busy.operation), ("pvc-1", "CreateVolume"));
        let _other = locks.take("pvc-2", "CreateVolume").unwrap();
        assert_eq!(locks.count(), 2);
        drop(guard);
        let _again = locks.take("pvc-1", "DeleteVolume").unwrap();
    }
}
