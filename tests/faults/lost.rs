//! Volume groups that lose disks, and disks that come back.

use tonic::Code;

use crate::node::{Node, SICK, readable};
use crate::scene::refused;

const TIMEOUTS: &str = "timeouts: {answerSeconds: 2, nodeAnswerSeconds: 2}\n";

#[tokio::test]
async fn a_group_that_loses_one_disk_of_two_loses_no_volume_and_recovers() {
    let node = Node::with(2, 512, "", TIMEOUTS).await;
    node.made("pvc-1", SICK).await.unwrap();
    let room = node.room(SICK).await.unwrap();
    let sick = node.sick.name().to_owned();
    // The second disk holds no volume yet, so that it can be taken away altogether.
    node.disks[1].pull().unwrap();
    node.tells_of(&["it was not read whole", "was not found"]).await;
    assert_eq!(readable(&sick).await, Some(0.0));
    assert_eq!(node.room(SICK).await.unwrap(), 0, "lvm changes nothing in a group without one of its disks");
    assert_eq!(node.ids().await.unwrap(), ["node-1/pvc-1"]);
    assert_eq!(node.get("node-1/pvc-1").await.unwrap().volume_id, "node-1/pvc-1");
    node.made("pvc-1", SICK).await.unwrap();
    refused(node.made("pvc-2", SICK).await, Code::Unavailable, &[&sick, "not read whole"]);
    refused(node.deleted("node-1/pvc-1").await, Code::Unavailable, &[&sick, "not read whole"]);
    refused(node.deleted("node-1/none").await, Code::Unavailable, &[&sick]);
    refused(node.get("node-1/none").await, Code::Unavailable, &[&sick]);
    node.other_group_is_served("well").await;

    node.disks[1].heal().unwrap();
    node.becomes_ready().await;
    assert_eq!(node.room(SICK).await.unwrap(), room);
    node.made("pvc-2", SICK).await.unwrap();
    node.deleted("node-1/pvc-1").await.unwrap();
    node.deleted("node-1/pvc-2").await.unwrap();
    node.deleted("node-1/none").await.unwrap();
}

#[tokio::test]
async fn a_group_whose_disks_all_fail_makes_nothing_absent_and_recovers() {
    let mut node = Node::with(2, 512, "", TIMEOUTS).await;
    node.made("pvc-1", SICK).await.unwrap();
    let sick = node.sick.name().to_owned();
    for restarted in [false, true] {
        node.disks.iter().for_each(|disk| disk.fail().unwrap());
        if restarted {
            assert!(node.scene().driver.stop().unwrap().success());
            node.scene().restart().await;
        }
        refused(node.get("node-1/pvc-1").await, Code::Unavailable, &[&sick]);
        refused(node.get("node-1/none").await, Code::Unavailable, &[&sick]);
        refused(node.ids().await, Code::Unavailable, &[&sick]);
        refused(node.deleted("node-1/pvc-1").await, Code::Unavailable, &[&sick]);
        refused(node.deleted("node-1/none").await, Code::Unavailable, &[&sick]);
        refused(node.made("pvc-1", SICK).await, Code::Unavailable, &[&sick]);
        refused(node.made("pvc-2", SICK).await, Code::Unavailable, &[&sick]);
        node.tells_of(&[]).await;
        assert_eq!(readable(&sick).await, Some(0.0));
        node.other_group_is_served("well").await;

        node.disks.iter().for_each(|disk| disk.heal().unwrap());
        node.becomes_ready().await;
        assert_eq!(node.ids().await.unwrap(), ["node-1/pvc-1"]);
        node.deleted("node-1/none").await.unwrap();
    }
    node.made("pvc-2", SICK).await.unwrap();
    node.deleted("node-1/pvc-1").await.unwrap();
    node.deleted("node-1/pvc-2").await.unwrap();
}
