//! One volume group in use: its last reading, and the one permit to change it.
//!
//! **Invariant.** Changes of one group follow one another; none begins before what an earlier, lost command left
//! behind is repaired. Groups do not wait for each other: a hung disk delays only its own group, and a command of one
//! group opens no device of another.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, MutexGuard};

use crate::lvm::command::Command;
use crate::lvm::discover::{DeviceProblem, ProblemDevice, Scanner};
use crate::lvm::metadata::LvmUuid;
use crate::lvm::repair;
use crate::lvm::runner::{LvmError, Reply, Runner, Running};
use crate::telemetry::chain;

use super::Reading;
use super::backups::Backups;
use super::pins::{PinError, Pins};

/// How long a reader that can do with the last reading waits for a new one.
const PATIENCE: Duration = Duration::from_secs(1);

/// What could not be read, so that nobody knows what is in it; UNAVAILABLE, the caller retries.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// A group that is in use.
    #[error("volume group {vg} cannot be read")]
    Group {
        /// Its name.
        vg: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A disk of a group does not answer. What it holds cannot have changed since it was last read.
    #[error("volume group {vg} cannot be read: {}: the device does not answer: a read has been waiting for {} s", device.display(), waiting.as_secs())]
    Hung {
        /// The group's name.
        vg: String,
        /// The disk.
        device: PathBuf,
        /// For how long a read has been waiting.
        waiting: Duration,
    },
    /// A group that held volumes when it was last seen, and is not there.
    #[error("volume group {vg} ({uuid}) held volumes when it was last seen and is not found on this node now")]
    Gone {
        /// Its name.
        vg: String,
        /// Its UUID.
        uuid: String,
    },
    /// A group of which a part is missing or unreadable.
    #[error("volume group {vg} was not read whole: {what}")]
    Incomplete {
        /// Its name.
        vg: String,
        /// What is missing.
        what: String,
    },
    /// LVM's own list.
    #[error("lvm cannot list the logical volumes")]
    Report {
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Unreadable {
    /// Of LVM's list.
    #[must_use]
    pub fn report(source: Box<dyn std::error::Error + Send + Sync>) -> Self {
        Self::Report { source }
    }

    /// Of a group with missing physical volumes.
    #[must_use]
    pub fn incomplete(vg: &str) -> Self {
        Self::Incomplete { vg: vg.to_owned(), what: "a physical volume is missing".to_owned() }
    }
}

/// A volume group in use.
#[derive(Debug)]
pub struct Group {
    name: String,
    uuid: LvmUuid,
    pins: Arc<Pins>,
    backups: Arc<Backups>,
    scanner: Scanner,
    /// The devices that the configuration lists, where the group was found on them.
    listed: Vec<PathBuf>,
    reading: RwLock<Arc<Reading>>,
    /// Whether commands of an earlier driver are over and what they left is repaired.
    settled: AtomicBool,
    writer: Mutex<State>,
    trouble: std::sync::Mutex<Option<(String, Instant)>>,
    command: std::sync::Mutex<Option<(String, Instant)>>,
}

/// How a group is, as far as is known without looking.
#[derive(Debug, Clone, Default)]
pub struct Condition {
    /// Why it was not read, or not whole, when it was last looked at, and for how long that has been so.
    pub trouble: Option<(String, Duration)>,
    /// The verb of the command that changes it now, and for how long it has been running.
    pub command: Option<(String, Duration)>,
}

#[derive(Debug)]
struct State {
    /// A command was lost, or none has run yet: what it left behind is repaired first.
    repair: bool,
}

/// The permit to change a group.
#[derive(Debug)]
#[must_use = "others wait as long as this lives"]
pub struct Writer<'a> {
    group: &'a Group,
    state: MutexGuard<'a, State>,
}

impl Group {
    /// A group as it was found. It is checked for leftovers before its first change.
    ///
    /// # Errors
    /// [`PinError`] when it cannot be noted whether it holds volumes.
    pub fn new(
        mut reading: Reading,
        pins: Arc<Pins>,
        backups: Arc<Backups>,
        scanner: Scanner,
        listed: Vec<PathBuf>,
    ) -> Result<Self, PinError> {
        pins.note(&reading.vg_uuid().to_string(), reading.name(), reading.classes())?;
        backups.learn(&mut reading);
        Ok(Self {
            name: reading.name().to_owned(),
            uuid: reading.vg_uuid(),
            pins,
            backups,
            scanner,
            listed,
            trouble: std::sync::Mutex::new(what_is_missing(&reading).map(|what| (what, Instant::now()))),
            reading: RwLock::new(Arc::new(reading)),
            settled: AtomicBool::new(false),
            writer: Mutex::new(State { repair: true }),
            command: std::sync::Mutex::new(None),
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its UUID.
    #[must_use]
    pub fn uuid(&self) -> LvmUuid {
        self.uuid
    }

    /// Whether it was found on the devices that the configuration lists.
    #[must_use]
    pub fn is_on_listed_devices(&self) -> bool {
        !self.listed.is_empty()
    }

    /// Whether what it shows is final: no command of an earlier driver is at work on it any more.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    /// Notes that nobody but this driver changes it for Quarry any more.
    pub fn settle(&self) {
        self.settled.store(true, Ordering::Release);
    }

    /// The last reading, without looking again.
    #[must_use]
    pub fn known(&self) -> Arc<Reading> {
        Arc::clone(&self.reading.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes over a newer reading.
    ///
    /// # Errors
    /// [`PinError`] when it cannot be noted whether the group holds volumes.
    pub fn learn(&self, mut reading: Reading) -> Result<(), PinError> {
        self.backups.learn(&mut reading);
        // A part that is missing may hold the volumes that the rest does not show.
        if reading.holds_volumes() || reading.is_complete() {
            self.pins.note(&self.uuid.to_string(), &self.name, reading.classes())?;
        }
        self.note_trouble(what_is_missing(&reading));
        *self.reading.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(reading);
        Ok(())
    }

    /// How it is; nothing is looked at for this.
    #[must_use]
    pub fn condition(&self) -> Condition {
        let aged = |of: &std::sync::Mutex<Option<(String, Instant)>>| {
            let of = of.lock().unwrap_or_else(PoisonError::into_inner);
            of.as_ref().map(|(what, since)| (what.clone(), since.elapsed()))
        };
        Condition { trouble: aged(&self.trouble), command: aged(&self.command) }
    }

    fn note_trouble(&self, what: Option<String>) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let since = trouble.as_ref().map_or_else(Instant::now, |(_, since)| *since);
        *trouble = what.map(|what| (what, since));
    }

    /// Reads the group's metadata from its disks: no process, some milliseconds.
    ///
    /// # Errors
    /// [`Unreadable`] when a disk does not answer or its metadata is damaged. Missing physical volumes are in the
    /// reading, not an error.
    pub async fn read(&self) -> Result<Arc<Reading>, Unreadable> {
        let read = self.look().await;
        if let Err(error) = &read {
            self.note_trouble(Some(chain(error)));
        }
        read
    }

    async fn look(&self) -> Result<Arc<Reading>, Unreadable> {
        let unreadable =
            |source: Box<dyn std::error::Error + Send + Sync>| Unreadable::Group { vg: self.name.clone(), source };
        let discovery = self.scanner.reread(&self.known().devices(), &self.listed).await;
        let discovery = discovery.map_err(|error| unreadable(error.into()))?;
        if let Some(ProblemDevice { device, problem }) = discovery.problems.into_iter().next() {
            if let DeviceProblem::Hung { waiting } = problem {
                return Err(Unreadable::Hung { vg: self.name.clone(), device, waiting });
            }
            let what = format!("{}: {}", device.display(), chain(&problem));
            return Err(unreadable(what.into()));
        }
        let state = discovery.groups.into_iter().find(|state| state.group.uuid == self.uuid);
        let state = state.ok_or_else(|| unreadable("its metadata is no longer on its disks".into()))?;
        self.learn(Reading::new(state)).map_err(|error| unreadable(error.into()))?;
        Ok(self.known())
    }

    /// Reads the group, or takes its last whole reading where a disk hangs: a hung disk changes nothing. For who only
    /// tells of volumes, or asks for one that must be elsewhere; whoever concludes that a volume is absent reads.
    ///
    /// # Errors
    /// [`Unreadable`] for any other trouble than a disk that does not answer.
    pub async fn read_or_known(self: &Arc<Self>) -> Result<Arc<Reading>, Unreadable> {
        // Read to its end whoever waits, so that trouble is noted.
        let group = Arc::clone(self);
        let mut reading = tokio::spawn(async move { group.read().await });
        let read = match tokio::time::timeout(PATIENCE, &mut reading).await {
            Ok(read) => read,
            Err(_) if self.known().is_complete() => return Ok(self.known()),
            Err(_) => reading.await,
        };
        match read {
            Ok(Err(Unreadable::Hung { .. })) if self.known().is_complete() => Ok(self.known()),
            Ok(read) => read,
            Err(cut) => Err(Unreadable::Group { vg: self.name.clone(), source: cut.into() }),
        }
    }

    /// Whether somebody has the permit to change it.
    #[must_use]
    pub fn is_being_changed(&self) -> bool {
        self.writer.try_lock().is_err()
    }

    /// Waits for the permit to change the group.
    pub async fn writer(&self) -> Writer<'_> {
        Writer { group: self, state: self.writer.lock().await }
    }
}

/// What is missing in a reading, in words.
fn what_is_missing(reading: &Reading) -> Option<String> {
    (!reading.is_complete()).then(|| format!("it was not read whole: {}", reading.state().completeness))
}

/// Runs commands on a group's own devices, and notes which runs.
#[derive(Debug)]
struct GroupCommands<'a> {
    group: &'a Group,
    runner: &'a dyn Runner,
}

impl Group {
    fn commands<'a>(&'a self, runner: &'a dyn Runner) -> GroupCommands<'a> {
        GroupCommands { group: self, runner }
    }
}

impl Runner for GroupCommands<'_> {
    fn run(&self, command: Command) -> Running<'_> {
        let command = command.on_devices(self.group.known().devices().iter().map(PathBuf::as_path));
        Box::pin(async move {
            let _noted = Noted::begin(self.group, command.verb());
            self.runner.run(command).await
        })
    }
}

/// The note of a command that runs.
struct Noted<'a>(&'a Group);

