//! Two pods that read as fast as they can from one disk, one with eight times the weight of the other.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use quarry_tests::cluster::Cluster;
use quarry_tests::cluster::kubectl::{Kubectl, pod_ready, text};
use quarry_tests::cluster::objects::{Pod, block_claim, class};
use quarry_tests::command::Command;
use quarry_tests::wait;

/// What the disk of the node does at most in a second: little enough that an emulated machine is not the narrower place,
/// also where others are at work beside it.
pub const IOPS: u32 = 300;
/// What the model of that disk says: a little less, as `quarry-driver calibrate` measures one.
pub const MODEL_IOPS: u32 = 270;

/// The pods, which are also their claims and classes, with the weights.
const PODS: [(&str, u32); 2] = [("bronze", 100), ("gold", 800)];
/// Sixteen readers at once, each on its own part of the device, around and around.
const READERS: &str = "for n in $(seq 0 15); do while :; do \
    dd if=/dev/NAME of=/dev/null iflag=direct bs=4k skip=$((n * 1024)) count=1024 2>/dev/null; done & done; wait";
/// How many lines of figures are shown, and of what time each is.
const LINES: usize = 6;
const PERIOD: Duration = Duration::from_secs(3);
/// How long two pods may take to run, and their weights to be enforced.
const LIMIT: Duration = Duration::from_secs(600);

/// Shows it on a node whose disk does [`IOPS`] by a model of [`MODEL_IOPS`]; what came out.
pub fn show(cluster: &Cluster, kubectl: &Kubectl, node: &str) -> Result<String> {
    for (name, weight) in PODS {
        let mut class = class(name, "ext4");
        class["parameters"]["provisioning"] = "thick".into();
        class["parameters"]["ioWeight"] = weight.to_string().into();
        let pod = Pod::new(name).device(name).on(node).script(&READERS.replace("NAME", name)).manifest();
        for object in [class, block_claim(name, name, "64Mi"), pod] {
            kubectl.apply(&object.to_string())?;
        }
    }
    let mut devices = Vec::new();
    for (name, _) in PODS {
        kubectl.wait(&format!("pod {name}"), "runs", LIMIT, |now| Ok(pod_ready(now).then_some(())))?;
        let volume = text(&kubectl.get(&format!("pvc {name}"))?, "/spec/volumeName").to_owned();
        let query = format!("lvs --noheadings -o kernel_major,kernel_minor -S lv_name={volume}");
        devices.push(on(cluster, node, &query)?.split_whitespace().collect::<Vec<_>>().join(":"));
    }
    let enforced = || {
        let shown =
            on(cluster, node, "cat /sys/fs/cgroup/io.cost.qos; cat $(find /sys/fs/cgroup/kubepods -name io.weight)")?;
        let is_set =
            |weight: u32| shown.lines().any(|line| line.contains(':') && line.ends_with(&format!(" {weight}")));
        Ok((shown.contains("enable=1") && PODS.iter().all(|(_, weight)| is_set(*weight))).then_some(()))
    };
    wait::until("weights in the pods' cgroups", LIMIT, Duration::from_secs(1), enforced)?;

    println!("{}", PODS.map(|(name, weight)| format!("{:<36}", format!("{name}, weight {weight}"))).concat());
    // Not of the moments in which the readers start.
    let mut reads = counted(cluster, node, &devices, PERIOD)?;
    let mut sum = [0.0, 0.0];
    for _ in 0..LINES {
        let now = counted(cluster, node, &devices, PERIOD)?;
        let seconds = now.0 - reads.0;
        let rates: Vec<f64> = now.1.iter().zip(&reads.1).map(|(now, before)| (now - before) / seconds).collect();
        reads = now;
        let [bronze, gold] = rates[..] else { bail!("the counters of {} devices", rates.len()) };
        for (sum, rate) in sum.iter_mut().zip([bronze, gold]) {
            *sum += rate;
        }
        println!("{}", [bronze, gold].map(|rate| format!("{:<36}", bar(rate))).concat());
    }
    for (name, _) in PODS {
        kubectl.run(&format!("delete pod {name} --wait=false"))?;
        kubectl.run(&format!("delete pvc {name} --wait=false"))?;
        kubectl.run(&format!("delete storageclass {name}"))?;
    }
    let [bronze, gold] = sum;
    ensure!(bronze > 0.0, "the pod with the smaller weight read nothing");
    let ratio = gold / bronze;
    // The rates of a few seconds on an emulated machine; the test suite and the benchmark hold them to much less.
    ensure!((5.0..=11.0).contains(&ratio), "the pods got 1:{ratio:.1} of the disk");
    Ok(format!("weights 100 and 800 on one disk got 1:{ratio:.1} of its {IOPS} operations a second"))
}

/// After a while: seconds since the node's start, and reads of each device since it is there.
fn counted(cluster: &Cluster, node: &str, devices: &[String], after: Duration) -> Result<(f64, Vec<f64>)> {
    let files: Vec<String> = devices.iter().map(|device| format!("/sys/dev/block/{device}/stat")).collect();
    let text = on(cluster, node, &format!("sleep {}; cat /proc/uptime {}", after.as_secs(), files.join(" ")))?;
    let firsts = text.lines().map(|line| {
        let first = line.split_whitespace().next().and_then(|word| word.parse::<f64>().ok());
        first.with_context(|| format!("no counter: {line:?}"))
    });
    let mut numbers = firsts.collect::<Result<Vec<f64>>>()?;
    ensure!(numbers.len() == devices.len() + 1, "counters are missing: {text:?}");
    let uptime = numbers.remove(0);
    Ok((uptime, numbers))
}

fn bar(rate: f64) -> String {
    let length = (rate / f64::from(IOPS) * 22.0).round().clamp(0.0, 22.0);
    let drawn = (0..22).take_while(|n| f64::from(*n) < length).map(|_| '#').collect::<String>();
    format!("{drawn:<22} {rate:>4.0}/s")
}

fn on(cluster: &Cluster, node: &str, script: &str) -> Result<String> {
    let command = Command::new("sh").args(["-c", script]);
    Ok(cluster.node(node)?.run(&command, Duration::from_secs(60))?.success()?.stdout_text())
}
