//! What this node's objects are called and how they are marked.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

/// The name under which the reporter writes: the field manager, and the value of both labels that say who keeps an object.
pub const MANAGER: &str = "quarry-capacity-reporter";
/// Whose driver's capacity an object tells.
pub const DRIVER_LABEL: &str = "csi.storage.k8s.io/drivername";
/// Who keeps it.
pub const MANAGED_BY_LABEL: &str = "csi.storage.k8s.io/managed-by";
/// The same, for tools that know Kubernetes' recommended labels only.
pub const APP_LABEL: &str = "app.kubernetes.io/managed-by";
/// How csi-provisioner marks what it keeps on a node: this and the node's name.
pub const PROVISIONER_PREFIX: &str = "external-provisioner-";

/// Who this node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The driver's name.
    pub driver: String,
    /// The node's name in Kubernetes.
    pub node: String,
    /// The node's segment: the driver's one topology key and this node's value, which are a label of the node too.
    pub segment: (String, String),
    /// The namespace for the objects.
    pub namespace: String,
}

impl Identity {
    /// The name of the object of a StorageClass: the same for ever, so that no second one can come to be.
    #[must_use]
    pub fn object_name(&self, class: &str) -> String {
        let mut hash = Sha256::new();
        for part in [&self.driver, &self.node, class] {
            // The names have no such byte, so no two triples give the same text.
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        let hash = HEXLOWER.encode(&hash.finalize());
        format!("quarry-{}", &hash[..32])
    }

    /// The labels of this node's objects.
    #[must_use]
    pub fn labels(&self) -> BTreeMap<String, String> {
        let (key, value) = self.segment.clone();
        let of = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        BTreeMap::from([
            of(APP_LABEL, MANAGER),
            of(MANAGED_BY_LABEL, MANAGER),
            of(DRIVER_LABEL, &self.driver),
            (key, value),
        ])
    }

    /// Selects this node's objects.
    #[must_use]
    pub fn selector(&self) -> String {
        let (key, value) = &self.segment;
        format!("{},{key}={value}", manager_selector(&self.driver))
    }

    /// Selects what csi-provisioner wrote for this node, if the node's name fits into its label whole.
    #[must_use]
    pub fn provisioner_selector(&self) -> Option<String> {
        let value = format!("{PROVISIONER_PREFIX}{}", self.node);
        (value.len() <= 63).then(|| format!("{DRIVER_LABEL}={},{MANAGED_BY_LABEL}={value}", self.driver))
    }
}

/// Selects all objects of a driver that reporters keep.
#[must_use]
pub fn manager_selector(driver: &str) -> String {
    format!("{DRIVER_LABEL}={driver},{MANAGED_BY_LABEL}={MANAGER}")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A node for tests.
    pub fn here() -> Identity {
        Identity {
            driver: "lvm.quarry.storage".to_owned(),
            node: "node-1".to_owned(),
            segment: ("topology.lvm.quarry.storage/node".to_owned(), "node-1".to_owned()),
            namespace: "quarry".to_owned(),
        }
    }

    #[test]
    fn names_are_stable_and_differ_by_driver_node_and_class() {
        let name = here().object_name("quarry-thin");
        assert_eq!(name, here().object_name("quarry-thin"));
        assert!(name.len() == 39 && name.starts_with("quarry-"), "{name}");
        // Whoever changes this leaves every object of an earlier release behind as a second one.
        assert_eq!(name, "quarry-ae2d4ca60091a928210e715fe93a03f1");
        let other = Identity { node: "node-1quarry".to_owned(), ..here() };
        assert_ne!(other.object_name("-thin"), here().object_name("quarry-thin"));
        assert_ne!(here().object_name("a"), here().object_name("b"));
    }

    #[test]
    fn a_name_too_long_for_csi_provisioners_label_is_not_looked_for_by_it() {
        assert!(here().provisioner_selector().unwrap().ends_with("managed-by=external-provisioner-node-1"));
        assert_eq!(Identity { node: "n".repeat(43), ..here() }.provisioner_selector(), None);
    }
}
