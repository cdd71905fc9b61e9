//! Disks and commands that hang.

use std::time::Duration;

use quarry_tests::in_vm::VolumeGroup;
use tonic::Code;

use crate::node::{Node, SICK, WELL, eventually, readable, settled};
use crate::pod::Pod;
use crate::scene::{MIB, block, filesystem, refused, shell};
use crate::watch::{ask, children, metric, threads};

/// LVM's lock of a volume group, held: its commands wait for it before they open anything.
pub fn hold(group: &VolumeGroup) -> std::fs::File {
    let lock = format!("/run/lock/lvm/V_{}", group.name());
    shell("mkdir -p /run/lock/lvm");
    let held = std::fs::File::create(&lock).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    held
}

/// Waits until the driver's lvm hangs in the kernel.
async fn in_the_kernel(node: &Node) {
    let pid = node.driver.pid().unwrap();
    eventually("an lvm waits for its disk", || async { children(pid).contains(&("lvm".to_owned(), 'D')) }).await;
}

#[tokio::test]
async fn a_command_and_a_disk_that_hang_hold_up_their_own_group_alone() {
    let node = Node::new().await;
    node.made("before", SICK).await.unwrap();
    let volume = node.made("used", WELL).await.unwrap();
    let pod = Pod::with_filesystem(&node, volume, "ext4", &[]);
    settled(|| pod.stage(&node)).await.unwrap();
    settled(|| pod.publish(&node, "a")).await.unwrap();
    node.becomes_ready().await;
    let known = (node.ids().await.unwrap(), node.room(SICK).await.unwrap());
    let pid = node.driver.pid().unwrap();

    // An lvcreate that has begun, and then its disk hangs under it: nothing can kill it.
    let lock = hold(&node.sick);
    let create = |name: &'static str| node.create(filesystem(name, 32 * MIB, SICK));
    refused(create("hung").await, Code::Aborted, &["CreateVolume of volume hung still runs"]);
    node.disks[0].hang().unwrap();
    drop(lock);
    in_the_kernel(&node).await;

    // Whoever asks again costs nothing, whatever is asked of the group.
    let retry = || async {
        refused(create("hung").await, Code::Aborted, &["hung", "CreateVolume has been running for"]);
        refused(node.delete("node-1/hung").await, Code::Aborted, &["CreateVolume"]);
        let codes = [create("other").await.unwrap_err().code(), node.delete("node-1/none").await.unwrap_err().code()];
        assert!(codes.iter().all(|code| [Code::Aborted, Code::Unavailable].contains(code)), "{codes:?}");
    };
    for _ in 0..5 {
        retry().await;
    }
    let count = || (threads(pid), children(pid).len());
    let before = count();
    for _ in 0..25 {
        retry().await;
    }
    let after = count();
    assert!(after.0 <= before.0 + 2 && after.1 == 1, "threads and processes: {before:?}, after 100 requests {after:?}");

    // Reads tell what is known, less what is being made; the other group is served.
    assert_eq!((node.ids().await.unwrap(), node.room(SICK).await.unwrap()), (known.0, known.1 - 32 * MIB));
    assert_eq!(node.get("node-1/before").await.unwrap().volume_id, "node-1/before");
    node.tells_of(&["the command lvm lvcreate does not end", "does not answer"]).await;
    assert_eq!(readable(node.sick.name()).await, Some(0.0));
    assert!(metric("quarry_commands_running").await.unwrap() >= 1.0);
    assert!(metric("quarry_command_oldest_age_seconds").await.unwrap() > 2.0);
    assert!(metric("quarry_operations_running").await.unwrap() >= 1.0);
    assert!(metric("quarry_operations_overdue_total").await.unwrap() >= 1.0);
    node.other_group_is_served("meanwhile").await;
    assert!(!pod.stats(&node, &pod.target("a")).await.unwrap().is_empty());
    settled(|| pod.unpublish(&node, "a")).await.unwrap();
    settled(|| pod.unstage(&node)).await.unwrap();
    settled(|| pod.stage(&node)).await.unwrap();
    settled(|| pod.unstage(&node)).await.unwrap();
    assert!(children(pid).contains(&("lvm".to_owned(), 'D')), "the hang ended before it was to");

    node.disks[0].heal().unwrap();
    node.made("hung", SICK).await.unwrap();
    node.becomes_ready().await;
    let log = node.driver.log();
    let begun = log
        .lines()
        .filter(|line| line.contains("command ended") && line.contains("lvcreate") && line.contains("-n hung"));
    assert_eq!(begun.count(), 1, "made once");
    node.deleted("node-1/hung").await.unwrap();
    node.deleted("node-1/before").await.unwrap();
    assert_eq!((node.driver.pid(), node.ids().await.unwrap()), (Some(pid), vec!["node-1/used".to_owned()]));
    let started = metric("quarry_commands_started_total{program=\"lvm\",verb=\"lvcreate\"}").await;
    assert_eq!(started, Some(4.0), "before, used, meanwhile, hung");
    let answered = metric("quarry_request_duration_seconds_count{code=\"OK\",rpc=\"NodePublishVolume\"}").await;
    assert_eq!(answered, Some(1.0));
}

