//! The reporter's loop: asks the driver, compares with what is published, and has the difference written.
//!
//! **Invariant.** Figures are asked for right before they are written, never while waiting for the right to write. Where
//! the driver cannot tell a class's figures, none of its volumes can be made now, and that is published; where the driver
//! is away, what is published stays, and who asks for a volume waits.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::apply::{Applier, Done, RequestError};
use crate::classes::{Class, Classes};
use crate::driver::{Current, Driver, DriverError, Signal};
use crate::identity::Identity;
use crate::object::{Figures, Object, Owner};
use crate::objects::Objects;
use crate::pace::{Pace, Pause};
use crate::plan::{Action, Change, Wish, plan};
use crate::telemetry::chain;
use crate::telemetry::metrics::Metrics;

/// How long to gather what comes with the first word of a change.
const GATHER: Duration = Duration::from_millis(20);
/// From one round to the next, at least: in a burst of changes, each round has those of this time.
const SPACING: Duration = Duration::from_millis(200);
/// Asked again without a word of the driver; a local question that costs no process.
const AGAIN: Duration = Duration::from_secs(60);
/// How soon to ask again where the driver could not tell: a driver that is about to end refuses too, and then it is gone.
const CONFIRM: Duration = Duration::from_millis(300);
/// How soon after that.
const UNREADABLE: Duration = Duration::from_secs(2);
/// After a change that failed.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// While Kubernetes has no such node.
const NO_NODE: Duration = Duration::from_secs(5);
/// Requests at the same time.
const AT_ONCE: usize = 4;

/// Who publishes.
pub struct Publisher {
    /// Who this node is.
    pub identity: Identity,
    /// Who writes.
    pub applier: Applier,
    /// What is there.
    pub objects: Objects,
    /// Which classes there are.
    pub classes: watch::Receiver<Classes>,
    /// Whom to ask.
    pub driver: watch::Receiver<Current>,
    /// Told of every change of these.
    pub changed: Arc<Notify>,
    /// Since when the driver waits to be heard.
    pub signal: Signal,
    /// How fast to write.
    pub pace: Pace,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// What a round remembers for the next.
#[derive(Debug, Default)]
struct Memory {
    owner: Option<Owner>,
    /// How many objects had vanished when the owner was looked up.
    vanished: u64,
    /// Objects whose change failed: when to try again, and the pause after that.
    failed: HashMap<String, (Instant, Pause)>,
    /// Classes whose figures the driver could not tell.
    unreadable: BTreeMap<String, Unreadable>,
    /// Nothing is asked of the API server before.
    hold: Option<Instant>,
    /// What csi-provisioner left was deleted.
    swept: bool,
    /// Since when the driver's word waits to be written.
    since: Option<Instant>,
}

/// A class whose figures the driver could not tell.
#[derive(Debug, Default)]
struct Unreadable {
    /// What it said.
    said: String,
    /// How often in a row.
    times: u32,
    /// The class itself is wrong: asking again is of no use before it changes.
    wrong: bool,
}

impl Unreadable {
    fn ask_again(&self) -> Duration {
        match self.times {
            _ if self.wrong => AGAIN,
            1 => CONFIRM,
            times => (UNREADABLE * times).min(AGAIN),
        }
    }
}

/// When the next round is, besides at a change.
type Next = Duration;

impl Publisher {
    /// Publishes, for ever.
    pub async fn run(mut self) {
        let mut memory = Memory::default();
        let mut next = AGAIN;
        let mut last: Option<Instant> = None;
        loop {
            let changed = tokio::time::timeout(next, self.changed.notified()).await.is_ok();
            if changed {
                tokio::time::sleep(GATHER).await;
            }
            if let Some(last) = last {
                tokio::time::sleep_until(last + SPACING).await;
            }
            if let Some(hold) = memory.hold.take() {
                tokio::time::sleep_until(hold).await;
            }
            self.pace.ready().await;
            last = Some(Instant::now());
            next = self.round(&mut memory).await;
        }
    }

