//! What the kernel shows of iocost on a disk, for metrics: whether it is on, with which model, and how fast it lets the
//! model's time run.
//!
//! **Invariant.** Only read, whoever set it; a file that is not there says that the kernel has no iocost.

use std::fs;
use std::path::Path;

use crate::device_number::DeviceNumber;

use super::keyed::{self, CHARGED};
use super::sysfs::by_name;

/// A disk's iocost.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DiskFacts {
    /// The disk's name in `/sys/block`.
    pub disk: String,
    /// Whether iocost controls the disk.
    pub enabled: bool,
    /// The rate of the model's time against true time; 1 where the model is right or the rate is locked. Nothing where
    /// the kernel does not tell.
    pub vrate: Option<f64>,
    /// What the model says, where there is one.
    pub model: Option<ModelFacts>,
}

/// A linear cost model as the kernel shows it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ModelFacts {
    /// Bytes a second of sequential reads and writes.
    pub bytes: [u64; 2],
    /// Sequential 4 KiB reads and writes a second.
    pub sequential: [u64; 2],
    /// Random 4 KiB reads and writes a second.
    pub random: [u64; 2],
}

/// The facts of these disks, by name.
#[must_use]
pub fn read<'a>(cgroups: &Path, sys: &Path, disks: impl IntoIterator<Item = &'a str>) -> Vec<DiskFacts> {
    let text = |file: &str| fs::read_to_string(cgroups.join(file)).unwrap_or_default();
    let (qos, model, stat) = (text("io.cost.qos"), text("io.cost.model"), text("io.stat"));
    let facts = disks.into_iter().filter_map(|disk| {
        let number = number(sys, disk)?;
        let enabled = keyed::number(&qos, number, "enable") == Some(1);
        let vrate = keyed::number::<f64>(&stat, number, "cost.vrate");
        let pair = |read: &str, write: &str| {
            Some([keyed::number(&model, number, read)?, keyed::number(&model, number, write)?])
        };
        let facts = || {
            Some(ModelFacts {
                bytes: pair("rbps", "wbps")?,
                sequential: pair("rseqiops", "wseqiops")?,
                random: pair("rrandiops", "wrandiops")?,
            })
        };
        let vrate = vrate.filter(|_| enabled).map(|percent| percent / 100.0);
        Some(DiskFacts { disk: disk.to_owned(), enabled, vrate, model: facts() })
    });
    facts.collect()
}

/// For how many seconds of the time of each disk's cost model a cgroup has used the disk, by the disk's name; only of disks
/// that iocost controls.
#[must_use]
pub fn usage(cgroup: &Path, sys: &Path, disks: &[String]) -> Vec<(String, f64)> {
    // A pod that just went away has used what it used.
    let Ok(stat) = fs::read_to_string(cgroup.join("io.stat")) else { return Vec::new() };
    let used = disks.iter().filter_map(|disk| {
        let microseconds: f64 = keyed::number(&stat, number(sys, disk)?, CHARGED)?;
        Some((disk.clone(), microseconds / 1e6))
    });
    used.collect()
}

fn number(sys: &Path, disk: &str) -> Option<DeviceNumber> {
    Some(by_name(sys, disk).ok()??.number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disks_model_and_rate_are_as_the_kernel_shows_them() {
        let root = tempfile::tempdir().unwrap();
        let (cgroups, sys) = (root.path().join("cgroup"), root.path().join("sys"));
        fs::create_dir_all(&cgroups).unwrap();
        for (disk, number) in [("vda", "254:0"), ("vdb", "254:16")] {
            fs::create_dir_all(sys.join("block").join(disk)).unwrap();
            fs::write(sys.join("block").join(disk).join("dev"), format!("{number}\n")).unwrap();
        }
        // Without iocost there is nothing to tell but that.
        let off = |disk: &str| DiskFacts { disk: disk.to_owned(), ..DiskFacts::default() };
        assert_eq!(read(&cgroups, &sys, ["vda", "gone"]), [off("vda")]);
        let qos = "254:0 enable=1 ctrl=user rpct=0.00 rlat=25000 wpct=0.00 wlat=25000 min=100.00 max=100.00\n";
        let model =
            "254:0 ctrl=user model=linear rbps=1000 rseqiops=20 rrandiops=10 wbps=900 wseqiops=18 wrandiops=9\n";
        let stat = "254:16 rbytes=4096 cost.vrate=50.00\n254:0 rbytes=1 wbytes=2 cost.vrate=87.50 cost.usage=77\n";
        for (file, text) in [("io.cost.qos", qos), ("io.cost.model", model), ("io.stat", stat)] {
            fs::write(cgroups.join(file), text).unwrap();
        }
        let facts = ModelFacts { bytes: [1000, 900], sequential: [20, 18], random: [10, 9] };
        let expected = DiskFacts { disk: "vda".to_owned(), enabled: true, vrate: Some(0.875), model: Some(facts) };
        assert_eq!(read(&cgroups, &sys, ["vda", "vdb"]), [expected, off("vdb")]);
        // Of a cgroup, how much of a disk's time it has used.
        let disks = ["vda", "vdb", "gone"].map(str::to_owned);
        fs::write(cgroups.join("io.stat"), "254:0 rbytes=1 cost.usage=2500000\n254:16 rbytes=4096\n").unwrap();
        assert_eq!(usage(&cgroups, &sys, &disks), [("vda".to_owned(), 2.5)]);
        assert_eq!(usage(&cgroups.join("gone"), &sys, &disks), []);
    }
}
