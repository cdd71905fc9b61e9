//! How much room there is for a volume.
//!
//! **Invariant.** One arithmetic decides both what GetCapacity reports and what CreateVolume admits: a volume of the
//! reported size can be made now, one extent more is refused.

use std::fmt;

use super::Bytes;
use super::size::{GIB, MIB};

/// What a volume group has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupSpace {
    /// The size of an extent.
    pub extent: Bytes,
    /// All extents of its physical volumes.
    pub total_extents: u64,
    /// Extents that belong to no logical volume, on physical volumes that are there and allocatable.
    pub free_extents: u64,
    /// Never given to volumes or pools.
    pub reserve: Bytes,
    /// Its metadata area.
    pub metadata: MetadataArea,
    /// Whether every physical volume is there.
    pub complete: bool,
}

/// The area that holds LVM's description of the volume group. It is finite: a text may take up to half of it, because
/// old and new text coexist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetadataArea {
    /// The longest text that fits, in bytes.
    pub limit: u64,
    /// The present text's length, in bytes.
    pub used: u64,
    /// The number of logical volumes, which all may grow by a longer stage tag.
    pub volumes: u64,
}

impl MetadataArea {
    /// What one more volume takes at most: both names of a volume with a hashed name, its tags and its segment.
    const PER_VOLUME: u64 = 1024;
    /// What one volume may grow by: `g=formatting` instead of `g=new`, with quotes and a comma elsewhere.
    const GROWTH: u64 = 16;
    /// Kept for an admin's own commands, a pool's creation and repairs.
    const RESERVE: u64 = 8192;

    /// Whether the description of one more volume fits.
    #[must_use]
    pub fn has_room(self) -> bool {
        let needed = self.used + (self.volumes + 1) * Self::GROWTH + Self::PER_VOLUME + Self::RESERVE;
        needed <= self.limit
    }
}

/// The state of the thin pool of a device class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pool {
    /// Not made yet; the first thin volume makes it.
    Absent {
        /// Its share of the volume group, in percent.
        percent: u8,
    },
    /// There, and measured.
    Present(PoolSpace),
    /// There, but no volume may be made in it.
    Unusable(Unusable),
}

/// A thin pool's space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSpace {
    /// The size of its data.
    pub size: Bytes,
    /// Data blocks in use.
    pub data_used: Bytes,
    /// The sum of the sizes of all thin volumes and snapshots in it.
    pub promised: Bytes,
    /// The size of a block.
    pub chunk: Bytes,
    /// The size of its metadata.
    pub metadata_size: Bytes,
    /// Metadata in use.
    pub metadata_used: Bytes,
}

/// Why a thin pool cannot take volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    /// It does not zero new blocks: a volume would show what earlier ones wrote.
    NotZeroing,
    /// The name belongs to a logical volume that is no thin pool.
    NotAPool,
    /// The kernel's state of the pool could not be read, or it is not active.
    Unmeasured,
    /// The kernel says that it failed, is read-only or needs a check.
    Failed,
}

/// What keeps a volume from being larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Free extents of the volume group.
    FreeExtents,
    /// The volume group's metadata area is nearly full.
    MetadataArea,
    /// A physical volume is missing.
    MissingPv,
    /// What the pool has promised to its volumes.
    PoolPromised,
    /// Free data blocks of the pool.
    PoolData,
    /// Free metadata of the pool.
    PoolMetadata,
    /// The pool as a whole.
    Pool(Unusable),
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FreeExtents => "the volume group's free extents",
            Self::MetadataArea => {
                "the volume group's metadata area, which is nearly full (vgs -o vg_mda_size,vg_mda_free)"
            }
            Self::MissingPv => "a physical volume of the volume group, which is missing",
            Self::PoolPromised => "what the thin pool has promised to its volumes (overprovisionRatio)",
            Self::PoolData => "the thin pool's free data",
            Self::PoolMetadata => "the thin pool's free metadata",
            Self::Pool(Unusable::NotZeroing) => "the thin pool, which does not zero new blocks (lvchange --zero y)",
            Self::Pool(Unusable::NotAPool) => {
                "the name of the thin pool, which belongs to another kind of logical volume"
            }
            Self::Pool(Unusable::Unmeasured) => "the thin pool, whose fill cannot be read from the kernel",
            Self::Pool(Unusable::Failed) => {
                "the thin pool, which has failed or needs a check (lvs -o lv_health_status)"
            }
        })
    }
}

