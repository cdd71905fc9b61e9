//! Thin pools: what is left in one, how large one is made, how far one may grow.

use super::{Bound, Bytes, GIB, GroupSpace, MIB, Policy, Room, scale};

/// The state of the thin pool of a device class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// Not made yet; the first thin volume makes it.
    Absent,
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
    /// The sum of the sizes of all thin volumes and snapshots in it, each in whole blocks.
    pub promised: Bytes,
    /// The size of a block.
    pub chunk: Bytes,
    /// The size of its metadata.
    pub metadata_size: Bytes,
    /// Metadata in use.
    pub metadata_used: Bytes,
    /// Whether the driver made it, and so may make it larger.
    pub ours: bool,
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
    /// The kernel did not tell in time, or a command was changing the pool: it may tell when asked again.
    Unanswered,
    /// The kernel says that it failed, is read-only or needs a check.
    Failed,
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

/// The sizes that a thin pool is to get. Neither is less than it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolGrowth {
    /// Of its data, in whole extents and blocks; nothing where it stays.
    pub data: Option<Bytes>,
    /// Of its metadata, in whole extents; nothing where it stays.
    pub metadata: Option<Bytes>,
}

/// Metadata that one mapped block takes at worst, by the kernel's documentation (thin-provisioning.rst).
const WORST_PER_BLOCK: u64 = 48;
/// Metadata that is planned for each block, as LVM plans it. More than the worst case by more than is kept free below,
/// so that metadata never binds in a pool that the driver sized.
const PLANNED_PER_BLOCK: u64 = 64;
/// The share of the metadata that is kept free, in percent: full metadata is an offline repair.
const METADATA_KEPT_PERCENT: u64 = 10;
/// The largest metadata that the kernel can use: `DM_THIN_MAX_METADATA`, 15.81 GiB, less a MiB.
const LARGEST_METADATA: u64 = 16_191 * MIB;

/// What of a pool's metadata may be used before no volume fits any more, in the unit of `size`.
#[must_use]
pub const fn usable_metadata(size: u64) -> u64 {
    size - size / 100 * METADATA_KEPT_PERCENT
}

impl PoolSpace {
    /// The largest volume, in whole blocks.
    pub(super) fn room(&self, ratio: f64) -> Room {
        let promise = scale(self.size, ratio).0.saturating_sub(self.promised.0);
        let data = self.size.0.saturating_sub(self.data_used.0);
        // All volumes may be written full one day, and what is in use now may be in use by what no volume shows.
        let usable = usable_metadata(self.metadata_size.0);
        let mappable = |metadata: u64| (metadata / WORST_PER_BLOCK).saturating_mul(self.chunk.0);
        let written = mappable(usable.saturating_sub(self.metadata_used.0));
        let metadata = mappable(usable).saturating_sub(self.promised.0).min(written);
        let room = Room { largest: Bytes(promise), bound: Bound::PoolPromised }
            .least(Room { largest: Bytes(data), bound: Bound::PoolData })
            .least(Room { largest: Bytes(metadata), bound: Bound::PoolMetadata });
        Room { largest: room.largest.round_down(self.chunk), ..room }
    }

    /// As it will be with these sizes.
    pub(super) fn grown(&self, growth: PoolGrowth) -> Self {
        let size = growth.data.unwrap_or(self.size);
        Self { size, metadata_size: growth.metadata.unwrap_or(self.metadata_size), ..*self }
    }

    /// What a volume of this size is promised.
    #[must_use]
    pub fn promise(chunk: Bytes, size: Bytes) -> Bytes {
        size.round_up(chunk).unwrap_or(Bytes(u64::MAX))
    }
}

impl PoolPlan {
    /// As it will be when it is made.
    pub(super) fn made(&self) -> PoolSpace {
        PoolSpace {
            size: self.data,
            data_used: Bytes(0),
            promised: Bytes(0),
            chunk: self.chunk,
            metadata_size: self.metadata,
            metadata_used: Bytes(MIB.min(self.metadata.0 / 16)),
            ours: true,
        }
    }
}

impl GroupSpace {
    /// The pool that the first thin volume makes: its share of the volume group or what is free of it, less the pool's
    /// metadata and its spare copy. Nothing where not even one extent of data is left.
    #[must_use]
    pub fn plan_pool(&self, policy: &Policy) -> Option<PoolPlan> {
        let share = self.share(policy.percent).min(self.usable(policy.reserve));
        let chunk = chunk_for(share, policy.ratio);
        let metadata = metadata_for(share, chunk, policy.ratio).round_up(self.extent)?;
        let spare = metadata.0.saturating_sub(self.spare.0);
        let data = Bytes(share.0.checked_sub(metadata.0.checked_add(spare)?)?).round_down(self.unit(chunk)?);
        (data.0 > 0).then_some(PoolPlan { data, metadata, chunk })
    }

