//! What is deleted, by whom, and what is not.

use std::time::Duration;

use clap::Parser as _;
use quarry_capacity_reporter::args::{Cli, Command};
use quarry_capacity_reporter::clean;
use serde_json::{Value, json};

use crate::scene::{OBJECTS, QUIET, Scene, name};

fn of_node(node: &str) -> Value {
    json!({
        "metadata": {
            "labels": {"csi.storage.k8s.io/drivername": "lvm.quarry.storage", "csi.storage.k8s.io/managed-by": "quarry-capacity-reporter"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node, "uid": "u"}],
        },
        "storageClassName": "a",
    })
}

#[tokio::test]
async fn asked_to_end_it_gives_up_the_lease_and_cleans_nothing() {
    let mut scene = Scene::set();
    scene.more = vec!["--forget-nodes-after=3s"];
    scene.begin();
    scene.until_told("a", "4Gi").await;
    scene.until("holder", || scene.api.all("leases")[0]["spec"]["holderIdentity"] == "node-1").await;
    scene.until_told("b", "2Gi").await;
    let before = scene.api.all(OBJECTS);
    tokio::time::sleep(QUIET).await;
    scene.end.cancel();
    scene.reporter.take().unwrap().await.unwrap().unwrap();
    assert_eq!(scene.api.all("leases")[0]["spec"]["holderIdentity"], "");
    assert_eq!(scene.api.all(OBJECTS), before);
}

#[tokio::test]
async fn what_csi_provisioner_left_goes_once_our_own_is_there() {
    let mut scene = Scene::set();
    let left = |node: &str| {
        json!({
            "metadata": {"labels": {
                "csi.storage.k8s.io/drivername": "lvm.quarry.storage",
                "csi.storage.k8s.io/managed-by": format!("external-provisioner-{node}"),
            }},
            "storageClassName": "a", "capacity": "9Gi",
            "nodeTopology": {"matchLabels": {"topology.lvm.quarry.storage/node": node}},
        })
    };
    scene.api.put(OBJECTS, "quarry", "csisc-one", left("node-1"));
    scene.api.put(OBJECTS, "quarry", "csisc-two", left("node-2"));
    scene.begin();
    scene.until("end of csisc-one", || !scene.objects("a").iter().any(|o| o["metadata"]["name"] == "csisc-one")).await;
    let deleted = scene.api.asked("delete");
    assert_eq!(deleted.iter().map(|asked| asked.name.as_str()).collect::<Vec<_>>(), ["csisc-one"]);
    let names: Vec<Value> = scene.objects("a").into_iter().map(|o| o["metadata"]["name"].clone()).collect();
    assert_eq!(names, [json!("csisc-two"), json!(name("a"))], "made first, then deleted");
}

#[tokio::test]
async fn the_janitor_deletes_objects_of_nodes_that_lost_the_driver_for_good() {
    let mut scene = Scene::set();
    scene.more = vec!["--forget-nodes-after=3s"];
    let csi_node = |drivers: &[&str]| {
        let drivers: Vec<Value> = drivers.iter().map(|name| json!({"name": name, "nodeID": "x"})).collect();
        json!({"spec": {"drivers": drivers}})
    };
    for (node, drivers) in [
        ("node-1", &["lvm.quarry.storage"][..]),
        ("with", &["x", "lvm.quarry.storage"]),
        ("without", &["x"]),
        ("blinks", &[]),
    ] {
        scene.api.put("csinodes", "", node, csi_node(drivers));
        scene.api.put(OBJECTS, "quarry", &format!("of-{node}"), of_node(node));
    }
    scene.api.put(OBJECTS, "quarry", "of-gone", of_node("gone"));
    scene.begin();
    let names = || {
        scene
            .api
            .all(OBJECTS)
            .into_iter()
            .map(|o| o["metadata"]["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let there = |name: &str| names().iter().any(|found| found == name);
    let looks = || scene.api.lists("csinodes");
    // An update of the driver empties the list for a while.
    scene.until("second look", || looks() == 2).await;
    scene.api.put("csinodes", "", "blinks", csi_node(&["lvm.quarry.storage"]));
    assert!(there("of-without"), "deleted on sight");
    scene.until("end of of-without", || !there("of-without") && !there("of-gone")).await;
    assert!(there("of-with") && there("of-blinks") && there("of-node-1"), "{:?}", names());
    let lease = &scene.api.all("leases")[0]["spec"];
    assert_eq!((&lease["holderIdentity"], &lease["leaseDurationSeconds"]), (&json!("node-1"), &json!(3)), "{lease}");
}

#[tokio::test]
async fn while_another_node_renews_the_lease_nobody_else_cleans() {
    let mut scene = Scene::set();
    scene.more = vec!["--forget-nodes-after=3s"];
    scene.api.put(OBJECTS, "quarry", "of-gone", of_node("gone"));
    let renewed = |count: u32| json!({"spec": {"holderIdentity": "node-2", "leaseDurationSeconds": 3, "renewTime": format!("2026-01-01T00:00:{count:02}.000000Z")}});
    scene.api.put("leases", "quarry", "quarry-capacity-janitor", renewed(0));
    scene.begin();
    for count in 1..10 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        scene.api.put("leases", "quarry", "quarry-capacity-janitor", renewed(count));
    }
    assert_eq!(scene.api.all("leases")[0]["spec"]["holderIdentity"], "node-2");
    assert_eq!(scene.api.all(OBJECTS).len(), 3);
    // It renews no more: after the lease's time somebody else takes over.
    scene.until("another holder", || scene.api.all("leases")[0]["spec"]["holderIdentity"] == "node-1").await;
    assert_eq!(scene.api.all("leases")[0]["spec"]["leaseTransitions"], 1);
    scene.until("end of of-gone", || scene.api.all(OBJECTS).len() == 2).await;
}

#[tokio::test]
async fn cleaning_takes_the_right_to_write_first_and_leaves_none() {
    let scene = Scene::settled().await;
    let other = json!({"metadata": {"labels": {"csi.storage.k8s.io/drivername": "other"}}, "storageClassName": "x"});
    scene.api.put(OBJECTS, "quarry", "foreign", other);
    scene.api.put(OBJECTS, "elsewhere", "of-gone", of_node("gone"));
    scene.api.put("rolebindings", "quarry", "quarry-capacity", json!({}));
    let line = ["r", "clean", "--namespace=quarry", "--quiet=1s", "--timeout=3s"];
    let Command::Clean(args) = Cli::parse_from(line).command else { panic!("not clean") };
    // A reporter that may still write puts back what is deleted: that is no clean end, and said so.
    let error = clean::clean(&scene.api.client(), &args).await.unwrap_err();
    assert!(error.to_string().contains(&name("a")), "{error}");
    assert_eq!(scene.api.all("rolebindings"), Vec::<Value>::new());
    let mut scene = scene;
    scene.kill().await;
    clean::clean(&scene.api.client(), &args).await.unwrap();
    let left = scene.api.all(OBJECTS);
    assert_eq!(left.iter().map(|o| &o["metadata"]["name"]).collect::<Vec<_>>(), ["foreign"]);
}
