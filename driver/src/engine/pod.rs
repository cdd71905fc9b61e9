//! The claims of one pod: each alone may fit where all together do not.
//!
//! The scheduler looks at each claim alone. The first volume that is made pins the pod to the node, and if the second does
//! not fit there, the pod waits for ever. So before the first is made, all are looked at.
//!
//! **Invariant.** Nothing is refused for the sum once one of the volumes is on this node: the others cannot go elsewhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::journal::Claim;
use crate::volume::capacity::{Bound, Demand, Ledger, Policy, Unusable, fit_in_any_order};
use crate::volume::size::SizeRange;
use crate::volume::{Bytes, Content, LvName, Provisioning};

use super::room::policy_of;
use super::underway::Entries;
use super::{CreateError, Engine, Reading};

/// A claim of a pod, as far as room goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodClaim {
    /// Which.
    pub claim: Claim,
    /// The logical volume that it will have.
    pub lv: LvName,
    /// Its device class.
    pub class: String,
    /// Thin or thick.
    pub provisioning: Provisioning,
    /// Filesystem or raw block.
    pub content: Content,
    /// What it asks for.
    pub requested: Bytes,
}

/// All claims of a pod that are to be made together do not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotTogether {
    /// The claims, each with its size.
    pub claims: String,
    /// Their sum.
    pub needed: Bytes,
    /// What there is for one volume, by volume group and provisioning.
    pub rooms: String,
}

/// Why none of a pod's claims is made now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodRefusal {
    /// They do not fit.
    NotTogether(NotTogether),
    /// The kernel did not tell in time how full a pool is that one of them needs: this is no "they do not fit".
    Unknown {
        /// The pool's group.
        vg: String,
        /// The pool.
        pool: String,
    },
}

/// What is looked at to decide whether a pod's claims fit together.
#[derive(Debug)]
pub struct PodRoom<'a> {
    first: &'a PodClaim,
    others: Vec<&'a PodClaim>,
    groups: BTreeMap<String, (Arc<Reading>, Ledger)>,
    /// By device class: its policy and the name of its group, which is empty where this node has none.
    classes: BTreeMap<String, (Policy, String)>,
    /// A group of one of the claims cannot be read: nobody knows what fits.
    unknown: bool,
    /// One of the others is on this node.
    pinned: bool,
}

impl Engine {
    /// Looks at what the claims of a pod need.
    pub(super) async fn pod_room<'a>(&self, first: &'a PodClaim, others: &'a [PodClaim]) -> PodRoom<'a> {
        let others: Vec<&PodClaim> = others.iter().filter(|other| other.lv != first.lv).collect();
        let pinned = others.iter().any(|other| self.is_known(&other.lv));
        let mut room =
            PodRoom { first, others, groups: BTreeMap::new(), classes: BTreeMap::new(), unknown: false, pinned };
        if room.others.is_empty() || pinned {
            return room;
        }
        for claim in [first].into_iter().chain(room.others.clone()) {
            if room.classes.contains_key(&claim.class) {
                continue;
            }
            let found = match self.class_and_group(&claim.class).await {
                Ok((class, group)) => {
                    if !room.groups.contains_key(group.name()) {
                        let reading = group.known();
                        let ledger = self.ledger(&reading).await;
                        room.groups.insert(group.name().to_owned(), (reading, ledger));
                    }
                    (policy_of(&class), group.name().to_owned())
                }
                Err(CreateError::Unreadable(_)) => {
                    room.unknown = true;
                    return room;
                }
                Err(_) => (Policy { reserve: Bytes(0), pool: String::new(), percent: 0, ratio: 1.0 }, String::new()),
            };
            room.classes.insert(claim.class.clone(), found);
        }
        room
    }

    /// Whether any volume group has a volume of that name, by what is known of them.
    #[must_use]
    pub fn is_known(&self, lv: &LvName) -> bool {
        self.groups.all().iter().any(|group| group.known().has(lv))
    }
}

