//! Volumes are made, found, listed and deleted; what cannot be is refused and changes nothing.

use quarry_proto::csi::v1 as csi;
use tonic::Code;

use crate::scene::{GIB, MIB, Scene, THICK, THIN, block, filesystem, group_with, refused, shell, spec};
use quarry_tests::in_vm::{DriverUnderTest, VgOptions, VolumeGroup, lvm};

#[tokio::test]
async fn a_thin_volume_is_made_in_a_pool_that_the_driver_makes() {
    let scene = Scene::new("thin").await;
    let before = scene.capacity(THIN).await;
    let volume = scene.create(filesystem("pvc-1", GIB, THIN)).await.unwrap();
    assert_eq!((volume.volume_id.as_str(), volume.capacity_bytes), ("node-1/pvc-1", GIB));
    let topology = &volume.accessible_topology[0].segments;
    assert_eq!(topology["topology.lvm.quarry.storage/node"], "node-1");

    let rows = scene.group.lvs("lv_name,lv_size,pool_lv,lv_tags,lv_when_full,zero").unwrap();
    let row = rows.iter().find(|row| row["lv_name"] == "pvc-1").unwrap();
    assert_eq!((row["lv_size"].as_str(), row["pool_lv"].as_str()), ("1073741824", "quarry-pool"));
    assert_eq!(row["lv_tags"], "c=default,f=ext4,g=new,quarry");
    let pool = rows.iter().find(|row| row["lv_name"] == "quarry-pool").unwrap();
    assert_eq!((pool["lv_when_full"].as_str(), pool["zero"].as_str()), ("error", "zero"));
    assert_eq!(pool["lv_size"].parse::<i64>().unwrap(), before, "the capacity before the pool existed was the pool's");
    assert_eq!(scene.capacity(THIN).await, before - GIB);

    assert_eq!(scene.list().await.len(), 1);
    scene.delete(&volume.volume_id).await.unwrap();
    assert_eq!(scene.volumes(), Vec::<String>::new());
    assert_eq!((scene.capacity(THIN).await, scene.list().await.len()), (before, 0));
    scene.delete(&volume.volume_id).await.unwrap();
}

#[tokio::test]
async fn one_lvm_process_makes_a_volume_and_one_deletes_it() {
    let scene = Scene::new("count").await;
    scene.create(filesystem("first", GIB, THIN)).await.unwrap();
    let start = scene.lvm_processes().len();
    scene.create(filesystem("thin", GIB, THIN)).await.unwrap();
    scene.create(filesystem("thick", 64 * MIB, THICK)).await.unwrap();
    scene.capacity(THIN).await;
    scene.list().await;
    scene.create(filesystem("thin", GIB, THIN)).await.unwrap();
    scene.delete("node-1/thin").await.unwrap();
    scene.delete("node-1/thick").await.unwrap();
    assert_eq!(scene.lvm_processes()[start..], ["lvcreate", "lvcreate", "lvremove", "lvremove"]);
}

#[tokio::test]
async fn a_repeated_request_finds_the_volume_and_another_one_of_that_name_is_refused() {
    let scene = Scene::new("again").await;
    let first = scene.create(filesystem("pvc-1", GIB, THIN)).await.unwrap();
    let mut again = filesystem("pvc-1", GIB, THIN);
    again.parameters.insert("csi.storage.k8s.io/pvc/name".to_owned(), "data".to_owned());
    assert_eq!(scene.create(again).await.unwrap(), first);
    for (other, named) in [
        (filesystem("pvc-1", 2 * GIB, THIN), "size"),
        (filesystem("pvc-1", GIB, THICK), "provisioning"),
        (block("pvc-1", GIB, THIN), "content"),
        (filesystem("pvc-1", GIB, &[("mkfsOptions", "-m 0")]), "mkfsOptions"),
        (filesystem("pvc-1", GIB, &[("csi.storage.k8s.io/fstype", "xfs")]), "content"),
    ] {
        refused(scene.create(other).await, Code::AlreadyExists, &[named]);
    }
    assert_eq!(scene.volumes(), ["pvc-1"]);
}

