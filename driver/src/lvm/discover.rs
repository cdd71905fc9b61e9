//! Finds the physical volumes of this node and the volume groups on them.
//!
//! Invariant: a device that a tenant can write to is never taken for a physical volume, whatever is written on
//! it: no logical volume, nothing stacked on one, no loop device (kubelet shows raw block volumes through
//! them) unless the configuration names it and it lies over a file. A device that cannot be read, or hangs, is a
//! problem in the result, never "no physical volume", and delays no other.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::block_devices::{Candidate, ListError, Roots, Skipped, list_candidates};
use super::dm::{LoopBacking, loop_backing};
use super::metadata::LvmUuid;
use super::metadata::assemble::{self, Assembly, FoundVolume, GroupState, OrphanVolume, UnreadArea};
use super::metadata::read::{self, Fingerprint, Probe, PvOnDisk, ReadError};
use crate::device_number::DeviceNumber;

/// How often devices are read again whose areas disagree, as while a commit goes from one to the next.
const LOOKS: u32 = 5;
/// Time between two such looks.
const BETWEEN_LOOKS: Duration = Duration::from_millis(25);

/// Why nothing certain can be said of a device.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DeviceProblem {
    /// It cannot be read, or its label is damaged.
    #[error("cannot read the device")]
    Read(#[from] ReadError),
    /// It did not answer in time; one thread waits for it.
    #[error("the device does not answer: a read has been waiting for {} s", waiting.as_secs())]
    Hung {
        /// How long the oldest read has been waiting.
        waiting: Duration,
    },
    /// No thread could be started to read it.
    #[error("cannot start a thread to read the device")]
    Thread(#[source] Arc<std::io::Error>),
    /// The node in `/dev` is missing or is another device.
    #[error("{what}")]
    Node {
        /// What is wrong with it.
        what: String,
    },
    /// The configuration names it, but it must not be used.
    #[error("the configuration names this device, but {why}")]
    Refused {
        /// The reason.
        why: String,
    },
    /// Two devices carry one physical volume's identifier: a copy, or two paths to one disk.
    #[error("physical volume {uuid} is on {} and on {}: give the right one in the class's devices", first.display(), second.display())]
    Duplicate {
        /// The identifier.
        uuid: LvmUuid,
        /// One device.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
}

/// A device of which nothing certain can be said.
#[derive(Debug, Clone)]
pub struct ProblemDevice {
    /// The device.
    pub device: PathBuf,
    /// Why.
    pub problem: DeviceProblem,
}

/// What a scan found.
#[derive(Debug, Clone, Default)]
pub struct Discovery {
    /// The volume groups, ordered by identifier. Two of them can have one name.
    pub groups: Vec<GroupState>,
    /// The device of each physical volume found, in a group or not.
    pub devices: BTreeMap<LvmUuid, PathBuf>,
    /// Fingerprint of each of these, to see later whether it changed; left out where an area is not readable.
    pub fingerprints: HashMap<PathBuf, Fingerprint>,
    /// Physical volumes in no group.
    pub orphans: Vec<OrphanVolume>,
    /// Unreadable metadata on these.
    pub unattributed: Vec<UnreadArea>,
    /// Devices of which nothing certain can be said: any group might have a physical volume there.
    pub problems: Vec<ProblemDevice>,
    /// Devices left out on purpose.
    pub skipped: Vec<Skipped>,
}

impl Discovery {
    /// The group with that identifier.
    #[must_use]
    pub fn by_uuid(&self, uuid: LvmUuid) -> Option<&GroupState> {
        self.groups.iter().find(|state| state.group.uuid == uuid)
    }

    /// All groups with that name; more than one means that the name alone does not say which is meant.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Vec<&GroupState> {
        self.groups.iter().filter(|state| state.group.name == name).collect()
    }

    /// Whether every device was read, so that a group not found here is not on this node. What a found group
    /// lacks is in its own [`assemble::Completeness`].
    #[must_use]
    pub fn saw_everything(&self) -> bool {
        self.problems.is_empty() && self.unattributed.is_empty() && !self.orphans.iter().any(|orphan| orphan.in_use)
    }
}

/// Reads devices, each on a thread of its own that may be lost to a dead disk.
#[derive(Debug, Clone)]
pub struct Scanner {
    roots: Roots,
    limit: Duration,
    slots: Arc<Mutex<HashMap<PathBuf, Arc<Slot>>>>,
}

/// At most one read per device, so that a hung device costs one thread, however often it is asked for.
#[derive(Debug, Default)]
struct Slot {
    gate: Arc<tokio::sync::Mutex<()>>,
    since: Mutex<Option<Instant>>,
}

/// The right to read a device, given back however the read ends.
struct Turn {
    slot: Arc<Slot>,
    _permit: tokio::sync::OwnedMutexGuard<()>,
}

impl Turn {
    fn begin(slot: &Arc<Slot>, permit: tokio::sync::OwnedMutexGuard<()>) -> Self {
        *slot.since.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Self { slot: Arc::clone(slot), _permit: permit }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *self.slot.since.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Scanner {
    /// A scanner of this machine that waits at most `limit` for one device.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        Self::with_roots(Roots::default(), limit)
    }

    /// A scanner that looks elsewhere than in `/sys` and `/dev`.
    #[must_use]
    pub fn with_roots(roots: Roots, limit: Duration) -> Self {
        Self { roots, limit, slots: Arc::default() }
    }

    /// Looks at every block device that may be a physical volume; with `configured` paths, at those alone.
    ///
    /// # Errors
    /// [`ListError`] if the list of devices itself cannot be had. A device's own trouble is in the result.
    pub async fn scan(&self, configured: &[PathBuf]) -> Result<Discovery, ListError> {
        self.scan_among(configured, None).await
    }

    /// Looks again at these devices alone, known from an earlier scan: after a change, without going through all
    /// devices of the node. Each is judged again, because a number or name can belong to another device by now.
    ///
    /// # Errors
    /// [`ListError`] as for [`Self::scan`].
    pub async fn reread(&self, devices: &[PathBuf], configured: &[PathBuf]) -> Result<Discovery, ListError> {
        self.scan_among(configured, Some(devices.to_vec())).await
    }

    async fn scan_among(&self, configured: &[PathBuf], only: Option<Vec<PathBuf>>) -> Result<Discovery, ListError> {
        let roots = self.roots.clone();
        let paths = configured.to_vec();
        let listing = tokio::task::spawn_blocking(move || list_candidates(&roots, &paths, only.as_deref()));
        let listing = listing.await.map_err(|_| ListError::Interrupted)??;
        let mut discovery = self.look(listing.candidates).await;
        discovery.problems.extend(listing.problems);
        discovery.skipped = listing.skipped;
        Ok(discovery)
    }

    /// What now stands in a device's metadata headers.
    ///
    /// # Errors
    /// [`DeviceProblem`] if that cannot be told.
    pub async fn fingerprint(&self, device: &Path) -> Result<Probe<Fingerprint>, DeviceProblem> {
        let path = device.to_owned();
        let probe = self.on_own_thread(device, move || read::read_header(&path)).await??;
        Ok(match probe {
            Probe::NotPhysicalVolume => Probe::NotPhysicalVolume,
            Probe::PhysicalVolume(header) => Probe::PhysicalVolume(header.fingerprint()?),
        })
    }

    async fn look(&self, candidates: Vec<Candidate>) -> Discovery {
        let mut discovery = self.look_once(&candidates).await;
        for _ in 1..LOOKS {
            let settled = discovery.groups.iter().all(|state| !state.completeness.may_settle());
            if settled {
                break;
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
            discovery = self.look_once(&candidates).await;
        }
        discovery
    }

    async fn look_once(&self, candidates: &[Candidate]) -> Discovery {
        let reads: Vec<_> = candidates
            .iter()
            .map(|candidate| {
                let scanner = self.clone();
                let candidate = candidate.clone();
                tokio::spawn(async move {
                    let outcome = scanner.probe(&candidate).await;
                    (candidate.path, outcome)
                })
            })
            .collect();
        let mut discovery = Discovery::default();
        let mut volumes: BTreeMap<LvmUuid, FoundVolume> = BTreeMap::new();
        let mut copies = Vec::new();
        for (read, candidate) in reads.into_iter().zip(candidates) {
            let (device, outcome) = read.await.unwrap_or_else(|_| {
                let what = "the read was interrupted".to_owned();
                (candidate.path.clone(), Err(DeviceProblem::Node { what }))
            });
            match outcome {
                Err(problem) => discovery.problems.push(ProblemDevice { device, problem }),
                Ok(Probe::NotPhysicalVolume) => {}
                Ok(Probe::PhysicalVolume(on_disk)) => {
                    let uuid = on_disk.label.pv_uuid;
                    if let Some(first) = volumes.get(&uuid) {
                        copies.push((uuid, first.device.clone(), device));
                    } else {
                        volumes.insert(uuid, FoundVolume { device, on_disk });
                    }
                }
            }
        }
        // Which of two is the right one cannot be told: neither is used.
        for (uuid, first, second) in copies {
            volumes.remove(&uuid);
            discovery.problems.push(ProblemDevice {
                device: second.clone(),
                problem: DeviceProblem::Duplicate { uuid, first, second },
            });
        }
        let volumes: Vec<FoundVolume> = volumes.into_values().collect();
        for volume in &volumes {
            let device = volume.device.clone();
            if let Ok(fingerprint) = volume.on_disk.fingerprint() {
                discovery.fingerprints.insert(device.clone(), fingerprint);
            }
            discovery.devices.insert(volume.on_disk.label.pv_uuid, device);
        }
        let Assembly { groups, unattributed, orphans } = assemble::assemble(&volumes);
        Discovery { groups, unattributed, orphans, ..discovery }
    }

    /// Reads one device, waiting at most for the scanner's limit.
    ///
    /// # Errors
    /// [`DeviceProblem`] if nothing certain can be said of it.
    pub async fn probe(&self, candidate: &Candidate) -> Result<Probe<PvOnDisk>, DeviceProblem> {
        let target = candidate.clone();
        self.on_own_thread(&candidate.path, move || read_candidate(&target)).await?
    }

    async fn on_own_thread<T: Send + 'static>(
        &self,
        device: &Path,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, DeviceProblem> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(slots.entry(device.to_owned()).or_default())
        };
        let hung = |slot: &Slot| {
            let since = slot.since.lock().unwrap_or_else(PoisonError::into_inner);
            let waiting = since.map_or(self.limit, |since| since.elapsed());
            DeviceProblem::Hung { waiting }
        };
        let begun = *slot.since.lock().unwrap_or_else(PoisonError::into_inner);
        if begun.is_some_and(|begun| begun.elapsed() >= self.limit) {
            return Err(hung(&slot));
        }
        let Ok(permit) = timeout(self.limit, Arc::clone(&slot.gate).lock_owned()).await else {
            return Err(hung(&slot));
        };
        let turn = Turn::begin(&slot, permit);
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let name = format!("read {}", device.file_name().unwrap_or_default().to_string_lossy());
        std::thread::Builder::new()
            .name(name)
            .spawn(move || {
                let outcome = work();
                drop(turn);
                // Nobody waits any more if the limit passed; the answer is then too old to use.
                drop(sender.send(outcome));
            })
            .map_err(|error| DeviceProblem::Thread(Arc::new(error)))?;
        match timeout(self.limit, receiver).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(_)) => {
                Err(DeviceProblem::Node { what: "the thread that read the device ended without an answer".to_owned() })
            }
            Err(_) => Err(hung(&slot)),
        }
    }
}

