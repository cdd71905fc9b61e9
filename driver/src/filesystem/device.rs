//! Block devices by number: the node in `/dev`, its size, whether something holds it.
//!
//! **Invariant.** A device is identified by its number, never by its name alone: a stale node in `/dev` would lead to
//! another volume.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use crate::device_number::DeviceNumber;

impl DeviceNumber {
    /// The number that a block device node in `/dev` carries, following symbolic links; nothing for another kind of
    /// file.
    ///
    /// # Errors
    /// The system's, for a path that cannot be looked at.
    pub fn of_node(path: &Path) -> io::Result<Option<Self>> {
        let metadata = std::fs::metadata(path)?;
        Ok(metadata.file_type().is_block_device().then(|| Self::from_rdev(metadata.rdev())))
    }

    /// The name that device-mapper gave the device; nothing for a device that is not device-mapper's.
    ///
    /// # Errors
    /// The system's, for a name that is there and cannot be read.
    pub fn mapper_name(self) -> io::Result<Option<String>> {
        match std::fs::read_to_string(format!("/sys/dev/block/{self}/dm/name")) {
            Ok(name) => Ok(Some(name.trim_end_matches('\n').to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The device's size in bytes, as the kernel has it. Touches no disk.
    ///
    /// # Errors
    /// [`DeviceError::Size`] if there is no such device.
    pub fn size(self) -> Result<u64, DeviceError> {
        // The unit is 512 bytes, whatever the device's own sectors are.
        let read = || {
            let text = std::fs::read_to_string(format!("/sys/dev/block/{self}/size"))?;
            let sectors: u64 = text.trim_end().parse().map_err(io::Error::other)?;
            sectors.checked_mul(512).ok_or_else(|| io::Error::other("larger than 64 bits"))
        };
        read().map_err(|source| DeviceError::Size { number: self, source })
    }
}

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Its node in `/dev` did not become the expected device in time.
    #[error("{} is not block device {number} after {} ms: {state}", path.display(), after.as_millis())]
    NotThere {
        /// The node.
        path: PathBuf,
        /// The device it should be.
        number: DeviceNumber,
        /// How long it was waited for.
        after: Duration,
        /// What is there instead.
        state: String,
    },
    /// The kernel does not tell its size.
    #[error("cannot read the size of block device {number}")]
    Size {
        /// Which.
        number: DeviceNumber,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// Waits until the node in `/dev` is there and is the expected device: whoever makes nodes (udevd, LVM itself, the
/// kernel) may be a moment behind the device.
///
/// # Errors
/// [`DeviceError::NotThere`] at the limit.
pub async fn wait_for(path: &Path, number: DeviceNumber, limit: Duration) -> Result<(), DeviceError> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        let state = match DeviceNumber::of_node(path) {
            Ok(Some(found)) if found == number => return Ok(()),
            Ok(Some(found)) => format!("it is block device {found}"),
            Ok(None) => "it is no block device".to_owned(),
            Err(error) => error.to_string(),
        };
        if start.elapsed() >= limit {
            return Err(DeviceError::NotThere { path: path.to_owned(), number, after: start.elapsed(), state });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Whether something in the kernel (a mounted filesystem in whatever mount namespace, another device) has claimed the
/// device for itself.
///
/// # Errors
/// The system's, for a device that cannot be opened for another reason.
pub fn is_claimed(path: &Path) -> io::Result<bool> {
    // On a block device O_EXCL without O_CREAT asks for the claim that a mount holds.
    let exclusive = i32::try_from(rustix::fs::OFlags::EXCL.bits()).map_err(io::Error::other)?;
    match OpenOptions::new().read(true).custom_flags(exclusive).open(path) {
        Ok(_) => Ok(false),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => Ok(true),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_node_that_stays_away_is_an_error_that_says_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let number = DeviceNumber { major: 253, minor: 1 };
        let missing = wait_for(&folder.path().join("lv"), number, Duration::from_secs(5)).await.unwrap_err();
        assert!(missing.to_string().contains("is not block device 253:1 after 5"), "{missing}");
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let wrong = wait_for(&file, number, Duration::from_secs(5)).await.unwrap_err();
        assert!(wrong.to_string().ends_with("it is no block device"), "{wrong}");
    }
}
