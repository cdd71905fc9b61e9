//! What the kernel says of a volume: whether it has a device, and who uses it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::filesystem::{MountTable, MountTableError};
use crate::lvm::dm::{DeviceMapper, DeviceStatus, DmError, Key};
use crate::lvm::dm_name::{Layer, device_uuid};
use crate::lvm::dm_status::{METADATA_BLOCK, PoolMode, PoolStatus};
use crate::lvm::metadata::LvmUuid;
use crate::lvm::metadata::model::{LogicalVolume, VolumeGroup};
use crate::lvm::pool;
use crate::telemetry::chain;
use crate::volume::capacity::usable_metadata;

/// The kernel did not say.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// Device-mapper's reason.
    #[error("cannot ask the kernel about a logical volume")]
    DeviceMapper(#[from] DmError),
    /// The mount table.
    #[error(transparent)]
    Mounts(#[from] MountTableError),
    /// The kernel does not answer.
    #[error("the kernel did not tell the fill of {vg}/{pool} within {} s", FILL_LIMIT.as_secs())]
    Slow {
        /// The group.
        vg: String,
        /// The pool.
        pool: String,
    },
    /// The asking thread died.
    #[error("asking the kernel about a logical volume was cut off")]
    Cut(#[from] tokio::task::JoinError),
}

/// Who uses a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Where it is mounted.
    pub mounted: Vec<String>,
    /// Block devices on top of it.
    pub holders: Vec<String>,
    /// How many times it is open; mounts and holders count.
    pub opens: u32,
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.mounted.is_empty() {
            parts.push(format!("mounted on {}", self.mounted.join(", ")));
        }
        if !self.holders.is_empty() {
            parts.push(format!("used by the device {}", self.holders.join(", ")));
        }
        if parts.is_empty() {
            parts.push(format!("opened {} times by processes (fuser, lsof on the node tell which)", self.opens));
        }
        f.write_str(&parts.join("; "))
    }
}

/// How full a thin pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// Data blocks in use.
    pub data_used_blocks: u64,
    /// Bytes of metadata in use.
    pub metadata_used: u64,
}

/// The pause before a pool that is being changed is asked about again.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// How long the kernel may take to tell a pool's fill; it takes microseconds.
const FILL_LIMIT: Duration = Duration::from_secs(2);

/// Asks the kernel how full thin pools are. One question per pool at a time: a kernel that does not answer costs one
/// thread, however often it is asked.
#[derive(Debug, Default)]
pub struct Gauge {
    pools: Mutex<BTreeMap<LvmUuid, Arc<tokio::sync::Mutex<()>>>>,
    /// What the last question found amiss, and when it was first found.
    troubled: Mutex<BTreeMap<LvmUuid, (Trouble, Instant)>>,
    /// The last answers.
    answers: Mutex<BTreeMap<LvmUuid, Fill>>,
}

/// What is amiss with a thin pool.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// The kernel gave it up, or cannot tell.
    #[error("the kernel says that it failed: its volumes can neither be read nor written")]
    Failed,
    /// Its metadata is full or damaged.
    #[error("it is read-only and must be repaired (lvconvert --repair): its metadata is full or damaged")]
    ReadOnly,
    /// Every block is used.
    #[error("it is full of data: writes that need a new block fail")]
    NoData,
    /// More of its metadata is used than may be: what is kept free keeps the pool from turning read-only.
    #[error("its metadata is nearly full: enlarge it (lvextend --poolmetadatasize) before it turns read-only")]
    NoMetadata,
    /// The kernel did not tell.
    #[error("its fill cannot be read: {0}")]
    Unmeasured(String),
}

impl Trouble {
    /// What a working pool's status says to it, if anything.
    fn of(status: &PoolStatus) -> Option<Self> {
        match status {
            PoolStatus::Failed | PoolStatus::Unknown => Some(Self::Failed),
            PoolStatus::Working(pool) if pool.mode == PoolMode::ReadOnly || pool.needs_check => Some(Self::ReadOnly),
            PoolStatus::Working(pool) if pool.mode == PoolMode::OutOfDataSpace => Some(Self::NoData),
            PoolStatus::Working(pool) if pool.used_metadata_blocks >= usable_metadata(pool.total_metadata_blocks) => {
                Some(Self::NoMetadata)
            }
            PoolStatus::Working(_) => None,
        }
    }

    /// Whether nothing can be written any more, so that figures mean nothing.
    fn is_failure(&self) -> bool {
        matches!(self, Self::Failed | Self::ReadOnly)
    }
}

