//! A cluster filled to its last volume.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use quarry_tests::cluster::bed::{Bed, scenario};
use quarry_tests::cluster::capacity::{Room, published, settled};
use quarry_tests::cluster::kubectl::{items, pod_ready, text};
use quarry_tests::cluster::objects::{Pod, claim};
use quarry_tests::wait;
use serde_json::json;

use crate::NODES;

const CLASS: &str = "quarry-thin";
/// How many pods there are to be, more or less: only so many as have room.
const PODS: u64 = 50;
const MIB: u64 = 1 << 20;
/// For all pods together, on machines that emulate theirs.
const ALL: Duration = Duration::from_secs(1800);

#[test]
fn pods_fill_unequal_nodes_to_the_last_volume_and_none_is_refused() {
    scenario("fill", |bed| {
        let outcome = fill(bed);
        // So many take longer than what a test leaves elsewhere.
        let gone = empty(bed);
        outcome.and(gone)
    });
}

fn fill(bed: &Bed) -> Result<()> {
    // Pools are made now, so that what is counted below is what they have.
    for node in NODES {
        let name = format!("first-on-{node}");
        bed.apply(&[claim(&name, CLASS, "64Mi"), Pod::new(&name).mounts(&name).on(node).manifest()])?;
    }
    for node in NODES {
        bed.running(&format!("first-on-{node}"))?;
    }
    empty(bed)?;
    let rooms = NODES.map(|node| settled(bed, CLASS, node));
    let rooms: Vec<Room> = rooms.into_iter().collect::<Result<_>>()?;
    let (size, places) = volumes(&rooms.iter().map(|room| room.largest).collect::<Vec<_>>())?;
    let count: u64 = places.iter().sum();
    println!("{count} volumes of {} MiB: {places:?} of {rooms:?}", size / MIB);

    // One after the other: nobody tells the scheduler of volumes that are only on their way. The next pod comes as soon as
    // the last one's volume is there.
    for number in 0..count {
        let name = format!("p{number:02}");
        let objects = [claim(&name, CLASS, &size.to_string()), Pod::new(&name).mounts(&name).manifest()];
        bed.kubectl.apply(&json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string())?;
        bed.kubectl.wait(&format!("pvc {name}"), "bound", quarry_tests::cluster::bed::RUN, |claim| {
            Ok((text(claim, "/status/phase") == "Bound").then_some(()))
        })?;
    }
    for (node, room) in NODES.iter().zip(&rooms) {
        let left = published(bed, CLASS, node)?;
        ensure!(left.largest < size, "{node} has {left:?} left of {room:?}, enough for one more of {size}");
    }
    none_refused(bed)?;

    bed.apply(&[claim("late", CLASS, &size.to_string()), Pod::new("late").mounts("late").manifest()])?;
    bed.event("late", "FailedScheduling", "did not have enough free storage")?;
    let pods = wait::until("all pods run", ALL, Duration::from_secs(5), || {
        let list = bed.kubectl.get("pods")?;
        let running = items(&list).iter().filter(|pod| pod_ready(pod)).count() as u64;
        Ok((running == count).then_some(list))
    })?;
    let mut found: BTreeMap<&str, u64> = BTreeMap::new();
    for pod in items(&pods).iter().filter(|pod| pod_ready(pod)) {
        *found.entry(text(pod, "/spec/nodeName")).or_default() += 1;
    }
    let expected: BTreeMap<&str, u64> = NODES.into_iter().zip(places).collect();
    ensure!(found == expected, "pods are {found:?}, there was room for {expected:?}");

    // What is given back is known at once.
    let first = items(&pods).iter().find(|pod| pod_ready(pod)).context("no pod runs")?;
    let (node, first) = (text(first, "/spec/nodeName").to_owned(), text(first, "/metadata/name").to_owned());
    bed.delete_pod(&first)?;
    bed.kubectl.run(&format!("delete pvc {first} --wait=false"))?;
    let late = bed.running("late")?;
    ensure!(late == node, "room was made on {node}, the pod runs on {late}");
    none_refused(bed)
}

/// Fails when a node refused a volume. An answer that the work takes longer is none: the machines here are slow.
fn none_refused(bed: &Bed) -> Result<()> {
    let failed = bed.kubectl.get("events --field-selector reason=ProvisioningFailed")?;
    let failed: Vec<&str> = items(&failed).iter().map(|event| text(event, "/message")).collect();
    let refused: Vec<&&str> = failed.iter().filter(|message| !message.contains("code = Aborted")).collect();
    ensure!(refused.is_empty(), "{} volumes were refused: {refused:#?}", refused.len());
    Ok(())
}

/// The size of volumes of which as many as are wanted have room, and how many each node takes. A size that just so fits is
/// not taken: it is not the rounding that is looked at here.
fn volumes(rooms: &[u64]) -> Result<(u64, Vec<u64>)> {
    let places = |size: u64, part: u64| rooms.iter().map(|room| room * part / 1000 / size).collect::<Vec<_>>();
    let sizes = (16..1024).rev().map(|extents| extents * 4 * MIB);
    let mut fitting = sizes.filter(|size| places(*size, 1000) == places(*size, 995));
    let size = fitting.find(|size| places(*size, 1000).iter().sum::<u64>() >= PODS);
    let size = size.with_context(|| format!("no size of volumes fits {rooms:?}"))?;
    Ok((size, places(size, 1000)))
}

/// Deletes all pods and claims and waits until their volumes are gone.
fn empty(bed: &Bed) -> Result<()> {
    bed.kubectl.run("delete pods --all --wait=false")?;
    bed.kubectl.run("delete pvc --all --wait=false")?;
    wait::until("end of all pods and claims", ALL, Duration::from_secs(2), || {
        let left = items(&bed.kubectl.get("pods,pvc")?).len();
        Ok((left == 0).then_some(()))
    })?;
    wait::until("end of all volumes", ALL, Duration::from_secs(2), || {
        let left = items(&bed.kubectl.get("pv")?).len();
        Ok((left == 0).then_some(()))
    })
}
