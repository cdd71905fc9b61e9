//! What is published while drivers, nodes and the API server go and come back.

use std::time::Duration;

use anyhow::{Result, ensure};
use quarry_tests::cluster::bed::{Bed, RUN, scenario};
use quarry_tests::cluster::capacity::{FRESH, Record, objects, settled, until};
use quarry_tests::cluster::kubectl::{condition, text};
use quarry_tests::cluster::objects::{Pod, claim};
use quarry_tests::cluster::release::NAMESPACE;
use quarry_tests::wait;

use crate::{NODES, OBJECTS};

const THICK: &str = "quarry-thick";
const MIB: u64 = 1 << 20;

/// A change behind the driver's back is still noticed and published.
fn follows(bed: &Bed, node: &str) -> Result<()> {
    let before = settled(bed, THICK, node)?;
    bed.on(node, "lvcreate --yes --activate n --zero n --name of-an-admin --size 64m quarry")?;
    let outcome = until(bed, THICK, node, "64 MiB less", FRESH, |room| room.largest == before.largest - 64 * MIB);
    bed.on(node, "lvremove --yes quarry/of-an-admin")?;
    outcome?;
    until(bed, THICK, node, "as much as before", FRESH, |room| room == before).map(drop)
}

fn uids(bed: &Bed) -> Result<Vec<String>> {
    let mut uids: Vec<String> = objects(bed)?.iter().map(|o| text(o, "/metadata/uid").to_owned()).collect();
    uids.sort();
    Ok(uids)
}

#[test]
fn an_update_of_the_pods_leaves_no_node_without_objects() {
    scenario("update", |bed| {
        for node in NODES {
            settled(bed, THICK, node)?;
        }
        let before = uids(bed)?;
        let record = Record::begin(bed, OBJECTS)?;
        let system = bed.kubectl.within(NAMESPACE);
        system.run("rollout restart daemonset quarry-node")?;
        wait::until("all pods anew", RUN * NODES.len() as u32, Duration::from_secs(2), || {
            let set = system.get("daemonset quarry-node")?;
            let count = |pointer: &str| set.pointer(pointer).and_then(serde_json::Value::as_u64);
            let nodes = Some(NODES.len() as u64);
            let seen = count("/status/observedGeneration") == count("/metadata/generation");
            Ok((seen && count("/status/updatedNumberScheduled") == nodes && count("/status/numberAvailable") == nodes)
                .then_some(()))
        })?;
        bed.release.wait_ready(&NODES)?;
        for node in NODES {
            follows(bed, node)?;
        }
        record.nothing_was_lost()?;
        ensure!(uids(bed)? == before, "objects were made anew");
        Ok(())
    });
}

#[test]
fn a_killed_driver_leaves_the_objects_and_is_heard_again() {
    scenario("driver", |bed| {
        let node = NODES[1];
        settled(bed, THICK, node)?;
        let record = Record::begin(bed, OBJECTS)?;
        let pod = bed.release.pod_on(node)?;
        bed.on(node, "kill -9 $(pidof quarry-driver)")?;
        let system = bed.kubectl.within(NAMESPACE);
        system.wait(&format!("pod {pod}"), "its driver restarted", RUN, |now| {
            Ok((restarts(now, "driver") > 0).then_some(()))
        })?;
        bed.release.wait_ready(&NODES)?;
        follows(bed, node)?;
        record.nothing_was_lost()?;
        ensure!(
            restarts(&system.get(&format!("pod {pod}"))?, "capacity-reporter") == 0,
            "the reporter was restarted too"
        );
        Ok(())
    });
}

#[test]
fn a_killed_reporter_leaves_the_objects_and_takes_them_up_again() {
    scenario("reporter", |bed| {
        let node = NODES[2];
        settled(bed, THICK, node)?;
        let record = Record::begin(bed, OBJECTS)?;
        let pod = bed.release.pod_on(node)?;
        bed.on(node, "kill -9 $(pidof quarry-capacity-reporter)")?;
        // Changed while nobody is there.
        bed.on(node, "lvcreate --yes --activate n --zero n --name meanwhile --size 128m quarry")?;
        let outcome = bed.kubectl.within(NAMESPACE).wait(&format!("pod {pod}"), "its reporter restarted", RUN, |now| {
            Ok((restarts(now, "capacity-reporter") > 0).then_some(()))
        });
        bed.on(node, "lvremove --yes quarry/meanwhile")?;
        outcome?;
        follows(bed, node)?;
        record.nothing_was_lost()
    });
}

#[test]
fn a_node_that_is_switched_off_keeps_its_objects_and_tells_the_truth_when_it_is_back() {
    scenario("power", |bed| {
        let node = NODES[2];
        let before = settled(bed, THICK, node)?;
        let uids_before = uids(bed)?;
        let record = Record::begin(bed, OBJECTS)?;
        bed.on(node, "lvcreate --yes --activate n --zero n --name before-the-cut --size 64m quarry; sync")?;
        bed.cut_power(node)?;
        bed.kubectl
            .wait(&format!("node {node}"), "Ready", RUN, |now| Ok((condition(now, "Ready") == "True").then_some(())))?;
        bed.release.wait_ready(&NODES)?;
        bed.on(node, "lvremove --yes quarry/before-the-cut")?;
        until(bed, THICK, node, "as much as before", FRESH * 2, |room| room == before)?;
        follows(bed, node)?;
        record.nothing_was_lost()?;
        ensure!(uids(bed)? == uids_before, "objects were made anew");
        Ok(())
    });
}

#[test]
fn an_api_server_that_restarts_is_told_what_happened_meanwhile() {
    scenario("api", |bed| {
        let node = NODES[0];
        let before = settled(bed, THICK, node)?;
        let uids_before = uids(bed)?;
        bed.restart_api_server()?;
        bed.on(node, "lvcreate --yes --activate n --zero n --name meanwhile --size 64m quarry")?;
        let outcome = until(bed, THICK, node, "64 MiB less", FRESH, |room| room.largest == before.largest - 64 * MIB);
        bed.on(node, "lvremove --yes quarry/meanwhile")?;
        outcome?;
        for node in NODES {
            follows(bed, node)?;
        }
        ensure!(uids(bed)? == uids_before, "objects were made anew");
        // And all the others have found it again: a claim becomes a volume.
        bed.apply(&[claim("data", THICK, "64Mi"), Pod::new("user").mounts("data").manifest()])?;
        bed.running("user")?;
        Ok(())
    });
}

/// How often a container of a pod was started again.
fn restarts(pod: &serde_json::Value, container: &str) -> u64 {
    let statuses = pod.pointer("/status/containerStatuses").and_then(serde_json::Value::as_array);
    let own = statuses.into_iter().flatten().find(|status| text(status, "/name") == container);
    own.and_then(|status| status["restartCount"].as_u64()).unwrap_or(0)
}
