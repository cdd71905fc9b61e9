//! Asks the kernel from time to time what thin volumes really use and what was read from and written to volumes, for
//! metrics and `quarry-driver status`, so that nobody who looks at these waits for the kernel.
//!
//! **Invariant.** One look at a volume group at a time: a kernel that does not answer costs one thread for each group,
//! and no other group's figures.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::device_number::DeviceNumber;
use crate::io::block_stat::BlockStat;
use crate::io::control::Places;
use crate::io::facts::{self, DiskFacts};
use crate::io::pods::{self, PodCgroup};
use crate::io::sysfs::disks_below;
use crate::journal::Contents;
use crate::lvm::dm::{DeviceMapper, DmError, Key};
use crate::lvm::dm_name::{Layer, device_uuid};
use crate::lvm::dm_status::{TargetStatus, ThinStatus};
use crate::lvm::metadata::LvmUuid;
use crate::lvm::metadata::model::LogicalVolume;
use crate::telemetry::chain;
use crate::volume::LvName;
use crate::volume::tags::MARK;

use super::{Engine, Reading};

/// How often.
const PERIOD: Duration = Duration::from_secs(15);
/// The unit of device-mapper's figures, whatever the disk's own is.
const SECTOR: u64 = 512;

/// What the kernel said of a volume; nothing of one that is not active.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// Bytes that a thin volume has in its pool.
    pub used: Option<u64>,
    /// What was read and written since its device came to be.
    pub traffic: Option<BlockStat>,
    /// The disks below it, by their names in `/sys/block`.
    pub disks: Vec<String>,
    /// For how many seconds of these disks' time the pods that have it used them, where iocost controls the disk. A pod's
    /// use of a disk is one, also where it has several volumes there.
    pub device_seconds: Vec<(String, f64)>,
}

/// The last samples.
#[derive(Debug, Default)]
pub struct Samples {
    groups: Mutex<BTreeMap<LvmUuid, OfGroup>>,
    disks: Mutex<Vec<DiskFacts>>,
}

/// Those of a volume group.
#[derive(Debug)]
struct OfGroup {
    /// In seconds since 1970.
    when: f64,
    volumes: BTreeMap<LvmUuid, Sample>,
}

impl Samples {
    /// What was last said of a volume.
    #[must_use]
    pub fn of(&self, group: LvmUuid, volume: LvmUuid) -> Sample {
        self.all().get(&group).and_then(|of| of.volumes.get(&volume)).cloned().unwrap_or_default()
    }

    /// When a group's volumes were last looked at, in seconds since 1970.
    #[must_use]
    pub fn when(&self, group: LvmUuid) -> Option<f64> {
        self.all().get(&group).map(|of| of.when)
    }

