//! One CSIStorageCapacity object: read from and written as Kubernetes has it.

use std::collections::BTreeMap;

use k8s_openapi::api::storage::v1::CSIStorageCapacity;
use serde_json::{Value, json};

use crate::identity::{DRIVER_LABEL, Identity, MANAGED_BY_LABEL, MANAGER};
use crate::quantity;

/// What the scheduler is told, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// How much there is.
    pub capacity: u64,
    /// The largest volume that can be made now. Never more than `capacity`.
    pub largest: u64,
}

impl Figures {
    /// No volume can be made.
    pub const NOTHING: Self = Self { capacity: 0, largest: 0 };
}

/// The node that an object belongs to: with it goes the object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Its name.
    pub name: String,
    /// Which node of that name.
    pub uid: String,
}

/// An object as it is in the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Which object of that name.
    pub uid: String,
    /// Which version of it.
    pub version: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whose capacity it tells.
    pub class: String,
    /// The labels of the nodes it speaks of; nothing where it says that in a way no reporter does.
    pub topology: Option<BTreeMap<String, String>>,
    /// What it says, as far as it can be read.
    pub capacity: Option<u64>,
    /// The same.
    pub largest: Option<u64>,
    /// The node that owns it, if that is its only owner.
    pub owner: Option<Owner>,
    /// Whether it was deleted and something holds it back.
    pub leaving: bool,
}

impl Object {
    /// Reads an object.
    #[must_use]
    pub fn of(object: CSIStorageCapacity) -> Self {
        let metadata = object.metadata;
        let bytes = |quantity: Option<k8s_openapi::apimachinery::pkg::api::resource::Quantity>| {
            quantity.and_then(|quantity| quantity::parse(&quantity.0).ok())
        };
        let topology = object.node_topology.and_then(|topology| {
            let expressions = topology.match_expressions.is_some_and(|list| !list.is_empty());
            (!expressions).then(|| topology.match_labels.unwrap_or_default())
        });
        let owner = match metadata.owner_references.unwrap_or_default().as_slice() {
            [owner] if owner.kind == "Node" => Some(Owner { name: owner.name.clone(), uid: owner.uid.clone() }),
            _ => None,
        };
        Self {
            namespace: metadata.namespace.unwrap_or_default(),
            name: metadata.name.unwrap_or_default(),
            uid: metadata.uid.unwrap_or_default(),
            version: metadata.resource_version.unwrap_or_default(),
            labels: metadata.labels.unwrap_or_default(),
            class: object.storage_class_name,
            topology,
            capacity: bytes(object.capacity),
            largest: bytes(object.maximum_volume_size),
            owner,
            leaving: metadata.deletion_timestamp.is_some(),
        }
    }

    /// Whether a reporter of this driver keeps it.
    #[must_use]
    pub fn is_ours(&self, driver: &str) -> bool {
        let label = |key: &str| self.labels.get(key).map(String::as_str);
        label(MANAGED_BY_LABEL) == Some(MANAGER) && label(DRIVER_LABEL) == Some(driver)
    }

    /// Whether it speaks of exactly this node.
    #[must_use]
    pub fn is_of(&self, identity: &Identity) -> bool {
        let (key, value) = &identity.segment;
        let labels = self.topology.as_ref();
        labels.is_some_and(|labels| labels.len() == 1 && labels.get(key) == Some(value))
    }

    /// Whether it says this and is marked as it has to be.
    #[must_use]
    pub fn says(&self, figures: Figures, identity: &Identity, owner: &Owner) -> bool {
        self.capacity == Some(figures.capacity)
            && self.largest == Some(figures.largest)
            && self.owner.as_ref() == Some(owner)
            && identity.labels().iter().all(|(key, value)| self.labels.get(key) == Some(value))
    }

    /// Whether this is a later version than another of the same object. Versions are numbers that only grow.
    #[must_use]
    pub fn is_newer_than(&self, other: &Self) -> bool {
        let number = |version: &str| version.parse::<u128>();
        match (number(&self.version), number(&other.version)) {
            (Ok(own), Ok(other)) => own > other,
            // What came last counts.
            _ => true,
        }
    }
}

/// The object as it has to be. With `uid` it can change that very object only, and make none.
#[must_use]
pub fn manifest(identity: &Identity, owner: &Owner, class: &str, figures: Figures, uid: Option<&str>) -> Value {
    let (key, value) = &identity.segment;
    let mut metadata = json!({
        "name": identity.object_name(class),
        "namespace": identity.namespace,
        "labels": identity.labels(),
        "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": owner.name, "uid": owner.uid}],
    });
    if let Some(uid) = uid {
        metadata["uid"] = json!(uid);
    }
    json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "CSIStorageCapacity",
        "metadata": metadata,
        "storageClassName": class,
        "nodeTopology": {"matchLabels": {key: value}},
        "capacity": quantity::format(figures.capacity),
        "maximumVolumeSize": quantity::format(figures.largest),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tests::here;

    fn read(value: Value) -> Object {
        Object::of(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn what_is_written_says_what_it_should() {
        let owner = Owner { name: "node-1".to_owned(), uid: "u".to_owned() };
        let figures = Figures { capacity: 5 << 30, largest: 3 << 29 };
        let value = manifest(&here(), &owner, "c", figures, None);
        assert_eq!((&value["capacity"], &value["maximumVolumeSize"]), (&json!("5Gi"), &json!("1536Mi")));
        assert_eq!(value["metadata"].get("uid"), None);
        let object = read(value.clone());
        assert!(object.is_ours("lvm.quarry.storage") && object.is_of(&here()) && object.says(figures, &here(), &owner));
        assert!(!object.is_ours("other.driver"));
        for (pointer, wrong) in [
            ("/capacity", json!("4Gi")),
            ("/maximumVolumeSize", json!(null)),
            ("/metadata/labels/app.kubernetes.io~1managed-by", json!("Helm")),
            ("/metadata/ownerReferences/0/uid", json!("of an earlier node")),
            ("/metadata/ownerReferences", json!([])),
        ] {
            let mut changed = value.clone();
            *changed.pointer_mut(pointer).unwrap() = wrong;
            assert!(!read(changed).says(figures, &here(), &owner), "{pointer}");
        }
        for (pointer, wrong) in [
            ("/nodeTopology", json!(null)),
            ("/nodeTopology", json!({})),
            ("/nodeTopology/matchLabels/topology.lvm.quarry.storage~1node", json!("node-2")),
            ("/nodeTopology", json!({"matchExpressions": [{"key": "a", "operator": "Exists"}]})),
        ] {
            let mut changed = value.clone();
            *changed.pointer_mut(pointer).unwrap() = wrong;
            assert!(!read(changed).is_of(&here()), "{pointer}");
        }
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        let of = |version: &str| read(json!({"metadata": {"resourceVersion": version}, "storageClassName": "c"}));
        assert!(
            of("10").is_newer_than(&of("9")) && !of("9").is_newer_than(&of("10")) && !of("9").is_newer_than(&of("9"))
        );
        assert!(of("x").is_newer_than(&of("9")));
    }
}
