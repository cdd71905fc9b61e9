//! Why there is no volume.

use crate::journal::JournalError;
use crate::lvm::flush::FlushError;
use crate::lvm::runner::LvmError;
use crate::volume::capacity::Bound;
use crate::volume::size::SizeError;
use crate::volume::tags::{self, TagError};
use crate::volume::{Bytes, LvName, Provisioning};

use super::super::group::Unreadable;
use super::super::pod::NotTogether;
use super::super::prepare::PrepareError;

/// Why a volume was not made, or not seen to be.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// This node has no such device class.
    #[error("node {node} has no device class {class:?}; it has {known}")]
    NoClass {
        /// This node.
        node: String,
        /// What was asked for.
        class: String,
        /// What there is.
        known: String,
    },
    /// This node has no such volume group.
    #[error("node {node} has no volume group {vg:?}, which its device class {class:?} names")]
    NoGroup {
        /// This node.
        node: String,
        /// The class.
        class: String,
        /// The group.
        vg: String,
    },
    /// There is not enough room.
    #[error(
        "no room for {wanted} {provisioning} in volume group {vg} of node {node}: at most {largest} now; what limits it is {bound}"
    )]
    NoRoom {
        /// This node.
        node: String,
        /// The group.
        vg: String,
        /// The volume's size.
        wanted: Bytes,
        /// Thin or thick.
        provisioning: Provisioning,
        /// The largest possible.
        largest: Bytes,
        /// Why.
        bound: Bound,
    },
    /// Nobody knows whether there is enough room.
    #[error("the kernel did not tell in time how full thin pool {vg}/{pool} of node {node} is; ask again")]
    RoomUnknown {
        /// This node.
        node: String,
        /// The group.
        vg: String,
        /// The pool.
        pool: String,
    },
    /// It would fit, and the other claims of its pod would not.
    #[error(
        "claims {} of one pod need {} together, node {node} has room for {}: none of them is made here, so that the pod \
         can go to a node where all fit", refused.claims, refused.needed, refused.rooms
    )]
    NotTogether {
        /// This node.
        node: String,
        /// The claims, and what there is.
        refused: NotTogether,
    },
    /// No size in whole extents fits.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// A volume group could not be read, so nobody knows whether the volume exists.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// The volume exists, with other properties.
    #[error("volume {lv} exists with {field} {existing}; the request says {requested}")]
    Different {
        /// The volume.
        lv: LvName,
        /// What differs.
        field: &'static str,
        /// What is there.
        existing: String,
        /// What was asked for.
        requested: String,
    },
    /// The name belongs to a logical volume that is not ours.
    #[error(
        "volume group {vg} has a logical volume {lv} without the tag {:?}: it is not Quarry's and is left alone",
        tags::MARK
    )]
    Foreign {
        /// The group.
        vg: String,
        /// The name.
        lv: LvName,
    },
    /// The volume exists and its tags are not understood.
    #[error("logical volume {vg}/{lv}")]
    Tags {
        /// The group.
        vg: String,
        /// The name.
        lv: LvName,
        /// What about them.
        #[source]
        source: TagError,
    },
    /// LVM refused; nothing was made.
    #[error("cannot make {what} in volume group {vg}")]
    Lvm {
        /// The group.
        vg: String,
        /// A volume or the pool.
        what: String,
        /// LVM's reason.
        #[source]
        source: LvmError,
    },
    /// The command was lost: whether the volume exists is to be seen.
    #[error("whether {what} was made in volume group {vg} is not known yet")]
    OutcomeUnknown {
        /// The group.
        vg: String,
        /// A volume or the pool.
        what: String,
        /// What happened.
        #[source]
        source: LvmError,
    },
    /// LVM reported success and its metadata does not show the volume.
    #[error("lvcreate reported success, but the metadata of volume group {vg} does not show {lv}")]
    Vanished {
        /// The group.
        vg: String,
        /// The name.
        lv: LvName,
    },
    /// LVM reported success and its metadata does not show a larger pool.
    #[error("lvextend reported success, but the metadata of volume group {vg} shows thin pool {pool} as it was")]
    NotGrown {
        /// The group.
        vg: String,
        /// The pool.
        pool: String,
    },
    /// The volume was made and may be lost in a power cut.
    #[error(transparent)]
    Flush(#[from] FlushError),
    /// What is to be done, or was done, cannot be written down.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The volume was made once, and is not there any more.
    #[error(
        "volume {lv} was made before, in volume group {vg}, and its logical volume has vanished: it is not made anew, \
         since its data is lost. `quarry-driver forget {lv}` accepts the loss"
    )]
    Lost {
        /// The volume.
        lv: LvName,
        /// Where it was.
        vg: String,
    },
    /// Its deletion was begun.
    #[error("volume {0} is being deleted")]
    BeingDeleted(LvName),
    /// The volume was made, and making it usable (zeroing, activating) failed; it goes on at the next request.
    #[error("volume {lv} exists and is not ready")]
    Unprepared {
        /// The name.
        lv: LvName,
        /// What failed.
        #[source]
        source: PrepareError,
    },
}