/// The largest volume that can be made now, and why it cannot be larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Its size, in whole extents; 0 when none can be made.
    pub largest: Bytes,
    /// What limits it.
    pub bound: Bound,
}

impl Room {
    const fn none(bound: Bound) -> Self {
        Self { largest: Bytes(0), bound }
    }

    fn least(self, other: Self) -> Self {
        if other.largest < self.largest { other } else { self }
    }
}

impl GroupSpace {
    /// Room for a thick volume.
    #[must_use]
    pub fn thick_room(&self) -> Room {
        if !self.complete {
            return Room::none(Bound::MissingPv);
        }
        if !self.metadata.has_room() {
            return Room::none(Bound::MetadataArea);
        }
        Room { largest: self.usable(), bound: Bound::FreeExtents }
    }

    /// Room for a thin volume. `ratio` is how many bytes may be promised for each of the pool's.
    #[must_use]
    pub fn thin_room(&self, pool: &Pool, ratio: f64) -> Room {
        if !self.complete {
            return Room::none(Bound::MissingPv);
        }
        if !self.metadata.has_room() {
            return Room::none(Bound::MetadataArea);
        }
        let room = match pool {
            Pool::Unusable(why) => Room::none(Bound::Pool(*why)),
            Pool::Absent { percent } => match self.plan_pool(*percent, ratio) {
                None => Room::none(Bound::FreeExtents),
                Some(plan) => {
                    let planned = PoolSpace {
                        size: plan.data,
                        data_used: Bytes(0),
                        promised: Bytes(0),
                        chunk: plan.chunk,
                        metadata_size: plan.metadata,
                        metadata_used: Bytes(MIB.min(plan.metadata.0 / 16)),
                    };
                    planned.room(ratio)
                }
            },
            Pool::Present(space) => space.room(ratio),
        };
        Room { largest: room.largest.round_down(self.extent), ..room }
    }

    /// Free bytes less the reserve, in whole extents.
    fn usable(&self) -> Bytes {
        let free = self.free_extents.saturating_mul(self.extent.0);
        Bytes(free.saturating_sub(self.reserve.0)).round_down(self.extent)
    }

    /// The pool that the first thin volume makes: `percent` of the volume group or what is free of it, less the pool's
    /// metadata and its spare copy. Nothing where not even one extent of data is left.
    #[must_use]
    pub fn plan_pool(&self, percent: u8, ratio: f64) -> Option<PoolPlan> {
        let total = self.total_extents.saturating_mul(self.extent.0);
        let share = u128::from(total) * u128::from(percent.min(100)) / 100;
        let share = Bytes(u64::try_from(share).unwrap_or(u64::MAX)).round_down(self.extent).min(self.usable());
        let chunk = chunk_for(share, ratio);
        let metadata = metadata_for(share, chunk, ratio).round_up(self.extent)?;
        let data = Bytes(share.0.checked_sub(metadata.0.checked_mul(2)?)?);
        let unit = self.extent.0.checked_mul(chunk.0)? / gcd(self.extent.0, chunk.0).max(1);
        let data = data.round_down(Bytes(unit));
        (data.0 > 0).then_some(PoolPlan { data, metadata, chunk })
    }
}

/// A thin pool to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolPlan {
    /// The size of its data, in whole extents and blocks.
    pub data: Bytes,
    /// The size of its metadata, in whole extents; LVM makes a spare of the same size.
    pub metadata: Bytes,
    /// The size of a block.
    pub chunk: Bytes,
}

