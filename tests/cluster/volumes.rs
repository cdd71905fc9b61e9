//! Claims of every kind become volumes that pods use.

use anyhow::{Result, ensure};
use quarry_tests::cluster::bed::{Bed, RUN, scenario};
use quarry_tests::cluster::kubectl::text;
use quarry_tests::cluster::objects::{Pod, block_claim, claim, class};
use serde_json::json;

use crate::NODES;

const GIB: u64 = 1 << 30;

#[test]
fn a_claim_waits_for_its_pod_and_becomes_a_thin_volume() {
    scenario("thin", |bed| {
        bed.apply(&[claim("data", "quarry-thin", "1Gi")])?;
        bed.event("data", "WaitForFirstConsumer", "waiting for first consumer")?;
        ensure!(text(&bed.kubectl.get("pvc data")?, "/status/phase") == "Pending", "bound without a pod");

        bed.apply(&[Pod::new("writer").mounts("data").manifest()])?;
        let node = bed.running("writer")?;
        let volume = bed.volume("data")?;
        ensure!(volume.node == node, "the pod runs on {node}, its volume is {volume:?}");
        let lv = bed.lv(&volume)?;
        ensure!(lv.size == GIB && lv.layout.contains("thin"), "{lv:?}");
        ensure!(lv.tags.split(',').any(|tag| tag == "quarry"), "{lv:?}");

        let pv = bed.kubectl.get(&format!("pv {}", volume.name))?;
        let term = &pv["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0];
        ensure!(term["key"] == "topology.lvm.quarry.storage/node" && term["values"] == json!([node]), "{term}");

        let filesystem = bed.within("writer", "grep ' /data ' /proc/mounts | cut -d' ' -f3")?;
        ensure!(filesystem == "ext4", "{filesystem}");
        bed.within("writer", "echo kept > /data/file; sync")?;
        ensure!(bed.within("writer", "cat /data/file")? == "kept");
        Ok(())
    });
}

#[test]
fn two_claims_become_volumes_on_two_nodes() {
    scenario("two-nodes", |bed| {
        bed.apply(&[claim("first", "quarry-thin", "1Gi"), claim("second", "quarry-thin", "1Gi")])?;
        bed.apply(&[Pod::new("a").mounts("first").manifest()])?;
        bed.running("a")?;
        bed.apply(&[Pod::new("b").mounts("second").apart_from("a").manifest()])?;
        bed.running("b")?;
        let (first, second) = (bed.volume("first")?, bed.volume("second")?);
        ensure!(first.node != second.node, "{first:?} {second:?}");
        bed.lv(&first)?;
        bed.lv(&second)?;
        Ok(())
    });
}

#[test]
fn a_thick_claim_takes_its_room_at_once() {
    scenario("thick", |bed| {
        bed.apply(&[claim("data", "quarry-thick", "256Mi"), Pod::new("writer").mounts("data").manifest()])?;
        bed.running("writer")?;
        let lv = bed.lv(&bed.volume("data")?)?;
        ensure!(lv.layout == "linear" && lv.size == 256 << 20, "{lv:?}");
        bed.within("writer", "dd if=/dev/zero of=/data/file bs=1M count=32 2>&1; sync")?;
        Ok(())
    });
}

#[test]
fn a_block_claim_is_a_device_in_the_pod() {
    scenario("block", |bed| {
        bed.apply(&[block_claim("thin", "quarry-thin", "128Mi"), block_claim("thick", "quarry-thick", "128Mi")])?;
        let pod = || Pod::new("writer").device("thin").device("thick").manifest();
        bed.apply(&[pod()])?;
        bed.running("writer")?;
        for device in ["thin", "thick"] {
            // Nothing of an earlier tenant: every byte is zero.
            let zeros = bed.within("writer", &format!("tr -d '\\000' < /dev/{device} | wc -c"))?;
            ensure!(zeros == "0", "{device}: {zeros} bytes are not zero");
            let script = format!(
                "[ -b /dev/{device} ]; printf 'written to {device}' | dd of=/dev/{device} bs=4096 seek=5 conv=fsync,notrunc 2>&1"
            );
            bed.within("writer", &script)?;
        }
        bed.delete_pod("writer")?;
        bed.apply(&[pod()])?;
        bed.running("writer")?;
        for device in ["thin", "thick"] {
            let read = bed
                .within("writer", &format!("dd if=/dev/{device} bs=4096 skip=5 count=1 2>/dev/null | tr -d '\\000'"))?;
            ensure!(read == format!("written to {device}"), "{device}: {read:?}");
        }
        Ok(())
    });
}

#[test]
fn xfs_and_btrfs_are_made_where_a_class_asks_for_them() {
    scenario("filesystems", |bed| {
        let classes = ["xfs", "btrfs"].map(|filesystem| class(&format!("test-{filesystem}"), filesystem));
        bed.apply(&classes)?;
        let outcome = filesystems(bed);
        bed.kubectl.run("delete storageclass test-xfs test-btrfs")?;
        outcome
    });
}

fn filesystems(bed: &Bed) -> Result<()> {
    // Beyond the smallest size of both.
    let claims = ["xfs", "btrfs"].map(|filesystem| claim(filesystem, &format!("test-{filesystem}"), "320Mi"));
    bed.apply(&claims)?;
    let pod = || Pod::new("writer").mounts("xfs").mounts("btrfs").manifest();
    bed.apply(&[pod()])?;
    bed.running("writer")?;
    for filesystem in ["xfs", "btrfs"] {
        let found = bed.within("writer", &format!("grep ' /{filesystem} ' /proc/mounts | cut -d' ' -f3"))?;
        ensure!(found == filesystem, "{found}");
        bed.within("writer", &format!("echo {filesystem} > /{filesystem}/file; sync"))?;
    }
    bed.delete_pod("writer")?;
    bed.apply(&[pod()])?;
    bed.running("writer")?;
    for filesystem in ["xfs", "btrfs"] {
        ensure!(bed.within("writer", &format!("cat /{filesystem}/file"))? == filesystem);
    }
    Ok(())
}

#[test]
fn a_restarted_pod_finds_its_data_and_its_group_owns_it() {
    scenario("restart", |bed| {
        bed.apply(&[claim("data", "quarry-thin", "1Gi")])?;
        let pod = || Pod::new("writer").mounts("data").run_as(1000, 2000).manifest();
        bed.apply(&[pod()])?;
        let node = bed.running("writer")?;
        ensure!(bed.within("writer", "stat -c %g /data")? == "2000", "fsGroup does not own the volume");
        bed.within("writer", "dd if=/dev/urandom of=/data/file bs=1M count=8 2>/dev/null; sync")?;
        let before = bed.within("writer", "sha256sum /data/file; stat -c '%u %g' /data/file")?;
        ensure!(before.ends_with("1000 2000"), "{before}");
        bed.delete_pod("writer")?;
        let mounts = bed.on(&node, "grep -c lvm.quarry.storage /proc/self/mountinfo || true")?;
        ensure!(mounts.trim() == "0", "{} mounts are left on {node} after the only pod was deleted", mounts.trim());
        bed.apply(&[pod()])?;
        bed.running("writer")?;
        ensure!(bed.within("writer", "sha256sum /data/file; stat -c '%u %g' /data/file")? == before);
        Ok(())
    });
}

#[test]
fn a_claim_for_one_pod_refuses_the_second() {
    scenario("one-pod", |bed| {
        let mut data = claim("data", "quarry-thin", "1Gi");
        data["spec"]["accessModes"] = json!(["ReadWriteOncePod"]);
        bed.apply(&[data, Pod::new("first").mounts("data").manifest()])?;
        bed.running("first")?;
        bed.apply(&[Pod::new("second").mounts("data").manifest()])?;
        bed.event("second", "FailedScheduling", "ReadWriteOncePod")?;
        bed.delete_pod("first")?;
        bed.running("second")?;
        Ok(())
    });
}

#[test]
fn a_deleted_claim_takes_its_logical_volume_with_it() {
    scenario("deleted", |bed| {
        bed.apply(&[claim("data", "quarry-thin", "1Gi"), Pod::new("writer").mounts("data").on(NODES[1]).manifest()])?;
        bed.running("writer")?;
        let volume = bed.volume("data")?;
        bed.lv(&volume)?;
        // In use: Kubernetes holds the claim until the pod is gone.
        bed.kubectl.run("delete pvc data --wait=false")?;
        bed.within("writer", "echo still here > /data/file; sync")?;
        bed.lv(&volume)?;
        bed.delete_pod("writer")?;
        bed.kubectl.wait_gone(&format!("pv {}", volume.name), RUN)?;
        let left = bed.lvs(&volume.node)?.into_iter().any(|lv| lv.name == volume.lv);
        ensure!(!left, "{} is still on {}", volume.lv, volume.node);
        Ok(())
    });
}
