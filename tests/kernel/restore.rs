//! A volume group whose metadata was destroyed is restored from the driver's own copies, with the very commands of
//! `docs/reliability.md`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::Code;

use crate::pod::{Pod, text};
use crate::scene::{MIB, Scene, THICK, THIN, block, filesystem, refused, shell};
use quarry_tests::in_vm::lvm;

const MANUAL: &str = include_str!("../../docs/reliability.md");

/// The commands of the manual's section, less the block with the settings, which a test makes itself.
fn commands() -> String {
    let section =
        MANUAL.split("\n## ").find(|section| section.starts_with("Restoring a volume group's metadata")).unwrap();
    let mut blocks = section.split("\n```sh\n").skip(1).map(|rest| rest.split("\n```").next().unwrap());
    let settings = blocks.next().unwrap();
    assert!(["vg=", "disk=", "pv=", "pool=", "copy="].iter().all(|name| settings.contains(name)), "{settings}");
    blocks.collect::<Vec<_>>().join("\n")
}

/// Does what the manual says, as an admin's shell would: bash, and the machine's LVM, which has no udevd here.
/// `otherwise` is what follows where the last command, the activation, fails.
fn restore(scene: &Scene, copy: &Path, otherwise: &str) -> String {
    shell(
        "mkdir -p /run/admin && printf 'activation { udev_sync=0 udev_rules=0 monitoring=0 }\\n\
         devices { use_devicesfile=0 }\\n' > /run/admin/lvm.conf",
    );
    let (vg, disk, copy) = (scene.group.name(), scene.group.disks()[0].display(), copy.display());
    let script = format!(
        "set -eux\nexport LVM_SYSTEM_DIR=/run/admin\nvg={vg} disk={disk} pv=pv0 pool=quarry-pool copy={copy}\n{} || {{ {otherwise}; }}\n",
        commands()
    );
    std::fs::write("/run/admin/restore", script).unwrap();
    shell("bash /run/admin/restore 2>&1 || { echo FAILED; cat /run/admin/restore; exit 1; }")
}

/// The copies that the driver keeps, the newest last.
fn copies(scene: &Scene) -> Vec<PathBuf> {
    let folder = scene.driver.state_dir().join("lvm-backup").join(scene.group.name());
    let names = std::fs::read_dir(folder).map(|entries| entries.map(|entry| entry.unwrap().path()).collect());
    let mut names: Vec<PathBuf> = names.unwrap_or_default();
    names.retain(|name| name.extension().is_some_and(|ending| ending == "vg"));
    names.sort();
    names
}

