//! `testbed cluster`: a cluster by hand, without the driver; and `testbed stop`, `testbed node` for one that runs.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use quarry_tests::cluster::control::{self, Remote, Request};
use quarry_tests::cluster::{self, Cluster, NodeSettings, Parts};
use quarry_tests::command::{Command, Exit};
use quarry_tests::progress::Progress;
use quarry_tests::wait;

use super::NO_VERDICT;

/// What `testbed node` takes.
#[derive(Debug, Args)]
pub struct NodeArguments {
    /// The node.
    name: String,
    /// The command and its arguments.
    #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Starts an empty cluster of two nodes and keeps it until it is told to stop.
pub fn run() -> Result<ExitCode> {
    let progress = Progress::default();
    let nodes = vec![NodeSettings::usual("quarry-1"), NodeSettings::usual("quarry-2")];
    let cluster = Parts::make(false, &progress)?.start(nodes, &progress)?;
    progress.say("the cluster runs");
    keep(cluster)?;
    Ok(ExitCode::SUCCESS)
}

/// Says how to go on by hand, waits for `testbed stop` (a signal ends the process from its own thread), then stops it.
pub fn keep(cluster: Cluster) -> Result<()> {
    let cluster = Arc::new(cluster);
    let (stop, stopped) = mpsc::channel();
    control::serve(&cluster, move || {
        // Nobody waits any more when it is already stopping.
        stop.send(()).ok();
    })?;
    println!("\nThe cluster keeps running until Ctrl-C here or `./dev stop` elsewhere. To go on by hand:\n");
    println!("  alias kubectl={}", cluster.kubectl().program().display());
    println!("  kubectl get pods -A -o wide");
    for node in cluster.nodes() {
        println!("  ./dev node {node} lvs");
    }
    println!("\nLogs: {}", cluster.folder().display());
    stopped.recv().context("the control socket is gone")?;
    stop_shared(cluster)
}

/// Stops a cluster that was served on its socket, once the requests that run have ended.
pub fn stop_shared(cluster: Arc<Cluster>) -> Result<()> {
    let alone = || Ok((Arc::strong_count(&cluster) == 1).then_some(()));
    wait::until("end of the requests to the cluster", Duration::from_secs(60), Duration::from_millis(50), alone)?;
    Arc::into_inner(cluster).context("the cluster is still in use")?.stop()
}

/// Stops every cluster that runs on this machine.
pub fn stop() -> Result<ExitCode> {
    let running = cluster::running()?;
    if running.is_empty() {
        println!("no cluster runs");
    }
    for folder in &running {
        Remote::of(folder).order(&Request::Stop).with_context(|| {
            format!(
                "the test bed in {} does not take orders: it is starting, or runs a suite; end it with Ctrl-C",
                folder.display()
            )
        })?;
        let gone = || Ok((!folder.exists()).then_some(()));
        wait::until("end of the cluster", Duration::from_secs(60), Duration::from_millis(100), gone)?;
        println!("stopped the cluster in {}", folder.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a command on a node of the cluster that runs.
pub fn node(arguments: NodeArguments) -> Result<ExitCode> {
    let command = Command { argv: arguments.command, env: Vec::new(), cwd: None, stdin: None };
    let outcome = Remote::of(&the_one()?).run(&arguments.name, &command, Duration::from_secs(3600))?;
    print!("{}", outcome.stdout_text());
    eprint!("{}", outcome.stderr_text());
    Ok(match outcome.exit {
        Exit::Code(code) => ExitCode::from(u8::try_from(code).unwrap_or(NO_VERDICT)),
        Exit::Signal(_) => ExitCode::from(NO_VERDICT),
    })
}

fn the_one() -> Result<PathBuf> {
    match cluster::running()?.as_slice() {
        [one] => Ok(one.clone()),
        [] => bail!("no cluster runs: start one with `./dev demo --keep`"),
        more => bail!("{} clusters run on this machine; stop them with `./dev stop`", more.len()),
    }
}
