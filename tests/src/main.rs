//! The command line of the test bed.

mod commands;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    commands::TestBed::parse().run().unwrap_or_else(|error| {
        eprintln!("testbed: {error:#}");
        ExitCode::from(commands::NO_VERDICT)
    })
}
