//! What the node requests have in common: ids and paths, checked before anything is done.

use std::path::{Path, PathBuf};

use quarry_proto::csi::v1 as proto;
use quarry_proto::csi::v1::volume_capability::AccessType;
use tonic::Code;

use crate::csi::capability;
use crate::filesystem::{TargetError, target};
use crate::volume::capability::{Capability, CapabilityError};
use crate::volume::{Content, TopologyValue, VolumeHandle};

/// What is wrong with a request, seen without looking at the volume.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// A field that is needed.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// A path that leads nowhere for certain.
    #[error("{field} {path:?} is not a sound path; it must be absolute, without zero bytes, and end in a name")]
    Path {
        /// The field.
        field: &'static str,
        /// What was sent.
        path: String,
    },
    /// An id that we never gave out.
    #[error("volume {0:?} does not exist: its id is not one that Quarry gave out")]
    ForeignId(String),
    /// A volume of another node.
    #[error("volume {handle} lives on node {}, this is node {here}", handle.node)]
    OtherNode {
        /// The volume.
        handle: VolumeHandle,
        /// This node.
        here: TopologyValue,
    },
}

impl RequestError {
    /// The code of the answer, the same in every RPC.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Empty(_) | Self::Path { .. } => Code::InvalidArgument,
            Self::ForeignId(_) => Code::NotFound,
            Self::OtherNode { .. } => Code::FailedPrecondition,
        }
    }
}

/// The volume that a request means, on this node.
pub fn volume(id: &str, here: &TopologyValue) -> Result<VolumeHandle, RequestError> {
    if id.is_empty() {
        return Err(RequestError::Empty("volume_id"));
    }
    let handle = VolumeHandle::parse(id).ok_or_else(|| RequestError::ForeignId(id.to_owned()))?;
    if handle.node != *here {
        return Err(RequestError::OtherNode { handle, here: here.clone() });
    }
    Ok(handle)
}

/// A path of a request.
pub fn path(field: &'static str, path: &str) -> Result<PathBuf, RequestError> {
    if path.is_empty() {
        return Err(RequestError::Empty(field));
    }
    let sound = Path::new(path).is_absolute() && Path::new(path).file_name().is_some() && !path.contains('\0');
    if sound { Ok(PathBuf::from(path)) } else { Err(RequestError::Path { field, path: path.to_owned() }) }
}

/// A place as the mount table names it; nothing where the folder above it does not exist, so that nothing can be
/// mounted there.
pub fn place(path: &Path) -> Result<Option<PathBuf>, TargetError> {
    match target::resolve(path) {
        Ok(place) => Ok(Some(place)),
        Err(TargetError::System { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a request wants to use a volume as.
#[derive(Debug, Clone)]
pub struct Use {
    /// The capability; where it names no filesystem, with the default one.
    pub capability: Capability,
    /// Whether it names a filesystem itself.
    names_filesystem: bool,
}

impl Use {
    /// Reads the field `volume_capability`.
    pub fn read(capability: Option<&proto::VolumeCapability>) -> Result<Self, CapabilityError> {
        let read = capability::read("volume_capability", capability, None)?;
        let access = capability.and_then(|capability| capability.access_type.as_ref());
        let names_filesystem = matches!(access, Some(AccessType::Mount(mount)) if !mount.fs_type.is_empty());
        Ok(Self { capability: read, names_filesystem })
    }

    /// Whether a volume of that content can be used so; a capability that names no filesystem takes any.
    pub fn fits(&self, is: Content) -> bool {
        match (is, self.capability.content) {
            (Content::Filesystem(_), Content::Filesystem(_)) if !self.names_filesystem => true,
            (is, asked) => is == asked,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::FilesystemType;

    #[test]
    fn ids_are_told_apart_before_any_look_up() {
        let here = TopologyValue::for_node("a");
        assert_eq!(volume("", &here).unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(volume("fake-vol-id-0123456789", &here).unwrap_err().code(), Code::NotFound);
        let other = volume("b/pvc-1", &here).unwrap_err();
        assert_eq!(other.code(), Code::FailedPrecondition);
        assert_eq!(other.to_string(), "volume b/pvc-1 lives on node b, this is node a");
        assert_eq!(volume("a/pvc-1", &here).unwrap().to_string(), "a/pvc-1");
    }

    #[test]
    fn paths_that_lead_nowhere_are_refused_with_their_field() {
        for bad in ["", "relative", "/", "/a/..", "/a\0b"] {
            let error = path("target_path", bad).unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{bad:?}");
            assert!(error.to_string().starts_with("target_path"), "{error}");
        }
        assert_eq!(path("target_path", "/a/b/").unwrap(), Path::new("/a/b"));
    }

    #[test]
    fn a_missing_folder_above_means_that_nothing_is_there() {
        assert_eq!(place(Path::new("/no/such/folder/mount")).unwrap(), None);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(place(&file.join("mount")).is_err(), "a file in the way is not an absent folder");
    }

    #[test]
    fn a_volume_is_used_as_what_it_is() {
        use proto::volume_capability::{AccessMode, BlockVolume, MountVolume};
        let used = |access_type| {
            let capability =
                proto::VolumeCapability { access_mode: Some(AccessMode { mode: 7 }), access_type: Some(access_type) };
            Use::read(Some(&capability)).unwrap()
        };
        let mount = |fs: &str| used(AccessType::Mount(MountVolume { fs_type: fs.to_owned(), ..Default::default() }));
        let (xfs, ext4) = (Content::Filesystem(FilesystemType::Xfs), Content::Filesystem(FilesystemType::Ext4));
        assert!(mount("").fits(xfs) && mount("").fits(ext4) && mount("xfs").fits(xfs));
        assert!(!mount("ext4").fits(xfs) && !mount("").fits(Content::Block));
        let block = used(AccessType::Block(BlockVolume {}));
        assert!(block.fits(Content::Block) && !block.fits(ext4));
        assert!(Use::read(None).is_err());
    }
}
