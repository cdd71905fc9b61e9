//! Reading volume groups without LVM: what the driver's reader, device-mapper and the watch say, against LVM itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use quarry_driver::lvm::block_devices::Reason;
use quarry_driver::lvm::discover::{DeviceProblem, Discovery, Scanner};
use quarry_driver::lvm::dm::{DeviceMapper, Key, LoopBacking, loop_backing};
use quarry_driver::lvm::dm_name::{Layer, device_name, device_uuid};
use quarry_driver::lvm::dm_status::{PoolMode, PoolStatus, PoolUse, TargetStatus, ThinStatus};
use quarry_driver::lvm::metadata::assemble::GroupState;
use quarry_driver::lvm::metadata::read::{Fingerprint, Probe};
use quarry_driver::lvm::watch::{Cause, Watch, WatchEvent, WatchOptions, WatchedGroup};
use quarry_tests::in_vm::{VgOptions, VolumeGroup, lvm};
use tokio_stream::StreamExt as _;

use crate::lvm_report;
use crate::scene::shell;

/// How long one device may take.
const LIMIT: Duration = Duration::from_secs(20);

/// The arguments of `lvm` for the report that `lvm_report`  reads.
const ARGUMENTS: &[&str] = &[
    "fullreport",
    "--reportformat",
    "json",
    "--units",
    "b",
    "--nosuffix",
    "--configreport",
    "vg",
    "-o",
    "vg_name,vg_uuid,vg_seqno,vg_size,vg_extent_size,vg_extent_count,vg_free_count,vg_missing_pv_count,vg_attr,vg_tags,vg_mda_free,lv_count,pv_count",
    "--configreport",
    "pv",
    "-o",
    "pv_name,pv_uuid,pv_pe_count,pv_pe_alloc_count,pe_start,pv_attr,pv_tags",
    "--configreport",
    "lv",
    "-o",
    "lv_name,lv_uuid,lv_size,lv_attr,lv_tags,pool_lv,data_lv,metadata_lv,origin",
    "--configreport",
    "seg",
    "-o",
    "lv_name,segtype,seg_start_pe,seg_size_pe,stripes,chunk_size,transaction_id,thin_id,zero,discards",
    "--configreport",
    "pvseg",
    "-o",
    "pv_name,pvseg_start,pvseg_size,lv_name",
];

fn group(test: &str, disks: usize, arguments: &[&str]) -> VolumeGroup {
    let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    VolumeGroup::with(test, &VgOptions { disks, arguments }).unwrap()
}

fn run(verb: &str, arguments: &[&str]) {
    lvm(verb, arguments).unwrap().success().unwrap();
}

fn state<'a>(discovery: &'a Discovery, group: &VolumeGroup) -> &'a GroupState {
    let found = discovery.by_name(group.name());
    assert_eq!(found.len(), 1, "{discovery:#?}");
    found[0]
}

async fn scan() -> Discovery {
    Scanner::new(LIMIT).scan(&[]).await.unwrap()
}

/// The driver's view must be LVM's, in every fact.
async fn compare(group: &VolumeGroup, after: &str) -> BTreeMap<PathBuf, Fingerprint> {
    let discovery = scan().await;
    let state = state(&discovery, group);
    let report = lvm(ARGUMENTS[0], &ARGUMENTS[1..]).unwrap().success().unwrap().stdout_text();
    let report = serde_json::from_str(&report).unwrap();
    let uuid = state.group.uuid.to_string();
    let expected = lvm_report::of_report(&report, &uuid).unwrap();
    let found = lvm_report::of_state(state);
    let differ = |about: &&String| found.get(*about) != expected.get(*about);
    let about: Vec<_> = found.keys().chain(expected.keys()).filter(differ).collect();
    let told = about.iter().map(|about| format!("{about}: {:?}, lvm {:?}", found.get(*about), expected.get(*about)));
    assert!(about.is_empty(), "after {after}: {:#?}", told.collect::<Vec<_>>());
    assert!(expected.len() > 15, "{expected:?}");
    let free = lvm_report::metadata_free(&report, &uuid).unwrap();
    assert!(free.abs_diff(state.room.free()) <= 1024, "after {after}: {free} {:?}", state.room);
    assert!(state.completeness.is_complete(), "after {after}: {}", state.completeness);
    let ours = state.devices.values();
    ours.map(|device| (device.clone(), discovery.fingerprints[device].clone())).collect()
}

