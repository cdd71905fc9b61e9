//! The driver in a cluster: the chart, installed by Helm as a user installs it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::kubectl::{Kubectl, items, pod_ready, text};
use crate::command::Command;
use crate::{cache, process};

/// The release's name.
const RELEASE: &str = "quarry";
/// The namespace it is installed into.
pub const NAMESPACE: &str = "quarry";
/// The driver's name in Kubernetes.
pub const DRIVER: &str = "lvm.quarry.storage";
/// Values that have driver and capacity-reporter serve metrics on the nodes' addresses, at 9808 and 9809.
pub const METRICS: [&str; 4] = [
    "driver.http.host=0.0.0.0",
    "driver.http.port=9808",
    "capacityReporter.http.host=0.0.0.0",
    "capacityReporter.http.port=9809",
];
/// Values that give the driver a model of a node's data disk as `quarry-driver calibrate` would: operations are what is
/// scarce, so many in a second.
#[must_use]
pub fn disk_model(iops: u32) -> [String; 7] {
    let of = |key: &str, number: u64| format!("config.io.models[0].speed.{key}={number}");
    let (bps, iops) = (1_000_000_000_000, u64::from(iops));
    [
        "config.io.models[0].disk=vda".to_owned(),
        of("readBps", bps),
        of("readSequentialIops", iops),
        of("readRandomIops", iops),
        of("writeBps", bps),
        of("writeSequentialIops", iops),
        of("writeRandomIops", iops),
    ]
}

/// The pods of the DaemonSet.
pub const PODS: &str = "app.kubernetes.io/name=quarry,app.kubernetes.io/component=node";

const HELM_LIMIT: Duration = Duration::from_secs(300);
/// From installed to registered on every node: two containers start per node, under emulation.
const READY_LIMIT: Duration = Duration::from_secs(600);

/// Installs and removes the chart of this checkout.
#[derive(Debug, Clone)]
pub struct Release {
    helm: PathBuf,
    kubectl: Kubectl,
}

impl Release {
    /// For the cluster with this folder.
    #[must_use]
    pub fn of(cluster: &Path) -> Self {
        Self { helm: cluster.join("helm"), kubectl: Kubectl::of(cluster) }
    }

    /// Installs the chart, or changes the installed one, with these values (`key=value`, as `--set`) on top of those
    /// that every test cluster needs; returns when each of `nodes` has its driver.
    ///
    /// # Errors
    /// When Helm refuses, or a node's driver does not come up.
    pub fn install(&self, nodes: &[&str], values: &[&str]) -> Result<()> {
        self.apply(values)?;
        self.wait_ready(nodes)
    }

    /// As [`Self::install`], but waits for nothing: where there are no nodes, nobody makes pods.
    ///
    /// # Errors
    /// When Helm refuses.
    pub fn apply(&self, values: &[&str]) -> Result<()> {
        let chart = cache::workspace().join("manifests/chart");
        let mut command = Command::new(&self.helm)
            .args(["upgrade", "--install", RELEASE])
            .arg(&chart)
            .args(["--namespace", NAMESPACE, "--create-namespace"])
            // The images are on the nodes already, and there is no registry.
            .args(["--set", "driver.image.pullPolicy=Never", "--set", "csiProvisioner.image.pullPolicy=Never"])
            // Emulated disks are as fast as the host is at the moment: there is nothing to measure.
            .args(["--set", "config.io.calibration=onRequest"])
            .args(["--set-string", &format!("driver.image.tag={}", env!("CARGO_PKG_VERSION"))]);
        for value in values {
            command = command.args(["--set", value]);
        }
        process::run(&command, HELM_LIMIT)?.success().context("cannot install the chart").map(drop)
    }

    /// Removes the chart's objects and waits until its pods are gone.
    ///
    /// # Errors
    /// When Helm fails or pods stay.
    pub fn uninstall(&self) -> Result<()> {
        let command = Command::new(&self.helm).args([
            "uninstall",
            RELEASE,
            "--namespace",
            NAMESPACE,
            "--wait",
            "--timeout",
            "110s",
        ]);
        process::run(&command, HELM_LIMIT)?.success().context("cannot remove the chart")?;
        let gone = || Ok(items(&self.kubectl.get(&format!("pods -n {NAMESPACE} -l {PODS}"))?).is_empty().then_some(()));
        crate::wait::until("end of the driver's pods", READY_LIMIT, Duration::from_millis(500), gone)
    }

    /// Waits until the driver runs on each of these nodes and kubelet knows it.
    ///
    /// # Errors
    /// At the limit, with the pods' descriptions.
    pub fn wait_ready(&self, nodes: &[&str]) -> Result<()> {
        let what = format!("pods -n {NAMESPACE} -l {PODS}");
        self.kubectl.wait(&what, "a ready driver on every node", READY_LIMIT, |pods| {
            let ready = |node: &&str| items(pods).iter().any(|p| text(p, "/spec/nodeName") == *node && pod_ready(p));
            Ok(nodes.iter().all(ready).then_some(()))
        })?;
        for node in nodes {
            self.kubectl.wait(&format!("csinode {node}"), "names the driver", READY_LIMIT, |csinode| {
                let drivers = csinode.pointer("/spec/drivers").and_then(serde_json::Value::as_array);
                Ok(drivers.into_iter().flatten().any(|d| text(d, "/name") == DRIVER).then_some(()))
            })?;
        }
        Ok(())
    }

    /// The name of the driver's pod on a node.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod_on(&self, node: &str) -> Result<String> {
        let pods = self.kubectl.get(&format!("pods -n {NAMESPACE} -l {PODS}"))?;
        let pod = items(&pods).iter().find(|p| text(p, "/spec/nodeName") == node);
        Ok(text(pod.with_context(|| format!("no driver pod on {node}"))?, "/metadata/name").to_owned())
    }
}
