//! Writes the lines of cgroups' files as the plan has them, takes back those of ours that it has not, and reads back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::config::Weights;
use crate::device_number::DeviceNumber;
use crate::telemetry::chain;
use crate::volume::io::Weight;

use super::control::{Control, Work};
use super::lines::{self, MAX};
use super::plan::Plan;
use super::pods::PodCgroup;
use super::state::Reason;

/// What came of each line: a cgroup's file, a device.
pub(super) type Outcomes = BTreeMap<(PathBuf, DeviceNumber), Result<(), Reason>>;

impl Control {
    /// The file with a cgroup's weights.
    pub(super) fn weight_file(&self) -> &'static str {
        if self.config.weights == Weights::Bfq { "io.bfq.weight" } else { "io.weight" }
    }

    /// The kernel takes 1 to 1000 for BFQ.
    fn written(&self, weight: Weight) -> String {
        let number = if self.config.weights == Weights::Bfq { weight.get().min(1000) } else { weight.get() };
        number.to_string()
    }

    /// Writes the lines that are not there, takes back those of ours that should not be, and sees what the kernel shows.
    pub(super) fn settle(
        &self,
        work: &mut Work,
        plan: &Plan,
        pods: &BTreeMap<String, PodCgroup>,
        repaired: &mut u64,
    ) -> Result<Outcomes, Reason> {
        let file = self.weight_file();
        let weights = plan.weights.iter().chain(&plan.classes);
        let mut wanted: BTreeMap<(PathBuf, DeviceNumber), String> =
            weights.map(|((folder, disk), weight)| ((folder.join(file), *disk), self.written(*weight))).collect();
        let limits = plan.limits.iter();
        wanted.extend(limits.map(|((folder, device), limits)| ((folder.join(MAX), *device), lines::limits(limits))));

        // A class without active pods keeps what it has, as long as it has pods.
        let classes: BTreeSet<PathBuf> = pods.values().filter_map(|pod| Some(pod.class.as_ref()?.join(file))).collect();
        let keeps = |path: &Path, device: &str| {
            classes.contains(path) && plan.weights.keys().any(|(_, disk)| disk.to_string() == device)
        };
        let is_wanted = |path: &PathBuf, device: &str| {
            device.parse().is_ok_and(|number| wanted.contains_key(&(path.clone(), number)))
        };
        let mut noted = work.notes.lines().clone();
        for (path, device) in work.notes.lines().clone() {
            if is_wanted(&path, &device) || keeps(&path, &device) {
                continue;
            }
            match lines::take_back(&path, &device) {
                Ok(()) => {
                    noted.remove(&(path.clone(), device.clone()));
                    work.settled.retain(|(settled, number)| *settled != path || number.to_string() != device);
                }
                Err(reason) => tracing::warn!(%reason, "a setting of ours cannot be taken back; it is tried again"),
            }
        }
        noted.extend(wanted.keys().map(|(path, device)| (path.clone(), device.to_string())));
        work.notes.set_lines(noted).map_err(|error| Reason::Failed(chain(&error)))?;

        let mut outcome = BTreeMap::new();
        for ((path, device), line) in wanted {
            let key = (path.clone(), device);
            let is = lines::shows(&path, device, &line);
            let settled = match is {
                Ok(true) => Ok(()),
                Ok(false) => {
                    // Changed behind our back, unless what should be has changed.
                    if work.settled.remove(&key) {
                        *repaired += 1;
                    }
                    lines::write(&path, device, &line).and_then(|()| match lines::shows(&path, device, &line)? {
                        true => Ok(()),
                        false => Err(Reason::ReadBackMismatch(format!(
                            "{} does not show `{line}` for {device} after it was written",
                            path.display()
                        ))),
                    })
                }
                Err(reason) => Err(reason),
            };
            if settled.is_ok() {
                work.settled.insert(key.clone());
            }
            outcome.insert(key, settled);
        }
        Ok(outcome)
    }
}
