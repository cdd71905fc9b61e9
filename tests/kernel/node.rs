//! From a volume to a pod and back: staged, published, measured, and nothing lost on the way.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::time::Duration;

use quarry_proto::csi::v1 as csi;
use quarry_proto::csi::v1::volume_capability::access_mode::Mode;
use tonic::Code;

use crate::pod::{Pod, text};
use crate::scene::{GIB, MIB, Scene, THICK, THIN, block, filesystem, refused, shell};
use quarry_tests::in_vm::lvm;

fn of_type(fs: &str, more: &[(&'static str, &'static str)]) -> Vec<(&'static str, String)> {
    let mut parameters = vec![("csi.storage.k8s.io/fstype", fs.to_owned())];
    parameters.extend(more.iter().map(|(key, value)| (*key, (*value).to_owned())));
    parameters
}

async fn made(scene: &Scene, name: &str, fs: &str, bytes: i64, more: &[(&'static str, &'static str)]) -> Pod {
    let parameters = of_type(fs, more);
    let parameters: Vec<(&str, &str)> = parameters.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let volume = created(scene, filesystem(name, bytes, &parameters)).await;
    Pod::with_filesystem(scene, volume, fs, &[])
}

/// As csi-provisioner does: a volume that is still being made is asked for again.
async fn created(scene: &Scene, request: csi::CreateVolumeRequest) -> csi::Volume {
    for _ in 0..30 {
        match scene.create(request.clone()).await {
            Err(status) if status.code() == Code::Aborted => tokio::time::sleep(Duration::from_secs(1)).await,
            made => return made.unwrap(),
        }
    }
    panic!("the volume is still not made");
}

async fn deleted(scene: &Scene, id: &str) {
    for _ in 0..30 {
        match scene.delete(id).await {
            Err(status) if status.code() == Code::Aborted => tokio::time::sleep(Duration::from_secs(1)).await,
            gone => return gone.unwrap(),
        }
    }
    panic!("the volume is still not deleted");
}

#[tokio::test]
async fn every_filesystem_keeps_its_data_from_pod_to_pod() {
    let scene = Scene::new("life").await;
    for (number, fs) in ["ext4", "xfs", "btrfs"].into_iter().enumerate() {
        for (provisioning, more) in [("thin", THIN), ("thick", THICK)] {
            let pod = made(&scene, &format!("{fs}-{provisioning}"), fs, 400 * MIB, more).await;
            assert_eq!(pod.stage_tag(&scene), "g=new");
            for _ in 0..2 {
                pod.stage(&scene).await.unwrap();
                pod.publish(&scene, "one").await.unwrap();
            }
            assert_eq!(pod.stage_tag(&scene), "g=formatted");
            let (one, two) = (text(&pod.target("one")), text(&pod.target("two")));
            shell(&format!("echo {number} > {one}/data && sync -f {one}/data"));
            assert_eq!(shell(&format!("findmnt -n -o FSTYPE {one}")).trim(), fs);

            // A second pod of the node sees the same; one that may only read cannot write.
            let mut reader = made(&scene, &format!("{fs}-{provisioning}"), fs, 400 * MIB, more).await;
            reader.readonly = true;
            reader.publish(&scene, "two").await.unwrap();
            shell(&format!("grep -qx {number} {two}/data && ! touch {two}/other"));
            refused(pod.publish(&scene, "two").await, Code::AlreadyExists, &[&two, "for reading only"]);

            let usage = pod.stats(&scene, &pod.target("one")).await.unwrap();
            assert!(usage[0].total > 300 * MIB && usage[0].total <= 400 * MIB, "{usage:?}");
            assert!(usage[0].used > 0 && usage[0].available > 0 && usage[0].available < usage[0].total, "{usage:?}");
            assert_eq!(usage.len(), if fs == "btrfs" { 1 } else { 2 }, "{usage:?}");

            refused(scene.delete(&pod.volume.volume_id).await, Code::FailedPrecondition, &[&one]);
            for _ in 0..2 {
                pod.unpublish(&scene, "one").await.unwrap();
                pod.unpublish(&scene, "two").await.unwrap();
            }
            assert!(!pod.target("one").exists() && !pod.target("two").exists());
            for _ in 0..2 {
                pod.unstage(&scene).await.unwrap();
            }
            refused(pod.publish(&scene, "one").await, Code::FailedPrecondition, &["not staged", "nothing is mounted"]);

            pod.start(&scene, "three").await;
            shell(&format!("grep -qx {number} {}/data", text(&pod.target("three"))));
            pod.end(&scene, "three").await;
            deleted(&scene, &pod.volume.volume_id).await;
        }
    }
}

