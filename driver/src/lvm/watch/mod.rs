//! Says when a volume group may have changed, so that nobody polls with processes.
//!
//! Invariant: a hint, never the truth: the listener compares fingerprints. Nothing is lost for long: a path that
//! cannot be watched is reported and tried again, and a slow timer speaks for every group whatever happens.
//!
//! Every LVM command that may write opens the physical volumes' nodes for writing and closes them, and makes
//! and removes `V_<group>` in the lock directory.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

/// Changes not fetched yet are merged, so a short queue is enough.
const QUEUE: usize = 16;
/// Room for some dozens of the kernel's events at a time.
const EVENT_BUFFER: usize = 4096;

/// A volume group to watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchedGroup {
    /// Its name.
    pub name: String,
    /// The nodes of its physical volumes.
    pub devices: Vec<PathBuf>,
}

/// How to watch.
#[derive(Debug, Clone)]
pub struct WatchOptions {
    /// LVM's directory for lock files (`global/locking_dir`).
    pub lock_directory: PathBuf,
    /// How long changes are gathered after the first: one command makes several.
    pub settle: Duration,
    /// How often every group is named without a cause.
    pub period: Duration,
    /// How often a path is tried again that cannot be watched.
    pub retry: Duration,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self {
            lock_directory: PathBuf::from("/run/lock/lvm"),
            settle: Duration::from_millis(50),
            period: Duration::from_secs(60),
            retry: Duration::from_secs(5),
        }
    }
}

/// What the watch has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// These groups may have changed, or some of them.
    MayHaveChanged {
        /// Their names.
        groups: BTreeSet<String>,
        /// Why that is believed.
        cause: Cause,
    },
    /// A path cannot be watched; the timer still speaks for its groups.
    Blind {
        /// The path.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A path reported as blind is watched again.
    Sees {
        /// The path.
        path: PathBuf,
    },
}

/// Why a group is said to have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The timer; nothing was seen.
    Timer,
    /// Changes may have been missed: the kernel's queue overflowed, or a watch was set up anew.
    Missed,
    /// A command used the group.
    Used,
}

/// Tells the watch what to watch. The watch ends when this or its events are dropped.
#[derive(Debug)]
pub struct Watch {
    groups: mpsc::UnboundedSender<Vec<WatchedGroup>>,
}

impl Watch {
    /// Starts a watch that has no groups yet. Must be called in a tokio runtime.
    #[must_use]
    pub fn start(options: WatchOptions) -> (Self, ReceiverStream<WatchEvent>) {
        let (groups, wanted) = mpsc::unbounded_channel();
        let (sender, events) = mpsc::channel(QUEUE);
        tokio::spawn(Watcher::new(options).run(wanted, sender));
        (Self { groups }, ReceiverStream::new(events))
    }

    /// Watches these groups from now on, and no others. Each is named once, since it may have changed before.
    pub fn set(&self, groups: Vec<WatchedGroup>) {
        // The other side ends only when nobody listens to its events any more.
        drop(self.groups.send(groups));
    }
}

/// A path with a watch on it.
struct Watched {
    descriptor: WatchDescriptor,
    /// Which file was under the path: a node made anew is another file.
    inode: (u64, u64),
}

struct Watcher {
    options: WatchOptions,
    groups: Vec<WatchedGroup>,
    stream: Option<EventStream<Vec<u8>>>,
    watched: BTreeMap<PathBuf, Watched>,
    blind: BTreeSet<PathBuf>,
    reports: Vec<WatchEvent>,
    pending: BTreeMap<String, Cause>,
    due: Option<Instant>,
}

impl Watcher {
    fn new(options: WatchOptions) -> Self {
        Self {
            options,
            groups: Vec::new(),
            stream: None,
            watched: BTreeMap::new(),
            blind: BTreeSet::new(),
            reports: Vec::new(),
            pending: BTreeMap::new(),
            due: None,
        }
    }

    async fn run(mut self, mut wanted: mpsc::UnboundedReceiver<Vec<WatchedGroup>>, sender: mpsc::Sender<WatchEvent>) {
        let mut retry = interval(self.options.retry);
        let mut timer = interval(self.options.period);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        timer.reset();
        loop {
            let due = self.due.unwrap_or_else(Instant::now);
            let ready = self.due.is_some_and(|due| due <= Instant::now()) || !self.reports.is_empty();
            tokio::select! {
                groups = wanted.recv() => match groups {
                    None => return,
                    Some(groups) => {
                        self.groups = groups;
                        self.examine();
                        self.all(Cause::Missed);
                    }
                },
                event = next_event(&mut self.stream) => self.take(event),
                _ = retry.tick() => self.examine(),
                _ = timer.tick() => self.all(Cause::Timer),
                () = sleep_until(due), if self.due.is_some() && !ready => {}
                permit = sender.reserve(), if ready => match permit {
                    Err(_) => return,
                    Ok(permit) => self.deliver(permit),
                },
                () = sender.closed() => return,
            }
        }
    }

    /// Sends one report, or the gathered changes.
    fn deliver(&mut self, permit: mpsc::Permit<'_, WatchEvent>) {
        if !self.reports.is_empty() {
            permit.send(self.reports.remove(0));
            return;
        }
        self.due = None;
        let pending = std::mem::take(&mut self.pending);
        let cause = pending.values().copied().max().unwrap_or(Cause::Timer);
        let groups = pending.into_keys().collect();
        permit.send(WatchEvent::MayHaveChanged { groups, cause });
    }

