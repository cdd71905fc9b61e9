//! The whole reporter between an API server and a driver that both do what they are told.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod api;
mod driver;

use std::sync::Arc;
use std::time::Duration;

use api::{Api, Fault};
use clap::Parser as _;
use driver::Driver;
use quarry_capacity_reporter::args::{Cli, Command, RunArgs};
use quarry_capacity_reporter::clean;
use quarry_capacity_reporter::identity::Identity;
use quarry_capacity_reporter::run::report;
use quarry_capacity_reporter::telemetry::metrics::Metrics;
use quarry_proto::quarry::v1::{ClaimsQuestion, Share};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const OBJECTS: &str = "csistoragecapacities";
const GIB: i64 = 1 << 30;
/// How long a test waits for what must happen.
const LIMIT: Duration = Duration::from_secs(20);
/// How long a test waits for what must not happen.
const QUIET: Duration = Duration::from_millis(700);

/// A reporter that runs, and whom it talks to.
struct Scene {
    api: Api,
    driver: Driver,
    metrics: Arc<Metrics>,
    _folder: tempfile::TempDir,
    reporter: Option<tokio::task::JoinHandle<anyhow::Result<()>>>,
    end: CancellationToken,
    more: Vec<&'static str>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        if let Some(reporter) = self.reporter.take() {
            reporter.abort();
        }
    }
}

fn class(device_class: &str, provisioner: &str) -> Value {
    json!({"provisioner": provisioner, "parameters": {"deviceClass": device_class}, "volumeBindingMode": "WaitForFirstConsumer"})
}

fn name(class: &str) -> String {
    Identity {
        driver: "lvm.quarry.storage".to_owned(),
        node: "node-1".to_owned(),
        segment: (String::new(), String::new()),
        namespace: String::new(),
    }
    .object_name(class)
}

impl Scene {
    /// Two classes, `a` with 4 GiB and `b` with 2 GiB; nothing runs yet.
    fn set() -> Self {
        let api = Api::default();
        api.put("nodes", "", "node-1", json!({"metadata": {"uid": "node-uid"}}));
        api.put("leases", "quarry", "quarry-capacity-janitor", json!({"spec": {}}));
        api.put("storageclasses", "", "a", class("a", "lvm.quarry.storage"));
        api.put("storageclasses", "", "b", class("b", "lvm.quarry.storage"));
        api.put("storageclasses", "", "c", class("c", "somebody.else"));
        let folder = tempfile::tempdir().unwrap();
        let driver = Driver::start(&folder.path().join("csi.sock"), "node-1");
        driver.whisper("a", Ok((4 * GIB, Some(4 * GIB))));
        driver.whisper("b", Ok((3 * GIB, Some(2 * GIB))));
        let metrics = Arc::new(Metrics::new().unwrap());
        Self { api, driver, metrics, _folder: folder, reporter: None, end: CancellationToken::new(), more: Vec::new() }
    }

    /// The same, and both are published.
    async fn settled() -> Self {
        let mut scene = Self::set();
        scene.begin();
        scene.until_told("a", "4Gi").await;
        scene.until_told("b", "2Gi").await;
        scene.still().await;
        scene
    }

    fn begin(&mut self) {
        let socket = self.driver.socket().to_str().unwrap();
        let line = ["r", "run", "--node-name=node-1", "--namespace=quarry", "--csi-socket", socket];
        let Command::Run(args) = Cli::parse_from(line.iter().chain(&self.more)).command else { panic!("not run") };
        let args: RunArgs = args;
        self.reporter =
            Some(tokio::spawn(report(args, self.api.client(), Arc::clone(&self.metrics), self.end.clone())));
    }

    /// The reporter is killed.
    /// The classes whose objects were seen to say what the driver says.
    fn agreed(&self) -> Vec<String> {
        let text = String::from_utf8(self.metrics.text().unwrap()).unwrap();
        let lines = text.lines().filter(|line| line.starts_with("quarry_capacity_object_timestamp_seconds{"));
        lines.map(|line| line.split('"').nth(1).unwrap().to_owned()).collect()
    }

