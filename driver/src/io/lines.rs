//! One device's line in a cgroup's file: written, taken back, looked for.

use std::fs;
use std::io;
use std::path::Path;

use crate::device_number::DeviceNumber;
use crate::volume::io::Limits;

use super::state::Reason;
use super::{cost, keyed};

/// The file of limits.
pub(super) const MAX: &str = "io.max";

/// All four keys: the kernel keeps the value of one that is left out.
pub(super) fn limits(limits: &Limits) -> String {
    let text = |limit: Option<std::num::NonZeroU64>| limit.map_or_else(|| "max".to_owned(), |limit| limit.to_string());
    format!(
        "rbps={} wbps={} riops={} wiops={}",
        text(limits.read_bps),
        text(limits.write_bps),
        text(limits.read_iops),
        text(limits.write_iops)
    )
}

pub(super) fn write(path: &Path, device: DeviceNumber, line: &str) -> Result<(), Reason> {
    cost::write(path, &format!("{device} {line}"))
}

/// Removes a line of ours; a cgroup or a device that is gone took it along.
pub(super) fn take_back(path: &Path, device: &str) -> Result<(), Reason> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(19) => return Ok(()),
        Err(error) => return Err(Reason::Failed(format!("cannot read {}: {error}", path.display()))),
    };
    let is_there = device.parse().is_ok_and(|number| keyed::line(&text, number).is_some());
    if !is_there {
        return Ok(());
    }
    let nothing = if path.ends_with(MAX) { "rbps=max wbps=max riops=max wiops=max" } else { "default" };
    cost::write(path, &format!("{device} {nothing}"))
}

/// Whether a file shows a line for a device.
///
/// # Errors
/// Why that is not known.
pub(super) fn shows(path: &Path, device: DeviceNumber, line: &str) -> Result<bool, Reason> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(match path.parent().is_some_and(Path::exists) {
                true => Reason::NoIoController(path.display().to_string()),
                false => Reason::CgroupNotFound,
            });
        }
        Err(error) => return Err(Reason::Failed(format!("cannot read {}: {error}", path.display()))),
    };
    Ok(keyed::line(&text, device)
        .is_some_and(|is| if line.contains('=') { keyed::contains(is, line) } else { is == line }))
}
