//! What must be true after a power cut.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use quarry_tests::in_vm::{DriverUnderTest, lvm};
use serde_json::Value;
use tonic::{Code, Status};

use crate::client::{Client, Kind, device};
use crate::cuts::Cut;
use crate::history::{Act, History, Step};
use crate::layers::shell;
use crate::workload::contents;
use crate::{GROUP, STATE};

/// How far a volume was at the cut.
#[derive(Debug, Default)]
struct Fate {
    /// What was acknowledged, in this order.
    done: Vec<Act>,
    /// What was asked for and not acknowledged: it may have happened or not.
    open: Option<Act>,
    /// Whether the last acknowledgement is that of the cut's own moment.
    just_now: bool,
}

impl Fate {
    fn is(&self, act: Act) -> bool {
        self.done.contains(&act)
    }

    /// There for certain, gone for certain, or nobody knows.
    fn exists(&self) -> Option<bool> {
        match self.open {
            Some(Act::Create | Act::Delete) => None,
            _ => Some(self.is(Act::Create) && !self.is(Act::Delete)),
        }
    }
}

/// A driver on the disks as they were at a cut.
pub struct Verifier<'a> {
    driver: &'a mut DriverUnderTest,
    client: Client,
    fates: BTreeMap<&'static str, Fate>,
    log_before: usize,
    turn: usize,
}

impl<'a> Verifier<'a> {
    /// Starts the driver.
    pub async fn new(driver: &'a mut DriverUnderTest, history: &History, cut: &Cut) -> Self {
        let log_before = driver.log().len();
        driver.launch().unwrap();
        let client = Client::new(driver).await;
        Self { driver, client, fates: fates(&history.steps, cut), log_before, turn: cut.tick }
    }

    pub async fn verify(&self) {
        self.journal_opened();
        self.backups_are_whole();
        self.acknowledged_is_there().await;
        self.repeat_what_is_open().await;
        let expected = self.names(|fate| match fate.open {
            Some(Act::Create) => Some(true),
            Some(Act::Delete) => Some(false),
            _ => fate.exists(),
        });
        self.everyone_agrees_on(&expected).await;
        // What the cut is about, and one of the others in turn.
        let there: Vec<_> = self.fates.iter().filter(|(volume, _)| expected.contains(**volume)).collect();
        let staged = there.iter().filter(|(_, fate)| fate.is(Act::Stage)).map(|(volume, _)| **volume);
        let in_turn = staged.clone().nth(self.turn % staged.count().max(1));
        for (volume, fate) in there {
            if fate.just_now || fate.open == Some(Act::Stage) || Some(*volume) == in_turn {
                self.usable(volume, fate).await;
            }
        }
    }

    fn names(&self, chosen: impl Fn(&Fate) -> Option<bool>) -> BTreeSet<String> {
        let all = self.fates.iter().filter(|(_, fate)| chosen(fate) == Some(true));
        all.map(|(volume, _)| (*volume).to_owned()).collect()
    }

    /// Opened, and nothing of it found to be missing or damaged.
    fn journal_opened(&self) {
        let log = self.driver.log().split_off(self.log_before);
        assert!(!log.contains("the journal begins anew"), "{log}");
        let names = fs::read_dir(STATE).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let aside: Vec<String> = names.filter(|name| name.contains(".damaged.")).collect();
        assert_eq!(aside, Vec::<String>::new());
    }

