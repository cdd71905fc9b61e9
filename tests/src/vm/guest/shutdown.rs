//! Switches a machine off with its filesystems clean.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal};
use rustix::system::{RebootCommand, reboot};

use crate::wait;

/// How long processes have to end after SIGTERM, and again after SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

/// Ends every other process, unmounts what is on disks, and switches off.
pub(super) fn power_off() -> Result<()> {
    for signal in [Signal::TERM, Signal::KILL] {
        let ended = wait::until("end of every process", GRACE, Duration::from_millis(50), || {
            let others = others();
            for pid in &others {
                rustix::process::kill_process(*pid, signal).ok();
            }
            while matches!(rustix::process::wait(rustix::process::WaitOptions::NOHANG), Ok(Some(_))) {}
            Ok(others.is_empty().then_some(()))
        });
        if ended.is_ok() {
            break;
        }
    }
    // Mounts above mounts: what is busy in one pass is free in the next.
    let mut left = Vec::new();
    for _ in 0..3 {
        left.clear();
        for target in mounts() {
            match unmount(&target, UnmountFlags::empty()) {
                // It went with another that it was propagated to.
                Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
                Err(error) => left.push(format!("{target} stays mounted: {error}")),
            }
        }
    }
    for line in left {
        println!("vm-init: {line}");
    }
    rustix::fs::sync();
    println!("vm-init: power off");
    reboot(RebootCommand::PowerOff).context("cannot power off")
}

/// Processes that are neither this one nor the first nor the kernel's: those have no command line, nor have the dead.
fn others() -> Vec<Pid> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != 1 && *pid != own);
    let with_command =
        numbers.filter(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty()));
    with_command.filter_map(Pid::from_raw).collect()
}

/// Where something is mounted that is not the machine's own frame, the newest first: filesystems on disks, and what
/// keeps those busy (pods' tmpfs, containers' overlays).
fn mounts() -> Vec<String> {
    let frame = |target: &str| {
        target == "/"
            || target == "/run"
            || ["/proc", "/sys", "/dev"].iter().any(|of| Path::new(target).starts_with(of))
    };
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let targets = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(|target| target.replace("\\040", " "));
    targets.filter(|target| !frame(target)).collect::<Vec<_>>().into_iter().rev().collect()
}
