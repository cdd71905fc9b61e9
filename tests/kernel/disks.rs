//! Which disks are read: many, forged by tenants, copied, in files, hung, and damaged ones.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use quarry_driver::lvm::block_devices::Reason;
use quarry_driver::lvm::discover::{DeviceProblem, Scanner};
use quarry_driver::lvm::dm::{DeviceMapper, Key, LoopBacking, loop_backing};
use quarry_driver::lvm::dm_name::device_name;
use quarry_tests::in_vm::VolumeGroup;

use crate::metadata::{LIMIT, group, run, scan, state};
use crate::scene::shell;

/// A device of the test's own, beside LVM, taken away at the end.
struct Mapping(String);

impl Mapping {
    fn new(name: &str, arguments: &str) -> Self {
        shell(&format!("dmsetup create --noudevsync {name} {arguments}"));
        Self(name.to_owned())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        shell(&format!("dmsetup resume --noudevsync {0}; dmsetup remove --retry --noudevsync {0}", self.0));
    }
}

#[tokio::test]
async fn many_devices_and_high_minors_are_listed() {
    let dm = DeviceMapper::open().unwrap();
    // More than fits into the first answer's buffer.
    let names: Vec<String> = (0..150).map(|number| format!("{}-{number}", "long".repeat(28))).collect();
    let tables: Vec<String> =
        names.iter().zip(250..).map(|(name, minor)| format!("{name},,{minor},rw,0 8 error")).collect();
    shell(&format!("dmsetup create --noudevsync --concise '{}'", tables.join(";")));
    let listed = dm.list().unwrap();
    let states: Vec<_> = names.iter().map(|name| dm.status(Key::Name(name)).unwrap()).collect();
    shell(&format!("dmsetup remove --noudevsync {}", names.join(" ")));
    for ((name, minor), status) in names.iter().zip(250..).zip(states) {
        let found = listed.iter().find(|device| device.name == *name).unwrap();
        assert_eq!(found.number.minor, minor);
        let status = status.unwrap();
        assert_eq!((status.number, status.uuid.as_str()), (found.number, ""));
    }
    assert!(dm.list().unwrap().iter().all(|device| !names.contains(&device.name)));
}

/// A loop device, taken away at the end.
struct Loop(String);

