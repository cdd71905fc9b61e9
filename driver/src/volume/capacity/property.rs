//! The arithmetic of room over random groups, pools and histories, against a bookkeeper that only adds up.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::Provisioning;
use super::*;

const KIB: u64 = 1 << 10;
/// Extents as LVM allows them: powers of two and multiples of 128 KiB.
const EXTENTS: [u64; 7] = [4 * KIB, 128 * KIB, 384 * KIB, 512 * KIB, MIB, 4 * MIB, 12 * MIB];

fn policies() -> impl Strategy<Value = Policy> {
    let ratio = prop_oneof![Just(1.0), 1.0f64..10.0];
    let reserve = prop_oneof![Just(0), 0..GIB];
    (1u8..=100, ratio, reserve).prop_map(|(percent, ratio, reserve)| Policy {
        reserve: Bytes(reserve),
        pool: "pool".to_owned(),
        percent,
        ratio,
    })
}

fn provisionings() -> impl Strategy<Value = Provisioning> {
    prop_oneof![Just(Provisioning::Thin), Just(Provisioning::Thick)]
}

/// Any state of a pool, also one that no driver would bring about.
fn pools() -> impl Strategy<Value = Pool> {
    let sizes = (0u64..1 << 42, 0u64..1 << 42, 0u64..1 << 42, 0u32..5, 0u64..1 << 34, 0u64..1 << 34, any::<bool>());
    let present = sizes.prop_map(|(size, data_used, promised, chunk, metadata_size, metadata_used, ours)| {
        let chunk = Bytes((64 * KIB) << chunk);
        let [size, data_used, promised] = [size, data_used, promised].map(|bytes| Bytes(bytes).round_down(chunk));
        let [metadata_size, metadata_used] = [metadata_size, metadata_used].map(Bytes);
        Pool::Present(PoolSpace { size, data_used, promised, chunk, metadata_size, metadata_used, ours })
    });
    prop_oneof![1 => Just(Pool::Absent), 4 => present]
}

/// What there is, added up without any arithmetic of room.
#[derive(Debug, Clone)]
struct Book {
    extent: u64,
    total: u64,
    thick: Vec<u64>,
    thin: Vec<u64>,
    /// Data, metadata and chunk of the pool.
    pool: Option<(u64, u64, u64)>,
    /// The metadata that it uses from the beginning.
    metadata_used: Bytes,
    spare: u64,
}

impl Book {
    fn free(&self) -> u64 {
        let pool = self.pool.map_or(0, |(data, metadata, _)| data + metadata);
        let taken: u64 = self.thick.iter().sum::<u64>() + pool + self.spare;
        assert_eq!(taken % self.extent, 0, "something does not lie on whole extents");
        self.total.checked_sub(taken / self.extent).expect("more is taken than there is")
    }

    fn promised(&self) -> u64 {
        let chunk = self.pool.map_or(1, |(_, _, chunk)| chunk);
        self.thin.iter().map(|size| size.next_multiple_of(chunk)).sum()
    }

    /// The ledger that a reading of this group gives.
    fn ledger(&self) -> Ledger {
        let volumes = u64::try_from(self.thick.len() + self.thin.len()).unwrap();
        let space = GroupSpace {
            extent: Bytes(self.extent),
            total_extents: self.total,
            free_extents: self.free(),
            spare: Bytes(self.spare),
            metadata: MetadataArea { limit: 1 << 20, used: 4096 + 1024 * volumes, volumes },
            slots: None,
            complete: true,
            changeable: true,
        };
        let pool = self.pool.map_or(Pool::Absent, |(data, metadata, chunk)| {
            Pool::Present(PoolSpace {
                size: Bytes(data),
                data_used: Bytes(0),
                promised: Bytes(self.promised()),
                chunk: Bytes(chunk),
                metadata_size: Bytes(metadata),
                metadata_used: self.metadata_used,
                ours: true,
            })
        });
        Ledger::new(space, [("pool".to_owned(), pool)].into())
    }

    /// Does what LVM does.
    fn apply(&mut self, demand: &Demand<'_>, step: PoolStep) {
        match (step, &mut self.pool) {
            (PoolStep::AsIs, _) => {}
            (PoolStep::Make(plan), pool) => {
                assert_eq!(*pool, None);
                assert_eq!(plan.data.0 % plan.chunk.0, 0);
                self.metadata_used = plan.made().metadata_used;
                *pool = Some((plan.data.0, plan.metadata.0, plan.chunk.0));
            }
            (PoolStep::Grow(growth), Some((data, metadata, chunk))) => {
                let (data_now, metadata_now) =
                    (growth.data.map_or(*data, |b| b.0), growth.metadata.map_or(*metadata, |b| b.0));
                assert!(data_now >= *data && metadata_now >= *metadata && data_now % *chunk == 0, "{growth:?}");
                (*data, *metadata) = (data_now, metadata_now);
            }
            (PoolStep::Grow(_), None) => panic!("a pool that is not there grows"),
        }
        self.spare = self.spare.max(self.pool.map_or(0, |(_, metadata, _)| metadata));
        match demand.provisioning {
            Provisioning::Thin => self.thin.push(demand.size.0),
            Provisioning::Thick => self.thick.push(demand.size.0),
        }
    }
}