    /// How far a pool that the driver made may grow: to its share of the volume group as it is now, as far as there are
    /// free extents. Nothing where it has its share, or belongs to an admin.
    #[must_use]
    pub fn plan_growth(&self, pool: &PoolSpace, policy: &Policy) -> Option<PoolGrowth> {
        if !pool.ours {
            return None;
        }
        let present = pool.size.0.checked_add(pool.metadata_size.0)?.checked_add(self.spare.0)?;
        let reachable = Bytes(present.saturating_add(self.usable(policy.reserve).0));
        let share = self.share(policy.percent).min(reachable);
        let metadata = metadata_for(share, pool.chunk, policy.ratio).round_up(self.extent)?.max(pool.metadata_size);
        let left = share.0.checked_sub(metadata.0.checked_add(self.spare.max(metadata).0)?)?;
        // A pool of small blocks that outgrows the largest metadata: no more data than that can map.
        let mappable = (metadata.0 / PLANNED_PER_BLOCK).saturating_mul(pool.chunk.0);
        let data = Bytes(left.min(mappable.max(pool.size.0))).round_down(self.unit(pool.chunk)?);
        if left < pool.size.0 {
            return None;
        }
        let growth = PoolGrowth {
            data: (data > pool.size).then_some(data),
            metadata: (metadata > pool.metadata_size).then_some(metadata),
        };
        (growth != PoolGrowth { data: None, metadata: None }).then_some(growth)
    }

    /// Takes the extents of a pool that is made or grows: from sizes, to sizes.
    pub(super) fn take_for_pool(&mut self, before: Option<&PoolSpace>, after: &PoolSpace) {
        let (data, metadata) = before.map_or((0, 0), |pool| (pool.size.0, pool.metadata_size.0));
        let spare = self.spare.max(after.metadata_size);
        let bytes = (after.size.0 - data) + (after.metadata_size.0 - metadata) + (spare.0 - self.spare.0);
        self.free_extents = self.free_extents.saturating_sub(bytes.div_ceil(self.extent.0.max(1)));
        self.spare = spare;
        if before.is_none() {
            self.slots = self.slots.map(|slots| slots.saturating_sub(1));
        }
    }

    /// What the size of a pool's data is a multiple of: extents and blocks.
    fn unit(&self, chunk: Bytes) -> Option<Bytes> {
        Some(Bytes(self.extent.0.checked_mul(chunk.0)? / gcd(self.extent.0, chunk.0).max(1)))
    }
}

/// The block size of a new pool: the smallest from 64 KiB on whose metadata stays within 1 GiB, at most 1 MiB. Small
/// blocks waste little and copy little; their metadata grows with the pool.
fn chunk_for(data: Bytes, ratio: f64) -> Bytes {
    const SMALLEST: u64 = 64 << 10;
    let fits = |chunk: u64| scale(Bytes(data.0 / chunk * PLANNED_PER_BLOCK), ratio.max(1.0)).0 <= GIB;
    let chunk = (0..5).map(|shift| SMALLEST << shift).find(|chunk| fits(*chunk));
    Bytes(chunk.unwrap_or(MIB))
}

