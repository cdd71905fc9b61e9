//! Keeps the pods' weights and limits as their volumes ask for them, and says what came of it.
//!
//! **Invariant.** Level-triggered: each pass compares what should be with what the kernel shows, whoever changed it. Files
//! of sysfs and cgroups only, no process; nothing at all while nobody asks for anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::config::Io;
use crate::device_number::DeviceNumber;
use crate::telemetry::chain;
use crate::volume::LvName;

use super::Tenant;
use super::activity::Activity;
use super::arrivals::{Arrivals, Sight};
use super::calibrate::Store;
use super::cost::{DiskFiles, Done};
use super::lines::MAX;
use super::models::{Basis, Models};
use super::monitor::{Monitor, User};
use super::notes::{Notes, NotesError};
use super::plan::{self, Placed};
use super::pods::{self, PodCgroup};
use super::settle::Outcomes;
use super::state::{Reason, State};
use super::sysfs::{self, Disk};

/// How often what should be is compared with what is.
const PERIOD: Duration = Duration::from_secs(2);
/// The same where a pod's cgroup is awaited that cannot be watched for, and just after one appeared: its files come a
/// little later.
const SOON: Duration = Duration::from_millis(250);

/// Where things are.
#[derive(Debug, Clone)]
pub struct Places {
    /// The root of cgroup v2, `/sys/fs/cgroup`.
    pub cgroups: PathBuf,
    /// sysfs, `/sys`.
    pub sys: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self { cgroups: PathBuf::from("/sys/fs/cgroup"), sys: PathBuf::from("/sys") }
    }
}

/// What was done since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Settings that were found changed, and put right.
    pub repaired: u64,
}

/// Tells who has which volume.
#[tonic::async_trait]
pub trait Tenants: Send + Sync {
    /// Everybody, now.
    async fn tenants(&self) -> Vec<Tenant>;

    /// Ends when somebody came, went, or asks for something else.
    async fn changed(&self);
}

/// What a pass leaves to wait for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Passed {
    /// Whether a pod's cgroup is not there yet.
    pub awaited: bool,
    /// The folders in which it may appear; none while nobody asks for anything.
    pub homes: BTreeSet<PathBuf>,
}

/// The states of those who ask, and the disks that wait for a model.
type Outcome = (Vec<(Publication, State)>, Vec<Disk>);

/// A volume at a target path.
pub type Publication = (LvName, String);

/// Keeps weights and limits.
#[derive(Debug)]
pub struct Control {
    places: Places,
    pub(super) config: Io,
    work: Mutex<Work>,
    told: Mutex<Told>,
    /// How often what should be is compared with what is, without any sign of a change.
    period: Duration,
    /// Counts changes of states.
    news: tokio::sync::watch::Sender<u64>,
}

#[derive(Debug)]
pub(super) struct Work {
    pub(super) notes: Notes,
    pub(super) models: Models,
    monitor: Monitor,
    /// What an earlier pass of this process left in order.
    pub(super) settled: BTreeSet<(PathBuf, DeviceNumber)>,
    settled_disks: BTreeSet<String>,
    activity: Activity,
    /// Where this pass saw cgroups of pods.
    homes: BTreeSet<PathBuf>,
    /// Whether everything was put back for good.
    pub(super) left: bool,
}

#[derive(Debug, Default)]
struct Told {
    states: BTreeMap<Publication, State>,
    uncalibrated: Vec<Disk>,
    counts: Counts,
}

