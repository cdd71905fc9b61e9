//! The command line of the node plugin.

use std::process::ExitCode;

use clap::Parser as _;
use quarry_driver::admin::command;
use quarry_driver::args::{Cli, Command};
use quarry_driver::{run, telemetry};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> ExitCode {
    match execute(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quarry-driver: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn print(text: anyhow::Result<String>) -> anyhow::Result<()> {
    print!("{}", text?);
    Ok(())
}

async fn execute(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::CheckConfig(args) => {
            print!("{}", run::check_config(&args)?);
            Ok(())
        }
        Command::Probe(args) => run::probe(&args).await,
        Command::Volumes(args) => print(command::volumes(&args).await),
        Command::Forget(args) => print(command::forget(&args).await),
        Command::RemoveOrphan(args) => print(command::remove_orphan(&args).await),
        Command::Run(args) => {
            telemetry::start(args.log_format, &args.log_filter)?;
            let shutdown = CancellationToken::new();
            let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
            let token = shutdown.clone();
            tokio::spawn(async move {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                tracing::info!("asked to end");
                token.cancel();
            });
            run::run(args, shutdown).await
        }
    }
}
