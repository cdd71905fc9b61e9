//! Reading volume groups without LVM: what the driver's reader, device-mapper and the watch say, against LVM itself.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use quarry_driver::lvm::discover::{Discovery, Scanner};
use quarry_driver::lvm::dm::{DeviceMapper, Key};
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
pub const LIMIT: Duration = Duration::from_secs(20);

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

pub fn group(test: &str, disks: usize, arguments: &[&str]) -> VolumeGroup {
    let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    VolumeGroup::with(test, &VgOptions { disks, arguments }).unwrap()
}

pub fn run(verb: &str, arguments: &[&str]) {
    lvm(verb, arguments).unwrap().success().unwrap();
}

pub fn state<'a>(discovery: &'a Discovery, group: &VolumeGroup) -> &'a GroupState {
    let found = discovery.by_name(group.name());
    assert_eq!(found.len(), 1, "{discovery:#?}");
    found[0]
}

pub async fn scan() -> Discovery {
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