impl PoolSpace {
    /// Metadata that one mapped block takes at worst: kernel documentation, thin-provisioning.rst, plans 48 bytes, LVM
    /// 64.
    const BYTES_PER_BLOCK: u64 = 64;
    /// The share of the metadata that new volumes may fill, in percent: full metadata is an offline repair.
    const METADATA_PERCENT: u64 = 90;

    fn room(&self, ratio: f64) -> Room {
        let promise = scale(self.size, ratio).0.saturating_sub(self.promised.0);
        let data = self.size.0.saturating_sub(self.data_used.0);
        let metadata = (self.metadata_size.0 / 100 * Self::METADATA_PERCENT).saturating_sub(self.metadata_used.0);
        let blocks = metadata / Self::BYTES_PER_BLOCK;
        // Metadata was sized for the whole pool; only where little is left does it bind.
        let metadata =
            if metadata * 10 < self.metadata_size.0 { blocks.saturating_mul(self.chunk.0) } else { u64::MAX };
        Room { largest: Bytes(promise), bound: Bound::PoolPromised }
            .least(Room { largest: Bytes(data), bound: Bound::PoolData })
            .least(Room { largest: Bytes(metadata), bound: Bound::PoolMetadata })
    }
}

/// The block size of a new pool: the smallest from 64 KiB on whose metadata stays within 1 GiB, at most 1 MiB. Small
/// blocks waste little and copy little; their metadata grows with the pool.
fn chunk_for(data: Bytes, ratio: f64) -> Bytes {
    const SMALLEST: u64 = 64 << 10;
    let fits = |chunk: u64| scale(Bytes(data.0 / chunk * PoolSpace::BYTES_PER_BLOCK), ratio.max(1.0)).0 <= GIB;
    let chunk = (0..5).map(|shift| SMALLEST << shift).find(|chunk| fits(*chunk));
    Bytes(chunk.unwrap_or(MIB))
}

/// The metadata of a new pool: enough to map every promised block, between 4 MiB and what the kernel can use.
fn metadata_for(data: Bytes, chunk: Bytes, ratio: f64) -> Bytes {
    /// `DM_THIN_MAX_METADATA`, 15.81 GiB, less a MiB.
    const LARGEST: u64 = 16_191 * MIB;
    let blocks = data.0.checked_div(chunk.0).unwrap_or_default();
    let needed = scale(Bytes(blocks.saturating_mul(PoolSpace::BYTES_PER_BLOCK)), ratio.max(1.0));
    Bytes(needed.0.clamp(4 * MIB, LARGEST))
}

