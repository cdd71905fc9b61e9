//! The bed itself: if LVM does not work here, no other test says anything about the driver.

use std::path::Path;

use quarry_tests::in_vm::{self, VgOptions, VolumeGroup, lvm, scratch_disks};

#[test]
fn thin_volume_on_raw_lvm() {
    let group = VolumeGroup::fresh("bed").unwrap();
    let (vg, lv) = (group.name(), format!("{}/thin", group.name()));
    lvm("lvcreate", &["-y", "--type", "thin-pool", "-L", "1g", "-n", "pool", vg]).unwrap().success().unwrap();
    lvm("lvcreate", &["-y", "-V", "512m", "--thinpool", "pool", "-n", "thin", vg]).unwrap().success().unwrap();

    let device = Path::new("/dev").join(&lv);
    std::fs::write(&device, b"written").unwrap();
    assert!(std::fs::read(&device).unwrap().starts_with(b"written\0\0"), "a thin volume reads as zeroes beyond");

    let rows = group.lvs("lv_name,lv_size,pool_lv").unwrap();
    let thin = rows.iter().find(|row| row["lv_name"] == "thin").unwrap();
    assert_eq!((thin["lv_size"].as_str(), thin["pool_lv"].as_str()), ("536870912", "pool"));

    lvm("lvremove", &["-y", &lv]).unwrap().success().unwrap();
    assert!(!device.exists());
}

#[test]
fn metadata_area_is_as_large_as_asked() {
    let options = VgOptions { disks: 2, arguments: ["--metadatasize", "16m"].map(str::to_owned).to_vec() };
    let group = VolumeGroup::with("area", &options).unwrap();
    let size: u64 = group.vgs("vg_mda_size").unwrap()["vg_mda_size"].parse().unwrap();
    assert!((15 << 20..=17 << 20).contains(&size), "{size}");
}

#[test]
fn a_group_left_behind_by_a_test_is_cleared_with_its_mounts() {
    let group = VolumeGroup::fresh("left").unwrap();
    let (vg, disk) = (group.name().to_owned(), group.disks()[0].clone());
    lvm("lvcreate", &["-y", "-L", "300m", "-n", "a", &vg]).unwrap().success().unwrap();
    let device = format!("/dev/{vg}/a");
    let shell = |script: &str| {
        let command = quarry_tests::command::Command::shell(script);
        quarry_tests::process::run(&command, std::time::Duration::from_secs(120)).unwrap().success().unwrap();
    };
    shell(&format!("mkfs.ext4 -q {device}; mkdir -p /run/left; mount {device} /run/left"));
    drop(group);
    assert!(!Path::new(&device).exists());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains("/run/left"), "{mounts}");
    let mut start = vec![0; 1 << 20];
    std::io::Read::read_exact(&mut std::fs::File::open(disk).unwrap(), &mut start).unwrap();
    assert!(start.iter().all(|byte| *byte == 0), "the disk is not wiped");
}

#[test]
fn six_disks_are_there() {
    in_vm::require().unwrap();
    assert_eq!(scratch_disks().unwrap().len(), 6);
}
