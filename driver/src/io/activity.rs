//! Which pods use which disk: a class's cgroup weighs as much as those of its pods that do.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use crate::device_number::DeviceNumber;

use super::keyed;
use super::pods::PodCgroup;

/// How long a pod counts as active on a disk after it used it.
const ACTIVE: Duration = Duration::from_secs(6);

/// Who used which disk when.
#[derive(Debug, Default)]
pub(super) struct Activity {
    seen: BTreeMap<(String, DeviceNumber), (String, Instant)>,
}

impl Activity {
    /// Looks at the counters of all pods that are in a class.
    pub(super) fn look(&mut self, pods: &BTreeMap<String, PodCgroup>, disks: Vec<DeviceNumber>, now: Instant) {
        let mut seen = BTreeMap::new();
        for (uid, pod) in pods.iter().filter(|(_, pod)| pod.class.is_some()) {
            // A pod that just went away is not active.
            let Ok(text) = fs::read_to_string(pod.path.join("io.stat")) else { continue };
            for disk in &disks {
                let key = (uid.clone(), *disk);
                let Some(counted) = keyed::line(&text, *disk).map(counters) else { continue };
                let since = match self.seen.remove(&key) {
                    Some((before, since)) if before == counted => since,
                    _ => now,
                };
                seen.insert(key, (counted, since));
            }
        }
        self.seen = seen;
    }

    pub(super) fn is_active(&self, pod: &str, disk: DeviceNumber, now: Instant) -> bool {
        let seen = self.seen.get(&(pod.to_owned(), disk));
        seen.is_some_and(|(_, since)| now.saturating_duration_since(*since) < ACTIVE)
    }
}

/// The counters of what was done; iocost adds others that run on by themselves.
fn counters(line: &str) -> String {
    let fields = keyed::fields(line);
    ["rbytes", "wbytes", "rios", "wios"].map(|key| fields.get(key).copied().unwrap_or_default()).join(" ")
}