/// The metadata of a pool: enough to map every promised block, between 4 MiB and what the kernel can use.
fn metadata_for(data: Bytes, chunk: Bytes, ratio: f64) -> Bytes {
    let blocks = data.0.checked_div(chunk.0).unwrap_or_default();
    let needed = scale(Bytes(blocks.saturating_mul(PLANNED_PER_BLOCK)), ratio.max(1.0));
    Bytes(needed.0.clamp(4 * MIB, LARGEST_METADATA))
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{group, policy};
    use super::*;

    const POOL: PoolSpace = PoolSpace {
        size: Bytes(100 * GIB),
        data_used: Bytes(10 * GIB),
        promised: Bytes(60 * GIB),
        chunk: Bytes(64 << 10),
        metadata_size: Bytes(200 * MIB),
        metadata_used: Bytes(10 * MIB),
        ours: false,
    };

    fn room(pool: PoolSpace, ratio: f64) -> Room {
        group(1, 0, 4 * MIB).thin_room(&Pool::Present(pool), &Policy { ratio, ..policy() })
    }

    #[test]
    fn a_pool_not_made_yet_counts_as_it_will_be() {
        let space = group(2047, 2047, 4 * MIB);
        let plan = space.plan_pool(&policy()).unwrap();
        assert_eq!(plan.chunk, Bytes(64 << 10));
        assert!(plan.data.0 + 2 * plan.metadata.0 <= 2047 * 4 * MIB * 9 / 10);
        assert_eq!(space.thin_room(&Pool::Absent, &policy()).largest, plan.data);
        assert_eq!(group(2047, 1, 4 * MIB).plan_pool(&policy()), None);
        // A spare that is there already need not be made.
        let spared = GroupSpace { spare: plan.metadata, ..space };
        assert_eq!(spared.plan_pool(&policy()).unwrap().data.0, plan.data.0 + plan.metadata.0);
    }

    #[test]
    fn promises_data_and_metadata_each_bind() {
        assert_eq!(room(POOL, 1.0), Room { largest: Bytes(40 * GIB), bound: Bound::PoolPromised });
        let full = PoolSpace { data_used: Bytes(99 * GIB), ..POOL };
        assert_eq!(room(full, 1.0), Room { largest: Bytes(GIB), bound: Bound::PoolData });
        let nearly = PoolSpace { metadata_used: Bytes(181 * MIB), ..POOL };
        assert_eq!(room(nearly, 1.0), Room::none(Bound::PoolMetadata));
        assert_eq!(room(POOL, 1.5), Room { largest: Bytes(90 * GIB), bound: Bound::PoolPromised });
        assert_eq!(room(PoolSpace { promised: Bytes(20 * GIB), ..POOL }, 1.5).bound, Bound::PoolData);
        let unusable = group(1, 0, 4 * MIB).thin_room(&Pool::Unusable(Unusable::NotZeroing), &policy());
        assert_eq!(unusable, Room::none(Bound::Pool(Unusable::NotZeroing)));
    }

    #[test]
    fn metadata_that_cannot_map_all_promises_binds_before_it_is_full() {
        // Nine tenths of 60 MiB map 72 GiB of blocks of 64 KiB.
        let small = PoolSpace { metadata_size: Bytes(60 * MIB), ..POOL };
        let Room { largest, bound } = room(small, 1.0);
        assert_eq!((bound, largest.0 / GIB), (Bound::PoolMetadata, 12));
    }

    #[test]
    fn volumes_take_whole_blocks() {
        let pool = PoolSpace { chunk: Bytes(MIB), size: Bytes(10 * MIB), data_used: Bytes(0), ..POOL };
        let space = |promised| Pool::Present(PoolSpace { promised: Bytes(promised), ..pool });
        // Extents of 384 KiB: 9 MiB and 10 MiB hold 24 and 26 of them.
        let largest = |promised| group(1, 0, 384 << 10).thin_room(&space(promised), &policy()).largest.0 / (384 << 10);
        assert_eq!((largest(MIB), largest(0)), (24, 26));
        assert_eq!(PoolSpace::promise(Bytes(MIB), Bytes(384 << 10)), Bytes(MIB));
    }

    #[test]
    fn big_pools_get_big_blocks_and_bounded_metadata() {
        assert_eq!(chunk_for(Bytes(1 << 40), 1.0), Bytes(64 << 10));
        assert_eq!(chunk_for(Bytes(8 << 40), 1.0), Bytes(512 << 10));
        assert_eq!(chunk_for(Bytes(100 << 40), 1.0), Bytes(MIB));
        assert!(metadata_for(Bytes(u64::MAX), Bytes(MIB), 1.0) < Bytes(16 * GIB));
    }

    #[test]
    fn a_pool_of_ours_grows_to_its_share_of_a_group_that_was_extended() {
        let small = group(1000, 1000, 4 * MIB);
        let plan = small.plan_pool(&policy()).unwrap();
        let mut space = small;
        space.take_for_pool(None, &plan.made());
        assert_eq!(space.plan_growth(&plan.made(), &policy()), None, "it has its share");
        // The group gets a disk nine times as large.
        space.total_extents += 9000;
        space.free_extents += 9000;
        let growth = space.plan_growth(&plan.made(), &policy()).unwrap();
        let (data, metadata) = (growth.data.unwrap(), growth.metadata.unwrap());
        assert_eq!(data.0 + 2 * metadata.0, 9000 * 4 * MIB);
        assert!(metadata > plan.metadata && metadata.0 >= data.0 / plan.chunk.0 * 48);
        let room = space.thin_room(&Pool::Present(plan.made()), &policy());
        assert_eq!(room, Room { largest: data, bound: Bound::PoolPromised });
        let theirs = PoolSpace { ours: false, ..plan.made() };
        assert_eq!(space.plan_growth(&theirs, &policy()), None);
        // An admin made it larger than its share.
        let larger = PoolSpace { size: Bytes(9500 * 4 * MIB), ..plan.made() };
        assert_eq!(GroupSpace { free_extents: 100, ..space }.plan_growth(&larger, &policy()), None);
        // What thick volumes have is not there to grow into.
        let taken = GroupSpace { free_extents: 10, ..space };
        let growth = taken.plan_growth(&plan.made(), &policy()).unwrap();
        assert!(growth.data.is_some_and(|data| data.0 <= plan.data.0 + 10 * 4 * MIB), "{growth:?}");
    }
}
