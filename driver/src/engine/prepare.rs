//! Makes a volume ready: a thick raw block volume is zeroed before anybody may read it.

use crate::exec::{ExecError, Invocation};
use crate::journal::OperationKind;
use crate::lvm::flush::{self, FlushError};
use crate::volume::{Content, Provisioning, Stage};

use super::activate::ActivateError;
use super::{Engine, TagChangeError, Volume};

/// Why a volume is not ready.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// It cannot be activated.
    #[error(transparent)]
    Activate(#[from] ActivateError),
    /// What an earlier volume left cannot be wiped.
    #[error("cannot wipe what an earlier volume left on it")]
    Wipe(#[source] ExecError),
    /// It cannot be zeroed.
    #[error("cannot zero it")]
    Zero(#[source] ExecError),
    /// The zeroes may not survive a power cut.
    #[error(transparent)]
    Flush(#[from] FlushError),
    /// Its stage cannot be changed.
    #[error(transparent)]
    Stage(#[from] TagChangeError),
}

impl Engine {
    /// Zeroes the volume when it must be; takes as long as the disk needs. The caller holds the volume's lock, and the
    /// request may be answered long before.
    ///
    /// # Errors
    /// [`PrepareError`]; the next CreateVolume begins again.
    pub async fn prepare(&self, volume: &Volume) -> Result<Volume, PrepareError> {
        if volume.tags.stage != Stage::Unzeroed {
            return Ok(volume.clone());
        }
        let device = self.activate(volume).await?;
        // BLKZEROOUT in steps: the disk's own fast zeroing where it has one, and a kill is obeyed in between.
        let invocation = Invocation::new(&self.tools.blkdiscard, ZERO_LIMIT)
            .args(["--zeroout", "--step", "67108864"])
            .arg(&device.path);
        let zeroed = self.exec.run(invocation).await.and_then(crate::exec::Output::success);
        zeroed.map_err(PrepareError::Zero)?;
        flush::flush(vec![device.path]).await?;
        Ok(self.set_stage(volume, Stage::New).await?)
    }

    /// Finishes the creation of a volume whose `lvcreate` was begun by an earlier request and not seen to end: it may
    /// have been killed before the volume had its device, or before the signatures were wiped that an earlier volume left
    /// there.
    ///
    /// # Errors
    /// [`PrepareError`]; the next attempt begins again.
    pub(super) async fn finish_creation(&self, volume: &Volume) -> Result<(), PrepareError> {
        let begun = self.journaled().begun(volume.lv()) == Some(OperationKind::Create);
        if !begun {
            return Ok(());
        }
        let device = self.activate(volume).await?;
        let wipes = volume.provisioning == Provisioning::Thick && volume.tags.content != Content::Block;
        // Stage `new`: no mkfs of ours was begun on it, so nobody's data is there.
        if !wipes || volume.tags.stage != Stage::New {
            return Ok(());
        }
        let invocation = Invocation::new(&self.tools.wipefs, self.config.timeouts.kill()).arg("--all");
        let wiped = self.exec.run(invocation.arg(&device.path)).await.and_then(crate::exec::Output::success);
        wiped.map_err(PrepareError::Wipe)?;
        Ok(flush::flush(vec![device.path]).await?)
    }
}

/// Zeroing runs at the disk's speed: a day is 8 TB at 100 MB/s.
const ZERO_LIMIT: std::time::Duration = std::time::Duration::from_secs(24 * 3600);
