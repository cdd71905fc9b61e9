//! The calibrations of this node's disks, on file in the state folder.

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::super::cost::CostModel;
use super::{Found, Identity};

const FILE: &str = "io-models.json";

/// What was found out about a disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Calibration {
    /// What it is good for.
    pub identity: Identity,
    /// The model.
    pub speed: CostModel,
    /// What two with weights 1:4 got at the end.
    pub ratio: f64,
    /// Operations in the disk's queue meanwhile.
    pub queue: f64,
    /// 4 KiB reads a second without control.
    pub read_iops: f64,
    /// 4 KiB writes a second without control.
    pub write_iops: f64,
    /// When.
    pub measured: Timestamp,
}

impl Calibration {
    /// Of a disk, now.
    #[must_use]
    pub fn new(identity: Identity, found: Found) -> Self {
        let Found { model, ratio, queue, read_iops, write_iops } = found;
        Self { identity, speed: model, ratio, queue, read_iops, write_iops, measured: Timestamp::now() }
    }
}

/// All of them.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    held: Vec<Calibration>,
}

impl Store {
    /// Reads the file. One that cannot be read or understood is told of and replaced by the next calibration: it can all
    /// be measured again.
    #[must_use]
    pub fn open(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        let held = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        };
        let held = held.unwrap_or_else(|error| {
            tracing::error!(path = %path.display(), %error, "the calibrations cannot be read: disks are calibrated anew");
            Vec::new()
        });
        Self { path, held }
    }

    /// What is known of a disk, on this kernel, with this scheduler.
    #[must_use]
    pub fn get(&self, identity: &Identity) -> Option<&Calibration> {
        self.held.iter().find(|held| held.identity == *identity)
    }

    /// Replaces what was known of the disk. It is on disk when this returns.
    ///
    /// # Errors
    /// The file cannot be written; the calibration is used all the same, until the driver ends.
    pub fn put(&mut self, calibration: Calibration) -> io::Result<()> {
        self.held.retain(|held| held.identity.disk != calibration.identity.disk);
        self.held.push(calibration);
        let text = serde_json::to_vec_pretty(&self.held).map_err(io::Error::other)?;
        crate::durable::replace(&self.path, &text, "calibrations")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calibration(disk: &str, kernel: &str, iops: u64) -> Calibration {
        let identity =
            Identity { disk: disk.to_owned(), sectors: 1, scheduler: "none".to_owned(), kernel: kernel.to_owned() };
        let model = CostModel {
            read_bps: 1,
            read_sequential_iops: iops,
            read_random_iops: iops,
            write_bps: 1,
            write_sequential_iops: iops,
            write_random_iops: iops,
        };
        Calibration::new(identity, Found { model, ratio: 4.0, queue: 0.3, read_iops: 600.0, write_iops: 600.0 })
    }

    #[test]
    fn a_calibration_is_of_a_disk_and_a_kernel_and_the_next_one_replaces_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path());
        for calibration in [calibration("a", "6.1", 1), calibration("b", "6.1", 2), calibration("a", "6.12", 3)] {
            store.put(calibration).unwrap();
        }
        let store = Store::open(dir.path());
        let iops = |disk: &str, kernel: &str| {
            store.get(&calibration(disk, kernel, 0).identity).map(|found| found.speed.read_random_iops)
        };
        assert_eq!((iops("a", "6.1"), iops("a", "6.12"), iops("b", "6.1")), (None, Some(3), Some(2)));
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(Store::open(dir.path()).held, []);
    }
}
