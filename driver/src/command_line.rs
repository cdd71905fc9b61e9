//! Carries out the command line of `quarry-driver`.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::admin::command;
use crate::args::{Cli, Command};
use crate::run::Ending;
use crate::{run, telemetry};

/// Does what the command line says, and tells on standard error what kept it from that.
#[must_use]
pub fn main() -> ExitCode {
    let outcome = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime");
    let outcome = outcome.and_then(|runtime| {
        let outcome = runtime.block_on(execute(Cli::parse()));
        // A thread may wait for a command or a disk that never answers: it is not waited for.
        runtime.shutdown_background();
        outcome
    });
    match outcome {
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
        Command::Status(args) => print(command::status(&args).await),
        Command::LogFilter(args) => print(command::log_filter(&args).await),
        Command::Forget(args) => print(command::forget(&args).await),
        Command::Calibrate(args) => print(command::calibrate(&args).await),
        Command::IoProbe(args) => print(command::io_probe(&args)),
        Command::RestoreIo(args) => print(command::restore_io(&args).await),
        Command::RemoveOrphan(args) => print(command::remove_orphan(&args).await),
        Command::Run(args) => {
            telemetry::start(args.log_format, &args.log_filter)?;
            let ending = Ending::default();
            tokio::spawn(listen(signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, ending.clone()));
            run::run(args, ending).await
        }
    }
}

/// The first signal asks the driver to end, the second one hurries it.
async fn listen(mut terminate: Signal, mut interrupt: Signal, ending: Ending) {
    for (token, said) in [(ending.asked, "asked to end"), (ending.hurried, "asked again: ending at once")] {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("{said}");
        token.cancel();
    }
}
