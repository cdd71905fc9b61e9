//! Cleans up after nodes that are there and have lost the driver for good: nobody is left on them to do it.
//!
//! **Invariant.** A node's objects are deleted only after its CSINode has lacked the driver at every look for the whole
//! time, and lacks it at a last look. A rolling update empties it for moments.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::storage::v1::{CSINode, CSIStorageCapacity};
use kube::api::ListParams;
use kube::{Api, Client};
use tokio::time::Instant;

use crate::apply::{Applier, RequestError, within};
use crate::identity::manager_selector;
use crate::lease::Lease;
use crate::telemetry::chain;
use crate::telemetry::metrics::Metrics;

/// How often the janitor looks, at most.
pub const INTERVAL: Duration = Duration::from_secs(300);
/// How many objects a list brings at once. What the janitor needs of memory is mostly this.
const PAGE: u32 = 200;

/// Who cleans.
pub struct Janitor {
    /// To look.
    pub client: Client,
    /// To delete.
    pub applier: Applier,
    /// The driver's name.
    pub driver: String,
    /// For how long a node must have been without the driver.
    pub after: Duration,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// A node's object.
#[derive(Debug, Clone)]
struct Left {
    namespace: String,
    name: String,
    uid: String,
}

/// The names of thousands of nodes in little room: only hashes of them. Where two had the same, a node that lost the
/// driver would not be cleaned up after.
#[derive(Debug, Default)]
struct Names {
    hasher: RandomState,
    hashes: HashSet<u64>,
}

impl Names {
    fn insert(&mut self, name: &str) {
        self.hashes.insert(self.hasher.hash_one(name));
    }

    fn contains(&self, name: &str) -> bool {
        self.hashes.contains(&self.hasher.hash_one(name))
    }
}

/// Since when nodes have been seen without the driver.
#[derive(Debug, Default)]
struct Lacking(HashMap<String, Instant>);

impl Lacking {
    /// Takes a look's result; the nodes that have lacked the driver for the whole time.
    fn note(&mut self, lacking: impl IntoIterator<Item = String>, now: Instant, after: Duration) -> Vec<String> {
        let before = std::mem::take(&mut self.0);
        self.0 = lacking
            .into_iter()
            .map(|node| (before.get(&node).copied().unwrap_or(now), node))
            .map(|(s, n)| (n, s))
            .collect();
        let mut over: Vec<String> = self
            .0
            .iter()
            .filter(|(_, since)| now.duration_since(**since) >= after)
            .map(|(node, _)| node.clone())
            .collect();
        over.sort();
        over
    }
}

impl Janitor {
    /// Cleans whenever it is this reporter's turn, for ever.
    pub async fn run(self, lease: Lease) {
        let mut lacking = Lacking::default();
        let turns = async {
            loop {
                lease.turn().await;
                if let Err(error) = self.look(&mut lacking).await {
                    tracing::warn!(
                        error = chain(&error),
                        "cannot look for nodes without the driver; looked again later"
                    );
                }
            }
        };
        tokio::join!(lease.watch(), turns);
    }

    async fn look(&self, lacking: &mut Lacking) -> Result<(), RequestError> {
        let mut nodes = self.nodes_without(&self.with_driver().await?).await?;
        let over = lacking.note(nodes.keys().cloned(), Instant::now(), self.after);
        for node in over {
            let api: Api<CSINode> = Api::all(self.client.clone());
            let last = within(api.get_opt(&node)).await;
            self.metrics.requested("get", &last);
            if last?.is_some_and(|node| self.has_driver(&node)) {
                continue;
            }
            tracing::warn!(
                node,
                "this node has lacked the driver for {} s: its capacity objects are deleted",
                self.after.as_secs()
            );
            // A node that gets the driver back begins anew.
            lacking.0.remove(&node);
            for Left { namespace, name, uid } in nodes.remove(&node).unwrap_or_default() {
                self.applier.delete(&namespace, &name, &uid).await?;
            }
        }
        Ok(())
    }

    /// The nodes that have the driver.
    async fn with_driver(&self) -> Result<Names, RequestError> {
        let api: Api<CSINode> = Api::all(self.client.clone());
        let mut parameters = ListParams::default().limit(PAGE);
        let mut names = Names::default();
        loop {
            let page = within(api.list(&parameters)).await;
            self.metrics.requested("list", &page);
            let page = page?;
            for node in page.items.iter().filter(|node| self.has_driver(node)) {
                names.insert(node.metadata.name.as_deref().unwrap_or_default());
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => parameters.continue_token = Some(token),
                None => return Ok(names),
            }
        }
    }

    /// The objects that reporters keep of other nodes than these, by node. Objects of a node that is gone have gone with
    /// it.
    async fn nodes_without(&self, with_driver: &Names) -> Result<BTreeMap<String, Vec<Left>>, RequestError> {
        let api: Api<CSIStorageCapacity> = Api::all(self.client.clone());
        let mut parameters = ListParams::default().labels(&manager_selector(&self.driver)).limit(PAGE);
        let mut nodes: BTreeMap<String, Vec<Left>> = BTreeMap::new();
        loop {
            let page = within(api.list_metadata(&parameters)).await;
            self.metrics.requested("list", &page);
            let page = page?;
            for object in page.items {
                let metadata = object.metadata;
                let owner = metadata.owner_references.into_iter().flatten().find(|owner| owner.kind == "Node");
                if let (Some(owner), Some(namespace), Some(name), Some(uid)) =
                    (owner, metadata.namespace, metadata.name, metadata.uid)
                    && !with_driver.contains(&owner.name)
                {
                    nodes.entry(owner.name).or_default().push(Left { namespace, name, uid });
                }
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => parameters.continue_token = Some(token),
                None => return Ok(nodes),
            }
        }
    }

    fn has_driver(&self, node: &CSINode) -> bool {
        node.spec.drivers.iter().any(|driver| driver.name == self.driver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_node_is_over_only_after_the_whole_time_without_a_look_at_the_driver() {
        let after = Duration::from_secs(900);
        let mut lacking = Lacking::default();
        let names = |list: &[&str]| list.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert_eq!(lacking.note(names(&["a", "b"]), Instant::now(), after), names(&[]));
        tokio::time::advance(Duration::from_secs(600)).await;
        // b has the driver for a moment.
        assert_eq!(lacking.note(names(&["a"]), Instant::now(), after), names(&[]));
        tokio::time::advance(Duration::from_secs(300)).await;
        assert_eq!(lacking.note(names(&["a", "b"]), Instant::now(), after), names(&["a"]));
        tokio::time::advance(Duration::from_secs(899)).await;
        assert_eq!(lacking.note(names(&["b"]), Instant::now(), after), names(&[]));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(lacking.note(names(&["b"]), Instant::now(), after), names(&["b"]));
    }
}