    async fn kill(&mut self) {
        let reporter = self.reporter.take().unwrap();
        reporter.abort();
        reporter.await.unwrap_err();
    }

    /// The objects of a class.
    fn objects(&self, class: &str) -> Vec<Value> {
        self.api.all(OBJECTS).into_iter().filter(|object| object["storageClassName"] == class).collect()
    }

    fn told(&self, class: &str) -> Option<String> {
        let objects = self.objects(class);
        let [object] = &objects[..] else { return None };
        Some(object["maximumVolumeSize"].as_str().unwrap().to_owned())
    }

    /// Waits until exactly one object of the class says this.
    async fn until_told(&self, class: &str, size: &str) {
        self.until(&format!("{size} of {class}"), || self.told(class).as_deref() == Some(size)).await;
    }

    async fn until(&self, what: &str, mut check: impl FnMut() -> bool) {
        let wait = async {
            while !check() {
                assert!(self.reporter.as_ref().is_none_or(|r| !r.is_finished()), "the reporter ended");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(LIMIT, wait).await.is_ok(), "no {what}: {:#?}", self.api.all(OBJECTS));
    }

    /// Waits until no request but watches has come for a while.
    async fn still(&self) {
        loop {
            let before = self.api.requests();
            tokio::time::sleep(QUIET).await;
            if self.api.requests() == before {
                return;
            }
        }
    }
}

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
async fn writes_that_fail_are_tried_again_with_what_is_true_by_then() {
    let scene = Scene::settled().await;
    for (number, fault) in [
        Fault::Status(500),
        Fault::Status(409),
        Fault::Status(401),
        Fault::Status(403),
        Fault::Status(404),
        Fault::Status(503),
        Fault::Later(1),
        Fault::Lost,
        Fault::Broken,
    ]
    .into_iter()
    .enumerate()
    {
        let size = i64::try_from(number).unwrap() + 10;
        scene.api.faults([fault, fault]);
        scene.driver.say("a", Ok((size * GIB, Some(size * GIB))));
        scene.until_told("a", &format!("{size}Gi")).await;
        scene.until("word that nothing is behind", || scene.metrics.ready()).await;
    }
    // The same where the object has to be made.
    scene.api.faults([Fault::Lost, Fault::Status(500), Fault::Later(1)]);
    scene.api.remove(OBJECTS, "quarry", &name("a"));
    scene.until_told("a", "18Gi").await;
    scene.still().await;
    assert_eq!(scene.api.all(OBJECTS).len(), 2);
    // A figure that was overtaken while its write failed is never written.
    scene.api.faults([Fault::Status(500); 3]);
    scene.driver.say("a", Ok((GIB, Some(GIB))));
    scene.until("failure", || !scene.metrics.ready()).await;
    scene.driver.say("a", Ok((30 * GIB, Some(30 * GIB))));
    scene.until_told("a", "30Gi").await;
}

#[tokio::test]
async fn one_object_that_cannot_be_written_does_not_hold_up_the_others() {
    let mut scene = Scene::set();
    scene.api.put(OBJECTS, "quarry", &name("a"), json!({"storageClassName": "a", "metadata": {"labels": {"x": "y"}}}));
    scene.begin();
    scene.until_told("b", "2Gi").await;
    let attempts = || scene.api.asked("create").into_iter().filter(|asked| asked.name == name("a")).count();
    // By then seconds pass from one attempt to the next.
    scene.until("sixth attempt", || attempts() >= 6).await;
    let mut alone = 0;
    for size in 3..8 {
        let before = attempts();
        scene.driver.say("b", Ok((size * GIB, Some(size * GIB))));
        scene.until_told("b", &format!("{size}Gi")).await;
        alone += usize::from(attempts() == before);
    }
    assert!(alone > 0, "b was written only together with an attempt at a");
    assert!(!scene.metrics.ready(), "nobody would notice");
    assert_eq!(scene.agreed(), ["b"]);
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
async fn an_api_server_that_restarts_is_followed_from_where_it_is_then() {
    let scene = Scene::settled().await;
    scene.api.stop();
    scene.driver.say("a", Ok((6 * GIB, Some(6 * GIB))));
    tokio::time::sleep(Duration::from_millis(600)).await;
    // Meanwhile a class went and an object was deleted; whoever watched from before is told 410.
    scene.api.remove("storageclasses", "", "b");
    scene.api.remove(OBJECTS, "quarry", &name("a"));
    scene.api.start();
    scene.until_told("a", "6Gi").await;
    scene.until("end of b", || scene.objects("b").is_empty()).await;
}

#[tokio::test]
async fn while_the_driver_is_away_objects_stay_and_when_it_cannot_tell_they_say_nothing_is_left() {
    let mut scene = Scene::settled().await;
    let before = scene.api.all(OBJECTS);
    scene.driver.end().await;
    tokio::time::sleep(QUIET * 2).await;
    assert_eq!(scene.api.all(OBJECTS), before);
    assert!(!scene.metrics.ready());
    // What needs no driver is done without one.
    scene.api.remove("storageclasses", "", "b");
    scene.until("end of b", || scene.objects("b").is_empty()).await;
    scene.still().await;
    assert_eq!(scene.told("a").as_deref(), Some("4Gi"), "nobody knows better");
    scene.driver.whisper("a", Ok((3 * GIB, Some(3 * GIB))));
    scene.driver.begin();
    scene.until_told("a", "3Gi").await;
    for code in [tonic::Code::Unavailable, tonic::Code::InvalidArgument, tonic::Code::Internal] {
        scene.driver.say("a", Err(code));
        scene.until_told("a", "0").await;
        assert_eq!(scene.objects("a")[0]["capacity"], "0");
        // Found out without a word of the driver but for what is wrong with the class itself.
        scene.driver.whisper("a", Ok((3 * GIB, Some(3 * GIB))));
        if code == tonic::Code::InvalidArgument {
            scene.driver.signal();
        }
        scene.until_told("a", "3Gi").await;
    }
}

#[tokio::test]
async fn a_reporter_that_is_killed_and_started_again_writes_nothing_that_is_there() {
    let mut scene = Scene::settled().await;
    let (before, writes) = (scene.api.all(OBJECTS), scene.api.writes());
    scene.kill().await;
    scene.begin();
    scene.until("answer of the driver", || scene.metrics.ready()).await;
    scene.still().await;
    assert_eq!(scene.api.all(OBJECTS), before);
    assert_eq!(scene.api.writes(), writes);
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

#[tokio::test]
async fn the_driver_is_told_of_the_other_claims_of_a_waiting_pod() {
    let mut scene = Scene::settled().await;
    let pod = |claims: &[&str], node: &str| {
        let volumes: Vec<Value> =
            claims.iter().map(|claim| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}})).collect();
        json!({"spec": {"containers": [], "volumes": volumes, "nodeName": node}, "status": {"phase": "Pending"}})
    };
    let claim = |class: &str, volume: &str| json!({"spec": {"storageClassName": class, "volumeName": volume, "resources": {"requests": {"storage": "6Gi"}}}});
    for (name, class, volume) in [
        ("one", "a", ""),
        ("two", "b", ""),
        ("three", "a", "pvc-bound"),
        ("four", "c", ""),
        ("five", "a", ""),
        ("six", "a", ""),
    ] {
        scene.api.put("persistentvolumeclaims", "apps", name, claim(class, volume));
    }
    scene.api.put("pods", "apps", "waits", pod(&["one", "two", "three", "four", "missing"], ""));
    scene.api.put("pods", "apps", "another", pod(&["five"], ""));
    scene.api.put("pods", "apps", "runs", pod(&["one", "six"], "node-2"));
    scene.until("somebody to ask", || scene.driver.is_watched()).await;
    let question = |id, name: &str| ClaimsQuestion { id, namespace: "apps".to_owned(), name: name.to_owned() };
    let answer = scene.driver.question(question(7, "one")).await;
    let uid = scene.api.all("persistentvolumeclaims").into_iter().find(|c| c["metadata"]["name"] == "two").unwrap()["metadata"]["uid"].clone();
    let [other] = &answer.others[..] else { panic!("{answer:?}") };
    assert_eq!((other.name.as_str(), other.namespace.as_str(), answer.error.as_str()), ("two", "apps", ""));
    assert_eq!((other.requested_bytes, other.parameters["deviceClass"].as_str()), (6 << 30, "b"));
    assert_eq!(other.volume_name, format!("pvc-{}", uid.as_str().unwrap()));
    assert_eq!(scene.driver.question(question(8, "five")).await.others, []);
    scene.api.stop();
    let answer = scene.driver.question(question(9, "one")).await;
    assert!(
        answer.others.is_empty() && answer.error.contains("cannot list the waiting pods of namespace apps"),
        "{answer:?}"
    );
}

