//! The chart's values: where they arrive, and what is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use quarry_driver::config::Config;
use serde_json::{Value, json};

use super::helm::{Objects, chart, render};

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
