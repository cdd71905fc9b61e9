//! The driver's configuration file: which device class is which volume group on this node.
//!
//! **Invariant.** A file with a mistake stops the driver at start, naming line, key and what would be right; nothing is
//! guessed, and nothing in it is ignored.

pub mod io;
mod pattern;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::volume::name::{MAX_ESCAPED_VG, escaped_len, lvm_accepts};
use crate::volume::parameters::{DEFAULT_DEVICE_CLASS, is_device_class};

pub use io::{CalibrationMode, Io, Weights};

/// The configuration of one node, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The node's device classes, by name, each once.
    pub device_classes: Vec<DeviceClass>,
    /// How long is waited for what.
    pub timeouts: Timeouts,
    /// How disks are divided among pods.
    pub io: Io,
}

/// A device class: what a StorageClass's `deviceClass` asks for, on this node.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceClass {
    /// What StorageClasses call it.
    pub name: String,
    /// The LVM volume group its volumes are made in.
    pub volume_group: String,
    /// The thin pool of its thin volumes, in that volume group; made at the first thin volume when it is not there.
    #[serde(default = "default_thin_pool")]
    pub thin_pool: String,
    /// The share of the volume group that the driver gives to a thin pool it makes, in percent, 1 to 100.
    #[serde(default = "default_pool_percent")]
    pub pool_percent: u8,
    /// How many bytes may be promised to thin volumes for each byte of the pool, 1 to 100.
    #[serde(default = "default_overprovision_ratio")]
    pub overprovision_ratio: f64,
    /// Bytes of the volume group that are never given to volumes or pools.
    #[serde(default)]
    pub reserve_bytes: u64,
    /// Only physical volumes on these devices count; none given means every device that is neither a loop device nor on
    /// top of a logical volume.
    #[serde(default)]
    pub devices: Vec<PathBuf>,
}

/// How long is waited for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Timeouts {
    /// Seconds after which a controller request is answered ABORTED while its work goes on. csi-provisioner gives up
    /// after 15 by default.
    pub answer_seconds: u64,
    /// The same for node requests. kubelet gives up after 120.
    pub node_answer_seconds: u64,
    /// Seconds after which a state-changing command is killed; far longer, because a killed lvm leaves work half done.
    pub kill_seconds: u64,
    /// Seconds that a driver asked to end lets its operations run on.
    pub shutdown_seconds: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { answer_seconds: 10, node_answer_seconds: 100, kill_seconds: 1800, shutdown_seconds: 240 }
    }
}

impl Timeouts {
    /// After this a controller request is answered.
    #[must_use]
    pub fn answer(&self) -> Duration {
        Duration::from_secs(self.answer_seconds)
    }

    /// After this a node request is answered.
    #[must_use]
    pub fn node_answer(&self) -> Duration {
        Duration::from_secs(self.node_answer_seconds)
    }

    /// After this a state-changing command is killed.
    #[must_use]
    pub fn kill(&self) -> Duration {
        Duration::from_secs(self.kill_seconds)
    }

    /// After this a driver that was asked to end does so, whatever still runs.
    #[must_use]
    pub fn shutdown(&self) -> Duration {
        Duration::from_secs(self.shutdown_seconds)
    }
}

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    #[serde(default = "default_classes")]
    device_classes: Vec<DeviceClass>,
    #[serde(default)]
    nodes: Vec<NodeOverride>,
    #[serde(default)]
    timeouts: Timeouts,
    #[serde(default)]
    io: Io,
}

/// What is otherwise on the nodes whose names match.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NodeOverride {
    /// A node's name; `*` stands for any characters.
    r#match: String,
    /// Their device classes.
    device_classes: Vec<DeviceClass>,
    /// How they divide their disks; as the others do where it is absent.
    io: Option<Io>,
}

fn default_classes() -> Vec<DeviceClass> {
    vec![DeviceClass {
        name: DEFAULT_DEVICE_CLASS.to_owned(),
        volume_group: "quarry".to_owned(),
        thin_pool: default_thin_pool(),
        pool_percent: default_pool_percent(),
        overprovision_ratio: default_overprovision_ratio(),
        reserve_bytes: 0,
        devices: Vec::new(),
    }]
}

fn default_thin_pool() -> String {
    "quarry-pool".to_owned()
}

const fn default_pool_percent() -> u8 {
    90
}

