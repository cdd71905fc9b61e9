//! From who has which volume to what every cgroup is to show. Pure.
//!
//! **Rules.** A weight is of a pod on a whole disk: those of its volumes there add up, volumes without one add nothing, and
//! a pod none of whose volumes has one counts the default. Siblings compete: guaranteed pods with the QoS classes, so a
//! class weighs what its active pods weigh together. A limit is of a pod on the volume's own device.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::device_number::DeviceNumber;
use crate::volume::io::{Limits, Weight};

use super::pods::PodCgroup;

/// A volume at a pod whose cgroup was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The pod.
    pub pod: String,
    /// What its volume asks for.
    pub weight: Option<Weight>,
    /// The same.
    pub limits: Limits,
    /// The volume's device.
    pub device: DeviceNumber,
    /// The disks below it.
    pub disks: BTreeSet<DeviceNumber>,
}

/// A cgroup's folder with a device.
pub type Place = (PathBuf, DeviceNumber);

/// What is to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Weights of pods on disks.
    pub weights: BTreeMap<Place, Weight>,
    /// Weights of QoS classes on disks.
    pub classes: BTreeMap<Place, Weight>,
    /// Limits of pods on volumes' devices.
    pub limits: BTreeMap<Place, Limits>,
}

/// Plans for all pods of the node, by UID. `active` tells which of them use a disk these seconds.
#[must_use]
pub fn plan(
    placed: &[Placed],
    pods: &BTreeMap<String, PodCgroup>,
    active: impl Fn(&str, DeviceNumber) -> bool,
) -> Plan {
    let mut plan = Plan::default();
    let mut shares: BTreeMap<(&str, DeviceNumber), Weight> = BTreeMap::new();
    for one in placed {
        let Some(pod) = pods.get(&one.pod) else { continue };
        if one.limits.any() {
            plan.limits.insert((pod.path.clone(), one.device), one.limits);
        }
        for disk in one.weight.iter().flat_map(|_| &one.disks) {
            let share = one.weight.unwrap_or(Weight::DEFAULT);
            shares.entry((&one.pod, *disk)).and_modify(|sum| *sum = sum.plus(share)).or_insert(share);
        }
    }
    let disks: BTreeSet<DeviceNumber> = shares.keys().map(|(_, disk)| *disk).collect();
    for ((uid, disk), share) in &shares {
        if let Some(pod) = pods.get(*uid) {
            plan.weights.insert((pod.path.clone(), *disk), *share);
        }
    }
    for (uid, pod) in pods {
        let Some(class) = &pod.class else { continue };
        for disk in disks.iter().filter(|disk| active(uid, **disk)) {
            let share = shares.get(&(uid.as_str(), *disk)).copied().unwrap_or(Weight::DEFAULT);
            let sum = plan.classes.entry((class.clone(), *disk));
            sum.and_modify(|sum| *sum = sum.plus(share)).or_insert(share);
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: DeviceNumber = DeviceNumber { major: 254, minor: 0 };
    const OTHER: DeviceNumber = DeviceNumber { major: 254, minor: 16 };

    fn placed(pod: &str, weight: Option<u32>, disks: &[DeviceNumber]) -> Placed {
        Placed {
            pod: pod.to_owned(),
            weight: weight.and_then(Weight::new),
            limits: Limits::default(),
            device: DeviceNumber { major: 253, minor: 300 },
            disks: disks.iter().copied().collect(),
        }
    }

    fn pods() -> BTreeMap<String, PodCgroup> {
        let pod = |name: &str, class: Option<&str>| {
            let folder = PathBuf::from(class.unwrap_or("")).join(name);
            (name.to_owned(), PodCgroup { path: folder, class: class.map(PathBuf::from) })
        };
        [pod("g", None), pod("a", Some("burstable")), pod("c", Some("burstable")), pod("e", Some("besteffort"))].into()
    }

    fn numbers(weights: &BTreeMap<Place, Weight>) -> Vec<(String, u32, u32)> {
        weights.iter().map(|((path, disk), weight)| (path.display().to_string(), disk.minor, weight.get())).collect()
    }

    #[test]
    fn weights_of_a_pods_volumes_on_one_disk_add_up() {
        let placed =
            [placed("a", Some(800), &[DISK]), placed("a", Some(100), &[DISK, OTHER]), placed("a", None, &[DISK])];
        let plan = plan(&placed, &pods(), |_, _| false);
        assert_eq!(numbers(&plan.weights), [("burstable/a".to_owned(), 0, 900), ("burstable/a".to_owned(), 16, 100)]);
        assert!(plan.classes.is_empty(), "an idle class is left as it is");
    }

    #[test]
    fn a_class_weighs_what_its_active_pods_weigh() {
        let placed = [placed("a", Some(800), &[DISK]), placed("c", Some(400), &[DISK])];
        let all = plan(&placed, &pods(), |_, _| true);
        assert_eq!(numbers(&all.classes), [("besteffort".to_owned(), 0, 100), ("burstable".to_owned(), 0, 1200)]);
        let some = plan(&placed, &pods(), |pod, _| pod == "a");
        assert_eq!(numbers(&some.classes), [("burstable".to_owned(), 0, 800)]);
    }

    #[test]
    fn a_volume_without_a_weight_changes_nothing_and_a_gone_pod_neither() {
        let placed = [placed("g", None, &[DISK]), placed("gone", Some(800), &[DISK])];
        assert_eq!(plan(&placed[..1], &pods(), |_, _| true), Plan::default());
        assert!(plan(&placed, &pods(), |_, _| true).weights.is_empty());
    }
}
