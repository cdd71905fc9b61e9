//! `testbed bench`: measures.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use quarry_tests::suite::{self, Verdict};

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
    /// What a scrape of the metrics costs with few and with a thousand volumes.
    Scrape {
        /// Measure the driver as it is shipped, not a debug build.
        #[arg(long)]
        release: bool,
        /// Only this part.
        #[arg(long)]
        only: Option<ScrapePart>,
    },
    /// How fast the capacity-reporter is on a real node, and what it costs with many.
    Capacity {
        /// Only this part.
        #[arg(long)]
        only: Option<CapacityPart>,
        /// How many nodes there are, one number after the other, each larger than the one before.
        nodes: Vec<String>,
    },
}

/// A part of the capacity benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CapacityPart {
    /// Reporters of simulated nodes, on this machine.
    Simulation,
    /// A cluster of one node in a virtual machine.
    Cluster,
}

/// A part of the scrape benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ScrapePart {
    /// The driver on real LVM, in a virtual machine.
    Machine,
    /// Its HTTP endpoint, on this machine.
    Endpoint,
}

/// Runs it.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.bench {
        Bench::Create { release, arguments } => Ok(suite::bench::create(release, &arguments)?.exit_code()),
        Bench::Isolation { release } => Ok(suite::bench::isolation(release)?.exit_code()),
        Bench::Capacity { only, nodes } => in_turn(&[
            (only != Some(CapacityPart::Cluster), &|| suite::bench::capacity_simulation(&nodes)),
            (only != Some(CapacityPart::Simulation), &suite::bench::capacity_cluster),
        ]),
        Bench::Journal { release, arguments } => Ok(suite::bench::journal(release, &arguments)?.exit_code()),
        Bench::Scrape { release, only } => in_turn(&[
            (only != Some(ScrapePart::Endpoint), &|| suite::bench::scrape(release)),
            (only != Some(ScrapePart::Machine), &suite::bench::scrape_endpoint),
        ]),
    }
}

/// Measures the parts that are wanted, until one has no result.
fn in_turn(parts: &[(bool, &dyn Fn() -> Result<Verdict>)]) -> Result<ExitCode> {
    for (_, measure) in parts.iter().filter(|(wanted, _)| *wanted) {
        let verdict = measure()?;
        if verdict != Verdict::Pass {
            return Ok(verdict.exit_code());
        }
    }
    Ok(Verdict::Pass.exit_code())
}
