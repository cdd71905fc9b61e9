//! A thin pool that runs full, of data and of metadata.

use quarry_driver::lvm::dm::{DeviceMapper, Key};
use quarry_driver::lvm::dm_status::{PoolStatus, TargetStatus};
use quarry_tests::in_vm::lvm;
use tonic::Code;

use crate::node::{Node, SICK};
use crate::scene::{MIB, block, refused, shell};

const THIN: &[(&str, &str)] = &[("deviceClass", "sick")];
const CLASS: &str = ", poolPercent: 50, overprovisionRatio: 10";
const TIMEOUTS: &str = "timeouts: {answerSeconds: 300, nodeAnswerSeconds: 300}\n";

#[tokio::test]
async fn a_pool_full_of_data_takes_no_volume_until_one_is_deleted() {
    let node = Node::with(1, 1024, CLASS, TIMEOUTS).await;
    let room = node.room(THIN).await.unwrap();
    let volume = node.create(block("pvc-1", room, THIN)).await.unwrap();
    node.create(block("pvc-2", room, THIN)).await.unwrap();
    let device = |name: &str| format!("/dev/{}/{name}", node.sick.name());
    let fill = |name: &str, mib: i64| {
        format!("dd if=/dev/zero of={} bs=1M count={mib} oflag=direct status=none 2>/run/said", device(name))
    };
    shell(&fill("pvc-1", room / MIB));
    shell(&format!("! {} && grep -q 'No space left' /run/said", fill("pvc-2", 1)));

    assert_eq!(node.room(THIN).await.unwrap(), 0);
    node.tells_of(&["thin pool quarry-pool of volume group", "full of data"]).await;
    let again = node.create(block("pvc-3", 32 * MIB, THIN)).await;
    refused(again, Code::ResourceExhausted, &["node-1", node.sick.name(), "at most 0"]);
    assert!(node.room(SICK).await.unwrap() > 0, "thick volumes have room of their own");
    node.made("thick", SICK).await.unwrap();
    node.other_group_is_served("well").await;
    assert_eq!(node.ids().await.unwrap(), ["node-1/pvc-1", "node-1/pvc-2", "node-1/thick"]);

    node.deleted(&volume.volume_id).await.unwrap();
    assert!(node.room(THIN).await.unwrap() > 0);
    node.create(block("pvc-3", 32 * MIB, THIN)).await.unwrap();
    // What could not be written before can be now.
    shell(&format!("dd if=/dev/zero of={} bs=1M count=16 oflag=direct status=none", device("pvc-2")));
    node.becomes_ready().await;
}

#[tokio::test]
async fn a_pool_full_of_metadata_takes_no_volume_until_it_is_repaired_and_enlarged() {
    let node = Node::with(1, 1024, CLASS, TIMEOUTS).await;
    let vg = node.sick.name().to_owned();
    let pool = ["-y", "--type", "thin-pool", "-n", "quarry-pool", "-L", "400m", "--poolmetadatasize", "2m"];
    let pool = [&pool[..], &["--chunksize", "64k", "-Z", "y", &vg]].concat();
    lvm("lvcreate", &pool).unwrap().success().unwrap();
    node.capacity_becomes(THIN, |room| room > 100 * MIB).await;
    node.create(block("pvc-1", 320 * MIB, THIN)).await.unwrap();
    // The kernel is told of volumes until it has hardly a page left to write one down on.
    let (dm, device) = (DeviceMapper::open().unwrap(), format!("{vg}-quarry--pool-tpool"));
    let free_pages = || match &dm.table_status(Key::Name(&device)).unwrap().unwrap()[0].status {
        TargetStatus::ThinPool(PoolStatus::Working(pool)) => pool.total_metadata_blocks - pool.used_metadata_blocks,
        other => panic!("{other:?}"),
    };
    for number in 1000.. {
        if free_pages() < 10 {
            break;
        }
        dm.message(Key::Name(&device), &format!("create_thin {number}")).unwrap();
    }
    let full = || async {
        assert_eq!(node.room(THIN).await.unwrap(), 0);
        let more = node.create(block("pvc-2", 32 * MIB, THIN)).await;
        refused(more, Code::ResourceExhausted, &["node-1", &vg, "thin pool"]);
        assert!(node.room(SICK).await.unwrap() > 0, "thick volumes have room of their own");
        assert_eq!(node.get("node-1/pvc-1").await.unwrap().volume_id, "node-1/pvc-1");
    };
    full().await;
    node.tells_of(&["thin pool quarry-pool of volume group", "nearly full", "--poolmetadatasize"]).await;
    // Whoever writes now has the pool turn read-only.
    let device = format!("/dev/{vg}/pvc-1");
    shell(&format!("! dd if=/dev/zero of={device} bs=1M count=310 oflag=direct status=none 2>/run/said"));
    full().await;
    node.tells_of(&["thin pool quarry-pool of volume group", "read-only", "lvconvert --repair"]).await;
    node.made("thick", SICK).await.unwrap();
    node.other_group_is_served("well").await;

    // As the documentation says.
    let run = |verb: &str, arguments: &[&str]| drop(lvm(verb, arguments).unwrap().success().unwrap());
    let (pool, volume) = (format!("{vg}/quarry-pool"), format!("{vg}/pvc-1"));
    run("lvchange", &["-an", &volume]);
    run("lvchange", &["-an", &pool]);
    run("lvconvert", &["-y", "--repair", &pool]);
    run("lvextend", &["-y", "--poolmetadatasize", "+8m", &pool]);
    run("lvchange", &["-ay", &pool]);
    node.capacity_becomes(THIN, |room| room > 0).await;
    node.create(block("pvc-2", 32 * MIB, THIN)).await.unwrap();
    node.deleted("node-1/pvc-1").await.unwrap();
    node.deleted("node-1/pvc-2").await.unwrap();
    node.becomes_ready().await;
}