const fn default_overprovision_ratio() -> f64 {
    1.0
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// It is not YAML, or has a key or a type that is wrong; the source names line and column.
    #[error("configuration file {}: {message}", path.display())]
    Parse {
        /// Its path.
        path: PathBuf,
        /// Line, column, key and what would be right.
        message: String,
    },
    /// A value that cannot be.
    #[error("configuration file {}: {key} is {value}; it must be {expected}", path.display())]
    Value {
        /// Its path.
        path: PathBuf,
        /// The key, with its place in the file.
        key: String,
        /// The value.
        value: String,
        /// What would be right.
        expected: String,
    },
}

impl Config {
    /// What a node uses without a configuration file: the class `default`, the volume group `quarry`.
    #[must_use]
    pub fn zero() -> Self {
        Self { device_classes: default_classes(), timeouts: Timeouts::default(), io: Io::default() }
    }

    /// Reads and checks the file, for one node.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(path: &Path, node_name: &str) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path, node_name)
    }

    /// Checks a file's text, for one node. All nodes' parts are checked, not only this one's.
    ///
    /// # Errors
    /// [`ConfigError`]; `path` is for the message alone.
    pub fn parse(text: &str, path: &Path, node_name: &str) -> Result<Self, ConfigError> {
        // An empty file, or one with comments only, is no configuration.
        if text.lines().all(|line| matches!(line.trim_start().chars().next(), None | Some('#')) || line.trim() == "{}")
        {
            return Ok(Self::zero());
        }
        let file: File = serde_saphyr::from_str(text)
            .map_err(|error| ConfigError::Parse { path: path.to_owned(), message: error.to_string() })?;
        check_classes(path, "deviceClasses", &file.device_classes)?;
        check_io(path, "io", &file.io)?;
        for (index, node) in file.nodes.iter().enumerate() {
            check_classes(path, &format!("nodes[{index}].deviceClasses"), &node.device_classes)?;
            check_io(path, &format!("nodes[{index}].io"), node.io.as_ref().unwrap_or(&Io::default()))?;
        }
        check_timeouts(path, &file.timeouts)?;
        let matching = file.nodes.into_iter().find(|node| pattern::matches(&node.r#match, node_name));
        let (device_classes, io) = match matching {
            Some(node) => (node.device_classes, node.io.unwrap_or(file.io)),
            None => (file.device_classes, file.io),
        };
        Ok(Self { device_classes, timeouts: file.timeouts, io })
    }

    /// The class of that name, if this node has it.
    #[must_use]
    pub fn class(&self, name: &str) -> Option<&DeviceClass> {
        self.device_classes.iter().find(|class| class.name == name)
    }
}

fn check_classes(path: &Path, place: &str, classes: &[DeviceClass]) -> Result<(), ConfigError> {
    let wrong = |key: String, value: &dyn std::fmt::Display, expected: &str| {
        Err(ConfigError::Value { path: path.to_owned(), key, value: value.to_string(), expected: expected.to_owned() })
    };
    for (index, class) in classes.iter().enumerate() {
        let key = |name: &str| format!("{place}[{index}].{name}");
        if !is_device_class(&class.name) {
            return wrong(key("name"), &class.name, "1 to 63 letters, digits, '-', '_' or '.'");
        }
        if classes.iter().take(index).any(|earlier| earlier.name == class.name) {
            return wrong(key("name"), &class.name, "a name that no other class has");
        }
        if !lvm_accepts(&class.volume_group) || escaped_len(&class.volume_group) > MAX_ESCAPED_VG {
            return wrong(
                key("volumeGroup"),
                &class.volume_group,
                "the name of an LVM volume group of at most 40 characters, hyphens counted twice",
            );
        }
        if !lvm_accepts(&class.thin_pool) || escaped_len(&class.thin_pool) > MAX_ESCAPED_VG {
            return wrong(
                key("thinPool"),
                &class.thin_pool,
                "the name of an LVM logical volume of at most 40 characters, hyphens counted twice",
            );
        }
        if !(1..=100).contains(&class.pool_percent) {
            return wrong(key("poolPercent"), &class.pool_percent, "between 1 and 100");
        }
        if !(1.0..=100.0).contains(&class.overprovision_ratio) {
            return wrong(key("overprovisionRatio"), &class.overprovision_ratio, "between 1 and 100");
        }
        if let Some(device) = class.devices.iter().find(|device| !device.starts_with("/dev")) {
            return wrong(key("devices"), &device.display(), "paths below /dev");
        }
    }
    Ok(())
}

fn check_io(path: &Path, place: &str, io: &Io) -> Result<(), ConfigError> {
    io::check(io).map_err(|(key, value, expected)| ConfigError::Value {
        path: path.to_owned(),
        key: format!("{place}.{key}"),
        value,
        expected: expected.to_owned(),
    })
}

fn check_timeouts(path: &Path, timeouts: &Timeouts) -> Result<(), ConfigError> {
    for (key, value) in [
        ("timeouts.answerSeconds", timeouts.answer_seconds),
        ("timeouts.nodeAnswerSeconds", timeouts.node_answer_seconds),
    ] {
        if !(1..timeouts.kill_seconds).contains(&value) {
            let expected = format!("between 1 and timeouts.killSeconds ({})", timeouts.kill_seconds);
            return Err(ConfigError::Value {
                path: path.to_owned(),
                key: key.to_owned(),
                value: value.to_string(),
                expected,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("/etc/quarry/config.yaml"), "storage-7")
    }

    #[test]
    fn no_file_or_an_empty_one_is_the_volume_group_quarry() {
        assert_eq!(parse("").unwrap(), Config::zero());
        assert_eq!(parse("# nothing\n").unwrap(), Config::zero());
        assert_eq!(parse("{}\n").unwrap(), Config::zero());
        assert_eq!(parse("timeouts: {answerSeconds: 5}").unwrap().device_classes, Config::zero().device_classes);
    }

    #[test]
    fn a_node_has_the_classes_of_the_first_pattern_it_matches() {
        let text = "deviceClasses:\n  - {name: default, volumeGroup: vg0}\nnodes:\n  - match: gpu-*\n    deviceClasses: []\n  - match: storage-*\n    deviceClasses:\n      - name: nvme\n        volumeGroup: fast\n        poolPercent: 50\n        devices: [/dev/nvme0n1]\n";
        let config = parse(text).unwrap();
        assert_eq!(config.class("default"), None);
        let nvme = config.class("nvme").unwrap();
        assert_eq!(
            (nvme.volume_group.as_str(), nvme.pool_percent, nvme.thin_pool.as_str()),
            ("fast", 50, "quarry-pool")
        );
    }

    #[test]
    fn a_typo_is_named_with_its_line_and_the_keys_there_are() {
        let error = parse("deviceClasses:\n  - name: default\n    volumeGruop: quarry\n").unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains("volumeGruop") && error.contains("volumeGroup"), "{error}");
        let error = parse("deviceClasess: []\n").unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains("deviceClasess"), "{error}");
        let error =
            parse("deviceClasses:\n  - {name: a, volumeGroup: b, poolPercent: many}\n").unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn a_value_that_cannot_be_is_named_with_what_would_be_right() {
        let class = |rest: &str| parse(&format!("deviceClasses:\n  - {{name: a, volumeGroup: b{rest}}}\n"));
        for (rest, named) in [
            (", poolPercent: 0", "deviceClasses[0].poolPercent is 0; it must be between 1 and 100"),
            (", overprovisionRatio: 0.5", "deviceClasses[0].overprovisionRatio is 0.5; it must be between 1 and 100"),
            (
                ", thinPool: a_tdata",
                "deviceClasses[0].thinPool is a_tdata; it must be the name of an LVM logical volume",
            ),
            (", devices: [sdb]", "deviceClasses[0].devices is sdb; it must be paths below /dev"),
        ] {
            let error = class(rest).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        let twice =
            parse("deviceClasses:\n  - {name: a, volumeGroup: b}\n  - {name: a, volumeGroup: c}\n").unwrap_err();
        assert!(twice.to_string().contains("deviceClasses[1].name is a; it must be a name that no other class has"));
        let bad_elsewhere = "nodes:\n  - match: other\n    deviceClasses: [{name: a, volumeGroup: -x}]\n";
        assert!(parse(bad_elsewhere).unwrap_err().to_string().contains("nodes[0].deviceClasses[0].volumeGroup"));
        assert!(parse("timeouts: {answerSeconds: 0}").unwrap_err().to_string().contains("timeouts.answerSeconds is 0"));
    }
}
