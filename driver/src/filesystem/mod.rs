//! Filesystems on block devices: what is on a device, making, checking, mounting and measuring one.
//!
//! This layer knows devices and paths. It knows nothing of volume groups or of CSI: who may format what, and when, is
//! decided above; here it is only refused when the device itself speaks against it.
//!
//! **Invariant.** A check that failed is never an answer: [`Filesystems::probe`] says `Empty` only of a device that was
//! opened, read and found as large as expected, and a mount is "not there" only if a whole mount table lacks it.

mod check;
pub mod device;
mod format;
mod mount;
pub mod mountinfo;
mod probe;
pub mod stats;
pub mod target;

use std::time::Duration;

use crate::exec::{Exec, Invocation, Tool, Tools};

pub use check::{CheckError, Checked};
pub use device::DeviceError;
pub use format::{FormatError, Ground};
pub use mount::{MountError, MountRequest, Outcome};
pub use mountinfo::{Mount, MountTable, MountTableError, Mounted};
pub use probe::{Content, ProbeError, Proof, Signature};
pub use stats::{Stats, StatsError, Usage};
pub use target::TargetError;

/// Runs the programs that work on filesystems.
#[derive(Debug, Clone)]
pub struct Filesystems {
    exec: Exec,
    tools: Tools,
    kill_after: Duration,
}

impl Filesystems {
    /// `kill_after` is the far limit at which a program that still runs is killed; a large mkfs or a check of a damaged
    /// filesystem takes minutes.
    #[must_use]
    pub fn new(exec: Exec, tools: Tools, kill_after: Duration) -> Self {
        Self { exec, tools, kill_after }
    }

    fn invocation(&self, tool: &Tool) -> Invocation {
        Invocation::new(tool, self.kill_after)
    }
}

/// Runs work that may block on a disk outside the asynchronous threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|join| Err(std::io::Error::other(join)))
}