    /// A copy of the metadata is there whole or not at all.
    fn backups_are_whole(&self) {
        for entry in fs::read_dir(format!("{STATE}/lvm-backup/{GROUP}")).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|ending| ending == "vg") {
                let text = fs::read_to_string(&path).unwrap();
                let text = text.trim_end();
                assert!(text.contains("\ncontents = ") && text.contains("\ncreation_time = "), "{path:?}: {text}");
            }
        }
    }

    async fn acknowledged_is_there(&self) {
        let listed: BTreeSet<String> = self.client.list().await.into_iter().collect();
        for (volume, fate) in &self.fates {
            if let Some(exists) = fate.exists() {
                assert_eq!(listed.contains(*volume), exists, "{volume}, of which {fate:?}, among {listed:?}");
            }
        }
        assert!(listed.iter().all(|name| self.fates.contains_key(name.as_str())), "unknown ones among {listed:?}");
    }

    /// As csi-provisioner and kubelet would.
    async fn repeat_what_is_open(&self) {
        for (volume, fate) in &self.fates {
            let mut done = self.repeat(volume, fate.open).await;
            for _ in 0..240 {
                match &done {
                    // The driver itself is still finishing it.
                    Err(status) if status.code() == Code::Aborted => {
                        tokio::time::sleep(Duration::from_millis(250)).await;
                        done = self.repeat(volume, fate.open).await;
                    }
                    _ => break,
                }
            }
            assert!(done.is_ok(), "{volume}, of which {fate:?}: {done:?}");
        }
    }

    async fn repeat(&self, volume: &str, act: Option<Act>) -> Result<(), Status> {
        match act {
            Some(Act::Create) => self.client.create(volume).await,
            Some(Act::Delete) => self.client.delete(volume).await,
            // After a reboot nothing is staged; what was begun is asked for again, or not at all.
            Some(Act::Stage) => self.client.stage(volume).await,
            Some(Act::Unstage) => self.client.unstage(volume).await,
            Some(Act::Write) | None => Ok(()),
        }
    }

    /// LVM, the journal and ListVolumes have the same volumes, each once and in order.
    async fn everyone_agrees_on(&self, expected: &BTreeSet<String>) {
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        assert_eq!(self.client.list().await, expected);
        let list = self.driver.volumes().unwrap();
        let mut recorded = Vec::new();
        for volume in list["volumes"].as_array().unwrap() {
            assert_eq!(
                (&volume["state"], &volume["recorded"]),
                (&Value::from("ready"), &Value::from(true)),
                "{list:#}"
            );
            recorded.push(volume["name"].as_str().unwrap());
        }
        recorded.sort_unstable();
        assert_eq!(recorded, expected, "{list:#}");
        let arguments =
            ["--devices", "/dev/mapper/power-pv", "--noheadings", "--separator", " ", "-o", "lv_name,lv_tags", GROUP];
        let rows = lvm("lvs", &arguments).unwrap().success().unwrap().stdout_text();
        let mut shown = Vec::new();
        for line in rows.lines() {
            let (name, tags) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
            let tags: Vec<&str> = tags.trim().split(',').collect();
            if tags.contains(&"quarry") {
                assert!(Kind::of(name).tags().iter().all(|tag| tags.contains(tag)), "{line}");
                shown.push(name);
            }
        }
        shown.sort_unstable();
        assert_eq!(shown, expected, "{rows}");
    }

    /// What is in the volume is what was acknowledged.
    async fn usable(&self, volume: &'static str, fate: &Fate) {
        let kind = Kind::of(volume);
        self.client.stage(volume).await.unwrap_or_else(|status| panic!("{volume}, of which {fate:?}: {status:?}"));
        let device = device(volume);
        if kind.block {
            // Nobody wrote to it: whatever is in it belonged to somebody else.
            shell(&format!("cmp -n $(blockdev --getsize64 {device}) {device} /dev/zero"));
        } else {
            let data = self.client.staging(volume).join("data");
            if fate.is(Act::Write) {
                assert_eq!(fs::read_to_string(&data).unwrap(), contents(volume), "{volume}");
            } else if fate.open != Some(Act::Write) {
                assert!(!data.exists());
            }
            fs::write(self.client.staging(volume).join("after"), "written after the cut").unwrap();
        }
        self.client.unstage(volume).await.unwrap();
        if !kind.block {
            if !Path::new(&device).exists() {
                let arguments = ["--devices", "/dev/mapper/power-pv", "-ay", &format!("{GROUP}/{volume}")];
                lvm("lvchange", &arguments).unwrap().success().unwrap();
            }
            shell(&format!("e2fsck -fn {device} > /run/fsck 2>&1 || {{ cat /run/fsck >&2; exit 1; }}"));
        }
    }
}

/// What was acknowledged and what was open at a cut. Requests for one volume followed one another.
fn fates(steps: &[Step], cut: &Cut) -> BTreeMap<&'static str, Fate> {
    let mut fates: BTreeMap<&'static str, Fate> = BTreeMap::new();
    for step in steps {
        let fate = fates.entry(step.volume).or_default();
        let last_tick = cut.tick + usize::from(cut.later);
        if step.replied.is_some_and(|replied| replied <= cut.tick) {
            fate.done.push(step.act);
            fate.just_now = step.replied == Some(cut.tick) && !cut.later;
        } else if step.begun <= last_tick {
            fate.open = Some(step.act);
        }
    }
    fates
}
