//! The volume handle: `<topology value>/<LV name>`.
//!
//! A handle says which node its volume lives on, so that a request sent to the wrong node is noticed without a look-up.

use std::fmt;

use data_encoding::BASE32_NOPAD;
use sha2::{Digest as _, Sha256};

use super::LvName;

/// The longest value of a Kubernetes label.
const MAX_LABEL_VALUE: usize = 63;

/// A node's value of the topology key: the node's name where that can be a label's value, else cut and hashed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopologyValue(String);

impl TopologyValue {
    /// The value for a node. Node names are DNS names of at most 253 characters, label values have at most 63.
    #[must_use]
    pub fn for_node(node_name: &str) -> Self {
        if is_label_value(node_name) {
            return Self(node_name.to_owned());
        }
        let digest = Sha256::digest(node_name.as_bytes());
        let hash = BASE32_NOPAD.encode(digest.get(..10).unwrap_or_default()).to_ascii_lowercase();
        let kept: String = node_name.chars().filter(char::is_ascii_alphanumeric).take(MAX_LABEL_VALUE - 17).collect();
        Self(if kept.is_empty() { hash } else { format!("{kept}-{hash}") })
    }

    /// The value as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TopologyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_label_value(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    !text.is_empty()
        && text.len() <= MAX_LABEL_VALUE
        && text.bytes().all(inner)
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
}

/// What identifies a volume to Kubernetes, for ever.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeHandle {
    /// Where it lives.
    pub node: TopologyValue,
    /// Which logical volume it is.
    pub lv: LvName,
}

impl VolumeHandle {
    /// Reads a handle; nothing for a text that Quarry never gave out as one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (node, lv) = text.split_once('/')?;
        Some(Self { node: is_label_value(node).then(|| TopologyValue(node.to_owned()))?, lv: LvName::parse(lv)? })
    }
}

impl fmt::Display for VolumeHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.node, self.lv)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_long_node_name_is_cut_and_hashed() {
        let long = format!("{}.example.org", "n".repeat(200));
        let value = TopologyValue::for_node(&long);
        assert!(is_label_value(value.as_str()), "{value}");
        assert_ne!(value, TopologyValue::for_node(&format!("{long}x")));
        assert_eq!(TopologyValue::for_node("node-1.example").as_str(), "node-1.example");
    }

    #[test]
    fn foreign_handles_are_recognised() {
        for foreign in ["", "/", "node", "node/", "/lv", "a b/pvc-1", "node/a/b", "fake-vol-id-0123456789"] {
            assert_eq!(VolumeHandle::parse(foreign), None, "{foreign}");
        }
    }

    proptest! {
        #[test]
        fn a_handle_is_read_back_and_short_enough(node in "[a-z0-9.-]{1,253}", name in "\\PC{1,32}") {
            let handle = VolumeHandle { node: TopologyValue::for_node(&node), lv: LvName::for_csi_name(&name).unwrap() };
            let text = handle.to_string();
            prop_assert!(text.len() <= 128);
            prop_assert_eq!(VolumeHandle::parse(&text), Some(handle));
        }
    }
}
