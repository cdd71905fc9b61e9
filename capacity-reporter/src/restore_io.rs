//! The end of an installation: every node's driver puts back what it set on disks and in cgroups for weights and limits.
//!
//! **Invariant.** The drivers are asked while they run, by a command in their containers: one that ends cannot know
//! whether another one follows it. A node whose driver does not run keeps no installation from being removed.

use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{AttachParams, AttachedProcess, ListParams};
use kube::{Api, Client};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::Instant;

use crate::apply::{RequestError, insist, within};
use crate::args::RestoreIoArgs;
use crate::telemetry::chain;

/// Between two attempts at a node.
const PAUSE: Duration = Duration::from_secs(2);
/// How many nodes are asked at once.
const AT_ONCE: usize = 16;
/// What a driver may take for its answer.
const ANSWER: Duration = Duration::from_secs(60);

/// Why settings may be left.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Nobody knows which nodes have a driver.
    #[error("cannot list the pods of {selector} in namespace {namespace}")]
    List {
        /// Their labels.
        selector: String,
        /// Where.
        namespace: String,
        /// Why.
        #[source]
        source: RequestError,
    },
    /// Drivers that run and do not put back what they set.
    #[error("weights and limits are not put back on: {}", .0.join("; "))]
    Left(Vec<String>),
}

/// A node's driver.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Driver {
    pod: String,
    node: String,
}

/// Has the driver of each node put back what it set.
///
/// # Errors
/// [`RestoreError`].
pub async fn restore_io(client: &Client, args: &RestoreIoArgs) -> Result<(), RestoreError> {
    let end = Instant::now() + args.timeout;
    let pods: Api<Pod> = Api::namespaced(client.clone(), &args.namespace);
    let mut drivers = Vec::new();
    for pod in list(&pods, args, end).await? {
        let driver = Driver {
            pod: pod.metadata.name.clone().unwrap_or_default(),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        };
        if serves(&pod, &args.container) {
            drivers.push(driver);
        } else {
            tracing::warn!(
                node = driver.node,
                pod = driver.pod,
                "the driver does not run: what it set stays until the node's next boot, or `quarry-driver restore-io` there"
            );
        }
    }
    let outcomes = futures::stream::iter(&drivers).map(|driver| put_back(&pods, args, driver, end));
    let left: Vec<String> = outcomes.buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await;
    match left.is_empty() {
        true => Ok(()),
        false => Err(RestoreError::Left(left)),
    }
}

async fn list(pods: &Api<Pod>, args: &RestoreIoArgs, end: Instant) -> Result<Vec<Pod>, RestoreError> {
    let parameters = ListParams::default().labels(&args.selector);
    let listed = insist(end, PAUSE, "cannot list the nodes' pods", || within(pods.list(&parameters))).await;
    listed.map(|list| list.items).map_err(|source| {
        let (selector, namespace) = (args.selector.clone(), args.namespace.clone());
        RestoreError::List { selector, namespace, source }
    })
}

/// Whether the driver in a pod can be asked.
fn serves(pod: &Pod, container: &str) -> bool {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    let runs = statuses
        .iter()
        .any(|status| status.name == container && status.state.as_ref().is_some_and(|state| state.running.is_some()));
    runs && pod.metadata.deletion_timestamp.is_none()
}

/// What is left on the node, if anything.
async fn put_back(pods: &Api<Pod>, args: &RestoreIoArgs, driver: &Driver, end: Instant) -> Option<String> {
    let Driver { pod, node } = driver;
    loop {
        let why = match tokio::time::timeout(ANSWER, ask(pods, args, pod)).await {
            Ok(Ok(said)) => {
                tracing::info!(node, pod, said, "weights and limits are put back");
                return None;
            }
            Ok(Err(why)) => why,
            Err(_) => format!("no answer within {} s", ANSWER.as_secs()),
        };
        if matches!(within(pods.get_opt(pod)).await, Ok(None)) {
            tracing::warn!(node, pod, "the pod went away meanwhile");
            return None;
        }
        if Instant::now() >= end {
            return Some(format!("node {node} (pod {pod}): {why}"));
        }
        tracing::warn!(node, pod, why, "tried again");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Runs the driver's own command in its container; what it said, or why it failed.
async fn ask(pods: &Api<Pod>, args: &RestoreIoArgs, pod: &str) -> Result<String, String> {
    let command = ["/usr/bin/quarry-driver", "restore-io", "--csi-socket", &args.csi_socket.display().to_string()]
        .map(str::to_owned);
    let parameters = AttachParams::default().container(&args.container);
    let mut process = pods.exec(pod, command, &parameters).await.map_err(|error| chain(&error))?;
    let status = process.take_status();
    let (output, errors) = tokio::join!(text(process.stdout()), text(process.stderr()));
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    ended(process, status, &output, &errors).await
}

async fn ended(process: AttachedProcess, status: Option<Status>, output: &str, errors: &str) -> Result<String, String> {
    process.join().await.map_err(|error| error.to_string())?;
    match status {
        Some(status) if status.status.as_deref() == Some("Success") => Ok(output.trim().to_owned()),
        Some(_) if !errors.trim().is_empty() => Err(errors.trim().to_owned()),
        Some(status) => Err(status.message.unwrap_or_else(|| "the command failed".to_owned())),
        None => Err("the connection ended before the command did".to_owned()),
    }
}

async fn text(stream: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        // What came before an end that is none is as good; the status says how it went.
        stream.read_to_end(&mut bytes).await.ok();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_a_driver_that_runs_and_stays_is_asked() {
        let pod = |state: &str, deleted: Option<&str>| -> Pod {
            let statuses = json!([
                {"name": "csi-provisioner", "image": "p", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}},
                {"name": "driver", "image": "d", "imageID": "", "ready": true, "restartCount": 0, "state": {state: {}}},
            ]);
            let metadata = json!({"name": "quarry-node-x", "deletionTimestamp": deleted});
            serde_json::from_value(json!({"metadata": metadata, "status": {"containerStatuses": statuses}})).unwrap()
        };
        assert!(serves(&pod("running", None), "driver"));
        assert!(!serves(&pod("waiting", None), "driver"));
        assert!(!serves(&pod("running", Some("2026-01-01T00:00:00Z")), "driver"));
        assert!(!serves(&Pod::default(), "driver"));
    }
}
