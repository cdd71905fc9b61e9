//! The Helm chart: what a user gets from it, and what it refuses.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod helm;
mod monitoring;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use clap::Parser as _;
use helm::{NAMESPACE, Objects, chart, helm, render};
use quarry_capacity_reporter::args as reporter;
use quarry_capacity_reporter::identity::Identity;
use quarry_driver::args::{Cli, Command};
use quarry_driver::config::Config;
use quarry_driver::volume::parameters::{Parameters, Provisioning};
use serde_json::{Value, json};

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

fn node_account(objects: &Objects) -> &Value {
    objects.of_kind("ServiceAccount").into_iter().find(|account| account["metadata"]["name"] == "quarry-node").unwrap()
}

#[test]
fn the_driver_has_no_token() {
    let objects = Objects::with("");
    assert_eq!(objects.pod()["automountServiceAccountToken"], false);
    assert_eq!(node_account(&objects)["automountServiceAccountToken"], false);
    let has_token = |container: &str| {
        let sources = |volume: &&Value| volume["projected"]["sources"].as_array().cloned().unwrap_or_default();
        let volumes = objects.volumes_of(container);
        assert!(volumes.iter().all(|volume| volume.get("secret").is_none()));
        volumes.iter().flat_map(sources).any(|source| source.get("serviceAccountToken").is_some())
    };
    assert!(!has_token("driver"));
    assert!(has_token("csi-provisioner") && has_token("capacity-reporter"));
    // The kubelet keeps the pods' tokens below `pods`: the driver must see that folder, but no part of it is its own token.
    let mounts = objects.container("driver")["volumeMounts"].as_array().unwrap();
    assert!(mounts.iter().all(|mount| !mount["mountPath"].as_str().unwrap().contains("secrets")));
}

#[test]
fn only_the_driver_is_privileged() {
    let objects = Objects::with("");
    let pod = objects.pod();
    assert_eq!(pod["hostNetwork"], true);
    assert_eq!((pod.get("hostPID"), pod.get("hostIPC")), (None, None));
    assert_eq!(pod["containers"].as_array().unwrap().len(), 3);
    assert_eq!(objects.container("driver")["securityContext"]["privileged"], true);
    let expected = json!({
        "runAsUser": 0, "runAsGroup": 0, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
    });
    for container in ["csi-provisioner", "capacity-reporter"] {
        assert_eq!(objects.container(container)["securityContext"], expected, "{container}");
        // Nothing of the host but the socket.
        let host: Vec<&Value> = objects.volumes_of(container).into_iter().filter_map(|v| v.get("hostPath")).collect();
        let [socket] = host[..] else { panic!("{container}: {host:?}") };
        assert_eq!(socket["path"], "/var/lib/kubelet/plugins/lvm.quarry.storage");
    }
}

/// What the roles of this name allow: kind of role, resource, verb.
fn rights(objects: &Objects, name: &str) -> BTreeSet<(String, String, String)> {
    let mut granted = BTreeSet::new();
    for role in [objects.of_kind("ClusterRole"), objects.of_kind("Role")].concat() {
        for rule in role["rules"].as_array().unwrap().iter().filter(|_| role["metadata"]["name"] == name) {
            assert_eq!(rule["apiGroups"].as_array().unwrap().len(), 1);
            for resource in rule["resources"].as_array().unwrap() {
                for verb in rule["verbs"].as_array().unwrap() {
                    let text = |value: &Value| value.as_str().unwrap().to_owned();
                    let named =
                        rule["resourceNames"].as_array().map(|names| names.iter().map(text).collect::<String>());
                    let resource = text(resource) + &named.map_or(String::new(), |name| format!("/{name}"));
                    granted.insert((text(&role["kind"]), resource, text(verb)));
                }
            }
        }
    }
    granted
}

#[test]
fn rights_are_these_and_no_others() {
    let objects = Objects::with("");
    for (name, expected) in [
        (
            "quarry-provisioner",
            &[
                ("ClusterRole", "persistentvolumes", "list watch create patch delete"),
                ("ClusterRole", "persistentvolumeclaims", "list watch update"),
                ("ClusterRole", "storageclasses", "list watch"),
                ("ClusterRole", "events", "create patch"),
            ][..],
        ),
        (
            "quarry-capacity",
            &[
                ("ClusterRole", "csistoragecapacities", "list watch delete"),
                ("ClusterRole", "storageclasses", "list watch"),
                ("ClusterRole", "csinodes", "get list"),
                ("ClusterRole", "nodes", "get"),
                ("ClusterRole", "pods", "list"),
                ("ClusterRole", "persistentvolumeclaims", "get"),
                ("ClusterRole", "events", "create patch"),
                ("Role", "csistoragecapacities", "get create patch"),
                ("Role", "leases/quarry-capacity-janitor", "list watch patch"),
            ],
        ),
        (
            "quarry-capacity-clean",
            &[
                ("ClusterRole", "csistoragecapacities", "list delete"),
                ("Role", "rolebindings/quarry-capacity", "delete"),
            ],
        ),
        ("quarry-restore-io", &[("Role", "pods", "get list"), ("Role", "pods/exec", "get create")]),
    ] {
        let expected: BTreeSet<_> = expected
            .iter()
            .flat_map(|(kind, resource, verbs)| verbs.split(' ').map(move |verb| (kind, resource, verb)))
            .map(|(kind, resource, verb)| ((*kind).to_owned(), (*resource).to_owned(), verb.to_owned()))
            .collect();
        assert_eq!(rights(&objects, name), expected, "{name}");
    }
    assert_eq!(objects.of_kind("ClusterRole").len() + objects.of_kind("Role").len(), 6);
}

