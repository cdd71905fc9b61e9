//! Finds and repairs what an LVM command left behind that was killed in mid-command: a suspended origin, a whole pool
//! frozen, a table loaded and not taken into use, a pool whose kernel is a transaction behind its metadata, a new pool
//! without a device.
//!
//! **Invariant.** Looking never changes anything and runs no process; a healthy group is not touched.

use std::fmt;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::dm::{DeviceMapper, DeviceStatus, DmError, Key};
use super::dm_name::split_device_name;
use super::dm_status::PoolStatus;
use super::metadata::model::VolumeGroup;
use super::pool;
use super::runner::{LvmError, Runner};
use super::verbs;
use super::watch::WatchOptions;
use crate::volume::tags::POOL_MARK;

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leftover {
    /// A device that holds back all reads and writes.
    Suspended {
        /// Its device-mapper name.
        device: String,
    },
    /// A table that was loaded and not taken into use. Whatever resumes the device next would take it into use, also where
    /// LVM's metadata never came to say so: a pool could grow over extents that belong to nobody.
    StaleTable {
        /// Its device-mapper name.
        device: String,
    },
    /// A pool whose kernel was not told of the last transaction: the volume made by it cannot be activated.
    PoolBehind {
        /// The pool.
        pool: String,
        /// What LVM's metadata says.
        metadata: u64,
        /// What the kernel says.
        kernel: u64,
    },
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Suspended { device } => write!(f, "device {device} is suspended"),
            Self::StaleTable { device } => write!(f, "device {device} has a table that was loaded and never used"),
            Self::PoolBehind { pool, metadata, kernel } => {
                write!(
                    f,
                    "thin pool {pool} is at transaction {metadata} in LVM's metadata and at {kernel} in the kernel"
                )
            }
        }
    }
}

