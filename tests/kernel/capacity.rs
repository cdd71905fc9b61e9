//! The figures are true on real LVM, and whoever watches hears of each change.

use std::time::Duration;

use quarry_proto::quarry::v1 as quarry;
use quarry_tests::in_vm::{VgOptions, VolumeGroup, lvm};
use tonic::{Code, Streaming};

use crate::scene::{GIB, MIB, Scene, THICK, THIN, filesystem, group_with, refused, shell};

/// An open `Watch`.
pub struct Watching(Streaming<quarry::WatchResponse>);

impl Watching {
    /// Opens it; the first message is there without any change.
    pub async fn begin(scene: &Scene) -> Self {
        let answer = scene.csi.capacity.clone().watch(quarry::WatchRequest {}).await.unwrap();
        let mut watching = Self(answer.into_inner());
        let first = watching.next().await.expect("a message at once");
        assert_eq!(first.device_classes, Vec::<String>::new(), "at first any class may have changed");
        watching
    }

    /// The next message; nothing at the end of the stream.
    async fn next(&mut self) -> Option<quarry::WatchResponse> {
        let next = tokio::time::timeout(Duration::from_secs(60), self.0.message());
        next.await.expect("no message within a minute").unwrap()
    }

    /// Asks for the capacity after each message, as the reporter does, until it is what is expected; the reasons told.
    pub async fn until(
        &mut self,
        scene: &Scene,
        parameters: &[(&str, &str)],
        expected: impl Fn(i64) -> bool,
    ) -> Vec<String> {
        let mut reasons = Vec::new();
        while reasons.len() < 100 {
            let message = self.next().await.expect("the stream ended");
            assert_eq!(message.device_classes, ["default"], "{}", message.reason);
            reasons.push(message.reason);
            if expected(scene.capacity(parameters).await) {
                return reasons;
            }
        }
        panic!("the capacity is still {}; told were {reasons:?}", scene.capacity(parameters).await);
    }

    /// Waits until nothing more is told, and then some time: no change, no message.
    async fn is_silent(&mut self) {
        let quiet = Duration::from_secs(5);
        for _ in 0..10 {
            if tokio::time::timeout(quiet, self.0.message()).await.is_err() {
                return;
            }
        }
        panic!("there are messages and no changes");
    }
}

pub fn said(reasons: &[String], part: &str) -> bool {
    reasons.iter().any(|reason| reason.contains(part))
}

/// A disk that belongs to no group any more.
pub fn spare_disk(spare: &VolumeGroup) -> String {
    lvm("vgremove", &["-ff", "-y", spare.name()]).unwrap().success().unwrap();
    spare.disks()[0].display().to_string()
}

#[tokio::test]
async fn a_watcher_hears_of_own_and_foreign_changes_and_of_nothing_else() {
    let spare = VolumeGroup::fresh("spare").unwrap();
    let disk = spare_disk(&spare);
    let scene = Scene::new("watch").await;
    let vg = scene.group.name().to_owned();
    let mut watching = Watching::begin(&scene).await;
    let before = scene.capacity(THICK).await;
    let processes = scene.lvm_processes().len();

    lvm("lvcreate", &["-y", "-L", "100m", "-n", "theirs", &vg]).unwrap().success().unwrap();
    let reasons = watching.until(&scene, THICK, |capacity| capacity == before - 100 * MIB).await;
    assert!(said(&reasons, "another program"), "{reasons:?}");
    lvm("vgextend", &[&vg, &disk]).unwrap().success().unwrap();
    let reasons = watching.until(&scene, THICK, |capacity| capacity > before).await;
    assert!(!reasons.is_empty());
    assert_eq!(scene.lvm_processes().len(), processes, "nothing is polled by processes");
    // What changes no figure is not told: LVM's reports, and a tag.
    watching.is_silent().await;
    lvm("lvs", &[&vg]).unwrap().success().unwrap();
    lvm("lvchange", &["--addtag", "mine", &format!("{vg}/theirs")]).unwrap().success().unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(5), watching.0.message()).await.is_err());

    let before = scene.capacity(THIN).await;
    scene.create(filesystem("pvc-1", GIB, THIN)).await.unwrap();
    watching.until(&scene, THIN, |capacity| capacity == before - GIB).await;
    scene.delete("node-1/pvc-1").await.unwrap();
    watching.until(&scene, THIN, |capacity| capacity == before).await;
    watching.is_silent().await;
}

#[tokio::test]
async fn a_driver_with_open_streams_ends_at_once() {
    let mut scene = Scene::new("openend").await;
    let mut watching = Watching::begin(&scene).await;
    let exit = scene.driver.stop().unwrap();
    assert!(exit.success(), "{exit}:\n{}", scene.driver.log());
    // The stream ended in order, before the connection did.
    assert_eq!(watching.next().await, None);
}

