//! Several fio at once, each in its tenant's cgroup.

use serde_json::Value;

use crate::scene::shell;
use crate::tenant::Tenant;

/// What one does.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    /// As fio calls it: `randread`, `randwrite`.
    pub rw: &'static str,
    /// Operations at once.
    pub depth: u32,
    /// Whether each write is synced.
    pub sync: bool,
}

impl Job {
    pub const fn new(rw: &'static str, depth: u32) -> Self {
        Self { rw, depth, sync: false }
    }
}

pub const READ: Job = Job::new("randread", 32);
pub const WRITE: Job = Job::new("randwrite", 32);

/// What came of one.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// Operations a second.
    pub iops: f64,
    /// Half of the operations took no longer, in milliseconds.
    pub p50_ms: f64,
    /// All but one in a hundred took no longer.
    pub p99_ms: f64,
}

/// Runs all at the same time for some seconds; the operations a second of each.
pub fn race(tenants: &[(&Tenant, Job)]) -> Vec<f64> {
    let outcomes = run(tenants);
    for Outcome { iops, p50_ms, p99_ms } in &outcomes {
        println!("race: {iops:.0} IOPS, half of them within {p50_ms:.1} ms, 99 % within {p99_ms:.1} ms");
    }
    outcomes.iter().map(|outcome| outcome.iops).collect()
}

/// The same with latencies.
pub fn run(tenants: &[(&Tenant, Job)]) -> Vec<Outcome> {
    let folder = tempfile::tempdir().unwrap();
    let output = |index: usize| folder.path().join(format!("{index}.json")).display().to_string();
    // Who started later would have the disk to himself at the end.
    let gate =
        format!("touch ready.$1; while [ \"$(ls | grep -c ^ready)\" -lt {} ]; do sleep 0.05; done\n", tenants.len());
    std::fs::write(folder.path().join("gate"), gate).unwrap();
    let mut script = "pids=\n".to_owned();
    for (index, (tenant, job)) in tenants.iter().enumerate() {
        let (cgroup, device) = (tenant.cgroup().display().to_string(), tenant.device().display().to_string());
        let Job { rw, depth, sync } = job;
        let sync = u8::from(*sync);
        script.push_str(&format!(
            "sh -c 'cd {} && echo $$ > {cgroup}/cgroup.procs && exec fio --name=t{index} --exec_prerun=\"sh gate {index}\" --filename={device} --ioengine=libaio --direct=1 \
             --bs=4k --rw={rw} --iodepth={depth} --sync={sync} --time_based --runtime=8 --ramp_time=3 --randrepeat=0 \
             --output-format=json --output={}' & pids=\"$pids $!\"\n",
            folder.path().display(),
            output(index)
        ));
    }
    script.push_str("for pid in $pids; do wait $pid || exit 1; done");
    shell(&script);
    (0..tenants.len())
        .map(|index| {
            let text = std::fs::read_to_string(output(index)).unwrap();
            let report: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"));
            let job = &report["jobs"][0];
            let number = |way: &str, key: &str| job[way][key].as_f64().unwrap();
            let way = if number("read", "iops") > number("write", "iops") { "read" } else { "write" };
            let percentile = |key: &str| job[way]["clat_ns"]["percentile"][key].as_f64().unwrap_or_default() / 1e6;
            Outcome {
                iops: number("read", "iops") + number("write", "iops"),
                p50_ms: percentile("50.000000"),
                p99_ms: percentile("99.000000"),
            }
        })
        .collect()
}

/// The second one's share in terms of the first one's.
pub fn ratio(iops: &[f64]) -> f64 {
    iops[1] / iops[0]
}

/// Fails unless a number lies between two.
#[track_caller]
pub fn between(what: &str, number: f64, low: f64, high: f64) {
    assert!((low..=high).contains(&number), "{what} is {number:.2}, should be from {low} to {high}");
}
