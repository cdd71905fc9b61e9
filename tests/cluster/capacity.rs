//! What nodes say about their room, and what happens when there is none.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use quarry_tests::cluster::kubectl::{items, text};
use quarry_tests::cluster::release::NAMESPACE;
use quarry_tests::wait;

use crate::bed::{Bed, NODES, RUN, scenario};
use crate::objects::{Pod, claim};

/// How long to wait for a figure, on a machine that emulates three others.
const FRESH: Duration = Duration::from_secs(60);
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

/// What a node's capacity object says, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Room {
    total: u64,
    largest: u64,
}

/// The published room of a class on a node; exactly one object says it.
fn published(bed: &Bed, class: &str, node: &str) -> Result<Room> {
    wait::until(&format!("one capacity object of {class} on {node}"), FRESH, Duration::from_secs(1), || {
        let list = bed.kubectl.within(NAMESPACE).get("csistoragecapacities")?;
        let own: Vec<_> = items(&list)
            .iter()
            .filter(|o| {
                let labels = &o["nodeTopology"]["matchLabels"];
                text(o, "/storageClassName") == class && labels["topology.lvm.quarry.storage/node"] == node
            })
            .collect();
        let [object] = own[..] else { return Ok(None) };
        let total = bytes(text(object, "/capacity"))?;
        let largest = text(object, "/maximumVolumeSize");
        Ok(Some(Room { total, largest: if largest.is_empty() { total } else { bytes(largest)? } }))
    })
}

/// The published room once it no longer changes: tests before this one have just given theirs back.
fn settled(bed: &Bed, class: &str, node: &str) -> Result<Room> {
    let mut last = None;
    wait::until(&format!("steady room of {class} on {node}"), FRESH * 2, Duration::from_secs(3), || {
        let room = published(bed, class, node)?;
        Ok((last.replace(room) == Some(room)).then_some(room))
    })
}

/// A quantity of Kubernetes with a binary suffix, or none.
fn bytes(quantity: &str) -> Result<u64> {
    let split = quantity.find(|c: char| !c.is_ascii_digit()).unwrap_or(quantity.len());
    let (digits, suffix) = quantity.split_at(split);
    let shift = match suffix {
        "" => 0,
        "Ki" => 10,
        "Mi" => 20,
        "Gi" => 30,
        "Ti" => 40,
        _ => anyhow::bail!("the quantity {quantity:?} has an unknown suffix"),
    };
    Ok(digits.parse::<u64>().with_context(|| format!("the quantity {quantity:?}"))? << shift)
}
