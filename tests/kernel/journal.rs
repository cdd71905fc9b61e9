//! The journal as its users meet it: lost, damaged, from the future, without room; volumes that vanish; the list of
//! volumes with and without a driver.

use std::fs;

use quarry_proto::csi::v1 as csi;
use quarry_tests::in_vm::{DriverUnderTest, VolumeGroup, lvm};
use serde_json::Value;
use tonic::Code;

use crate::scene::{GIB, MIB, Scene, THICK, THIN, block, filesystem, map, refused, shell, spec};

/// A volume in the list, by name.
#[track_caller]
fn entry(list: &Value, name: &str) -> Value {
    let volumes = list["volumes"].as_array().unwrap();
    let found: Vec<&Value> = volumes.iter().filter(|volume| volume["name"] == name).collect();
    assert_eq!(found.len(), 1, "{name} is {} times in {list:#}", found.len());
    found[0].clone()
}

#[tokio::test]
async fn the_list_tells_claim_class_size_state_and_user_with_and_without_a_driver() {
    let mut scene = Scene::new("list").await;
    let mut request = filesystem("pvc-1", GIB, THIN);
    request.parameters = map(&[("csi.storage.k8s.io/pvc/namespace", "db"), ("csi.storage.k8s.io/pvc/name", "data-0")]);
    scene.create(request).await.unwrap();
    scene.create(block("raw", 64 * MIB, THICK)).await.unwrap();
    let running = scene.driver.volumes().unwrap();
    let volume = entry(&running, "pvc-1");
    assert_eq!(volume["claim"], serde_json::json!({"namespace": "db", "name": "data-0"}));
    assert_eq!((volume["state"].as_str(), volume["sizeBytes"].as_i64()), (Some("ready"), Some(GIB)));
    assert_eq!(
        (volume["volumeGroup"]["name"].as_str(), volume["recorded"].as_bool()),
        (Some(scene.group.name()), Some(true))
    );
    assert_eq!(entry(&running, "raw")["content"], "block");

    assert!(scene.driver.stop().unwrap().success());
    assert_eq!(scene.driver.volumes().unwrap(), running);
    scene.restart().await;
    assert_eq!(scene.driver.volumes().unwrap(), running);
}

#[tokio::test]
async fn a_journal_that_is_gone_or_damaged_loses_no_volume_and_is_reported() {
    let mut scene = Scene::new("rebuilt").await;
    scene.create(filesystem("pvc-1", GIB, THIN)).await.unwrap();
    scene.create(filesystem("pvc-2", 64 * MIB, THICK)).await.unwrap();
    let journal = scene.driver.state_dir().join("journal");

    scene.driver.kill().unwrap();
    fs::remove_dir_all(&journal).unwrap();
    scene.restart().await;
    assert_eq!(scene.list().await.len(), 2);
    assert_eq!(entry(&scene.driver.volumes().unwrap(), "pvc-1")["state"], "adopted");
    assert!(scene.driver.log().contains("the journal begins anew"), "{}", scene.driver.log());
    // Whoever asks for it makes it his.
    scene.create(filesystem("pvc-1", GIB, THIN)).await.unwrap();
    assert_eq!(entry(&scene.driver.volumes().unwrap(), "pvc-1")["state"], "ready");

    scene.driver.kill().unwrap();
    let mut log = fs::read(journal.join("db")).unwrap();
    let used = log.iter().rposition(|byte| *byte != 0).unwrap();
    log[used / 2..used].fill(0x5a);
    fs::write(journal.join("db"), log).unwrap();
    scene.restart().await;
    assert_eq!(scene.list().await.len(), 2);
    let aside = fs::read_dir(scene.driver.state_dir()).unwrap().flatten();
    let aside: Vec<String> = aside.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    assert!(aside.iter().any(|name| name.starts_with("journal.damaged.2")), "{aside:?}");
    scene.delete("node-1/pvc-1").await.unwrap();
    scene.delete("node-1/pvc-2").await.unwrap();
    assert_eq!(scene.driver.volumes().unwrap()["volumes"], serde_json::json!([]));
}

