//! How a node divides its disks among pods.

use serde::Deserialize;

use crate::io::cost::CostModel;

/// The key `io`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Io {
    /// What enforces `ioWeight`.
    pub weights: Weights,
    /// Whether the QoS classes of burstable and best-effort pods weigh what their active pods weigh together.
    pub qos_classes: bool,
    /// When disks without a model are measured.
    pub calibration: CalibrationMode,
    /// Cost models of disks, for iocost; they go before measured ones.
    pub models: Vec<DiskModel>,
}

impl Default for Io {
    fn default() -> Self {
        Self {
            weights: Weights::Iocost,
            qos_classes: true,
            calibration: CalibrationMode::Automatic,
            models: Vec::new(),
        }
    }
}

/// What enforces weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Weights {
    /// The kernel's cost-based controller; each disk needs a model.
    Iocost,
    /// The scheduler BFQ.
    Bfq,
    /// Nothing: weights are taken and reported as not enforced.
    Off,
}

/// When disks without a model are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CalibrationMode {
    /// When a pod's weight needs it and nobody uses the disk; and on request.
    Automatic,
    /// By `quarry-driver calibrate` alone.
    OnRequest,
}

/// A disk's cost model.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskModel {
    /// Its name in `/sys/block`, or a path that leads to its node.
    pub disk: String,
    /// A little less than it can.
    pub speed: CostModel,
}

/// What is wrong with it: key, value, and what would be right.
pub(super) fn check(io: &Io) -> Result<(), (String, String, &'static str)> {
    for (index, model) in io.models.iter().enumerate() {
        let key = |name: &str| format!("models[{index}].{name}");
        let is_path = model.disk.starts_with("/dev/");
        if model.disk.is_empty() || (!is_path && model.disk.contains('/')) {
            return Err((key("disk"), model.disk.clone(), "a disk's name such as nvme0n1, or a path below /dev"));
        }
        if io.models.iter().take(index).any(|earlier| earlier.disk == model.disk) {
            return Err((key("disk"), model.disk.clone(), "a disk that no other model is of"));
        }
        if let Some((name, number)) = model.speed.numbers().into_iter().find(|(_, number)| *number == 0) {
            return Err((key(&format!("speed.{name}")), number.to_string(), "at least 1"));
        }
    }
    Ok(())
}
