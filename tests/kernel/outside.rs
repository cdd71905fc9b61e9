//! What others do to the volume groups, and what goes wrong with LVM's commands, is noticed and survived.

use std::time::Duration;

use tonic::Code;

use crate::scene::{GIB, MIB, Scene, THICK, THIN, block, filesystem, refused, shell};
use quarry_tests::in_vm::{VolumeGroup, lvm};

#[tokio::test]
async fn an_admins_changes_reach_the_capacity_without_a_process() {
    let scene = Scene::new("admin").await;
    let vg = scene.group.name().to_owned();
    let before = scene.capacity(THICK).await;
    let processes = scene.lvm_processes().len();
    lvm("lvcreate", &["-y", "-L", "100m", "-n", "theirs", &vg]).unwrap().success().unwrap();
    scene.capacity_becomes(THICK, |capacity| capacity == before - 100 * MIB).await;
    lvm("lvremove", &["-y", &format!("{vg}/theirs")]).unwrap().success().unwrap();
    scene.capacity_becomes(THICK, |capacity| capacity == before).await;
    assert_eq!(scene.lvm_processes().len(), processes);
}

#[tokio::test]
async fn a_group_that_is_made_or_extended_later_is_taken_up() {
    let spare = VolumeGroup::fresh("spare").unwrap();
    let disk = spare.disks()[0].display().to_string();
    lvm("vgremove", &["-ff", "-y", spare.name()]).unwrap().success().unwrap();
    let scene = Scene::new("grow").await;
    let before = scene.capacity(THICK).await;
    lvm("vgextend", &[scene.group.name(), &disk]).unwrap().success().unwrap();
    let after = scene.capacity_becomes(THICK, |capacity| capacity > before).await;
    // A volume that needs both disks: LVM itself must see the new one.
    scene.create(filesystem("large", after, THICK)).await.unwrap();
    scene.delete("node-1/large").await.unwrap();
    lvm("vgreduce", &[scene.group.name(), &disk]).unwrap().success().unwrap();
    scene.capacity_becomes(THICK, |capacity| capacity == before).await;
}

#[tokio::test]
async fn a_pod_that_writes_a_pv_label_into_its_volume_changes_nothing() {
    let scene = Scene::new("forge").await;
    let vg = scene.group.name().to_owned();
    let disk = scene.group.disks()[0].display().to_string();
    scene.create(block("tenant", 128 * MIB, THIN)).await.unwrap();
    let capacity = scene.capacity(THIN).await;
    // The tenant has the label and metadata of the group's own disk: same names, same UUIDs.
    shell(&format!("dd if={disk} of=/dev/{vg}/tenant bs=1M count=70 oflag=direct conv=notrunc status=none; sync"));
    // kubelet shows a raw block volume through a loop device too.
    let device = shell(&format!("losetup -f --show /dev/{vg}/tenant")).trim().to_owned();
    let mut scene = scene;
    scene.driver.stop().unwrap();
    scene.restart().await;
    assert_eq!(scene.capacity(THIN).await, capacity);
    scene.create(filesystem("pvc-2", GIB, THIN)).await.unwrap();
    scene.create(filesystem("pvc-3", 64 * MIB, THICK)).await.unwrap();
    assert_eq!(scene.list().await.len(), 3);
    scene.delete("node-1/pvc-2").await.unwrap();
    scene.delete("node-1/pvc-3").await.unwrap();
    shell(&format!("losetup -d {device}"));
    scene.delete("node-1/tenant").await.unwrap();
    assert_eq!(scene.volumes(), Vec::<String>::new());
}

#[tokio::test]
async fn a_hanging_lvm_is_answered_and_finished_once() {
    let group = VolumeGroup::fresh("hang").unwrap();
    let config =
        format!("deviceClasses: [{{name: default, volumeGroup: {}}}]\ntimeouts: {{answerSeconds: 2}}\n", group.name());
    let scene = Scene::with_config(group, &config).await;
    let lock = format!("/run/lock/lvm/V_{}", scene.group.name());
    shell("mkdir -p /run/lock/lvm");
    let held = std::fs::File::create(&lock).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    refused(scene.create(filesystem("pvc-1", 64 * MIB, THICK)).await, Code::Aborted, &["pvc-1", "still runs"]);
    refused(scene.create(filesystem("pvc-1", 64 * MIB, THICK)).await, Code::Aborted, &["pvc-1", "CreateVolume"]);
    refused(scene.delete("node-1/pvc-1").await, Code::Aborted, &["CreateVolume"]);
    assert!(scene.capacity(THICK).await > 0, "reading does not wait for the writer");
    assert_eq!(scene.list().await, []);
    drop(held);
    let mut volume = Err(tonic::Status::unknown("not asked"));
    for _ in 0..120 {
        volume = scene.create(filesystem("pvc-1", 64 * MIB, THICK)).await;
        match &volume {
            Err(status) if status.code() == Code::Aborted => tokio::time::sleep(Duration::from_millis(500)).await,
            _ => break,
        }
    }
    assert_eq!(volume.unwrap().volume_id, "node-1/pvc-1");
    assert_eq!(scene.lvm_processes().iter().filter(|verb| *verb == "lvcreate").count(), 1);
    assert_eq!(scene.volumes(), ["pvc-1"]);
}