    /// What the kernel last said of the disks below volumes.
    #[must_use]
    pub fn disks(&self) -> Vec<DiskFacts> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn look_at_disks(&self) {
        let all = self.all();
        let samples = all.values().flat_map(|of| of.volumes.values());
        let names: BTreeSet<String> = samples.flat_map(|sample| sample.disks.iter().cloned()).collect();
        drop(all);
        let Places { cgroups, sys } = Places::default();
        let facts = facts::read(&cgroups, &sys, names.iter().map(String::as_str));
        *self.disks.lock().unwrap_or_else(PoisonError::into_inner) = facts;
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<LvmUuid, OfGroup>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Samples all groups until `shutdown` is cancelled.
    pub async fn sample(self: Arc<Self>, shutdown: CancellationToken) {
        let mut looking: BTreeMap<LvmUuid, JoinHandle<()>> = BTreeMap::new();
        loop {
            let groups = self.groups.all();
            looking.retain(|_, look| !look.is_finished());
            self.samples.all().retain(|uuid, _| groups.iter().any(|group| group.uuid() == *uuid));
            for group in groups {
                let (engine, uuid) = (Arc::clone(&self), group.uuid());
                looking.entry(uuid).or_insert_with(|| {
                    tokio::task::spawn_blocking(move || {
                        let reading = group.known();
                        match look(&reading, &engine.journaled()) {
                            Ok(volumes) => {
                                engine.samples.all().insert(uuid, OfGroup { when: now(), volumes });
                                engine.samples.look_at_disks();
                            }
                            Err(error) => {
                                tracing::debug!(vg = group.name(), error = chain(&error), "volumes are not measured");
                            }
                        }
                    })
                });
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
    }
}

/// Looks at the active volumes of ours in a group.
fn look(reading: &Reading, journal: &Contents) -> Result<BTreeMap<LvmUuid, Sample>, DmError> {
    let group = &reading.state().group;
    let ours: Vec<&LogicalVolume> = group.logical_volumes.values().filter(|volume| volume.has_tag(MARK)).collect();
    let mut samples = BTreeMap::new();
    if ours.is_empty() {
        return Ok(samples);
    }
    let dm = DeviceMapper::open()?;
    let Places { cgroups, sys } = Places::default();
    let pods = pods::find(&cgroups).unwrap_or_default().pods;
    let tenants = |volume: &str| {
        let published = LvName::parse(volume).into_iter().flat_map(|lv| {
            journal
                .published_of(&lv)
                .filter_map(|(_, row)| Some(row.pod.as_ref()?.uid.clone()))
                .collect::<BTreeSet<_>>()
        });
        published.filter_map(|pod| pods.get(&pod)).collect::<Vec<&PodCgroup>>()
    };
    for volume in ours {
        let uuid = device_uuid(group.uuid, volume.uuid, Layer::Volume);
        let Some(status) = dm.status(Key::Uuid(&uuid))?.filter(|status| status.live_table) else { continue };
        let mut sample = of_device(&sys, status.number);
        let mut seconds = BTreeMap::new();
        for pod in tenants(&volume.name) {
            for (disk, used) in facts::usage(&pod.path, &sys, &sample.disks) {
                *seconds.entry(disk).or_insert(0.0) += used;
            }
        }
        sample.device_seconds = seconds.into_iter().collect();
        if volume.thin().is_some() {
            sample.used = dm.table_status(Key::Uuid(&uuid))?.unwrap_or_default().into_iter().find_map(|target| {
                match target.status {
                    TargetStatus::Thin(ThinStatus::Working { mapped_sectors, .. }) => {
                        Some(mapped_sectors.saturating_mul(SECTOR))
                    }
                    _ => None,
                }
            });
        }
        samples.insert(volume.uuid, sample);
    }
    Ok(samples)
}

/// What sysfs says of a device. It may go away meanwhile: then there is less to tell.
fn of_device(sys: &Path, number: DeviceNumber) -> Sample {
    let disks = disks_below(sys, number).unwrap_or_default();
    Sample {
        traffic: BlockStat::of(&sys.join("dev/block").join(number.to_string())).ok(),
        disks: disks.into_iter().map(|disk| disk.name).collect(),
        ..Sample::default()
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_devices_counters_and_disks_are_read_from_sysfs() {
        let sys = tempfile::tempdir().unwrap();
        let (volume, disk) = (sys.path().join("devices/dm-3"), sys.path().join("devices/sda"));
        for folder in [&volume.join("slaves"), &disk.join("slaves"), &sys.path().join("dev/block")] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(volume.join("dev"), "253:3\n").unwrap();
        fs::write(disk.join("dev"), "8:0\n").unwrap();
        fs::write(volume.join("stat"), "      10  0  80  4  20  1  240  9  0  7  13 0 0 0 0 0 0\n").unwrap();
        std::os::unix::fs::symlink(&disk, volume.join("slaves/sda")).unwrap();
        std::os::unix::fs::symlink(&volume, sys.path().join("dev/block/253:3")).unwrap();
        let expected =
            BlockStat { reads: 10, read_bytes: 40960, writes: 20, written_bytes: 122_880, queued_ms: 13, flushes: 0 };
        let sample = of_device(sys.path(), DeviceNumber { major: 253, minor: 3 });
        assert_eq!(sample, Sample { traffic: Some(expected), disks: vec!["sda".to_owned()], ..Sample::default() });
        // A device that is gone has nothing.
        assert_eq!(of_device(sys.path(), DeviceNumber { major: 253, minor: 4 }), Sample::default());
    }
}