#[tokio::test]
async fn mount_flags_and_mkfs_options_are_passed_on() {
    let scene = Scene::new("flags").await;
    let options = [("mkfsOptions", "-m 7 -O ^has_journal")];
    let volume = created(&scene, filesystem("pvc-1", GIB, &options)).await;
    let mut pod = Pod::with_filesystem(&scene, volume.clone(), "ext4", &["noatime", "nodev"]);
    pod.volume.volume_context.clear();
    refused(pod.stage(&scene).await, Code::InvalidArgument, &["mkfs options", "volume_context"]);
    assert_eq!(pod.stage_tag(&scene), "g=new");
    pod.volume = volume;
    pod.start(&scene, "a").await;
    let found = shell(&format!("findmnt -n -o OPTIONS {}", text(&pod.target("a"))));
    assert!(found.contains("noatime") && found.contains("nodev"), "{found}");
    let superblock = shell(&format!("dumpe2fs -h {} 2>/dev/null", pod.device(&scene)));
    assert!(!superblock.contains("has_journal"), "{superblock}");
    assert!(superblock.lines().any(|line| line.starts_with("Errors behavior:") && line.contains("read-only")));
    let number = |name: &str| -> f64 {
        let line = superblock.lines().find(|line| line.starts_with(name)).unwrap();
        line.split(':').nth(1).unwrap().trim().parse().unwrap()
    };
    let reserved = number("Reserved block count") / number("Block count");
    assert!((0.069..0.071).contains(&reserved), "{reserved}");

    let other = Pod::with_filesystem(&scene, pod.volume.clone(), "ext4", &["noexec"]);
    refused(other.stage(&scene).await, Code::AlreadyExists, &["mounted already", "without noexec"]);
    pod.end(&scene, "a").await;
}

#[tokio::test]
async fn a_cut_off_mkfs_is_finished_by_the_next_stage() {
    let mut scene = Scene::new("cut").await;
    // mkfs is told to write every block four times first, so that there is time to cut it off.
    let slow = [("provisioning", "thick"), ("mkfsOptions", "-c -c")];
    let volume = created(&scene, filesystem("pvc-1", 160 * MIB, &slow)).await;
    let pod = Pod::with_filesystem(&scene, volume, "ext4", &[]);
    let mut node = scene.csi.node.clone();
    let request = pod.stage_request();
    let stage = tokio::spawn(async move { node.node_stage_volume(request).await });
    let running = || shell("pgrep -x badblocks || true");
    for _ in 0..1200 {
        if !running().is_empty() || stage.is_finished() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!stage.is_finished(), "mkfs was not seen running: {:?}", stage.await);
    // A second request meanwhile is told so, and nothing is begun twice.
    refused(pod.stage(&scene).await, Code::Aborted, &["NodeStageVolume"]);
    scene.driver.kill().unwrap();
    assert_eq!(running(), "", "mkfs outlived the driver");
    stage.await.unwrap().unwrap_err();
    assert_eq!(pod.stage_tag(&scene), "g=formatting");

    scene.restart().await;
    pod.start(&scene, "a").await;
    assert_eq!(pod.stage_tag(&scene), "g=formatted");
    shell(&format!("echo kept > {}/data", text(&pod.target("a"))));
    pod.end(&scene, "a").await;
    shell(&format!("e2fsck -fn {}", pod.device(&scene)));
}

#[tokio::test]
async fn a_signature_that_a_cut_off_mkfs_left_is_written_over_and_no_other() {
    let scene = Scene::new("half").await;
    for fs in ["ext4", "xfs", "btrfs"] {
        let pod = made(&scene, fs, fs, 400 * MIB, THICK).await;
        let lv = format!("{}/{fs}", scene.group.name());
        let retag = ["--deltag", "g=new", "--addtag", "g=formatting", &lv];
        lvm("lvchange", &retag).unwrap().success().unwrap();
        let other = if fs == "xfs" { "mkfs.ext4 -q" } else { "mkfs.xfs -q" };
        shell(&format!("{other} {}", pod.device(&scene)));
        let found = if fs == "xfs" { "ext4" } else { "xfs" };
        refused(pod.stage(&scene).await, Code::FailedPrecondition, &[found, "nothing is written"]);
        shell(&format!("wipefs -qa {0} && mkfs.{fs} -q {0}", pod.device(&scene)));
        pod.start(&scene, "a").await;
        pod.end(&scene, "a").await;
    }
}

