//! What is not in order with the volume groups and the journal, told from what is known: asking looks at no disk and runs no process.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::telemetry::health::{Check, Fault};

use super::{Engine, Reading};

/// A volume group as metrics show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupHealth {
    /// Its name.
    pub name: String,
    /// Whether it was there and read whole when it was last looked at.
    pub readable: bool,
}

impl Engine {
    /// Every group that a device class names, or that holds or held volumes.
    #[must_use]
    pub fn group_health(&self) -> Vec<GroupHealth> {
        let mut groups: BTreeMap<String, bool> = BTreeMap::new();
        for vg in self.groups.sights().missing.into_keys() {
            groups.insert(vg, false);
        }
        for group in self.groups.all() {
            groups.insert(group.name().to_owned(), group.condition().trouble.is_none());
        }
        groups.into_iter().map(|(name, readable)| GroupHealth { name, readable }).collect()
    }

    /// What a volume group is called in a list of faults: with the classes that it serves.
    fn subject(&self, vg: &str) -> String {
        let classes = self.config.device_classes.iter().filter(|class| class.volume_group == vg);
        let classes: Vec<&str> = classes.map(|class| class.name.as_str()).collect();
        match classes[..] {
            [] => format!("volume group {vg}"),
            [class] => format!("volume group {vg} of device class {class}"),
            _ => format!("volume group {vg} of device classes {}", classes.join(", ")),
        }
    }
}

impl Check for Engine {
    fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let sights = self.groups.sights();
        let gone = self.groups.gone();
        for (vg, since) in &sights.missing {
            if self.groups.by_name(vg).is_some() {
                continue;
            }
            let held = gone.iter().any(|(_, name)| name == vg);
            let mut reason = "it is not found on this node".to_owned();
            if held {
                reason.push_str("; it held volumes when it was last seen");
            }
            for (device, problem) in &sights.unread {
                reason.push_str(&format!("; {} could not be read: {problem}", device.display()));
            }
            faults.push(Fault { subject: self.subject(vg), reason, since: Some(since.elapsed()) });
        }
        for group in self.groups.all() {
            let condition = group.condition();
            if let Some((reason, since)) = condition.trouble {
                faults.push(Fault { subject: self.subject(group.name()), reason, since: Some(since) });
            }
            if !group.is_settled() {
                let reason = "commands of an earlier driver may still be at work on it".to_owned();
                faults.push(Fault { subject: self.subject(group.name()), reason, since: None });
            }
            // One that is still at it when its request is answered takes longer than it should.
            if let Some((verb, age)) = condition.command.filter(|(_, age)| *age > self.hangs_after()) {
                let reason = format!("the command lvm {verb} does not end");
                faults.push(Fault { subject: self.subject(group.name()), reason, since: Some(age) });
            }
            faults.extend(self.pool_faults(&group.known()));
        }
        let journal = self.journal.status();
        if let Some(reason) = journal.failing {
            let reason = format!("it cannot be written: {reason}");
            faults.push(Fault { subject: "journal".to_owned(), reason, since: None });
        }
        if let Some(age) = journal.write_under_way.filter(|age| *age > self.hangs_after()) {
            let reason = "its disk does not answer: a write does not end".to_owned();
            faults.push(Fault { subject: "journal".to_owned(), reason, since: Some(age) });
        }
        faults
    }
}

impl Engine {
    /// What the kernel last said against a group's thin pools.
    fn pool_faults(&self, reading: &Reading) -> Vec<Fault> {
        let classes = self.config.device_classes.iter().filter(|class| class.volume_group == reading.name());
        let pools: BTreeSet<&str> = classes.map(|class| class.thin_pool.as_str()).collect();
        let group = &reading.state().group;
        let faults = pools.into_iter().filter_map(|name| {
            let (trouble, since) = self.gauge.trouble(group.logical_volume(name)?.uuid)?;
            let subject = format!("thin pool {name} of {}", self.subject(reading.name()));
            Some(Fault { subject, reason: trouble.to_string(), since: Some(since) })
        });
        faults.collect()
    }

    fn hangs_after(&self) -> Duration {
        self.config.timeouts.answer()
    }
}
