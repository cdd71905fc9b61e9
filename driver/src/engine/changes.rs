//! Says that the room for new volumes may have changed: of which device classes, and why.
//!
//! Whoever does something that may change room leaves a hint; one task measures and compares ([`Engine::announce`]), so
//! that what changes no figure is not told.
//!
//! **Invariant.** No last change is lost: a listener that is slow gets what it missed as one change, and a figure that
//! somebody was told and that has changed since is told of again, also where it has changed back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::volume::{Bytes, Provisioning};

use super::Engine;

/// How often the kernel is asked how full a thin pool is.
const FILL_PERIOD: Duration = Duration::from_secs(1);

/// Why room may have changed. Of several reasons at once the later in this list is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Somebody who asked was told another figure than was known.
    Asked,
    /// A thin pool fills, empties or fails.
    Fill,
    /// Another program changed a volume group.
    Foreign,
    /// A command of this driver is at work on a volume group.
    Command,
    /// A physical volume of a group is missing, or is there again.
    Completeness,
    /// A volume group is there that was not.
    GroupFound,
    /// A volume group is not there any more.
    GroupGone,
    /// Room that was kept from the scheduler is published again.
    HoldEnded,
    /// Room is kept from the scheduler for a while: the claims of a pod do not fit together.
    HoldBegun,
    /// A volume is being made.
    BeingMade,
    /// A volume was not made after all.
    NotMade,
    /// A thin pool was made.
    PoolMade,
    /// A thin pool was enlarged.
    PoolGrown,
    /// A volume was deleted.
    Deleted,
    /// A volume was made.
    Made,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Asked => "a change was seen when the room was asked for",
            Self::Fill => "a thin pool fills, empties or fails",
            Self::Foreign => "another program changed a volume group",
            Self::Command => "a command of the driver changes a volume group",
            Self::Completeness => "a physical volume went or came back",
            Self::GroupFound => "a volume group was found",
            Self::GroupGone => "a volume group is gone",
            Self::HoldEnded => "room that was kept from the scheduler is published again",
            Self::HoldBegun => "the claims of a pod do not fit together: less room is published for a while",
            Self::BeingMade => "a volume is being made",
            Self::NotMade => "a volume was not made after all",
            Self::PoolMade => "a thin pool was made",
            Self::PoolGrown => "a thin pool was enlarged",
            Self::Deleted => "a volume was deleted",
            Self::Made => "a volume was made",
        })
    }
}

/// Room by device class and provisioning; nothing where it cannot be told.
pub type Figures = BTreeMap<(String, Provisioning), Option<Bytes>>;

/// The changes so far, and who waits for the next.
#[derive(Debug)]
pub struct Changes {
    news: watch::Sender<News>,
    state: Mutex<State>,
    wake: Notify,
}

/// What the last change was, and when each class last changed.
#[derive(Debug, Clone, Default)]
struct News {
    sequence: u64,
    reason: Option<Reason>,
    classes: BTreeMap<String, u64>,
}

#[derive(Debug, Default)]
struct State {
    hint: Option<Reason>,
    /// The figures at the last comparison; nothing before the first.
    compared: Option<Figures>,
    /// The figures that somebody was told last.
    told: Figures,
}

/// A change, as a listener gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// How many changes there were since the start.
    pub sequence: u64,
    /// What happened last; nothing where nothing did.
    pub reason: Option<Reason>,
    /// The classes that changed since the listener's last change; empty means any.
    pub classes: BTreeSet<String>,
}

/// One who listens.
#[derive(Debug)]
pub struct Listener {
    news: watch::Receiver<News>,
    seen: Option<u64>,
}

impl Default for Changes {
    fn default() -> Self {
        Self { news: watch::Sender::new(News::default()), state: Mutex::default(), wake: Notify::new() }
    }
}

impl Changes {
    /// Has the figures compared soon.
    pub fn hint(&self, reason: Reason) {
        let mut state = self.state();
        state.hint = state.hint.max(Some(reason));
        self.wake.notify_one();
    }

