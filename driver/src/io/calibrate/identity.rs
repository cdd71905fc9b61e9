//! Which disk it is, whatever its name and number are today.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::super::sysfs::Disk;

/// What a calibration is good for: another disk, another kernel or another scheduler needs another one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Identity {
    /// Its world-wide name or serial number; its name where it has neither.
    pub disk: String,
    /// Its size in sectors of 512 bytes.
    pub sectors: u64,
    /// The scheduler of its queue.
    pub scheduler: String,
    /// The kernel's release.
    pub kernel: String,
}

/// A disk's identity now. What sysfs does not tell is left empty: then it is compared by the rest.
#[must_use]
pub fn identity(sys: &Path, disk: &Disk) -> Identity {
    let folder = sys.join("block").join(&disk.name);
    let text = |file: &str| {
        let text = std::fs::read_to_string(folder.join(file)).unwrap_or_default();
        let text = text.trim().to_owned();
        (!text.is_empty()).then_some(text)
    };
    let name = ["wwid", "device/wwid", "device/serial", "serial"].into_iter().find_map(text);
    let schedulers = text("queue/scheduler").unwrap_or_default();
    let chosen = schedulers.split_ascii_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    Identity {
        disk: name.unwrap_or_else(|| disk.name.clone()),
        sectors: text("size").and_then(|size| size.parse().ok()).unwrap_or_default(),
        scheduler: chosen.unwrap_or("none").to_owned(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
    }
}