#[tokio::test]
async fn what_somebody_else_wrote_is_never_formatted() {
    let scene = Scene::new("foreign").await;
    for (name, more) in [("thin", THIN), ("thick", THICK)] {
        let pod = made(&scene, name, "ext4", 400 * MIB, more).await;
        shell(&format!("mkfs.xfs -q {}", pod.device(&scene)));
        let before = shell(&format!("sha256sum {}", pod.device(&scene)));
        refused(pod.stage(&scene).await, Code::FailedPrecondition, &["holds xfs", "node-1/", "nothing is written"]);
        assert_eq!(shell(&format!("sha256sum {}", pod.device(&scene))), before);
        assert_eq!(pod.stage_tag(&scene), "g=new");
    }
    // Bytes without a signature: proof enough that a thin volume is not new; on a thick one they may be anybody's.
    for (name, more, accepted) in [("thin-2", THIN, false), ("thick-2", THICK, true)] {
        let pod = made(&scene, name, "ext4", 400 * MIB, more).await;
        shell(&format!("printf data | dd of={} bs=1 seek=5000 conv=notrunc status=none", pod.device(&scene)));
        let staged = pod.stage(&scene).await;
        if accepted {
            staged.unwrap();
            pod.unstage(&scene).await.unwrap();
        } else {
            refused(staged, Code::FailedPrecondition, &["byte 5000", "somebody wrote"]);
        }
    }
    // And one that was formatted, and whose filesystem is gone or another now.
    let pod = made(&scene, "replaced", "ext4", 400 * MIB, THICK).await;
    pod.stage(&scene).await.unwrap();
    pod.unstage(&scene).await.unwrap();
    shell(&format!("wipefs -qa {}", pod.device(&scene)));
    refused(pod.stage(&scene).await, Code::FailedPrecondition, &["formatted as ext4", "holds nothing"]);
    shell(&format!("mkfs.xfs -q {}", pod.device(&scene)));
    refused(pod.stage(&scene).await, Code::FailedPrecondition, &["formatted as ext4", "holds xfs"]);
}

#[tokio::test]
async fn an_existing_ext4_is_checked_before_it_is_mounted() {
    let scene = Scene::new("fsck").await;
    // Without checksums the superblock can be damaged here byte by byte.
    let options = [("mkfsOptions", "-b 4096 -O ^metadata_csum,^64bit,^has_journal")];
    let volume = created(&scene, filesystem("pvc-1", GIB, &options)).await;
    let pod = Pod::with_filesystem(&scene, volume, "ext4", &[]);
    pod.stage(&scene).await.unwrap();
    pod.unstage(&scene).await.unwrap();
    let device = pod.device(&scene);
    let poke = |bytes: &str, at: u64| {
        shell(&format!("printf '{bytes}' | dd of={device} bs=1 seek={at} conv=notrunc status=none && sync {device}"));
    };
    // In the superblock at 1024: the count of free blocks at 12, the state at 58 with 2 for "errors were met".
    poke("\\001\\000\\000\\000", 1024 + 12);
    poke("\\002\\000", 1024 + 58);
    pod.stage(&scene).await.unwrap();
    assert!(scene.driver.log().contains("e2fsck corrected a filesystem"));
    pod.unstage(&scene).await.unwrap();
    shell(&format!("e2fsck -fn {device}"));

    // The root directory's inode without its mode cannot be repaired without guessing.
    let table =
        shell(&format!("dumpe2fs {device} 2>/dev/null | grep -m1 'Inode table at' | grep -o '[0-9]*' | head -1"));
    poke("\\000\\000", table.trim().parse::<u64>().unwrap() * 4096 + 256);
    poke("\\002\\000", 1024 + 58);
    refused(pod.stage(&scene).await, Code::Internal, &["damaged beyond safe repair", "e2fsck -f"]);
    assert_eq!(shell(&format!("findmnt -n {} || true", text(&pod.staging()))), "");
}