/// Why a group is not in order.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// The kernel did not say.
    #[error("cannot ask the kernel for leftovers of a killed command")]
    DeviceMapper(#[from] DmError),
    /// The asking thread died.
    #[error("asking the kernel for leftovers of a killed command was cut off")]
    Cut(#[from] tokio::task::JoinError),
    /// LVM refused.
    #[error("cannot repair what a killed command left behind")]
    Lvm(#[from] LvmError),
    /// LVM's lock on the group cannot be taken.
    #[error("cannot take LVM's lock {}", path.display())]
    Lock {
        /// The lock's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another program holds LVM's lock on the group.
    #[error("another program has been holding LVM's lock on the volume group for {} s", LOCK_LIMIT.as_secs())]
    Locked,
    /// It did not help.
    #[error("after repairs: {}", leftovers.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Remains {
        /// What is still wrong.
        leftovers: Vec<Leftover>,
    },
}

/// Repairs a group where it must be. The group's permit to change is held by the caller.
///
/// # Errors
/// [`RepairError`].
pub async fn repair(runner: &dyn Runner, group: &VolumeGroup) -> Result<(), RepairError> {
    settle(runner, group).await?;
    // Of a pool without a device nobody could see whether it is behind.
    if activate_pools(runner, group).await? {
        settle(runner, group).await?;
    }
    Ok(())
}

/// Brings the devices that there are in line with the metadata.
async fn settle(runner: &dyn Runner, group: &VolumeGroup) -> Result<(), RepairError> {
    /// A snapshot killed before its origin was resumed needs the refresh of the origin, then one more of the group.
    const ROUNDS: usize = 3;
    let mut leftovers = look(group).await?;
    for round in 0..ROUNDS {
        if leftovers.is_empty() {
            break;
        }
        for leftover in &leftovers {
            tracing::warn!(vg = group.name, %leftover, "repairing what a killed command left behind");
        }
        if leftovers.iter().any(|leftover| matches!(leftover, Leftover::StaleTable { .. })) {
            under_lock(group, clear_stale_tables).await?;
        }
        if round > 0 {
            if leftovers.iter().any(|leftover| matches!(leftover, Leftover::PoolBehind { .. })) {
                under_lock(group, tell_pools).await?;
            }
            for volume in suspended_volumes(group, &leftovers) {
                runner.run(verbs::refresh_volume(&group.name, &volume)).await?;
            }
        }
        runner.run(verbs::refresh_group(&group.name)).await?;
        leftovers = look(group).await?;
    }
    if !leftovers.is_empty() {
        return Err(RepairError::Remains { leftovers });
    }
    Ok(())
}

/// How long is waited for LVM's lock, and how often is tried.
const LOCK_LIMIT: Duration = Duration::from_secs(30);
const LOCK_PERIOD: Duration = Duration::from_millis(500);

/// Does something while LVM's lock on the group is held, on a thread that may wait.
async fn under_lock(
    group: &VolumeGroup,
    work: fn(&DeviceMapper, &VolumeGroup) -> Result<(), DmError>,
) -> Result<(), RepairError> {
    let give_up = tokio::time::Instant::now() + LOCK_LIMIT;
    loop {
        let group = group.clone();
        if tokio::task::spawn_blocking(move || locked(&group, work)).await?? {
            return Ok(());
        }
        if tokio::time::Instant::now() >= give_up {
            return Err(RepairError::Locked);
        }
        tokio::time::sleep(LOCK_PERIOD).await;
    }
}

/// False where another program holds LVM's lock: what it has begun it will end.
fn locked(
    group: &VolumeGroup,
    work: fn(&DeviceMapper, &VolumeGroup) -> Result<(), DmError>,
) -> Result<bool, RepairError> {
    let path = WatchOptions::default().lock_directory.join(format!("V_{}", group.name));
    let failed = |source: std::io::Error| RepairError::Lock { path: path.clone(), source };
    let lock = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
        Err(error) => return Err(failed(error.into())),
    }
    // LVM removes the file when it gives the lock back: one that is not under the path any more locks nothing.
    let (held, there) = (lock.metadata().map_err(failed)?, std::fs::metadata(&path).ok());
    if there.is_none_or(|there| (there.dev(), there.ino()) != (held.dev(), held.ino())) {
        return Ok(false);
    }
    work(&DeviceMapper::open()?, group)?;
    // As LVM does it, and while it is held.
    std::fs::remove_file(&path).map_err(failed)?;
    Ok(true)
}

/// Throws away the tables that were loaded and not taken into use, so that the refresh loads those of the metadata: LVM
/// would resume with what is loaded.
fn clear_stale_tables(dm: &DeviceMapper, group: &VolumeGroup) -> Result<(), DmError> {
    for device in dm.lvm_devices(Some(group.uuid))?.iter().filter(|device| is_stale(device)) {
        dm.clear_table(Key::Uuid(&device.uuid))?;
    }
    Ok(())
}

/// Does for pools that are behind what a refresh does only while one of their volumes is active.
fn tell_pools(dm: &DeviceMapper, group: &VolumeGroup) -> Result<(), DmError> {
    group.logical_volumes.values().try_for_each(|volume| pool::tell_outstanding(dm, group, volume))
}

/// Whether a device has a table beside the one that it uses. One that uses none was never taken into use at all; its
/// activation is finished by whoever needs it.
fn is_stale(device: &DeviceStatus) -> bool {
    device.inactive_table && device.live_table
}

/// Activates the pools of ours that the kernel does not have: a command that died while it made one leaves it so, and the
/// fill of such a pool, and so the room in it, is unknown. One that cannot be activated keeps nobody from the rest of the
/// group. Says whether there was any.
async fn activate_pools(runner: &dyn Runner, group: &VolumeGroup) -> Result<bool, RepairError> {
    let looked = group.clone();
    let inactive = tokio::task::spawn_blocking(move || inactive_pools(&looked)).await??;
    let any = !inactive.is_empty();
    for InactivePool { pool, parts } in inactive {
        tracing::warn!(vg = group.name, pool, "activating a thin pool that has no device");
        // LVM does not activate a pool of which a part has a device by itself.
        let parts = parts.iter().map(|part| verbs::deactivate(&group.name, part));
        for command in parts.chain([verbs::activate(&group.name, &pool)]) {
            if let Err(error) = runner.run(command).await {
                tracing::error!(vg = group.name, pool, error = crate::telemetry::chain(&error), "cannot activate it");
            }
        }
    }
    Ok(any)
}

/// A pool without a live device.
struct InactivePool {
    pool: String,
    /// Its volumes, itself among them, that have a device all the same: what uses others before those.
    parts: Vec<String>,
}

fn inactive_pools(group: &VolumeGroup) -> Result<Vec<InactivePool>, DmError> {
    let dm = DeviceMapper::open()?;
    let mut inactive = Vec::new();
    for volume in group.logical_volumes.values().filter(|volume| volume.has_tag(POOL_MARK)) {
        let Some(segment) = volume.thin_pool() else { continue };
        if pool::status(&dm, group.uuid, volume.uuid)?.is_some() {
            continue;
        }
        let names = dm.lvm_devices(Some(group.uuid))?.into_iter();
        let devices: Vec<String> =
            names.filter_map(|device| split_device_name(&device.name).map(|(_, volume)| volume)).collect();
        let parts = [&volume.name, &segment.metadata, &segment.data].into_iter().filter(|part| devices.contains(part));
        inactive.push(InactivePool { pool: volume.name.clone(), parts: parts.cloned().collect() });
    }
    Ok(inactive)
}

/// What is not as it should be.
///
/// # Errors
/// [`RepairError::DeviceMapper`] when the kernel does not say.
pub async fn look(group: &VolumeGroup) -> Result<Vec<Leftover>, RepairError> {
    let group = group.clone();
    tokio::task::spawn_blocking(move || look_blocking(&group)).await?
}

fn look_blocking(group: &VolumeGroup) -> Result<Vec<Leftover>, RepairError> {
    let dm = DeviceMapper::open()?;
    let devices = dm.lvm_devices(Some(group.uuid))?;
    let stale = devices.iter().filter(|device| is_stale(device));
    let mut leftovers: Vec<Leftover> =
        stale.map(|device| Leftover::StaleTable { device: device.name.clone() }).collect();
    let suspended = devices.into_iter().filter(|device| device.suspended);
    leftovers.extend(suspended.map(|device| Leftover::Suspended { device: device.name }));
    for volume in group.logical_volumes.values() {
        let Some(segment) = volume.thin_pool() else { continue };
        let Some(PoolStatus::Working(working)) = pool::status(&dm, group.uuid, volume.uuid)? else { continue };
        let (metadata, kernel) = (segment.transaction_id, working.transaction_id);
        if metadata != kernel {
            leftovers.push(Leftover::PoolBehind { pool: volume.name.clone(), metadata, kernel });
        }
    }
    Ok(leftovers)
}

/// The visible volumes whose devices are suspended; hidden layers come back with their volume.
fn suspended_volumes(group: &VolumeGroup, leftovers: &[Leftover]) -> Vec<String> {
    let names = leftovers.iter().filter_map(|leftover| match leftover {
        Leftover::Suspended { device } => split_device_name(device).map(|(_, volume)| volume),
        Leftover::StaleTable { .. } | Leftover::PoolBehind { .. } => None,
    });
    names.filter(|name| group.logical_volume(name).is_some_and(|volume| volume.visible_flag)).collect()
}

/// How often is looked whether an earlier driver's command has ended.
const LEFTOVER_PERIOD: Duration = Duration::from_millis(500);

/// Waits until no LVM command of an earlier driver is at work on a volume group. In a pod there is none: the driver is
/// process 1 there, and its children die with it. One that hangs is waited for without an end, since nobody knows what it
/// will have done; the other groups are served meanwhile.
pub async fn wait_for_leftover_commands(system_dir: &Path, vg: &str) {
    for round in 0_u64.. {
        let (dir, name) = (system_dir.to_owned(), vg.to_owned());
        let running = tokio::task::spawn_blocking(move || leftover_command(&dir, &name)).await;
        match running {
            Ok(Ok(None)) => return,
            Ok(Ok(Some(pid))) if round % 60 == 0 => {
                tracing::warn!(vg, pid, "waiting for an lvm command of a driver that is gone");
            }
            Ok(Ok(Some(_))) => {}
            // Not knowing is not "none".
            Ok(Err(error)) if round % 60 == 0 => {
                tracing::error!(vg, %error, "cannot look for lvm commands of an earlier driver")
            }
            Ok(Err(_)) => {}
            Err(error) => tracing::error!(vg, %error, "looking for lvm commands of an earlier driver was cut off"),
        }
        tokio::time::sleep(LEFTOVER_PERIOD).await;
    }
}

/// A running `lvm` with our system directory in its environment that names the volume group, or none at all.
fn leftover_command(system_dir: &Path, vg: &str) -> Result<Option<i32>, procfs::ProcError> {
    let mut variable = b"LVM_SYSTEM_DIR=".to_vec();
    variable.extend_from_slice(system_dir.as_os_str().as_bytes());
    let own = std::process::id();
    let processes = procfs::process::all_processes()?.flatten();
    let found = processes
        .filter(|process| process.exe().is_ok_and(|exe| exe.file_name() == PathBuf::from("lvm").file_name()))
        // What this driver has begun itself is in good hands.
        .filter(|process| process.stat().is_ok_and(|stat| u32::try_from(stat.ppid) != Ok(own)))
        .find(|process| {
            let environment = std::fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|entry| entry == variable)
                && process.cmdline().is_ok_and(|words| concerns(&words, vg))
        });
    Ok(found.map(|process| process.pid))
}

/// Whether a command line is about a group. The group stands in the last word, as `vg` or `vg/lv`; a report names none and
/// changes nothing.
fn concerns(words: &[String], vg: &str) -> bool {
    words.last().is_some_and(|word| word.split('/').next() == Some(vg))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_concerns_the_group_it_changes() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for line in ["lvm lvcreate -n pvc-1 quarry", "lvm lvremove -y quarry/pvc-1", "lvm vgchange --refresh quarry"] {
            assert!(concerns(&words(line), "quarry"), "{line}");
        }
        for line in ["lvm lvs -a -o lv_name", "lvm lvremove -y other/quarry", "lvm lvcreate -n quarry other", "lvm"] {
            assert!(!concerns(&words(line), "quarry"), "{line}");
        }
    }
}
