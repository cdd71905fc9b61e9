//! Who may do what: privileges, tokens, roles, and the policy on capacity objects.

use std::collections::BTreeSet;

use quarry_capacity_reporter::identity::Identity;
use serde_json::{Value, json};

use super::end::job;
use super::helm::{NAMESPACE, Objects};

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
pub fn rights(objects: &Objects, name: &str) -> BTreeSet<(String, String, String)> {
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
