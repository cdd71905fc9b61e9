//! `testbed bench`: measures.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use quarry_tests::suite;

/// What `testbed bench` takes.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Latency and LVM processes of creating and deleting volumes.
    Create {
        /// Measure the driver as it is shipped, not a debug build.
        #[arg(long)]
        release: bool,
        /// Options of the benchmark itself.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// What the journal costs, and how the driver starts with many volumes.
    Journal {
        /// Measure an optimised driver, not a debug build.
        #[arg(long)]
        release: bool,
        /// Options of the benchmark itself.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// What the capacity-reporter costs with many nodes.
    Capacity {
        /// How many nodes there are, one number after the other, each larger than the one before.
        nodes: Vec<String>,
    },
}

/// Runs it.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.bench {
        Bench::Create { release, arguments } => Ok(suite::bench::create(release, &arguments)?.exit_code()),
        Bench::Capacity { nodes } => Ok(suite::bench::capacity_simulation(&nodes)?.exit_code()),
        Bench::Journal { release, arguments } => Ok(suite::bench::journal(release, &arguments)?.exit_code()),
    }
}
