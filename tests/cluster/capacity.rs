//! What nodes say about their room, and what happens when there is none.

use std::time::Duration;

use anyhow::{Result, ensure};
use quarry_tests::cluster::bed::{Bed, RUN, scenario};
use quarry_tests::cluster::capacity::{FRESH, published, settled};
use quarry_tests::cluster::objects::{Pod, claim};
use quarry_tests::wait;

use crate::NODES;

const MIB: u64 = 1 << 20;

#[test]
fn published_room_can_be_claimed_to_the_last_extent() {
    scenario("honest", |bed| {
        for class in ["quarry-thin", "quarry-thick"] {
            for node in NODES {
                let room = published(bed, class, node)?;
                let free: u64 =
                    bed.on(node, "vgs --noheadings --units b --nosuffix -o vg_size quarry")?.trim().parse()?;
                ensure!(
                    room.largest > 0 && room.largest <= room.total && room.total <= free,
                    "{class} on {node}: {room:?} of {free}"
                );
            }
        }
        // Room that is published can be had, as one volume; and then it is gone.
        let node = NODES[1];
        for class in ["quarry-thin", "quarry-thick"] {
            let room = settled(bed, class, node)?;
            let name = format!("all-of-{class}");
            bed.apply(&[
                claim(&name, class, &room.largest.to_string()),
                Pod::new(&name).mounts(&name).on(node).manifest(),
            ])?;
            bed.running(&name)?;
            let left = wait::until("less room published", FRESH, Duration::from_secs(1), || {
                let left = published(bed, class, node)?;
                Ok((left.largest < room.largest).then_some(left))
            })?;
            ensure!(left.largest < 64 * MIB, "{class} on {node}: {left:?} after all of {room:?} was claimed");
            bed.delete_pod(&name)?;
            bed.kubectl.run(&format!("delete pvc {name} --wait=false"))?;
            bed.kubectl.wait_gone(&format!("pvc {name}"), RUN)?;
            wait::until("the room published again", FRESH, Duration::from_secs(1), || {
                Ok((published(bed, class, node)?.largest >= room.largest).then_some(()))
            })?;
        }
        Ok(())
    });
}

#[test]
fn a_full_node_sends_pods_to_the_other_and_two_full_nodes_say_so() {
    scenario("full", |bed| {
        let class = "quarry-thin";
        let [larger, smaller] = NODES;
        fill(bed, class, larger)?;
        // At once, while the scheduler may not know yet: the node refuses, and the pod moves on.
        bed.apply(&[claim("moved", class, "2Gi"), Pod::new("moved").mounts("moved").preferring(larger).manifest()])?;
        let node = bed.running("moved")?;
        ensure!(node == smaller && bed.volume("moved")?.node == smaller, "the pod runs on {node}");

        fill(bed, class, smaller)?;
        bed.apply(&[claim("late", class, "2Gi"), Pod::new("late").mounts("late").manifest()])?;
        bed.event("late", "FailedScheduling", "did not have enough free storage")?;
        // Full is not broken: both drivers still answer, here by giving room back.
        bed.delete_pod(&filler(smaller))?;
        bed.kubectl.run(&format!("delete pvc {} --wait=false", filler(smaller)))?;
        let node = bed.running("late")?;
        ensure!(node == smaller, "room was made on {smaller}, the pod runs on {node}");
        Ok(())
    });
}

fn filler(node: &str) -> String {
    format!("filler-{node}")
}

/// Claims all of a node's room but less than what a test asks for.
fn fill(bed: &Bed, class: &str, node: &str) -> Result<()> {
    let room = settled(bed, class, node)?;
    let (name, size) = (filler(node), room.largest.saturating_sub(512 * MIB));
    ensure!(size > 0, "{node} has no room to begin with: {room:?}");
    bed.apply(&[claim(&name, class, &size.to_string()), Pod::new(&name).mounts(&name).on(node).manifest()])?;
    bed.running(&name).map(drop)
}
