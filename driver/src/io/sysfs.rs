//! From a device to the whole disks below it, by sysfs: through thin pools, physical volumes, crypt and md devices, and
//! partitions.
//!
//! **Invariant.** Nothing is remembered: device numbers change while a machine runs.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::device_number::DeviceNumber;

/// A whole disk, which has a queue of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Disk {
    /// Its number, for now.
    pub number: DeviceNumber,
    /// Its name in `/sys/block`.
    pub name: String,
}

/// The disks below a device are not known.
#[derive(Debug, thiserror::Error)]
pub enum SysfsError {
    /// A file of sysfs.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A file says something else than it should.
    #[error("{} says {text:?}, which is not understood", path.display())]
    Text {
        /// Which.
        path: PathBuf,
        /// What it says.
        text: String,
    },
    /// Devices over devices over devices.
    #[error("the devices below {0} are stacked too deep")]
    Deep(DeviceNumber),
}

/// More than anybody stacks: a thin volume on a pool on its data on crypt on md on a partition are seven.
const DEEPEST: usize = 24;

/// The disks below a device; itself where it is one.
///
/// # Errors
/// [`SysfsError`].
pub fn disks_below(sys: &Path, device: DeviceNumber) -> Result<BTreeSet<Disk>, SysfsError> {
    let link = sys.join("dev/block").join(device.to_string());
    let folder = fs::canonicalize(&link).map_err(|source| SysfsError::Read { path: link, source })?;
    let mut disks = BTreeSet::new();
    descend(&folder, 0, device, &mut disks)?;
    Ok(disks)
}

/// The disk of that name in `/sys/block`; nothing where there is none.
///
/// # Errors
/// [`SysfsError`].
pub fn by_name(sys: &Path, name: &str) -> Result<Option<Disk>, SysfsError> {
    let path = sys.join("block").join(name).join("dev");
    match fs::read_to_string(&path) {
        Ok(text) => match text.parse() {
            Ok(number) => Ok(Some(Disk { number, name: name.to_owned() })),
            Err(_) => Err(SysfsError::Text { path, text }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SysfsError::Read { path, source }),
    }
}

fn descend(folder: &Path, depth: usize, top: DeviceNumber, disks: &mut BTreeSet<Disk>) -> Result<(), SysfsError> {
    if depth > DEEPEST {
        return Err(SysfsError::Deep(top));
    }
    let slaves = folder.join("slaves");
    let mut below = Vec::new();
    match fs::read_dir(&slaves) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry.map_err(|source| SysfsError::Read { path: slaves.clone(), source })?;
                let path = entry.path();
                below.push(fs::canonicalize(&path).map_err(|source| SysfsError::Read { path, source })?);
            }
        }
        // Partitions have no such folder.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(SysfsError::Read { path: slaves, source }),
    }
    if !below.is_empty() {
        return below.iter().try_for_each(|folder| descend(folder, depth + 1, top, disks));
    }
    let is_partition = folder.join("partition").exists();
    match folder.parent().filter(|_| is_partition) {
        Some(whole) => descend(whole, depth + 1, top, disks),
        None => {
            let path = folder.join("dev");
            let text = fs::read_to_string(&path).map_err(|source| SysfsError::Read { path: path.clone(), source })?;
            let number = text.parse().map_err(|_| SysfsError::Text { path, text })?;
            let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            disks.insert(Disk { number, name });
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A sysfs: devices by path below `devices`, with what is below each.
    fn sysfs(devices: &[(&str, &str, &[&str])]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join("devices").join(name);
        fs::create_dir_all(root.path().join("dev/block")).unwrap();
        for (name, number, slaves) in devices {
            fs::create_dir_all(path(name).join("slaves")).unwrap();
            fs::write(path(name).join("dev"), format!("{number}\n")).unwrap();
            symlink(path(name), root.path().join("dev/block").join(number)).unwrap();
            for slave in *slaves {
                symlink(path(slave), path(name).join("slaves").join(slave.replace('/', "-"))).unwrap();
            }
        }
        root
    }

    fn names(root: &tempfile::TempDir, number: &str) -> Vec<String> {
        let disks = disks_below(root.path(), number.parse().unwrap()).unwrap();
        disks.into_iter().map(|disk| format!("{} {}", disk.number, disk.name)).collect()
    }

    #[test]
    fn a_thin_volume_leads_through_its_pool_to_every_disk_under_it() {
        let root = sysfs(&[
            ("sda", "8:0", &[]),
            ("sda/sda2", "8:2", &[]),
            ("nvme0n1", "259:300", &[]),
            ("crypt", "253:0", &["sda/sda2"]),
            ("tdata", "253:1", &["crypt", "nvme0n1"]),
            ("tmeta", "253:2", &["crypt"]),
            ("tpool", "253:3", &["tdata", "tmeta"]),
            ("thin", "253:257", &["tpool"]),
        ]);
        fs::write(root.path().join("devices/sda/sda2/partition"), "2\n").unwrap();
        assert_eq!(names(&root, "253:257"), ["8:0 sda", "259:300 nvme0n1"]);
        assert_eq!(names(&root, "253:2"), ["8:0 sda"]);
        assert_eq!(names(&root, "259:300"), ["259:300 nvme0n1"]);
    }

    #[test]
    fn a_disk_is_found_by_its_name() {
        let sys = tempfile::tempdir().unwrap();
        let folder = sys.path().join("block/vda");
        fs::create_dir_all(&folder).unwrap();
        let is = |text: &str| {
            fs::write(folder.join("dev"), text).unwrap();
            by_name(sys.path(), "vda")
        };
        let number = DeviceNumber { major: 254, minor: 256 };
        assert_eq!(is("254:256\n").unwrap(), Some(Disk { number, name: "vda".to_owned() }));
        assert!(matches!(is("no\n"), Err(SysfsError::Text { .. })));
        assert_eq!(by_name(sys.path(), "vdb").unwrap(), None);
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let root = sysfs(&[("a", "253:0", &["b"]), ("b", "253:1", &["a"])]);
        let below = |number: &str| disks_below(root.path(), number.parse().unwrap());
        assert!(matches!(below("253:0"), Err(SysfsError::Deep(_))));
        assert!(matches!(below("1:1"), Err(SysfsError::Read { .. })));
    }
}