impl PodRoom<'_> {
    /// Whether, with the first claim's volume made now, those of the others can be made after it.
    ///
    /// # Errors
    /// [`PodRefusal`].
    pub fn fits(&self, entries: &Entries) -> Result<(), PodRefusal> {
        if self.others.is_empty() || self.pinned || self.unknown || self.others.iter().any(|o| entries.has(&o.lv)) {
            return Ok(());
        }
        let taken = |(name, (reading, ledger)): (&String, &(Arc<Reading>, Ledger))| {
            let mut ledger = ledger.clone();
            entries.take_from(&mut ledger, reading, None);
            (name.clone(), ledger)
        };
        self.fits_into(&self.groups.iter().map(taken).collect())
    }

    /// The same, of groups that have this room.
    fn fits_into(&self, ledgers: &BTreeMap<String, Ledger>) -> Result<(), PodRefusal> {
        let demands: Vec<Demand<'_>> = self.claims().filter_map(|claim| self.demand(claim)).collect();
        let fits = match &demands[..] {
            [first, others @ ..] if demands.len() == self.others.len() + 1 => fit_in_any_order(ledgers, first, others),
            _ => false,
        };
        if fits {
            return Ok(());
        }
        let unanswered = |demand: &&Demand<'_>| {
            let room = ledgers.get(demand.group).map(|ledger| ledger.room(demand.policy, demand.provisioning));
            room.is_some_and(|room| room.bound == Bound::Pool(Unusable::Unanswered))
        };
        Err(match demands.iter().find(unanswered) {
            Some(Demand { group, policy, .. }) => {
                PodRefusal::Unknown { vg: (*group).to_owned(), pool: policy.pool.clone() }
            }
            None => PodRefusal::NotTogether(self.say(ledgers)),
        })
    }

    fn claims(&self) -> impl Iterator<Item = &PodClaim> {
        [self.first].into_iter().chain(self.others.iter().copied())
    }

    fn demand(&self, claim: &PodClaim) -> Option<Demand<'_>> {
        let (policy, group) = self.classes.get(&claim.class)?;
        let extent = self.groups.get(group).map_or(Bytes(1), |(reading, _)| reading.extent());
        let range = SizeRange { required: Some(claim.requested), limit: None };
        // One that is larger than any volume can be fits nowhere.
        let size = range.volume_size(claim.content, extent).unwrap_or(Bytes(u64::MAX));
        Some(Demand { group, policy, provisioning: claim.provisioning, size })
    }

    fn say(&self, ledgers: &BTreeMap<String, Ledger>) -> NotTogether {
        let name = |claim: &PodClaim| {
            let PodClaim { claim: Claim { namespace, name }, requested, provisioning, class, .. } = claim;
            format!("{namespace}/{name} ({requested} {provisioning} of device class {class})")
        };
        let mut rooms: Vec<String> = Vec::new();
        for claim in self.claims() {
            let Some((policy, group)) = self.classes.get(&claim.class) else { continue };
            let room = match ledgers.get(group) {
                Some(ledger) => {
                    format!(
                        "{} {} in volume group {group}",
                        ledger.room(policy, claim.provisioning).largest,
                        claim.provisioning
                    )
                }
                None => format!("none of device class {}", claim.class),
            };
            if !rooms.contains(&room) {
                rooms.push(room);
            }
        }
        let needed = self.claims().map(|claim| claim.requested.0).fold(0, u64::saturating_add);
        let claims: Vec<String> = self.claims().map(name).collect();
        NotTogether { claims: claims.join(", "), needed: Bytes(needed), rooms: rooms.join(", ") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::capacity::Pool;
    use crate::volume::capacity::tests::{group, policy};

    const MIB: u64 = 1024 * 1024;

    fn claim(name: &str, provisioning: Provisioning, mib: u64) -> PodClaim {
        PodClaim {
            claim: Claim { namespace: "default".to_owned(), name: name.to_owned() },
            lv: LvName::parse(&format!("pvc-{name}")).unwrap(),
            class: "fast".to_owned(),
            provisioning,
            content: Content::Block,
            requested: Bytes(mib * MIB),
        }
    }

    /// What becomes of a thick and a thin claim of one pod in a group of 1000 extents of 4 MiB with this pool.
    fn asked(thick: u64, thin: u64, pool: Pool) -> Result<(), PodRefusal> {
        let (a, b) = (claim("a", Provisioning::Thick, thick), claim("b", Provisioning::Thin, thin));
        let room = PodRoom {
            first: &a,
            others: vec![&b],
            groups: BTreeMap::new(),
            classes: [("fast".to_owned(), (policy(), "vg".to_owned()))].into(),
            unknown: false,
            pinned: false,
        };
        let ledger = Ledger::new(group(1000, 1000, 4 * MIB), [("pool".to_owned(), pool)].into());
        room.fits_into(&[("vg".to_owned(), ledger)].into())
    }

    #[test]
    fn a_pool_whose_fill_is_not_told_is_not_taken_for_one_without_room() {
        assert_eq!(asked(100, 100, Pool::Absent), Ok(()));
        let refused = asked(100, 100_000, Pool::Absent).unwrap_err();
        assert!(matches!(&refused, PodRefusal::NotTogether(why) if why.claims.contains("default/b")), "{refused:?}");
        let unusable = asked(100, 100, Pool::Unusable(Unusable::Unmeasured)).unwrap_err();
        assert!(matches!(unusable, PodRefusal::NotTogether(_)), "{unusable:?}");
        let unknown = PodRefusal::Unknown { vg: "vg".to_owned(), pool: "pool".to_owned() };
        assert_eq!(asked(100, 100, Pool::Unusable(Unusable::Unanswered)), Err(unknown));
    }
}
