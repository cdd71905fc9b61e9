//! `testbed demo`: claims become logical volumes on real nodes, shown step by step, every step checked.

mod weights;

use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use quarry_tests::artifacts::BUSYBOX;
use quarry_tests::cluster::kubectl::{Kubectl, pod_ready, text};
use quarry_tests::cluster::release::{METRICS, Release, disk_model};
use quarry_tests::cluster::{Cluster, INSIDE, NodeSettings, Parts, control};
use quarry_tests::command::Command;
use quarry_tests::progress::Progress;
use quarry_tests::wait;

use super::cluster::keep;

/// What `testbed demo` takes.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Leave the cluster running until Ctrl-C or `./dev stop`.
    #[arg(long)]
    keep: bool,
}

const NODES: [&str; 2] = ["quarry-1", "quarry-2"];
const PODS: [&str; 2] = ["demo-0", "demo-1"];
/// How long pods with volumes may take to run, under emulation on a busy machine.
const RUN_LIMIT: Duration = Duration::from_secs(600);

/// One line of the closing table.
struct Row {
    step: &'static str,
    shown: String,
    took: Duration,
}

/// Where a claim ended up.
#[derive(Debug, Clone)]
struct Volume {
    claim: String,
    pod: &'static str,
    node: String,
    /// The PersistentVolume.
    name: String,
    /// The logical volume, from the volume's handle `<node>/<logical volume>`.
    lv: String,
}

/// Shows it all; a step that does not come true is the end.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut demo = Demo { progress: Progress::default(), rows: Vec::new() };
    let parts = demo.step("build", |demo| {
        let parts = Parts::make(true, &demo.progress)?;
        Ok((parts, "Kubernetes, Helm, csi-provisioner and the driver's image are there".to_owned()))
    })?;
    let cluster = demo.step("cluster", |demo| {
        let slow = NodeSettings { data_disk_iops: Some(weights::IOPS), ..NodeSettings::usual(NODES[0]) };
        let cluster = parts.start(vec![slow, NodeSettings::usual(NODES[1])], &demo.progress)?;
        let version = text(&cluster.kubectl().get("node quarry-1")?, "/status/nodeInfo/kubeletVersion").to_owned();
        Ok((cluster, format!("2 nodes Ready, Kubernetes {version}")))
    })?;
    let cluster = Arc::new(cluster);
    let (stop, stopped) = mpsc::channel();
    control::serve(&cluster, arguments.keep.then_some(stop))?;
    if let Err(error) = demo.show(&cluster) {
        demo.table();
        let logs = Cluster::unshare(cluster)?.stop_and_keep()?;
        return Err(error.context(format!(
            "the demo failed; logs of every part, events and LVM's state are in {}",
            logs.display()
        )));
    }
    demo.table();
    if arguments.keep {
        println!("\nStill there: the pod demo-0 with its volume. Try\n");
        println!("  kubectl exec demo-0 -- df -h /data");
        println!("\nMetrics, for Prometheus, in the cluster's own network:\n");
        let inside = cluster.folder().join(INSIDE);
        for address in cluster.addresses() {
            let url = |port: u16| format!("http://{address}:{port}/metrics");
            println!(
                "  {} curl {}   # the driver's; the capacity-reporter's: {}",
                inside.display(),
                url(9808),
                url(9809)
            );
        }
        keep(cluster, &stopped)?;
    } else {
        Cluster::unshare(cluster)?.stop()?;
        println!("\nThe cluster is stopped. `./dev demo --keep` leaves it running, with a kubectl to try things with.");
    }
    Ok(ExitCode::SUCCESS)
}

struct Demo {
    progress: Progress,
    rows: Vec<Row>,
}

impl Demo {
    fn step<T>(&mut self, step: &'static str, work: impl FnOnce(&Self) -> Result<(T, String)>) -> Result<T> {
        let begin = Instant::now();
        self.progress.say(&format!("== {step}"));
        let (value, shown) = work(self).with_context(|| format!("the step `{step}` did not come true"))?;
        self.progress.say(&format!("== {step}: {shown}"));
        self.rows.push(Row { step, shown, took: begin.elapsed() });
        Ok(value)
    }