    fn changed(&mut self, group: String, cause: Cause) {
        // Counted from the first change, so that a busy group is still told of.
        self.due.get_or_insert_with(|| Instant::now() + self.options.settle);
        let known = self.pending.entry(group).or_insert(cause);
        *known = (*known).max(cause);
    }

    fn all(&mut self, cause: Cause) {
        let names: Vec<String> = self.groups.iter().map(|group| group.name.clone()).collect();
        for name in names {
            self.changed(name, cause);
        }
    }

    fn take(&mut self, event: io::Result<Event>) {
        let event = match event {
            Ok(event) => event,
            Err(error) => return self.lose_all(&error),
        };
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            return self.all(Cause::Missed);
        }
        let found = self.watched.iter().find(|(_, watched)| watched.descriptor == event.descriptor);
        let Some(path) = found.map(|(path, _)| path.clone()) else {
            return;
        };
        if event.mask.contains(EventMask::IGNORED) {
            self.watched.remove(&path);
        }
        if path == self.options.lock_directory {
            let group = event.name.as_deref().and_then(group_of_lock);
            let known = |name: &String| self.groups.iter().any(|group| group.name == *name);
            if let Some(group) = group.filter(known) {
                self.changed(group, Cause::Used);
            }
        } else {
            let users = self.groups.iter().filter(|group| group.devices.contains(&path));
            for name in users.map(|group| group.name.clone()).collect::<Vec<_>>() {
                self.changed(name, Cause::Used);
            }
        }
        if !event.mask.intersects(EventMask::CLOSE_WRITE | EventMask::CREATE | EventMask::DELETE) {
            // The file itself changed or went away.
            self.examine();
        }
    }

    fn lose_all(&mut self, error: &io::Error) {
        self.stream = None;
        self.watched.clear();
        let wanted = self.wanted();
        for path in wanted {
            self.report_blind(path, error.to_string());
        }
        self.all(Cause::Missed);
    }

    fn wanted(&self) -> BTreeSet<PathBuf> {
        if self.groups.is_empty() {
            return BTreeSet::new();
        }
        let devices = self.groups.iter().flat_map(|group| group.devices.iter().cloned());
        devices.chain([self.options.lock_directory.clone()]).collect()
    }

    /// Makes the watches be what they should be, as far as that is possible.
    fn examine(&mut self) {
        let wanted = self.wanted();
        for path in self.watched.keys().filter(|path| !wanted.contains(*path)).cloned().collect::<Vec<_>>() {
            self.unwatch(&path);
        }
        self.blind.retain(|path| wanted.contains(path));
        for path in wanted {
            match self.ensure(&path) {
                Ok(false) => {}
                Ok(true) => {
                    if self.blind.remove(&path) {
                        self.reports.push(WatchEvent::Sees { path: path.clone() });
                    }
                    // Whatever happened before the watch was there went unseen.
                    self.used_by(&path);
                }
                Err(error) => self.report_blind(path, error.to_string()),
            }
        }
    }

    fn used_by(&mut self, path: &Path) {
        if path == self.options.lock_directory {
            return self.all(Cause::Missed);
        }
        let users = self.groups.iter().filter(|group| group.devices.iter().any(|device| device == path));
        for name in users.map(|group| group.name.clone()).collect::<Vec<_>>() {
            self.changed(name, Cause::Missed);
        }
    }

    fn report_blind(&mut self, path: PathBuf, why: String) {
        if self.blind.insert(path.clone()) {
            self.reports.push(WatchEvent::Blind { path, why });
        }
    }

    fn unwatch(&mut self, path: &Path) {
        if let (Some(stream), Some(watched)) = (&self.stream, self.watched.remove(path)) {
            // It fails only if the kernel has dropped the watch already.
            drop(stream.watches().remove(watched.descriptor));
        }
    }

    /// Watches the file that is now under the path; says whether that is new.
    fn ensure(&mut self, path: &Path) -> io::Result<bool> {
        let found = std::fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
        let same = |watched: &Watched| found.as_ref().is_ok_and(|inode| *inode == watched.inode);
        match self.watched.get(path) {
            Some(watched) if same(watched) => return Ok(false),
            Some(_) => self.unwatch(path),
            None => {}
        }
        let inode = found?;
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => none.insert(Inotify::init()?.into_event_stream(vec![0; EVENT_BUFFER])?),
        };
        let mask = if path == self.options.lock_directory {
            WatchMask::CREATE | WatchMask::DELETE
        } else {
            WatchMask::CLOSE_WRITE
        };
        let itself = WatchMask::ATTRIB | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF;
        let descriptor = stream.watches().add(path, mask | itself)?;
        self.watched.insert(path.to_owned(), Watched { descriptor, inode });
        Ok(true)
    }
}

/// An event with what of it is needed.
struct Event {
    descriptor: WatchDescriptor,
    mask: EventMask,
    name: Option<std::ffi::OsString>,
}

/// The next event; never without a stream.
async fn next_event(stream: &mut Option<EventStream<Vec<u8>>>) -> io::Result<Event> {
    let Some(stream) = stream else {
        return std::future::pending().await;
    };
    match stream.next().await {
        Some(Ok(event)) => Ok(Event { descriptor: event.wd, mask: event.mask, name: event.name }),
        Some(Err(error)) => Err(error),
        None => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
    }
}

/// The group that a lock file is for: `V_quarry` is taken by every command, `V_quarry:aux` only guards it.
fn group_of_lock(file: &OsStr) -> Option<String> {
    let group = file.to_str()?.strip_prefix("V_")?;
    (!group.is_empty() && !group.contains(':')).then(|| group.to_owned())
}

#[cfg(test)]
mod tests;