#[test]
fn without_published_capacity_nothing_of_it_is_left() {
    let objects = Objects::with("capacity: {publish: false}");
    assert_eq!(objects.only("CSIDriver")["spec"]["storageCapacity"], false);
    assert!(objects.arguments("csi-provisioner").iter().all(|argument| !argument.contains("capacity")));
    assert_eq!(objects.pod()["containers"].as_array().unwrap().len(), 2);
    assert_eq!(rights(&objects, "quarry-capacity"), BTreeSet::new());
    for kind in ["Lease", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"] {
        assert!(objects.of_kind(kind).is_empty(), "{kind}");
    }
    // What was published before is removed by the update that ends it.
    let hooks =
        |objects: &Objects| job(objects, "quarry-capacity-clean")["metadata"]["annotations"]["helm.sh/hook"].clone();
    assert_eq!(hooks(&objects), "pre-delete,post-upgrade");
    assert_eq!(hooks(&Objects::with("")), "pre-delete");
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

fn job<'a>(objects: &'a Objects, name: &str) -> &'a Value {
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
fn a_nodes_token_writes_that_nodes_capacity_only() {
    let objects = Objects::with("");
    let policy = &objects.only("ValidatingAdmissionPolicy")["spec"];
    assert_eq!(policy["failurePolicy"], "Fail");
    let condition = policy["matchConditions"][0]["expression"].as_str().unwrap();
    assert_eq!(condition, "request.userInfo.username == 'system:serviceaccount:storage:quarry-node'");
    assert_eq!(objects.only("ValidatingAdmissionPolicyBinding")["spec"]["validationActions"], json!(["Deny"]));
    // What the policy demands is what a reporter writes.
    let text = policy.to_string();
    let here = Identity {
        driver: "lvm.quarry.storage".to_owned(),
        node: "n".to_owned(),
        segment: ("topology.lvm.quarry.storage/node".to_owned(), "n".to_owned()),
        namespace: NAMESPACE.to_owned(),
    };
    for (key, value) in here.labels().iter().filter(|(key, _)| key.starts_with("csi.storage.k8s.io/")) {
        assert!(text.contains(&format!("'{key}'")) && text.contains(&format!("'{value}'")), "{key}={value}");
    }
    assert!(text.contains(&format!("'{}'", here.segment.0)));
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
fn the_configuration_reaches_the_driver_as_it_was_written() {
    let objects = Objects::with(
        "config:
  deviceClasses:
    - {name: default, volumeGroup: quarry, overprovisionRatio: 1.0, reserveBytes: 1099511627776}
    - {name: hdd, volumeGroup: spinning, devices: [/dev/disk/by-id/a], poolPercent: 50, thinPool: pool}
  nodes:
    - match: storage-*
      deviceClasses: [{name: default, volumeGroup: fast, overprovisionRatio: 2.5}]
  timeouts: {answerSeconds: 5, killSeconds: 100000000}
",
    );
    let text = objects.configuration().unwrap();
    let config = Config::parse(text, Path::new("config.yaml"), "other-1").unwrap();
    let class = config.class("default").unwrap();
    assert_eq!((class.reserve_bytes, class.overprovision_ratio), (1_099_511_627_776, 1.0));
    assert_eq!(config.class("hdd").unwrap().pool_percent, 50);
    assert_eq!((config.timeouts.answer_seconds, config.timeouts.kill_seconds), (5, 100_000_000));
    let elsewhere = Config::parse(text, Path::new("config.yaml"), "storage-1").unwrap();
    assert_eq!(elsewhere.class("default").unwrap().volume_group, "fast");
    let mounts = objects.container("driver")["volumeMounts"].as_array().unwrap();
    assert!(mounts.iter().any(|mount| mount["name"] == "config" && mount["mountPath"] == "/etc/quarry"));
    assert!(objects.arguments("driver").contains(&"--config=/etc/quarry/config.yaml"));
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

#[test]
fn without_a_configuration_the_driver_gets_none() {
    let objects = Objects::with("");
    assert_eq!(objects.configuration(), None);
    assert!(objects.arguments("driver").iter().all(|argument| !argument.starts_with("--config")));
}

#[test]
fn a_changed_configuration_and_nothing_else_restarts_the_pods() {
    let pods = |values: &str| Objects::with(values).only("DaemonSet")["spec"]["template"].clone();
    let one = pods("config: {timeouts: {answerSeconds: 5}}");
    assert_eq!(one, pods("config: {timeouts: {answerSeconds: 5}}\nstorageClasses: []"));
    assert_ne!(one, pods("config: {timeouts: {answerSeconds: 6}}"));
}

#[test]
fn values_for_placement_and_images_arrive() {
    let objects = Objects::with(
        "driver: {image: {repository: example.org/q, tag: '2', pullPolicy: Always}, resources: {limits: {memory: 1Gi}}}
imagePullSecrets: [{name: key}]
nodeSelector: {disk: fast}
tolerations: [{key: a, operator: Exists}]
priorityClassName: system-cluster-critical
maxUnavailable: 20%
terminationGracePeriodSeconds: 10000000
kubernetesApi: {host: 10.0.0.1, port: 6443}
podLabels: {team: storage}
",
    );
    let (pod, driver) = (objects.pod(), objects.container("driver"));
    assert_eq!((&driver["image"], &driver["imagePullPolicy"]), (&json!("example.org/q:2"), &json!("Always")));
    assert_eq!(driver["resources"]["limits"]["memory"], "1Gi");
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "key"}]));
    assert_eq!(pod["nodeSelector"], json!({"kubernetes.io/os": "linux", "disk": "fast"}));
    assert_eq!(pod["tolerations"], json!([{"key": "a", "operator": "Exists"}]));
    assert_eq!(pod["priorityClassName"], "system-cluster-critical");
    assert_eq!(pod["terminationGracePeriodSeconds"], 10_000_000);
    let update = &objects.only("DaemonSet")["spec"]["updateStrategy"]["rollingUpdate"];
    assert_eq!(*update, json!({"maxSurge": 0, "maxUnavailable": "20%"}));
    for container in ["csi-provisioner", "capacity-reporter"] {
        let env = objects.container(container)["env"].as_array().unwrap();
        for expected in [("KUBERNETES_SERVICE_HOST", "10.0.0.1"), ("KUBERNETES_SERVICE_PORT", "6443")] {
            assert!(env.contains(&json!({"name": expected.0, "value": expected.1})), "{env:?}");
        }
    }
    let defaults = Objects::with("");
    assert_eq!(defaults.container("driver")["image"], format!("localhost/quarry-driver:{}", env!("CARGO_PKG_VERSION")));
    assert_eq!(
        defaults.container("driver")["resources"].get("limits"),
        None,
        "lvm, mkfs and fsck must not meet a limit"
    );
}

