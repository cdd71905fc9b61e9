//! A volume group with its thin pools as they will be when volumes that are being made, or may be made, are there.
//!
//! **Invariant.** Pure, and exact where thin and thick volumes share free extents: a pool that is made or grows takes
//! them from thick volumes, and thick volumes from it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Bytes, GroupSpace, Policy, Pool, PoolGrowth, PoolPlan, PoolSpace, Room, Unusable};
use crate::volume::Provisioning;

/// A volume group and those of its pools that were measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Ledger {
    space: GroupSpace,
    pools: BTreeMap<String, Pool>,
}

/// A volume that somebody wants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Demand<'a> {
    /// In which volume group.
    pub group: &'a str,
    /// What its class's configuration says.
    pub policy: &'a Policy,
    /// Thin or thick.
    pub provisioning: Provisioning,
    /// Its size, in whole extents.
    pub size: Bytes,
}

/// What must become of the thin pool before a volume can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolStep {
    /// Nothing, or the volume needs none.
    AsIs,
    /// It is made.
    Make(PoolPlan),
    /// It grows.
    Grow(PoolGrowth),
}

impl PoolStep {
    /// From what a pool is to what it is to be.
    fn between(now: &PoolSpace, then: &PoolSpace) -> Self {
        let data = (then.size > now.size).then_some(then.size);
        let metadata = (then.metadata_size > now.metadata_size).then_some(then.metadata_size);
        match (data, metadata) {
            (None, None) => Self::AsIs,
            (data, metadata) => Self::Grow(PoolGrowth { data, metadata }),
        }
    }
}

impl Ledger {
    /// Of a group and its pools, by name. A pool that is not among them counts as not measured.
    #[must_use]
    pub fn new(space: GroupSpace, pools: BTreeMap<String, Pool>) -> Self {
        Self { space, pools }
    }

    fn pool(&self, policy: &Policy) -> Pool {
        self.pools.get(&policy.pool).copied().unwrap_or(Pool::Unusable(Unusable::Unmeasured))
    }

    /// The largest volume that can be made.
    #[must_use]
    pub fn room(&self, policy: &Policy, provisioning: Provisioning) -> Room {
        match provisioning {
            Provisioning::Thick => self.space.thick_room(policy.reserve),
            Provisioning::Thin => self.space.thin_room(&self.pool(policy), policy),
        }
    }

    /// Whether a volume fits, and what must be done for it before.
    ///
    /// # Errors
    /// The room there is, where that is less.
    pub fn admit(&self, demand: &Demand<'_>) -> Result<PoolStep, Room> {
        let room = self.room(demand.policy, demand.provisioning);
        if demand.size > room.largest {
            return Err(room);
        }
        if demand.provisioning == Provisioning::Thick {
            return Ok(PoolStep::AsIs);
        }
        let step = match self.pool(demand.policy) {
            Pool::Absent => self.space.plan_pool(demand.policy).map(PoolStep::Make),
            Pool::Present(pool)
                if demand.size > pool.room(demand.policy.ratio).largest.round_down(self.space.extent) =>
            {
                self.space.plan_growth(&pool, demand.policy).map(PoolStep::Grow)
            }
            Pool::Present(_) | Pool::Unusable(_) => Some(PoolStep::AsIs),
        };
        step.ok_or(room)
    }

    /// What must become of the pool of a volume that is counted here, in the group as it was read before any was counted.
    /// More than the volume itself needs where others are counted that are not made yet: whoever's turn comes first makes
    /// the pool, or room in it, for all of them.
    #[must_use]
    pub fn step_from(&self, read: &Self, demand: &Demand<'_>) -> PoolStep {
        match (demand.provisioning, read.pool(demand.policy), self.pool(demand.policy)) {
            (Provisioning::Thin, Pool::Absent, Pool::Present(then)) => {
                PoolStep::Make(PoolPlan { data: then.size, metadata: then.metadata_size, chunk: then.chunk })
            }
            (Provisioning::Thin, Pool::Present(now), Pool::Present(then)) => PoolStep::between(&now, &then),
            _ => PoolStep::AsIs,
        }
    }

    /// Counts a volume as made.
    ///
    /// # Errors
    /// The room there is, where it does not fit; then nothing is counted.
    pub fn make(&mut self, demand: &Demand<'_>) -> Result<PoolStep, Room> {
        let step = self.admit(demand)?;
        self.space.metadata.take();
        self.space.slots = self.space.slots.map(|slots| slots.saturating_sub(1));
        if demand.provisioning == Provisioning::Thick {
            let extents = demand.size.0.div_ceil(self.space.extent.0.max(1));
            self.space.free_extents = self.space.free_extents.saturating_sub(extents);
            return Ok(step);
        }
        let before = match self.pool(demand.policy) {
            Pool::Present(pool) => Some(pool),
            Pool::Absent | Pool::Unusable(_) => None,
        };
        let pool = match (step, before) {
            (PoolStep::Make(plan), _) => Some(plan.made()),
            (PoolStep::Grow(growth), Some(pool)) => Some(pool.grown(growth)),
            (_, before) => before,
        };
        if let Some(mut pool) = pool {
            self.space.take_for_pool(before.as_ref(), &pool);
            pool.promised = Bytes(pool.promised.0.saturating_add(PoolSpace::promise(pool.chunk, demand.size).0));
            self.pools.insert(demand.policy.pool.clone(), Pool::Present(pool));
        }
        Ok(step)
    }
}

