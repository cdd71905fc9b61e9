//! What a Prometheus sees of the cluster: every query of the dashboards has an answer, and alerts fire and clear.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use quarry_tests::cluster::bed::{Bed, RUN, scenario};
use quarry_tests::cluster::objects::{Pod, claim, class};
use quarry_tests::cluster::release::{METRICS, NAMESPACE, disk_model};
use quarry_tests::command::Command;
use quarry_tests::process::{self, Child, Log};
use quarry_tests::wait;
use serde_json::Value;

use crate::picture::{self, Answers};
use crate::{NODES, files};

/// Weights that are not enforced, since the pods' classes are left alone.
const VALUES: [&str; 3] =
    ["monitoring.scrapeAnnotations=true", "config.io.qosClasses=false", "config.io.weights=iocost"];
/// So that the kernel has facts about weights to tell.
const MODEL_IOPS: u32 = 100_000;
const PORTS: [u16; 2] = [9808, 9809];
/// How long an alert must last here, whatever the rule file says: its own times are tested by promtool.
const FOR: &str = "5s";
const WEIGHTY: &str = "test-observed";
const WRONG: &str = "test-observed-wrong";
/// Where to draw the dashboards, for the documentation; nowhere unless it is set.
const PICTURES: &str = "QUARRY_PICTURES";
/// The time that pictures show.
const SHOWN: Duration = Duration::from_secs(300);
/// How long an alert may take to fire or to clear.
const ALERT: Duration = Duration::from_secs(300);

#[test]
fn dashboards_have_answers_and_alerts_fire_and_clear() {
    scenario("observed", |bed| {
        let model = disk_model(MODEL_IOPS);
        let values = METRICS.into_iter().chain(VALUES).chain(model.iter().map(String::as_str));
        bed.release.install(&NODES, &values.collect::<Vec<_>>())?;
        let outcome = observed(bed);
        // The tests after this one need the usual driver.
        bed.release.install(&NODES, &[])?;
        outcome
    });
}

