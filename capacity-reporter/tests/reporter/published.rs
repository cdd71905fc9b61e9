//! What is published: one object for each class, true, and nothing written that is there.

use std::time::Duration;

use serde_json::{Value, json};

use crate::scene::{GIB, OBJECTS, QUIET, Scene, class, name};

#[tokio::test]
async fn each_class_of_ours_has_one_object_that_says_all_there_is_to_say() {
    let scene = Scene::settled().await;
    let objects = scene.api.all(OBJECTS);
    assert_eq!(objects.len(), 2, "{objects:#?}");
    let [object] = &scene.objects("b")[..] else { panic!() };
    assert_eq!((&object["capacity"], &object["maximumVolumeSize"]), (&json!("3Gi"), &json!("2Gi")));
    assert_eq!(object["metadata"]["name"], name("b"));
    assert_eq!(scene.agreed(), ["a", "b"]);
    assert_eq!(object["metadata"]["namespace"], "quarry");
    assert_eq!(
        object["metadata"]["ownerReferences"],
        json!([{"apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "node-uid"}])
    );
    assert_eq!(object["nodeTopology"], json!({"matchLabels": {"topology.lvm.quarry.storage/node": "node-1"}}));
    assert_eq!(
        object["metadata"]["labels"],
        json!({
            "app.kubernetes.io/managed-by": "quarry-capacity-reporter",
            "csi.storage.k8s.io/drivername": "lvm.quarry.storage",
            "csi.storage.k8s.io/managed-by": "quarry-capacity-reporter",
            "topology.lvm.quarry.storage/node": "node-1",
        })
    );
}

#[tokio::test]
async fn what_has_not_changed_costs_no_request() {
    let scene = Scene::settled().await;
    let (requests, asked) = (scene.api.requests(), scene.driver.asked());
    for _ in 0..3 {
        scene.driver.signal();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(scene.driver.asked() >= asked + 4, "the driver was not asked");
    assert_eq!(scene.api.requests(), requests);
}

#[tokio::test]
async fn drops_and_raises_are_published_and_only_those() {
    let scene = Scene::settled().await;
    let writes = scene.api.writes();
    scene.driver.say("a", Ok((GIB, Some(GIB))));
    scene.until_told("a", "1Gi").await;
    scene.driver.say("a", Ok((8 * GIB, Some(8 * GIB))));
    scene.until_told("a", "8Gi").await;
    scene.still().await;
    assert_eq!(scene.api.writes(), writes + 2);
    // A driver that knows no largest volume has one of all that is left; what makes no sense is never more than that.
    scene.driver.say("a", Ok((5 * GIB, None)));
    scene.until_told("a", "5Gi").await;
    scene.driver.say("a", Ok((5 * GIB, Some(6 * GIB))));
    scene.driver.say("b", Ok((-1, Some(-1))));
    scene.until_told("b", "0").await;
    assert_eq!(scene.told("a").as_deref(), Some("5Gi"));
}

#[tokio::test]
async fn classes_come_and_go_and_change_hands() {
    let scene = Scene::settled().await;
    scene.driver.whisper("d", Ok((GIB, Some(GIB))));
    scene.api.put("storageclasses", "", "d", class("d", "lvm.quarry.storage"));
    scene.until_told("d", "1Gi").await;
    scene.api.remove("storageclasses", "", "b");
    scene.until("end of b", || scene.objects("b").is_empty()).await;
    // Made anew under the same name with other parameters, as an update is done.
    scene.api.put("storageclasses", "", "a", class("d", "lvm.quarry.storage"));
    scene.until_told("a", "1Gi").await;
    scene.api.put("storageclasses", "", "a", class("d", "somebody.else"));
    scene.until("end of a", || scene.objects("a").is_empty()).await;
    scene.until_told("d", "1Gi").await;
}

#[tokio::test]
async fn what_others_do_to_our_objects_is_put_right_and_theirs_are_left_alone() {
    let mut scene = Scene::set();
    let foreign = |name: &str, labels: Value| {
        json!({
            "metadata": {"name": name, "labels": labels}, "storageClassName": "a", "capacity": "100Ti", "maximumVolumeSize": "100Ti",
            "nodeTopology": {"matchLabels": {"topology.lvm.quarry.storage/node": "node-1"}},
        })
    };
    let other_driver =
        json!({"csi.storage.k8s.io/drivername": "other", "csi.storage.k8s.io/managed-by": "quarry-capacity-reporter"});
    scene.api.put(OBJECTS, "elsewhere", "x", foreign("x", other_driver));
    // One with the very name that ours would have.
    scene.api.put(OBJECTS, "quarry", &name("a"), foreign(&name("a"), json!({"made-by": "an admin"})));
    scene.begin();
    scene.until_told("b", "2Gi").await;
    scene.until("attempt to make it", || !scene.api.asked("get").is_empty()).await;
    assert_eq!(scene.objects("a").len(), 2);
    assert!(scene.objects("a").iter().all(|object| object["capacity"] == "100Ti"), "a foreign object was touched");
    scene.api.remove(OBJECTS, "elsewhere", "x");
    scene.api.remove(OBJECTS, "quarry", &name("a"));
    scene.until_told("a", "4Gi").await;

    // Ours: changed, deleted, doubled.
    let mut object = scene.objects("a").remove(0);
    object["maximumVolumeSize"] = json!("100Ti");
    scene.api.put(OBJECTS, "quarry", &name("a"), object.clone());
    scene.until_told("a", "4Gi").await;
    scene.api.remove(OBJECTS, "quarry", &name("a"));
    scene.until_told("a", "4Gi").await;
    scene.api.put(OBJECTS, "another-namespace", "a-copy", object.clone());
    scene.until("end of the second", || scene.objects("a").len() == 1).await;
    scene.until_told("a", "4Gi").await;
    // Neither class nor topology of an object can be changed.
    object["nodeTopology"] = json!({});
    scene.api.remove(OBJECTS, "quarry", &name("a"));
    scene.api.put(OBJECTS, "quarry", &name("a"), object);
    scene.until("topology", || scene.objects("a").iter().any(|o| o["nodeTopology"]["matchLabels"].is_object())).await;
    scene.until_told("a", "4Gi").await;
}

#[tokio::test]
async fn a_burst_of_changes_is_few_writes_and_ends_with_the_last() {
    let mut scene = Scene::set();
    scene.more = vec!["--requests-per-second=1", "--request-burst=3"];
    scene.begin();
    scene.until_told("a", "4Gi").await;
    scene.until_told("b", "2Gi").await;
    let (writes, begin) = (scene.api.writes(), tokio::time::Instant::now());
    for size in 1..400 {
        scene.driver.say("a", Ok((size * GIB, Some(size * GIB))));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    scene.until_told("a", "399Gi").await;
    let (written, allowed) = (scene.api.writes() - writes, 3.0 + begin.elapsed().as_secs_f64() + 1.0);
    assert!(written as f64 <= allowed, "{written} writes, at most {allowed} are allowed");
}

#[tokio::test]
async fn a_node_that_is_made_anew_owns_its_objects() {
    let scene = Scene::settled().await;
    scene.api.remove("nodes", "", "node-1");
    // The garbage collector.
    for class in ["a", "b"] {
        scene.api.remove(OBJECTS, "quarry", &name(class));
    }
    tokio::time::sleep(QUIET).await;
    assert_eq!(scene.api.all(OBJECTS), Vec::<Value>::new(), "objects of a node that is not there");
    scene.api.put("nodes", "", "node-1", json!({"metadata": {"uid": "another-uid"}}));
    scene.until_told("a", "4Gi").await;
    assert_eq!(scene.objects("a")[0]["metadata"]["ownerReferences"][0]["uid"], "another-uid");
}

#[tokio::test]
async fn a_class_that_the_node_lacks_has_no_object() {
    let scene = Scene::settled().await;
    scene.driver.say("a", Err(tonic::Code::NotFound));
    scene.until("no object", || scene.objects("a").is_empty()).await;
    assert_eq!(scene.objects("b").len(), 1);
    // It has it again: a volume group was made.
    scene.driver.say("a", Ok((GIB, Some(GIB))));
    scene.until_told("a", "1Gi").await;
    // What cannot be read is another matter.
    scene.driver.say("a", Err(tonic::Code::Unavailable));
    scene.until_told("a", "0").await;
}
