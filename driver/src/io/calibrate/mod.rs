//! Finds out how fast a disk is, so that weights on it hold.
//!
//! **Invariant.** Nobody's data is read or written: everything is done on a scratch volume of our own. A disk that somebody
//! else uses meanwhile is left in peace at once, and what was measured is thrown away.

mod identity;
pub mod probe;
mod procedure;
mod rig;
pub mod service;
pub mod store;

use crate::telemetry::chain;
use crate::volume::Bytes;

use super::sysfs::SysfsError;

pub use identity::{Identity, identity};
pub use procedure::Found;
pub use service::{Calibrator, Ground, Scratch};
pub use store::{Calibration, Store};

impl From<SysfsError> for Failure {
    fn from(error: SysfsError) -> Self {
        Self::Failed(chain(&error))
    }
}

/// Why a disk has no model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Somebody else used the disk.
    #[error("somebody else uses the disk; it is tried again when it is quiet")]
    Disturbed,
    /// It did nothing at all.
    #[error("the disk did nothing in five seconds")]
    Stuck,
    /// No model passed.
    #[error("no model divides the disk's time ({check}): {detail}")]
    NoModel {
        /// The race that failed last.
        check: &'static str,
        /// What it showed.
        detail: String,
    },
    /// Another one is being calibrated.
    #[error("disk {0} is being calibrated; one at a time")]
    Busy(String),
    /// There is no such disk below a volume group of ours, or not alone.
    #[error("{0}")]
    NoGround(String),
    /// There is no room for the scratch volume.
    #[error("volume group {vg} has no room for a scratch volume of {least} on disk {disk}: twice that must be free")]
    NoRoom {
        /// The group.
        vg: String,
        /// The disk.
        disk: String,
        /// The smallest that serves.
        least: Bytes,
    },
    /// Whatever else.
    #[error("{0}")]
    Failed(String),
}
