//! Lists the block devices that may be physical volumes, from `/sys`.
//!
//! Invariant: this reads `/sys` alone and opens no device, so it cannot hang on one; a device is left out only
//! for a reason that is given.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::discover::{DeviceProblem, ProblemDevice};
use crate::device_number::DeviceNumber;

/// Major numbers that the kernel fixed (`Documentation/admin-guide/devices.txt`).
const MAJOR_RAM: u32 = 1;
const MAJOR_FLOPPY: u32 = 2;
const MAJOR_LOOP: u32 = 7;
const MAJOR_CD: u32 = 11;

/// No device is stacked on more than this.
const MOST_BELOW: usize = 1024;

/// Where the kernel shows its devices.
#[derive(Debug, Clone)]
pub struct Roots {
    /// The mount point of sysfs.
    pub sysfs: PathBuf,
    /// The directory with the device nodes.
    pub dev: PathBuf,
}

impl Roots {
    /// The node of a device; the kernel writes `!` for a `/` in a device's name.
    fn node(&self, name: &str) -> PathBuf {
        self.dev.join(name.replace('!', "/"))
    }
}

impl Default for Roots {
    fn default() -> Self {
        Self { sysfs: PathBuf::from("/sys"), dev: PathBuf::from("/dev") }
    }
}

/// The list of devices cannot be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ListError {
    /// The directory of all block devices is not readable.
    #[error("cannot list the block devices in {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        source: Arc<io::Error>,
    },
    /// The driver is shutting down.
    #[error("listing the block devices was interrupted")]
    Interrupted,
}

/// A device that may be a physical volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its node.
    pub path: PathBuf,
    /// Its number, which the node must have.
    pub number: DeviceNumber,
    /// Loop devices that it is, or lies on, all named by the configuration: each must lie over a file.
    pub loops: Vec<PathBuf>,
}

/// Why a device is not looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It is a logical volume or a layer of one.
    LogicalVolume,
    /// It lies on a logical volume.
    OnLogicalVolume(String),
    /// It is a loop device, or lies on one, that the configuration does not name.
    Loop(String),
    /// It lies in memory.
    Memory,
    /// A floppy or a compact disc.
    Removable,
    /// It has no sectors, or no medium.
    Empty,
    /// It is a part of this device.
    PartOf(String),
    /// The configuration names other devices.
    NotConfigured,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LogicalVolume => f.write_str("it is a logical volume, which tenants write to"),
            Self::OnLogicalVolume(below) => write!(f, "it lies on the logical volume {below}, which tenants write to"),
            Self::Loop(name) => write!(f, "{name} is a loop device, through which tenants may write"),
            Self::Memory => f.write_str("it lies in memory"),
            Self::Removable => f.write_str("it is a removable medium"),
            Self::Empty => f.write_str("it has no sectors"),
            Self::PartOf(holder) => write!(f, "it is a part of {holder}"),
            Self::NotConfigured => f.write_str("the configuration names other devices"),
        }
    }
}

/// A device that is not looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Its name in `/sys`.
    pub name: String,
    /// Why.
    pub reason: Reason,
}

/// What there is.
#[derive(Debug, Default)]
pub struct Listing {
    /// Devices to look at.
    pub candidates: Vec<Candidate>,
    /// Devices left out.
    pub skipped: Vec<Skipped>,
    /// Devices of which nothing certain can be said.
    pub problems: Vec<ProblemDevice>,
}

/// Lists the devices that may be physical volumes; with `configured` paths, among those alone. With `only`, no
/// other nodes are looked at; one that is gone is then in no list.
///
/// # Errors
/// [`ListError`] if there is no list at all.
pub fn list_candidates(roots: &Roots, configured: &[PathBuf], only: Option<&[PathBuf]>) -> Result<Listing, ListError> {
    let mut listing = Listing::default();
    let allowed = if configured.is_empty() { None } else { Some(resolve(configured, &mut listing.problems)) };
    list_among(roots, allowed.as_ref(), only, &mut listing)?;
    Ok(listing)
}

/// The numbers behind configured paths, links followed. A path without a device is a problem: what should be
/// there is not.
fn resolve(configured: &[PathBuf], problems: &mut Vec<ProblemDevice>) -> BTreeMap<DeviceNumber, PathBuf> {
    let mut allowed = BTreeMap::new();
    for path in configured {
        let what = match std::fs::metadata(path) {
            Ok(metadata) if metadata.file_type().is_block_device() => {
                allowed.insert(DeviceNumber::from_rdev(metadata.rdev()), path.clone());
                continue;
            }
            Ok(_) => "the configuration names it, but it is no block device".to_owned(),
            Err(error) => format!("the configuration names it, but it cannot be found: {error}"),
        };
        problems.push(ProblemDevice { device: path.clone(), problem: DeviceProblem::Node { what } });
    }
    allowed
}

fn list_among(
    roots: &Roots,
    allowed: Option<&BTreeMap<DeviceNumber, PathBuf>>,
    only: Option<&[PathBuf]>,
    listing: &mut Listing,
) -> Result<(), ListError> {
    let tree = Tree { classes: roots.sysfs.join("class/block"), allowed };
    let failed = |source: io::Error| ListError::Directory { path: tree.classes.clone(), source: Arc::new(source) };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&tree.classes).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    for name in names {
        let path = roots.node(&name);
        if only.is_some_and(|only| !only.contains(&path)) {
            continue;
        }
        match tree.judge(&name) {
            Ok((number, Verdict::LookAt { loops })) => {
                let loops = loops.iter().map(|name| roots.node(name)).collect();
                listing.candidates.push(Candidate { path, number, loops });
            }
            Ok((number, Verdict::LeaveOut(reason))) => {
                if let Some(configured) = allowed.and_then(|allowed| allowed.get(&number)) {
                    let why = reason.to_string();
                    listing
                        .problems
                        .push(ProblemDevice { device: configured.clone(), problem: DeviceProblem::Refused { why } });
                }
                listing.skipped.push(Skipped { name, reason });
            }
            // Gone since the list was made: that is certain, and no trouble.
            Err(_) if !tree.exists(&name) => {}
            Err(error) => listing.problems.push(ProblemDevice {
                device: path,
                problem: DeviceProblem::Node { what: format!("cannot find out what kind of device it is: {error}") },
            }),
        }
    }
    Ok(())
}

