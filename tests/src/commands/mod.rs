//! Subcommands, one per file.

mod bench;
mod cluster;
mod demo;
mod suite;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use quarry_tests::{process, vm::guest};

/// The exit code of a run that neither passed (0) nor failed (1).
pub const NO_VERDICT: u8 = 2;

/// The test bed: virtual machines, and the suites that run in them.
#[derive(Debug, Parser)]
#[command(name = "testbed", version)]
pub struct TestBed {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot a virtual machine and run one command in it.
    Vm(vm::Arguments),
    /// Show claims becoming logical volumes on a cluster of two nodes.
    Demo(demo::Arguments),
    /// Start a cluster of two nodes without the driver, and keep it.
    Cluster,
    /// Run a command on a node of the cluster that runs.
    Node(cluster::NodeArguments),
    /// Stop the cluster that was left running.
    Stop,
    /// Run a suite in a virtual machine: exit code 0 is a pass, 1 a failure, 2 no verdict.
    Suite(suite::Arguments),
    /// Run a benchmark.
    Bench(bench::Arguments),
    /// The first process of a virtual machine.
    #[command(hide = true)]
    VmInit,
    /// The agent of a virtual machine.
    #[command(hide = true)]
    VmAgent(guest::agent::Arguments),
}

impl TestBed {
    /// Does what was asked.
    ///
    /// # Errors
    /// Whatever kept it from a verdict.
    pub fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::VmInit => guest::init::run().map(|()| ExitCode::SUCCESS),
            Command::VmAgent(arguments) => guest::agent::run(&arguments).map(|()| ExitCode::SUCCESS),
            Command::Demo(arguments) => host(|| demo::run(&arguments)),
            Command::Cluster => host(cluster::run),
            Command::Node(arguments) => cluster::node(arguments),
            Command::Stop => cluster::stop(),
            Command::Vm(arguments) => host(|| vm::run(arguments)),
            Command::Suite(arguments) => host(|| suite::run(arguments)),
            Command::Bench(arguments) => host(|| bench::run(arguments)),
        }
    }
}

/// Runs a command of the host side: a signal ends everything that it started.
fn host(run: impl FnOnce() -> Result<ExitCode>) -> Result<ExitCode> {
    process::end_on_signals()?;
    run()
}