#[tokio::test]
async fn the_view_is_lvms_own_after_every_kind_of_change() {
    let group = group("view", 3, &["--metadatasize", "4m"]);
    let (vg, third) = (group.name(), group.disks()[2].display());
    let mut before = compare(&group, "vgcreate").await;
    let changes = format!(
        "lvcreate -y -L 100m -n plain {vg}
        lvcreate -y -L 5g -n spread --addtag quarry --addtag c=default {vg}
        lvcreate -y --type striped -i 3 -L 30m -n striped {vg}
        lvcreate -y --type raid1 -m 1 -L 20m -n mirrored {vg}
        lvcreate -y -T -L 200m -n quarry-pool --errorwhenfull y {vg}
        lvcreate -y -V 1g --thinpool quarry-pool -n thin --addtag quarry {vg}
        lvcreate -y -s -n snap {vg}/thin
        lvextend -L 300m {vg}/quarry-pool
        lvextend -L 120m {vg}/plain
        lvchange --addtag g=formatted --deltag c=default {vg}/spread
        lvrename {vg} plain renamed
        lvremove -y {vg}/snap
        lvremove -y {vg}/thin
        pvchange -x n {third}
        lvremove -y {vg}/striped {vg}/mirrored {vg}/spread {vg}/quarry-pool
        vgreduce {vg} {third}
        vgextend {vg} {third}
        vgchange --addtag of-the-group {vg}"
    );
    for done in changes.lines().map(str::trim) {
        let words: Vec<&str> = done.split(' ').collect();
        run(words[0], &words[1..]);
        let after = compare(&group, done).await;
        for (device, fingerprint) in &after {
            assert_ne!(before.get(device), Some(fingerprint), "{done} left the fingerprint of {}", device.display());
        }
        before = after;
    }
    // Reading changes nothing.
    run("lvs", &[vg]);
    assert_eq!(compare(&group, "lvs").await, before);
}

