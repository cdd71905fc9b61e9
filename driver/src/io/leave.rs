//! Putting back what was changed on disks and in cgroups, when the driver goes for good.

use std::collections::BTreeSet;

use crate::telemetry::chain;

use super::control::{Control, Work};
use super::state::Reason;
use super::{lines, sysfs};

/// Why something is not as it was before the driver came.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaveError {
    /// A calibration changes settings of its own.
    #[error("disk {0} is being calibrated; ask again when that has ended")]
    Calibrating(String),
    /// The kernel refuses, or the notes cannot be written.
    #[error("not everything was put back: {0}")]
    NotPutBack(String),
}

impl Control {
    /// Puts back everything that was changed on disks and cgroups, and sets nothing any more: for when the driver goes for
    /// good. How many settings there were.
    ///
    /// # Errors
    /// [`LeaveError`]. What could be put back is, and the rest at the next attempt.
    pub fn leave(&self) -> Result<usize, LeaveError> {
        let mut work = self.work();
        if let Some(disk) = work.models.held() {
            return Err(LeaveError::Calibrating(disk.to_owned()));
        }
        work.left = true;
        self.put_back(&mut work).map_err(|wrong| LeaveError::NotPutBack(wrong.join("; ")))
    }

    fn put_back(&self, work: &mut Work) -> Result<usize, Vec<String>> {
        let (mut done, mut wrong) = (0, Vec::new());
        let mut left = BTreeSet::new();
        for (file, device) in work.notes.lines().clone() {
            match lines::take_back(&file, &device) {
                Ok(()) => done += 1,
                Err(reason) => {
                    wrong.push(reason.to_string());
                    left.insert((file, device));
                }
            }
        }
        if let Err(error) = work.notes.set_lines(left) {
            wrong.push(chain(&error));
        }
        for (name, note) in work.notes.disks().clone() {
            let disk = sysfs::by_name(&self.places().sys, &name).map_err(|error| Reason::Failed(chain(&error)));
            let put_back = disk.and_then(|disk| match disk {
                Some(disk) => self.files(&disk).put_back(&note),
                None => Ok(()),
            });
            let forgotten =
                put_back.and_then(|()| work.notes.forget_disk(&name).map_err(|error| Reason::Failed(chain(&error))));
            match forgotten {
                Ok(()) => done += 1,
                Err(reason) => wrong.push(reason.to_string()),
            }
        }
        if wrong.is_empty() { Ok(done) } else { Err(wrong) }
    }
}
