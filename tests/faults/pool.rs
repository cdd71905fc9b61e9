//! A thin pool that runs full, of data and of metadata.

use std::os::unix::fs::FileExt as _;

use quarry_tests::in_vm::lvm;
use tonic::Code;

use crate::node::{Node, SICK, settled};
use crate::scene::{GIB, MIB, block, refused, shell};

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
    let fill = |name: &str| format!("dd if=/dev/zero of={} bs=1M oflag=direct status=none 2>/run/said", device(name));
    shell(&fill("pvc-1"));
    shell(&format!("! {} && grep -q 'No space left' /run/said", fill("pvc-2")));

    assert_eq!(node.room(THIN).await.unwrap(), 0);
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
async fn a_pool_full_of_metadata_takes_no_volume_and_says_how_to_repair_it() {
    // One page in each chunk: the metadata fill up before the data do.
    const CHUNK: u64 = 64 << 10;
    let node = Node::with(1, 4000, CLASS, TIMEOUTS).await;
    let vg = node.sick.name().to_owned();
    let pool = ["-y", "--type", "thin-pool", "-n", "quarry-pool", "-L", "3600m", "--poolmetadatasize", "2m"];
    let pool = [&pool[..], &["--chunksize", "64k", "-Z", "n", "--poolmetadataspare", "n", &vg]].concat();
    lvm("lvcreate", &pool).unwrap().success().unwrap();
    lvm("lvchange", &["-y", "-Z", "y", &format!("{vg}/quarry-pool")]).unwrap().success().unwrap();
    node.capacity_becomes(THIN, |room| room > GIB).await;
    node.create(block("pvc-1", 3 * GIB, THIN)).await.unwrap();

    let device = std::fs::File::options().write(true).open(format!("/dev/{vg}/pvc-1")).unwrap();
    let full = (0..3 * (GIB as u64) / CHUNK).any(|chunk| {
        let written = device.write_all_at(&[7; 4096], chunk * CHUNK);
        written.is_err() || (chunk % 1024 == 1023 && device.sync_all().is_err())
    });
    assert!(full || device.sync_all().is_err(), "the pool's metadata never filled up");
    drop(device);

    assert_eq!(node.room(THIN).await.unwrap(), 0);
    refused(node.create(block("pvc-2", 32 * MIB, THIN)).await, Code::ResourceExhausted, &["node-1", &vg, "thin pool"]);
    assert!(node.room(SICK).await.unwrap() > 0);
    node.made("thick", SICK).await.unwrap();
    node.other_group_is_served("well").await;
    assert_eq!(node.get("node-1/pvc-1").await.unwrap().volume_id, "node-1/pvc-1");

    // As the documentation says: repaired with nothing using it, and enlarged.
    shell(&format!(
        "lvchange -an {vg}/pvc-1 && lvchange -an {vg}/quarry-pool && lvconvert -y --repair {vg}/quarry-pool"
    ));
    shell(&format!("lvextend -y --poolmetadatasize +8m {vg}/quarry-pool && lvchange -ay {vg}/quarry-pool"));
    node.capacity_becomes(THIN, |room| room > 0).await;
    settled(|| node.create(block("pvc-2", 32 * MIB, THIN))).await.unwrap();
    node.deleted("node-1/pvc-1").await.unwrap();
    node.becomes_ready().await;
}
