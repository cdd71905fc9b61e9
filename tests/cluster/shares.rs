//! Limits and weights in the cgroups that a real kubelet makes.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use quarry_tests::cluster::bed::{Bed, RUN, scenario};
use quarry_tests::cluster::kubectl::text;
use quarry_tests::cluster::objects::{Pod, claim, class};
use quarry_tests::cluster::release::{NAMESPACE, disk_model};
use quarry_tests::wait;
use serde_json::{Value, json};

use crate::NODES;

const LIMITED: &str = "test-limited";
const WEIGHTY: &str = "test-weighty";
const VOLUMES: &str = "quarry-driver volumes -o json --csi-socket /var/lib/kubelet/plugins/lvm.quarry.storage/csi.sock";

#[test]
fn a_limit_holds_in_the_pods_cgroup_and_an_unkept_weight_is_told_on_the_claim() {
    scenario("shares", |bed| {
        let mut limited = class(LIMITED, "ext4");
        limited["parameters"]["writeIops"] = "40".into();
        let mut weighty = class(WEIGHTY, "ext4");
        weighty["parameters"]["ioWeight"] = "800".into();
        bed.apply(&[limited, weighty])?;
        let outcome = limits(bed).and_then(|()| weights(bed));
        bed.kubectl.run(&format!("delete storageclass {LIMITED} {WEIGHTY}"))?;
        outcome
    });
}

/// What no disk does here: it is seen that everything is set, not what comes of it.
const MODEL_IOPS: u32 = 100_000;
/// Reads its volume `NAME`, past the page cache, for as long as it is there.
const READER: &str = "trap 'exit 0' TERM; dd if=/dev/zero of=/NAME/data bs=64k count=16 conv=fsync 2>/dev/null; \
    while :; do dd if=/NAME/data of=/dev/null bs=64k iflag=direct 2>/dev/null; sleep 0.3 & wait $!; done";

#[test]
fn weights_are_enforced_in_the_cgroups_of_both_drivers_and_every_class() {
    scenario("weights", |bed| {
        bed.release.install(&NODES, &disk_model(MODEL_IOPS).each_ref().map(String::as_str))?;
        let outcome = classes(bed);
        // The tests after this one need the usual driver.
        bed.release.install(&NODES, &[])?;
        outcome
    });
}

/// A pod of each class where systemd makes the cgroups, and one where the kubelet does.
fn classes(bed: &Bed) -> Result<()> {
    let mut weighty = class(WEIGHTY, "ext4");
    weighty["parameters"]["ioWeight"] = "300".into();
    bed.apply(&[weighty])?;
    let [cgroupfs, systemd] = NODES;
    let guaranteed = json!({"limits": {"cpu": "500m", "memory": "64Mi"}});
    let burstable = json!({"requests": {"cpu": "10m"}});
    let mut pods = Vec::new();
    for (node, quality, resources) in [
        (systemd, "guaranteed", guaranteed),
        (systemd, "burstable", burstable.clone()),
        (systemd, "besteffort", json!({})),
        (cgroupfs, "burstable", burstable),
    ] {
        let name = format!("{quality}-{node}");
        let pod = Pod::new(&name).mounts(&name).on(node).resources(resources).script(&READER.replace("NAME", &name));
        bed.apply(&[claim(&name, WEIGHTY, "64Mi"), pod.manifest()])?;
        pods.push((node, quality, name));
    }
    for (node, quality, name) in &pods {
        bed.running(name)?;
        let pod = bed.kubectl.get(&format!("pod {name}"))?;
        ensure!(text(&pod, "/status/qosClass").to_lowercase() == *quality, "{name} is {}", pod["status"]);
        let folder = cgroup(bed, node, text(&pod, "/metadata/uid"))?;
        ensure!(folder.ends_with(".slice") == (*node == systemd), "{folder} on {node}");
        enforced(bed, node, name)?;
        has_weight(bed, node, &folder, |weight| weight == 300)?;
        if *quality != "guaranteed" {
            // Of the class those pods count that use the disk: this one, and maybe the driver's own.
            let class = folder.rsplit_once('/').map(|(class, _)| class).unwrap_or_default();
            has_weight(bed, node, class, |weight| (300..600).contains(&weight))?;
        }
    }
    // systemd brings its own order into the tree of cgroups again.
    bed.on(systemd, "systemctl daemon-reload")?;
    for (node, _, name) in pods.iter().filter(|(node, ..)| *node == systemd) {
        let uid = text(&bed.kubectl.get(&format!("pod {name}"))?, "/metadata/uid").to_owned();
        has_weight(bed, node, &cgroup(bed, node, &uid)?, |weight| weight == 300)?;
        enforced(bed, node, name)?;
    }
    for (.., name) in &pods {
        bed.kubectl.run(&format!("delete pod {name} --wait=false"))?;
    }
    pods.iter().try_for_each(|(.., name)| bed.kubectl.wait_gone(&format!("pod {name}"), RUN))?;
    bed.kubectl.run(&format!("delete storageclass {WEIGHTY}")).map(drop)
}

