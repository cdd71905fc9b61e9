//! How long the driver takes until it serves, and how large it is, with none, a thousand and five thousand volumes.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use quarry_proto::csi::v1 as csi;
use quarry_tests::bench;
use quarry_tests::in_vm::DriverUnderTest;
use serde::Serialize;
use tokio::runtime::Runtime;

use crate::{crowd, spec};

const VOLUMES: [usize; 3] = [0, 1000, 5000];

/// One line of the table.
#[derive(Debug, Serialize)]
pub struct Row {
    pub volumes: usize,
    /// With an empty journal: all volumes are taken into it.
    pub first_s: f64,
    /// With the journal as it is then.
    pub again_s: f64,
    /// That by the one without volumes.
    pub ratio: f64,
    pub resident_mib: f64,
}

/// Measures all of them.
pub fn measure(runtime: &Runtime) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    for volumes in VOLUMES {
        let group = crowd::group(volumes)?;
        let spec = spec(group.name(), &format!("start-{volumes}"));
        let begin = Instant::now();
        let mut driver = DriverUnderTest::start(spec)?;
        runtime.block_on(serves(&driver, volumes))?;
        let first_s = begin.elapsed().as_secs_f64();
        driver.kill()?;
        let begin = Instant::now();
        driver.launch()?;
        runtime.block_on(serves(&driver, volumes))?;
        let again_s = begin.elapsed().as_secs_f64();
        let resident_mib = bench::resident_mib(driver.pid().context("the driver does not run")?)?;
        let ratio = rows.first().map_or(1.0, |first| again_s / first.again_s);
        rows.push(Row { volumes, first_s, again_s, ratio, resident_mib });
    }
    Ok(rows)
}

/// It lists all of them.
async fn serves(driver: &DriverUnderTest, volumes: usize) -> Result<()> {
    let mut csi = driver.connect().await?;
    csi.identity.probe(csi::ProbeRequest {}).await?;
    let listed = csi.controller.list_volumes(csi::ListVolumesRequest::default()).await?.into_inner().entries.len();
    ensure!(listed == volumes, "{listed} volumes are listed, there should be {volumes}");
    Ok(())
}