#[tokio::test]
async fn reading_while_lvm_commits_never_gives_half_a_view() {
    let group = group("commit", 2, &["--dataalignment", "64k", "--metadatasize", "60k"]);
    let vg = group.name().to_owned();
    for name in ["a", "b", "c"] {
        run("lvcreate", &["-an", "-Wn", "-Zn", "-y", "-L", "8m", "-n", name, &vg]);
    }
    let writer = std::thread::spawn(move || {
        // Enough text for the circular buffers to wrap.
        for round in 0..15 {
            let tag = format!("{round}-{}", "x".repeat(400));
            run("lvchange", &["--addtag", &tag, &format!("{vg}/a")]);
        }
    });
    let scanner = Scanner::new(LIMIT);
    let (mut reads, mut seqno) = (0, 0);
    while !writer.is_finished() {
        let discovery = scanner.reread(group.disks(), &[]).await.unwrap();
        let state = state(&discovery, &group);
        assert!(state.completeness.is_complete(), "{}", state.completeness);
        assert!(state.completeness.outdated.is_empty(), "{}", state.completeness);
        assert_eq!(state.group.logical_volumes.len(), 3);
        assert!(state.group.seqno >= seqno, "{} after {seqno}", state.group.seqno);
        seqno = state.group.seqno;
        reads += 1;
        // Leave the writer some of the processor.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    writer.join().unwrap();
    assert!(reads >= 15, "only {reads} reads beside 15 commits");
    let tags = compare(&group, "15 tags").await;
    assert_eq!(tags.len(), 2);
}

#[tokio::test]
async fn lvm_refuses_a_text_where_the_room_says_so() {
    let group = group("full", 1, &["--dataalignment", "64k", "--metadatasize", "60k"]);
    let vg = group.name();
    run("lvcreate", &["-an", "-Wn", "-Zn", "-y", "-L", "8m", "-n", "a", vg]);
    // 3.6 kB a round; the limit is near 30 kB.
    for round in 0..12 {
        let discovery = scan().await;
        let room = state(&discovery, &group).room;
        let tags: Vec<String> = (0..4).map(|tag| format!("--addtag={round}-{tag}-{}", "x".repeat(900))).collect();
        let volume = format!("{vg}/a");
        let arguments: Vec<&str> = tags.iter().map(String::as_str).chain([volume.as_str()]).collect();
        let outcome = lvm("lvchange", &arguments).unwrap();
        if outcome.exit.success() {
            let discovery = scan().await;
            let after = state(&discovery, &group).room;
            assert!(after.text > room.text && after.text <= room.largest_text, "{room:?} {after:?}");
            continue;
        }
        let complaint = outcome.stderr_text();
        // "metadata on DEV (31234 bytes) exceeds maximum metadata size (29952 bytes)"
        let words: Vec<&str> = complaint.split(['(', ')']).collect();
        let bytes: Vec<u64> = words.iter().filter_map(|word| word.strip_suffix(" bytes")?.parse().ok()).collect();
        let [wanted, limit] = bytes[..] else { panic!("{complaint}") };
        assert_eq!(limit, room.largest_text, "{complaint}");
        assert!(wanted > limit && room.free() < wanted - room.text, "{room:?}: {complaint}");
        return;
    }
    panic!("LVM took all tags");
}

fn pool_use(dm: &DeviceMapper, uuid: &str) -> PoolUse {
    let targets = dm.table_status(Key::Uuid(uuid)).unwrap().unwrap();
    match &targets[0].status {
        TargetStatus::ThinPool(PoolStatus::Working(pool)) => pool.clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_not_on_disk_comes_from_device_mapper() {
    let group = group("live", 1, &[]);
    let vg = group.name();
    run("lvcreate", &["-y", "-T", "-L", "200m", "-c", "64k", "-n", "pool", "--errorwhenfull", "y", vg]);
    run("lvcreate", &["-y", "-V", "100m", "--thinpool", "pool", "-n", "one-2", vg]);
    let discovery = scan().await;
    let model = &state(&discovery, &group).group;
    let uuid = |name: &str, layer| device_uuid(model.uuid, model.logical_volumes[name].uuid, layer);
    let (thin, pool) = (uuid("one-2", Layer::Volume), uuid("pool", Layer::ThinPool));
    let dm = DeviceMapper::open().unwrap();
    assert!(dm.version().unwrap() >= (4, 27, 0), "{:?}", dm.version());

    // Name, number, state.
    let status = dm.status(Key::Uuid(&thin)).unwrap().unwrap();
    assert_eq!(status.name, device_name(vg, "one-2"));
    let node = shell(&format!("stat -L -c '%Hr:%Lr' /dev/{vg}/one-2"));
    assert_eq!(status.number.to_string(), node.trim());
    assert!(status.live_table && !status.inactive_table && !status.suspended && !status.read_only);
    assert_eq!(dm.status(Key::Name(&status.name)).unwrap().unwrap(), status);
    assert_eq!(status.open_count, 0);
    {
        let _opened = std::fs::File::open(format!("/dev/{vg}/one-2")).unwrap();
        assert_eq!(dm.status(Key::Uuid(&thin)).unwrap().unwrap().open_count, 1);
    }
    shell(&format!("dmsetup suspend --noudevsync {}", status.name));
    let suspended = dm.status(Key::Uuid(&thin)).unwrap().unwrap();
    shell(&format!("dmsetup resume --noudevsync {}", status.name));
    assert!(suspended.suspended);

    // Absence is the kernel's word.
    assert_eq!(dm.status(Key::Name("no-such")).unwrap(), None);
    assert_eq!(dm.table_status(Key::Uuid("LVM-nosuch")).unwrap(), None);

    // The list, and LVM's part of it.
    let listed = dm.list().unwrap();
    assert!(listed.iter().any(|device| device.name == status.name && device.number == status.number));
    let ours: Vec<String> = dm.lvm_devices(Some(model.uuid)).unwrap().into_iter().map(|device| device.name).collect();
    let escaped = |name: &str| device_name(vg, name);
    for expected in
        [escaped("one-2"), format!("{}-tpool", escaped("pool")), escaped("pool_tdata"), escaped("pool_tmeta")]
    {
        assert!(ours.contains(&expected), "{expected} is not in {ours:?}");
    }

    // How full the pool is, against what is written and what lvs says.
    let before = pool_use(&dm, &pool);
    assert_eq!(before.transaction_id, model.logical_volumes["pool"].thin_pool().unwrap().transaction_id);
    assert_eq!((before.total_data_blocks, before.used_data_blocks), (3200, 0));
    assert_eq!((before.mode, before.error_if_no_space, before.needs_check), (PoolMode::ReadWrite, true, false));
    shell(&format!(
        "dd if=/dev/urandom of=/dev/{vg}/one-2 bs=1M count=20 oflag=direct status=none; sync /dev/{vg}/one-2"
    ));
    let after = pool_use(&dm, &pool);
    assert_eq!(after.used_data_blocks, 320);
    let targets = dm.table_status(Key::Uuid(&thin)).unwrap().unwrap();
    let expected = ThinStatus::Working { mapped_sectors: 40960, highest_mapped_sector: Some(40959) };
    assert_eq!(targets[0].status, TargetStatus::Thin(expected));
    assert_eq!((targets[0].start_sector, targets[0].sectors), (0, 204_800));
    let rows = group.lvs("lv_name,data_percent").unwrap();
    let row = rows.iter().find(|row| row["lv_name"] == "pool").unwrap();
    assert_eq!(row["data_percent"], "10.00");

    // Inactive is no device.
    run("lvchange", &["-an", &format!("{vg}/one-2")]);
    assert_eq!(dm.status(Key::Uuid(&thin)).unwrap(), None);
}

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

async fn next(events: &mut (impl tokio_stream::Stream<Item = WatchEvent> + Unpin)) -> WatchEvent {
    tokio::time::timeout(LIMIT, events.next()).await.expect("an event in time").expect("no end")
}

#[tokio::test]
async fn every_change_of_a_group_is_noticed() {
    let group = VolumeGroup::fresh("watch").unwrap();
    let other = VolumeGroup::fresh("other").unwrap();
    let (vg, disk) = (group.name().to_owned(), group.disks()[0].clone());
    let scanner = Scanner::new(LIMIT);
    let fingerprint = || async {
        match scanner.fingerprint(&disk).await.unwrap() {
            Probe::PhysicalVolume(fingerprint) => fingerprint,
            Probe::NotPhysicalVolume => panic!("{} is no physical volume", disk.display()),
        }
    };
    let hour = Duration::from_secs(3600);
    let options = WatchOptions { period: hour, retry: Duration::from_millis(500), ..WatchOptions::default() };
    let (watch, mut events) = Watch::start(options);
    watch.set(vec![WatchedGroup { name: vg.clone(), devices: vec![disk.clone()] }]);
    let WatchEvent::MayHaveChanged { cause: Cause::Missed, .. } = next(&mut events).await else { panic!("no start") };
    let mut known = fingerprint().await;
    let volume = format!("{vg}/a");
    for (verb, arguments) in [
        ("lvcreate", vec!["-y", "-L", "64m", "-n", "a", vg.as_str()]),
        ("lvchange", vec!["--addtag", "x", volume.as_str()]),
        ("lvremove", vec!["-y", volume.as_str()]),
    ] {
        let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
        let command = tokio::task::spawn_blocking(move || lvm(verb, &arguments).unwrap().success().unwrap());
        command.await.unwrap();
        // One of the events comes when the command has closed the disk; that one finds the change.
        let deadline = Instant::now() + LIMIT;
        loop {
            assert!(Instant::now() < deadline, "{verb} was not noticed");
            if let WatchEvent::MayHaveChanged { groups, cause } = next(&mut events).await {
                assert_eq!((groups.into_iter().collect::<Vec<_>>(), cause), (vec![vg.clone()], Cause::Used));
                let now = fingerprint().await;
                if now != known {
                    known = now;
                    break;
                }
            }
        }
    }
    // What others do elsewhere is not this group's.
    while tokio::time::timeout(Duration::from_secs(1), events.next()).await.is_ok() {}
    run("lvcreate", &["-y", "-L", "64m", "-n", "b", other.name()]);
    let foreign = tokio::time::timeout(Duration::from_secs(1), events.next()).await;
    assert!(foreign.is_err(), "{foreign:?}");

    // A node made anew, as udevd or an admin may, is watched again.
    let node = disk.display();
    shell(&format!("cp -a {node} /run/node; rm {node}"));
    let mut blind = false;
    loop {
        match next(&mut events).await {
            WatchEvent::Blind { path, .. } => {
                assert_eq!(path, disk);
                blind = true;
                shell(&format!("cp -a /run/node {node}; rm /run/node"));
            }
            WatchEvent::Sees { path } => {
                assert_eq!(path, disk);
                break;
            }
            WatchEvent::MayHaveChanged { .. } => {}
        }
    }
    assert!(blind);
    while tokio::time::timeout(Duration::from_secs(1), events.next()).await.is_ok() {}
    drop(std::fs::File::options().write(true).open(&disk).unwrap());
    let expected = WatchEvent::MayHaveChanged { groups: [vg].into(), cause: Cause::Used };
    assert_eq!(next(&mut events).await, expected);
}
