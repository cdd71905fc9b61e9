//! The driver's own `LVM_SYSTEM_DIR`: the host's LVM configuration, our overrides, and the exact list of devices.
//!
//! An own directory, because some settings are read before the command line (`use_aio`, which costs 35 ms a command),
//! and because the devices file is what keeps a tenant from making LVM read its volume as a physical volume.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::durable;

/// The devices file's name in `devices/`.
const DEVICES_FILE: &str = "quarry.devices";

/// Written behind the host's own `lvmlocal.conf`, so that they win.
///
/// - `use_aio=0`: asynchronous IO costs each command 35 ms of teardown.
/// - `udev_sync=0`, `udev_rules=0`, `verify_udev_operations=0`: right with udevd on the host (which makes its links all
///   the same) and without; waiting for udevd from another IPC namespace would hang.
/// - `backup=0`, `archive=0`: both grow with the number of volumes at every command.
/// - `thin_pool_autoextend_threshold=100`: below, LVM refuses new thin volumes in a pool fuller than that; the driver
///   counts itself.
/// - `search_for_devnames="none"`: LVM must not look for a physical volume on devices that we did not list.
const OVERRIDES: &str = r#"
config { checks=0 }
global { use_aio=0 use_lvmpolld=0 notify_dbus=0 event_activation=0 }
backup { backup=0 archive=0 }
activation {
    udev_sync=0
    udev_rules=0
    verify_udev_operations=0
    monitoring=0
    thin_pool_autoextend_threshold=100
    error_when_full=1
}
devices {
    use_devicesfile=1
    devicesfile="quarry.devices"
    search_for_devnames="none"
    obtain_device_list_from_udev=0
    external_device_info_source="none"
    hints="none"
    scan_lvs=0
}
"#;

/// A physical volume for the devices file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListedDevice {
    /// Its device node.
    pub path: PathBuf,
    /// Its PV UUID, dashes or not.
    pub pv_uuid: String,
}

/// The folder, made at start.
#[derive(Debug, Clone)]
pub struct SystemDir {
    path: PathBuf,
}

/// The folder or a file in it cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot prepare LVM's configuration in {}", path.display())]
pub struct SystemDirError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl SystemDir {
    /// Makes the folder at `path` from the host's configuration in `host` (usually `/etc/lvm`), which may be missing.
    /// The devices file lists nothing yet: LVM sees no device.
    ///
    /// # Errors
    /// [`SystemDirError`].
    pub fn create(path: &Path, host: &Path) -> Result<Self, SystemDirError> {
        let dir = Self { path: path.to_owned() };
        let write = || -> io::Result<()> {
            fs::create_dir_all(path.join("devices"))?;
            let host_file = |name: &str| match fs::read_to_string(host.join(name)) {
                Ok(text) => Ok(text),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
                Err(error) => Err(error),
            };
            replace(&path.join("lvm.conf"), &host_file("lvm.conf")?)?;
            replace(&path.join("lvmlocal.conf"), &format!("{}\n{OVERRIDES}", host_file("lvmlocal.conf")?))
        };
        write().map_err(|source| SystemDirError { path: path.to_owned(), source })?;
        dir.list_devices(&[])?;
        Ok(dir)
    }

    /// What `LVM_SYSTEM_DIR` is set to.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the devices file list exactly these physical volumes; an unchanged list is not written.
    ///
    /// # Errors
    /// [`SystemDirError`].
    pub fn list_devices(&self, devices: &[ListedDevice]) -> Result<(), SystemDirError> {
        let path = self.path.join("devices").join(DEVICES_FILE);
        let text = devices_file(devices);
        if fs::read_to_string(&path).is_ok_and(|present| present == text) {
            return Ok(());
        }
        replace(&path, &text).map_err(|source| SystemDirError { path, source })
    }
}

/// lvm may be reading it.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    durable::replace(path, text.as_bytes(), "system-dir")
}

/// The format that lvmdevices(8) describes. Names change at reboot, so the driver writes the file anew at each start.
fn devices_file(devices: &[ListedDevice]) -> String {
    let mut text = String::from(
        "# Made by Quarry at each start: exactly the physical volumes of its volume groups.\nVERSION=1.1.1\n",
    );
    let mut devices = devices.to_vec();
    devices.sort();
    for device in devices {
        let name = device.path.display();
        let uuid: String = device.pv_uuid.chars().filter(|c| *c != '-').collect();
        text.push_str(&format!("IDTYPE=devname IDNAME={name} DEVNAME={name} PVID={uuid}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_settings_stay_and_ours_come_last() {
        let scratch = tempfile::tempdir().unwrap();
        let host = scratch.path().join("host");
        fs::create_dir(&host).unwrap();
        fs::write(host.join("lvmlocal.conf"), "local { system_id=\"a\" }").unwrap();
        let dir = SystemDir::create(&scratch.path().join("own"), &host).unwrap();
        let local = fs::read_to_string(dir.path().join("lvmlocal.conf")).unwrap();
        assert!(local.find("system_id").unwrap() < local.find("use_aio=0").unwrap());
        assert_eq!(fs::read_to_string(dir.path().join("lvm.conf")).unwrap(), "");
        let none = fs::read_to_string(dir.path().join("devices/quarry.devices")).unwrap();
        assert!(!none.contains("IDTYPE"), "no device before any is found: {none}");
    }

    #[test]
    fn exactly_the_listed_devices_are_in_the_file() {
        let device = |path: &str| ListedDevice { path: path.into(), pv_uuid: "AbCdEf-0123".into() };
        let text = devices_file(&[device("/dev/vdb"), device("/dev/vda")]);
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("IDTYPE")).collect();
        assert_eq!(
            lines,
            [
                "IDTYPE=devname IDNAME=/dev/vda DEVNAME=/dev/vda PVID=AbCdEf0123",
                "IDTYPE=devname IDNAME=/dev/vdb DEVNAME=/dev/vdb PVID=AbCdEf0123"
            ]
        );
    }
}