    fn show(&mut self, cluster: &Cluster) -> Result<()> {
        let kubectl = cluster.kubectl();
        self.step("chart", |_| {
            let model = disk_model(weights::MODEL_IOPS);
            let values = METRICS.into_iter().chain(model.iter().map(String::as_str));
            Release::of(cluster.folder()).install(&NODES, &values.collect::<Vec<_>>())?;
            Ok(((), "installed by Helm, the driver is registered on both nodes".to_owned()))
        })?;
        let volumes = self.step("claims", |_| {
            kubectl.apply(&stateful_set())?;
            let volumes = PODS.iter().map(|pod| bound(&kubectl, pod)).collect::<Result<Vec<Volume>>>()?;
            ensure!(volumes[0].node != volumes[1].node, "both pods run on {}", volumes[0].node);
            let shown = volumes.iter().map(|v| format!("{} -> {}", v.claim, v.node)).collect::<Vec<_>>().join(", ");
            println!("{}", kubectl.run("get pods,pvc -o wide")?.trim_end());
            Ok((volumes, shown))
        })?;
        self.step("volumes", |_| {
            for volume in &volumes {
                let found = lvs(cluster, &volume.node)?;
                println!("{}: lvs\n{}", volume.node, found.trim_end());
                let line = found.lines().find(|line| line.contains(&volume.lv));
                let line = line.with_context(|| format!("no logical volume {} on {}", volume.lv, volume.node))?;
                ensure!(line.contains("thin,sparse"), "{} is no thin volume: {line}", volume.lv);
            }
            Ok(((), format!("each claim is a thin LV of 1 GiB: {}", volumes[0].lv)))
        })?;
        let sums = self.step("data", |_| {
            let sums = volumes.iter().map(|v| write(&kubectl, v.pod)).collect::<Result<Vec<String>>>()?;
            Ok((sums, "each pod wrote 16 MiB and synced".to_owned()))
        })?;
        self.step("pod deleted", |_| {
            let pod = &volumes[1];
            let old = text(&kubectl.get(&format!("pod {}", pod.pod))?, "/metadata/uid").to_owned();
            kubectl.run(&format!("delete pod {} --wait=false", pod.pod))?;
            kubectl.wait(&format!("pod {}", pod.pod), "runs anew", RUN_LIMIT, |now| {
                Ok((text(now, "/metadata/uid") != old && pod_ready(now)).then_some(()))
            })?;
            let (before, after) = (&sums[1], sum(&kubectl, pod.pod)?);
            ensure!(*before == after, "{} read back {after}, had written {before}", pod.pod);
            Ok(((), format!("{} came back on {} and found its data", pod.pod, pod.node)))
        })?;
        self.step("claim deleted", |_| {
            let gone = &volumes[1];
            kubectl.run("scale statefulset demo --replicas=1")?;
            kubectl.wait_gone(&format!("pod {}", gone.pod), RUN_LIMIT)?;
            kubectl.run(&format!("delete pvc {} --wait=false", gone.claim))?;
            kubectl.wait_gone(&format!("pv {}", gone.name), RUN_LIMIT)?;
            let left = || Ok((!lvs(cluster, &gone.node)?.contains(&gone.lv)).then_some(()));
            wait::until("end of the logical volume", Duration::from_secs(30), Duration::from_millis(500), left)?;
            println!("{}: lvs\n{}", gone.node, lvs(cluster, &gone.node)?.trim_end());
            ensure!(lvs(cluster, &volumes[0].node)?.contains(&volumes[0].lv), "the other claim's volume is gone too");
            Ok(((), format!("{} and its LV on {} are gone, the other stays", gone.claim, gone.node)))
        })?;
        self.step("weights", |_| weights::show(cluster, &kubectl, NODES[0]).map(|shown| ((), shown)))
    }

    fn table(&self) {
        println!("\n{:<14} {:>8}  shown", "step", "time");
        for row in &self.rows {
            println!("{:<14} {:>6.1} s  {}", row.step, row.took.as_secs_f32(), row.shown);
        }
        println!("{:<14} {:>6.1} s", "all", self.progress.elapsed().as_secs_f32());
    }
}

/// Waits until a pod runs, and finds its claim's volume.
fn bound(kubectl: &Kubectl, pod: &'static str) -> Result<Volume> {
    let node = kubectl.wait(&format!("pod {pod}"), "runs", RUN_LIMIT, |now| {
        Ok(pod_ready(now).then(|| text(now, "/spec/nodeName").to_owned()))
    })?;
    let claim = format!("data-{pod}");
    let name = text(&kubectl.get(&format!("pvc {claim}"))?, "/spec/volumeName").to_owned();
    let volume = kubectl.get(&format!("pv {name}"))?;
    let handle = text(&volume, "/spec/csi/volumeHandle");
    let Some((_, lv)) = handle.split_once('/') else {
        bail!("the handle {handle:?} of {name} names no logical volume")
    };
    Ok(Volume { claim, pod, node, lv: lv.to_owned(), name })
}

/// The node's logical volumes, as an admin sees them.
fn lvs(cluster: &Cluster, node: &str) -> Result<String> {
    let command = Command::new("lvs").args(["-o", "lv_name,vg_name,lv_size,pool_lv,data_percent,lv_layout"]);
    Ok(cluster.node(node)?.run(&command, Duration::from_secs(60))?.success()?.stdout_text())
}

/// Writes random bytes on the volume and gives their checksum.
fn write(kubectl: &Kubectl, pod: &str) -> Result<String> {
    let script = "dd if=/dev/urandom of=/data/bytes bs=1M count=16 2>/dev/null && sync && sha256sum /data/bytes";
    kubectl.exec(pod, &["sh", "-c", script])
}

fn sum(kubectl: &Kubectl, pod: &str) -> Result<String> {
    kubectl.exec(pod, &["sha256sum", "/data/bytes"])
}

fn stateful_set() -> String {
    format!(
        "apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: demo}}
spec:
  serviceName: demo
  replicas: 2
  podManagementPolicy: Parallel
  selector: {{matchLabels: {{app: demo}}}}
  template:
    metadata: {{labels: {{app: demo}}}}
    spec:
      terminationGracePeriodSeconds: 1
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            - labelSelector: {{matchLabels: {{app: demo}}}}
              topologyKey: kubernetes.io/hostname
      containers:
        - name: demo
          image: {BUSYBOX}
          imagePullPolicy: Never
          command: [sh, -c, \"trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done\"]
          volumeMounts: [{{name: data, mountPath: /data}}]
  volumeClaimTemplates:
    - metadata: {{name: data}}
      spec:
        accessModes: [ReadWriteOnce]
        storageClassName: quarry-thin
        resources: {{requests: {{storage: 1Gi}}}}
"
    )
}