#[tokio::test]
async fn a_raw_block_volume_is_a_device_in_its_pod() {
    let scene = Scene::new("raw").await;
    let volume = created(&scene, block("pvc-1", 64 * MIB, THIN)).await;
    let mut pod = Pod::with_block(&scene, volume.clone());
    pod.set_mode(Mode::SingleNodeSingleWriter);
    for _ in 0..2 {
        pod.start(&scene, "a").await;
    }
    let target = pod.target("a");
    let metadata = std::fs::metadata(&target).unwrap();
    assert!(metadata.file_type().is_block_device());
    assert_eq!(metadata.rdev(), std::fs::metadata(pod.device(&scene)).unwrap().rdev());
    shell(&format!("printf raw | dd of={} conv=notrunc,fsync status=none", text(&target)));
    let usage = pod.stats(&scene, &target).await.unwrap();
    assert_eq!((usage.len(), usage[0].total), (1, 64 * MIB));

    refused(pod.publish(&scene, "b").await, Code::FailedPrecondition, &[&text(&target), "ReadWriteOncePod"]);
    assert!(!pod.target("b").exists());
    // Nobody has the device open at this moment, and yet a pod has it.
    refused(scene.delete(&volume.volume_id).await, Code::FailedPrecondition, &[&text(&target)]);
    pod.readonly = true;
    refused(pod.publish(&scene, "a").await, Code::InvalidArgument, &["readonly", "cannot be limited to reading"]);

    // While a process has it open (kubelet's loop device does) it cannot be taken away; then it can.
    let holder = shell(&format!("losetup -f --show {}", text(&target)));
    pod.readonly = false;
    pod.unpublish(&scene, "a").await.unwrap_err();
    shell(&format!("losetup -d {holder}"));
    pod.end(&scene, "a").await;
    assert!(!target.exists());
    pod.start(&scene, "b").await;
    shell(&format!("head -c 3 {} | grep -qx raw", text(&pod.target("b"))));
    pod.end(&scene, "b").await;
    deleted(&scene, &volume.volume_id).await;
}

#[tokio::test]
async fn one_pod_at_a_time_where_the_access_mode_says_so() {
    let scene = Scene::new("rwop").await;
    let mut pod = made(&scene, "pvc-1", "ext4", GIB, THIN).await;
    pod.set_mode(Mode::SingleNodeSingleWriter);
    pod.start(&scene, "a").await;
    refused(pod.publish(&scene, "b").await, Code::FailedPrecondition, &[&text(&pod.target("a"))]);
    pod.unpublish(&scene, "a").await.unwrap();
    pod.publish(&scene, "b").await.unwrap();
    pod.end(&scene, "b").await;
    pod.set_mode(Mode::SingleNodeReaderOnly);
    pod.start(&scene, "c").await;
    shell(&format!("! touch {}/x", text(&pod.target("c"))));
    pod.end(&scene, "c").await;
}

#[tokio::test]
async fn a_volume_is_used_as_what_it_is() {
    let scene = Scene::new("kind").await;
    let raw = created(&scene, block("raw", 64 * MIB, THIN)).await;
    let as_mount = Pod::with_filesystem(&scene, raw, "", &[]);
    refused(as_mount.stage(&scene).await, Code::InvalidArgument, &["raw block device", "ext4 filesystem"]);
    refused(as_mount.publish(&scene, "a").await, Code::InvalidArgument, &["raw block device"]);
    let pod = made(&scene, "fs", "xfs", 400 * MIB, THIN).await;
    let as_block = Pod::with_block(&scene, pod.volume.clone());
    refused(as_block.stage(&scene).await, Code::InvalidArgument, &["xfs filesystem", "raw block device"]);
    let as_ext4 = Pod::with_filesystem(&scene, pod.volume.clone(), "ext4", &[]);
    refused(as_ext4.stage(&scene).await, Code::InvalidArgument, &["xfs filesystem", "ext4 filesystem"]);
    let of_no_name = Pod::with_filesystem(&scene, pod.volume.clone(), "", &[]);
    of_no_name.start(&scene, "a").await;
    of_no_name.end(&scene, "a").await;
}