impl Gauge {
    /// How full a thin pool is; nothing where the kernel says that it failed, is read-only or needs a check. While `changing`
    /// says that a command of ours is at work on the group, a pool without a device is asked again for a while: LVM takes
    /// its device away and makes it anew when it gets its first volume.
    ///
    /// # Errors
    /// [`UsageError`], also when the pool is not active, or the kernel does not answer in time.
    pub async fn fill(
        &self,
        group: &Arc<VolumeGroup>,
        pool: &LogicalVolume,
        changing: impl Fn() -> bool,
    ) -> Result<Option<Fill>, UsageError> {
        let begin = tokio::time::Instant::now();
        let status = loop {
            // Before the answer: a command that ends meanwhile may have been at work when it was given.
            let excused = changing() && begin.elapsed() < FILL_LIMIT;
            let (vg, lv) = (Arc::clone(group), pool.clone());
            let status = self.in_turn(pool.uuid, async move { active_status(&vg, &lv).await }).await;
            match status {
                None => break Err(UsageError::Slow { vg: group.name.clone(), pool: pool.name.clone() }),
                Some(Err(UsageError::DeviceMapper(_))) if excused => tokio::time::sleep(ASK_AGAIN).await,
                Some(status) => break status,
            }
        };
        let trouble = match &status {
            Ok(status) => Trouble::of(status),
            Err(error) => Some(Trouble::Unmeasured(chain(error))),
        };
        self.note(&group.name, pool, trouble.clone());
        let fill = match &status {
            Ok(PoolStatus::Working(pool)) if !trouble.is_some_and(|trouble| trouble.is_failure()) => Some(Fill {
                data_used_blocks: pool.used_data_blocks,
                metadata_used: pool.used_metadata_blocks.saturating_mul(METADATA_BLOCK),
            }),
            _ => None,
        };
        match fill {
            Some(fill) => drop(lock(&self.answers).insert(pool.uuid, fill)),
            None => drop(lock(&self.answers).remove(&pool.uuid)),
        }
        status.map(|_| fill)
    }

    /// What was amiss with a pool when it was last asked about, and for how long it has been.
    #[must_use]
    pub fn trouble(&self, pool: LvmUuid) -> Option<(Trouble, Duration)> {
        lock(&self.troubled).get(&pool).map(|(trouble, since)| (trouble.clone(), since.elapsed()))
    }

    /// Asked once a second, told once.
    fn note(&self, vg: &str, pool: &LogicalVolume, trouble: Option<Trouble>) {
        let mut troubled = lock(&self.troubled);
        match trouble {
            Some(trouble) if troubled.get(&pool.uuid).is_none_or(|(before, _)| *before != trouble) => {
                tracing::warn!(vg, pool = pool.name, "not in order, the thin pool: {trouble}");
                troubled.insert(pool.uuid, (trouble, Instant::now()));
            }
            None if troubled.remove(&pool.uuid).is_some() => {
                tracing::info!(vg, pool = pool.name, "the thin pool is in order again");
            }
            _ => {}
        }
    }

    /// What the kernel said last of a thin pool; nothing where that was no figure. Nothing is asked for this.
    #[must_use]
    pub fn known(&self, pool: LvmUuid) -> Option<Fill> {
        lock(&self.answers).get(&pool).copied()
    }

    /// Asks when no question about the pool is under way any more; nothing where there is no answer in time.
    async fn in_turn<T: Send + 'static>(
        &self,
        pool: LvmUuid,
        question: impl Future<Output = Result<T, UsageError>> + Send + 'static,
    ) -> Option<Result<T, UsageError>> {
        let turn = Arc::clone(lock(&self.pools).entry(pool).or_default());
        let asked = async {
            let turn = turn.lock_owned().await;
            // Kept by the question, not by who waits for its answer.
            let question = tokio::spawn(async move {
                let _turn = turn;
                question.await
            });
            question.await?
        };
        tokio::time::timeout(FILL_LIMIT, asked).await.ok()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn ask<T: Send + 'static>(
    question: impl FnOnce(&DeviceMapper) -> Result<T, UsageError> + Send + 'static,
) -> Result<T, UsageError> {
    tokio::task::spawn_blocking(move || question(&DeviceMapper::open()?)).await?
}

/// The state of a volume's device; nothing where it has none.
///
/// # Errors
/// [`UsageError`].
pub async fn status(vg: LvmUuid, lv: LvmUuid) -> Result<Option<DeviceStatus>, UsageError> {
    let uuid = device_uuid(vg, lv, Layer::Volume);
    ask(move |dm| Ok(dm.status(Key::Uuid(&uuid))?)).await
}

