//! What a volume is used as: a filesystem or a raw block device, and by how many.

use std::fmt;
use std::str::FromStr;

/// A filesystem Quarry can make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FilesystemType {
    /// The default.
    Ext4,
    /// xfs.
    Xfs,
    /// btrfs.
    Btrfs,
}

impl FilesystemType {
    /// Every one, in the order in which errors list them.
    pub const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    /// The name that mount, mkfs, blkid and CSI use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }
}

impl fmt::Display for FilesystemType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A filesystem type that is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("filesystem type {0:?} is not supported; supported are ext4 (the default), xfs and btrfs")]
pub struct UnknownFilesystem(pub String);

impl FromStr for FilesystemType {
    type Err = UnknownFilesystem;

    /// An empty string is the default, ext4: a claim without `csi.storage.k8s.io/fstype` sends one.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Ok(Self::Ext4);
        }
        Self::ALL.into_iter().find(|fs| fs.name() == text).ok_or_else(|| UnknownFilesystem(text.to_owned()))
    }
}

/// What a volume holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Content {
    /// Whatever its user writes to the raw device.
    Block,
    /// A filesystem.
    Filesystem(FilesystemType),
}

impl Content {
    /// `block`, or the filesystem's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Filesystem(fs) => fs.name(),
        }
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block => f.write_str("raw block device"),
            Self::Filesystem(fs) => write!(f, "{fs} filesystem"),
        }
    }
}

/// How a volume may be shared, as far as one node can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// `SINGLE_NODE_WRITER`, `SINGLE_NODE_MULTI_WRITER`: every pod of the node (ReadWriteOnce).
    NodeWriters,
    /// `SINGLE_NODE_SINGLE_WRITER`: one pod (ReadWriteOncePod).
    OnePod,
    /// `SINGLE_NODE_READER_ONLY`.
    NodeReaders,
}

/// One checked volume capability of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// Filesystem or raw block.
    pub content: Content,
    /// How it may be shared.
    pub access: Access,
    /// Mount options, as mount(8) takes them after `-o`.
    pub mount_flags: Vec<String>,
}

/// Why a capability cannot be served; on every node alike, so INVALID_ARGUMENT.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CapabilityError {
    /// None given.
    #[error("{field} is empty; a capability with access type and access mode is needed")]
    Missing {
        /// The request's field.
        field: &'static str,
    },
    /// Neither block nor mount.
    #[error("{field}.access_type is not set; it must be block or mount")]
    NoAccessType {
        /// The request's field.
        field: &'static str,
    },
    /// An access mode that a node-local volume cannot have.
    #[error(
        "{field}.access_mode {mode} is not supported: a volume lives on one node (ReadWriteOnce and ReadWriteOncePod \
         work; ReadWriteMany and ReadOnlyMany do not)"
    )]
    AccessMode {
        /// The request's field.
        field: &'static str,
        /// The mode's CSI name.
        mode: String,
    },
    /// A filesystem that is not supported.
    #[error("{field}.mount.fs_type")]
    Filesystem {
        /// The request's field.
        field: &'static str,
        /// Which.
        #[source]
        source: UnknownFilesystem,
    },
    /// `volume_mount_group`, which is not advertised.
    #[error("{field}.mount.volume_mount_group {group:?} is not supported; kubelet applies fsGroup itself")]
    MountGroup {
        /// The request's field.
        field: &'static str,
        /// What was sent.
        group: String,
    },
    /// Capabilities of one request that contradict each other.
    #[error("{field} asks for {first} and {second}; one volume is either")]
    Mixed {
        /// The request's field.
        field: &'static str,
        /// One.
        first: Content,
        /// Another.
        second: Content,
    },
    /// Read-only raw block: a read-only bind mount of a device node does not stop writes to the device.
    #[error("{field}: a raw block volume cannot be limited to reading")]
    ReadOnlyBlock {
        /// The request's field.
        field: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_filesystem_is_told_what_is_known() {
        assert_eq!("".parse(), Ok(FilesystemType::Ext4));
        assert_eq!("xfs".parse(), Ok(FilesystemType::Xfs));
        let error = "zfs".parse::<FilesystemType>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "filesystem type \"zfs\" is not supported; supported are ext4 (the default), xfs and btrfs"
        );
    }
}
