//! Sees, while pods are at work, whether weights hold: what the kernel shows of its settings does not tell that.
//!
//! **Rules.** With the right model tenants wait before the disk: much in the disk's own queue while less is charged than
//! time passes means that the disk is slower than its model, whatever the reason is: a burst credit that ended, work of a
//! thin pool that nobody is charged for, a model that was wrong. Neither of the two alone means anything. A pool whose
//! tenants sync their writes side by side works for them one after the other, and the weights do not reach there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::device_number::DeviceNumber;

use super::block_stat::{BlockStat, counted};
use super::control::{Places, Publication};
use super::keyed::{self, CHARGED};
use super::state::Reason;
use super::sysfs::Disk;

/// The shortest time between two looks.
const PERIOD: Duration = Duration::from_millis(1500);
/// Operations in the disk's queue that are many, on a disk of which no more is known.
const DEEP: f64 = 8.0;
/// Part of the time that is charged at least where the disk is saturated and the model right.
const LEAST_USAGE: f64 = 0.93;
/// How long it must be so.
const SURE: Duration = Duration::from_secs(5);
/// How long it is told after it was last so.
const REMEMBERED: Duration = Duration::from_secs(30);
/// Operations a second from which on a pod counts as one that writes, and a disk as one that is told to sync.
const BUSY: f64 = 5.0;

/// A publication with a weight.
#[derive(Debug, Clone)]
pub struct User {
    /// Which.
    pub publication: Publication,
    /// Its pod's cgroup.
    pub cgroup: PathBuf,
    /// Its volume's thin pool.
    pub pool: Option<String>,
    /// The disks below its volume.
    pub disks: BTreeSet<DeviceNumber>,
}

/// What was seen lately.
#[derive(Debug, Default)]
pub struct Monitor {
    disks: BTreeMap<String, DiskWatch>,
    pods: BTreeMap<(PathBuf, DeviceNumber), (PodStat, PodStat)>,
    /// Pools whose tenants sync side by side, with the time of the last sign.
    pools: BTreeMap<String, Instant>,
    pool_of: BTreeMap<Publication, String>,
    looked: Option<Instant>,
}

#[derive(Debug)]
struct DiskWatch {
    at: Instant,
    queued_ms: f64,
    charged_us: f64,
    flushes: f64,
    /// Since when the sign has been there.
    since: Option<Instant>,
    behind: Option<(Instant, String)>,
}

/// A pod's counters on a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct PodStat {
    writes: f64,
}

impl Monitor {
    /// Looks at the disks that are set up, with the queue that each had while its model was seen to hold, and at who uses
    /// them.
    pub fn look(&mut self, places: &Places, disks: &[(Disk, f64)], users: &[User], now: Instant) {
        if self.looked.is_some_and(|looked| now.saturating_duration_since(looked) < PERIOD) {
            return;
        }
        let passed = self.looked.map(|looked| now.saturating_duration_since(looked).as_secs_f64());
        self.looked = Some(now);
        let known: BTreeSet<&str> = disks.iter().map(|(disk, _)| disk.name.as_str()).collect();
        self.disks.retain(|name, _| known.contains(name.as_str()));
        let root = fs::read_to_string(places.cgroups.join("io.stat")).unwrap_or_default();
        let mut synced = BTreeSet::new();
        for (disk, calibrated_queue) in disks {
            // A disk that does not tell is not judged by old figures.
            let Ok(stat) = BlockStat::of_disk(&places.sys, &disk.name) else {
                self.disks.remove(&disk.name);
                continue;
            };
            let sample = DiskWatch {
                at: now,
                queued_ms: counted(stat.queued_ms),
                charged_us: keyed::number(&root, disk.number, CHARGED).unwrap_or_default(),
                flushes: counted(stat.flushes),
                since: None,
                behind: None,
            };
            let before = self.disks.insert(disk.name.clone(), sample);
            if let (Some(before), Some(watch)) = (before, self.disks.get_mut(&disk.name)) {
                if (watch.flushes - before.flushes) / watch.at.duration_since(before.at).as_secs_f64().max(0.001)
                    >= BUSY
                {
                    synced.insert(disk.number);
                }
                watch.compare(&before, DEEP.max(3.0 * calibrated_queue), disk);
            }
        }
        self.count(users);
        if let Some(passed) = passed {
            self.look_for_syncs(users, &synced, passed, now);
        }
    }

