//! What makes a disk honour weights: iocost with a cost model and a locked rate, or the scheduler BFQ.
//!
//! **Invariant.** A disk that somebody else has set up is left as it is. What was there before is noted before it is
//! changed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::keyed;
use super::notes::{DiskNote, Notes};
use super::state::Reason;
use super::sysfs::Disk;

/// A disk's speed as iocost's linear model has it (kernel documentation, cgroup-v2.rst, `io.cost.model`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CostModel {
    /// Bytes a second of sequential reads.
    pub read_bps: u64,
    /// Sequential 4 KiB reads a second.
    pub read_sequential_iops: u64,
    /// Random 4 KiB reads a second.
    pub read_random_iops: u64,
    /// Bytes a second of sequential writes.
    pub write_bps: u64,
    /// Sequential 4 KiB writes a second.
    pub write_sequential_iops: u64,
    /// Random 4 KiB writes a second.
    pub write_random_iops: u64,
}

impl CostModel {
    /// Each number with the configuration's name for it.
    #[must_use]
    pub fn numbers(&self) -> [(&'static str, u64); 6] {
        [
            ("readBps", self.read_bps),
            ("readSequentialIops", self.read_sequential_iops),
            ("readRandomIops", self.read_random_iops),
            ("writeBps", self.write_bps),
            ("writeSequentialIops", self.write_sequential_iops),
            ("writeRandomIops", self.write_random_iops),
        ]
    }

    fn line(&self) -> String {
        format!(
            "ctrl=user model=linear rbps={} rseqiops={} rrandiops={} wbps={} wseqiops={} wrandiops={}",
            self.read_bps,
            self.read_sequential_iops,
            self.read_random_iops,
            self.write_bps,
            self.write_sequential_iops,
            self.write_random_iops
        )
    }
}

/// The rate is locked at the model's: else iocost raises it until it controls nothing. The latencies control nothing
/// here; they make iocost's period 50 ms on every kind of disk.
const LOCKED: &str = "enable=1 ctrl=user rpct=0 rlat=25000 wpct=0 wlat=25000 min=100 max=100";

/// What enforces weights on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Means {
    /// iocost, with this model.
    Iocost(CostModel),
    /// The scheduler BFQ.
    Bfq,
}

/// A disk's files.
#[derive(Debug, Clone)]
pub struct DiskFiles<'a> {
    /// The root of cgroup v2.
    pub cgroups: &'a Path,
    /// sysfs.
    pub sys: &'a Path,
    /// The disk.
    pub disk: &'a Disk,
}

/// What was done to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// All was as it should be.
    Nothing,
    /// It was set up.
    SetUp,
    /// It had been set up, and somebody had changed it.
    Repaired,
}

