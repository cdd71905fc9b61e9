//! Whose device is mounted at a path: asked of device-mapper's own names, not of LVM.
//!
//! Unpublishing must work when the volume's disk is lost and LVM cannot say anything of it any more.
//!
//! **Invariant.** A mount is a volume's only if its device says so, or if its device is gone and the mount's source
//! said so.

use std::path::Path;

use crate::device_number::DeviceNumber;
use crate::engine::split_device_name;
use crate::filesystem::{Mount, Mounted};
use crate::volume::VolumeHandle;

/// Whether a mount is of the volume's device.
pub fn is_of(mount: &Mount, volume: &VolumeHandle) -> bool {
    is_named(mount, volume, &|number| number.mapper_name().ok().flatten())
}

fn is_named(mount: &Mount, volume: &VolumeHandle, name_of: &dyn Fn(DeviceNumber) -> Option<String>) -> bool {
    let lv = match mount.mounted {
        Mounted::Other => lv_of_source(Path::new(&mount.source)),
        Mounted::Filesystem(number) | Mounted::Node(number) => match name_of(number) {
            Some(name) => lv_of_mapper_name(&name),
            None => lv_of_source(Path::new(&mount.source)),
        },
    };
    lv.is_some_and(|lv| lv == volume.lv.as_str())
}

/// The LV in device-mapper's name `VG-LV`; nothing for LVM's own inner devices and for those of others.
fn lv_of_mapper_name(name: &str) -> Option<String> {
    split_device_name(name).map(|(_, lv)| lv)
}

/// The LV in `/dev/mapper/VG-LV` or `/dev/VG/LV`.
fn lv_of_source(source: &Path) -> Option<String> {
    let inner = source.strip_prefix("/dev").ok()?.to_str()?;
    match inner.split_once('/')? {
        ("mapper", name) => lv_of_mapper_name(name),
        (_, lv) if !lv.contains('/') => Some(lv.to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBER: DeviceNumber = DeviceNumber { major: 253, minor: 3 };

    fn mount(mounted: Mounted, source: &str) -> Mount {
        Mount {
            id: 1,
            parent: 0,
            root: "/".into(),
            target: "/t".into(),
            options: vec![],
            fs_type: "ext4".to_owned(),
            source: source.into(),
            super_options: vec![],
            mounted,
        }
    }

    fn is(mounted: Mounted, source: &str, device: Option<&str>) -> bool {
        let volume = VolumeHandle::parse("node/pvc-1").unwrap();
        is_named(&mount(mounted, source), &volume, &|_| device.map(str::to_owned))
    }

    #[test]
    fn the_device_decides_whatever_the_source_says() {
        let filesystem = Mounted::Filesystem(NUMBER);
        assert!(is(filesystem, "/dev/dm-3", Some("quarry-pvc--1")));
        assert!(is(Mounted::Node(NUMBER), "devtmpfs", Some("my--vg-pvc--1")));
        assert!(!is(filesystem, "/dev/mapper/quarry-pvc--1", Some("quarry-pvc--2")));
        assert!(!is(filesystem, "/dev/mapper/quarry-pvc--1", Some("quarry-x--pvc--1")));
        assert!(!is(filesystem, "/dev/sda1", None));
    }

    #[test]
    fn names_with_hyphens_and_inner_devices_are_not_confused() {
        assert_eq!(lv_of_mapper_name("quarry-pvc--1").as_deref(), Some("pvc-1"));
        assert_eq!(lv_of_mapper_name("my--vg-a").as_deref(), Some("a"));
        assert_eq!(lv_of_mapper_name("vg-pool-tpool"), None);
        assert_eq!(lv_of_mapper_name("crypt"), None);
    }

    #[test]
    fn a_mount_whose_device_is_gone_is_known_by_its_source() {
        for source in ["/dev/mapper/quarry-pvc--1", "/dev/quarry/pvc-1"] {
            assert!(is(Mounted::Other, source, None) && is(Mounted::Filesystem(NUMBER), source, None), "{source}");
        }
        for source in ["/dev/quarry/pvc-2", "tmpfs", "/dev/pvc-1", "/mnt/quarry/pvc-1", "/dev/mapper/pvc-1"] {
            assert!(!is(Mounted::Other, source, None), "{source}");
        }
    }
}