#[test]
fn a_mistake_in_the_values_is_named() {
    for (values, named) in [
        ("drivr: {}", "additional properties 'drivr' not allowed"),
        ("driver: {image: {tagg: a}}", "additional properties 'tagg' not allowed"),
        ("driver: {log: {format: xml}}", "at '/driver/log/format': value must be one of 'json', 'text'"),
        ("driver: {http: {port: 70000}}", "at '/driver/http/port'"),
        ("kubeletDir: var/lib/kubelet", "at '/kubeletDir': 'var/lib/kubelet' does not match pattern"),
        ("kubeletDir: /var/lib/kubelet/", "at '/kubeletDir'"),
        ("csiProvisioner: {timeout: 30}", "at '/csiProvisioner/timeout'"),
        ("capacity: {pollInterval: 10s}", "at '/capacity': additional properties 'pollInterval' not allowed"),
        ("capacity: {forgetNodesAfter: 15}", "at '/capacity/forgetNodesAfter'"),
        ("capacityReporter: {http: {port: 70000}}", "at '/capacityReporter/http/port'"),
        ("config: {deviceClass: []}", "at '/config': additional properties 'deviceClass' not allowed"),
        ("config: {deviceClasses: [{name: a}]}", "at '/config/deviceClasses/0': missing property 'volumeGroup'"),
        (
            "config: {deviceClasses: [{name: a, volumeGroup: b, poolPercent: 0}]}",
            "'/config/deviceClasses/0/poolPercent'",
        ),
        ("config: {nodes: [{match: a}]}", "at '/config/nodes/0': missing property 'deviceClasses'"),
        ("config: {timeouts: {answerSecond: 1}}", "at '/config/timeouts': additional properties 'answerSecond'"),
        ("storageClasses: [{parameters: {}}]", "at '/storageClasses/0': missing property 'name'"),
        (
            "storageClasses: [{name: a, parameters: {deviceclass: a}}]",
            "additional properties 'deviceclass' not allowed",
        ),
        ("storageClasses: [{name: a, parameters: {provisioning: fat}}]", "value must be one of 'thin', 'thick'"),
        ("storageClasses: [{name: a, allowVolumeExpansion: true}]", "additional properties 'allowVolumeExpansion'"),
        ("maxUnavailable: 0", "at '/maxUnavailable'"),
        ("tolerations: {}", "at '/tolerations': got object, want array"),
    ] {
        let said = render(values);
        assert!(!said.exit.success(), "accepted: {values}");
        assert!(said.stderr_text().contains(named), "{values}: {}", said.stderr_text());
    }
}

