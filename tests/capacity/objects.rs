//! The objects themselves: whose they are, and what becomes of those that should not be there.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use quarry_tests::cluster::bed::{SOON, scenario};
use quarry_tests::cluster::capacity::{FRESH, TOPOLOGY, objects, objects_of, published, settled, until};
use quarry_tests::cluster::kubectl::{condition, text};
use quarry_tests::cluster::objects::class;
use quarry_tests::cluster::release::NAMESPACE;
use quarry_tests::wait;
use serde_json::{Value, json};

use crate::{CLASSES, NODES, OBJECTS};

const MIB: u64 = 1 << 20;

#[test]
fn each_node_and_class_has_one_object_that_the_node_owns() {
    scenario("owned", |bed| {
        for node in NODES {
            let uid = text(&bed.kubectl.get(&format!("node {node}"))?, "/metadata/uid").to_owned();
            for class in CLASSES {
                published(bed, class, node)?;
                let [object] = &objects_of(bed, class, node)?[..] else {
                    anyhow::bail!("not one of {class} on {node}")
                };
                let owner = &object["metadata"]["ownerReferences"];
                ensure!(
                    *owner == json!([{"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}]),
                    "{class} on {node} is owned by {owner}"
                );
            }
        }
        let count = objects(bed)?.len();
        ensure!(count == OBJECTS, "{count} objects");
        Ok(())
    });
}

#[test]
fn what_somebody_else_does_to_a_group_is_published() {
    scenario("behind", |bed| {
        for node in NODES {
            let before = settled(bed, "quarry-thick", node)?;
            bed.on(node, "lvcreate --yes --activate n --zero n --name of-an-admin --size 64m quarry")?;
            let outcome = until(bed, "quarry-thick", node, "64 MiB less", FRESH, |room| {
                room.largest == before.largest - 64 * MIB
            });
            bed.on(node, "lvremove --yes quarry/of-an-admin")?;
            outcome?;
            until(bed, "quarry-thick", node, "as much as before", FRESH, |room| room == before)?;
        }
        Ok(())
    });
}

#[test]
fn classes_come_and_go() {
    scenario("classes", |bed| {
        let (good, mut bad) = (class("test-xfs", "xfs"), class("test-wrong", "xfs"));
        bad["parameters"]["noSuchParameter"] = json!("x");
        bed.apply(&[good, bad])?;
        let outcome = (|| {
            for node in NODES {
                until(bed, "test-xfs", node, "as much as of the other thin class", FRESH, |room| room.largest > 0)?;
                until(bed, "test-wrong", node, "nothing", FRESH, |room| room.total == 0 && room.largest == 0)?;
            }
            Ok(())
        })();
        bed.kubectl.run("delete storageclass test-xfs test-wrong")?;
        outcome.and_then(|()| {
            wait::until("end of the classes' objects", FRESH, Duration::from_millis(500), || {
                Ok((objects(bed)?.len() == OBJECTS).then_some(()))
            })
        })
    });
}

#[test]
fn stale_objects_go_and_foreign_ones_stay() {
    scenario("stale", |bed| {
        let (class, node) = ("quarry-thick", NODES[1]);
        let right = settled(bed, class, node)?;
        let object = objects_of(bed, class, node)?.remove(0);
        let name = text(&object, "/metadata/name").to_owned();
        let system = bed.kubectl.within(NAMESPACE);
        let claims_much = |name: &str, manager: &str| {
            let mut labels = object["metadata"]["labels"].clone();
            labels["csi.storage.k8s.io/managed-by"] = json!(manager);
            json!({
                "apiVersion": "storage.k8s.io/v1", "kind": "CSIStorageCapacity",
                "metadata": {"name": name, "labels": labels},
                "storageClassName": class, "nodeTopology": object["nodeTopology"],
                "capacity": "100Ti", "maximumVolumeSize": "100Ti",
            })
        };
        // Changed by hand.
        system.run(&format!("patch csistoragecapacity {name} --type=merge -p {{\"maximumVolumeSize\":\"100Ti\"}}"))?;
        until(bed, class, node, "what it was", FRESH, |room| room == right)?;
        // Deleted by hand.
        system.run(&format!("delete csistoragecapacity {name}"))?;
        until(bed, class, node, "what it was", FRESH, |room| room == right)?;
        // A second one of ours, here and in another namespace.
        let second = claims_much("a-second-one", "quarry-capacity-reporter");
        system.apply(&second.to_string())?;
        bed.kubectl.apply(&second.to_string())?;
        until(bed, class, node, "one object only", FRESH, |room| room == right)?;
        // Somebody else's is left alone, whatever it says.
        system.apply(&claims_much("a-foreign-one", "somebody").to_string())?;
        // One that csi-provisioner left: the next reporter of the node deletes it.
        system.apply(&claims_much("csisc-abcde", &format!("external-provisioner-{node}")).to_string())?;
        let outcome = (|| {
            let pod = bed.release.pod_on(node)?;
            system.run(&format!("delete pod {pod} --wait=false"))?;
            system.wait_gone("csistoragecapacity csisc-abcde", FRESH * 3)?;
            bed.release.wait_ready(&NODES)?;
            let there = system.find("csistoragecapacity a-foreign-one")?.context("a foreign object was deleted")?;
            ensure!(there["maximumVolumeSize"] == "100Ti", "a foreign object was changed: {there}");
            Ok(())
        })();
        system.run("delete csistoragecapacity a-foreign-one csisc-abcde --ignore-not-found")?;
        outcome
    });
}

#[test]
fn a_nodes_token_writes_no_other_nodes_objects() {
    scenario("policy", |bed| {
        let object = |node: &str| -> Result<Value> { Ok(objects_of(bed, CLASSES[0], node)?.remove(0)) };
        let (own, other) = (object(NODES[0])?, object(NODES[1])?);
        let name = |object: &Value| text(object, "/metadata/name").to_owned();
        let manifest = |node: &str, driver: &str, manager: &str| {
            json!({
                "apiVersion": "storage.k8s.io/v1", "kind": "CSIStorageCapacity",
                "metadata": {"name": "of-a-test", "labels": {
                    "csi.storage.k8s.io/drivername": driver, "csi.storage.k8s.io/managed-by": manager, TOPOLOGY: node,
                }},
                "storageClassName": "no-such-class", "nodeTopology": {"matchLabels": {TOPOLOGY: node}}, "capacity": "1Gi",
            })
            .to_string()
        };
        let (driver, manager) = ("lvm.quarry.storage", "quarry-capacity-reporter");
        let patch = r#"{"capacity":"1Ti"}"#;
        // The token of a pod on the first node.
        let as_node = |arguments: &[&str], stdin: &str, node: &str| {
            let account = format!("--as=system:serviceaccount:{NAMESPACE}:quarry-node");
            let node = format!("--as-user-extra=authentication.kubernetes.io/node-name={node}");
            let namespace = format!("--namespace={NAMESPACE}");
            let command = quarry_tests::command::Command::new(bed.kubectl.program());
            let command =
                command.args([account.as_str(), node.as_str(), namespace.as_str()]).args(arguments).stdin(stdin);
            quarry_tests::process::run(&command, SOON)
        };
        let own_name = name(&own);
        let other_name = name(&other);
        for (what, arguments, stdin, node) in [
            (
                "another node's patch",
                &["patch", "csistoragecapacity", &other_name, "--type=merge", "-p", patch][..],
                "",
                NODES[0],
            ),
            ("no node", &["patch", "csistoragecapacity", &own_name, "--type=merge", "-p", patch], "", ""),
            ("another node's object", &["create", "-f", "-"], &manifest(NODES[1], driver, manager), NODES[0]),
            ("all nodes' object", &["create", "-f", "-"], &manifest("", driver, manager), NODES[0]),
            ("another driver's", &["create", "-f", "-"], &manifest(NODES[0], "other", manager), NODES[0]),
            ("another manager's", &["create", "-f", "-"], &manifest(NODES[0], driver, "somebody"), NODES[0]),
        ] {
            let said = as_node(arguments, stdin, node)?;
            ensure!(!said.exit.success() && said.stderr_text().contains("quarry-capacity"), "{what}: {said:?}");
        }
        // So it was the policy: its own it may, and put right it is at once.
        as_node(&["patch", "csistoragecapacity", &own_name, "--type=merge", "-p", patch], "", NODES[0])?.success()?;
        until(bed, CLASSES[0], NODES[0], "what is true", FRESH, |room| room.total < 1 << 40)?;
        // One of a class that does not exist: its reporter has nothing to say there, and deletes it.
        as_node(&["create", "-f", "-"], &manifest(NODES[0], driver, manager), NODES[0])?.success()?;
        bed.kubectl.within(NAMESPACE).wait_gone("csistoragecapacity of-a-test", FRESH)?;
        as_node(&["delete", "csistoragecapacity", &other_name], "", NODES[0])?.success()?;
        published(bed, CLASSES[0], NODES[1]).map(drop)
    });
}

#[test]
fn a_node_that_is_ready_is_told_of() {
    scenario("ready", |bed| {
        for node in NODES {
            let now = bed.kubectl.get(&format!("node {node}"))?;
            ensure!(condition(&now, "Ready") == "True", "{node} is not ready");
            for class in CLASSES {
                let room = published(bed, class, node)?;
                ensure!(room.largest > 0, "{class} on {node}: {room:?}");
            }
        }
        Ok(())
    });
}