#[tokio::test]
async fn paths_that_are_taken_are_named_and_left_alone() {
    let scene = Scene::new("paths").await;
    let pod = made(&scene, "pvc-1", "ext4", GIB, THIN).await;
    let (staging, target) = (text(&pod.staging()), text(&pod.target("a")));
    shell(&format!("rmdir {staging} && echo precious > {staging}"));
    refused(pod.stage(&scene).await, Code::InvalidArgument, &[&staging, "is a file; it must be a directory"]);
    shell(&format!("grep -qx precious {staging} && rm {staging} && mkdir {staging} && mount -t tmpfs other {staging}"));
    refused(pod.stage(&scene).await, Code::FailedPrecondition, &[&staging, "tmpfs of other"]);
    refused(pod.unstage(&scene).await, Code::FailedPrecondition, &[&staging, "tmpfs of other"]);
    assert_eq!(pod.stage_tag(&scene), "g=new", "formatted for a path that could not be mounted");
    shell(&format!("umount {staging}"));
    pod.stage(&scene).await.unwrap();

    shell(&format!("mkdir -p {target} && mount -t tmpfs other {target} && echo precious > {target}/data"));
    refused(pod.publish(&scene, "a").await, Code::FailedPrecondition, &[&target, "tmpfs of other"]);
    refused(pod.unpublish(&scene, "a").await, Code::FailedPrecondition, &[&target, "tmpfs of other"]);
    refused(pod.stats(&scene, &pod.target("a")).await, Code::NotFound, &[&target, "tmpfs"]);
    shell(&format!("grep -qx precious {target}/data && umount {target} && echo beneath > {target}/data"));
    refused(pod.stats(&scene, &pod.target("a")).await, Code::NotFound, &[&target, "nothing is mounted"]);
    refused(pod.unpublish(&scene, "a").await, Code::FailedPrecondition, &[&target, "holds data"]);
    shell(&format!("grep -qx beneath {target}/data && rm {target}/data && rmdir {target} && echo file > {target}"));
    refused(pod.publish(&scene, "a").await, Code::InvalidArgument, &[&target, "is a file"]);
    shell(&format!("rm {target}"));
    pod.publish(&scene, "a").await.unwrap();
    pod.end(&scene, "a").await;
}

#[tokio::test]
async fn bad_requests_are_refused_with_the_field_that_is_wrong() {
    let scene = Scene::new("bad").await;
    let pod = made(&scene, "pvc-1", "ext4", GIB, THIN).await;
    let mut node = scene.csi.node.clone();
    for (id, code, part) in [
        ("", Code::InvalidArgument, "volume_id"),
        ("fake-vol-id-0123456789", Code::NotFound, "fake-vol-id"),
        ("node-2/pvc-1", Code::FailedPrecondition, "node-2"),
        ("node-1/pvc-2", Code::NotFound, "node-1/pvc-2"),
    ] {
        let request = csi::NodeStageVolumeRequest { volume_id: id.to_owned(), ..pod.stage_request() };
        refused(node.node_stage_volume(request).await, code, &[part]);
        let request = csi::NodePublishVolumeRequest { volume_id: id.to_owned(), ..pod.publish_request("a") };
        refused(node.node_publish_volume(request).await, code, &[part]);
        let request = csi::NodeGetVolumeStatsRequest {
            volume_id: id.to_owned(),
            volume_path: text(&pod.target("a")),
            ..Default::default()
        };
        refused(node.node_get_volume_stats(request).await, code, &["volume"]);
        let request = csi::NodeUnpublishVolumeRequest { volume_id: id.to_owned(), target_path: text(&pod.target("a")) };
        let unpublished = node.node_unpublish_volume(request).await;
        // A volume that is gone is published nowhere.
        if id == "node-1/pvc-2" { drop(unpublished.unwrap()) } else { refused(unpublished, code, &[part]) }
    }
    let request = csi::NodeStageVolumeRequest { staging_target_path: String::new(), ..pod.stage_request() };
    refused(node.node_stage_volume(request).await, Code::InvalidArgument, &["staging_target_path is empty"]);
    let request = csi::NodeStageVolumeRequest { staging_target_path: "a/b".to_owned(), ..pod.stage_request() };
    refused(node.node_stage_volume(request).await, Code::InvalidArgument, &["staging_target_path", "a/b", "absolute"]);
    let request = csi::NodeStageVolumeRequest { volume_capability: None, ..pod.stage_request() };
    refused(node.node_stage_volume(request).await, Code::InvalidArgument, &["volume_capability"]);
    let request = csi::NodePublishVolumeRequest { target_path: String::new(), ..pod.publish_request("a") };
    refused(node.node_publish_volume(request).await, Code::InvalidArgument, &["target_path is empty"]);
    let request = csi::NodePublishVolumeRequest { staging_target_path: String::new(), ..pod.publish_request("a") };
    refused(node.node_publish_volume(request).await, Code::FailedPrecondition, &["staging_target_path is empty"]);
    let zfs = Pod::with_filesystem(&scene, pod.volume.clone(), "zfs", &[]);
    refused(zfs.stage(&scene).await, Code::InvalidArgument, &["zfs", "ext4"]);
    let mut many = made(&scene, "pvc-1", "ext4", GIB, THIN).await;
    many.set_mode(Mode::MultiNodeMultiWriter);
    refused(many.stage(&scene).await, Code::InvalidArgument, &["MULTI_NODE_MULTI_WRITER"]);
    refused(pod.publish(&scene, "a").await, Code::FailedPrecondition, &["not staged"]);
}