#[test]
fn the_values_file_the_schema_and_the_driver_know_the_same_keys() {
    let read = |file: &str| std::fs::read_to_string(chart().join(file)).unwrap();
    let schema: Value = serde_json::from_str(&read("values.schema.json")).unwrap();
    let values: Value = serde_saphyr::from_str(&read("values.yaml")).unwrap();
    compare("", &schema, &values, &schema);
    // A configuration with every key that the schema knows is one that the driver takes.
    let full = "deviceClasses:\n- {name: a, volumeGroup: b, thinPool: c, poolPercent: 1, overprovisionRatio: 1, reserveBytes: 1, \
                devices: [/dev/sda]}\nnodes:\n- {match: a, deviceClasses: [], io: {weights: bfq}}\n\
                io: {weights: iocost, qosClasses: true, calibration: onRequest, models: [{disk: sda, speed: {readBps: 1, \
                readSequentialIops: 1, readRandomIops: 1, writeBps: 1, writeSequentialIops: 1, writeRandomIops: 1}}]}\ntimeouts: {answerSeconds: 1, nodeAnswerSeconds: 1, \
                killSeconds: 2, shutdownSeconds: 1}\n";
    let written: Value = serde_saphyr::from_str(full).unwrap();
    let keys = |object: &Value| object.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let config = &schema["properties"]["config"]["properties"];
    assert_eq!(keys(config), keys(&written));
    assert_eq!(keys(&config["timeouts"]["properties"]), keys(&written["timeouts"]));
    let io = &schema["definitions"]["io"]["properties"];
    assert_eq!(keys(io), keys(&written["io"]));
    let model = &io["models"]["items"]["properties"];
    assert_eq!(keys(&model["speed"]["properties"]), keys(&written["io"]["models"][0]["speed"]));
    assert_eq!(
        keys(&schema["definitions"]["deviceClasses"]["items"]["properties"]),
        keys(&written["deviceClasses"][0])
    );
    Config::parse(full, Path::new("config.yaml"), "n").unwrap();
}

#[test]
fn the_documentation_has_every_key() {
    let read = |file: &str| std::fs::read_to_string(chart().join(file)).unwrap();
    let schema: Value = serde_json::from_str(&read("values.schema.json")).unwrap();
    let keys =
        |pointer: &str| schema.pointer(pointer).unwrap().as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let parameters = "/properties/storageClasses/items/properties/parameters/properties";
    for (document, pointer) in [
        ("parameters.md", parameters),
        ("configuration.md", "/properties/config/properties/timeouts/properties"),
        ("configuration.md", "/properties/config/properties/nodes/items/properties"),
        ("configuration.md", "/definitions/deviceClasses/items/properties"),
        ("configuration.md", "/definitions/io/properties"),
    ] {
        let text = read(&format!("../../docs/{document}"));
        for key in keys(pointer) {
            // One row may be of several.
            let mut described = text.lines().filter_map(|line| line.strip_prefix('|')?.split('|').next());
            assert!(described.any(|cell| cell.contains(&format!("`{key}`"))), "{document} does not describe {key}");
        }
    }
}

/// Every key of the schema is in the values file, with its comment there, and the other way round.
fn compare(place: &str, schema: &Value, values: &Value, root: &Value) {
    let schema = match schema["$ref"].as_str() {
        Some(reference) => root.pointer(reference.trim_start_matches('#')).unwrap(),
        None => schema,
    };
    let (Some(known), Some(present)) = (schema["properties"].as_object(), values.as_object()) else { return };
    if present.is_empty() {
        return;
    }
    // Helm's own, for charts that include this one.
    let known: BTreeMap<_, _> = known.iter().filter(|(key, _)| !place.is_empty() || *key != "global").collect();
    assert_eq!(
        known.keys().copied().collect::<Vec<_>>(),
        present.keys().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>(),
        "{place}"
    );
    for (key, schema) in known {
        compare(&format!("{place}/{key}"), schema, &present[key], root);
    }
}
