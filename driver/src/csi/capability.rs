//! Reads CSI volume capabilities.

use quarry_proto::csi::v1::volume_capability::access_mode::Mode;
use quarry_proto::csi::v1::volume_capability::{AccessType, MountVolume};
use quarry_proto::csi::v1::{self as proto};

use crate::volume::capability::{Access, Capability, CapabilityError};
use crate::volume::{Content, FilesystemType};

/// Reads one capability. `default` is the filesystem where the capability names none: the StorageClass's, or the
/// existing volume's.
///
/// # Errors
/// [`CapabilityError`], naming the request's `field`.
pub fn read(
    field: &'static str,
    capability: Option<&proto::VolumeCapability>,
    default: Option<FilesystemType>,
) -> Result<Capability, CapabilityError> {
    let capability = capability.ok_or(CapabilityError::Missing { field })?;
    let mode = capability.access_mode.ok_or(CapabilityError::Missing { field })?.mode;
    let access = access(field, mode)?;
    let (content, mount_flags) = match &capability.access_type {
        None => return Err(CapabilityError::NoAccessType { field }),
        Some(AccessType::Block(_)) => (Content::Block, Vec::new()),
        Some(AccessType::Mount(mount)) => (filesystem(field, mount, default)?, mount.mount_flags.clone()),
    };
    if content == Content::Block && access == Access::NodeReaders {
        return Err(CapabilityError::ReadOnlyBlock { field });
    }
    Ok(Capability { content, access, mount_flags })
}

/// Reads the capabilities of CreateVolume or ValidateVolumeCapabilities: at least one, all of one content.
///
/// # Errors
/// [`CapabilityError`].
pub fn read_all(
    capabilities: &[proto::VolumeCapability],
    default: Option<FilesystemType>,
) -> Result<Content, CapabilityError> {
    const FIELD: &str = "volume_capabilities";
    let mut content = None;
    for capability in capabilities {
        let read = read(FIELD, Some(capability), default)?;
        match content {
            Some(first) if first != read.content => {
                return Err(CapabilityError::Mixed { field: FIELD, first, second: read.content });
            }
            _ => content = Some(read.content),
        }
    }
    content.ok_or(CapabilityError::Missing { field: FIELD })
}

fn access(field: &'static str, mode: i32) -> Result<Access, CapabilityError> {
    match Mode::try_from(mode) {
        Ok(Mode::SingleNodeWriter | Mode::SingleNodeMultiWriter) => Ok(Access::NodeWriters),
        Ok(Mode::SingleNodeSingleWriter) => Ok(Access::OnePod),
        Ok(Mode::SingleNodeReaderOnly) => Ok(Access::NodeReaders),
        Ok(other) => Err(CapabilityError::AccessMode { field, mode: other.as_str_name().to_owned() }),
        Err(_) => Err(CapabilityError::AccessMode { field, mode: mode.to_string() }),
    }
}

fn filesystem(
    field: &'static str,
    mount: &MountVolume,
    default: Option<FilesystemType>,
) -> Result<Content, CapabilityError> {
    if !mount.volume_mount_group.is_empty() {
        return Err(CapabilityError::MountGroup { field, group: mount.volume_mount_group.clone() });
    }
    match default {
        Some(default) if mount.fs_type.is_empty() => Ok(Content::Filesystem(default)),
        _ => mount
            .fs_type
            .parse()
            .map(Content::Filesystem)
            .map_err(|source| CapabilityError::Filesystem { field, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quarry_proto::csi::v1::volume_capability::{AccessMode, BlockVolume};

    fn mount(fs_type: &str, mode: Mode) -> proto::VolumeCapability {
        let mount =
            MountVolume { fs_type: fs_type.to_owned(), mount_flags: vec!["noatime".to_owned()], ..Default::default() };
        proto::VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(AccessType::Mount(mount)),
        }
    }

    fn block(mode: Mode) -> proto::VolumeCapability {
        proto::VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(AccessType::Block(BlockVolume {})),
        }
    }

    #[test]
    fn the_filesystem_is_the_capabilitys_or_the_default() {
        let content =
            |fs, default| read("volume_capability", Some(&mount(fs, Mode::SingleNodeWriter)), default).unwrap().content;
        assert_eq!(content("", None), Content::Filesystem(FilesystemType::Ext4));
        assert_eq!(content("", Some(FilesystemType::Xfs)), Content::Filesystem(FilesystemType::Xfs));
        assert_eq!(content("btrfs", Some(FilesystemType::Xfs)), Content::Filesystem(FilesystemType::Btrfs));
    }

    #[test]
    fn modes_across_nodes_are_refused_by_name() {
        for mode in [Mode::MultiNodeReaderOnly, Mode::MultiNodeSingleWriter, Mode::MultiNodeMultiWriter, Mode::Unknown]
        {
            let error = read_all(&[mount("", mode)], None).unwrap_err();
            assert!(error.to_string().contains(mode.as_str_name()), "{error}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let mixed = read_all(&[mount("", Mode::SingleNodeWriter), block(Mode::SingleNodeWriter)], None);
        assert!(matches!(mixed, Err(CapabilityError::Mixed { .. })));
        assert!(matches!(read_all(&[], None), Err(CapabilityError::Missing { .. })));
        assert!(matches!(
            read_all(&[block(Mode::SingleNodeReaderOnly)], None),
            Err(CapabilityError::ReadOnlyBlock { .. })
        ));
        let bare = proto::VolumeCapability { access_mode: Some(AccessMode { mode: 1 }), access_type: None };
        assert!(matches!(read_all(&[bare], None), Err(CapabilityError::NoAccessType { .. })));
    }
}