/// Waits until the newest copy is of the group's last change.
async fn newest_copy(scene: &Scene) -> PathBuf {
    let seqno: u64 = scene.group.vgs("vg_seqno").unwrap()["vg_seqno"].parse().unwrap();
    for _ in 0..300 {
        if let Some(newest) = copies(scene).pop().filter(|name| text(name).ends_with(&format!("-{seqno:010}.vg"))) {
            return newest;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("no copy of change {seqno}: {:?}", copies(scene));
}

/// Overwrites everything before the first extent: label, header and all of LVM's texts.
fn destroy(scene: &Scene) {
    let (vg, disk) = (scene.group.name(), scene.group.disks()[0].display().to_string());
    let fields = ["-o", "pe_start", "--noheadings", "--nosuffix", "--units", "b", &disk];
    let start = lvm("pvs", &fields).unwrap().success().unwrap().stdout_text();
    let bytes: u64 = start.trim().parse().unwrap();
    lvm("vgchange", &["-an", vg]).unwrap().success().unwrap();
    // As the manual demands.
    shell(&format!("! dmsetup ls | grep '^{vg}-'"));
    shell(&format!("blkdiscard --zeroout --length {bytes} {disk} && ! blkid -p {disk} && ! lvm pvs {disk}"));
}

/// Waits until the driver has the group back and these volumes are in order.
async fn taken_up(scene: &Scene, names: &[&str]) {
    let mut list = serde_json::Value::Null;
    for _ in 0..60 {
        list = scene.driver.volumes().unwrap();
        let ready = |name: &&str| {
            let mut entries = list["volumes"].as_array().unwrap().iter();
            entries.any(|volume| volume["name"] == **name && volume["state"] == "ready")
        };
        if names.iter().all(ready) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    panic!("the driver does not see the restored group: {list:#}");
}

#[tokio::test]
async fn a_destroyed_group_comes_back_from_the_newest_copy_with_all_data() {
    let mut scene = Scene::new("restore").await;
    let vg = scene.group.name().to_owned();
    let mut pods = Vec::new();
    for (name, parameters) in [("thin", THIN), ("thick", THICK)] {
        let volume = scene.create(filesystem(name, 64 * MIB, parameters)).await.unwrap();
        let pod = Pod::with_filesystem(&scene, volume, "ext4", &[]);
        pod.start(&scene, "before").await;
        let at = text(&pod.target("before"));
        shell(&format!("seq 100000 > {at}/data && sync -f {at}/data && echo $(cksum < {at}/data) > /run/{vg}-{name}"));
        pod.end(&scene, "before").await;
        pods.push((name, pod));
    }
    scene.create(block("block", 16 * MIB, THICK)).await.unwrap();
    shell(&format!(
        "dd if=/dev/urandom of=/dev/{vg}/block bs=1M count=16 oflag=direct status=none && cksum < /dev/{vg}/block > /run/{vg}-block"
    ));
    let before = scene.group.lvs("lv_name,lv_uuid,lv_tags,seg_pe_ranges").unwrap();
    let capacity = scene.capacity(THICK).await;
    let copy = newest_copy(&scene).await;

    destroy(&scene);
    refused(scene.delete("node-1/thin").await, Code::Unavailable, &[]);
    scene.driver.stop().unwrap();
    restore(&scene, &copy, "false");
    scene.restart().await;
    taken_up(&scene, &["thin", "thick", "block"]).await;

    assert_eq!(scene.group.lvs("lv_name,lv_uuid,lv_tags,seg_pe_ranges").unwrap(), before);
    assert_eq!(scene.capacity(THICK).await, capacity, "the metadata area is as large as it was");
    for (name, pod) in &pods {
        pod.start(&scene, "after").await;
        let at = text(&pod.target("after"));
        shell(&format!("test \"$(cksum < {at}/data)\" = \"$(cat /run/{vg}-{name})\""));
        pod.end(&scene, "after").await;
    }
    shell(&format!("cksum < /dev/{vg}/block | cmp - /run/{vg}-block"));
    scene.create(filesystem("new-thin", 64 * MIB, THIN)).await.unwrap();
    scene.create(filesystem("new-thick", 64 * MIB, THICK)).await.unwrap();
    for name in ["thin", "thick", "block"] {
        scene.delete(&format!("node-1/{name}")).await.unwrap();
    }
    assert_eq!(scene.volumes(), ["new-thick", "new-thin"]);
}

#[tokio::test]
async fn an_older_copy_serves_too_less_what_was_made_since() {
    let mut scene = Scene::new("older").await;
    let vg = scene.group.name().to_owned();
    for name in ["stays", "goes"] {
        scene.create(block(name, 16 * MIB, THIN)).await.unwrap();
    }
    shell(&format!(
        "dd if=/dev/urandom of=/dev/{vg}/stays bs=1M count=16 oflag=direct status=none && cksum < /dev/{vg}/stays > /run/{vg}-stays"
    ));
    let copy = newest_copy(&scene).await;
    // The thin pool goes on: it knows a volume that the copy lacks, and lacks one that the copy has.
    scene.create(block("later", 16 * MIB, THIN)).await.unwrap();
    scene.delete("node-1/goes").await.unwrap();
    scene.driver.stop().unwrap();
    destroy(&scene);
    let log = restore(&scene, &copy, "lvremove --yes $vg/goes");
    scene.restart().await;
    assert!(log.contains("delete "), "nothing was to be removed from the pool: {log}");
    taken_up(&scene, &["stays"]).await;
    shell(&format!("cksum < /dev/{vg}/stays | cmp - /run/{vg}-stays"));
    // What was made since is lost, and said to be, until somebody accepts it.
    refused(scene.create(block("later", 16 * MIB, THIN)).await, Code::FailedPrecondition, &["later", "vanished"]);
    scene.driver.ask(&["forget", "later"]).unwrap();
    for name in ["new-1", "new-2", "later"] {
        scene.create(block(name, 16 * MIB, THIN)).await.unwrap();
        shell(&format!("dd if=/dev/zero of=/dev/{vg}/{name} bs=1M count=16 oflag=direct status=none"));
    }
    shell(&format!("cksum < /dev/{vg}/stays | cmp - /run/{vg}-stays"));
    scene.delete("node-1/stays").await.unwrap();
}

#[tokio::test]
async fn the_last_change_is_copied_at_the_drivers_end_and_an_unchanged_text_not_twice() {
    let mut scene = Scene::new("copies").await;
    for name in ["pvc-1", "pvc-2", "pvc-3"] {
        scene.create(filesystem(name, 64 * MIB, THICK)).await.unwrap();
    }
    scene.driver.stop().unwrap();
    let seqno: u64 = scene.group.vgs("vg_seqno").unwrap()["vg_seqno"].parse().unwrap();
    let before = copies(&scene);
    assert!(text(before.last().unwrap()).ends_with(&format!("-{seqno:010}.vg")), "change {seqno}: {before:?}");
    scene.restart().await;
    scene.driver.stop().unwrap();
    assert_eq!(copies(&scene), before);
}
