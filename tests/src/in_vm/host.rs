//! What a machine is, for figures that were measured in it.

use anyhow::{Context as _, Result};

/// Of a virtual machine of the test bed: processor, cores, kernel.
///
/// # Errors
/// If the machine does not tell.
pub fn describe() -> Result<String> {
    Ok(format!("virtual machine, {}", machine()?))
}

/// Of the machine that this runs on: processor, cores, kernel.
///
/// # Errors
/// If the machine does not tell.
pub fn machine() -> Result<String> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name").map(|rest| rest.trim_start_matches([' ', '\t', ':'])));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
    let cores = std::thread::available_parallelism().context("cannot count the processors")?;
    Ok(format!("{cores} x {}, Linux {}", model.unwrap_or("unknown processor"), kernel.trim()))
}
