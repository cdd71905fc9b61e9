//! This node's place in CSI's topology.

use std::collections::HashMap;

use quarry_proto::csi::v1::{Topology, TopologyRequirement};

use crate::volume::TopologyValue;

/// The one topology key: each node is its own segment.
pub const KEY: &str = "topology.lvm.quarry.storage/node";

/// A request for other nodes than this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the volume must be accessible from {wanted}, and this driver makes volumes on {KEY}={here} only")]
pub struct NotHere {
    wanted: String,
    here: TopologyValue,
}

/// A node's segment.
#[must_use]
pub fn of(node: &TopologyValue) -> Topology {
    Topology { segments: HashMap::from([(KEY.to_owned(), node.to_string())]) }
}

/// Whether a requirement allows this node. Only `requisite` binds; without any, every node is allowed.
///
/// # Errors
/// [`NotHere`], saying what was asked for.
pub fn check(requirement: Option<&TopologyRequirement>, node: &TopologyValue) -> Result<(), NotHere> {
    let Some(requirement) = requirement else { return Ok(()) };
    if requirement.requisite.is_empty() || requirement.requisite.iter().any(|topology| allows(topology, node)) {
        return Ok(());
    }
    let wanted: Vec<String> = requirement.requisite.iter().map(describe).collect();
    Err(NotHere { wanted: wanted.join(" or "), here: node.clone() })
}

/// Whether a topology is this node's: it has our key with our value. Keys of others are theirs to judge.
#[must_use]
pub fn allows(topology: &Topology, node: &TopologyValue) -> bool {
    topology.segments.get(KEY).is_some_and(|value| value == node.as_str())
}

fn describe(topology: &Topology) -> String {
    let mut segments: Vec<String> = topology.segments.iter().map(|(key, value)| format!("{key}={value}")).collect();
    segments.sort();
    if segments.is_empty() { "a topology without segments".to_owned() } else { segments.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_node_must_be_among_the_requisite_ones() {
        let (here, there) = (TopologyValue::for_node("a"), TopologyValue::for_node("b"));
        let need = |nodes: &[&TopologyValue]| TopologyRequirement {
            requisite: nodes.iter().map(|n| of(n)).collect(),
            preferred: vec![],
        };
        assert_eq!(check(None, &here), Ok(()));
        assert_eq!(check(Some(&need(&[])), &here), Ok(()));
        assert_eq!(check(Some(&need(&[&there, &here])), &here), Ok(()));
        let error = check(Some(&need(&[&there])), &here).unwrap_err().to_string();
        assert!(error.contains(&format!("{KEY}=b")) && error.ends_with(&format!("{KEY}=a only")), "{error}");
    }
}
