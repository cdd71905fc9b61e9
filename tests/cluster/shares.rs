//! Limits and weights in the cgroups that a real kubelet makes.

use std::time::Duration;

use anyhow::{Result, ensure};
use quarry_tests::cluster::bed::{Bed, RUN, scenario};
use quarry_tests::cluster::kubectl::text;
use quarry_tests::cluster::objects::{Pod, claim, class};
use quarry_tests::wait;

const LIMITED: &str = "test-limited";
const WEIGHTY: &str = "test-weighty";

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

fn limits(bed: &Bed) -> Result<()> {
    bed.apply(&[claim("limited", LIMITED, "256Mi"), Pod::new("writer").mounts("limited").manifest()])?;
    let node = bed.running("writer")?;
    let uid = text(&bed.kubectl.get("pod writer")?, "/metadata/uid").to_owned();
    let number = bed.on(
        &node,
        &format!("lvs --noheadings -o kernel_major,kernel_minor -S lv_name={}", bed.volume("limited")?.lv),
    )?;
    let number = number.split_whitespace().collect::<Vec<_>>().join(":");
    // Whatever the class and the driver: the one folder with the pod's UID that kubelet made.
    let folder = bed.on(
        &node,
        &format!(
            "find /sys/fs/cgroup -type d -name '*pod{uid}*' -o -type d -name '*pod{}.slice'",
            uid.replace('-', "_")
        ),
    )?;
    let folder = folder.lines().next().unwrap_or_default().to_owned();
    ensure!(!folder.is_empty(), "kubelet has no cgroup for pod {uid}");
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