impl<'a> Noted<'a> {
    fn begin(group: &'a Group, verb: &str) -> Self {
        *group.command.lock().unwrap_or_else(PoisonError::into_inner) = Some((verb.to_owned(), Instant::now()));
        Self(group)
    }
}

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        *self.0.command.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Writer<'_> {
    /// Repairs what a lost command left, if there was one.
    ///
    /// # Errors
    /// [`Unreadable`] when the group stays unusable; the next attempt repairs again.
    pub async fn ready(&mut self, runner: &dyn Runner) -> Result<(), Unreadable> {
        if !self.state.repair {
            return Ok(());
        }
        let reading = self.group.read().await?;
        repair::repair(&self.group.commands(runner), &reading.state().group)
            .await
            .map_err(|source| Unreadable::Group { vg: self.group.name.clone(), source: source.into() })?;
        self.state.repair = false;
        Ok(())
    }

    /// Has the group repaired before its next change, whatever the last command said.
    pub fn suspect(&mut self) {
        self.state.repair = true;
    }

    /// Runs a command that changes the group. What one of unknown outcome left is repaired at once: pods that use other
    /// volumes of the group may be frozen, and the caller may come back in minutes.
    ///
    /// # Errors
    /// [`LvmError`]; where the repair fails too, it is tried again before the group's next change.
    pub async fn run(&mut self, runner: &dyn Runner, command: Command) -> Result<Reply, LvmError> {
        // Set before, so that it also holds when this future is dropped half-way.
        self.state.repair = true;
        let result = self.group.commands(runner).run(command).await;
        self.state.repair = result.as_ref().is_err_and(LvmError::outcome_unknown);
        if let Err(error) = self.ready(runner).await {
            tracing::error!(vg = self.group.name, error = chain(&error), "volume group is as a lost command left it");
        }
        result
    }
}
