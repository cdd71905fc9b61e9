//! The simulated cluster: Node and CSINode objects with nobody behind them, and tokens as pods on these nodes have them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use k8s_openapi::api::storage::v1::{CSINode, CSIStorageCapacity};
use kube::api::{Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Config};
use quarry_capacity_reporter::identity::{Identity, MANAGER};
use quarry_capacity_reporter::object::{Figures, Owner, manifest};
use quarry_tests::cluster::capacity::TOPOLOGY;
use quarry_tests::cluster::nodeless::Access;
use quarry_tests::cluster::release::{DRIVER, NAMESPACE};
use serde_json::json;
use tokio::sync::Notify;

use crate::herd::Member;

/// How many requests of the benchmark's own go on at the same time.
const AT_ONCE: usize = 16;
/// The account of the chart's pods.
const ACCOUNT: &str = "quarry-node";
/// The janitors' lease.
const LEASE: &str = "quarry-capacity-janitor";

/// The name of a simulated node.
#[must_use]
pub fn name(index: usize) -> String {
    format!("node-{index:05}")
}

/// An administrator's client of the API server with this number.
///
/// # Errors
/// When the cluster's folder is not as it should be.
pub async fn admin(access: &Access, server: usize) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(access.folder.join("admin.kubeconfig"))?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.cluster_url = access.servers.get(server).context("no such API server")?.parse()?;
    Ok(Client::try_from(config)?)
}

/// Makes the nodes with these numbers; gives what their reporters need. They talk to the API servers in turn.
///
/// # Errors
/// When the API server refuses one.
pub async fn nodes(
    client: &Client,
    access: &Access,
    numbers: std::ops::Range<usize>,
    room: i64,
) -> Result<Vec<Member>> {
    let make = |index: usize| async move {
        let node = name(index);
        let server = access.servers.get(index % access.servers.len()).context("no API server")?.clone();
        let (uid, token) = make_node(client, &node).await.with_context(|| format!("cannot make {node}"))?;
        Ok(Member { node, uid, token, server, room })
    };
    futures::stream::iter(numbers).map(make).buffered(AT_ONCE).try_collect().await
}

async fn make_node(client: &Client, node: &str) -> Result<(String, String)> {
    let post = PostParams::default();
    let object = json!({"metadata": {"name": node, "labels": {TOPOLOGY: node, "kubernetes.io/hostname": node}}});
    let made = Api::<Node>::all(client.clone()).create(&post, &serde_json::from_value(object)?).await?;
    let uid = made.metadata.uid.context("a node without a UID")?;
    let csi_node = json!({
        "metadata": {"name": node},
        "spec": {"drivers": [{"name": DRIVER, "nodeID": node, "topologyKeys": [TOPOLOGY]}]},
    });
    Api::<CSINode>::all(client.clone()).create(&post, &serde_json::from_value(csi_node)?).await?;
    let request: TokenRequest = serde_json::from_value(json!({
        "spec": {
            "audiences": [],
            "expirationSeconds": 86_400,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid},
        },
    }))?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
    let token = accounts.create_token_request(ACCOUNT, &post, &request).await?;
    Ok((uid, token.status.context("no token came")?.token))
}

/// Makes the objects of nodes whose reporter does not run, just as it would leave them.
///
/// # Errors
/// When the API server refuses one.
pub async fn publish(client: &Client, members: &[Member]) -> Result<()> {
    let api: Api<CSIStorageCapacity> = Api::namespaced(client.clone(), NAMESPACE);
    let parameters = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
    let make = |(member, class): (&Member, &str)| {
        let identity = Identity {
            driver: DRIVER.to_owned(),
            node: member.node.clone(),
            segment: (TOPOLOGY.to_owned(), member.node.clone()),
            namespace: NAMESPACE.to_owned(),
        };
        let owner = Owner { name: member.node.clone(), uid: member.uid.clone() };
        let room = member.room.unsigned_abs();
        let object = manifest(&identity, &owner, class, Figures { capacity: room, largest: room }, None);
        let (api, parameters) = (api.clone(), &parameters);
        async move {
            api.create(parameters, &serde_json::from_value(object)?).await?;
            anyhow::Ok(())
        }
    };
    let all: Vec<_> = members.iter().flat_map(|member| crate::CLASSES.map(|class| (member, class))).collect();
    futures::stream::iter(all).map(make).buffer_unordered(AT_ONCE).try_collect().await
}

/// Says that the reporter of this node cleans up, for the next hour: no other one takes the lease meanwhile.
///
/// # Errors
/// When the API server refuses it.
pub async fn give_lease(client: &Client, node: &str) -> Result<()> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let patch = json!({"spec": {"holderIdentity": node, "leaseDurationSeconds": 3600}});
    leases.patch(LEASE, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    Ok(())
}

/// How many capacity objects there are.
///
/// # Errors
/// When the API server does not tell.
pub async fn objects(client: &Client) -> Result<usize> {
    let api: Api<CSIStorageCapacity> = Api::all(client.clone());
    Ok(api.list_metadata(&kube::api::ListParams::default()).await?.items.len())
}

