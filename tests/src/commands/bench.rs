//! `testbed bench`: measures in a machine.

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
    /// What shares come out of weights, with no control, with iocost and with BFQ.
    Isolation {
        /// Measure the driver as it is shipped, not a debug build.
        #[arg(long)]
        release: bool,
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
    /// What a scrape of the metrics costs with few and with thousands of volumes.
    Scrape {
        /// Measure the driver as it is shipped, not a debug build.
        #[arg(long)]
        release: bool,
        /// Options of the benchmark itself.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
}

/// Runs it.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.bench {
        Bench::Create { release, arguments } => Ok(suite::bench::create(release, &arguments)?.exit_code()),
        Bench::Isolation { release } => Ok(suite::bench::isolation(release)?.exit_code()),
        Bench::Journal { release, arguments } => Ok(suite::bench::journal(release, &arguments)?.exit_code()),
        Bench::Scrape { release, arguments } => Ok(suite::bench::scrape(release, &arguments)?.exit_code()),
    }
}
