//! One test's hold on the cluster: its namespace, kubectl in it, commands on nodes, and what is left when it ends.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::Value;

use super::control::{Remote, Request};
use super::kubectl::{Kubectl, items, pod_ready, text};
use super::release::Release;
use super::{FOLDER_VARIABLE, INSIDE};
use crate::command::Command;
use crate::wait;

/// How long a pod with volumes may take to run, under emulation on a busy machine.
pub const RUN: Duration = Duration::from_secs(480);
/// How long something that needs no new process on a node may take.
pub const SOON: Duration = Duration::from_secs(180);

/// The cluster, seen from one test.
#[derive(Debug)]
pub struct Bed {
    /// kubectl in the test's namespace.
    pub kubectl: Kubectl,
    /// The chart.
    pub release: Release,
    namespace: String,
    remote: Remote,
    inside: PathBuf,
}

/// A logical volume as `lvs` shows it.
#[derive(Debug, Clone)]
pub struct Lv {
    /// Its name.
    pub name: String,
    /// In bytes.
    pub size: u64,
    /// `linear`, or words such as `thin,sparse`.
    pub layout: String,
    /// Separated by commas.
    pub tags: String,
}

/// Where a claim ended up.
#[derive(Debug, Clone)]
pub struct Volume {
    /// The PersistentVolume.
    pub name: String,
    /// The node its handle names.
    pub node: String,
    /// The logical volume its handle names.
    pub lv: String,
}

/// Runs a test in a namespace of this name. When it fails, everything that explains why is collected before its
/// objects are removed.
///
/// # Panics
/// When the test fails, or leaves something.
pub fn scenario(name: &str, test: impl FnOnce(&Bed) -> Result<()>) {
    let folder = std::env::var_os(FOLDER_VARIABLE).map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| panic!("{FOLDER_VARIABLE} is not set: `testbed suite` runs this program"));
    let kubectl = Kubectl::of(&folder);
    let bed = Bed {
        kubectl: kubectl.within(name),
        release: Release::of(&folder),
        namespace: name.to_owned(),
        remote: Remote::of(&folder),
        inside: folder.join(INSIDE),
    };
    let outcome = bed.begin().and_then(|()| {
        catch_unwind(AssertUnwindSafe(|| test(&bed))).unwrap_or_else(|panic| Err(anyhow!("{}", said(panic.as_ref()))))
    });
    let outcome = outcome.inspect_err(|_| {
        let folder = folder.join(format!("failed-{name}"));
        match bed.remote.order(&Request::Collect { folder: folder.clone() }) {
            Ok(()) => println!("collected in {}", folder.display()),
            Err(error) => println!("cannot collect what explains the failure: {error:#}"),
        }
    });
    let left = bed.end().context("after the test");
    if let Err(error) = outcome.and(left) {
        panic!("{error:?}");
    }
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_owned())).unwrap_or_else(|| "a panic".to_owned())
}

impl Bed {
    fn begin(&self) -> Result<()> {
        self.kubectl.run(&format!("create namespace {}", self.namespace))?;
        // Pods are refused before their namespace has its account.
        self.kubectl.wait("serviceaccount default", "made", SOON, |_| Ok(Some(())))
    }

    /// Removes the namespace and waits until nothing of it is left, on the nodes neither.
    fn end(&self) -> Result<()> {
        let volumes = self.own_volumes()?;
        self.kubectl.run(&format!("delete namespace {} --wait=false", self.namespace))?;
        self.kubectl.wait_gone(&format!("namespace {}", self.namespace), RUN)?;
        wait::until("end of the test's volumes", RUN, Duration::from_millis(500), || {
            let left = self.own_volumes()?;
            Ok(left.is_empty().then_some(()))
        })?;
        for volume in volumes {
            let left = self.lvs(&volume.node)?.into_iter().any(|lv| lv.name == volume.lv);
            ensure!(
                !left,
                "the logical volume {} of the deleted {} is still on {}",
                volume.lv,
                volume.name,
                volume.node
            );
        }
        Ok(())
    }

    /// The volumes bound to claims of the test's namespace.
    fn own_volumes(&self) -> Result<Vec<Volume>> {
        let list = self.kubectl.get("pv")?;
        items(&list).iter().filter(|pv| text(pv, "/spec/claimRef/namespace") == self.namespace).map(volume_of).collect()
    }

