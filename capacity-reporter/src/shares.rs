//! Tells on the claims, as events, when a volume's weight or limits do not hold, and when they hold again: the driver knows
//! it and may not talk to Kubernetes.
//!
//! **Invariant.** Told once for each reason, and only when it has lasted a while: what comes right by itself, such as a disk
//! that is measured first, disturbs nobody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolumeClaim};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};
use quarry_proto::quarry::v1::capacity_client::CapacityClient;
use quarry_proto::quarry::v1::{Share, SharesRequest};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::apply::{RequestError, within};
use crate::driver::{Current, Driver, Work, with_each};
use crate::identity::Identity;
use crate::telemetry::chain;
use crate::telemetry::metrics::Metrics;

/// After a stream that broke while the driver is there, and after an event that could not be written.
const PAUSE: Duration = Duration::from_secs(10);
/// The longest text that an event takes is 1 KiB.
const LONGEST: usize = 900;

/// A claim, by namespace and name.
type Claim = (String, String);

/// Who tells.
pub struct Shares {
    client: Client,
    recorder: Recorder,
    metrics: Arc<Metrics>,
    /// How long something must last.
    lasts: Duration,
    book: Book,
}

/// What is known of the claims.
#[derive(Debug, Default)]
struct Book {
    /// What is amiss, and since when.
    now: BTreeMap<Claim, (Share, Instant)>,
    /// Claims that have all they ask for.
    well: BTreeMap<Claim, Share>,
    /// The reason that was told last.
    told: BTreeMap<Claim, String>,
}

impl Shares {
    /// Of the driver's volumes on this node; `lasts` is how long something must last before it is told.
    #[must_use]
    pub fn new(client: Client, identity: &Identity, metrics: Arc<Metrics>, lasts: Duration) -> Self {
        let reporter = Reporter { controller: identity.driver.clone(), instance: Some(identity.node.clone()) };
        let recorder = Recorder::new(client.clone(), reporter);
        Self { client, recorder, metrics, lasts, book: Book::default() }
    }

    /// Tells of whatever driver there is, for ever.
    pub async fn run(self, driver: watch::Receiver<Current>) {
        with_each(driver, PAUSE, self).await;
    }

    async fn tell(&self, (namespace, name): &Claim, share: &Share) -> Result<(), RequestError> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        // `kubectl describe` shows the events of this very claim, not of one of the same name before it.
        let claim = within(claims.get_metadata_opt(name)).await;
        self.metrics.requested("get", &claim);
        let Some(claim) = claim? else { return Ok(()) };
        let reference = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("PersistentVolumeClaim".to_owned()),
            namespace: Some(namespace.clone()),
            name: Some(name.clone()),
            uid: claim.metadata.uid,
            ..ObjectReference::default()
        };
        let written = within(self.recorder.publish(&event(share), &reference)).await;
        self.metrics.requested("create", &written);
        written
    }
}

impl Work for Shares {
    async fn with(&mut self, driver: &Driver) -> Result<(), tonic::Status> {
        let mut client = CapacityClient::new(driver.channel());
        let mut stream = client.shares(SharesRequest {}).await?.into_inner();
        loop {
            let due = self.book.due(self.lasts);
            let wait = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                message = stream.message() => match message? {
                    Some(message) => self.book.learn(message.shares, Instant::now()),
                    None => return Ok(()),
                },
                () = wait => {}
            }
            for (claim, share) in self.book.news(self.lasts, Instant::now()) {
                match self.tell(&claim, &share).await {
                    Ok(()) => self.book.is_told(claim, &share),
                    Err(error) => {
                        let (namespace, name) = &claim;
                        tracing::warn!(
                            namespace,
                            claim = name,
                            error = chain(&error),
                            "cannot write an event; tried again"
                        );
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        }
    }
}

fn event(share: &Share) -> Event {
    let pod = if share.pod_name.is_empty() { String::new() } else { format!(" of pod {}", share.pod_name) };
    if share.reason.is_empty() {
        return Event {
            type_: EventType::Normal,
            reason: "IoShareEnforced".to_owned(),
            note: Some(format!("weight and limits{pod} hold again")),
            action: "Enforced".to_owned(),
            secondary: None,
        };
    }
    let mut note = format!("weight and limits{pod} do not hold: {}", share.problem);
    if note.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|at| note.is_char_boundary(*at)).unwrap_or_default();
        note.truncate(end);
        note.push('…');
    }
    Event {
        type_: EventType::Warning,
        reason: "IoShareNotEnforced".to_owned(),
        note: Some(note),
        action: share.reason.clone(),
        secondary: None,
    }
}