/// `bytes` times a ratio, rounded down; exact for the ratio 1.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "the ratio is checked to lie in 0..=100 by the configuration; a float's 53 bits cost bytes of a petabyte"
)]
fn scale(bytes: Bytes, ratio: f64) -> Bytes {
    if (ratio - 1.0).abs() < f64::EPSILON { bytes } else { Bytes((bytes.0 as f64 * ratio) as u64) }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn group(total: u64, free: u64, extent: u64) -> GroupSpace {
        GroupSpace {
            extent: Bytes(extent),
            total_extents: total,
            free_extents: free,
            reserve: Bytes(0),
            metadata: MetadataArea { limit: 1 << 20, used: 4096, volumes: 3 },
            complete: true,
        }
    }

    #[test]
    fn a_thick_volume_may_have_what_is_free_less_the_reserve() {
        let mut space = group(1000, 10, 4 * MIB);
        space.reserve = Bytes(5 * MIB);
        assert_eq!(space.thick_room(), Room { largest: Bytes(32 * MIB), bound: Bound::FreeExtents });
    }

    #[test]
    fn a_group_that_is_incomplete_or_cannot_describe_more_volumes_has_no_room() {
        let mut space = group(1000, 1000, 4 * MIB);
        space.complete = false;
        assert_eq!(space.thick_room(), Room::none(Bound::MissingPv));
        let mut space = group(1000, 1000, 4 * MIB);
        space.metadata.used = space.metadata.limit - 2000;
        assert_eq!(space.thin_room(&Pool::Absent { percent: 90 }, 1.0), Room::none(Bound::MetadataArea));
    }

    #[test]
    fn a_pool_not_made_yet_counts_as_it_will_be() {
        let space = group(2047, 2047, 4 * MIB);
        let plan = space.plan_pool(90, 1.0).unwrap();
        assert_eq!(plan.chunk, Bytes(64 << 10));
        assert!(plan.data.0 + 2 * plan.metadata.0 <= 2047 * 4 * MIB * 9 / 10);
        assert_eq!(space.thin_room(&Pool::Absent { percent: 90 }, 1.0).largest, plan.data);
        assert_eq!(group(2047, 1, 4 * MIB).plan_pool(90, 1.0), None);
    }

    #[test]
    fn promises_data_and_metadata_each_bind() {
        let pool = PoolSpace {
            size: Bytes(100 * GIB),
            data_used: Bytes(10 * GIB),
            promised: Bytes(60 * GIB),
            chunk: Bytes(64 << 10),
            metadata_size: Bytes(100 * MIB),
            metadata_used: Bytes(10 * MIB),
        };
        let room = |pool| group(1, 0, 4 * MIB).thin_room(&Pool::Present(pool), 1.0);
        assert_eq!(room(pool), Room { largest: Bytes(40 * GIB), bound: Bound::PoolPromised });
        assert_eq!(
            room(PoolSpace { data_used: Bytes(99 * GIB), ..pool }),
            Room { largest: Bytes(GIB), bound: Bound::PoolData }
        );
        let nearly = room(PoolSpace { metadata_used: Bytes(90 * MIB), ..pool });
        assert_eq!(nearly, Room::none(Bound::PoolMetadata));
        let over = group(1, 0, 4 * MIB).thin_room(&Pool::Present(pool), 2.0);
        assert_eq!(over, Room { largest: Bytes(90 * GIB), bound: Bound::PoolData });
        let unusable = group(1, 0, 4 * MIB).thin_room(&Pool::Unusable(Unusable::NotZeroing), 1.0);
        assert_eq!(unusable, Room::none(Bound::Pool(Unusable::NotZeroing)));
    }

    #[test]
    fn big_pools_get_big_blocks_and_bounded_metadata() {
        assert_eq!(chunk_for(Bytes(1 << 40), 1.0), Bytes(64 << 10));
        assert_eq!(chunk_for(Bytes(8 << 40), 1.0), Bytes(512 << 10));
        assert_eq!(chunk_for(Bytes(100 << 40), 1.0), Bytes(MIB));
        assert!(metadata_for(Bytes(u64::MAX), Bytes(MIB), 1.0) < Bytes(16 * GIB));
    }

    proptest! {
        #[test]
        fn a_planned_pool_fits_and_is_whole(total in 1u64..1 << 24, part in 0u64..=100, percent in 1u8..=100, extent in 1u64..512, ratio in 1.0f64..10.0) {
            let extent = Bytes(extent * (128 << 10));
            let free = total * part / 100;
            let space = group(total, free, extent.0);
            if let Some(plan) = space.plan_pool(percent, ratio) {
                prop_assert!(plan.data.0 + 2 * plan.metadata.0 <= free * extent.0);
                prop_assert_eq!(plan.data.0 % extent.0, 0);
                prop_assert_eq!(plan.data.0 % plan.chunk.0, 0);
                prop_assert_eq!(plan.metadata.0 % extent.0, 0);
                let room = space.thin_room(&Pool::Absent { percent }, ratio);
                prop_assert!(room.largest <= plan.data);
            }
        }
    }
}
