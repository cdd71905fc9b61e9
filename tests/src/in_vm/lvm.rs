//! LVM as a test uses it, beside the driver: fresh volume groups, and questions about them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};

use super::{disks, require, wipe};
use crate::command::{Command, Outcome};
use crate::{process, wait};

/// How long one LVM command may take: 0.1-0.7 s in an emulated machine, several times that on a busy host.
const LIMIT: Duration = Duration::from_secs(120);

/// Right with and without udevd: LVM makes its own device nodes and waits for nobody.
const CONFIG: &str = "activation{udev_sync=0 udev_rules=0 monitoring=0} devices{use_devicesfile=0} backup{backup=0 archive=0} \
     global{units=\"b\" suffix=0}";

/// Runs an LVM command (`lvs`, `lvcreate` ...) with settings that are right with and without udevd.
///
/// # Errors
/// Outside a machine, or if it hangs. Any exit is an [`Outcome`].
pub fn lvm<S: AsRef<std::ffi::OsStr>>(verb: &str, arguments: &[S]) -> Result<Outcome> {
    require()?;
    let command = Command::new("lvm").arg(verb).args(["--config", CONFIG]).args(arguments);
    process::run(&command.env("LVM_SUPPRESS_FD_WARNINGS", "1").env("LC_ALL", "C"), LIMIT)
}

/// One line of a report: values by field name.
pub type Row = BTreeMap<String, String>;

/// How a volume group is made.
#[derive(Debug, Clone)]
pub struct VgOptions {
    /// How many scratch disks it has.
    pub disks: usize,
    /// More arguments of `vgcreate`, such as `--metadatasize 64m`.
    pub arguments: Vec<String>,
}

impl Default for VgOptions {
    /// One disk, a metadata area of 64 MiB.
    fn default() -> Self {
        Self { disks: 1, arguments: ["--metadatasize", "64m"].map(str::to_owned).to_vec() }
    }
}

/// A volume group of one test on wiped disks. Dropping it removes it, whatever is on it, and wipes the disks.
#[derive(Debug)]
pub struct VolumeGroup {
    name: String,
    disks: Vec<PathBuf>,
}

impl VolumeGroup {
    /// A fresh volume group of one disk; its name begins with `test`.
    ///
    /// # Errors
    /// Outside a machine, if no disk is free, or LVM's.
    pub fn fresh(test: &str) -> Result<Self> {
        Self::with(test, &VgOptions::default())
    }

    /// A fresh volume group.
    ///
    /// # Errors
    /// As [`VolumeGroup::fresh`].
    pub fn with(test: &str, options: &VgOptions) -> Result<Self> {
        Self::on(test, disks::take(options.disks)?, options)
    }

    /// A fresh volume group on these devices, which are wiped.
    ///
    /// # Errors
    /// As [`VolumeGroup::fresh`].
    pub fn on(test: &str, disks: Vec<PathBuf>, options: &VgOptions) -> Result<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("{test}{}", MADE.fetch_add(1, Ordering::Relaxed));
        let group = Self { name, disks };
        group.clear().context("cannot clear the disks of a new volume group")?;
        let mut arguments = options.arguments.clone();
        arguments.push(group.name.clone());
        arguments.extend(group.disks.iter().map(|disk| disk.display().to_string()));
        lvm("vgcreate", &arguments)?.success()?;
        Ok(group)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its disks.
    #[must_use]
    pub fn disks(&self) -> &[PathBuf] {
        &self.disks
    }

    /// Its logical volumes, hidden ones too, with these fields of `lvs`.
    ///
    /// # Errors
    /// LVM's.
    pub fn lvs(&self, fields: &str) -> Result<Vec<Row>> {
        report("lvs", "lv", &["--all", "-o", fields, &self.name])
    }

    /// Fields of `vgs` for it.
    ///
    /// # Errors
    /// LVM's.
    pub fn vgs(&self, fields: &str) -> Result<Row> {
        let rows = report("vgs", "vg", &["-o", fields, &self.name])?;
        rows.into_iter().next().ok_or_else(|| anyhow!("vgs told nothing about {}", self.name))
    }

    /// Removes whatever is on its disks: mounts, mappings, volume groups, signatures, data.
    fn clear(&self) -> Result<()> {
        let mut groups = vec![self.name.clone()];
        for disk in &self.disks {
            let path = disk.display().to_string();
            for row in report("pvs", "pv", &["-o", "pv_name,vg_name", "--select", &format!("pv_name={path}")])? {
                groups.extend(row.get("vg_name").filter(|name| !name.is_empty()).cloned());
            }
        }
        groups.dedup();
        for group in &groups {
            unmount_all(group)?;
            remove_group(group)?;
            remove_mappings(group)?;
        }
        self.disks.iter().try_for_each(|disk| wipe(disk))
    }
}