impl Book {
    /// Takes over what the driver says of all of them.
    fn learn(&mut self, shares: Vec<Share>, now: Instant) {
        let mut amiss = BTreeMap::new();
        self.well.clear();
        for share in shares.into_iter().filter(|share| !share.claim_name.is_empty()) {
            let claim = (share.claim_namespace.clone(), share.claim_name.clone());
            match share.state.as_str() {
                "not-enforced" => {
                    let before = self.now.remove(&claim).filter(|(before, _)| before.reason == share.reason);
                    let since = before.map_or(now, |(_, since)| since);
                    // Of several pods with a claim one that lacks something says it for all.
                    amiss.entry(claim).or_insert((share, since));
                }
                "enforced" => drop(self.well.insert(claim, share)),
                _ => {}
            }
        }
        self.well.retain(|claim, _| !amiss.contains_key(claim));
        self.now = amiss;
        let known = |claim: &Claim| self.now.contains_key(claim) || self.well.contains_key(claim);
        // What is neither may be on its way; a claim that nobody uses any more is forgotten with its pod.
        self.told.retain(|claim, _| known(claim));
    }

    /// What is to be told by now.
    fn news(&self, lasts: Duration, now: Instant) -> Vec<(Claim, Share)> {
        let untold = |claim: &Claim, share: &Share| self.told.get(claim) != Some(&share.reason);
        let amiss = self.now.iter().filter(|(claim, (share, since))| now >= *since + lasts && untold(claim, share));
        let amiss = amiss.map(|(claim, (share, _))| (claim.clone(), share.clone()));
        // That all is well is news only after it was not.
        let again = self.well.iter().filter(|(claim, _)| self.told.contains_key(*claim));
        amiss.chain(again.map(|(claim, share)| (claim.clone(), share.clone()))).collect()
    }

    fn is_told(&mut self, claim: Claim, share: &Share) {
        if share.reason.is_empty() {
            self.told.remove(&claim);
        } else {
            self.told.insert(claim, share.reason.clone());
        }
    }

    /// When something will have lasted long enough.
    fn due(&self, lasts: Duration) -> Option<Instant> {
        let untold = self.now.iter().filter(|(claim, (share, _))| self.told.get(*claim) != Some(&share.reason));
        untold.map(|(_, (_, since))| *since + lasts).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LASTS: Duration = Duration::from_secs(15);

    fn share(claim: &str, state: &str, reason: &str) -> Share {
        Share {
            claim_namespace: "n".to_owned(),
            claim_name: claim.to_owned(),
            pod_name: "p".to_owned(),
            state: state.to_owned(),
            reason: reason.to_owned(),
            problem: format!("{reason}: because"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_lasts_is_told_and_once_and_that_it_is_over() {
        let (mut book, begin) = (Book::default(), Instant::now());
        let after = |seconds| begin + Duration::from_secs(seconds);
        let news = |book: &Book, seconds| -> Vec<String> {
            let news = book.news(LASTS, after(seconds)).into_iter();
            news.map(|((_, claim), share)| format!("{claim} {}", share.reason)).collect()
        };
        book.learn(vec![share("a", "not-enforced", "Uncalibrated"), share("b", "enforced", "")], begin);
        assert_eq!(news(&book, 5), [""; 0]);
        assert_eq!(book.due(LASTS), Some(after(15)));
        // It comes right before it was told.
        book.learn(vec![share("a", "enforced", ""), share("b", "enforced", "")], after(10));
        assert_eq!(news(&book, 60), [""; 0]);
        book.learn(vec![share("a", "not-enforced", "Off"), share("b", "not-enforced", "Off")], after(100));
        book.learn(vec![share("a", "not-enforced", "Off"), share("b", "not-enforced", "NoPod")], after(110));
        assert_eq!(news(&book, 116), ["a Off"]);
        book.is_told(("n".to_owned(), "a".to_owned()), &share("a", "not-enforced", "Off"));
        assert_eq!(news(&book, 117), [""; 0]);
        assert_eq!(book.due(LASTS), Some(after(125)));
        assert_eq!(news(&book, 126), ["b NoPod"]);
        book.learn(vec![share("a", "enforced", "")], after(130));
        assert_eq!(news(&book, 130), ["a "]);
        book.is_told(("n".to_owned(), "a".to_owned()), &share("a", "enforced", ""));
        assert_eq!((news(&book, 200), book.due(LASTS)), (vec![], None));
    }

    #[test]
    fn an_event_is_short_enough_and_says_which_pod_and_why() {
        let mut long = share("a", "not-enforced", "Failed");
        long.problem = "é".repeat(2000);
        let note = event(&long).note.unwrap();
        assert!(note.len() < 1024 && note.starts_with("weight and limits of pod p do not hold: é"), "{note}");
        let event = event(&share("a", "enforced", ""));
        assert_eq!((event.reason.as_str(), event.type_), ("IoShareEnforced", EventType::Normal));
    }
}