/// Whether, when the first volume is made now, all the others can be made after it, in whatever order they come: nobody
/// decides on that. Volumes of one pool commute, and thick volumes of one group do; so the orders of these kinds decide.
#[must_use]
pub fn fit_in_any_order(ledgers: &BTreeMap<String, Ledger>, first: &Demand<'_>, others: &[Demand<'_>]) -> bool {
    let mut ledgers = ledgers.clone();
    if !make(&mut ledgers, first) {
        return false;
    }
    let kind = |demand: &Demand<'_>| {
        let pool = (demand.provisioning == Provisioning::Thin).then(|| demand.policy.pool.clone());
        (demand.group.to_owned(), pool)
    };
    let kinds: Vec<_> = others.iter().map(kind).collect::<BTreeSet<_>>().into_iter().collect();
    orders(kinds.len()).into_iter().all(|order| {
        let mut ledgers = ledgers.clone();
        let mut of_kind = order.iter().filter_map(|index| kinds.get(*index));
        of_kind
            .all(|wanted| others.iter().filter(|other| kind(other) == *wanted).all(|other| make(&mut ledgers, other)))
    })
}

fn make(ledgers: &mut BTreeMap<String, Ledger>, demand: &Demand<'_>) -> bool {
    ledgers.get_mut(demand.group).is_some_and(|ledger| ledger.make(demand).is_ok())
}

/// All orders of so many things; of more than five only two, since nobody's pod has as many kinds of volumes.
fn orders(count: usize) -> Vec<Vec<usize>> {
    if count > 5 {
        return vec![(0..count).collect(), (0..count).rev().collect()];
    }
    let mut all = vec![Vec::new()];
    for _ in 0..count {
        all = all
            .into_iter()
            .flat_map(|order: Vec<usize>| {
                let left = (0..count).filter(|next| !order.contains(next)).collect::<Vec<_>>();
                left.into_iter().map(move |next| order.iter().copied().chain([next]).collect())
            })
            .collect();
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::tests::{group, policy};
    use super::super::{Bound, MIB};
    use super::*;

    const EXTENT: u64 = 4 * MIB;

    fn ledger(total: u64, pool: Pool) -> Ledger {
        Ledger::new(group(total, total, EXTENT), [("pool".to_owned(), pool)].into())
    }

    fn demand(policy: &Policy, provisioning: Provisioning, extents: u64) -> Demand<'_> {
        Demand { group: "vg", policy, provisioning, size: Bytes(extents * EXTENT) }
    }

    #[test]
    fn the_first_thin_volume_takes_the_pools_extents_from_thick_ones() {
        let policy = policy();
        let mut ledger = ledger(1000, Pool::Absent);
        assert!(matches!(ledger.make(&demand(&policy, Provisioning::Thin, 10)), Ok(PoolStep::Make(_))));
        assert_eq!(ledger.room(&policy, Provisioning::Thick).largest, Bytes(100 * EXTENT));
        assert_eq!(ledger.make(&demand(&policy, Provisioning::Thin, 10)), Ok(PoolStep::AsIs));
        let refused = ledger.make(&demand(&policy, Provisioning::Thick, 101)).unwrap_err();
        assert_eq!(refused, Room { largest: Bytes(100 * EXTENT), bound: Bound::FreeExtents });
    }

    #[test]
    fn whoevers_turn_comes_first_makes_the_pool_for_all() {
        let policy = policy();
        let read = ledger(1000, Pool::Absent);
        let mut counted = read.clone();
        let step = counted.make(&demand(&policy, Provisioning::Thin, 10)).unwrap();
        let second = demand(&policy, Provisioning::Thin, 10);
        assert_eq!(counted.make(&second), Ok(PoolStep::AsIs), "the first one makes the pool");
        assert_eq!(counted.step_from(&read, &second), step, "which is not there yet when the second one comes first");
        let thick = demand(&policy, Provisioning::Thick, 10);
        counted.make(&thick).unwrap();
        assert_eq!(counted.step_from(&read, &thick), PoolStep::AsIs);
    }

    #[test]
    fn thick_volumes_first_leave_a_smaller_pool() {
        let policy = policy();
        let mut ledger = ledger(1000, Pool::Absent);
        ledger.make(&demand(&policy, Provisioning::Thick, 600)).unwrap();
        let room = ledger.room(&policy, Provisioning::Thin).largest;
        assert!(room < Bytes(400 * EXTENT) && room > Bytes(390 * EXTENT), "{room}");
    }

    #[test]
    fn what_fits_depends_on_what_comes_first_and_all_orders_must_do() {
        let policy = policy();
        let ledgers: BTreeMap<String, Ledger> = [("vg".to_owned(), ledger(1000, Pool::Absent))].into();
        let fit = |first: &Demand<'_>, others: &[Demand<'_>]| fit_in_any_order(&ledgers, first, others);
        let thin = |extents| demand(&policy, Provisioning::Thin, extents);
        let thick = |extents| demand(&policy, Provisioning::Thick, extents);
        // Thick first leaves 850 of the pool's 900; the pool first leaves 100 for thick volumes.
        assert!(fit(&thick(150), &[thin(800)]));
        assert!(!fit(&thin(800), &[thick(150)]));
        assert!(fit(&thin(800), &[thick(100)]));
        assert!(fit(&thin(10), &[thick(50), thin(10), thick(50)]));
        assert!(!fit(&thick(1), &[thick(100), thin(10)]), "the pool may be made before the second thick one");
        assert!(!fit(&thick(1), &[Demand { group: "other", ..thin(1) }]));
    }

    #[test]
    fn all_orders_are_tried() {
        assert_eq!(orders(0), [Vec::<usize>::new()]);
        let mut three = orders(3);
        three.sort();
        three.dedup();
        assert_eq!(three.len(), 6);
        assert_eq!(orders(6).len(), 2);
    }
}