    /// Why weights do not hold on a disk, if they were seen not to.
    #[must_use]
    pub fn of_disk(&self, disk: &Disk) -> Option<Reason> {
        self.disks.get(&disk.name)?.behind.as_ref().map(|(_, what)| Reason::DiskBehindModel(what.clone()))
    }

    /// Why a publication's weight does not hold, if its pool's tenants sync side by side.
    #[must_use]
    pub fn of_publication(&self, publication: &Publication) -> Option<Reason> {
        let pool = self.pool_of.get(publication).filter(|pool| self.pools.contains_key(*pool))?;
        Some(Reason::SyncsShareThinPool(pool.clone()))
    }

    /// Reads the counters of every user's pod.
    fn count(&mut self, users: &[User]) {
        let mut pods = BTreeMap::new();
        for user in users {
            let Ok(text) = fs::read_to_string(user.cgroup.join("io.stat")) else { continue };
            for disk in &user.disks {
                let key = (user.cgroup.clone(), *disk);
                let now = PodStat::parse(&text, *disk);
                let before = self.pods.get(&key).map_or(now, |(_, last)| *last);
                pods.insert(key, (before, now));
            }
        }
        self.pods = pods;
    }

    fn look_for_syncs(&mut self, users: &[User], synced: &BTreeSet<DeviceNumber>, passed: f64, now: Instant) {
        let mut writers: BTreeMap<&str, BTreeSet<&PathBuf>> = BTreeMap::new();
        self.pool_of.clear();
        for user in users {
            let Some(pool) = &user.pool else { continue };
            self.pool_of.insert(user.publication.clone(), pool.clone());
            let writes = |disk: &DeviceNumber| {
                let counted = self.pods.get(&(user.cgroup.clone(), *disk));
                counted.is_some_and(|(before, now)| (now.writes - before.writes) / passed.max(0.001) >= BUSY)
            };
            if user.disks.iter().any(|disk| synced.contains(disk) && writes(disk)) {
                writers.entry(pool).or_default().insert(&user.cgroup);
            }
        }
        for (pool, _) in writers.into_iter().filter(|(_, pods)| pods.len() > 1) {
            self.pools.insert(pool.to_owned(), now);
        }
        self.pools.retain(|_, last| now.saturating_duration_since(*last) < REMEMBERED);
    }
}

impl DiskWatch {
    /// Carries on from what was seen before.
    fn compare(&mut self, before: &Self, deep: f64, disk: &Disk) {
        let passed = self.at.saturating_duration_since(before.at).as_secs_f64().max(0.001);
        let queue = (self.queued_ms - before.queued_ms) / (passed * 1e3);
        let usage = (self.charged_us - before.charged_us) / (passed * 1e6);
        let sign = queue > deep && usage < LEAST_USAGE;
        self.since = sign.then(|| before.since.unwrap_or(before.at));
        let sure = self.since.is_some_and(|since| self.at.saturating_duration_since(since) >= SURE);
        self.behind = if sure {
            let what = format!(
                "disk {} is slower than its model now: about {queue:.0} operations wait in it while {:.0} % of the time is \
                 charged, so that queues decide and not weights (a burst credit that ended, a thin pool's own work, or a \
                 wrong model)",
                disk.name,
                usage * 100.0
            );
            // Told in the same words while it lasts.
            Some((self.at, before.behind.as_ref().map_or(what, |(_, what)| what.clone())))
        } else {
            before.behind.clone().filter(|(last, _)| self.at.saturating_duration_since(*last) < REMEMBERED)
        };
    }
}

impl PodStat {
    fn parse(text: &str, disk: DeviceNumber) -> Self {
        Self { writes: keyed::number(text, disk, "wios").unwrap_or_default() }
    }
}

#[cfg(test)]
#[path = "monitor_tests.rs"]
mod tests;