#[tokio::test]
async fn a_restarted_driver_and_a_device_that_is_gone_after_a_reboot_are_no_matter() {
    let mut scene = Scene::new("again").await;
    let pod = made(&scene, "pvc-1", "ext4", GIB, THIN).await;
    pod.stage(&scene).await.unwrap();
    scene.driver.kill().unwrap();
    scene.restart().await;
    pod.publish(&scene, "a").await.unwrap();
    shell(&format!("echo kept > {}/data", text(&pod.target("a"))));
    scene.driver.kill().unwrap();
    scene.restart().await;
    pod.end(&scene, "a").await;
    // As after a reboot: nothing is live.
    scene.driver.stop().unwrap();
    lvm("vgchange", &["-an", scene.group.name()]).unwrap().success().unwrap();
    assert!(!std::path::Path::new(&pod.device(&scene)).exists());
    scene.restart().await;
    pod.start(&scene, "b").await;
    shell(&format!("grep -qx kept {}/data", text(&pod.target("b"))));
    pod.end(&scene, "b").await;
}

#[tokio::test]
async fn no_new_pod_begins_on_a_filesystem_that_met_an_error() {
    let scene = Scene::new("error").await;
    let pod = made(&scene, "pvc-1", "ext4", GIB, THIN).await;
    pod.start(&scene, "a").await;
    shell(&format!("echo kept > {0}/data && sync -f {0}/data", text(&pod.target("a"))));
    // ext4's own way to try it: an abort, as after an error of the disk.
    shell(&format!("mount -o remount,abort {}", text(&pod.staging())));
    shell(&format!("! touch {}/more 2>/dev/null", text(&pod.target("a"))));
    refused(pod.publish(&scene, "b").await, Code::FailedPrecondition, &["read-only after an error", "end the pods"]);
    pod.publish(&scene, "a").await.unwrap();
    pod.end(&scene, "a").await;
    pod.start(&scene, "b").await;
    shell(&format!("grep -qx kept {0}/data && touch {0}/more", text(&pod.target("b"))));
    pod.end(&scene, "b").await;
}

#[tokio::test]
async fn the_node_says_who_it_is_and_what_it_can_do() {
    let scene = Scene::new("info").await;
    let mut node = scene.csi.node.clone();
    let info = node.node_get_info(csi::NodeGetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.node_id.as_str(), info.max_volumes_per_node), ("node-1", 0));
    assert_eq!(info.accessible_topology.unwrap().segments["topology.lvm.quarry.storage/node"], "node-1");
    let capabilities = node.node_get_capabilities(csi::NodeGetCapabilitiesRequest {}).await.unwrap().into_inner();
    let numbers: Vec<i32> = capabilities
        .capabilities
        .iter()
        .map(|capability| match capability.r#type {
            Some(csi::node_service_capability::Type::Rpc(rpc)) => rpc.r#type,
            None => panic!("{capability:?}"),
        })
        .collect();
    assert_eq!(numbers, [1, 2, 5]);
    let expand = node.node_expand_volume(csi::NodeExpandVolumeRequest::default()).await;
    refused(expand, Code::Unimplemented, &[]);
}
