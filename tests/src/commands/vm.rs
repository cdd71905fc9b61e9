//! `testbed vm`: one machine, one command, for trying things out.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use quarry_tests::command::{Command, Exit, Stream};
use quarry_tests::scratch::Scratch;
use quarry_tests::vm::{Disk, Network, Vm, VmSpec};

use super::NO_VERDICT;

/// What `testbed vm` takes.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Run udevd in the machine.
    #[arg(long)]
    udev: bool,
    /// Let systemd become its first process.
    #[arg(long)]
    systemd: bool,
    /// Memory in MiB.
    #[arg(long, default_value_t = 2048)]
    memory: u32,
    /// Number of 4 GiB disks.
    #[arg(long, default_value_t = 2)]
    disks: u32,
    /// Give it QEMU's user-mode network.
    #[arg(long)]
    network: bool,
    /// How long the command may take, in seconds.
    #[arg(long, default_value_t = 600)]
    limit: u64,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Boots, runs, powers off; ends as the command ended.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let scratch = Scratch::new("vm")?;
    let mut spec = VmSpec::new("vm", scratch.path());
    spec.udev = arguments.udev;
    spec.systemd = arguments.systemd;
    spec.memory_mib = arguments.memory;
    spec.disks = (0..arguments.disks).map(|n| Disk::gib(&format!("scratch{n}"), 4)).collect();
    if arguments.network {
        spec.network = Network::User;
    }
    let begin = Instant::now();
    let mut vm = Vm::boot(spec)?;
    eprintln!("testbed: machine up after {:.1} s", begin.elapsed().as_secs_f32());
    let command = Command { argv: arguments.command, env: Vec::new(), cwd: None, stdin: None };
    let exit = vm.run_streaming(&command, Duration::from_secs(arguments.limit), |stream, bytes| match stream {
        Stream::Stdout => drop(std::io::stdout().write_all(bytes)),
        Stream::Stderr => drop(std::io::stderr().write_all(bytes)),
    })?;
    std::io::stdout().flush()?;
    for finding in vm.findings() {
        eprintln!("testbed: console: {}", finding.line);
    }
    vm.power_off()?;
    eprintln!("testbed: off after {:.1} s; the command ended with {exit}", begin.elapsed().as_secs_f32());
    Ok(match exit {
        Exit::Code(code) => ExitCode::from(u8::try_from(code).unwrap_or(NO_VERDICT)),
        Exit::Signal(_) => ExitCode::from(NO_VERDICT),
    })
}
