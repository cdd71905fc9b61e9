//! Checking a filesystem before it is mounted.
//!
//! **Invariant.** Never run on a device that something holds: e2fsck on a mounted filesystem destroys it.

use std::io;
use std::path::{Path, PathBuf};

use crate::exec::{ExecError, Exit, Output};
use crate::volume::FilesystemType;

use super::{Filesystems, blocking, device};

/// What a check did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checked {
    /// Nothing to correct.
    Clean,
    /// Damage that could be repaired without losing data, and was.
    Corrected,
    /// This filesystem repairs itself when it is mounted: xfs and btrfs replay their logs, and what is beyond that
    /// needs a person (`xfs_repair`, `btrfs check`).
    ByTheMount,
}

/// Why a filesystem may not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Something holds the device.
    #[error("{} is in use by a mount or another device; its filesystem is not checked", .0.display())]
    InUse(PathBuf),
    /// It is not known whether something holds the device.
    #[error("cannot tell whether {} is in use; its filesystem is not checked", device.display())]
    Unknown {
        /// The device.
        device: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The check could not be run to its end.
    #[error("cannot check the filesystem on {}", device.display())]
    Run {
        /// The device.
        device: PathBuf,
        /// Why.
        #[source]
        source: ExecError,
    },
    /// Damage that only a person may repair, because it can cost data.
    #[error(
        "the filesystem on {} is damaged beyond safe repair; on its node, with no pod using it, run `e2fsck -f` on it \
         ({exit}: {said})",
        device.display()
    )]
    Damaged {
        /// The device.
        device: PathBuf,
        /// How e2fsck ended.
        exit: Exit,
        /// What it said.
        said: String,
    },
    /// e2fsck itself did not work.
    #[error("e2fsck could not check {} ({exit}: {said})", device.display())]
    Broken {
        /// The device.
        device: PathBuf,
        /// How it ended.
        exit: Exit,
        /// What it said.
        said: String,
    },
}

impl Filesystems {
    /// Checks an existing filesystem that is not mounted, and repairs what can be repaired safely.
    ///
    /// # Errors
    /// [`CheckError`]; the filesystem must not be mounted then.
    pub async fn check(&self, device: &Path, fs: FilesystemType) -> Result<Checked, CheckError> {
        if fs != FilesystemType::Ext4 {
            return Ok(Checked::ByTheMount);
        }
        let path = device.to_owned();
        match blocking(move || device::is_claimed(&path)).await {
            Ok(false) => {}
            Ok(true) => return Err(CheckError::InUse(device.to_owned())),
            Err(source) => return Err(CheckError::Unknown { device: device.to_owned(), source }),
        }
        // -p: repair what is safe, without questions. A filesystem that was unmounted well costs a few reads.
        let invocation = self.invocation(&self.tools.e2fsck).arg("-p").arg(device);
        let output = self.exec.run(invocation).await;
        let output = output.map_err(|source| CheckError::Run { device: device.to_owned(), source })?;
        let checked = read_e2fsck(device, &output)?;
        if checked == Checked::Corrected {
            let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            tracing::warn!(device = %device.display(), said, "e2fsck corrected a filesystem");
        }
        Ok(checked)
    }
}