#[tokio::test]
async fn a_thick_raw_block_volume_never_shows_an_earlier_tenants_bytes() {
    let scene = Scene::new("zero").await;
    let vg = scene.group.name().to_owned();
    lvm("lvcreate", &["-y", "-l", "100%FREE", "-n", "earlier", &vg]).unwrap().success().unwrap();
    shell(&format!(
        "tr '\\0' '\\252' < /dev/zero | dd of=/dev/{vg}/earlier bs=1M count=200 iflag=fullblock oflag=direct status=none"
    ));
    lvm("lvremove", &["-y", &format!("{vg}/earlier")]).unwrap().success().unwrap();
    scene.capacity_becomes(THICK, |capacity| capacity >= 160 * MIB).await;

    scene.create(block("raw", 160 * MIB, THICK)).await.unwrap();
    shell(&format!("cmp -n {} /dev/{vg}/raw /dev/zero", 160 * MIB));
    let rows = scene.group.lvs("lv_name,lv_tags").unwrap();
    assert_eq!(rows.iter().find(|row| row["lv_name"] == "raw").unwrap()["lv_tags"], "c=default,f=block,g=new,quarry");
    assert_eq!(
        scene.lvm_processes().iter().filter(|verb| !verb.starts_with("vg")).count(),
        2,
        "{:?}",
        scene.lvm_processes()
    );
}

#[tokio::test]
async fn what_is_published_can_be_created_and_one_extent_more_cannot() {
    // Extents of 3 MiB: sizes that are no power of two.
    let scene = Scene::on(group_with("exact", &["--metadatasize", "64m", "-s", "3m"]), "").await;
    for parameters in [THIN, THICK] {
        let capacity = scene.capacity(parameters).await;
        assert!(capacity > GIB / 2 && capacity % (3 * MIB) == 0, "{capacity}");
        let too_large = scene.create(filesystem("large", capacity + 1, parameters)).await;
        refused(too_large, Code::ResourceExhausted, &["node-1", scene.group.name(), &capacity.to_string()]);
        let volume = scene.create(filesystem("fits", capacity, parameters)).await.unwrap();
        assert_eq!(volume.capacity_bytes, capacity);
        assert_eq!(scene.capacity(parameters).await, 0);
        refused(scene.create(filesystem("more", 32 * MIB, parameters)).await, Code::ResourceExhausted, &["at most 0"]);
        scene.delete(&volume.volume_id).await.unwrap();
        assert_eq!(scene.capacity(parameters).await, capacity);
        // The pool that the thin round made stays; thick volumes have the rest.
    }
}

#[tokio::test]
async fn a_logical_volume_without_our_tag_is_never_touched() {
    let scene = Scene::new("alien").await;
    let vg = scene.group.name().to_owned();
    lvm("lvcreate", &["-y", "-L", "64m", "-n", "alien", "--addtag", "mine", &vg]).unwrap().success().unwrap();
    refused(scene.create(filesystem("alien", GIB, THIN)).await, Code::AlreadyExists, &["quarry", "alien"]);
    refused(scene.delete("node-1/alien").await, Code::FailedPrecondition, &["alien", "left alone"]);
    assert_eq!(scene.list().await, []);
    let rows = scene.group.lvs("lv_name,lv_size,lv_tags").unwrap();
    assert_eq!((rows[0]["lv_size"].as_str(), rows[0]["lv_tags"].as_str()), ("67108864", "mine"));
}

#[tokio::test]
async fn a_volume_in_use_is_not_deleted_and_its_user_is_named() {
    let scene = Scene::new("used").await;
    let volume = scene.create(filesystem("pvc-1", 64 * MIB, THICK)).await.unwrap();
    let device = format!("/dev/{}/pvc-1", scene.group.name());
    shell(&format!("mkfs.ext4 -q {device} && mkdir -p /run/in-use && mount {device} /run/in-use"));
    refused(scene.delete(&volume.volume_id).await, Code::FailedPrecondition, &["in use", "/run/in-use"]);
    shell("umount /run/in-use");
    let held = std::fs::File::open(&device).unwrap();
    refused(scene.delete(&volume.volume_id).await, Code::FailedPrecondition, &["in use", "opened 1 times"]);
    drop(held);
    scene.delete(&volume.volume_id).await.unwrap();
}

#[tokio::test]
async fn ids_of_foreign_form_and_of_other_nodes_are_told_apart() {
    let scene = Scene::new("ids").await;
    scene.delete("fake-vol-id-0123456789").await.unwrap();
    scene.delete("node-1/pvc-none").await.unwrap();
    refused(scene.delete("").await, Code::InvalidArgument, &["volume_id"]);
    refused(scene.delete("node-2/pvc-1").await, Code::FailedPrecondition, &["node-2", "node-1"]);
    for (id, code) in [
        ("fake-vol-id", Code::NotFound),
        ("node-1/pvc-none", Code::NotFound),
        ("node-2/pvc-1", Code::FailedPrecondition),
        ("", Code::InvalidArgument),
    ] {
        let request = csi::ControllerGetVolumeRequest { volume_id: id.to_owned() };
        refused(scene.csi.controller.clone().controller_get_volume(request).await, code, &[]);
    }
}