#[tokio::test]
async fn a_volume_that_vanished_is_lost_and_not_made_anew_until_a_person_accepts_it() {
    let mut scene = Scene::new("vanish").await;
    let vg = scene.group.name().to_owned();
    for name in ["pvc-1", "pvc-2"] {
        scene.create(filesystem(name, 64 * MIB, THICK)).await.unwrap();
        lvm("lvremove", &["-y", &format!("{vg}/{name}")]).unwrap().success().unwrap();
    }
    let again = scene.create(filesystem("pvc-1", 64 * MIB, THICK)).await;
    refused(again, Code::FailedPrecondition, &["pvc-1", "vanished", "forget pvc-1"]);
    let request = csi::ControllerGetVolumeRequest { volume_id: "node-1/pvc-1".to_owned() };
    refused(scene.csi.controller.clone().controller_get_volume(request).await, Code::DataLoss, &["lost"]);
    assert_eq!(entry(&scene.driver.volumes().unwrap(), "pvc-1")["state"], "lost");
    scene.driver.kill().unwrap();
    scene.restart().await;
    let lost = entry(&scene.driver.volumes().unwrap(), "pvc-1");
    assert_eq!(lost["state"], "lost");
    assert!(lost["problem"].as_str().unwrap().contains(&vg), "{lost}");
    assert_eq!(scene.volumes(), Vec::<String>::new());

    let said = scene.driver.ask(&["forget", "pvc-none"]).unwrap_err().to_string();
    assert!(said.contains("pvc-none"), "{said}");
    scene.driver.ask(&["forget", "pvc-1"]).unwrap();
    scene.create(filesystem("pvc-1", 64 * MIB, THICK)).await.unwrap();
    let said = scene.driver.ask(&["forget", "pvc-1"]).unwrap_err().to_string();
    assert!(said.contains("ready"), "{said}");
    let said = scene.driver.ask(&["remove-orphan", "pvc-1"]).unwrap_err().to_string();
    assert!(said.contains("ready"), "{said}");
    // Deleting a lost volume accepts the loss too.
    scene.delete("node-1/pvc-2").await.unwrap();
    assert_eq!(scene.driver.volumes().unwrap()["volumes"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_volume_of_ours_that_nobody_asked_for_is_adopted_and_removed_on_request_only() {
    let mut scene = Scene::new("orphan").await;
    let vg = scene.group.name().to_owned();
    let tags = ["quarry", "c=default", "f=ext4", "g=new"].into_iter().flat_map(|tag| ["--addtag", tag]);
    let arguments: Vec<&str> =
        ["-y", "-L", "64m", "-n", "stray"].into_iter().chain(tags).chain([vg.as_str()]).collect();
    lvm("lvcreate", &arguments).unwrap().success().unwrap();
    scene.driver.kill().unwrap();
    scene.restart().await;
    assert_eq!(entry(&scene.driver.volumes().unwrap(), "stray")["state"], "adopted");
    scene.driver.ask(&["remove-orphan", "stray"]).unwrap();
    assert_eq!(scene.driver.volumes().unwrap()["volumes"], serde_json::json!([]));
    assert_eq!(scene.volumes(), Vec::<String>::new());
}

#[tokio::test]
async fn a_group_that_is_gone_makes_its_volumes_unknown_until_a_person_gives_it_up() {
    let mut scene = Scene::new("gone").await;
    let vg = scene.group.name().to_owned();
    scene.create(filesystem("pvc-1", 64 * MIB, THICK)).await.unwrap();
    let said = scene.driver.ask(&["forget", "--volume-group", &vg]).unwrap_err().to_string();
    assert!(said.contains("on this node"), "{said}");
    scene.driver.kill().unwrap();
    lvm("vgremove", &["-ff", "-y", &vg]).unwrap().success().unwrap();
    scene.restart().await;
    assert_eq!(entry(&scene.driver.volumes().unwrap(), "pvc-1")["state"], "unknown");
    refused(scene.delete("node-1/pvc-1").await, Code::Unavailable, &[&vg]);
    let said = scene.driver.ask(&["forget", "--volume-group", &vg]).unwrap();
    assert!(said.contains("pvc-1"), "{said}");
    scene.delete("node-1/pvc-1").await.unwrap();
    assert_eq!(scene.driver.volumes().unwrap()["volumes"], serde_json::json!([]));
}

#[tokio::test]
async fn a_newer_journal_ends_the_driver_and_stays_as_it_is() {
    let group = VolumeGroup::fresh("newer").unwrap();
    let mut scene = Scene::on(group, "").await;
    scene.create(filesystem("pvc-1", 64 * MIB, THICK)).await.unwrap();
    assert!(scene.driver.stop().unwrap().success());
    let journal = scene.driver.state_dir().join("journal");
    let store = sled::open(&journal).unwrap();
    store.insert(b"!format", b"2").unwrap();
    store.flush().unwrap();
    drop(store);
    let before = fs::read(journal.join("db")).unwrap();
    let (exit, log) = scene.driver.launch_to_fail().unwrap();
    assert!(!exit.success() && log.contains("format 2") && log.contains("newer Quarry"), "{log}");
    assert_eq!(fs::read(journal.join("db")).unwrap(), before);
}

#[tokio::test]
async fn a_full_disk_under_the_journal_refuses_changes_and_is_over_when_there_is_room() {
    let group = VolumeGroup::fresh("nospace").unwrap();
    shell("mkdir -p /run/small-state && mount -t tmpfs -o size=4m tmpfs /run/small-state");
    let mut small = spec(&format!(
        "deviceClasses: [{{name: default, volumeGroup: {}}}]\ntimeouts: {{answerSeconds: 300}}\n",
        group.name()
    ));
    small.arguments = vec!["--state-dir".to_owned(), "/run/small-state".to_owned()];
    let scene = Scene::of(group, DriverUnderTest::start(small).unwrap()).await;
    scene.create(filesystem("before", 64 * MIB, THICK)).await.unwrap();
    shell("dd if=/dev/zero of=/run/small-state/filler bs=64k status=none || true");
    let mut refusal = None;
    for number in 0..50 {
        if let Err(status) = scene.create(filesystem(&format!("pvc-{number}"), 4 * MIB, THICK)).await {
            refusal = Some(status);
            break;
        }
    }
    let refusal = refusal.expect("the journal's disk never was full");
    refused::<()>(Err(refusal), Code::Unavailable, &["journal"]);
    let made = scene.list().await.len();
    shell("rm /run/small-state/filler");
    scene.create(filesystem("after", 64 * MIB, THICK)).await.unwrap();
    scene.delete("node-1/before").await.unwrap();
    assert_eq!(scene.list().await.len(), made);
    drop(scene);
    shell("umount /run/small-state");
}