    /// Notes that somebody is being told this figure.
    pub fn tell(&self, class: &str, provisioning: Provisioning, room: Option<Bytes>) {
        let key = (class.to_owned(), provisioning);
        let mut state = self.state();
        let compared = state.compared.as_ref().and_then(|figures| figures.get(&key)).copied();
        state.told.insert(key, room);
        if compared.is_some_and(|compared| compared != room) {
            drop(state);
            self.hint(Reason::Asked);
        }
    }

    /// The room of a class at the last comparison; nothing where it could not be told. Nothing is measured for this.
    #[must_use]
    pub fn compared(&self, class: &str, provisioning: Provisioning) -> Option<Bytes> {
        let state = self.state();
        state.compared.as_ref()?.get(&(class.to_owned(), provisioning)).copied().flatten()
    }

    /// Begins to listen: the first change is there at once.
    #[must_use]
    pub fn listen(&self) -> Listener {
        Listener { news: self.news.subscribe(), seen: None }
    }

    /// Ends when a hint was left, with its reason.
    async fn hinted(&self) -> Reason {
        loop {
            self.wake.notified().await;
            if let Some(reason) = self.state().hint.take() {
                return reason;
            }
        }
    }

    /// Compares the figures with those before, and announces what is different.
    fn compare(&self, now: Figures, reason: Reason) {
        let mut state = self.state();
        let State { compared, told, .. } = &mut *state;
        let differs = |(key, room): &(&(String, Provisioning), &Option<Bytes>)| {
            compared.as_ref().is_some_and(|before| before.get(*key) != Some(*room))
                || told.get(*key).is_some_and(|told| told != *room)
        };
        let changed: BTreeSet<String> = now.iter().filter(differs).map(|((class, _), _)| class.clone()).collect();
        told.retain(|key, _| now.contains_key(key));
        told.iter_mut().for_each(|(key, room)| *room = now.get(key).copied().flatten());
        *compared = Some(now);
        if changed.is_empty() {
            return;
        }
        tracing::debug!(%reason, classes = ?changed, "room has changed");
        self.news.send_modify(|news| {
            news.sequence += 1;
            news.reason = Some(reason);
            let sequence = news.sequence;
            news.classes.extend(changed.into_iter().map(|class| (class, sequence)));
        });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener {
    /// The next change; at first, and after a pause, what was missed as one. Nothing when there will be none any more.
    pub async fn next(&mut self) -> Option<Change> {
        if self.seen.is_some() {
            self.news.changed().await.ok()?;
        }
        let news = self.news.borrow_and_update().clone();
        let classes = match self.seen {
            None => BTreeSet::new(),
            Some(seen) => {
                news.classes.into_iter().filter(|(_, sequence)| *sequence > seen).map(|(class, _)| class).collect()
            }
        };
        self.seen = Some(news.sequence);
        Some(Change { sequence: news.sequence, reason: news.reason, classes })
    }
}

impl Engine {
    /// What says that room has changed.
    #[must_use]
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// Compares the room of all classes with what it was, whenever it may have changed, and tells the listeners. Ends
    /// when `shutdown` is cancelled.
    pub async fn announce(self: Arc<Self>, shutdown: CancellationToken) {
        let mut fill = tokio::time::interval(FILL_PERIOD);
        fill.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reason = Reason::GroupFound;
        loop {
            let measure = async {
                self.end_holds().await;
                self.figures().await
            };
            let figures = tokio::select! {
                () = shutdown.cancelled() => return,
                figures = measure => figures,
            };
            self.changes.compare(figures, reason);
            reason = loop {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    reason = self.changes.hinted() => break reason,
                    () = self.holds.next_end() => break Reason::HoldEnded,
                    // Writes of pods change no metadata: only the kernel knows of them.
                    _ = fill.tick() => if self.has_pools() { break Reason::Fill },
                }
            };
        }
    }

    /// The room of every class.
    async fn figures(&self) -> Figures {
        let mut figures = Figures::new();
        for class in &self.config.device_classes {
            for provisioning in [Provisioning::Thin, Provisioning::Thick] {
                let room = self.measured_room(&class.name, provisioning).await.ok();
                figures.insert((class.name.clone(), provisioning), room);
            }
        }
        figures
    }

    /// Whether any class has its thin pool.
    fn has_pools(&self) -> bool {
        self.config.device_classes.iter().any(|class| {
            let group = self.groups.by_name(&class.volume_group);
            group.is_some_and(|group| group.known().state().group.logical_volume(&class.thin_pool).is_some())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(rooms: &[(&str, u64)]) -> Figures {
        rooms.iter().map(|(class, room)| (((*class).to_owned(), Provisioning::Thin), Some(Bytes(*room)))).collect()
    }

    /// What the listener gets without waiting.
    async fn next(listener: &mut Listener) -> Option<(u64, Option<Reason>, Vec<String>)> {
        let next = tokio::time::timeout(Duration::ZERO, listener.next()).await.ok()??;
        Some((next.sequence, next.reason, next.classes.into_iter().collect()))
    }

    fn change(sequence: u64, reason: Reason, classes: &[&str]) -> Option<(u64, Option<Reason>, Vec<String>)> {
        Some((sequence, Some(reason), classes.iter().map(|class| (*class).to_owned()).collect()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_listener_hears_at_once_and_then_of_each_figure_that_changes() {
        let changes = Changes::default();
        changes.compare(figures(&[("a", 1), ("b", 1)]), Reason::GroupFound);
        let mut listener = changes.listen();
        assert_eq!(next(&mut listener).await, Some((0, None, vec![])));
        changes.compare(figures(&[("a", 1), ("b", 1)]), Reason::Fill);
        assert_eq!(next(&mut listener).await, None);
        changes.compare(figures(&[("a", 1), ("b", 2)]), Reason::Foreign);
        assert_eq!(next(&mut listener).await, change(1, Reason::Foreign, &["b"]));
        assert_eq!(next(&mut listener).await, None);
        changes.compare(figures(&[("a", 2), ("b", 2)]), Reason::Made);
        assert_eq!(next(&mut listener).await, change(2, Reason::Made, &["a"]));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_slow_listener_missed_comes_as_one() {
        let changes = Changes::default();
        changes.compare(figures(&[("a", 1), ("b", 1), ("c", 1)]), Reason::GroupFound);
        let mut listener = changes.listen();
        next(&mut listener).await;
        changes.compare(figures(&[("a", 2), ("b", 1), ("c", 1)]), Reason::Made);
        changes.compare(figures(&[("a", 2), ("b", 2), ("c", 1)]), Reason::Deleted);
        assert_eq!(next(&mut listener).await, change(2, Reason::Deleted, &["a", "b"]));
        assert_eq!(next(&mut listener).await, None);
        assert_eq!(next(&mut changes.listen()).await, Some((2, Some(Reason::Deleted), vec![])));
    }

    #[tokio::test(start_paused = true)]
    async fn a_figure_that_was_told_and_changed_back_is_told_of() {
        let changes = Changes::default();
        changes.compare(figures(&[("a", 1)]), Reason::GroupFound);
        let mut listener = changes.listen();
        next(&mut listener).await;
        // Somebody asked in a moment that the comparing task never saw.
        changes.tell("a", Provisioning::Thin, Some(Bytes(2)));
        assert_eq!(changes.hinted().await, Reason::Asked);
        changes.compare(figures(&[("a", 1)]), Reason::Asked);
        assert_eq!(next(&mut listener).await, change(1, Reason::Asked, &["a"]));
        // It was told of; once is enough.
        changes.compare(figures(&[("a", 1)]), Reason::Fill);
        assert_eq!(next(&mut listener).await, None);
        // One that is as known leaves no hint.
        changes.tell("a", Provisioning::Thin, Some(Bytes(1)));
        assert!(tokio::time::timeout(Duration::from_secs(1), changes.hinted()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn of_several_hints_the_one_that_says_most_is_told() {
        let changes = Changes::default();
        changes.hint(Reason::Made);
        changes.hint(Reason::Foreign);
        assert_eq!(changes.hinted().await, Reason::Made);
        assert!(tokio::time::timeout(Duration::from_secs(1), changes.hinted()).await.is_err());
    }
}