    async fn round(&mut self, memory: &mut Memory) -> Next {
        let Some(classes) = self.classes.borrow_and_update().clone() else { return AGAIN };
        let Some(objects) = self.objects.all() else { return AGAIN };
        if let Err(next) = self.look_up_owner(memory).await {
            return next;
        }
        let Some(owner) = memory.owner.clone() else { return NO_NODE };
        if memory.since.is_none() {
            memory.since = self.signal.take();
        }
        let driver = self.driver.borrow_and_update().clone();
        let wishes = wishes(driver.as_ref(), &classes, memory).await;
        let changes = plan(&self.identity, &owner, &wishes, &objects);
        let said = wishes.iter().filter(|(_, wish)| matches!(wish, Wish::Say(_))).map(|(class, _)| class.as_str());
        let agreed = said.filter(|class| !changes.iter().any(|change| change.class == *class));
        self.metrics.agreed(wishes.keys().map(String::as_str), agreed);
        // What is no longer to be done need not be tried again.
        memory.failed.retain(|name, _| changes.iter().any(|change| change.name == *name));
        let now = Instant::now();
        let (held, due): (Vec<Change>, Vec<Change>) = changes
            .into_iter()
            .partition(|change| memory.failed.get(&change.name).is_some_and(|(until, _)| *until > now));
        let unwritten = due.len();
        let due: Vec<Change> = due.into_iter().take_while(|_| self.pace.take()).collect();
        let unwritten = unwritten - due.len();
        let nothing = due.is_empty() && held.is_empty();
        self.carry_out(&owner, &wishes, &objects, due, memory).await;
        let behind = memory.failed.len();
        self.metrics.round(objects.len(), behind, memory.unreadable.len());
        if nothing && driver.is_some() {
            // Also when there was nothing to write: the driver's word is heard.
            memory.since = None;
            if !memory.swept && wishes.values().all(|wish| matches!(wish, Wish::Say(_))) {
                self.sweep(memory).await;
            }
        } else if behind == 0 && unwritten == 0 && driver.is_some() {
            if let Some(since) = memory.since.take() {
                self.metrics.published(since.elapsed());
            }
            // What follows from the changes made, if anything does.
            self.changed.notify_one();
        }
        if unwritten > 0 {
            self.changed.notify_one();
        }
        let retry = memory.failed.values().map(|(until, _)| until.saturating_duration_since(now)).min();
        let unreadable = memory.unreadable.values().map(Unreadable::ask_again).min();
        [Some(AGAIN), retry, unreadable].into_iter().flatten().min().unwrap_or(AGAIN).max(Duration::from_millis(1))
    }

    /// The node's UID, looked up at first and whenever objects have gone that nobody here deleted: the garbage collector
    /// takes objects whose node was made anew under the same name.
    async fn look_up_owner(&mut self, memory: &mut Memory) -> Result<(), Next> {
        let vanished = self.objects.vanished();
        if memory.owner.is_some() && memory.vanished == vanished {
            return Ok(());
        }
        match self.applier.owner(&self.identity.node).await {
            Ok(Some(owner)) => {
                memory.vanished = vanished;
                memory.owner = Some(owner);
                Ok(())
            }
            Ok(None) => {
                memory.owner = None;
                tracing::warn!(node = self.identity.node, "Kubernetes has no such node; nothing is published for it");
                Err(NO_NODE)
            }
            Err(error) => {
                tracing::warn!(node = self.identity.node, error = chain(&error), "cannot look up this node");
                memory.hold = error.retry_after().map(|pause| Instant::now() + pause);
                let mut pause = Pause::new(Duration::from_secs(2), PAUSES.1);
                Err(pause.step())
            }
        }
    }

    async fn carry_out(
        &self,
        owner: &Owner,
        wishes: &BTreeMap<String, Wish>,
        objects: &[Object],
        due: Vec<Change>,
        memory: &mut Memory,
    ) {
        let carry_out = |change: Change| async move {
            let result = self.applier.apply(&self.identity, owner, &change).await;
            (change, result)
        };
        let mut results = futures::stream::iter(due).map(carry_out).buffer_unordered(AT_ONCE);
        while let Some((change, result)) = results.next().await {
            match result {
                Ok(done) => {
                    memory.failed.remove(&change.name);
                    self.note(&change, done, objects);
                }
                Err(error) => failed(&change, &error, wishes, memory),
            }
        }
    }

