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
    let cluster = Arc::new(cluster);
    let (stop, stopped) = mpsc::channel();
    control::serve(&cluster, Some(stop))?;
    keep(cluster, &stopped)?;
    Ok(ExitCode::SUCCESS)
}

/// Says how to go on by hand, waits for `testbed stop` (a signal ends the process from its own thread), then stops it.
pub fn keep(cluster: Arc<Cluster>, stopped: &mpsc::Receiver<()>) -> Result<()> {
    println!("\nThe cluster keeps running until Ctrl-C here or `./dev stop` elsewhere. To go on by hand:\n");
    println!("  alias kubectl={}", cluster.kubectl().program().display());
    println!("  kubectl get pods -A -o wide");
    for node in cluster.nodes() {
        println!("  ./dev node {node} lvs");
    }
    println!("\nLogs: {}", cluster.folder().display());
    stopped.recv().context("the control socket is gone")?;
    Cluster::unshare(cluster)?.stop()
}

/// Stops every cluster that this checkout's test bed runs.
pub fn stop() -> Result<ExitCode> {
    let running = cluster::running()?;
    if running.is_empty() {
        println!("no cluster runs");
    }
    for (folder, pid) in &running {
        // One that is kept is asked and ends well; any other, that starts or runs a suite, is told to end.
        if Remote::of(folder).order(&Request::Stop).is_err() {
            end(*pid)?;
        }
        let gone = || Ok((!folder.exists()).then_some(()));
        wait::until("end of the cluster", Duration::from_secs(60), Duration::from_millis(100), gone)?;
        println!("stopped the cluster in {}", folder.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks a test bed's process to end, if it is one.
fn end(pid: i32) -> Result<()> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if name.trim() != "testbed" {
        bail!("process {pid} is {:?} and no test bed: its cluster's folder was left behind", name.trim());
    }
    let pid = rustix::process::Pid::from_raw(pid).context("no process has this number")?;
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).context("cannot end the test bed")
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
        [(one, _)] => Ok(one.clone()),
        [] => bail!("no cluster runs: start one with `./dev demo --keep`"),
        more => bail!("{} clusters run on this machine; stop them with `./dev stop`", more.len()),
    }
}
