//! Carries out the command line of `quarry-capacity-reporter`.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::args::{Cli, Command};
use crate::{clean, restore_io, run, telemetry};

/// Does what the command line says, and tells on standard error what kept it from that.
#[must_use]
pub fn main() -> ExitCode {
    // One thread is plenty for a few requests a second, and costs the least memory.
    let outcome =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime");
    match outcome.and_then(|runtime| runtime.block_on(execute(Cli::parse()))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quarry-capacity-reporter: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn execute(cli: Cli) -> anyhow::Result<()> {
    let end = CancellationToken::new();
    tokio::spawn(listen(signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, end.clone()));
    match cli.command {
        Command::Run(args) => {
            telemetry::start(args.log_format, &args.log_filter)?;
            run::run(args, end).await
        }
        Command::Clean(args) => {
            telemetry::start(args.log_format, &args.log_filter)?;
            let client = run::client()?;
            tokio::select! {
                cleaned = clean::clean(&client, &args) => cleaned.context("cannot delete the driver's capacity objects"),
                () = end.cancelled() => anyhow::bail!("ended before every object was deleted"),
            }
        }
        Command::RestoreIo(args) => {
            telemetry::start(args.log_format, &args.log_filter)?;
            let client = run::client()?;
            tokio::select! {
                restored = restore_io::restore_io(&client, &args) => Ok(restored?),
                () = end.cancelled() => anyhow::bail!("ended before every node was asked"),
            }
        }
    }
}

/// There is nothing to finish: what is written is whole, and what is not is written by the next reporter.
async fn listen(mut terminate: Signal, mut interrupt: Signal, end: CancellationToken) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("asked to end");
    end.cancel();
}
