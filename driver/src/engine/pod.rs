//! The claims of one pod: each alone may fit where all together do not.
//!
//! The scheduler looks at each claim alone. The first volume that is made pins the pod to the node, and if the second does
//! not fit there, the pod waits for ever. So before the first is made, all are looked at.
//!
//! **Invariant.** Nothing is refused for the sum once one of the volumes is on this node: the others cannot go elsewhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::journal::Claim;
use crate::volume::capacity::{Demand, Ledger, Policy, fit_in_any_order};
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
    /// [`NotTogether`].
    pub fn fits(&self, entries: &Entries) -> Result<(), NotTogether> {
        if self.others.is_empty() || self.pinned || self.unknown || self.others.iter().any(|o| entries.has(&o.lv)) {
            return Ok(());
        }
        let taken = |(name, (reading, ledger)): (&String, &(Arc<Reading>, Ledger))| {
            let mut ledger = ledger.clone();
            entries.take_from(&mut ledger, reading, None);
            (name.clone(), ledger)
        };
        let ledgers: BTreeMap<String, Ledger> = self.groups.iter().map(taken).collect();
        let demands: Vec<Demand<'_>> = self.claims().filter_map(|claim| self.demand(claim)).collect();
        let fits = match &demands[..] {
            [first, others @ ..] if demands.len() == self.others.len() + 1 => fit_in_any_order(&ledgers, first, others),
            _ => false,
        };
        if fits { Ok(()) } else { Err(self.say(&ledgers)) }
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
