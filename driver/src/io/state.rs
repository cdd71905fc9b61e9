//! What became of what a volume asks for at a pod.

use std::fmt;

/// Whether a pod has the share and the limits that its volume promises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nothing is asked for.
    NotAsked,
    /// Not yet: something that comes by itself is missing.
    Pending(Reason),
    /// The kernel was seen to have all of it.
    Enforced,
    /// It has not, and will not by itself.
    NotEnforced(Reason),
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The pod's cgroup is not there yet.
    CgroupNotFound,
    /// The volume's device is not live.
    NoDevice,
    /// Nobody said which pod it is.
    NoPod,
    /// The configuration says that weights are off.
    Off,
    /// The pods' cgroups have no weights or limits: the kernel or the parent cgroups lack the io controller.
    NoIoController(String),
    /// The kernel has no iocost.
    NoIocost,
    /// The kernel has no BFQ for this disk.
    NoBfq(String),
    /// There is no cost model for the disk.
    Uncalibrated {
        /// The disk.
        disk: String,
        /// Why it could not be calibrated, where that was tried.
        why: Option<String>,
    },
    /// The disk is being calibrated.
    Calibrating(String),
    /// The disk is slower than its model now.
    DiskBehindModel(String),
    /// Several tenants of a thin pool sync their writes.
    SyncsShareThinPool(String),
    /// Somebody else controls the disk.
    ForeignQosSettings(String),
    /// Everything was put back, and nothing is set until the driver starts anew.
    PutBack,
    /// The pod is in a QoS class whose weight is not managed.
    ClassNotManaged,
    /// The kernel shows something else than what it was given.
    ReadBackMismatch(String),
    /// The disks below the volume, or a file, cannot be read or written.
    Failed(String),
}

impl State {
    /// As one word, for tables and metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::NotAsked => "not-asked",
            Self::Pending(_) => "pending",
            Self::Enforced => "enforced",
            Self::NotEnforced(_) => "not-enforced",
        }
    }

    /// Every name there is.
    pub const NAMES: [&str; 4] = ["not-asked", "pending", "enforced", "not-enforced"];

    /// Why it is not enforced.
    #[must_use]
    pub fn reason(&self) -> Option<&Reason> {
        match self {
            Self::Pending(reason) | Self::NotEnforced(reason) => Some(reason),
            Self::NotAsked | Self::Enforced => None,
        }
    }
}

impl Reason {
    /// One word in the style of Kubernetes' reasons.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::CgroupNotFound => "CgroupNotFound",
            Self::NoDevice => "NoDevice",
            Self::NoPod => "NoPod",
            Self::Off => "Off",
            Self::NoIoController(_) => "NoIoController",
            Self::NoIocost => "NoIocost",
            Self::NoBfq(_) => "NoBfq",
            Self::Uncalibrated { .. } => "Uncalibrated",
            Self::Calibrating(_) => "Calibrating",
            Self::DiskBehindModel(_) => "DiskBehindModel",
            Self::SyncsShareThinPool(_) => "SyncsShareThinPool",
            Self::ForeignQosSettings(_) => "ForeignQosSettings",
            Self::PutBack => "PutBack",
            Self::ClassNotManaged => "ClassNotManaged",
            Self::ReadBackMismatch(_) => "ReadBackMismatch",
            Self::Failed(_) => "Failed",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.name())?;
        match self {
            Self::CgroupNotFound => f.write_str("the pod's cgroup is not there yet"),
            Self::NoDevice => f.write_str("the volume's device is not live"),
            Self::NoPod => f.write_str("nobody said which pod has the volume"),
            Self::Off => f.write_str("weights are switched off in the configuration (io.weights)"),
            Self::NoIoController(file) => {
                write!(f, "there is no {file}: the kernel, or a cgroup above the pod's, lacks the io controller")
            }
            Self::NoIocost => f.write_str("the kernel has no iocost (CONFIG_BLK_CGROUP_IOCOST)"),
            Self::NoBfq(disk) => write!(f, "the kernel offers no scheduler bfq for disk {disk}"),
            Self::Uncalibrated { disk, why } => {
                write!(
                    f,
                    "there is no cost model for disk {disk}: without one that is a little below the disk's true speed the \
                     kernel takes weights and ignores them (`quarry-driver calibrate`, or io.models in the configuration)"
                )?;
                why.as_ref().map_or(Ok(()), |why| write!(f, "; it was tried: {why}"))
            }
            Self::Calibrating(disk) => write!(f, "disk {disk} is being calibrated"),
            Self::DiskBehindModel(what) => write!(f, "{what}"),
            Self::SyncsShareThinPool(pool) => write!(
                f,
                "several pods sync their writes to volumes of thin pool {pool}, whose work for that is charged to nobody: \
                 put such volumes on thick storage, or limit the disturber (writeIops)"
            ),
            Self::ForeignQosSettings(what) => write!(f, "somebody else controls the disk, and is left alone: {what}"),
            Self::PutBack => f.write_str(
                "everything was put back (quarry-driver restore-io); weights and limits are set again when the driver is \
                 started anew",
            ),
            Self::ClassNotManaged => f.write_str(
                "the pod is in a QoS class, which competes as a whole, and its weight is not managed (io.qosClasses)",
            ),
            Self::ReadBackMismatch(what) | Self::Failed(what) => f.write_str(what),
        }
    }
}
