//! Nodes go down and come back.

use anyhow::{Result, ensure};
use quarry_tests::cluster::bed::{Bed, RUN, scenario};
use quarry_tests::cluster::kubectl::{condition, pod_ready, text};
use quarry_tests::cluster::objects::{Pod, block_claim, claim};

use crate::NODES;

const NODE: &str = NODES[1];

#[test]
fn volumes_come_back_with_their_data_when_a_node_reboots() {
    scenario("reboot", |bed| survives(bed, |bed| bed.reboot(NODE)));
}

#[test]
fn synced_data_outlives_a_power_cut() {
    scenario("power-cut", |bed| survives(bed, |bed| bed.cut_power(NODE)));
}

/// A pod with a filesystem and a block device finds both again after `disrupt`.
fn survives(bed: &Bed, disrupt: impl FnOnce(&Bed) -> Result<()>) -> Result<()> {
    bed.apply(&[claim("data", "quarry-thin", "1Gi"), block_claim("raw", "quarry-thin", "128Mi")])?;
    bed.apply(&[Pod::new("keeper").mounts("data").device("raw").on(NODE).kept()])?;
    bed.running("keeper-0")?;
    bed.within("keeper-0", "dd if=/dev/urandom of=/data/file bs=1M count=8 2>/dev/null; sync")?;
    bed.within("keeper-0", "dd if=/data/file of=/dev/raw bs=1M conv=fsync 2>/dev/null")?;
    let sums = "sha256sum < /data/file; dd if=/dev/raw bs=1M count=8 2>/dev/null | sha256sum";
    let before = bed.within("keeper-0", sums)?;
    let started = started(bed)?;

    disrupt(bed)?;
    bed.kubectl
        .wait(&format!("node {NODE}"), "Ready", RUN, |node| Ok((condition(node, "Ready") == "True").then_some(())))?;
    // The same pod in a new container, or a new pod of the same name.
    bed.kubectl.wait("pod keeper-0", "started anew", RUN, |pod| {
        let now = text(pod, "/status/containerStatuses/0/state/running/startedAt");
        Ok((pod_ready(pod) && !now.is_empty() && now != started).then_some(()))
    })?;
    bed.release.wait_ready(&NODES)?;
    let after = bed.within("keeper-0", sums)?;
    ensure!(before == after, "wrote\n{before}\nread back\n{after}");
    let lines: Vec<&str> = after.lines().collect();
    ensure!(lines.first() == lines.last(), "the device differs from the file it was copied from");

    // And the driver on that node makes new volumes.
    bed.apply(&[claim("more", "quarry-thin", "1Gi"), Pod::new("newcomer").mounts("more").on(NODE).manifest()])?;
    bed.running("newcomer").map(drop)
}

fn started(bed: &Bed) -> Result<String> {
    Ok(text(&bed.kubectl.get("pod keeper-0")?, "/status/containerStatuses/0/state/running/startedAt").to_owned())
}