impl Loop {
    fn new(over: &str) -> Self {
        Self(shell(&format!("losetup -f --show {over}")).trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        shell(&format!("losetup -d {}", self.0));
    }
}

/// A copy of the disk's head, as a tenant who knows the group's identifiers could write it.
fn forge(disk: &Path, target: &str) {
    let disk = disk.display();
    shell(&format!("dd if={disk} of={target} bs=1M count=4 oflag=direct conv=notrunc status=none; sync"));
}

#[tokio::test]
async fn nothing_that_a_tenant_writes_is_taken_for_a_physical_volume() {
    let group = group("forge", 1, &["--metadatasize", "2m"]);
    let (vg, disk) = (group.name(), &group.disks()[0]);
    run("lvcreate", &["-y", "-L", "64m", "-n", "tenant", vg]);
    let before = scan().await;
    let honest = state(&before, &group).clone();
    let volume = format!("/dev/{vg}/tenant");
    forge(disk, &volume);
    // As kubelet shows it to the pod, and with a layer of the tenant's own on top.
    let over_volume = Loop::new(&volume);
    let looped = over_volume.0.clone();
    let layer = Mapping::new("tenants-layer", &format!("--table '0 65536 linear {looped} 0'"));

    let after = scan().await;
    let seen = state(&after, &group);
    assert_eq!((&seen.group, &seen.devices), (&honest.group, &honest.devices));
    assert!(seen.completeness.is_complete(), "{}", seen.completeness);
    assert!(after.problems.is_empty(), "{:?}", after.problems);
    let reasons: BTreeMap<&str, &Reason> =
        after.skipped.iter().map(|skipped| (skipped.name.as_str(), &skipped.reason)).collect();
    let loop_name = looped.trim_start_matches("/dev/").to_owned();
    // Device-mapper's own name of a device, to the kernel's.
    let name_of = |mapping: &str| {
        let name = shell(&format!("grep -lx {mapping} /sys/block/*/dm/name | cut -d/ -f4")).trim().to_owned();
        assert!(name.starts_with("dm-"), "{mapping} is {name:?}");
        name
    };
    assert_eq!(reasons[name_of(&device_name(vg, "tenant")).as_str()], &Reason::LogicalVolume);
    assert_eq!(reasons[loop_name.as_str()], &Reason::Loop(loop_name.clone()));
    assert_eq!(reasons[name_of("tenants-layer").as_str()], &Reason::Loop(loop_name.clone()));

    // Not even where the configuration names the loop device: the kernel says that a block device is below.
    assert!(matches!(loop_backing(Path::new(&looped)), Ok(LoopBacking::Device(_))));
    let configured = [disk.clone(), PathBuf::from(&looped), PathBuf::from(&volume)];
    drop(layer);
    let named = Scanner::new(LIMIT).scan(&configured).await.unwrap();
    assert_eq!(state(&named, &group).devices, honest.devices);
    let complaints: Vec<String> = named.problems.iter().map(|problem| problem.problem.to_string()).collect();
    assert_eq!(complaints.len(), 2, "{complaints:?}");
    assert!(
        complaints.iter().any(|complaint| complaint.contains("is a loop device over block device")),
        "{complaints:?}"
    );
    assert!(complaints.iter().any(|complaint| complaint.contains("it is a logical volume")), "{complaints:?}");
}

#[tokio::test]
async fn a_copied_disk_is_told_with_both_names() {
    let group = group("copy", 1, &["--metadatasize", "2m"]);
    let spare = VolumeGroup::fresh("spare").unwrap();
    let copy = spare.disks()[0].clone();
    run("vgremove", &["-ff", "-y", spare.name()]);
    forge(&group.disks()[0], &copy.display().to_string());
    let discovery = scan().await;
    assert!(discovery.by_name(group.name()).is_empty(), "which of two is right cannot be told");
    let duplicate = discovery.problems.iter().find_map(|problem| match &problem.problem {
        DeviceProblem::Duplicate { first, second, .. } => Some([first.clone(), second.clone()]),
        _ => None,
    });
    let mut both = duplicate.unwrap();
    both.sort();
    let mut expected = [group.disks()[0].clone(), copy.clone()];
    expected.sort();
    assert_eq!(both, expected);
    assert!(!discovery.saw_everything());
    // The configuration can say which; a file in a loop device may be named, too.
    let named = Scanner::new(LIMIT).scan(group.disks()).await.unwrap();
    assert!(state(&named, &group).completeness.is_complete());
    shell(&format!("blkdiscard --zeroout -l 8M {}", copy.display()));
}

#[tokio::test]
async fn a_file_in_a_loop_device_serves_where_it_is_named() {
    shell("truncate -s 64M /run/disk.img");
    let over_file = Loop::new("/run/disk.img");
    let device = over_file.0.clone();
    run("vgcreate", &["infile", &device]);
    assert!(matches!(loop_backing(Path::new(&device)), Ok(LoopBacking::File)));
    let unnamed = scan().await;
    let named = Scanner::new(LIMIT).scan(&[PathBuf::from(&device)]).await.unwrap();
    run("vgremove", &["-y", "infile"]);
    drop(over_file);
    shell("rm /run/disk.img");
    assert!(unnamed.by_name("infile").is_empty());
    assert_eq!(named.by_name("infile").len(), 1);
    assert!(named.problems.is_empty(), "{:?}", named.problems);
}

#[tokio::test]
async fn a_hung_disk_delays_no_other() {
    let healthy = VolumeGroup::fresh("well").unwrap();
    let hung = VolumeGroup::fresh("hung").unwrap();
    let disk = hung.disks()[0].display().to_string();
    run("vgchange", &["-an", hung.name()]);
    // The group's disk behind a layer that can be stopped.
    let layer = Mapping::new("slow", &format!("--table \"0 $(blockdev --getsz {disk}) linear {disk} 0\""));
    let scanner = Scanner::new(Duration::from_secs(3));
    let through = scanner.scan(&[]).await.unwrap();
    let path = state(&through, &hung).devices.values().next().unwrap().clone();
    assert_ne!(path.display().to_string(), disk, "the layer, not the disk below it");

    shell("dmsetup suspend --noudevsync slow");
    let begun = Instant::now();
    let discovery = scanner.scan(&[]).await.unwrap();
    let first = begun.elapsed();
    let again = scanner.scan(&[]).await.unwrap();
    let threads = std::fs::read_dir("/proc/self/task").unwrap().count();
    for _ in 0..5 {
        drop(scanner.scan(&[]).await.unwrap());
    }
    assert!(std::fs::read_dir("/proc/self/task").unwrap().count() <= threads + 1, "a thread is lost per scan");
    shell("dmsetup resume --noudevsync slow");
    for seen in [&discovery, &again] {
        assert!(state(seen, &healthy).completeness.is_complete());
        assert!(seen.by_name(hung.name()).is_empty());
        assert!(!seen.saw_everything());
        let problem = seen.problems.iter().find(|problem| problem.device == path).unwrap();
        assert!(matches!(problem.problem, DeviceProblem::Hung { .. }), "{:?}", problem.problem);
    }
    assert!(first < Duration::from_secs(15), "{first:?}");

    // When it goes on, the group is back.
    let deadline = Instant::now() + LIMIT;
    while scanner.scan(&[]).await.unwrap().by_name(hung.name()).is_empty() {
        assert!(Instant::now() < deadline, "the disk goes on and is not read");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    drop(layer);
}

#[tokio::test]
async fn a_disk_without_its_label_makes_the_group_incomplete() {
    let group = group("torn", 2, &["--metadatasize", "2m"]);
    let second = group.disks()[1].display().to_string();
    shell(&format!(
        "dd if={second} of=/run/torn bs=4096 count=1 status=none; dd if=/dev/zero of={second} bs=4096 count=1 oflag=direct status=none"
    ));
    let discovery = scan().await;
    let completeness = state(&discovery, &group).completeness.clone();
    shell(&format!("dd if=/run/torn of={second} bs=4096 count=1 oflag=direct status=none"));
    assert!(!completeness.is_complete());
    assert!(completeness.to_string().contains(&second), "{completeness}");
    // One flipped bit in the metadata of one of two.
    let flip = format!(
        "byte=$(dd if={second} bs=1 skip=4700 count=1 status=none | od -An -tu1); printf \"\\\\$(printf %o $((byte ^ 1)))\" | dd of={second} bs=1 seek=4700 conv=notrunc,fsync status=none"
    );
    shell(&flip);
    let discovery = scan().await;
    let damaged = state(&discovery, &group).completeness.clone();
    shell(&flip);
    assert_eq!(damaged.unread.len(), 1, "{damaged}");
    assert!(damaged.to_string().contains("does not match its checksum"), "{damaged}");
    assert!(state(&scan().await, &group).completeness.is_complete());
}
