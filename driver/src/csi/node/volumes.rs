//! What the node service needs of the node's volumes: the engine, or a stand-in for the service's own tests.

use std::path::Path;

use crate::engine::{ActivateError, Busy, Device, Engine, FindError, TagChangeError, UsageError, Volume, VolumeGuard};
use crate::journal::{JournalError, Key, Pod};
use crate::volume::{LvName, Stage, TopologyValue, VolumeHandle};

/// The node's volumes, as far as the node service changes them.
#[tonic::async_trait]
pub trait Volumes: Send + Sync + 'static {
    /// A volume's lock, given back when dropped.
    type Guard: Send + 'static;

    /// This node.
    fn node(&self) -> &TopologyValue;

    /// Locks a volume for one operation.
    fn lock(&self, lv: &LvName, operation: &'static str) -> Result<Self::Guard, Busy>;

    /// The volume with that handle, as it is now.
    async fn find(&self, handle: &VolumeHandle) -> Result<Volume, FindError>;

    /// Its device, made live if it is not.
    async fn activate(&self, volume: &Volume) -> Result<Device, ActivateError>;

    /// Its device, if it is live.
    async fn device(&self, volume: &Volume) -> Result<Option<Device>, UsageError>;

    /// Writes down how far its preparation is; on disk when this returns.
    async fn set_stage(&self, volume: &Volume, stage: Stage) -> Result<Volume, TagChangeError>;

    /// Writes down where it is staged.
    async fn record_staged(&self, volume: &Volume, path: &Path) -> Result<(), JournalError>;

    /// Writes down where it is published, and for whom.
    async fn record_published(
        &self,
        volume: &Volume,
        path: &Path,
        pod: Option<Pod>,
        read_only: bool,
    ) -> Result<(), JournalError>;

    /// Writes down that it is not there any more. What cannot be written keeps no pod from ending.
    async fn record_released(&self, key: Key);
}

#[tonic::async_trait]
impl Volumes for Engine {
    type Guard = VolumeGuard;

    fn node(&self) -> &TopologyValue {
        Engine::node(self)
    }

    fn lock(&self, lv: &LvName, operation: &'static str) -> Result<VolumeGuard, Busy> {
        Engine::lock(self, lv, operation)
    }

    async fn find(&self, handle: &VolumeHandle) -> Result<Volume, FindError> {
        Engine::find(self, handle).await
    }

    async fn activate(&self, volume: &Volume) -> Result<Device, ActivateError> {
        Engine::activate(self, volume).await
    }

    async fn device(&self, volume: &Volume) -> Result<Option<Device>, UsageError> {
        Engine::device(self, volume).await
    }

    async fn set_stage(&self, volume: &Volume, stage: Stage) -> Result<Volume, TagChangeError> {
        Engine::set_stage(self, volume, stage).await
    }

    async fn record_staged(&self, volume: &Volume, path: &Path) -> Result<(), JournalError> {
        Engine::record_staged(self, volume, path).await
    }

    async fn record_published(
        &self,
        volume: &Volume,
        path: &Path,
        pod: Option<Pod>,
        read_only: bool,
    ) -> Result<(), JournalError> {
        Engine::record_published(self, volume, path, pod, read_only).await
    }

    async fn record_released(&self, key: Key) {
        Engine::record_released(self, key).await;
    }
}