/// Checks the node in `/dev` and reads the device. Blocks.
fn read_candidate(candidate: &Candidate) -> Result<Probe<PvOnDisk>, DeviceProblem> {
    check_node(&candidate.path, candidate.number)?;
    for device in &candidate.loops {
        match loop_backing(device) {
            Ok(LoopBacking::File) => {}
            Ok(LoopBacking::Device(number)) => {
                return Err(DeviceProblem::Refused {
                    why: format!(
                        "{} is a loop device over block device {number}, which a tenant may write to",
                        device.display()
                    ),
                });
            }
            Err(error) => {
                return Err(DeviceProblem::Node {
                    what: format!("cannot find out what is under loop device {}: {error}", device.display()),
                });
            }
        }
    }
    Ok(read::read_physical_volume(&candidate.path)?)
}

fn check_node(path: &Path, number: DeviceNumber) -> Result<(), DeviceProblem> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let node = |what: String| DeviceProblem::Node { what };
    let metadata =
        std::fs::metadata(path).map_err(|error| node(format!("{} cannot be looked at: {error}", path.display())))?;
    if !metadata.file_type().is_block_device() {
        return Err(node(format!("{} is no block device", path.display())));
    }
    let found = DeviceNumber::from_rdev(metadata.rdev());
    if found != number {
        return Err(node(format!("{} is device {found}, not {number}", path.display())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn scanner() -> Scanner {
        Scanner::new(Duration::from_millis(200))
    }

    #[tokio::test]
    async fn a_hung_device_costs_one_thread_and_delays_no_other() {
        let scanner = scanner();
        let hung = Path::new("/dev/hung");
        let (release, blocked) = mpsc::channel::<()>();
        let begun = Instant::now();
        let outcome = scanner.on_own_thread(hung, move || blocked.recv().is_err()).await;
        assert!(matches!(outcome, Err(DeviceProblem::Hung { .. })), "{outcome:?}");
        assert!(begun.elapsed() < Duration::from_secs(5));
        // Asked again it answers at once, without a second thread.
        let begun = Instant::now();
        for _ in 0..100 {
            let again = scanner.on_own_thread(hung, || panic!("a second read was started")).await;
            assert!(matches!(again, Err(DeviceProblem::Hung { .. })), "{again:?}");
        }
        assert!(begun.elapsed() < Duration::from_millis(150), "{:?}", begun.elapsed());
        assert_eq!(scanner.on_own_thread(Path::new("/dev/well"), || 7).await.unwrap(), 7);
        // When the disk comes back, so does the device.
        drop(release);
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match scanner.on_own_thread(hung, || 8).await {
                Ok(answer) => break assert_eq!(answer, 8),
                Err(problem) => assert!(Instant::now() < deadline, "{problem}"),
            }
        }
    }

    #[tokio::test]
    async fn reads_of_one_device_wait_for_one_another() {
        let scanner = scanner();
        let device = Path::new("/dev/busy");
        let (release, blocked) = mpsc::channel::<()>();
        let first = scanner.on_own_thread(device, move || blocked.recv().is_err());
        let second = scanner.on_own_thread(device, || 2);
        let third = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(release);
        };
        let (first, second, ()) = tokio::join!(first, second, third);
        assert!(first.unwrap());
        assert_eq!(second.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_read_that_panics_is_a_problem() {
        let scanner = Scanner::new(Duration::from_secs(30));
        let device = Path::new("/dev/x");
        let outcome: Result<(), _> = scanner.on_own_thread(device, || panic!("as a test")).await;
        assert!(outcome.unwrap_err().to_string().contains("ended without an answer"));
        assert_eq!(scanner.on_own_thread(device, || 3).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_node_of_another_device_is_refused() {
        let number = DeviceNumber { major: 254, minor: 0 };
        for (path, what) in [("/dev/null", "is no block device"), ("/nonexistent", "cannot be looked at")] {
            let candidate = Candidate { path: PathBuf::from(path), number, loops: Vec::new() };
            let problem = scanner().probe(&candidate).await.unwrap_err();
            assert!(problem.to_string().contains(what), "{problem}");
        }
    }
}