#[tokio::test]
async fn a_class_or_group_that_this_node_lacks_sends_the_pod_elsewhere() {
    let group = VolumeGroup::with("lack", &VgOptions { disks: 2, ..VgOptions::default() }).unwrap();
    let config = format!(
        "deviceClasses:\n  - {{name: default, volumeGroup: {}}}\n  - {{name: nvme, volumeGroup: none-such}}\n\
         timeouts: {{answerSeconds: 300}}\n",
        group.name()
    );
    let scene = Scene::with_config(group, &config).await;
    let create = |class| scene.create(filesystem("pvc-1", GIB, &[("deviceClass", class)]));
    refused(create("hdd").await, Code::ResourceExhausted, &["node-1", "\"hdd\"", "\"default\", \"nvme\""]);
    refused(create("nvme").await, Code::ResourceExhausted, &["none-such", "nvme"]);
    refused(scene.told(&[("deviceClass", "hdd")]).await, Code::NotFound, &["node-1", "\"hdd\""]);
    let lacks_nvme = || async {
        refused(scene.told(&[("deviceClass", "nvme")]).await, Code::NotFound, &["node-1", "none-such"]);
    };
    lacks_nvme().await;

    // It is made while the driver runs, and removed.
    let disk = scene.group.disks()[1].display().to_string();
    let group = scene.group.name();
    lvm("vgreduce", &[group, &disk]).unwrap().success().unwrap();
    lvm("vgcreate", &["none-such", &disk]).unwrap().success().unwrap();
    scene.eventually("the new group is found", || async { scene.told(&[("deviceClass", "nvme")]).await.is_ok() }).await;
    assert!(scene.capacity(&[("deviceClass", "nvme")]).await > 0);
    lvm("vgremove", &["none-such"]).unwrap().success().unwrap();
    scene.eventually("it is seen to be gone", || async { scene.told(&[("deviceClass", "nvme")]).await.is_err() }).await;
    lacks_nvme().await;
    create("default").await.unwrap();
}

#[tokio::test]
async fn a_full_metadata_area_is_noticed_before_lvm_fails() {
    let group = group_with("area", &["--metadatasize", "64k", "--dataalignment", "64k"]);
    // An admin's tags take as much room as twenty volumes would.
    let tags = (0..12).flat_map(|number| ["--addtag".to_owned(), format!("{number:-<1000}")]);
    let words: Vec<String> = tags.chain([group.name().to_owned()]).collect();
    lvm("vgchange", &words.iter().map(String::as_str).collect::<Vec<_>>()).unwrap().success().unwrap();
    let scene = Scene::on(group, "").await;
    let (mut made, mut ids) = (0, Vec::new());
    let refusal = loop {
        // The longest of names: their hashes and tags take the most room.
        match scene.create(block(&format!("{made:-<128}"), 4 * MIB, THIN)).await {
            Ok(volume) => {
                made += 1;
                ids.push(volume.volume_id);
            }
            Err(status) => break status,
        }
        assert!(made < 200, "the metadata area never filled");
    };
    refused::<()>(Err(refusal), Code::ResourceExhausted, &["metadata area"]);
    assert!(made > 3, "only {made} volumes");
    assert_eq!(scene.capacity(THIN).await, 0);
    assert_eq!(scene.capacity(THICK).await, 0);
    assert!(!scene.driver.log().contains("exceeds maximum metadata size"), "lvm was let run into the limit");
    for id in ids.iter().take(3) {
        scene.delete(id).await.unwrap();
    }
    assert!(scene.capacity(THIN).await > 0);
}

#[tokio::test]
async fn a_second_driver_on_the_node_ends_and_the_first_goes_on() {
    let scene = Scene::new("second").await;
    let mut second = spec("");
    second.config = None;
    second.arguments = vec!["--csi-socket".to_owned(), scene.driver.socket().display().to_string()];
    // The last of two equal options counts; the state folder is the second driver's own.
    let (exit, log) = DriverUnderTest::start_to_fail(second).unwrap();
    assert!(!exit.success(), "{log}");
    assert!(log.contains(&scene.driver.socket().display().to_string()), "{log}");
    scene.create(filesystem("pvc-1", GIB, THIN)).await.unwrap();
}

#[tokio::test]
async fn a_typo_in_the_configuration_ends_the_driver_and_names_line_and_key() {
    let spec = spec("deviceClasses:\n  - name: default\n    volumeGruop: quarry\n");
    let (exit, log) = DriverUnderTest::start_to_fail(spec).unwrap();
    assert!(!exit.success());
    assert!(log.contains("line 3") && log.contains("volumeGruop"), "{log}");
}
