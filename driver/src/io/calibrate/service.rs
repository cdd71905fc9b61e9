//! Calibrates disks: when an administrator asks, and by itself where a pod's weight waits for it and the disk is quiet.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::exec::Exec;
use crate::volume::Bytes;

use super::super::block_stat::BlockStat;
use super::super::control::Control;
use super::super::sysfs::Disk;
use super::rig::DiskRig;
use super::{Calibration, Failure, identity, procedure};

/// How often is looked whether a disk waits for a model.
const PERIOD: Duration = Duration::from_secs(2);
/// How long a disk must have been quiet.
const QUIET: Duration = Duration::from_secs(3);
/// Bytes that a quiet disk moves in that time: a log's line, LVM's metadata.
const QUIET_BYTES: u64 = 256 << 10;
/// The pause after a failure, doubled with each one.
const PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// How long a scratch volume is written.
const FILL: Duration = Duration::from_secs(60);
/// How often its removal is tried.
const REMOVALS: u32 = 15;
/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(300);

/// A logical volume to measure on, wholly on one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scratch {
    /// Its volume group.
    pub vg: String,
    /// Its device.
    pub device: PathBuf,
    /// Its size.
    pub size: Bytes,
}

/// Whoever makes scratch volumes.
#[tonic::async_trait]
pub trait Ground: Send + Sync {
    /// Makes one on a disk.
    async fn make_scratch(&self, disk: &Disk) -> Result<Scratch, Failure>;

    /// Removes it.
    async fn remove_scratch(&self, scratch: &Scratch) -> Result<(), Failure>;

    /// The whole disks that are the only one below a physical volume of a device class's group.
    async fn disks(&self) -> Vec<Disk>;
}

/// Calibrates disks, one at a time.
pub struct Calibrator {
    control: Arc<Control>,
    ground: Arc<dyn Ground>,
    exec: Exec,
}

impl std::fmt::Debug for Calibrator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Calibrator").finish_non_exhaustive()
    }
}

/// When a disk is to be tried again.
#[derive(Debug, Clone, Copy)]
struct Patience {
    not_before: Instant,
    pause: Duration,
}

impl Calibrator {
    /// Of the disks below the ground's volume groups.
    #[must_use]
    pub fn new(control: Arc<Control>, ground: Arc<dyn Ground>, exec: Exec) -> Self {
        Self { control, ground, exec }
    }

    /// Calibrates the disks of these names in `/sys/block`, or all.
    ///
    /// # Errors
    /// There is no such disk. What became of each disk is in the list.
    pub async fn calibrate(&self, names: &[String]) -> Result<Vec<(String, Result<Calibration, Failure>)>, Failure> {
        let disks = self.ground.disks().await;
        let known = || disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>().join(", ");
        if let Some(name) = names.iter().find(|name| !disks.iter().any(|disk| disk.name == **name)) {
            return Err(Failure::NoGround(format!(
                "no physical volume of a device class's volume group lies on disk {name:?} alone; such disks are: {}",
                known()
            )));
        }
        let mut outcomes = Vec::new();
        for disk in disks.iter().filter(|disk| names.is_empty() || names.contains(&disk.name)) {
            outcomes.push((disk.name.clone(), self.calibrate_disk(disk).await));
        }
        Ok(outcomes)
    }

    async fn calibrate_disk(&self, disk: &Disk) -> Result<Calibration, Failure> {
        self.control.begin_calibration(disk)?;
        tracing::info!(disk = disk.name, "calibration begins");
        let outcome = self.on_scratch(disk).await;
        match &outcome {
            Ok(found) => tracing::info!(disk = disk.name, ?found, "calibrated"),
            Err(error) => tracing::warn!(disk = disk.name, %error, "not calibrated"),
        }
        let outcome = outcome.map(|found| Calibration::new(identity(&self.control.places().sys, disk), found));
        self.control.end_calibration(disk, &outcome);
        outcome
    }

    async fn on_scratch(&self, disk: &Disk) -> Result<procedure::Found, Failure> {
        if !self.is_quiet(disk).await? {
            return Err(Failure::Disturbed);
        }
        let scratch = self.ground.make_scratch(disk).await?;
        let (control, exec) = (Arc::clone(&self.control), self.exec.clone());
        let found = async {
            let (device, size) = (scratch.device.clone(), scratch.size.0);
            let mut rig = DiskRig::new(control, exec, disk.clone(), device, size, FILL).await?;
            procedure::calibrate(&mut rig).await
        };
        let found = match tokio::time::timeout(LIMIT, found).await {
            Ok(found) => found,
            Err(_) => Err(Failure::Failed(format!("it took longer than {} s", LIMIT.as_secs()))),
        };
        self.remove(disk, &scratch).await;
        found
    }

    /// A measuring process that was given up may use it for a while yet.
    async fn remove(&self, disk: &Disk, scratch: &Scratch) {
        for _ in 0..REMOVALS {
            match self.ground.remove_scratch(scratch).await {
                Ok(()) => return,
                Err(error) => tracing::warn!(disk = disk.name, %error, "the scratch volume cannot be removed yet"),
            }
            tokio::time::sleep(PERIOD * 2).await;
        }
        tracing::error!(
            disk = disk.name,
            vg = scratch.vg,
            "the scratch volume is left; it is removed before the next one is made"
        );
    }

    /// Whether nobody uses the disk for a while.
    async fn is_quiet(&self, disk: &Disk) -> Result<bool, Failure> {
        let moved = || BlockStat::of_disk(&self.control.places().sys, &disk.name).map(|stat| stat.bytes());
        let before = moved()?;
        tokio::time::sleep(QUIET).await;
        Ok(moved()?.saturating_sub(before) <= QUIET_BYTES)
    }

    /// Calibrates the disks that pods' weights wait for, until `shutdown` is cancelled.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut tried: BTreeMap<String, Patience> = BTreeMap::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
            for disk in self.control.uncalibrated() {
                let now = Instant::now();
                if tried.get(&disk.name).is_some_and(|patience| now < patience.not_before) {
                    continue;
                }
                let outcome = tokio::select! {
                    () = shutdown.cancelled() => return,
                    outcome = self.calibrate_disk(&disk) => outcome,
                };
                match outcome {
                    Ok(_) => drop(tried.remove(&disk.name)),
                    // A pod that was started a moment ago is at work: it is looked again soon.
                    Err(_) => {
                        let pause = tried.get(&disk.name).map_or(PAUSE, |before| (before.pause * 2).min(LONGEST_PAUSE));
                        tried.insert(disk.name.clone(), Patience { not_before: Instant::now() + pause, pause });
                    }
                }
            }
        }
    }
}