#[tokio::test]
async fn a_claim_is_told_that_its_share_does_not_hold_and_that_it_holds_again() {
    let mut scene = Scene::set();
    scene.more = vec!["--tell-after", "200ms"];
    scene.api.put("persistentvolumeclaims", "shop", "db", json!({"metadata": {"uid": "claim-uid"}}));
    scene.begin();
    let share = |state: &str, reason: &str, problem: &str| Share {
        claim_namespace: "shop".to_owned(),
        claim_name: "db".to_owned(),
        pod_name: "db-0".to_owned(),
        state: state.to_owned(),
        reason: reason.to_owned(),
        problem: problem.to_owned(),
    };
    let told = |reason: &'static str| {
        let events = scene.api.all("events");
        events.into_iter().find(|event| event["reason"] == reason)
    };
    scene.driver.share(vec![share("not-enforced", "DiskBehindModel", "DiskBehindModel: vda is slower")]);
    scene.until("an event", || told("IoShareNotEnforced").is_some()).await;
    let event = told("IoShareNotEnforced").unwrap();
    assert_eq!(event["note"], "weight and limits of pod db-0 do not hold: DiskBehindModel: vda is slower");
    assert_eq!((&event["type"], &event["action"]), (&json!("Warning"), &json!("DiskBehindModel")));
    assert_eq!(event["regarding"]["uid"], "claim-uid");
    assert_eq!(event["reportingInstance"], "node-1");
    // Told once, whatever else changes.
    scene.driver.share(vec![share("not-enforced", "DiskBehindModel", "DiskBehindModel: vda is slower still")]);
    tokio::time::sleep(QUIET).await;
    assert_eq!(scene.api.all("events").len(), 1);
    scene.driver.share(vec![share("enforced", "", "")]);
    scene.until("an event", || told("IoShareEnforced").is_some()).await;
    assert_eq!(told("IoShareEnforced").unwrap()["type"], "Normal");
    // What nobody asked for, or has not lasted, is no event; neither is one of a claim that is gone.
    scene.driver.share(vec![
        share("not-asked", "", ""),
        Share { claim_name: "gone".to_owned(), ..share("not-enforced", "Off", "Off") },
    ]);
    tokio::time::sleep(QUIET).await;
    assert_eq!(scene.api.all("events").len(), 2);
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

#[tokio::test]
async fn watches_that_began_together_do_not_end_together() {
    let mut lengths = Vec::new();
    for _ in 0..4 {
        lengths.extend(Scene::settled().await.api.watch_lengths());
    }
    assert!(lengths.len() >= 12, "{lengths:?}");
    assert!(lengths.iter().any(|length| *length != lengths[0]), "all last {} s", lengths[0]);
    assert!(lengths.iter().all(|length| (200..=290).contains(length)), "{lengths:?}");
}
