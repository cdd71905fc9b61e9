//! Room that is kept from the scheduler for a while, after a pod's claims were refused because they do not fit together.
//!
//! The scheduler looks at each claim alone and would choose the same node again. So for a while the node says that it has
//! less than the largest of the claims; longer each time the same claim comes back.
//!
//! **Invariant.** A hold changes what is published, never what is admitted: who asks for a volume that fits gets it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::journal::Claim;
use crate::volume::{Bytes, Provisioning};

use super::Engine;
use super::changes::Reason;
use super::pod::PodClaim;

/// How long the first hold for a claim lasts; each further one twice as long as the one before.
const FIRST: Duration = Duration::from_secs(30);
/// How long one lasts at most.
const LONGEST: Duration = Duration::from_secs(600);
/// For how long after its end is remembered how long it was.
const MEMORY: Duration = Duration::from_secs(3600);

/// The holds, by the claim that was refused.
#[derive(Debug, Default)]
pub struct Holds {
    all: Mutex<BTreeMap<(String, String), Hold>>,
}

/// One of them.
#[derive(Debug, Clone)]
pub struct Hold {
    first: PodClaim,
    others: Vec<PodClaim>,
    lasts: Duration,
    until: Instant,
}

impl Holds {
    /// Begins a hold, or begins it again; tells how long it lasts. A refusal while it lasts is of a scheduler that had not
    /// heard of it, and makes it no longer.
    pub fn begin(&self, first: PodClaim, others: Vec<PodClaim>) -> Duration {
        let now = Instant::now();
        let mut all = self.all();
        all.retain(|_, hold| hold.until + MEMORY > now);
        let before = all.get(&key(&first.claim));
        let lasts = match before {
            None => FIRST,
            Some(hold) if hold.until > now => hold.lasts,
            Some(hold) => (hold.lasts * 2).min(LONGEST),
        };
        all.insert(key(&first.claim), Hold { first, others, lasts, until: now + lasts });
        lasts
    }

    /// Forgets a claim whose volume was made.
    pub fn forget(&self, claim: &Claim) -> bool {
        self.all().remove(&key(claim)).is_some()
    }

    /// Ends a claim's hold before its time; how long it was is remembered.
    fn end(&self, claim: &Claim) {
        if let Some(hold) = self.all().get_mut(&key(claim)) {
            hold.until = hold.until.min(Instant::now());
        }
    }

    /// What may be published at most; nothing where anything may.
    pub fn most(&self, class: &str, provisioning: Provisioning) -> Option<Bytes> {
        let concerned = |claim: &PodClaim| claim.class == class && claim.provisioning == provisioning;
        let largest = |hold: Hold| {
            let others = hold.others.iter().filter(|other| concerned(other));
            others.fold(hold.first.requested, |largest, other| largest.max(other.requested))
        };
        let holds = self.active().into_iter().filter(|hold| concerned(&hold.first));
        holds.map(largest).min().map(|largest| Bytes(largest.0.saturating_sub(1)))
    }

    /// The holds that last.
    fn active(&self) -> Vec<Hold> {
        let now = Instant::now();
        self.all().values().filter(|hold| hold.until > now).cloned().collect()
    }

    /// Waits until the next one ends; for ever where there is none.
    pub async fn next_end(&self) {
        match self.active().into_iter().map(|hold| hold.until).min() {
            Some(until) => tokio::time::sleep_until(until).await,
            None => std::future::pending().await,
        }
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<(String, String), Hold>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(claim: &Claim) -> (String, String) {
    (claim.namespace.clone(), claim.name.clone())
}

impl Engine {
    /// Ends the holds of pods whose claims fit now.
    pub(super) async fn end_holds(&self) {
        for hold in self.holds.active() {
            let room = self.pod_room(&hold.first, &hold.others).await;
            if room.fits(&self.under_way.entries()).is_ok() {
                let Claim { namespace, name } = &hold.first.claim;
                tracing::info!(namespace, name, "the claims of its pod fit now: room is published again");
                self.holds.end(&hold.first.claim);
                self.changes.hint(Reason::HoldEnded);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{Content, LvName};

    fn claim(name: &str, class: &str, provisioning: Provisioning, requested: u64) -> PodClaim {
        PodClaim {
            claim: Claim { namespace: "default".to_owned(), name: name.to_owned() },
            lv: LvName::parse(&format!("pvc-{name}")).unwrap(),
            class: class.to_owned(),
            provisioning,
            content: Content::Block,
            requested: Bytes(requested),
        }
    }

    fn thin(name: &str, requested: u64) -> PodClaim {
        claim(name, "default", Provisioning::Thin, requested)
    }

    #[tokio::test(start_paused = true)]
    async fn a_hold_publishes_less_than_the_largest_claim_of_its_kind_and_ends() {
        let holds = Holds::default();
        let most = |class: &str, provisioning| holds.most(class, provisioning).map(|most| most.0);
        assert_eq!(most("default", Provisioning::Thin), None);
        let others = vec![
            thin("b", 8),
            claim("c", "default", Provisioning::Thick, 20),
            claim("d", "hdd", Provisioning::Thin, 30),
        ];
        assert_eq!(holds.begin(thin("a", 6), others), FIRST);
        assert_eq!(most("default", Provisioning::Thin), Some(7));
        assert_eq!(most("default", Provisioning::Thick), None);
        assert_eq!(most("hdd", Provisioning::Thin), None);
        holds.begin(thin("e", 4), vec![thin("f", 3)]);
        assert_eq!(most("default", Provisioning::Thin), Some(3), "the smaller of two holds");
        holds.next_end().await;
        assert_eq!(most("default", Provisioning::Thin), None);
    }

    #[tokio::test(start_paused = true)]
    async fn each_refusal_after_its_end_makes_it_twice_as_long() {
        let holds = Holds::default();
        let mut lasted = Vec::new();
        for _ in 0..7 {
            lasted.push(holds.begin(thin("a", 6), vec![thin("b", 6)]).as_secs());
            // The scheduler has not heard of it yet.
            assert_eq!(holds.begin(thin("a", 6), vec![thin("b", 6)]).as_secs(), lasted[lasted.len() - 1]);
            holds.next_end().await;
        }
        assert_eq!(lasted, [30, 60, 120, 240, 480, 600, 600]);
        tokio::time::advance(MEMORY + Duration::from_secs(1)).await;
        assert_eq!(holds.begin(thin("a", 6), vec![]), FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_ended_early_is_remembered_and_one_that_is_forgotten_is_not() {
        let holds = Holds::default();
        holds.begin(thin("a", 6), vec![]);
        holds.end(&thin("a", 6).claim);
        assert_eq!(holds.most("default", Provisioning::Thin), None);
        assert_eq!(holds.begin(thin("a", 6), vec![]), FIRST * 2);
        assert!(holds.forget(&thin("a", 6).claim));
        assert_eq!(holds.begin(thin("a", 6), vec![]), FIRST);
    }
}