#[tokio::test]
async fn two_requests_for_one_volume_at_once_make_it_once() {
    let scene = Scene::new("twice").await;
    let create = || scene.create(filesystem("pvc-1", 64 * MIB, THICK));
    let (first, second) = tokio::join!(create(), create());
    let (made, refusal) = if first.is_ok() { (first, second) } else { (second, first) };
    assert_eq!(made.unwrap().volume_id, "node-1/pvc-1");
    refused(refusal, Code::Aborted, &["pvc-1", "busy"]);
    assert_eq!(scene.volumes(), ["pvc-1"]);
}

#[tokio::test]
async fn many_volumes_at_once_are_all_made() {
    let scene = Scene::new("many").await;
    let names: Vec<String> = (0..8).map(|number| format!("pvc-{number}")).collect();
    // Asked again while it still runs, as csi-provisioner does.
    let create = |name: String| {
        let scene = &scene;
        async move {
            loop {
                match scene.create(filesystem(&name, 64 * MIB, THIN)).await {
                    Err(status) if status.code() == Code::Aborted => {
                        tokio::time::sleep(Duration::from_millis(300)).await
                    }
                    done => return done,
                }
            }
        }
    };
    let all = tokio::join!(
        create(names[0].clone()),
        create(names[1].clone()),
        create(names[2].clone()),
        create(names[3].clone()),
        create(names[4].clone()),
        create(names[5].clone()),
        create(names[6].clone()),
        create(names[7].clone()),
    );
    let all = [all.0, all.1, all.2, all.3, all.4, all.5, all.6, all.7];
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    let mut volumes = scene.volumes();
    volumes.sort();
    assert_eq!(volumes, names);
    assert_eq!(scene.lvm_processes().iter().filter(|verb| *verb == "lvcreate").count(), 9, "a pool and eight volumes");
}

#[tokio::test]
async fn what_a_killed_lvm_left_suspended_is_resumed_at_start() {
    let mut scene = Scene::new("frozen").await;
    scene.create(block("pvc-1", 64 * MIB, THIN)).await.unwrap();
    scene.driver.kill().unwrap();
    let vg = scene.group.name().to_owned();
    shell(&format!("dmsetup suspend --noudevsync {vg}-quarry--pool-tpool"));
    scene.restart().await;
    let state = shell(&format!("dmsetup info -c --noheadings -o suspended {vg}-quarry--pool-tpool"));
    assert_eq!(state.trim(), "Active");
    shell(&format!("dd if=/dev/zero of=/dev/{vg}/pvc-1 bs=1M count=1 oflag=direct status=none"));
    scene.create(block("pvc-2", 64 * MIB, THIN)).await.unwrap();
}

#[tokio::test]
async fn a_group_that_is_gone_makes_none_of_its_volumes_absent() {
    let mut scene = Scene::new("gone").await;
    scene.create(filesystem("pvc-1", 64 * MIB, THICK)).await.unwrap();
    scene.driver.stop().unwrap();
    let vg = scene.group.name().to_owned();
    let disk = scene.group.disks()[0].display().to_string();
    lvm("vgchange", &["-an", &vg]).unwrap().success().unwrap();
    // The disk answers, and its label is gone: as if another disk sat there.
    shell(&format!(
        "dd if={disk} of=/run/label bs=4096 count=1 status=none; dd if=/dev/zero of={disk} bs=4096 count=1 oflag=direct status=none"
    ));
    scene.restart().await;
    refused(scene.delete("node-1/pvc-1").await, Code::Unavailable, &[&vg]);
    let again = scene.create(filesystem("pvc-1", 64 * MIB, THICK)).await;
    refused(again, Code::Unavailable, &[&vg]);
    shell(&format!("dd if=/run/label of={disk} bs=4096 count=1 oflag=direct status=none"));
    for _ in 0..100 {
        if scene.delete("node-1/pvc-1").await.is_ok() {
            assert_eq!(scene.volumes(), Vec::<String>::new());
            return;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    panic!("the group is back and the driver does not see it:\n{}", scene.driver.log());
}
