//! Changes what a volume asks of its disk.
//!
//! **Invariant.** All or nothing: one command replaces all tags that differ.

use std::collections::HashMap;

use crate::volume::VolumeHandle;
use crate::volume::parameters::{ParameterError, Parameters};

use super::{Engine, FindError, TagChangeError};

/// Why nothing was changed, or not seen to be.
#[derive(Debug, thiserror::Error)]
pub enum ModifyError {
    /// There is no such volume here.
    #[error(transparent)]
    Find(#[from] FindError),
    /// What it is to be.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    /// The tags.
    #[error(transparent)]
    Tags(#[from] TagChangeError),
}

impl Engine {
    /// Changes the volume's share and limits; keys that are absent stay as they are. The caller holds its lock.
    ///
    /// # Errors
    /// [`ModifyError`].
    pub async fn modify(&self, handle: &VolumeHandle, parameters: &HashMap<String, String>) -> Result<(), ModifyError> {
        // What is wrong on every node is said first, whatever volume it is.
        Parameters::change(crate::volume::io::IoWish::default(), parameters)?;
        let volume = self.find(handle).await?;
        let io = Parameters::change(volume.tags.io, parameters)?;
        if io != volume.tags.io {
            self.set_tags(&volume, volume.tags.clone().with_io(io)).await?;
            tracing::info!(volume = %volume.lv(), weight = io.weight.map(|weight| weight.get()), limits = io.limits.to_tag(), "weight and limits changed");
            self.tenancy.notify_one();
        }
        Ok(())
    }
}
