//! Which volumes this process has deleted.
//!
//! A deletion that outlives its request is asked for again, when the volume is gone. That it is gone for good can be
//! affirmed only while every volume group can be read; of a volume whose deletion was seen to its end it is known.
//!
//! **Invariant.** A volume is in here only from the end of its deletion to the next attempt to make one of its name.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::volume::LvName;

/// How many are remembered: csi-provisioner asks again within minutes.
const MOST: usize = 1024;

/// The names of volumes that were deleted, the oldest first.
#[derive(Debug, Default)]
pub struct Deleted {
    names: Mutex<VecDeque<LvName>>,
}

impl Deleted {
    /// The volume is gone, and nothing of it can come back.
    pub fn note(&self, lv: &LvName) {
        self.forget(lv);
        let mut names = self.names();
        if names.len() == MOST {
            names.pop_front();
        }
        names.push_back(lv.clone());
    }

    /// There may be a volume of that name again.
    pub fn forget(&self, lv: &LvName) {
        self.names().retain(|name| name != lv);
    }

    /// Whether it was deleted, and not made since.
    #[must_use]
    pub fn has(&self, lv: &LvName) -> bool {
        self.names().contains(lv)
    }

    fn names(&self) -> MutexGuard<'_, VecDeque<LvName>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten_and_those_that_are_made_again() {
        let deleted = Deleted::default();
        let name = |number: usize| LvName::for_csi_name(&format!("pvc-{number}")).unwrap();
        (0..=MOST).for_each(|number| deleted.note(&name(number)));
        assert!(!deleted.has(&name(0)) && deleted.has(&name(1)) && deleted.has(&name(MOST)));
        deleted.note(&name(1));
        deleted.forget(&name(2));
        assert!(deleted.has(&name(1)) && !deleted.has(&name(2)));
    }
}