#[tokio::test]
async fn a_driver_that_is_started_while_a_disk_hangs_serves_the_other_group() {
    let mut node = Node::new().await;
    node.made("sick-1", SICK).await.unwrap();
    node.made("well-1", WELL).await.unwrap();
    assert!(node.scene().driver.stop().unwrap().success());
    node.disks[0].hang().unwrap();
    node.scene().restart().await;
    node.tells_of(&["it is not found on this node; it held volumes", "does not answer"]).await;

    node.other_group_is_served("meanwhile").await;
    assert_eq!(node.get("node-1/well-1").await.unwrap().volume_id, "node-1/well-1");
    node.deleted("node-1/well-1").await.unwrap();
    // Nobody knows what is on the disk: nothing is absent, and nothing is made twice.
    let sick = node.sick.name().to_owned();
    refused(node.get("node-1/sick-1").await, Code::Unavailable, &[&sick]);
    refused(node.deleted("node-1/sick-1").await, Code::Unavailable, &[&sick]);
    refused(node.made("sick-1", SICK).await, Code::Unavailable, &[&sick]);
    refused(node.ids().await, Code::Unavailable, &[&sick]);
    refused(node.room(SICK).await, Code::Unavailable, &[&sick]);

    node.disks[0].heal().unwrap();
    node.becomes_ready().await;
    assert_eq!(node.ids().await.unwrap(), ["node-1/sick-1"]);
    node.made("sick-2", SICK).await.unwrap();
    node.deleted("node-1/sick-1").await.unwrap();
    node.deleted("node-1/sick-2").await.unwrap();
}

#[tokio::test]
async fn a_disk_that_hangs_for_a_moment_is_no_fault() {
    let node = Node::new().await;
    node.made("pvc-1", SICK).await.unwrap();
    node.disks[0].hang().unwrap();
    let asked = node.made("pvc-2", SICK);
    let healed = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        node.disks[0].heal().unwrap();
    };
    let (made, ()) = tokio::join!(asked, healed);
    made.unwrap();
    assert_eq!(ask("/readyz").await.0, 200);
    node.deleted("node-1/pvc-1").await.unwrap();
    node.deleted("node-1/pvc-2").await.unwrap();
}

/// A device of device-mapper that answers nothing until this is dropped.
struct Suspended(String);

impl Suspended {
    fn new(name: String) -> Self {
        shell(&format!("dmsetup suspend --nolockfs --noudevsync {name}"));
        Self(name)
    }
}

impl Drop for Suspended {
    fn drop(&mut self) {
        shell(&format!("dmsetup resume --noudevsync {}", self.0));
    }
}

#[tokio::test]
async fn a_pool_whose_fill_the_kernel_does_not_tell_is_not_taken_for_a_full_one() {
    let thin = &[("deviceClass", "sick")];
    let node = Node::with(1, 1024, "", "timeouts: {answerSeconds: 20, nodeAnswerSeconds: 20}\n").await;
    node.create(block("pvc-1", 64 * MIB, thin)).await.unwrap();
    // The disk itself answers, so that the group can be read.
    let hung = Suspended::new(format!("{}-quarry--pool_tmeta", node.sick.name()));
    // The pool writes down that it gave a block away, and holds its lock until the disk took that.
    let device = std::fs::File::options().write(true).open(format!("/dev/{}/pvc-1", node.sick.name())).unwrap();
    let written = tokio::task::spawn_blocking(move || {
        std::os::unix::fs::FileExt::write_all_at(&device, &[1; 65536], 0)?;
        device.sync_all()
    });
    eventually("nothing is published of the pool", || async { node.room(thin).await.unwrap() == 0 }).await;
    // "Full" would send the pod to another node.
    let parts = [node.sick.name(), "quarry-pool", "node-1", "did not tell in time", "ask again"];
    refused(node.create_once("pvc-2", thin).await, Code::Unavailable, &parts);
    node.other_group_is_served("meanwhile").await;

    drop(hung);
    written.await.unwrap().unwrap();
    node.made("pvc-2", thin).await.unwrap();
    assert!(node.room(thin).await.unwrap() > 0);
    node.deleted("node-1/pvc-1").await.unwrap();
    node.deleted("node-1/pvc-2").await.unwrap();
}
