//! The Helm chart: what a user gets from it, and what it refuses.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod end;
mod helm;
mod monitoring;
mod rights;
mod values;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use clap::Parser as _;
use helm::{Objects, chart, helm};
use quarry_capacity_reporter::args as reporter;
use quarry_driver::args::{Cli, Command};
use quarry_driver::volume::parameters::{Parameters, Provisioning};
use serde_json::json;

#[test]
fn helm_finds_no_fault() {
    let folder = chart();
    helm(&["lint", "--strict", "--kube-version", "1.36.0", folder.to_str().unwrap()]).success().unwrap();
}

#[test]
fn an_older_kubernetes_is_refused_with_the_version_it_needs() {
    let folder = chart();
    let said = helm(&["template", "quarry", folder.to_str().unwrap(), "--kube-version", "1.31.0"]);
    assert!(!said.exit.success() && said.stderr_text().contains(">=1.32.0-0"), "{}", said.stderr_text());
}

#[test]
fn csi_provisioner_publishes_no_capacity_beside_the_reporter() {
    let objects = Objects::with("");
    assert!(objects.arguments("csi-provisioner").iter().all(|argument| !argument.contains("capacity")));
}

#[test]
fn the_reporter_takes_its_arguments() {
    let objects = Objects::with(
        "capacity: {qps: 0.5, burst: 7, forgetNodesAfter: 1h30m}\ncapacityReporter: {http: {port: 9809}, log: {format: text}}",
    );
    let container = objects.container("capacity-reporter");
    assert_eq!(container["command"], json!(["/usr/bin/quarry-capacity-reporter"]));
    assert_eq!(container["image"], objects.container("driver")["image"]);
    let env: Vec<&str> = container["env"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect();
    assert_eq!(env, ["NODE_NAME", "NAMESPACE"]);
    let mut words = vec!["quarry-capacity-reporter"];
    words.extend(objects.arguments("capacity-reporter"));
    words.extend(["--node-name=n", "--namespace=m"]);
    let reporter::Command::Run(run) = reporter::Cli::try_parse_from(words).unwrap().command else { panic!("not run") };
    assert_eq!((run.requests_per_second, run.request_burst), (0.5, 7));
    assert_eq!(run.forget_nodes_after.as_secs(), 5400);
    assert_eq!(run.csi_socket, Path::new("/csi/csi.sock"));
    assert_eq!(run.http_address, Some("127.0.0.1:9809".parse().unwrap()));
    assert_eq!(container["livenessProbe"]["httpGet"], json!({"host": "127.0.0.1", "port": 9809, "path": "/livez"}));
    assert_eq!(Objects::with("").container("capacity-reporter").get("livenessProbe"), None);
}

#[test]
fn kubernetes_is_told_what_the_driver_does() {
    let objects = Objects::with("");
    let driver = objects.only("CSIDriver");
    assert_eq!(driver["metadata"]["name"], "lvm.quarry.storage");
    let expected = json!({
        "attachRequired": false, "podInfoOnMount": true, "storageCapacity": true, "fsGroupPolicy": "File",
        "seLinuxMount": true, "requiresRepublish": false, "volumeLifecycleModes": ["Persistent"],
    });
    assert_eq!(driver["spec"], expected);
}

#[test]
fn the_storage_classes_are_such_as_the_driver_takes() {
    let objects = Objects::with("");
    let mut seen = BTreeMap::new();
    for class in objects.of_kind("StorageClass") {
        assert_eq!(class["provisioner"], "lvm.quarry.storage");
        assert_eq!(class["volumeBindingMode"], "WaitForFirstConsumer");
        assert_eq!(class["allowVolumeExpansion"], false);
        assert_eq!(class["metadata"].get("annotations"), None, "no default class unless asked for");
        let parameters: HashMap<String, String> = serde_json::from_value(class["parameters"].clone()).unwrap();
        seen.insert(class["metadata"]["name"].as_str().unwrap(), Parameters::parse(&parameters).unwrap().provisioning);
    }
    assert_eq!(seen, BTreeMap::from([("quarry-thin", Provisioning::Thin), ("quarry-thick", Provisioning::Thick)]));
}

#[test]
fn a_storage_class_is_made_as_asked() {
    let objects = Objects::with(
        "storageClasses: [{name: fast, default: true, reclaimPolicy: Retain, volumeBindingMode: Immediate, \
         mountOptions: [noatime], annotations: {a: b}, parameters: {deviceClass: nvme, mkfsOptions: -m 0}}]",
    );
    let class = objects.only("StorageClass");
    assert_eq!(
        class["metadata"]["annotations"],
        json!({"storageclass.kubernetes.io/is-default-class": "true", "a": "b"})
    );
    assert_eq!((&class["reclaimPolicy"], &class["volumeBindingMode"]), (&json!("Retain"), &json!("Immediate")));
    assert_eq!(class["mountOptions"], json!(["noatime"]));
    assert_eq!(class["parameters"], json!({"deviceClass": "nvme", "mkfsOptions": "-m 0"}));
}

#[test]
fn another_kubelet_folder_reaches_every_path() {
    let objects = Objects::with("kubeletDir: /data/kubelet");
    let text = serde_json::to_string(objects.only("DaemonSet")).unwrap();
    assert!(!text.contains("/var/lib/kubelet"), "{text}");
    let arguments = objects.arguments("driver");
    for expected in [
        "--csi-socket=/data/kubelet/plugins/lvm.quarry.storage/csi.sock",
        "--kubelet-csi-socket=/data/kubelet/plugins/lvm.quarry.storage/csi.sock",
        "--registration-socket=/data/kubelet/plugins_registry/lvm.quarry.storage-reg.sock",
    ] {
        assert!(arguments.contains(&expected), "{arguments:?}");
    }
    let mounts = objects.container("driver")["volumeMounts"].as_array().unwrap();
    let kubelet = mounts.iter().find(|mount| mount["name"] == "kubelet").unwrap();
    assert_eq!(
        (&kubelet["mountPath"], &kubelet["mountPropagation"]),
        (&json!("/data/kubelet"), &json!("Bidirectional"))
    );
}

#[test]
fn the_driver_takes_its_arguments() {
    let objects = Objects::with(
        "kubeletDir: /k\nstateDir: /s\ndriver: {log: {format: text, filter: 'info,quarry_driver::lvm=debug'}}\n\
         config: {timeouts: {answerSeconds: 5}}",
    );
    let driver = objects.container("driver");
    let env: Vec<&str> = driver["env"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect();
    assert_eq!(env, ["NODE_NAME"]);
    let parse = |words: &[&str]| Cli::try_parse_from(["quarry-driver"].iter().chain(words)).unwrap().command;
    let mut arguments = objects.arguments("driver");
    arguments.push("--node-name=n");
    let Command::Run(run) = parse(&arguments) else { panic!("{arguments:?}") };
    let socket = Path::new("/k/plugins/lvm.quarry.storage/csi.sock");
    assert_eq!((run.csi_socket.as_path(), run.kubelet_csi_socket.as_deref()), (socket, Some(socket)));
    assert_eq!(run.registration_socket.as_deref(), Some(Path::new("/k/plugins_registry/lvm.quarry.storage-reg.sock")));
    assert_eq!((run.state_dir.as_path(), run.host_lvm_dir.as_path()), (Path::new("/s"), Path::new("/etc/lvm")));
    assert_eq!(run.config.as_deref(), Some(Path::new("/etc/quarry/config.yaml")));
    for probe in ["startupProbe", "livenessProbe"] {
        let words = driver[probe]["exec"]["command"].as_array().unwrap();
        let words: Vec<&str> = words.iter().map(|word| word.as_str().unwrap()).collect();
        let Command::Probe(asked) = parse(&words[1..]) else { panic!("{words:?}") };
        assert_eq!((words[0], asked.csi_socket.as_path()), ("/usr/bin/quarry-driver", socket));
        assert!(asked.timeout_seconds < driver[probe]["timeoutSeconds"].as_u64().unwrap(), "{probe}");
    }
}

#[test]
fn with_an_http_endpoint_the_kubelet_asks_it_and_no_disk_has_a_part_in_liveness() {
    let without = Objects::with("");
    assert!(without.arguments("driver").iter().all(|argument| !argument.starts_with("--http-address")));
    assert_eq!(without.container("driver").get("readinessProbe"), None);
    for (host, asked) in [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("10.1.2.3", "10.1.2.3")] {
        let objects = Objects::with(&format!("driver: {{http: {{host: {host}, port: 9808}}}}"));
        let driver = objects.container("driver");
        let mut words = vec!["quarry-driver"];
        words.extend(objects.arguments("driver"));
        words.push("--node-name=n");
        let Command::Run(run) = Cli::try_parse_from(words).unwrap().command else { panic!("not run") };
        assert_eq!(run.http_address, Some(format!("{host}:9808").parse().unwrap()));
        for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
            assert_eq!(driver[probe]["httpGet"], json!({"host": asked, "port": 9808, "path": path}), "{probe}");
            assert_eq!(driver[probe].get("exec"), None);
        }
        // It may take long to start, and serves HTTP only then.
        assert!(driver["startupProbe"]["exec"].is_object());
    }
    let silent = Objects::with("driver: {http: {port: 9808, readinessProbe: false}}");
    assert_eq!(silent.container("driver").get("readinessProbe"), None);
}
