//! Scratch volumes for measuring disks: plain logical volumes that nobody else has to do with.
//!
//! **Invariant.** A scratch volume is never in the journal and no volume in any list. One that a killed driver left is
//! removed when its group is taken up, and before the next one is made.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::device_number::DeviceNumber;
use crate::io::calibrate::{Failure, Ground, Scratch};
use crate::io::sysfs::{self, Disk};
use crate::lvm::verbs;
use crate::lvm::{dm_name, metadata::model::LogicalVolume};
use crate::telemetry::chain;
use crate::volume::Bytes;
use crate::volume::size::MIB;

use super::group::{Group, Writer};
use super::{Engine, Reading};

/// The name of a scratch volume.
const NAME: &str = "quarry-scratch";
/// Its tag.
const TAG: &str = "quarry-scratch";
/// What it has where there is twice as much room: volumes may be made meanwhile.
const SIZE: u64 = 1024 * MIB;
/// What serves.
const LEAST: u64 = 128 * MIB;

fn is_scratch(lv: &LogicalVolume) -> bool {
    lv.name == NAME && lv.has_tag(TAG)
}

impl Engine {
    /// Removes what is left of an earlier measurement, if anything.
    pub(super) async fn remove_leftover_scratch(&self, group: &Group, writer: &mut Writer<'_>) -> Result<(), Failure> {
        let reading = group.known();
        let Some(left) = reading.state().group.logical_volume(NAME).filter(|lv| is_scratch(lv)) else { return Ok(()) };
        let removed = writer.run(self.runner.as_ref(), verbs::remove(group.name(), NAME, left.uuid)).await;
        let read = group.read().await;
        removed.map_err(failed)?;
        read.map_err(failed)?;
        Ok(())
    }

    /// The group with a physical volume on this disk and no other, with that volume's device.
    fn ground(&self, disk: &Disk) -> Option<(Arc<Group>, PathBuf)> {
        self.devices().into_iter().find(|(_, device)| disk_of(device).as_ref() == Some(disk))
    }

    /// The devices of the device classes' groups.
    fn devices(&self) -> Vec<(Arc<Group>, PathBuf)> {
        let classes = &self.config.device_classes;
        let groups = self.groups.all().into_iter();
        let ours = groups.filter(|group| classes.iter().any(|class| class.volume_group == group.name()));
        let devices = ours.flat_map(|group| {
            let devices = group.known().devices();
            devices.into_iter().map(move |device| (Arc::clone(&group), device))
        });
        devices.collect()
    }

    /// Bytes that a scratch volume may take: what no class keeps back.
    fn scratch_room(&self, reading: &Reading) -> u64 {
        let space = reading.space();
        let classes = self.config.device_classes.iter().filter(|class| class.volume_group == reading.name());
        let reserve = classes.map(|class| class.reserve_bytes).max().unwrap_or_default();
        if !space.complete || !space.changeable {
            return 0;
        }
        (space.free_extents * space.extent.0).saturating_sub(reserve)
    }
}

fn failed(error: impl std::error::Error + 'static) -> Failure {
    Failure::Failed(chain(&error))
}

/// The whole disk that a device lies on, where it is one.
fn disk_of(device: &Path) -> Option<Disk> {
    let number = DeviceNumber::from_rdev(rustix::fs::stat(device).ok()?.st_rdev);
    let disks = sysfs::disks_below(Path::new("/sys"), number).ok()?;
    let mut disks = disks.into_iter();
    disks.next().filter(|_| disks.next().is_none())
}

#[tonic::async_trait]
impl Ground for Engine {
    async fn make_scratch(&self, disk: &Disk) -> Result<Scratch, Failure> {
        let Some((group, device)) = self.ground(disk) else {
            return Err(Failure::NoGround(format!(
                "no physical volume of a device class's volume group lies on disk {} alone",
                disk.name
            )));
        };
        let vg = group.name().to_owned();
        let mut writer = group.writer().await;
        writer.ready(self.runner.as_ref()).await.map_err(failed)?;
        self.remove_leftover_scratch(&group, &mut writer).await?;
        let reading = group.read().await.map_err(failed)?;
        let no_room = || Failure::NoRoom { vg: vg.clone(), disk: disk.name.clone(), least: Bytes(LEAST) };
        let on_disk = reading.free_on(&device).ok_or_else(no_room)?;
        let extent = reading.extent();
        let size = Bytes(SIZE.min(self.scratch_room(&reading) / 2).min(on_disk)).round_down(extent);
        if size.0 < LEAST {
            return Err(no_room());
        }
        let command = verbs::create_scratch(&vg, NAME, size.0 / extent.0, TAG, &device);
        writer.run(self.runner.as_ref(), command).await.map_err(failed)?;
        group.read().await.map_err(failed)?;
        drop(writer);
        let device = Path::new("/dev/mapper").join(dm_name::device_name(&vg, NAME));
        Ok(Scratch { vg, device, size })
    }

    async fn remove_scratch(&self, scratch: &Scratch) -> Result<(), Failure> {
        let Some(group) = self.groups.by_name(&scratch.vg) else { return Ok(()) };
        let mut writer = group.writer().await;
        writer.ready(self.runner.as_ref()).await.map_err(failed)?;
        self.remove_leftover_scratch(&group, &mut writer).await
    }

    async fn disks(&self) -> Vec<Disk> {
        let disks: BTreeSet<Disk> = self.devices().iter().filter_map(|(_, device)| disk_of(device)).collect();
        disks.into_iter().collect()
    }
}
