//! Create, delete, activate: the only place where volumes and LVM meet.
//!
//! **Invariant.** LVM is the truth: what exists is read from its metadata before each decision and after each change.
//! An error is never an answer: a volume is absent only where every volume group that may hold it was read whole.
//! What is about to be changed is in the journal before, what was changed after; no success is told in between.

mod activate;
mod audit;
mod backups;
mod changes;
mod create;
mod delete;
mod deleted;
mod find;
mod forget;
mod group;
mod groups;
mod health;
mod holds;
pub mod inventory;
mod locks;
mod modify;
mod pins;
mod pod;
mod prepare;
mod reading;
mod records;
pub mod recovery;
mod retag;
mod room;
pub mod sampler;
mod scratch;
mod start;
pub mod survey;
mod tenants;
mod underway;
mod usage;
mod volume;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, DeviceClass};
use crate::exec::{Exec, Tools};
use crate::journal::Journal;
use crate::lvm::runner::Runner;
use crate::volume::{LvName, TopologyValue};

pub use crate::lvm::dm_name::split_device_name;
pub use activate::{ActivateError, DeactivateError, Device};
pub use backups::Backups;
pub use changes::{Change, Changes, Listener, Reason};
pub use create::{CreateError, CreateRequest};
pub use delete::DeleteError;
pub use find::FindError;
pub use forget::ForgetError;
pub use group::{Condition, Group, Unreadable};
pub use health::GroupHealth;
pub use locks::{Busy, VolumeGuard, VolumeLocks};
pub use modify::ModifyError;
pub use pod::PodClaim;
pub use prepare::PrepareError;
pub use reading::Reading;
pub use retag::TagChangeError;
pub use room::RoomError;
pub use start::{Settings, StartError};
pub use usage::{Fill, Usage, UsageError};
pub use volume::Volume;

/// The node's volumes.
#[derive(Debug)]
pub struct Engine {
    node: TopologyValue,
    config: Arc<Config>,
    tools: Tools,
    exec: Exec,
    runner: Arc<dyn Runner>,
    groups: groups::Groups,
    /// LVM's configuration, by which commands of ours are known from others'.
    lvm_system_dir: PathBuf,
    locks: VolumeLocks,
    backups: Arc<backups::Backups>,
    deleted: deleted::Deleted,
    journal: Arc<dyn Journal>,
    background: TaskTracker,
    /// Ends what waits in the background.
    stop: CancellationToken,
    changes: changes::Changes,
    under_way: underway::UnderWay,
    gauge: usage::Gauge,
    holds: holds::Holds,
    samples: sampler::Samples,
    figures: inventory::Figures,
    /// The journal did not take what a recovery wanted to write.
    recovery_put_off: AtomicBool,
    /// A pod got a volume, or lost one, or a volume asks for something else.
    tenancy: Notify,
}

impl Engine {
    /// This node.
    #[must_use]
    pub fn node(&self) -> &TopologyValue {
        &self.node
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The copies of the volume groups' metadata.
    #[must_use]
    pub fn backups(&self) -> &Arc<Backups> {
        &self.backups
    }

    /// Locks a volume for one operation.
    ///
    /// # Errors
    /// [`Busy`] when another one is under way.
    pub fn lock(&self, lv: &LvName, operation: &'static str) -> Result<VolumeGuard, Busy> {
        self.locks.take(lv.as_str(), operation)
    }

    /// A device class of this node and its volume group.
    async fn class_and_group(&self, name: &str) -> Result<(DeviceClass, Arc<Group>), CreateError> {
        let Some(class) = self.config.class(name) else {
            let known: Vec<String> =
                self.config.device_classes.iter().map(|class| format!("{:?}", class.name)).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(CreateError::NoClass { node: self.node.to_string(), class: name.to_owned(), known });
        };
        let group = self.groups.by_name(&class.volume_group);
        // A class that lists devices means the group on these, not one of the same name elsewhere.
        let group = group.filter(|group| class.devices.is_empty() || group.is_on_listed_devices());
        if let Some(group) = group {
            return Ok((class.clone(), group));
        }
        // It may be a group whose volumes we know: then the claim's volume may be among them.
        self.groups.none_gone()?;
        Err(CreateError::NoGroup {
            node: self.node.to_string(),
            class: name.to_owned(),
            vg: class.volume_group.clone(),
        })
    }
}