    fn note(&self, change: &Change, done: Done, objects: &[Object]) {
        let Change { name, class, kind, .. } = change;
        match (&change.action, done) {
            (Action::Create(figures) | Action::Update { figures, .. }, Done::Written(object)) => {
                let before = objects.iter().find(|o| o.name == *name).and_then(|o| o.largest);
                let Figures { capacity, largest } = *figures;
                tracing::info!(object = name, class, ?kind, before, largest, capacity, "published");
                self.objects.wrote(*object);
            }
            (Action::Delete { .. }, Done::Written(object)) => self.objects.wrote(*object),
            (_, Done::Deleted) => {
                tracing::info!(object = name, namespace = change.namespace, class, "deleted");
                self.objects.deleted(&change.namespace, name);
            }
            // Its watch will tell, and bring the next round.
            (_, Done::Outdated) => tracing::info!(object = name, class, "somebody else was faster; looked at again"),
        }
    }

    /// Deletes what csi-provisioner published for this node before there was a reporter: as long as it is there, the
    /// scheduler may believe it instead. Own objects are there by now.
    async fn sweep(&mut self, memory: &mut Memory) {
        let left = match self.applier.left_by_provisioner(&self.identity).await {
            Ok(left) => left,
            Err(error) => {
                tracing::warn!(error = chain(&error), "cannot look for objects that csi-provisioner left");
                return;
            }
        };
        let mut all = true;
        for object in left {
            match self.applier.delete(&object.namespace, &object.name, &object.uid).await {
                Ok(_) => {
                    tracing::info!(object = object.name, class = object.class, "deleted what csi-provisioner left")
                }
                Err(error) => {
                    all = false;
                    tracing::warn!(
                        object = object.name,
                        error = chain(&error),
                        "cannot delete what csi-provisioner left"
                    );
                }
            }
        }
        memory.swept = all;
    }
}

/// What each class's object should say.
async fn wishes(
    driver: Option<&Driver>,
    classes: &BTreeMap<String, Class>,
    memory: &mut Memory,
) -> BTreeMap<String, Wish> {
    memory.unreadable.retain(|class, _| classes.contains_key(class));
    let mut wishes = BTreeMap::new();
    for (class, Class { parameters, .. }) in classes {
        let answer = match driver {
            Some(driver) => driver.figures(parameters).await,
            None => {
                wishes.insert(class.clone(), Wish::Keep);
                continue;
            }
        };
        let wish = match answer {
            Ok(figures) => {
                if memory.unreadable.remove(class).is_some() {
                    tracing::info!(class, "the driver tells the figures of this class again");
                }
                Wish::Say(figures)
            }
            // No object says as much as one that says 0, and does so for every node that never had such a disk.
            Err(DriverError::Refused { code: tonic::Code::NotFound, message, .. }) => {
                tracing::debug!(class, message, "nothing is published for a class that this node lacks");
                memory.unreadable.remove(class);
                continue;
            }
            Err(error @ DriverError::Away { .. }) => {
                tracing::debug!(class, error = chain(&error), "the driver went away");
                Wish::Keep
            }
            Err(error) => unreadable(class, &error, memory),
        };
        wishes.insert(class.clone(), wish);
    }
    wishes
}

/// Nothing can be made of a class whose figures the driver cannot tell.
fn unreadable(class: &str, error: &DriverError, memory: &mut Memory) -> Wish {
    let said = chain(error);
    let entry = memory.unreadable.entry(class.to_owned()).or_default();
    entry.wrong = matches!(error, DriverError::Refused { code: tonic::Code::InvalidArgument, .. });
    if entry.said != said {
        let then = if entry.wrong { "no volume can be made of it" } else { "0 is published until it does" };
        tracing::warn!(class, error = said, "the driver tells no figures for this class: {then}");
        entry.said = said;
    }
    entry.times += 1;
    // A driver that is about to end refuses at first and is gone then.
    if entry.wrong || entry.times > 1 { Wish::Say(Figures::NOTHING) } else { Wish::Keep }
}

fn failed(change: &Change, error: &RequestError, wishes: &BTreeMap<String, Wish>, memory: &mut Memory) {
    let Change { name, class, kind, .. } = change;
    let entry = memory.failed.entry(name.clone());
    let (until, pause) = entry.or_insert_with(|| (Instant::now(), Pause::new(PAUSES.0, PAUSES.1)));
    let step = error.retry_after().unwrap_or_default().max(pause.step());
    *until = Instant::now() + step;
    let wish = wishes.get(class);
    let pause_ms = u64::try_from(step.as_millis()).unwrap_or(u64::MAX);
    tracing::warn!(object = name, class, ?kind, ?wish, error = chain(error), pause_ms, "cannot write; tried again");
    if error.code() == Some(429) {
        memory.hold = Some(*until);
    }
}
