//! A disk whose writes are recorded, and the disk that it was at some moment.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quarry_tests::command::Command;
use quarry_tests::in_vm::scratch_disks;
use quarry_tests::log_writes::WriteLog;
use quarry_tests::process;

use crate::cuts::Place;

/// What a disk holds that nobody wiped: earlier volumes' bytes.
const OLD: u8 = 0xa5;

/// Four disks of the machine: what is recorded, its log, the replay, and what a driver writes after it.
pub struct Layer {
    name: &'static str,
    disk: PathBuf,
    log: PathBuf,
    replay: PathBuf,
    after: PathBuf,
}

/// A disk as it was: the log applied up to a place, which only grows.
pub struct Replay {
    layer: Layer,
    log: WriteLog,
    done: usize,
}

impl Layer {
    pub fn find(name: &'static str) -> Self {
        let of = |serial: &str| {
            let wanted = format!("scratch-{name}{serial}");
            let mut disks = scratch_disks().unwrap().into_iter();
            disks.find(|disk| attribute(disk, "serial") == wanted).expect("the machine's disks are those of the suite")
        };
        let layer = Self { name, disk: of(""), log: of("-log"), replay: of("-replay"), after: of("-after") };
        // Without a cache there are no flushes, and nothing would be lost in a power cut.
        assert_eq!(attribute(&layer.disk, "queue/write_cache"), "write back");
        layer
    }

    fn sectors(&self) -> String {
        attribute(&self.disk, "size")
    }

    /// Has the disk, and the one for the replay, full of old data.
    pub fn fill(&self) {
        for disk in [&self.disk, &self.replay] {
            let (file, old) = (File::options().write(true).open(disk).unwrap(), vec![OLD; 1 << 20]);
            let bytes: u64 = self.sectors().parse::<u64>().unwrap() * 512;
            (0..bytes >> 20).for_each(|mib| file.write_all_at(&old, mib << 20).unwrap());
            file.sync_all().unwrap();
        }
    }

    /// Begins the record: the device is `/dev/mapper/power-NAME`.
    pub fn record(&self) {
        self.create(&format!("log-writes {} {}", self.disk.display(), self.log.display()));
    }

    fn create(&self, target: &str) {
        let (name, sectors) = (self.name, self.sectors());
        // The last word makes the node where no udevd does.
        shell(&format!(
            "dmsetup create --noudevsync power-{name} --table '0 {sectors} {target}'; dmsetup mknodes power-{name}"
        ));
    }

    /// Sets a mark in the log.
    pub fn mark(&self, mark: &str) {
        let device = format!("power-{}", self.name);
        let command = Command::new("dmsetup").args(["message", &device, "0", "mark", mark]);
        process::run(&command, Duration::from_secs(60)).unwrap().success().unwrap();
    }

    /// Reads the log, now that the device is gone.
    pub fn replay(self) -> Replay {
        let log = WriteLog::read(&self.log).unwrap();
        Replay { layer: self, log, done: 0 }
    }
}

impl Replay {
    pub fn log(&self) -> &WriteLog {
        &self.log
    }

    /// Makes `/dev/mapper/power-NAME` the disk as it was at that place, for as long as it is there.
    pub fn bring_up(&mut self, place: &Place) {
        assert!(place.up_to >= self.done, "cuts are ordered");
        let replay = File::options().write(true).open(&self.layer.replay).unwrap();
        for entry in &self.log.entries()[self.done..place.up_to] {
            self.log.apply(entry, &replay).unwrap();
        }
        replay.sync_all().unwrap();
        self.done = place.up_to;
        // What is written from here on goes to a snapshot, and is forgotten with it.
        let (below, after) = (self.layer.replay.display(), self.layer.after.display());
        self.layer.create(&format!("snapshot {below} {after} N 8"));
        let device = File::options().write(true).open(format!("/dev/mapper/power-{}", self.layer.name)).unwrap();
        for entry in place.torn.iter().map(|torn| &self.log.entries()[*torn]) {
            self.log.apply(entry, &device).unwrap();
        }
        device.sync_all().unwrap();
    }
}

/// Removes every mount of the suite and every mapping.
pub fn tear_down() {
    shell(
        "for at in $(awk '$1 ~ \"^/dev/mapper/power\" || $1 ~ \"^/dev/power/\" { print $2 }' /proc/self/mounts | sort -ru); do umount $at; done\n\
         dmsetup remove_all --noudevsync; dmsetup mknodes\ntest -z \"$(dmsetup ls | grep -v '^No devices')\"; rm -rf /dev/power",
    );
}

fn attribute(disk: &Path, name: &str) -> String {
    let device = disk.file_name().unwrap().to_str().unwrap();
    std::fs::read_to_string(format!("/sys/block/{device}/{name}")).unwrap().trim().to_owned()
}

/// Runs a shell line in the machine; it must succeed.
#[track_caller]
pub fn shell(script: &str) -> String {
    let outcome = process::run(&Command::shell(script), Duration::from_secs(300)).unwrap();
    outcome.success().unwrap().stdout_text()
}