type Seen = HashMap<(String, String), (String, Instant)>;

/// What the scheduler would see: a watch of all capacity objects, with the time at which each figure came.
pub struct Observer {
    seen: Arc<Mutex<Seen>>,
    changed: Arc<Notify>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Observer {
    /// Begins to watch; it knows all objects when this returns. `whose` says by what name an object is asked for, besides
    /// its class.
    ///
    /// # Errors
    /// When the list does not come.
    pub async fn start(client: Client, whose: fn(&CSIStorageCapacity) -> String) -> Result<Self> {
        let (seen, changed) = (Arc::new(Mutex::new(Seen::new())), Arc::new(Notify::new()));
        let (ready, listed) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(watch(client, whose, Arc::clone(&seen), Arc::clone(&changed), ready));
        tokio::time::timeout(Duration::from_secs(120), listed).await.context("no list of capacity objects")??;
        Ok(Self { seen, changed, task })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an object says now; nothing where there is none.
    #[must_use]
    pub fn figure(&self, whose: &str, class: &str) -> Option<String> {
        self.seen().get(&(whose.to_owned(), class.to_owned())).map(|(figure, _)| figure.clone())
    }

    /// Waits until an object says something else than `before`; gives when it came.
    ///
    /// # Errors
    /// At the limit.
    pub async fn changed(&self, whose: &str, class: &str, before: Option<&str>, limit: Duration) -> Result<Instant> {
        let key = (whose.to_owned(), class.to_owned());
        let wait = async {
            loop {
                let next = self.changed.notified();
                if let Some((figure, at)) = self.seen().get(&key)
                    && before != Some(figure.as_str())
                {
                    return *at;
                }
                next.await;
            }
        };
        let waited = tokio::time::timeout(limit, wait).await;
        waited.with_context(|| format!("{whose} says nothing new of {class} for {} s", limit.as_secs()))
    }

    /// Waits until all objects of these nodes say this; gives how long after `since` each did.
    ///
    /// # Errors
    /// At the limit, with how many do not.
    pub async fn told(&self, nodes: &[String], say: &str, since: Instant, limit: Duration) -> Result<Vec<Duration>> {
        let keys: Vec<_> =
            nodes.iter().flat_map(|node| crate::CLASSES.map(|class| (node.clone(), class.to_owned()))).collect();
        let wait = async {
            loop {
                let next = self.changed.notified();
                let told: Vec<Duration> = {
                    let seen = self.seen();
                    let right = keys.iter().filter_map(|key| seen.get(key).filter(|(figure, _)| figure == say));
                    right.map(|(_, at)| at.saturating_duration_since(since)).collect()
                };
                if told.len() == keys.len() {
                    return told;
                }
                next.await;
                // Thousands come in a row.
                if keys.len() > 100 {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        };
        tokio::time::timeout(limit, wait).await.with_context(|| {
            let seen = self.seen();
            let late = keys.iter().filter(|key| seen.get(*key).is_none_or(|(figure, _)| figure != say));
            format!("{} of {} objects do not say {say} after {} s", late.count(), keys.len(), limit.as_secs())
        })
    }
}

/// The node that an object is about.
#[must_use]
pub fn node_of(object: &CSIStorageCapacity) -> String {
    let labels = object.node_topology.as_ref().and_then(|topology| topology.match_labels.as_ref());
    labels.and_then(|labels| labels.get(TOPOLOGY)).cloned().unwrap_or_default()
}

async fn watch(
    client: Client,
    whose: fn(&CSIStorageCapacity) -> String,
    seen: Arc<Mutex<Seen>>,
    changed: Arc<Notify>,
    ready: tokio::sync::oneshot::Sender<()>,
) {
    let mut ready = Some(ready);
    let api = Api::<CSIStorageCapacity>::all(client);
    let mut stream = std::pin::pin!(watcher::watcher(api, watcher::Config::default()));
    while let Some(event) = stream.next().await {
        match event {
            Ok(Event::Apply(object) | Event::InitApply(object)) => {
                let key = (whose(&object), object.storage_class_name);
                let figure = object.maximum_volume_size.map(|size| size.0).unwrap_or_default();
                let now = Instant::now();
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                if seen.get(&key).is_none_or(|(before, _)| *before != figure) {
                    seen.insert(key, (figure, now));
                }
                drop(seen);
                changed.notify_one();
            }
            Ok(Event::InitDone) => drop(ready.take().map(|ready| ready.send(()))),
            Ok(_) => {}
            Err(error) => {
                eprintln!("the benchmark's own watch broke: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// Reads a value such as `VmRSS` of a process, in KiB.
///
/// # Errors
/// When there is no such process.
pub fn memory_kib(pid: i32, what: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(Path::new(&path)).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next()).context("no such value")?;
    Ok(number.parse()?)
}
