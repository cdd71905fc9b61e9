//! Manifests of claims, pods and classes, as Kubernetes takes them.

use serde_json::{Value, json};

use super::release::DRIVER;
use crate::artifacts::BUSYBOX;

/// A claim for a filesystem.
#[must_use]
pub fn claim(name: &str, class: &str, size: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": class,
            "resources": {"requests": {"storage": size}},
        },
    })
}

/// A claim for a raw block device.
#[must_use]
pub fn block_claim(name: &str, class: &str, size: &str) -> Value {
    let mut claim = claim(name, class, size);
    claim["spec"]["volumeMode"] = json!("Block");
    claim
}

/// A class of thin volumes with this filesystem.
#[must_use]
pub fn class(name: &str, filesystem: &str) -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name},
        "provisioner": DRIVER,
        "volumeBindingMode": "WaitForFirstConsumer",
        "parameters": {"deviceClass": "default", "provisioning": "thin", "csi.storage.k8s.io/fstype": filesystem},
    })
}

/// A pod that sleeps.
#[derive(Debug, Clone)]
pub struct Pod(Value);

/// Ends at once when asked to.
const SLEEP: &str = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done";

impl Pod {
    /// Without volumes.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "main",
                    "image": BUSYBOX,
                    "imagePullPolicy": "Never",
                    "command": ["sh", "-c", SLEEP],
                    "volumeMounts": [],
                    "volumeDevices": [],
                }],
                "volumes": [],
            },
        }))
    }

    /// With a claim mounted at `/<claim>`.
    #[must_use]
    pub fn mounts(self, claim: &str) -> Self {
        self.uses(claim, "volumeMounts", json!({"name": claim, "mountPath": format!("/{claim}")}))
    }

    /// With a claim's device at `/dev/<claim>`.
    #[must_use]
    pub fn device(self, claim: &str) -> Self {
        self.uses(claim, "volumeDevices", json!({"name": claim, "devicePath": format!("/dev/{claim}")}))
    }

    fn uses(mut self, claim: &str, how: &str, entry: Value) -> Self {
        push(&mut self.0["spec"]["containers"][0][how], entry);
        push(&mut self.0["spec"]["volumes"], json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}}));
        self
    }

    /// Only on this node.
    #[must_use]
    pub fn on(mut self, node: &str) -> Self {
        self.0["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": node});
        self
    }

    /// On this node if that has room.
    #[must_use]
    pub fn preferring(mut self, node: &str) -> Self {
        let hostname =
            json!({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]});
        self.0["spec"]["affinity"] = json!({
            "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": hostname}]},
        });
        self
    }

    /// Not on a node that runs a pod of this name.
    #[must_use]
    pub fn apart_from(mut self, pod: &str) -> Self {
        self.0["spec"]["affinity"] = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{
            "labelSelector": {"matchLabels": {"app": pod}},
            "topologyKey": "kubernetes.io/hostname",
        }]}});
        self
    }

    /// As this user, its volumes owned by this group.
    pub fn run_as(mut self, user: u32, group: u32) -> Self {
        self.0["spec"]["securityContext"] = json!({"runAsUser": user, "runAsGroup": user, "fsGroup": group});
        self
    }

    /// Its container asks for these resources, as in `resources` of a pod.
    #[must_use]
    pub fn resources(mut self, resources: Value) -> Self {
        self.0["spec"]["containers"][0]["resources"] = resources;
        self
    }

    /// Runs this script instead of sleeping.
    #[must_use]
    pub fn script(mut self, script: &str) -> Self {
        self.0["spec"]["containers"][0]["command"] = json!(["sh", "-c", script]);
        self
    }

    /// The manifest.
    #[must_use]
    pub fn manifest(self) -> Value {
        self.0
    }

    /// As the only replica of a StatefulSet of the same name, which makes it anew when it is gone.
    #[must_use]
    pub fn kept(self) -> Value {
        let (name, labels) = (self.0["metadata"]["name"].clone(), self.0["metadata"]["labels"].clone());
        json!({
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",
            "metadata": {"name": name},
            "spec": {
                "serviceName": name,
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": self.0["spec"]},
            },
        })
    }
}

fn push(list: &mut Value, entry: Value) {
    match list {
        Value::Array(entries) => entries.push(entry),
        other => panic!("{other} should be a list"),
    }
}