    /// Creates or changes objects.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        objects.iter().try_for_each(|object| self.kubectl.apply(&object.to_string()))
    }

    /// Waits until a pod runs; gives its node.
    pub fn running(&self, pod: &str) -> Result<String> {
        self.kubectl.wait(&format!("pod {pod}"), "runs", RUN, |now| {
            Ok(pod_ready(now).then(|| text(now, "/spec/nodeName").to_owned()))
        })
    }

    /// The volume of a bound claim.
    pub fn volume(&self, claim: &str) -> Result<Volume> {
        let bound = self.kubectl.get(&format!("pvc {claim}"))?;
        let name = text(&bound, "/spec/volumeName").to_owned();
        ensure!(
            !name.is_empty() && text(&bound, "/status/phase") == "Bound",
            "{claim} is not bound: {}",
            bound["status"]
        );
        volume_of(&self.kubectl.get(&format!("pv {name}"))?)
    }

    /// The logical volume of a claim, looked up on its node.
    pub fn lv(&self, volume: &Volume) -> Result<Lv> {
        let found = self.lvs(&volume.node)?.into_iter().find(|lv| lv.name == volume.lv);
        found.with_context(|| format!("no logical volume {} on {}", volume.lv, volume.node))
    }

    /// All logical volumes of a node.
    pub fn lvs(&self, node: &str) -> Result<Vec<Lv>> {
        let arguments =
            ["--reportformat", "json", "--units", "b", "--nosuffix", "-o", "lv_name,lv_size,lv_layout,lv_tags"];
        let report: Value = serde_json::from_str(&self.on_with(node, &Command::new("lvs").args(arguments))?)?;
        let rows = report.pointer("/report/0/lv").and_then(Value::as_array).context("a report without volumes")?;
        rows.iter()
            .map(|row| {
                Ok(Lv {
                    name: text(row, "/lv_name").to_owned(),
                    size: text(row, "/lv_size").parse().with_context(|| format!("a size in {row}"))?,
                    layout: text(row, "/lv_layout").to_owned(),
                    tags: text(row, "/lv_tags").to_owned(),
                })
            })
            .collect()
    }

    /// Runs a shell script on a node; gives its output.
    pub fn on(&self, node: &str, script: &str) -> Result<String> {
        self.on_with(node, &Command::shell(script))
    }

    fn on_with(&self, node: &str, command: &Command) -> Result<String> {
        Ok(self.remote.run(node, command, Duration::from_secs(120))?.success()?.stdout_text())
    }

    /// A program that runs another one, its first argument, inside the cluster's network.
    #[must_use]
    pub fn inside(&self) -> PathBuf {
        self.inside.clone()
    }

    /// Shuts a node down in order and boots it again.
    pub fn reboot(&self, node: &str) -> Result<()> {
        self.remote.order(&Request::Reboot { node: node.to_owned() })
    }

    /// Cuts a node's power and boots it again.
    ///
    /// # Errors
    /// When it does not boot.
    pub fn cut_power(&self, node: &str) -> Result<()> {
        self.remote.order(&Request::PowerCut { node: node.to_owned() })
    }

    /// Stops the API server and starts it again.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn restart_api_server(&self) -> Result<()> {
        self.remote.order(&Request::RestartApiServer)
    }

    /// Runs a script in a pod; gives its output without the last line end.
    pub fn within(&self, pod: &str, script: &str) -> Result<String> {
        Ok(self.kubectl.exec(pod, &["sh", "-euc", script])?.trim_end().to_owned())
    }

    /// Deletes a pod and waits until it is gone.
    pub fn delete_pod(&self, pod: &str) -> Result<()> {
        self.kubectl.run(&format!("delete pod {pod} --wait=false"))?;
        self.kubectl.wait_gone(&format!("pod {pod}"), RUN)
    }

    /// Waits for an event of an object whose reason is this and whose message has this text; gives the message.
    pub fn event(&self, object: &str, reason: &str, part: &str) -> Result<String> {
        let events = format!("events --field-selector involvedObject.name={object},reason={reason}");
        let mut last = String::new();
        let look = || {
            let list = self.kubectl.get(&events)?;
            let messages: Vec<&str> = items(&list).iter().map(|e| text(e, "/message")).collect();
            last = messages.join("; ");
            Ok(messages.iter().find(|m| m.contains(part)).map(|m| (*m).to_owned()))
        };
        let what = format!("an event {reason} of {object} that says {part:?}");
        wait::until(&what, RUN, Duration::from_millis(500), look)
            .with_context(|| format!("events {reason} say: {last}"))
    }
}

fn volume_of(pv: &Value) -> Result<Volume> {
    let handle = text(pv, "/spec/csi/volumeHandle");
    let Some((node, lv)) = handle.split_once('/') else { bail!("the handle {handle:?} is not NODE/VOLUME") };
    Ok(Volume { name: text(pv, "/metadata/name").to_owned(), node: node.to_owned(), lv: lv.to_owned() })
}