/// Waits until the driver says so of a claim's volume.
fn enforced(bed: &Bed, node: &str, claim: &str) -> Result<()> {
    let driver = bed.release.pod_on(node)?;
    let volume = bed.volume(claim)?;
    let mut last = Value::Null;
    let look = || {
        let told = bed.kubectl.within(NAMESPACE).run(&format!("exec {driver} -c driver -- {VOLUMES}"))?;
        let told: Value = serde_json::from_str(&told).context("quarry-driver volumes -o json")?;
        let all = told["volumes"].as_array().into_iter().flatten();
        last = all.filter(|one| one["name"] == volume.lv).map(|one| one["published"].clone()).collect();
        Ok((last.pointer("/0/0/ioState") == Some(&"enforced".into())).then_some(()))
    };
    wait::until(&format!("the weight of {claim} is enforced"), RUN, Duration::from_millis(500), look)
        .with_context(|| format!("it is published as {last}"))
}

/// Waits until a cgroup has a weight on the node's disk that is right.
fn has_weight(bed: &Bed, node: &str, folder: &str, right: impl Fn(u32) -> bool) -> Result<()> {
    let mut shown = String::new();
    let look = || {
        shown = bed.on(node, &format!("cat /sys/block/vda/dev {folder}/io.weight"))?;
        let disk = shown.lines().next().unwrap_or_default();
        let weight = shown.lines().skip(1).find_map(|line| line.strip_prefix(disk)?.trim().parse().ok());
        Ok(weight.is_some_and(&right).then_some(()))
    };
    wait::until(&format!("weight in {folder}"), RUN, Duration::from_millis(500), look)
        .with_context(|| format!("it shows {shown:?}"))
}

/// The folder of a pod, whatever the class and the driver: the one with its UID that kubelet made.
fn cgroup(bed: &Bed, node: &str, uid: &str) -> Result<String> {
    let slice = uid.replace('-', "_");
    let find = format!("find /sys/fs/cgroup -type d -name '*pod{uid}*' -o -type d -name '*pod{slice}.slice'");
    let folder = bed.on(node, &find)?.lines().next().unwrap_or_default().to_owned();
    ensure!(!folder.is_empty(), "kubelet has no cgroup for pod {uid}");
    Ok(folder)
}

fn limits(bed: &Bed) -> Result<()> {
    bed.apply(&[claim("limited", LIMITED, "256Mi"), Pod::new("writer").mounts("limited").manifest()])?;
    let node = bed.running("writer")?;
    let uid = text(&bed.kubectl.get("pod writer")?, "/metadata/uid").to_owned();
    let number = bed.on(
        &node,
        &format!("lvs --noheadings -o kernel_major,kernel_minor -S lv_name={}", bed.volume("limited")?.lv),
    )?;
    let number = number.split_whitespace().collect::<Vec<_>>().join(":");
    let folder = cgroup(bed, &node, &uid)?;
    let line = format!("{number} rbps=max wbps=max riops=max wiops=40");
    wait::until(&format!("{line} in {folder}/io.max"), RUN, Duration::from_millis(500), || {
        Ok(bed.on(&node, &format!("cat {folder}/io.max"))?.lines().any(|is| is.trim() == line).then_some(()))
    })?;
    bed.delete_pod("writer")
}

fn weights(bed: &Bed) -> Result<()> {
    bed.apply(&[claim("weighty", WEIGHTY, "256Mi"), Pod::new("reader").mounts("weighty").manifest()])?;
    bed.running("reader")?;
    bed.event("weighty", "IoShareNotEnforced", "pod reader do not hold: Uncalibrated")?;
    bed.delete_pod("reader")
}