#[tokio::test]
async fn a_pool_that_fills_is_told_of() {
    let scene =
        Scene::on(VolumeGroup::fresh("fill").unwrap(), "    poolPercent: 5\n    overprovisionRatio: 10\n").await;
    let vg = scene.group.name().to_owned();
    let volume = scene.create(filesystem("pvc-1", 512 * MIB, THIN)).await.unwrap();
    let before = scene.capacity(THIN).await;
    let mut watching = Watching::begin(&scene).await;
    watching.is_silent().await;
    // Nobody changes metadata, nobody closes a disk: only the kernel knows.
    shell(&format!("dd if=/dev/urandom of=/dev/{vg}/pvc-1 bs=1M count=200 oflag=direct status=none"));
    let reasons = watching.until(&scene, THIN, |capacity| capacity == before - 200 * MIB).await;
    assert!(said(&reasons, "fills"), "{reasons:?}");
    watching.is_silent().await;
    scene.delete(&volume.volume_id).await.unwrap();
    watching.until(&scene, THIN, |capacity| capacity == before).await;
}

/// What is published can be created, one extent more cannot; then nothing is left.
async fn is_exact(scene: &Scene, parameters: &[(&str, &str)], extent: i64) -> i64 {
    is_exact_and_leaves(scene, parameters, extent, |_, left| left == 0).await
}

/// The same where something else may be left: the figure before and after.
async fn is_exact_and_leaves(
    scene: &Scene,
    parameters: &[(&str, &str)],
    extent: i64,
    leaves: impl Fn(i64, i64) -> bool,
) -> i64 {
    let capacity = scene.capacity(parameters).await;
    assert!(capacity >= 300 * MIB && capacity % extent == 0, "{capacity}");
    let processes = scene.lvm_processes().len();
    let large = scene.create(filesystem("large", capacity + 1, parameters)).await;
    refused(large, Code::ResourceExhausted, &["node-1", scene.group.name(), &capacity.to_string()]);
    assert_eq!(scene.lvm_processes().len(), processes, "a refusal runs no LVM");
    let volume = scene.create(filesystem("fits", capacity, parameters)).await.unwrap();
    assert_eq!(volume.capacity_bytes, capacity);
    let left = scene.capacity(parameters).await;
    assert!(leaves(capacity, left), "{left} is left of {capacity}");
    scene.delete(&volume.volume_id).await.unwrap();
    assert_eq!(scene.capacity(parameters).await, capacity);
    capacity
}

/// All cases for one size of extents: with and without a pool, before and after the group is extended.
async fn figures_are_exact(test: &str, extent: &str, bytes: i64) {
    let spare = VolumeGroup::fresh("spare").unwrap();
    let disk = spare_disk(&spare);
    let group = group_with(test, &["--metadatasize", "16m", "-s", extent]);
    let scene = Scene::on(group, "    reserveBytes: 10485761\n").await;
    is_exact(&scene, THICK, bytes).await;
    let thin = is_exact(&scene, THIN, bytes).await;
    // The pool is there now.
    let thick = is_exact(&scene, THICK, bytes).await;
    is_exact(&scene, THIN, bytes).await;
    lvm("vgextend", &[scene.group.name(), &disk]).unwrap().success().unwrap();
    scene.capacity_becomes(THICK, |capacity| capacity > thick).await;
    let grown = is_exact(&scene, THIN, bytes).await;
    assert!(grown > thin + GIB, "{grown}");
    assert_eq!(scene.lvm_processes().iter().filter(|verb| *verb == "lvextend").count(), 1);
    is_exact(&scene, THICK, bytes).await;
}

#[tokio::test]
async fn figures_are_exact_with_extents_of_512_kib() {
    figures_are_exact("small", "512k", 512 << 10).await;
}

#[tokio::test]
async fn figures_are_exact_with_extents_of_1_mib() {
    figures_are_exact("one", "1m", MIB).await;
}

#[tokio::test]
async fn figures_are_exact_with_extents_of_12_mib() {
    figures_are_exact("twelve", "12m", 12 * MIB).await;
}