/// The sum of e2fsck's exit code, from e2fsck(8).
fn read_e2fsck(device: &Path, output: &Output) -> Result<Checked, CheckError> {
    const CORRECTED: i32 = 1;
    // "The system should be rebooted": meant for a root filesystem that is mounted meanwhile.
    const CORRECTED_REBOOT: i32 = 2;
    const UNCORRECTED: i32 = 4;
    let device = device.to_owned();
    let said = || {
        let text = format!("{}\n{}", String::from_utf8_lossy(&output.stdout).trim(), output.stderr);
        text.lines().map(str::trim).filter(|line| !line.is_empty()).take(8).collect::<Vec<_>>().join("; ")
    };
    match output.exit {
        Exit::Code(0) => Ok(Checked::Clean),
        Exit::Code(code) if code & !(CORRECTED | CORRECTED_REBOOT) == 0 => Ok(Checked::Corrected),
        exit @ Exit::Code(code) if code & !(CORRECTED | CORRECTED_REBOOT | UNCORRECTED) == 0 => {
            Err(CheckError::Damaged { device, exit, said: said() })
        }
        exit => Err(CheckError::Broken { device, exit, said: said() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt as _;
    use std::time::Duration;

    use crate::exec::{Exec, Tools};
    use crate::filesystem::Ground;

    fn read(exit: Exit) -> Result<Checked, CheckError> {
        let output = Output {
            line: String::new(),
            exit,
            stdout: b"x: UNEXPECTED INCONSISTENCY\n\n  RUN fsck MANUALLY.\n".to_vec(),
            stderr: "e2fsck 1.47.0".to_owned(),
            duration: Duration::ZERO,
        };
        read_e2fsck(Path::new("/dev/x"), &output)
    }

    #[test]
    fn the_exit_code_is_a_sum() {
        assert_eq!(read(Exit::Code(0)).unwrap(), Checked::Clean);
        for code in [1, 2, 3] {
            assert_eq!(read(Exit::Code(code)).unwrap(), Checked::Corrected);
        }
        for code in [4, 5, 6, 7] {
            let error = read(Exit::Code(code)).unwrap_err();
            assert!(matches!(error, CheckError::Damaged { .. }), "{error}");
            assert!(
                error.to_string().contains("UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY.; e2fsck 1.47.0"),
                "{error}"
            );
        }
        for exit in [8, 9, 12, 16, 32, 128].map(Exit::Code).into_iter().chain([Exit::Signal(9)]) {
            assert!(matches!(read(exit).unwrap_err(), CheckError::Broken { .. }), "{exit}");
        }
    }

    #[tokio::test]
    async fn real_damage_is_corrected_where_it_is_safe_and_refused_where_not() {
        let filesystems = Filesystems::new(Exec::default(), Tools::find().unwrap(), Duration::from_secs(600));
        let device = tempfile::NamedTempFile::new().unwrap();
        device.as_file().set_len(64 << 20).unwrap();
        // Without checksums, so that damage can be written here without keeping them right.
        let options = ["-b", "4096", "-O", "^metadata_csum,^64bit"].map(str::to_owned);
        filesystems.format(device.path(), FilesystemType::Ext4, Ground::Unwritten, &options).await.unwrap();
        assert_eq!(filesystems.check(device.path(), FilesystemType::Ext4).await.unwrap(), Checked::Clean);

        // The superblock at 1024: s_free_blocks_count at 12; s_state at 58, in which 2 means "errors were met".
        const SUPERBLOCK: u64 = 1024;
        let write = |bytes: &[u8], at: u64| device.as_file().write_all_at(bytes, at).unwrap();
        write(&1_u32.to_le_bytes(), SUPERBLOCK + 12);
        write(&2_u16.to_le_bytes(), SUPERBLOCK + 58);
        assert_eq!(filesystems.check(device.path(), FilesystemType::Ext4).await.unwrap(), Checked::Corrected);
        assert_eq!(filesystems.check(device.path(), FilesystemType::Ext4).await.unwrap(), Checked::Clean);

        // The root directory's inode, the second of the table that the first group's descriptor points to, loses its
        // mode: what it was can only be guessed.
        let mut table = [0; 4];
        device.as_file().read_exact_at(&mut table, 4096 + 8).unwrap();
        write(&[0, 0], u64::from(u32::from_le_bytes(table)) * 4096 + 256);
        write(&2_u16.to_le_bytes(), SUPERBLOCK + 58);
        let error = filesystems.check(device.path(), FilesystemType::Ext4).await.unwrap_err();
        assert!(matches!(error, CheckError::Damaged { .. }), "{error}");

        write(&[0xff; 4096], 0);
        let error = filesystems.check(device.path(), FilesystemType::Ext4).await.unwrap_err();
        assert!(matches!(error, CheckError::Broken { .. }), "{error}");
        assert_eq!(filesystems.check(device.path(), FilesystemType::Xfs).await.unwrap(), Checked::ByTheMount);
    }
}
