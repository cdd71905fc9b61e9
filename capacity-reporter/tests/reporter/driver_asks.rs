//! What goes between the driver and Kubernetes beside figures: a pod's other claims, and shares that do not hold.

use quarry_proto::quarry::v1::{ClaimsQuestion, Share};
use serde_json::{Value, json};

use crate::scene::{QUIET, Scene};

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