#[tokio::test]
async fn where_volumes_may_not_be_scattered_the_longest_stretch_counts() {
    let group = VolumeGroup::with("adjacent", &VgOptions { disks: 2, ..VgOptions::default() }).unwrap();
    let vg = group.name().to_owned();
    let small = group.disks()[1].display().to_string();
    for arguments in [["-L", "2g"], ["-L", "1g"]] {
        let name = format!("hole{}", arguments[1]);
        lvm("lvcreate", &["-y", "-n", &name, arguments[0], arguments[1], &vg, &small]).unwrap().success().unwrap();
    }
    lvm("lvremove", &["-y", &format!("{vg}/hole2g")]).unwrap().success().unwrap();
    lvm("vgchange", &["--alloc", "contiguous", &vg]).unwrap().success().unwrap();
    let scene = Scene::on(group, "    poolPercent: 20\n").await;
    // The other disk's stretch is as long as it was.
    let longest = is_exact_and_leaves(&scene, THICK, 4 * MIB, |before, left| 0 < left && left < before).await;
    let free: i64 = scene.group.vgs("vg_free").unwrap()["vg_free"].parse().unwrap();
    assert!(longest <= free - 2 * GIB, "{longest} of {free}");
    is_exact(&scene, THIN, 4 * MIB).await;
}

#[tokio::test]
async fn a_pool_grows_when_a_volume_needs_it_and_not_before() {
    let spare = VolumeGroup::fresh("spare").unwrap();
    let disk = spare_disk(&spare);
    let scene = Scene::new("growth").await;
    let size = |field: &str| -> i64 {
        let rows = scene.group.lvs("lv_name,lv_size,lv_metadata_size").unwrap();
        rows.iter().find(|row| row["lv_name"] == "quarry-pool").unwrap()[field].parse().unwrap()
    };
    scene.create(filesystem("pvc-1", GIB, THIN)).await.unwrap();
    let (pool, before) = (size("lv_size"), scene.capacity(THIN).await);
    lvm("vgextend", &[scene.group.name(), &disk]).unwrap().success().unwrap();
    let after = scene.capacity_becomes(THIN, |capacity| capacity > before).await;
    // One that fits needs no growth.
    scene.create(filesystem("pvc-2", GIB, THIN)).await.unwrap();
    assert_eq!(size("lv_size"), pool);
    assert_eq!(scene.capacity(THIN).await, after - GIB);
    scene.create(filesystem("pvc-3", after - GIB, THIN)).await.unwrap();
    assert_eq!(size("lv_size"), after + GIB);
    assert!(size("lv_metadata_size") >= size("lv_size") / (64 << 10) * 48);
    assert_eq!(scene.capacity(THIN).await, 0);
    // It is usable to its end, and what was written before is there.
    let vg = scene.group.name();
    shell(&format!("dd if=/dev/urandom of=/dev/{vg}/pvc-3 bs=1M count=64 oflag=direct status=none"));
    scene.delete("node-1/pvc-3").await.unwrap();
    assert_eq!(scene.capacity(THIN).await, after - GIB);
}

#[tokio::test]
async fn a_pool_that_an_admin_made_is_left_as_it_is() {
    let group = VolumeGroup::with("theirs", &VgOptions { disks: 1, ..VgOptions::default() }).unwrap();
    let vg = group.name().to_owned();
    lvm("lvcreate", &["-y", "--type", "thin-pool", "-L", "1g", "-n", "quarry-pool", &vg]).unwrap().success().unwrap();
    let scene = Scene::on(group, "").await;
    assert_eq!(scene.capacity(THIN).await, GIB);
    refused(scene.create(filesystem("pvc-1", GIB + 1, THIN)).await, Code::ResourceExhausted, &["promised"]);
    // Their growth counts at once, by whatever it was done.
    let mut watching = Watching::begin(&scene).await;
    lvm("lvextend", &["-y", "-L", "2g", &format!("{vg}/quarry-pool")]).unwrap().success().unwrap();
    watching.until(&scene, THIN, |capacity| capacity == 2 * GIB).await;
    assert!(!scene.lvm_processes().iter().any(|verb| verb == "lvextend"));
}

#[tokio::test]
async fn room_is_promised_once() {
    let scene = Scene::on(VolumeGroup::fresh("twice").unwrap(), "    poolPercent: 10\n").await;
    for parameters in [THICK, THIN] {
        let capacity = scene.capacity(parameters).await;
        let size = capacity / 3 / (4 * MIB) * (4 * MIB);
        let mut made = tokio::task::JoinSet::new();
        for n in 0..5 {
            let (mut controller, request) =
                (scene.csi.controller.clone(), filesystem(&format!("pvc-{n}"), size, parameters));
            made.spawn(async move { controller.create_volume(request).await });
        }
        let outcomes = made.join_all().await;
        let refusals: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
        assert!(refusals.iter().all(|status| status.code() == Code::ResourceExhausted), "{refusals:?}");
        assert_eq!((outcomes.len(), refusals.len()), (5, 2));
        assert_eq!(scene.capacity(parameters).await, capacity - 3 * size);
        for volume in scene.list().await {
            scene.delete(&volume.volume_id).await.unwrap();
        }
        assert_eq!(scene.capacity(parameters).await, capacity);
    }
}