/// Who uses a volume; nothing where nobody does.
///
/// # Errors
/// [`UsageError`].
pub async fn of(vg: LvmUuid, lv: LvmUuid) -> Result<Option<Usage>, UsageError> {
    let uuid = device_uuid(vg, lv, Layer::Volume);
    ask(move |dm| {
        let Some(status) = dm.status(Key::Uuid(&uuid))? else { return Ok(None) };
        // A raw device that is bound for a pod is in use also while no process has it open.
        let mounts = MountTable::read()?;
        let mounted: Vec<_> = mounts.users_of(status.number).map(|mount| mount.target.display().to_string()).collect();
        if status.open_count == 0 && mounted.is_empty() {
            return Ok(None);
        }
        let holders = holders(&status.number.to_string());
        Ok(Some(Usage { mounted, holders, opens: status.open_count }))
    })
    .await
}

/// Devices stacked on one, and loop devices over it. For a message only: what cannot be read is left out.
fn holders(number: &str) -> Vec<String> {
    let names = |path: String| {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
    };
    let mut found: Vec<String> = names(format!("/sys/dev/block/{number}/holders")).collect();
    found.extend(names("/sys/block".to_owned()).filter(|name| {
        use crate::lvm::dm::{LoopBacking, loop_backing};
        let backing = name.starts_with("loop").then(|| loop_backing(std::path::Path::new(&format!("/dev/{name}"))));
        matches!(backing, Some(Ok(LoopBacking::Device(device))) if device.to_string() == number)
    }));
    found
}

async fn active_status(group: &VolumeGroup, pool: &LogicalVolume) -> Result<PoolStatus, UsageError> {
    pool_status(group, pool).await?.ok_or_else(|| {
        let action = format!("tell the fill of {}/{}", group.name, pool.name);
        let source = std::io::Error::new(std::io::ErrorKind::NotFound, "the pool is not active");
        DmError::Refused { action, source }.into()
    })
}

/// The kernel's status of a thin pool; nothing where it is not active.
///
/// # Errors
/// [`UsageError`].
pub async fn pool_status(group: &VolumeGroup, pool: &LogicalVolume) -> Result<Option<PoolStatus>, UsageError> {
    let (group, uuid) = (group.uuid, pool.uuid);
    ask(move |dm| Ok(pool::status(dm, group, uuid)?)).await
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;
    use crate::lvm::dm_status::{Discards, PoolUse};

    fn status(mode: PoolMode, used_metadata_blocks: u64, needs_check: bool) -> PoolStatus {
        PoolStatus::Working(PoolUse {
            transaction_id: 1,
            used_metadata_blocks,
            total_metadata_blocks: 1000,
            used_data_blocks: 5,
            total_data_blocks: 10,
            mode,
            discards: Discards::PassDown,
            error_if_no_space: true,
            needs_check,
        })
    }

    #[test]
    fn what_is_amiss_with_a_pool_is_told_by_its_status() {
        use PoolMode::{OutOfDataSpace, ReadOnly, ReadWrite};
        let cases = [
            (status(ReadWrite, 10, false), None),
            (status(ReadWrite, 899, false), None),
            (status(ReadWrite, 900, false), Some(Trouble::NoMetadata)),
            (status(OutOfDataSpace, 10, false), Some(Trouble::NoData)),
            (status(ReadOnly, 10, false), Some(Trouble::ReadOnly)),
            (status(OutOfDataSpace, 10, true), Some(Trouble::ReadOnly)),
            (PoolStatus::Failed, Some(Trouble::Failed)),
            (PoolStatus::Unknown, Some(Trouble::Failed)),
        ];
        for (status, trouble) in cases {
            assert_eq!(Trouble::of(&status), trouble, "{status:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_kernel_that_does_not_answer_is_asked_once() {
        let (gauge, begun, answer) = (Gauge::default(), Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let pool = |letter: u8| LvmUuid::from_bytes(&[letter; 32]).unwrap();
        let question = || {
            let (begun, answer) = (Arc::clone(&begun), Arc::clone(&answer));
            async move {
                begun.fetch_add(1, Ordering::SeqCst);
                answer.notified().await;
                Ok(7)
            }
        };
        for _ in 0..5 {
            assert!(gauge.in_turn(pool(b'a'), question()).await.is_none());
        }
        assert_eq!(begun.load(Ordering::SeqCst), 1, "one question waits, however often it is asked");
        // Another pool's question does not wait for it.
        let other = gauge.in_turn(pool(b'b'), async { Ok(8) }).await;
        assert!(matches!(other, Some(Ok(8))), "{other:?}");
        // The kernel answers: the next question gets an answer of its own.
        answer.notify_one();
        let next = gauge.in_turn(pool(b'a'), async { Ok(9) }).await;
        assert!(matches!(next, Some(Ok(9))), "{next:?}");
    }
}
