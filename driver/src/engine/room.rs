//! How much room a device class has now, and whether a volume fits.

use crate::config::DeviceClass;
use crate::lvm::metadata::model::LogicalVolume;
use crate::volume::capacity::{GroupSpace, Pool, PoolPlan, PoolSpace, Room, Unusable};
use crate::volume::tags::POOL_MARK;
use crate::volume::{Bytes, Provisioning};

use super::group::Unreadable;
use super::{CreateError, Engine, Reading};

/// Why no figure can be given.
#[derive(Debug, thiserror::Error)]
pub enum RoomError {
    /// The group cannot be read.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

/// The thin pool has to be made first.
#[derive(Debug, Clone, Copy)]
pub struct PoolNeeded(pub PoolPlan);

impl Engine {
    /// The largest volume that can be made now; 0 where this node lacks the class or its volume group.
    ///
    /// No process is run: the last reading of the metadata, kept true by the watcher, and the kernel's state of the pool.
    ///
    /// # Errors
    /// [`RoomError`] when the group's disks do not answer.
    pub async fn room(&self, class: &str, provisioning: Provisioning) -> Result<Bytes, RoomError> {
        let room = self.measured_room(class, provisioning).await;
        self.changes.tell(class, provisioning, room.as_ref().ok().copied());
        room
    }

    /// The same, told to nobody.
    pub(super) async fn measured_room(&self, class: &str, provisioning: Provisioning) -> Result<Bytes, RoomError> {
        let (class, group) = match self.class_and_group(class).await {
            Ok(found) => found,
            Err(CreateError::Unreadable(error)) => return Err(error.into()),
            Err(_) => return Ok(Bytes(0)),
        };
        Ok(measure(&class, &group.known(), provisioning).await.room(&class, provisioning).largest)
    }
}

/// What room is decided from.
struct Measured {
    space: GroupSpace,
    pool: Pool,
}

impl Measured {
    fn room(&self, class: &DeviceClass, provisioning: Provisioning) -> Room {
        match provisioning {
            Provisioning::Thick => self.space.thick_room(),
            Provisioning::Thin => self.space.thin_room(&self.pool, class.overprovision_ratio),
        }
    }
}

/// Whether a volume fits, and the pool to make before.
///
/// # Errors
/// [`CreateError::NoRoom`].
pub async fn admit(
    engine: &Engine,
    class: &DeviceClass,
    reading: &Reading,
    provisioning: Provisioning,
    wanted: Bytes,
) -> Result<Option<PoolNeeded>, CreateError> {
    let measured = measure(class, reading, provisioning).await;
    let room = measured.room(class, provisioning);
    if wanted > room.largest {
        return Err(CreateError::NoRoom {
            node: engine.node().to_string(),
            vg: reading.name().to_owned(),
            wanted,
            provisioning,
            largest: room.largest,
            bound: room.bound,
        });
    }
    let plan = match (provisioning, measured.pool) {
        (Provisioning::Thin, Pool::Absent { percent }) => measured.space.plan_pool(percent, class.overprovision_ratio),
        _ => None,
    };
    Ok(plan.map(PoolNeeded))
}

/// Whether this is what an `lvcreate` of ours left that was killed before it made a thin pool of it: a plain volume with
/// the pool's name and mark, in which nobody can have written anything.
pub fn is_unfinished_pool(lv: &LogicalVolume) -> bool {
    lv.thin_pool().is_none() && lv.has_tag(POOL_MARK)
}

async fn measure(class: &DeviceClass, reading: &Reading, provisioning: Provisioning) -> Measured {
    let space = reading.space(Bytes(class.reserve_bytes));
    let pool = match provisioning {
        Provisioning::Thick => Pool::Unusable(Unusable::Unmeasured),
        Provisioning::Thin => pool(class, reading).await,
    };
    Measured { space, pool }
}

async fn pool(class: &DeviceClass, reading: &Reading) -> Pool {
    let group = &reading.state().group;
    let Some(lv) = group.logical_volume(&class.thin_pool) else {
        return Pool::Absent { percent: class.pool_percent };
    };
    let Some(segment) = lv.thin_pool() else {
        return match is_unfinished_pool(lv) {
            true => Pool::Absent { percent: class.pool_percent },
            false => Pool::Unusable(Unusable::NotAPool),
        };
    };
    if !segment.zero_new_blocks {
        return Pool::Unusable(Unusable::NotZeroing);
    }
    let metadata_size = group.logical_volume(&segment.metadata).map_or(0, |metadata| group.size_of(metadata));
    let fill = match super::usage::pool_fill(group, lv).await {
        Ok(Some(fill)) => fill,
        Ok(None) => return Pool::Unusable(Unusable::Failed),
        Err(error) => {
            tracing::warn!(
                vg = group.name,
                pool = lv.name,
                error = crate::telemetry::chain(&error),
                "cannot read the thin pool's fill"
            );
            return Pool::Unusable(Unusable::Unmeasured);
        }
    };
    Pool::Present(PoolSpace {
        size: Bytes(group.size_of(lv)),
        data_used: Bytes(fill.data_used_blocks.saturating_mul(segment.chunk_size)),
        promised: Bytes(group.promised_bytes(&lv.name)),
        chunk: Bytes(segment.chunk_size),
        metadata_size: Bytes(metadata_size),
        metadata_used: Bytes(fill.metadata_used),
    })
}