/// What `/sys` says of the devices.
struct Tree<'a> {
    classes: PathBuf,
    allowed: Option<&'a BTreeMap<DeviceNumber, PathBuf>>,
}

impl Tree<'_> {
    fn exists(&self, name: &str) -> bool {
        !matches!(self.classes.join(name).try_exists(), Ok(false))
    }

    /// An attribute's text; `None` if the device has no such attribute.
    fn attribute(&self, name: &str, attribute: &str) -> io::Result<Option<String>> {
        let path = self.classes.join(name).join(attribute);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim_end().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
        }
    }

    fn required(&self, name: &str, attribute: &str) -> io::Result<String> {
        self.attribute(name, attribute)?.ok_or_else(|| {
            let place = self.classes.join(name).join(attribute);
            io::Error::new(io::ErrorKind::NotFound, format!("{} is missing", place.display()))
        })
    }

    fn number(&self, name: &str) -> io::Result<DeviceNumber> {
        let text = self.required(name, "dev")?;
        text.parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// The names in one of the device's directories; none if it has no such directory.
    fn names(&self, name: &str, directory: &str) -> io::Result<Vec<String>> {
        let path = self.classes.join(name).join(directory);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display())));
            }
        };
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn is_logical_volume(&self, name: &str) -> io::Result<bool> {
        let uuid = self.attribute(name, "dm/uuid")?;
        Ok(uuid.is_some_and(|uuid| uuid.starts_with("LVM-")))
    }

    /// The devices directly below: what it is stacked on, and the disk that it is a partition of.
    fn below(&self, name: &str) -> io::Result<Vec<String>> {
        let mut below = self.names(name, "slaves")?;
        if self.attribute(name, "partition")?.is_some() {
            let real = self.classes.join(name).canonicalize()?;
            let disk = real.parent().and_then(Path::file_name);
            let disk = disk.ok_or_else(|| io::Error::other("a partition without a disk"))?;
            below.push(disk.to_string_lossy().into_owned());
        }
        Ok(below)
    }

    fn judge(&self, name: &str) -> io::Result<(DeviceNumber, Verdict)> {
        let number = self.number(name)?;
        Ok((number, self.verdict(name, number)?))
    }

    fn verdict(&self, name: &str, number: DeviceNumber) -> io::Result<Verdict> {
        if self.is_logical_volume(name)? {
            return Ok(Verdict::LeaveOut(Reason::LogicalVolume));
        }
        if number.major == MAJOR_RAM || name.starts_with("zram") {
            return Ok(Verdict::LeaveOut(Reason::Memory));
        }
        if number.major == MAJOR_FLOPPY || number.major == MAJOR_CD {
            return Ok(Verdict::LeaveOut(Reason::Removable));
        }
        let loops = match self.without_tenants(name, number)? {
            Verdict::LeaveOut(reason) => return Ok(Verdict::LeaveOut(reason)),
            Verdict::LookAt { loops } => loops,
        };
        if self.required(name, "size")?.parse() == Ok(0_u64) {
            return Ok(Verdict::LeaveOut(Reason::Empty));
        }
        for holder in self.names(name, "holders")? {
            // A physical volume in use is held by its logical volumes.
            if !self.is_logical_volume(&holder)? {
                return Ok(Verdict::LeaveOut(Reason::PartOf(holder)));
            }
        }
        if self.is_named(number) || self.allowed.is_none() {
            return Ok(Verdict::LookAt { loops });
        }
        Ok(Verdict::LeaveOut(Reason::NotConfigured))
    }

    /// Whether the configuration names the device.
    fn is_named(&self, number: DeviceNumber) -> bool {
        self.allowed.is_some_and(|allowed| allowed.contains_key(&number))
    }

    /// Leaves out what a tenant may write to: a logical volume or an unnamed loop device, in it or anywhere below.
    fn without_tenants(&self, name: &str, number: DeviceNumber) -> io::Result<Verdict> {
        let mut loops = Vec::new();
        let mut seen = BTreeSet::new();
        let mut open = vec![(name.to_owned(), number)];
        while let Some((device, number)) = open.pop() {
            if !seen.insert(device.clone()) {
                continue;
            }
            if seen.len() > MOST_BELOW {
                return Err(io::Error::other("it is stacked on more devices than can be followed"));
            }
            if self.is_logical_volume(&device)? {
                return Ok(Verdict::LeaveOut(Reason::OnLogicalVolume(device)));
            }
            for below in self.below(&device)? {
                let number = self.number(&below)?;
                open.push((below, number));
            }
            // A partition of a loop device has another major number and the disk below it.
            if number.major == MAJOR_LOOP {
                if !self.is_named(number) {
                    return Ok(Verdict::LeaveOut(Reason::Loop(device)));
                }
                loops.push(device);
            }
        }
        Ok(Verdict::LookAt { loops })
    }
}

/// Whether a device is looked at.
enum Verdict {
    /// It is; these loop devices must lie over files.
    LookAt { loops: Vec<String> },
    /// It is not.
    LeaveOut(Reason),
}

#[cfg(test)]
mod tests;
