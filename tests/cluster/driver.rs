//! The driver itself goes away while its volumes are in use.

use std::time::Duration;

use anyhow::{Result, ensure};
use quarry_tests::cluster::bed::{Bed, RUN, scenario};
use quarry_tests::cluster::kubectl::text;
use quarry_tests::cluster::objects::{Pod, claim, class};
use quarry_tests::cluster::release::NAMESPACE;
use quarry_tests::wait;

use crate::NODES;

const NODE: &str = NODES[0];
/// Writes a line every now and then, synced.
const WRITER: &str =
    "trap 'exit 0' TERM; i=0; while :; do i=$((i + 1)); echo $i >> /data/lines; sync; sleep 0.2 & wait $!; done";

#[test]
fn a_killed_driver_comes_back_while_pods_keep_writing() {
    scenario("killed", |bed| {
        start_writer(bed)?;
        let pod = bed.release.pod_on(NODE)?;
        let system = bed.kubectl.within(NAMESPACE);
        let before = restarts(&system.get(&format!("pod {pod}"))?);
        // The kernel's own kill: nothing is said goodbye to.
        bed.on(NODE, "kill -9 $(pidof quarry-driver)")?;
        still_writing(bed)?;
        system.wait(&format!("pod {pod}"), "its driver restarted", RUN, |now| {
            Ok((restarts(now) > before).then_some(()))
        })?;
        bed.release.wait_ready(&NODES)?;
        serves(bed)
    });
}

#[test]
fn a_replaced_driver_pod_takes_over_the_volumes() {
    scenario("replaced", |bed| {
        start_writer(bed)?;
        let pod = bed.release.pod_on(NODE)?;
        let system = bed.kubectl.within(NAMESPACE);
        system.run(&format!("delete pod {pod} --wait=false"))?;
        still_writing(bed)?;
        system.wait_gone(&format!("pod {pod}"), RUN)?;
        bed.release.wait_ready(&NODES)?;
        serves(bed)
    });
}

#[test]
fn a_release_removed_and_installed_again_loses_no_volume() {
    scenario("reinstalled", |bed| {
        start_writer(bed)?;
        let volume = bed.volume("data")?;
        let mut limited = class(LIMITED, "ext4");
        limited["parameters"]["writeIops"] = "400".into();
        bed.apply(&[limited, claim("limited", LIMITED, "256Mi")])?;
        bed.apply(&[Pod::new("limited").mounts("limited").on(NODE).manifest()])?;
        bed.running("limited")?;
        limit_is(bed, true)?;
        bed.release.uninstall()?;
        let between = still_writing(bed).and_then(|()| bed.lv(&volume)).and_then(|_| limit_is(bed, false));
        // Also after a failure: the tests after this one need the driver.
        bed.release.install(&NODES, &[])?;
        between?;
        limit_is(bed, true)?;
        bed.delete_pod("limited")?;
        bed.kubectl.run(&format!("delete storageclass {LIMITED}"))?;
        still_writing(bed)?;
        serves(bed)
    });
}

const LIMITED: &str = "test-limited-too";

/// Waits until the node has a limit in any pod's cgroup, or none.
fn limit_is(bed: &Bed, there: bool) -> Result<()> {
    let what = if there { "a limit in a pod's cgroup" } else { "no limit in any pod's cgroup" };
    wait::until(what, RUN, Duration::from_millis(500), || {
        let files = bed.on(NODE, "grep -rs --include=io.max wiops=400 /sys/fs/cgroup || true")?;
        Ok((files.trim().is_empty() != there).then_some(()))
    })
}

fn start_writer(bed: &Bed) -> Result<()> {
    bed.apply(&[
        claim("data", "quarry-thin", "1Gi"),
        Pod::new("writer").mounts("data").on(NODE).script(WRITER).manifest(),
    ])?;
    bed.running("writer").map(drop)
}

/// The pod writes on, in the same container.
fn still_writing(bed: &Bed) -> Result<()> {
    let lines = "wc -l < /data/lines";
    let before: u64 = bed.within("writer", lines)?.parse()?;
    let after: u64 = bed.within("writer", &format!("sleep 2; {lines}"))?.parse()?;
    ensure!(after > before, "the pod stopped writing at line {before}");
    ensure!(restarts(&bed.kubectl.get("pod writer")?) == 0, "the writing pod was restarted");
    Ok(())
}

/// The driver unmounts what was mounted before, mounts it again, and makes new volumes.
fn serves(bed: &Bed) -> Result<()> {
    still_writing(bed)?;
    let before: u64 = bed.within("writer", "wc -l < /data/lines")?.parse()?;
    bed.delete_pod("writer")?;
    bed.apply(&[
        claim("more", "quarry-thin", "1Gi"),
        Pod::new("reader").mounts("data").mounts("more").on(NODE).manifest(),
    ])?;
    bed.running("reader")?;
    let after: u64 = bed.within("reader", "wc -l < /data/lines")?.parse()?;
    ensure!(after >= before, "of {before} synced lines {after} are left");
    Ok(())
}

/// How often the first container that is the driver, or the pod's only one, was started again.
fn restarts(pod: &serde_json::Value) -> u64 {
    let statuses = pod.pointer("/status/containerStatuses").and_then(serde_json::Value::as_array);
    let counts = statuses.into_iter().flatten().filter(|s| ["driver", "main"].contains(&text(s, "/name")));
    counts.filter_map(|s| s["restartCount"].as_u64()).sum()
}
