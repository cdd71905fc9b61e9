//! How much room there is for a volume.
//!
//! **Invariant.** One arithmetic decides both what GetCapacity reports and what CreateVolume admits: a volume of the
//! reported size can be made now, one extent more is refused.

mod ledger;
mod pool;
#[cfg(test)]
mod property;

use std::fmt;

use super::Bytes;
use super::size::{GIB, MIB};

pub use ledger::{Demand, Ledger, PoolStep, fit_in_any_order};
pub use pool::{Pool, PoolGrowth, PoolPlan, PoolSpace, Unusable, usable_metadata};

/// What a device class's configuration says about room.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Bytes of the volume group that are never given to volumes or pools.
    pub reserve: Bytes,
    /// The name of its thin pool.
    pub pool: String,
    /// The pool's share of the volume group, in percent.
    pub percent: u8,
    /// How many bytes may be promised for each of the pool's.
    pub ratio: f64,
}

/// What a volume group has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupSpace {
    /// The size of an extent.
    pub extent: Bytes,
    /// All extents of its physical volumes.
    pub total_extents: u64,
    /// Extents that belong to no logical volume, on physical volumes that are there and allocatable. A thick volume may
    /// lie on several physical volumes. Where the group's allocation policy does not allow that, one stretch of them.
    pub free_extents: u64,
    /// The size of LVM's spare for the metadata of thin pools, which is as large as the largest of them.
    pub spare: Bytes,
    /// Its metadata area.
    pub metadata: MetadataArea,
    /// How many more logical volumes it may have; nothing where it has no limit.
    pub slots: Option<u64>,
    /// Whether every physical volume is there and was read.
    pub complete: bool,
    /// Whether LVM may change it at all.
    pub changeable: bool,
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

    fn take(&mut self) {
        self.used += Self::PER_VOLUME;
        self.volumes += 1;
    }
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
    /// The volume group is exported, read-only or shared.
    Unchangeable,
    /// The volume group has as many logical volumes as it may have.
    Slots,
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
            Self::Unchangeable => "the volume group, which is exported, read-only or shared (vgs -o vg_attr)",
            Self::Slots => "the volume group's limit on logical volumes (vgs -o max_lv)",
            Self::PoolPromised => "what the thin pool has promised to its volumes (overprovisionRatio)",
            Self::PoolData => "the thin pool's free data",
            Self::PoolMetadata => "the thin pool's free metadata",
            Self::Pool(Unusable::NotZeroing) => "the thin pool, which does not zero new blocks (lvchange --zero y)",
            Self::Pool(Unusable::NotAPool) => {
                "the name of the thin pool, which belongs to another kind of logical volume"
            }
            Self::Pool(Unusable::Unmeasured) => "the thin pool, whose fill cannot be read from the kernel",
            Self::Pool(Unusable::Unanswered) => "the thin pool, whose fill the kernel did not tell in time",
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
    pub fn thick_room(&self, reserve: Bytes) -> Room {
        match self.obstacle(1) {
            Some(bound) => Room::none(bound),
            None => Room { largest: self.usable(reserve), bound: Bound::FreeExtents },
        }
    }

    /// Room for a thin volume in the class's pool, which may have to be made or to grow before.
    #[must_use]
    pub fn thin_room(&self, pool: &Pool, policy: &Policy) -> Room {
        // LVM writes no metadata of a group without one of its disks, so nothing at all can be made there.
        let needed = if *pool == Pool::Absent { 2 } else { 1 };
        if let Some(bound) = self.obstacle(needed) {
            return Room::none(bound);
        }
        let room = match pool {
            Pool::Unusable(why) => Room::none(Bound::Pool(*why)),
            Pool::Absent => match self.plan_pool(policy) {
                None => Room::none(Bound::FreeExtents),
                Some(plan) => plan.made().room(policy.ratio),
            },
            Pool::Present(pool) => {
                let now = pool.room(policy.ratio);
                let grown = self.plan_growth(pool, policy).map(|growth| pool.grown(growth).room(policy.ratio));
                grown.filter(|grown| grown.largest > now.largest).unwrap_or(now)
            }
        };
        Room { largest: room.largest.round_down(self.extent), ..room }
    }

    /// What keeps all volumes from being made.
    fn obstacle(&self, needed_slots: u64) -> Option<Bound> {
        match () {
            () if !self.complete => Some(Bound::MissingPv),
            () if !self.changeable => Some(Bound::Unchangeable),
            () if self.slots.is_some_and(|slots| slots < needed_slots) => Some(Bound::Slots),
            () if !self.metadata.has_room() => Some(Bound::MetadataArea),
            () => None,
        }
    }

    /// Free bytes less the reserve, in whole extents.
    fn usable(&self, reserve: Bytes) -> Bytes {
        let free = self.free_extents.saturating_mul(self.extent.0);
        Bytes(free.saturating_sub(reserve.0)).round_down(self.extent)
    }

    /// A pool's share of the group, in whole extents.
    fn share(&self, percent: u8) -> Bytes {
        let total = self.total_extents.saturating_mul(self.extent.0);
        let share = u128::from(total) * u128::from(percent.min(100)) / 100;
        Bytes(u64::try_from(share).unwrap_or(u64::MAX)).round_down(self.extent)
    }
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn group(total: u64, free: u64, extent: u64) -> GroupSpace {
        GroupSpace {
            extent: Bytes(extent),
            total_extents: total,
            free_extents: free,
            spare: Bytes(0),
            metadata: MetadataArea { limit: 1 << 20, used: 4096, volumes: 3 },
            slots: None,
            complete: true,
            changeable: true,
        }
    }

    pub(crate) fn policy() -> Policy {
        Policy { reserve: Bytes(0), pool: "pool".to_owned(), percent: 90, ratio: 1.0 }
    }

    #[test]
    fn a_thick_volume_may_have_what_is_free_less_the_reserve() {
        let room = group(1000, 10, 4 * MIB).thick_room(Bytes(5 * MIB));
        assert_eq!(room, Room { largest: Bytes(32 * MIB), bound: Bound::FreeExtents });
    }

    #[test]
    fn a_group_that_is_incomplete_or_cannot_describe_more_volumes_has_no_room() {
        let space = group(1000, 1000, 4 * MIB);
        let changed = |change: fn(&mut GroupSpace)| {
            let mut space = space;
            change(&mut space);
            (space.thick_room(Bytes(0)), space.thin_room(&Pool::Absent, &policy()))
        };
        for (bound, change) in [
            (Bound::MissingPv, (|space| space.complete = false) as fn(&mut GroupSpace)),
            (Bound::Unchangeable, |space| space.changeable = false),
            (Bound::Slots, |space| space.slots = Some(0)),
            (Bound::MetadataArea, |space| space.metadata.used = space.metadata.limit - 2000),
        ] {
            assert_eq!(changed(change), (Room::none(bound), Room::none(bound)));
        }
        // The first thin volume needs two places: its own and the pool's.
        let (thick, thin) = changed(|space| space.slots = Some(1));
        assert_eq!((thick.bound, thin), (Bound::FreeExtents, Room::none(Bound::Slots)));
    }
}
