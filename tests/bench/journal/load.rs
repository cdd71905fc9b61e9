//! Creations per second, several at once, with the journal and with one that is kept in memory only.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use quarry_proto::csi::v1 as csi;
use quarry_proto::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use quarry_tests::bench::median;
use quarry_tests::in_vm::{Csi, DriverUnderTest, VolumeGroup};
use serde::Serialize;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::spec;

/// How many requests are under way at once.
const AT_ONCE: [usize; 3] = [1, 8, 32];
/// Of each volume.
const BYTES: i64 = 32 << 20;

/// One line of the table.
#[derive(Debug, Serialize)]
pub struct Row {
    pub at_once: usize,
    pub volumes: usize,
    pub with_per_s: f64,
    pub without_per_s: f64,
    /// With by without.
    pub ratio: f64,
    /// Synchronisations of the journal's disk for these creations; each has two writes.
    pub syncs: usize,
}

/// The median of fdatasync after a write as long as a journal row.
pub fn fdatasync(folder: &Path) -> Result<f64> {
    let path = folder.join("fdatasync");
    let mut file = File::create(&path)?;
    let mut samples = Vec::new();
    for _ in 0..200 {
        file.write_all(&[b'x'; 400])?;
        let begin = Instant::now();
        file.sync_data()?;
        samples.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    std::fs::remove_file(path)?;
    median(&samples)
}

/// Rows, and the median time of a journal write when one request comes after another, in microseconds.
pub fn measure(runtime: &Runtime, group: &VolumeGroup, volumes: usize) -> Result<(Vec<Row>, f64)> {
    let (mut rows, mut alone) = (Vec::new(), Vec::new());
    for at_once in AT_ONCE {
        let mut per_s = [0.0; 2];
        let mut writes = Vec::new();
        for (index, forgetful) in [false, true].into_iter().enumerate() {
            let mut spec = spec(group.name(), &format!("load-{at_once}-{index}"));
            if forgetful {
                spec.env.push(("QUARRY_FORGETFUL_JOURNAL".to_owned(), "1".to_owned()));
            }
            let driver = DriverUnderTest::start(spec)?;
            let took = runtime.block_on(load(&driver, at_once, volumes))?;
            #[expect(clippy::cast_precision_loss, reason = "a few dozen")]
            let rate = volumes as f64 / took;
            per_s[index] = rate;
            if !forgetful {
                writes = journal_writes(&driver.log())?;
            }
        }
        if at_once == 1 {
            alone = writes.iter().map(|(_, us)| *us).collect();
        }
        let [with_per_s, without_per_s] = per_s;
        let ratio = with_per_s / without_per_s;
        // Writes that came together took the same time to the microsecond and stand one after the other.
        let mut times: Vec<f64> =
            writes.iter().filter(|(what, _)| what.starts_with("create-")).map(|(_, us)| *us).collect();
        times.dedup();
        rows.push(Row { at_once, volumes, with_per_s, without_per_s, ratio, syncs: times.len() });
    }
    Ok((rows, median(&alone)?))
}

/// Makes the volumes, tells how many seconds it took, and deletes them.
async fn load(driver: &DriverUnderTest, at_once: usize, volumes: usize) -> Result<f64> {
    let csi = driver.connect().await?;
    csi.identity.clone().probe(csi::ProbeRequest {}).await?;
    let begin = Instant::now();
    each(&csi, at_once, volumes, true).await?;
    let took = begin.elapsed().as_secs_f64();
    each(&csi, at_once, volumes, false).await?;
    Ok(took)
}

async fn each(csi: &Csi, at_once: usize, volumes: usize, create: bool) -> Result<()> {
    let mut under_way = JoinSet::new();
    for number in 0..volumes {
        if under_way.len() == at_once {
            under_way.join_next().await.context("nothing is under way")???;
        }
        let mut controller = csi.controller.clone();
        under_way.spawn(async move {
            let name = format!("load-{number}");
            if create {
                controller.create_volume(request(name)).await?;
            } else {
                let volume_id = format!("node-1/{name}");
                controller.delete_volume(csi::DeleteVolumeRequest { volume_id, ..Default::default() }).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = under_way.join_next().await {
        done??;
    }
    Ok(())
}

fn request(name: String) -> csi::CreateVolumeRequest {
    csi::CreateVolumeRequest {
        name,
        capacity_range: Some(csi::CapacityRange { required_bytes: BYTES, limit_bytes: 0 }),
        volume_capabilities: vec![csi::VolumeCapability {
            access_mode: Some(AccessMode { mode: 7 }),
            access_type: Some(AccessType::Mount(MountVolume::default())),
        }],
        parameters: [("provisioning".to_owned(), "thick".to_owned())].into(),
        ..Default::default()
    }
}

/// What was written and for how many microseconds, by the driver's log.
fn journal_writes(log: &str) -> Result<Vec<(String, f64)>> {
    let lines = log.lines().filter(|line| line.contains("journal written"));
    lines
        .map(|line| {
            let field = |name: &str| {
                let rest = line.split_once(name)?.1;
                Some(rest.split([' ', '"']).find(|part| !part.is_empty())?.to_owned())
            };
            let fields = field("what=").zip(field("us=").and_then(|us| us.parse().ok()));
            fields.with_context(|| format!("not understood: {line}"))
        })
        .collect()
}