/// What happens to a group.
#[derive(Debug, Clone)]
enum Event {
    /// A volume is asked for: a share of the room in 64ths, and so many extents more.
    Create(Provisioning, u64, u64),
    /// A volume goes.
    Delete(prop::sample::Index),
    /// A disk is added.
    Extend(u64),
    /// Somebody else takes a share of what is free, in 64ths.
    Foreign(u64),
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (provisionings(), prop_oneof![0u64..=64, Just(64)], 0u64..=1).prop_map(|(p, share, more)| Event::Create(p, share, more)),
        2 => any::<prop::sample::Index>().prop_map(Event::Delete),
        1 => (1u64..100_000).prop_map(Event::Extend),
        1 => (0u64..=32).prop_map(Event::Foreign),
    ]
}

proptest! {
    #[test]
    fn a_published_figure_is_admitted_and_one_extent_more_is_not(
        total in 1u64..1 << 24, part in 0u64..=100, spare in 0u64..1 << 30, extent in 0..EXTENTS.len(),
        pool in pools(), policy in policies(), provisioning in provisionings(),
    ) {
        let extent = Bytes(EXTENTS[extent]);
        let space = GroupSpace {
            extent,
            total_extents: total,
            free_extents: total * part / 100,
            spare: Bytes(spare).round_down(extent),
            metadata: MetadataArea { limit: 1 << 20, used: 4096, volumes: 3 },
            slots: None,
            complete: true,
            changeable: true,
        };
        let ledger = Ledger::new(space, [("pool".to_owned(), pool)].into());
        let room = ledger.room(&policy, provisioning);
        prop_assert_eq!(room.largest.0 % extent.0, 0);
        let demand = |size| Demand { group: "vg", policy: &policy, provisioning, size: Bytes(size) };
        prop_assert_eq!(ledger.admit(&demand(room.largest.0 + extent.0)), Err(room));
        if room.largest.0 > 0 {
            let step = ledger.admit(&demand(room.largest.0));
            prop_assert!(step.is_ok(), "{:?}", step);
            // What the pool takes before is there.
            let needed = match (step.unwrap(), pool) {
                (PoolStep::Make(plan), _) => plan.data.0 + plan.metadata.0 + plan.metadata.0.saturating_sub(space.spare.0),
                (PoolStep::Grow(growth), Pool::Present(pool)) => {
                    let metadata = growth.metadata.unwrap_or(pool.metadata_size);
                    growth.data.map_or(0, |data| data.0 - pool.size.0) + (metadata.0 - pool.metadata_size.0)
                        + metadata.0.saturating_sub(space.spare.0)
                }
                _ => 0,
            };
            prop_assert!(needed <= (space.free_extents * extent.0).saturating_sub(policy.reserve.0));
        }
    }

    #[test]
    fn a_history_of_volumes_keeps_to_what_there_is(
        extent in 0..EXTENTS.len(), total in 1u64..200_000, policy in policies(),
        history in prop::collection::vec(events(), 1..40),
    ) {
        let mut book = Book { extent: EXTENTS[extent], total, thick: vec![], thin: vec![], pool: None, metadata_used: Bytes(0), spare: 0 };
        for event in history {
            match event {
                Event::Create(provisioning, share, more) => {
                    let mut ledger = book.ledger();
                    let room = ledger.room(&policy, provisioning).largest;
                    let size = Bytes(room.0 / 64 * share).round_down(Bytes(book.extent));
                    let size = if share == 64 { room } else { size };
                    let size = Bytes((size.0 + more * book.extent).max(book.extent));
                    let demand = Demand { group: "vg", policy: &policy, provisioning, size };
                    let free_before = book.free() * book.extent;
                    match ledger.make(&demand) {
                        Err(_) => prop_assert!(size > room),
                        Ok(step) => {
                            prop_assert!(size <= room);
                            book.apply(&demand, step);
                            // Another reading says what was foretold.
                            prop_assert_eq!(&ledger, &book.ledger());
                            let free = book.free() * book.extent;
                            prop_assert!(free == free_before || free >= policy.reserve.0);
                            if let Some((data, ..)) = book.pool {
                                let most = if policy.ratio > 1.0 { data as f64 * policy.ratio } else { data as f64 };
                                prop_assert!(provisioning == Provisioning::Thick || book.promised() as f64 <= most);
                            }
                        }
                    }
                }
                Event::Delete(index) => {
                    let all = book.thick.len() + book.thin.len();
                    if all > 0 {
                        let index = index.index(all);
                        if index < book.thick.len() {
                            book.thick.remove(index);
                        } else {
                            book.thin.remove(index - book.thick.len());
                        }
                    }
                }
                Event::Extend(extents) => book.total += extents,
                Event::Foreign(share) => {
                    let extents = book.free() * share / 64;
                    if extents > 0 {
                        book.thick.push(extents * book.extent);
                    }
                }
            }
        }
    }

    #[test]
    fn volumes_admitted_one_after_the_other_are_made_whoevers_turn_comes_first(
        extent in 0..EXTENTS.len(), total in 1u64..100_000, grown in 0u64..100_000, policy in policies(), with_pool in any::<bool>(),
        wanted in prop::collection::vec((provisionings(), 1u64..=64), 1..6), turns in prop::collection::vec(any::<prop::sample::Index>(), 6),
    ) {
        let mut book = book(EXTENTS[extent], total, grown, &policy, with_pool);
        // Each is admitted beside those before it.
        let mut ledger = book.ledger();
        let mut waiting = Vec::new();
        for (provisioning, share) in wanted {
            let room = ledger.room(&policy, provisioning).largest;
            let size = Bytes(room.0 / 64 * share).round_down(Bytes(book.extent)).max(Bytes(book.extent));
            let demand = Demand { group: "vg", policy: &policy, provisioning, size };
            if ledger.make(&demand).is_ok() {
                waiting.push(demand);
            }
        }
        for turn in turns {
            if waiting.is_empty() {
                break;
            }
            let turn = turn.index(waiting.len());
            let read = book.ledger();
            let mut ledger = read.clone();
            for earlier in &waiting[..turn] {
                let _ = ledger.make(earlier);
            }
            let made = ledger.make(&waiting[turn]);
            prop_assert!(made.is_ok(), "{:?} was admitted and does not fit: {made:?}", waiting[turn]);
            book.apply(&waiting[turn], ledger.step_from(&read, &waiting[turn]));
            prop_assert!(book.thin.is_empty() || book.pool.is_some(), "a thin volume without a pool");
            let most = book.pool.map_or(0.0, |(data, ..)| data as f64 * policy.ratio);
            prop_assert!(book.promised() as f64 <= most, "the pool promised more than it may");
            waiting.remove(turn);
        }
    }

    #[test]
    fn volumes_that_fit_together_fit_in_every_order(
        extent in 0..EXTENTS.len(), total in 1u64..100_000, grown in 0u64..100_000, policy in policies(), with_pool in any::<bool>(),
        wanted in prop::collection::vec((provisionings(), 1u64..=64), 1..5),
    ) {
        let book = book(EXTENTS[extent], total, grown, &policy, with_pool);
        let whole = book.total * book.extent;
        let demands: Vec<Demand<'_>> = wanted
            .iter()
            .map(|(provisioning, share)| {
                let size = Bytes(whole / 64 * share).round_down(Bytes(book.extent));
                Demand { group: "vg", policy: &policy, provisioning: *provisioning, size: Bytes(size.0.max(book.extent)) }
            })
            .collect();
        let ledgers: BTreeMap<String, Ledger> = [("vg".to_owned(), book.ledger())].into();
        let fit = fit_in_any_order(&ledgers, &demands[0], &demands[1..]);
        prop_assert_eq!(fit, every_order(&ledgers["vg"], &demands[0], &demands[1..]));
    }
}

/// A group, with a pool that holds one volume where asked, that got more extents after that.
fn book(extent: u64, total: u64, grown: u64, policy: &Policy, with_pool: bool) -> Book {
    let mut book = Book { extent, total, thick: vec![], thin: vec![], pool: None, metadata_used: Bytes(0), spare: 0 };
    if with_pool {
        let demand = Demand { group: "vg", policy, provisioning: Provisioning::Thin, size: Bytes(extent) };
        if let Ok(step) = book.ledger().make(&demand) {
            book.apply(&demand, step);
        }
        book.total += grown;
    }
    book
}

/// The same by trying all orders of all volumes.
fn every_order(ledger: &Ledger, next: &Demand<'_>, others: &[Demand<'_>]) -> bool {
    let mut ledger = ledger.clone();
    if ledger.make(next).is_err() {
        return false;
    }
    (0..others.len()).all(|index| {
        let mut rest = others.to_vec();
        let next = rest.remove(index);
        every_order(&ledger, &next, &rest)
    })
}
