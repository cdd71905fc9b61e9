//! Making a filesystem.
//!
//! **Invariant.** Whether a device may be formatted is proven by the caller ([`Ground`]); here a device that is mounted
//! or claimed by anything is refused whatever the caller says. mkfs itself is no second safeguard: without a terminal
//! `mkfs.ext4` overwrites an existing filesystem without asking.

use std::io;
use std::path::{Path, PathBuf};

use crate::exec::ExecError;
use crate::volume::FilesystemType;

use super::{Filesystems, blocking, device};

/// What is known of the device that gets a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// A thin volume that was never written: it has no blocks and reads as zero everywhere. Nothing has to be discarded
    /// or zeroed, and so no block of the pool is spent on zeroes.
    Unwritten,
    /// Proven free of signatures, its bytes unknown.
    Leftovers,
    /// An earlier mkfs of ours was cut off here, before anybody could mount it: the one case in which a signature may
    /// be overwritten.
    CutOff,
}

/// Why there is no filesystem.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Something holds the device.
    #[error("{} is in use by a mount or another device; it is not formatted", .0.display())]
    InUse(PathBuf),
    /// It is not known whether something holds the device.
    #[error("cannot tell whether {} is in use; it is not formatted", device.display())]
    Unknown {
        /// The device.
        device: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// mkfs failed.
    #[error("cannot make {fs} on {}", device.display())]
    Mkfs {
        /// The filesystem.
        fs: FilesystemType,
        /// The device.
        device: PathBuf,
        /// Why.
        #[source]
        source: ExecError,
    },
}

impl Filesystems {
    /// Makes a filesystem with these further options of its mkfs; they come last, so they win over ours.
    ///
    /// When it returns, mkfs has synchronised the device (all three of them do).
    ///
    /// # Errors
    /// [`FormatError`]. After [`FormatError::Mkfs`] the device may hold part of a filesystem.
    pub async fn format(
        &self,
        device: &Path,
        fs: FilesystemType,
        ground: Ground,
        options: &[String],
    ) -> Result<(), FormatError> {
        let path = device.to_owned();
        match blocking(move || device::is_claimed(&path)).await {
            Ok(false) => {}
            Ok(true) => return Err(FormatError::InUse(device.to_owned())),
            Err(source) => return Err(FormatError::Unknown { device: device.to_owned(), source }),
        }
        let tool = match fs {
            FilesystemType::Ext4 => &self.tools.mkfs_ext4,
            FilesystemType::Xfs => &self.tools.mkfs_xfs,
            FilesystemType::Btrfs => &self.tools.mkfs_btrfs,
        };
        let invocation = self.invocation(tool).args(arguments(fs, ground)).args(options).arg("--").arg(device);
        let output = self.exec.run(invocation).await.and_then(crate::exec::Output::success);
        let output = output.map_err(|source| FormatError::Mkfs { fs, device: device.to_owned(), source })?;
        tracing::info!(command = output.line, ms = output.duration.as_millis(), "made a filesystem");
        Ok(())
    }
}

/// Our own options, before the user's.
fn arguments(fs: FilesystemType, ground: Ground) -> Vec<&'static str> {
    let mut arguments = match fs {
        // No blocks kept for root: a volume has no system to keep alive. On an error the filesystem becomes read-only
        // instead of going on over the damage; this is written into it, so mount options can still say otherwise.
        FilesystemType::Ext4 => vec!["-q", "-m", "0", "-e", "remount-ro"],
        FilesystemType::Xfs | FilesystemType::Btrfs => vec!["-q"],
    };
    match (fs, ground) {
        // The journal and the inode tables are zero already and are marked so: neither mkfs nor, later, the kernel's
        // lazy initialisation writes them, which would fill 1.6 % of the volume in the pool.
        (FilesystemType::Ext4, Ground::Unwritten) => {
            arguments.extend(["-E", "nodiscard,assume_storage_prezeroed=1"]);
        }
        (FilesystemType::Xfs | FilesystemType::Btrfs, Ground::Unwritten) => arguments.push("-K"),
        // mkfs's own default: discard all first. It frees the blocks of the attempt that was cut off.
        (_, Ground::Leftovers) => {}
        (FilesystemType::Ext4, Ground::CutOff) => arguments.push("-F"),
        (FilesystemType::Xfs | FilesystemType::Btrfs, Ground::CutOff) => arguments.push("-f"),
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::exec::{Exec, Tools};
    use crate::filesystem::{Content, Proof};

    const SIZE: u64 = 320 << 20;

    fn filesystems() -> Filesystems {
        Filesystems::new(Exec::default(), Tools::find().unwrap(), Duration::from_secs(600))
    }

    fn device() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(SIZE).unwrap();
        file
    }

    #[tokio::test]
    async fn every_filesystem_is_made_on_every_ground() {
        for fs in FilesystemType::ALL {
            for ground in [Ground::Unwritten, Ground::Leftovers, Ground::CutOff] {
                let device = device();
                let options = ["-L".to_owned(), "given".to_owned()];
                filesystems().format(device.path(), fs, ground, &options).await.unwrap();
                let found = filesystems().probe(device.path(), SIZE, Proof::NoSignature).await.unwrap();
                let Content::Found(signature) = found else { panic!("{fs} {ground:?}: nothing found") };
                assert_eq!(signature.kind.as_deref(), Some(fs.name()));
                assert!(signature.text.contains("LABEL=given"), "{}", signature.text);
            }
        }
    }

    #[tokio::test]
    async fn only_a_cut_off_attempt_is_overwritten_where_mkfs_looks_itself() {
        for fs in [FilesystemType::Xfs, FilesystemType::Btrfs] {
            let device = device();
            filesystems().format(device.path(), fs, Ground::Unwritten, &[]).await.unwrap();
            let refused = filesystems().format(device.path(), fs, Ground::Leftovers, &[]).await.unwrap_err();
            assert!(matches!(refused, FormatError::Mkfs { .. }), "{refused}");
            filesystems().format(device.path(), fs, Ground::CutOff, &[]).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_wrong_option_is_named_by_mkfs() {
        let options = ["--no-such-option".to_owned()];
        let error = filesystems().format(device().path(), FilesystemType::Xfs, Ground::Leftovers, &options).await;
        let error = error.unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("no-such-option"), "{source}");
    }

    #[tokio::test]
    async fn an_unwritten_device_gets_few_blocks() {
        use std::os::unix::fs::MetadataExt as _;
        let device = device();
        filesystems().format(device.path(), FilesystemType::Ext4, Ground::Unwritten, &[]).await.unwrap();
        let used = device.as_file().metadata().unwrap().blocks() * 512;
        assert!(used < 2 << 20, "mkfs wrote {used} bytes: the zeroes were written out");
    }
}
