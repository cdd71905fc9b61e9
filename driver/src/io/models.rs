//! By what each disk is to honour weights: the configuration's model, what a calibration found, or nothing; and the disks
//! that are being calibrated, which passes leave alone.

use std::collections::BTreeMap;
use std::fs;

use crate::config::{CalibrationMode, Weights};
use crate::telemetry::chain;

use super::calibrate::{Calibration, Failure, Store, identity};
use super::control::Control;
use super::cost::{CostModel, Means};
use super::state::Reason;
use super::sysfs::Disk;

/// What is known of disks' speeds.
#[derive(Debug)]
pub(super) struct Models {
    store: Store,
    /// The disk that is being calibrated.
    held: Option<String>,
    /// Why a disk could not be calibrated.
    failures: BTreeMap<String, Failure>,
}

/// By what a disk is to honour weights.
#[derive(Debug, Clone)]
pub(super) struct Basis {
    pub(super) means: Means,
    /// Operations in the disk's own queue while its model was seen to hold; only of a model that a calibration found.
    pub(super) measured_queue: Option<f64>,
}

impl Models {
    pub(super) fn new(store: Store) -> Self {
        Self { store, held: None, failures: BTreeMap::new() }
    }

    /// The disk that is being calibrated.
    pub(super) fn held(&self) -> Option<&str> {
        self.held.as_deref()
    }
}

impl Control {
    /// By what a disk is to honour weights.
    pub(super) fn basis(&self, models: &Models, disk: &Disk) -> Result<Basis, Reason> {
        let given = |means| Basis { means, measured_queue: None };
        if models.held.as_ref() == Some(&disk.name) {
            return Err(Reason::Calibrating(disk.name.clone()));
        }
        match self.config.weights {
            Weights::Off => Err(Reason::Off),
            Weights::Bfq => Ok(given(Means::Bfq)),
            Weights::Iocost => {
                if let Some(model) = self.configured(disk) {
                    return Ok(given(Means::Iocost(model)));
                }
                let found = models.store.get(&identity(&self.places().sys, disk));
                let basis = |found: &Calibration| Basis {
                    means: Means::Iocost(found.speed),
                    measured_queue: Some(found.queue),
                };
                found.map(basis).ok_or_else(|| Reason::Uncalibrated {
                    disk: disk.name.clone(),
                    why: models.failures.get(&disk.name).map(ToString::to_string),
                })
            }
        }
    }

    fn configured(&self, disk: &Disk) -> Option<CostModel> {
        self.config.models.iter().find(|model| names(&model.disk, disk)).map(|model| model.speed)
    }

    /// Whether disks are calibrated without being asked.
    #[must_use]
    pub fn calibrates_by_itself(&self) -> bool {
        self.config.weights == Weights::Iocost && self.config.calibration == CalibrationMode::Automatic
    }

    /// From now on passes leave the disk to its calibration.
    ///
    /// # Errors
    /// One is being calibrated; weights are not by iocost here, or the configuration has a model; or somebody else controls
    /// the disk.
    pub fn begin_calibration(&self, disk: &Disk) -> Result<(), Failure> {
        if self.config.weights != Weights::Iocost {
            return Err(Failure::Failed(
                "io.weights in the configuration is not iocost, which alone needs a model".to_owned(),
            ));
        }
        if self.configured(disk).is_some() {
            return Err(Failure::Failed(format!(
                "io.models in the configuration has a model of disk {}; remove it there to have it measured",
                disk.name
            )));
        }
        let mut work = self.work();
        if work.left {
            return Err(Failure::Failed(Reason::PutBack.to_string()));
        }
        if let Some(held) = &work.models.held {
            return Err(Failure::Busy(held.clone()));
        }
        let foreign = self.files(disk).foreign(&work.notes).map_err(|reason| Failure::Failed(reason.to_string()))?;
        if let Some(reason) = foreign {
            return Err(Failure::Failed(reason.to_string()));
        }
        work.models.held = Some(disk.name.clone());
        Ok(())
    }

    /// Has iocost use a model on the disk that is being calibrated, or none.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn try_model(&self, disk: &Disk, model: Option<CostModel>) -> Result<(), Failure> {
        let mut work = self.work();
        let files = self.files(disk);
        let done = match model {
            Some(model) => files.set_up(Means::Iocost(model), &mut work.notes).map(drop),
            None => files.switch_off(&work.notes),
        };
        done.map_err(|reason| Failure::Failed(reason.to_string()))
    }

    /// What a calibration found; the next pass uses it. After a failure the disk is as it was before it, where nothing
    /// else is known of it.
    pub fn end_calibration(&self, disk: &Disk, outcome: &Result<Calibration, Failure>) {
        let mut work = self.work();
        work.models.held = None;
        match outcome {
            Ok(calibration) => {
                work.models.failures.remove(&disk.name);
                if let Err(error) = work.models.store.put(calibration.clone()) {
                    tracing::error!(disk = disk.name, %error, "the calibration cannot be kept: it is good until the driver ends");
                }
            }
            Err(failure) => {
                work.models.failures.insert(disk.name.clone(), failure.clone());
                if self.basis(&work.models, disk).is_err()
                    && let Some(note) = work.notes.disk(&disk.name).cloned()
                {
                    let put_back = self.files(disk).put_back(&note);
                    let forgotten = put_back
                        .map_err(|reason| reason.to_string())
                        .and_then(|()| work.notes.forget_disk(&disk.name).map_err(|error| chain(&error)));
                    if let Err(error) = forgotten {
                        tracing::error!(
                            disk = disk.name,
                            error,
                            "a disk cannot be put back as it was before its calibration"
                        );
                    }
                }
            }
        }
    }
}

/// Whether the configuration names this disk: by its name in `/sys/block`, or by a path that leads to it.
fn names(configured: &str, disk: &Disk) -> bool {
    if !configured.starts_with('/') {
        return configured == disk.name;
    }
    fs::canonicalize(configured).is_ok_and(|path| path.file_name().is_some_and(|name| *name == *disk.name))
}