fn observed(bed: &Bed) -> Result<()> {
    let mut weighty = class(WEIGHTY, "ext4");
    for (key, value) in
        [("ioWeight", "800"), ("readIops", "900"), ("writeIops", "900"), ("readBps", "50Mi"), ("writeBps", "50Mi")]
    {
        weighty["parameters"][key] = value.into();
    }
    // Whoever asks for the room of this class is refused.
    let mut wrong = class(WRONG, "ext4");
    wrong["parameters"]["ioWeight"] = "much".into();
    bed.apply(&[
        weighty,
        wrong,
        claim("weighty", WEIGHTY, "256Mi"),
        claim("thick", "quarry-thick", "256Mi"),
        claim("lost", "quarry-thin", "256Mi"),
        Pod::new("writer").mounts("weighty").mounts("thick").mounts("lost").on(NODES[0]).script(WRITER).manifest(),
    ])?;
    bed.running("writer")?;
    let prometheus = Prometheus::start(bed)?;
    prometheus.fires("QuarryWeightNotEnforced", true)?;
    // What takes commands and journal writes is seen only while it happens.
    bed.apply(&[claim("later", "quarry-thin", "256Mi"), Pod::new("later").mounts("later").on(NODES[0]).manifest()])?;
    bed.running("later")?;
    answers(&prometheus)?;
    if let Some(folder) = std::env::var_os(PICTURES) {
        wait::until("figures of a while", 2 * SHOWN, Duration::from_secs(2), || {
            Ok((now()? >= prometheus.begin + SHOWN.as_secs()).then_some(()))
        })?;
        for dashboard in files::dashboards() {
            let file = PathBuf::from(&folder).join(dashboard.file.replace(".json", ".svg"));
            std::fs::write(&file, picture::draw(&dashboard, &prometheus)?)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
    }

    // A volume that vanishes, until somebody accepts the loss.
    let lost = bed.volume("lost")?;
    bed.delete_pod("writer")?;
    prometheus.fires("QuarryWeightNotEnforced", false)?;
    // Its pod is gone, and it is unmounted a moment later.
    wait::until("end of the volume's last use", RUN, Duration::from_secs(1), || {
        Ok(bed.on(NODES[0], &format!("lvremove -y quarry/{}", lost.lv)).ok())
    })?;
    prometheus.fires("QuarryVolumesLost", true)?;
    let driver = bed.release.pod_on(NODES[0])?;
    let socket = "/var/lib/kubelet/plugins/lvm.quarry.storage/csi.sock";
    bed.kubectl
        .within(NAMESPACE)
        .run(&format!("exec {driver} -c driver -- quarry-driver forget --csi-socket {socket} {}", lost.lv))?;
    prometheus.fires("QuarryVolumesLost", false)?;

    // A driver that is there and does not answer.
    bed.on(NODES[0], "kill -STOP $(pidof quarry-driver)")?;
    let fired = prometheus.fires("QuarryDriverDown", true);
    bed.on(NODES[0], "kill -CONT $(pidof quarry-driver)")?;
    fired?;
    prometheus.fires("QuarryDriverDown", false)?;
    bed.release.wait_ready(&NODES)?;
    bed.kubectl.run(&format!("delete storageclass {WEIGHTY} {WRONG}")).map(drop)
}

/// Reads and writes, synced, on both kinds of volumes, and fills the thin one slowly.
const WRITER: &str = "trap 'exit 0' TERM; while :; do for v in weighty thick; do \
    dd if=/dev/urandom of=/$v/data bs=64k count=16 conv=fsync 2>/dev/null; dd if=/$v/data of=/dev/null bs=64k iflag=direct 2>/dev/null; done; \
    head -c 131072 /dev/urandom >> /weighty/log; sync; sleep 1 & wait $!; done";

/// Every query of every dashboard has series, called as the legend says. What has not been for long enough is asked again.
fn answers(prometheus: &Prometheus) -> Result<()> {
    let mut left: Vec<files::Query> = files::dashboards().iter().flat_map(files::Dashboard::queries).collect();
    let mut unanswered = String::new();
    let all = wait::until("answers to all queries of the dashboards", RUN, Duration::from_secs(2), || {
        let mut again = Vec::new();
        unanswered.clear();
        for query in std::mem::take(&mut left) {
            let expression = query.filled_in("2m", "2m");
            let series = prometheus.query(&expression)?;
            if series.is_empty() {
                writeln!(unanswered, "{}: {expression}", query.place)?;
                again.push(query);
                continue;
            }
            // A label without a value is none: `blkid` is a program without a verb.
            let none_has = |label: &String| series.iter().all(|one| one["metric"].get(label).is_none());
            if let Some(label) = query.labels().into_iter().find(none_has) {
                writeln!(unanswered, "{}: no series has the label {label}: {expression}", query.place)?;
                again.push(query);
            }
        }
        left = again;
        Ok(left.is_empty().then_some(()))
    });
    all.with_context(|| format!("these have none:\n{unanswered}"))
}

/// Debian's Prometheus in the cluster's network.
struct Prometheus {
    inside: PathBuf,
    /// When it was started, in seconds since 1970.
    begin: u64,
    _child: Child,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    const ADDRESS: &str = "127.0.0.1:9090";

    /// Of every node's driver and reporter.
    fn start(bed: &Bed) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let rules = files::text("manifests/chart/alerts/quarry.yaml");
        let mut quick = String::new();
        for line in rules.lines() {
            match line.trim_start().starts_with("for: ") {
                true => writeln!(quick, "{}for: {FOR}", &line[..line.len() - line.trim_start().len()])?,
                false => writeln!(quick, "{line}")?,
            }
        }
        let (rules, config) = (folder.path().join("rules.yaml"), folder.path().join("prometheus.yaml"));
        std::fs::write(&rules, quick)?;
        let addresses = NODES.iter().map(|node| address(bed, node)).collect::<Result<Vec<_>>>()?;
        let targets = addresses.iter().flat_map(|address| PORTS.map(|port| format!("\"{address}:{port}\"")));
        let text = format!(
            "global: {{scrape_interval: 3s, evaluation_interval: 3s}}\nrule_files: [{}]\nscrape_configs:\n  - job_name: \
             quarry\n    static_configs:\n      - targets: [{}]\n        labels: {{cluster: test}}\n",
            rules.display(),
            targets.collect::<Vec<_>>().join(", ")
        );
        std::fs::write(&config, text)?;
        let inside = bed.inside();
        let command = Command::new(&inside).arg("prometheus").args([
            format!("--config.file={}", config.display()),
            format!("--storage.tsdb.path={}", folder.path().join("data").display()),
            format!("--web.listen-address={}", Self::ADDRESS),
        ]);
        let child = process::start(&command, Log::File(&folder.path().join("log")))?;
        let begin = now()?;
        let prometheus = Self { inside, begin, _child: child, _folder: folder };
        let targets = NODES.len() * PORTS.len();
        wait::until("scrape of every driver and reporter", RUN, Duration::from_secs(2), || {
            let up = prometheus.query("up == 1").unwrap_or_default();
            Ok((up.len() == targets).then_some(()))
        })?;
        Ok(prometheus)
    }

    fn query(&self, expression: &str) -> Result<Vec<Value>> {
        self.ask(&["instant"], expression)
    }

    fn ask(&self, how: &[&str], expression: &str) -> Result<Vec<Value>> {
        let url = format!("http://{}", Self::ADDRESS);
        let command = Command::new(&self.inside).args(["promtool", "query"]).args(how);
        let command = command.args(["-o", "json", &url, expression]);
        let text = process::run(&command, Duration::from_secs(60))?.success()?.stdout_text();
        let answer: Value = serde_json::from_str(&text).with_context(|| format!("no JSON: {text:?}"))?;
        answer.as_array().cloned().with_context(|| format!("no list of series: {text}"))
    }

    /// Waits until an alert of the first node fires, or does not any more.
    fn fires(&self, alert: &str, whether: bool) -> Result<()> {
        let expression = format!("ALERTS{{alertname=\"{alert}\", alertstate=\"firing\", node=\"{}\"}}", NODES[0]);
        let what = if whether { format!("alert {alert}") } else { format!("end of alert {alert}") };
        wait::until(&what, ALERT, Duration::from_secs(2), || {
            Ok((self.query(&expression)?.is_empty() != whether).then_some(()))
        })
    }
}

/// In seconds since 1970.
fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

fn address(bed: &Bed, node: &str) -> Result<String> {
    let object = bed.kubectl.get(&format!("node {node}"))?;
    let addresses = object["status"]["addresses"].as_array().context("the node has no addresses")?;
    let internal = addresses.iter().find(|address| address["type"] == "InternalIP").context("no InternalIP")?;
    Ok(internal["address"].as_str().unwrap_or_default().to_owned())
}

impl Answers for Prometheus {
    fn now(&self, query: &str) -> Result<Vec<Value>> {
        self.query(query)
    }

    fn over_time(&self, query: &str) -> Result<Vec<Value>> {
        let now = now()?;
        let begin = self.begin.max(now.saturating_sub(SHOWN.as_secs()));
        self.ask(&["range", &format!("--start={begin}"), &format!("--end={now}"), "--step=3s"], query)
    }
}
