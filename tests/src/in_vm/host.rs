//! What a machine is, for figures that were measured in it.

use anyhow::{Context as _, Result};

/// Processor, cores, kernel.
///
/// # Errors
/// If the machine does not tell.
pub fn describe() -> Result<String> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name").map(|rest| rest.trim_start_matches([' ', '\t', ':'])));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
    let cores = std::thread::available_parallelism().context("cannot count the processors")?;
    Ok(format!("virtual machine, {cores} x {}, Linux {}", model.unwrap_or("unknown processor"), kernel.trim()))
}
