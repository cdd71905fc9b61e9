//! What uninstalling the chart and ending a pod do.

use clap::Parser as _;
use quarry_capacity_reporter::args as reporter;
use quarry_driver::config::Config;
use serde_json::{Value, json};

use super::helm::{NAMESPACE, Objects, render};
use super::rights::rights;

#[test]
fn the_end_takes_the_right_to_write_and_removes_the_objects() {
    let objects = Objects::with("kubernetesApi: {host: 10.0.0.1, port: 6443}");
    let job = job(&objects, "quarry-capacity-clean");
    let pod = &job["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(container["command"], json!(["/usr/bin/quarry-capacity-reporter"]));
    let words = container["args"].as_array().unwrap().iter().map(|word| word.as_str().unwrap());
    let words = ["quarry-capacity-reporter"].into_iter().chain(words);
    let reporter::Command::Clean(clean) = reporter::Cli::try_parse_from(words).unwrap().command else {
        panic!("no clean")
    };
    assert_eq!((clean.namespace.as_str(), clean.driver_name.as_str()), (NAMESPACE, "lvm.quarry.storage"));
    // The binding whose deletion stops the reporters is the one that lets them write, and the job may delete it.
    let binding =
        objects.of_kind("RoleBinding").into_iter().find(|b| b["metadata"]["name"] == clean.role_binding.as_str());
    assert_eq!(binding.unwrap()["roleRef"]["name"], "quarry-capacity");
    assert!(rights(&objects, "quarry-capacity").contains(&(
        "Role".to_owned(),
        "csistoragecapacities".to_owned(),
        "create".to_owned()
    )));
    let everywhere = |(kind, resource, verb): &(String, String, String)| {
        kind == "ClusterRole"
            && resource == "csistoragecapacities"
            && ["create", "patch", "update"].contains(&verb.as_str())
    };
    assert!(!rights(&objects, "quarry-capacity").iter().any(everywhere), "writing must end with the binding");
    assert!(
        container["env"].as_array().unwrap().contains(&json!({"name": "KUBERNETES_SERVICE_PORT", "value": "6443"}))
    );
    is_there_for(&objects, job, &["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"]);
}

#[test]
fn the_end_has_every_driver_put_back_what_it_set() {
    let objects = Objects::with("kubeletDir: /kubelet");
    let job = job(&objects, "quarry-restore-io");
    assert_eq!(job["metadata"]["annotations"]["helm.sh/hook"], "pre-delete");
    let pod = &job["spec"]["template"]["spec"];
    let words = pod["containers"][0]["args"].as_array().unwrap().iter().map(|word| word.as_str().unwrap());
    let words = ["quarry-capacity-reporter"].into_iter().chain(words);
    let reporter::Command::RestoreIo(args) = reporter::Cli::try_parse_from(words).unwrap().command else {
        panic!("no restore-io")
    };
    assert_eq!(args.namespace, NAMESPACE);
    // It finds the nodes' pods, and in them the driver by its socket.
    let labels = &objects.only("DaemonSet")["spec"]["template"]["metadata"]["labels"];
    for label in args.selector.split(',') {
        let (key, value) = label.split_once('=').unwrap();
        assert_eq!(labels[key], value, "{label}");
    }
    assert_ne!(job["spec"]["template"]["metadata"]["labels"], *labels, "it is none of the nodes' pods itself");
    let socket = format!("--csi-socket={}", args.csi_socket.display());
    assert!(objects.arguments(&args.container).contains(&socket.as_str()), "{socket}");
    is_there_for(&objects, job, &["ServiceAccount", "Role", "RoleBinding"]);
}

pub fn job<'a>(objects: &'a Objects, name: &str) -> &'a Value {
    objects.of_kind("Job").into_iter().find(|job| job["metadata"]["name"] == name).unwrap()
}

/// A hook's job has an account and rights of its own, there before it and gone after it.
fn is_there_for(objects: &Objects, job: &Value, kinds: &[&str]) {
    let name = &job["metadata"]["name"];
    assert_eq!(job["spec"]["template"]["spec"]["serviceAccountName"], *name);
    for kind in kinds {
        let object = objects.of_kind(kind).into_iter().find(|object| object["metadata"]["name"] == *name).unwrap();
        let (of, of_job) = (&object["metadata"]["annotations"], &job["metadata"]["annotations"]);
        assert_eq!(of["helm.sh/hook"], of_job["helm.sh/hook"], "{kind}");
        assert_eq!((&of["helm.sh/hook-weight"], &of_job["helm.sh/hook-weight"]), (&json!("-1"), &json!("0")));
        assert_eq!(of["helm.sh/hook-delete-policy"], "before-hook-creation,hook-succeeded");
    }
}

#[test]
fn the_grace_period_is_longer_than_the_driver_takes_to_end() {
    let grace = Objects::with("").pod()["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(grace >= Config::zero().timeouts.shutdown_seconds + 30, "{grace}");
    let said = render("config: {timeouts: {shutdownSeconds: 280}}");
    assert!(!said.exit.success(), "accepted");
    for part in ["terminationGracePeriodSeconds is 300", "shutdownSeconds (280)"] {
        assert!(said.stderr_text().contains(part), "{}", said.stderr_text());
    }
    Objects::with("config: {timeouts: {shutdownSeconds: 280}}\nterminationGracePeriodSeconds: 310");
}