impl Control {
    /// Keeps notes in the state folder.
    ///
    /// # Errors
    /// [`NotesError`]: what an earlier life changed is not known, so nothing may be changed.
    pub fn open(places: Places, config: Io, state_dir: &Path) -> Result<Self, NotesError> {
        let path = Path::new("/proc/sys/kernel/random/boot_id");
        let boot = fs::read_to_string(path).map_err(|source| NotesError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        })?;
        let notes = Notes::open(state_dir, boot.trim())?;
        let work = Work {
            notes,
            models: Models::new(Store::open(state_dir)),
            monitor: Monitor::default(),
            settled: BTreeSet::new(),
            settled_disks: BTreeSet::new(),
            activity: Activity::default(),
            homes: BTreeSet::new(),
            left: false,
        };
        let news = tokio::sync::watch::Sender::new(0);
        Ok(Self { places, config, work: Mutex::new(work), told: Mutex::default(), period: PERIOD, news })
    }

    /// What became of every published volume, as of the last pass.
    #[must_use]
    pub fn states(&self) -> BTreeMap<Publication, State> {
        self.told().states.clone()
    }

    /// Counts changes of [`Self::states`], for whoever waits for the next.
    #[must_use]
    pub fn news(&self) -> tokio::sync::watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Disks that pods' weights wait for a model of.
    #[must_use]
    pub fn uncalibrated(&self) -> Vec<Disk> {
        self.told().uncalibrated.clone()
    }

    /// Where things are.
    #[must_use]
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// What was done since the start.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.told().counts
    }

    /// Makes passes until `shutdown` is cancelled. What was set stays set: the pods stay, too.
    pub async fn run(self: Arc<Self>, source: Arc<dyn Tenants>, shutdown: CancellationToken) {
        let mut arrivals = Arrivals::default();
        let mut arrived = false;
        loop {
            let tenants = source.tenants().await;
            let control = Arc::clone(&self);
            let pass = tokio::task::spawn_blocking(move || control.pass(&tenants, Instant::now()));
            // A pass that hangs is waited for: it changes what it changes, and a second one would hang, too.
            let passed = tokio::select! {
                () = shutdown.cancelled() => return,
                passed = pass => passed.unwrap_or_else(|error| {
                    tracing::error!(%error, "setting weights and limits was cut off");
                    Passed::default()
                }),
            };
            let again = match arrivals.watch(&passed.homes) {
                // What appeared before the watch did was not told of.
                Sight::New => Duration::ZERO,
                Sight::Same if !arrived => self.period,
                Sight::Blind if !passed.awaited => self.period,
                Sight::Same | Sight::Blind => SOON,
            };
            arrived = tokio::select! {
                () = shutdown.cancelled() => return,
                () = arrivals.next() => true,
                () = source.changed() => false,
                () = tokio::time::sleep(again) => false,
            }
        }
    }

    /// One pass: sets what is not as it should be.
    pub fn pass(&self, tenants: &[Tenant], now: Instant) -> Passed {
        let mut work = self.work();
        let asked: Vec<&Tenant> = tenants.iter().filter(|tenant| tenant.wish.any()).collect();
        let mut states: BTreeMap<Publication, State> =
            tenants.iter().map(|tenant| (publication(tenant), State::NotAsked)).collect();
        let mut counts = Counts::default();
        let mut uncalibrated = Vec::new();
        if work.left {
            states.extend(asked.iter().map(|tenant| (publication(tenant), State::NotEnforced(Reason::PutBack))));
        } else if !asked.is_empty() || !work.notes.is_empty() {
            match self.bring_about(&mut work, &asked, now, &mut counts) {
                Ok((found, what)) => {
                    states.extend(found);
                    uncalibrated = what;
                }
                Err(reason) => {
                    let failed = |tenant: &&Tenant| (publication(tenant), State::NotEnforced(reason.clone()));
                    states.extend(asked.iter().map(failed));
                }
            }
        }
        let homes = std::mem::take(&mut work.homes);
        drop(work);
        let awaited = states.values().any(|state| *state == State::Pending(Reason::CgroupNotFound));
        let mut told = self.told();
        told.counts.repaired += counts.repaired;
        told.uncalibrated = uncalibrated;
        for (publication, state) in &states {
            if told.states.get(publication) != Some(state) {
                say(publication, state);
            }
        }
        if told.states != states {
            told.states = states;
            self.news.send_modify(|count| *count += 1);
        }
        Passed { awaited, homes }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn files<'a>(&'a self, disk: &'a Disk) -> DiskFiles<'a> {
        DiskFiles { cgroups: &self.places.cgroups, sys: &self.places.sys, disk }
    }

    fn bring_about(
        &self,
        work: &mut Work,
        asked: &[&Tenant],
        now: Instant,
        counts: &mut Counts,
    ) -> Result<Outcome, Reason> {
        let controllers = self.places.cgroups.join("cgroup.controllers");
        let offered = fs::read_to_string(&controllers).unwrap_or_default();
        if !offered.split_ascii_whitespace().any(|controller| controller == "io") {
            return Err(Reason::NoIoController(format!("controller io in {}", controllers.display())));
        }
        let found = pods::find(&self.places.cgroups)
            .map_err(|error| Reason::Failed(format!("cannot look for the pods' cgroups: {error}")))?;
        let pods::Found { pods, homes } = found;
        work.homes = homes;
        let lies: Vec<Result<Lying, State>> = asked.iter().map(|tenant| self.lies(tenant, &pods)).collect();
        let found = || lies.iter().filter_map(|lying| lying.as_ref().ok());

        // Disks first: a weight on one that does not honour it would be a promise.
        let weighted: BTreeSet<&Disk> =
            found().filter(|lying| lying.placed.weight.is_some()).flat_map(|lying| &lying.disks).collect();
        let disks: BTreeMap<DeviceNumber, Result<Basis, Reason>> = weighted
            .iter()
            .map(|disk| {
                let basis = self.basis(&work.models, disk);
                let done = basis.and_then(|basis| {
                    let done = self.files(disk).set_up(basis.means, &mut work.notes)?;
                    Ok((basis, done))
                });
                if matches!(done, Ok((_, Done::Repaired))) && !work.settled_disks.insert(disk.name.clone()) {
                    counts.repaired += 1;
                }
                if done.is_ok() {
                    work.settled_disks.insert(disk.name.clone());
                }
                (disk.number, done.map(|(basis, _)| basis))
            })
            .collect();
        let works = |disk: DeviceNumber| matches!(disks.get(&disk), Some(Ok(_)));

        work.activity.look(&pods, disks.keys().copied().filter(|disk| works(*disk)).collect(), now);
        let placed: Vec<Placed> = found().map(|lying| lying.placed.clone()).collect();
        let mut plan = plan::plan(&placed, &pods, |pod, disk| work.activity.is_active(pod, disk, now));
        plan.weights.retain(|(_, disk), _| works(*disk));
        plan.classes.retain(|(_, disk), _| works(*disk) && self.config.qos_classes);
        let lines = self.settle(work, &plan, &pods, &mut counts.repaired)?;

        let basis = |disk: &Disk| disks.get(&disk.number).and_then(|basis| basis.as_ref().ok());
        let watched: Vec<(Disk, f64)> = weighted
            .iter()
            .filter_map(|disk| Some(((*disk).clone(), basis(disk)?.measured_queue.unwrap_or_default())))
            .collect();
        let users: Vec<_> = asked
            .iter()
            .zip(&lies)
            .filter_map(|(tenant, lying)| Some((*tenant, lying.as_ref().ok()?)))
            .filter(|(_, lying)| lying.placed.weight.is_some())
            .map(|(tenant, lying)| lying.user(tenant))
            .collect();
        work.monitor.look(&self.places, &watched, &users, now);

        let mut uncalibrated: Vec<Disk> = weighted
            .iter()
            .filter(|disk| matches!(disks.get(&disk.number), Some(Err(Reason::Uncalibrated { .. }))))
            .map(|disk| (*disk).clone())
            .collect();
        // A model of our own that a disk was seen to be slower than is measured again.
        let slower = watched.iter().map(|(disk, _)| disk).filter(|disk| work.monitor.of_disk(disk).is_some());
        let measured = |disk: &Disk| basis(disk).is_some_and(|basis| basis.measured_queue.is_some());
        uncalibrated.extend(slower.filter(|disk| measured(disk)).cloned());

        let state = |tenant: &Tenant, lying: &Result<Lying, State>| match lying {
            Err(state) => state.clone(),
            Ok(lying) => match self.judge(lying, &disks, &lines) {
                State::Enforced if lying.placed.weight.is_some() => {
                    let slower = lying.disks.iter().find_map(|disk| work.monitor.of_disk(disk));
                    let synced = || work.monitor.of_publication(&publication(tenant));
                    slower.or_else(synced).map_or(State::Enforced, State::NotEnforced)
                }
                state => state,
            },
        };
        let states = asked.iter().zip(&lies).map(|(tenant, lying)| (publication(tenant), state(tenant, lying)));
        Ok((states.collect(), uncalibrated))
    }

    /// Where a tenant lies.
    fn lies(&self, tenant: &Tenant, pods: &BTreeMap<String, PodCgroup>) -> Result<Lying, State> {
        let Some(pod) = &tenant.pod else { return Err(State::NotEnforced(Reason::NoPod)) };
        let Some(device) = tenant.device else { return Err(State::Pending(Reason::NoDevice)) };
        let Some(cgroup) = pods.get(pod) else { return Err(State::Pending(Reason::CgroupNotFound)) };
        let disks = sysfs::disks_below(&self.places.sys, device)
            .map_err(|error| State::NotEnforced(Reason::Failed(chain(&error))))?;
        let placed = Placed {
            pod: pod.clone(),
            weight: tenant.wish.weight,
            limits: tenant.wish.limits,
            device,
            disks: disks.iter().map(|disk| disk.number).collect(),
        };
        Ok(Lying { placed, disks, cgroup: cgroup.clone() })
    }

    /// What a tenant has got.
    fn judge(&self, lying: &Lying, disks: &BTreeMap<DeviceNumber, Result<Basis, Reason>>, lines: &Outcomes) -> State {
        let line = |folder: &Path, file: &str, device: DeviceNumber| match lines.get(&(folder.join(file), device)) {
            Some(outcome) => outcome.clone(),
            None => Err(Reason::ReadBackMismatch(format!("{} was not set", folder.join(file).display()))),
        };
        let mut outcome = Ok(());
        if lying.placed.limits.any() {
            outcome = line(&lying.cgroup.path, MAX, lying.placed.device);
        }
        if lying.placed.weight.is_some() {
            for disk in &lying.placed.disks {
                let honours = disks.get(disk).map_or(Ok(()), |basis| basis.as_ref().map(drop).map_err(Clone::clone));
                let weight = || line(&lying.cgroup.path, self.weight_file(), *disk);
                outcome =
                    outcome.and(honours).and_then(|()| weight()).and_then(|()| self.judge_class(lying, *disk, lines));
            }
        }
        match outcome {
            Ok(()) => State::Enforced,
            Err(reason @ (Reason::CgroupNotFound | Reason::Calibrating(_))) => State::Pending(reason),
            Err(reason) => State::NotEnforced(reason),
        }
    }

    /// A class that no active pod is in has nothing to divide; its weight is set as soon as one is.
    fn judge_class(&self, lying: &Lying, disk: DeviceNumber, lines: &Outcomes) -> Result<(), Reason> {
        match &lying.cgroup.class {
            None => Ok(()),
            Some(_) if !self.config.qos_classes => Err(Reason::ClassNotManaged),
            Some(class) => lines.get(&(class.join(self.weight_file()), disk)).cloned().unwrap_or(Ok(())),
        }
    }
}

/// A tenant with its place.
#[derive(Debug)]
struct Lying {
    placed: Placed,
    disks: BTreeSet<Disk>,
    cgroup: PodCgroup,
}

impl Lying {
    /// As the monitor sees it.
    fn user(&self, tenant: &Tenant) -> User {
        User {
            publication: publication(tenant),
            cgroup: self.cgroup.path.clone(),
            pool: tenant.pool.clone(),
            disks: self.placed.disks.clone(),
        }
    }
}

fn publication(tenant: &Tenant) -> Publication {
    (tenant.volume.clone(), tenant.target.clone())
}

fn say((volume, target): &Publication, state: &State) {
    match state {
        State::NotEnforced(reason) => {
            tracing::warn!(%volume, target, %reason, "a pod has not the share or limits that its volume asks for");
        }
        State::Pending(reason) => tracing::info!(%volume, target, %reason, "weight and limits wait"),
        State::Enforced => tracing::info!(%volume, target, "weight and limits are enforced"),
        State::NotAsked => {}
    }
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