impl Drop for VolumeGroup {
    fn drop(&mut self) {
        let cleared = self.clear();
        disks::give_back(&self.disks);
        if let Err(error) = cleared {
            eprintln!("cannot clear volume group {}: {error:#}", self.name);
            // What is left would make later tests fail for no fault of theirs.
            assert!(std::thread::panicking(), "volume group {} is left behind", self.name);
        }
    }
}

fn report(verb: &str, kind: &str, arguments: &[&str]) -> Result<Vec<Row>> {
    let mut all = vec!["--reportformat", "json"];
    all.extend(arguments);
    let text = lvm(verb, &all)?.success()?.stdout_text();
    parse_report(&text, kind).with_context(|| format!("{verb} printed {text:?}"))
}

fn parse_report(text: &str, kind: &str) -> Result<Vec<Row>> {
    let document: serde_json::Value = serde_json::from_str(text)?;
    let rows = document.pointer(&format!("/report/0/{kind}")).context("no report")?;
    Ok(serde_json::from_value(rows.clone())?)
}

/// Unmounts filesystems on a group's volumes, the newest first.
fn unmount_all(group: &str) -> Result<()> {
    let prefix = format!("/dev/mapper/{}-", mapping_name(group));
    let by_group = format!("/dev/{group}/");
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    for line in mounts.lines().rev() {
        let mut fields = line.split(' ');
        let (Some(source), Some(target)) = (fields.next(), fields.next()) else { bail!("no mount: {line:?}") };
        if source.starts_with(&prefix) || source.starts_with(&by_group) {
            let target = target.replace("\\040", " ");
            process::run(&Command::new("umount").arg(&target), LIMIT)?.success()?;
        }
    }
    Ok(())
}

/// A group's name as device-mapper names begin with it.
fn mapping_name(group: &str) -> String {
    group.replace('-', "--")
}

fn remove_group(group: &str) -> Result<()> {
    let found = report("vgs", "vg", &["-o", "vg_name", "--select", &format!("vg_name={group}")])?;
    if found.is_empty() {
        return Ok(());
    }
    // A killed command may have left suspended devices: those would hang the removal.
    for name in mappings(group)? {
        process::run(&Command::new("dmsetup").args(["resume", "--noudevsync", &name]), LIMIT)?.success()?;
    }
    lvm("vgremove", &["-ff", "-y", group])?.success().map(drop)
}

fn remove_mappings(group: &str) -> Result<()> {
    // Mappings stand on one another: one that is in use now is free after the next pass.
    let pass = || {
        let left = mappings(group)?;
        for name in &left {
            process::run(&Command::new("dmsetup").args(["remove", "--noudevsync", name]), LIMIT)?;
        }
        Ok(left.is_empty().then_some(()))
    };
    wait::until(
        &format!("removal of the mappings of {group}"),
        Duration::from_secs(30),
        Duration::from_millis(100),
        pass,
    )
}

fn mappings(group: &str) -> Result<Vec<String>> {
    let prefix = format!("{}-", mapping_name(group));
    let entries = std::fs::read_dir(Path::new("/sys/block")).context("cannot read /sys/block")?;
    let names = entries.flatten().filter_map(|entry| std::fs::read_to_string(entry.path().join("dm/name")).ok());
    Ok(names.map(|name| name.trim().to_owned()).filter(|name| is_mapping_of(name, &prefix)).collect())
}

/// Whether a device-mapper name belongs to the group: `a--b-c` is volume `c` of `a-b`, not of `a`.
fn is_mapping_of(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| !rest.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_becomes_rows() {
        let text = r#"{"report": [ {"lv": [ {"lv_name":"a", "lv_size":"1"}, {"lv_name":"b", "lv_size":""} ] } ] }"#;
        let rows = parse_report(text, "lv").unwrap();
        assert_eq!((rows.len(), rows[1]["lv_name"].as_str()), (2, "b"));
        assert!(parse_report("{}", "lv").is_err());
        assert!(parse_report("", "lv").is_err());
    }

    #[test]
    fn mappings_of_a_longer_named_group_are_not_ours() {
        assert!(is_mapping_of("vg-lv", "vg-"));
        assert!(!is_mapping_of("vg--x-lv", "vg-"));
        assert!(is_mapping_of("vg--x-lv", &format!("{}-", mapping_name("vg-x"))));
    }
}
