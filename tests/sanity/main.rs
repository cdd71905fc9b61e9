//! csi-sanity against the real driver on real LVM: thin and thick volumes, mounted and as block devices, each on a
//! fresh volume group (`testbed suite sanity`).
//!
//! **Invariant.** No spec is left out by us. csi-sanity itself skips those of capabilities that the driver does not
//! advertise; a skip for any other reason is a failure.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use quarry_tests::command::Command;
use quarry_tests::in_vm::{self, DriverSpec, DriverUnderTest, VgOptions, VolumeGroup};
use quarry_tests::process;
use serde::Deserialize;

/// How long one run of csi-sanity may take.
const LIMIT: Duration = Duration::from_secs(280);
/// Size of its volumes in bytes: a thick block volume is zeroed each time, which an emulated machine does slowly.
const VOLUME: u64 = 128 << 20;

fn main() -> ExitCode {
    if let Err(error) = in_vm::require() {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    let mut failed = 0;
    let mut lines = Vec::new();
    for provisioning in ["thin", "thick"] {
        for access in ["mount", "block"] {
            let begin = Instant::now();
            println!("==== csi-sanity: {provisioning} volumes, {access} access");
            let outcome = run(provisioning, access);
            let seconds = begin.elapsed().as_secs();
            lines.push(match outcome {
                Ok(counts) => format!("{provisioning:<6} {access:<6} pass  {counts}, {seconds} s"),
                Err(error) => {
                    failed += 1;
                    format!("{provisioning:<6} {access:<6} FAIL  {error:#}, {seconds} s")
                }
            });
        }
    }
    println!("==== csi-sanity");
    for line in &lines {
        println!("{line}");
    }
    println!("{} passed, {failed} failed", lines.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(provisioning: &str, access: &str) -> Result<Counts> {
    let binary =
        std::env::var_os("QUARRY_CSI_SANITY").context("QUARRY_CSI_SANITY is not set: use `testbed suite sanity`")?;
    let group = VolumeGroup::with("sanity", &VgOptions { disks: 2, ..VgOptions::default() })?;
    let driver = DriverUnderTest::start(DriverSpec::for_group(group.name()))?;
    // csi-sanity makes both folders itself and wants only their parents.
    let parameters = driver.path("parameters.yaml");
    std::fs::write(&parameters, format!("provisioning: {provisioning}\n"))?;
    let mutable = driver.path("mutable.yaml");
    std::fs::write(&mutable, "ioWeight: \"800\"\nwriteIops: \"500\"\n")?;
    let report = driver.path("report.json");
    let option = |name: &str, value: &Path| format!("--{name}={}", value.display());
    let command = Command::new(binary)
        .arg(option("csi.endpoint", &driver.socket()))
        .arg(option("csi.mountdir", &driver.path("mount")))
        .arg(option("csi.stagingdir", &driver.path("staging")))
        .arg(option("csi.testvolumeparameters", &parameters))
        .arg(option("csi.testvolumemutableparameters", &mutable))
        .arg(format!("--csi.testvolumesize={VOLUME}"))
        .arg(format!("--csi.testvolumeaccesstype={access}"))
        .arg(option("ginkgo.json-report", &report))
        .args(["--ginkgo.no-color", "--ginkgo.timeout=4m"]);
    let counts = judge(&command, &report);
    if counts.is_err() {
        println!("---- log of the driver ----\n{}---- end of the log ----", driver.log());
    }
    let counts = counts?;
    let left = group.lvs("lv_name,lv_tags")?;
    let left: Vec<_> = left.iter().filter(|row| row["lv_tags"].split(',').any(|tag| tag == "quarry")).collect();
    ensure!(left.is_empty(), "volumes are left behind: {left:?}");
    Ok(counts)
}

fn judge(command: &Command, report: &Path) -> Result<Counts> {
    let exit = process::run_streaming(command, LIMIT, |_, bytes| {
        use std::io::Write as _;
        let mut out = std::io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush()).ok();
    })?;
    let counts = read_report(report)?;
    ensure!(exit.success() && counts.failed == 0, "csi-sanity ended with {exit}: {counts}");
    ensure!(counts.passed > 0, "csi-sanity ran no spec");
    Ok(counts)
}

/// What csi-sanity's report says.
#[derive(Debug, Default)]
struct Counts {
    passed: u32,
    failed: u32,
    skipped: u32,
    pending: u32,
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { passed, failed, skipped, pending } = self;
        write!(f, "{passed} specs passed, {failed} failed, {skipped} skipped, {pending} pending")
    }
}

/// The parts of ginkgo's JSON report that matter here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    spec_reports: Vec<Spec>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    state: String,
    leaf_node_type: String,
    leaf_node_text: String,
    #[serde(default)]
    container_hierarchy_texts: Vec<String>,
    failure: Option<Failure>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
}

fn read_report(path: &Path) -> Result<Counts> {
    let text = std::fs::read(path).with_context(|| format!("csi-sanity left no report in {}", path.display()))?;
    let reports: Vec<Report> = serde_json::from_slice(&text).context("csi-sanity's report is not understood")?;
    let mut counts = Counts::default();
    for spec in reports.iter().flat_map(|report| &report.spec_reports) {
        let reason = spec.failure.as_ref().map_or("", |failure| failure.message.as_str());
        match spec.state.as_str() {
            "passed" if spec.leaf_node_type == "It" => counts.passed += 1,
            "passed" => {}
            "pending" => counts.pending += 1,
            // The words of csi-sanity for a capability that is not advertised.
            "skipped" if reason.contains("not supported") => {
                counts.skipped += 1;
                let name = spec.container_hierarchy_texts.join(" ");
                println!("skipped: {name} {}: {}", spec.leaf_node_text, reason.trim());
            }
            _ => {
                counts.failed += 1;
                let name = spec.container_hierarchy_texts.join(" ");
                println!("{}: {name} {}: {}", spec.state, spec.leaf_node_text, reason.trim());
            }
        }
    }
    Ok(counts)
}