impl DiskFiles<'_> {
    fn qos(&self) -> PathBuf {
        self.cgroups.join("io.cost.qos")
    }

    fn model(&self) -> PathBuf {
        self.cgroups.join("io.cost.model")
    }

    fn queue(&self, file: &str) -> PathBuf {
        self.sys.join("block").join(&self.disk.name).join("queue").join(file)
    }

    /// Makes the disk honour weights, and sees that it does.
    ///
    /// # Errors
    /// Why it does not.
    pub fn set_up(&self, means: Means, notes: &mut Notes) -> Result<Done, Reason> {
        match means {
            Means::Iocost(model) => self.set_up_iocost(model, notes),
            Means::Bfq => self.set_up_bfq(notes),
        }
    }

    /// Why the disk is left alone, where somebody else had set it up before anything was noted of it.
    ///
    /// # Errors
    /// The kernel has no iocost, or does not show its settings.
    pub fn foreign(&self, notes: &Notes) -> Result<Option<Reason>, Reason> {
        let text = read_if_there(&self.qos())?.ok_or(Reason::NoIocost)?;
        let qos = keyed::line(&text, self.disk.number).filter(|qos| keyed::contains(qos, "enable=1"));
        let noted = notes.disk(&self.disk.name).is_some();
        Ok(qos.filter(|_| !noted).map(|qos| self.is_foreign(qos)))
    }

    fn is_foreign(&self, qos: &str) -> Reason {
        Reason::ForeignQosSettings(format!("io.cost.qos of disk {} ({}) says {qos}", self.disk.name, self.disk.number))
    }

    /// Switches iocost off on a disk where it was switched on here.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn switch_off(&self, notes: &Notes) -> Result<(), Reason> {
        match notes.disk(&self.disk.name) {
            Some(_) => write(&self.qos(), &format!("{} enable=0", self.disk.number)),
            None => Ok(()),
        }
    }

    fn set_up_iocost(&self, model: CostModel, notes: &mut Notes) -> Result<Done, Reason> {
        let (qos_file, model_file) = (self.qos(), self.model());
        let Some(qos_text) = read_if_there(&qos_file)? else { return Err(Reason::NoIocost) };
        let model_text = read_if_there(&model_file)?.ok_or(Reason::NoIocost)?;
        let (qos, now) = (keyed::line(&qos_text, self.disk.number), keyed::line(&model_text, self.disk.number));
        let is_ours = |qos: Option<&str>, now: Option<&str>| {
            qos.is_some_and(|qos| keyed::contains(qos, LOCKED))
                && now.is_some_and(|now| keyed::contains(now, &model.line()))
        };
        let noted = notes.disk(&self.disk.name).is_some();
        if is_ours(qos, now) {
            return Ok(Done::Nothing);
        }
        if !noted {
            if let Some(qos) = qos.filter(|qos| keyed::contains(qos, "enable=1")) {
                return Err(self.is_foreign(qos));
            }
            let note = DiskNote {
                qos: qos.map(str::to_owned),
                model: now.map(str::to_owned),
                scheduler: None,
                low_latency: None,
            };
            notes.note_disk(&self.disk.name, note).map_err(|error| Reason::Failed(error.to_string()))?;
        }
        // The model first: enabled without it, iocost would begin with a guess.
        write(&model_file, &format!("{} {}", self.disk.number, model.line()))?;
        write(&qos_file, &format!("{} {LOCKED}", self.disk.number))?;
        let (qos_text, model_text) = (read(&qos_file)?, read(&model_file)?);
        let (qos, now) = (keyed::line(&qos_text, self.disk.number), keyed::line(&model_text, self.disk.number));
        if !is_ours(qos, now) {
            return Err(Reason::ReadBackMismatch(format!(
                "iocost of disk {} was given `{}` and `{LOCKED}` and shows `{}` and `{}`",
                self.disk.name,
                model.line(),
                now.unwrap_or("nothing"),
                qos.unwrap_or("nothing")
            )));
        }
        Ok(if noted { Done::Repaired } else { Done::SetUp })
    }

    fn set_up_bfq(&self, notes: &mut Notes) -> Result<Done, Reason> {
        let scheduler = self.queue("scheduler");
        let no_bfq = || Reason::NoBfq(self.disk.name.clone());
        let offered = read_if_there(&scheduler)?.ok_or_else(no_bfq)?;
        // With iocost on, both would divide the disk.
        let qos_text = read_if_there(&self.qos())?.unwrap_or_default();
        if let Some(qos) = keyed::line(&qos_text, self.disk.number).filter(|qos| keyed::contains(qos, "enable=1")) {
            return Err(self.is_foreign(qos));
        }
        let low_latency = self.queue("iosched/low_latency");
        let is_on = |scheduler: &str| scheduler.split_ascii_whitespace().any(|word| word == "[bfq]");
        let plain = |text: Option<String>| text.is_some_and(|text| text.trim() == "0");
        if is_on(&offered) && plain(read_if_there(&low_latency)?) {
            return Ok(Done::Nothing);
        }
        if !offered.split_ascii_whitespace().any(|word| word.trim_matches(['[', ']']) == "bfq") {
            return Err(no_bfq());
        }
        let noted = notes.disk(&self.disk.name).is_some();
        if !noted {
            let chosen = offered.split_ascii_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
            let low = if is_on(&offered) { read_if_there(&low_latency)? } else { None };
            let note = DiskNote {
                qos: None,
                model: None,
                scheduler: chosen.map(str::to_owned),
                low_latency: low.map(|text| text.trim().to_owned()),
            };
            notes.note_disk(&self.disk.name, note).map_err(|error| Reason::Failed(error.to_string()))?;
        }
        if !is_on(&offered) {
            write(&scheduler, "bfq")?;
        }
        // Its guesses at who is interactive would override the weights.
        write(&low_latency, "0")?;
        if !is_on(&read(&scheduler)?) || !plain(read_if_there(&low_latency)?) {
            return Err(Reason::ReadBackMismatch(format!("disk {} does not show the scheduler bfq", self.disk.name)));
        }
        Ok(if noted { Done::Repaired } else { Done::SetUp })
    }

    /// Puts back what was there before.
    ///
    /// # Errors
    /// What cannot be put back.
    pub fn put_back(&self, note: &DiskNote) -> Result<(), Reason> {
        if let Some(scheduler) = &note.scheduler {
            if let Some(low_latency) = &note.low_latency {
                write(&self.queue("iosched/low_latency"), low_latency)?;
            }
            return write(&self.queue("scheduler"), scheduler);
        }
        let number = self.disk.number;
        write(&self.qos(), &format!("{number} {}", note.qos.as_deref().unwrap_or("enable=0")))?;
        match &note.model {
            Some(model) => write(&self.model(), &format!("{number} {model}")),
            None => write(&self.model(), &format!("{number} ctrl=auto")),
        }
    }
}

fn read_if_there(path: &Path) -> Result<Option<String>, Reason> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Reason::Failed(format!("cannot read {}: {error}", path.display()))),
    }
}

fn read(path: &Path) -> Result<String, Reason> {
    read_if_there(path)?.ok_or_else(|| Reason::Failed(format!("{} is gone", path.display())))
}

/// The kernel takes a line in one write, and says what it thinks of it.
pub(super) fn write(path: &Path, line: &str) -> Result<(), Reason> {
    let written = fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, line.as_bytes()));
    written.map_err(|error| Reason::Failed(format!("cannot write `{line}` to {}: {error}", path.display())))
}
