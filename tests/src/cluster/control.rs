//! A running cluster's socket: how a test binary, or a person, reaches its nodes from another process.
//!
//! One request per connection, one JSON document each way. The socket lies in the cluster's folder, which only root
//! can enter.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use serde::{Deserialize, Serialize};

use super::Cluster;
use crate::command::{Command, Exit, Outcome};

const SOCKET: &str = "control.sock";

/// What can be asked of a running cluster.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Run a command on a node.
    Run {
        /// The node's name.
        node: String,
        /// The command.
        command: Command,
        /// How long it may take, in seconds.
        limit_s: u64,
    },
    /// Shut a node down in order and boot it again.
    Reboot {
        /// The node's name.
        node: String,
    },
    /// Cut a node's power and boot it again.
    PowerCut {
        /// The node's name.
        node: String,
    },
    /// Stop the API server and start it again.
    RestartApiServer,
    /// Collect everything that explains a failure into a folder.
    Collect {
        /// The folder, made if missing.
        folder: PathBuf,
    },
    /// End the test bed that runs the cluster, and the cluster with it.
    Stop,
}

/// What comes back.
#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    Outcome { exit: Exit, stdout: Vec<u8>, stderr: Vec<u8> },
    Done,
    Error(String),
}

/// Serves requests on threads of its own until the process ends. [`Request::Stop`] is handed to `stop`; without it, or
/// when nobody receives any more, it is refused.
///
/// # Errors
/// When the socket cannot be made.
pub fn serve(cluster: &Arc<Cluster>, stop: Option<mpsc::Sender<()>>) -> Result<()> {
    let folder = File::open(cluster.folder()).context("cannot open the cluster's folder")?;
    let listener = UnixListener::bind(short_path(&folder)).context("cannot make the control socket")?;
    let cluster = Arc::downgrade(cluster);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let Some(cluster) = cluster.upgrade() else { return };
            let stop = stop.clone();
            thread::spawn(move || {
                if let Err(error) = answer(&cluster, stop.as_ref(), stream) {
                    eprintln!("testbed: control socket: {error:#}");
                }
            });
        }
    });
    Ok(())
}

fn answer(cluster: &Cluster, stop: Option<&mpsc::Sender<()>>, mut stream: UnixStream) -> Result<()> {
    let mut line = String::new();
    BufReader::new(stream.try_clone()?).read_line(&mut line)?;
    let request: Request = serde_json::from_str(&line).context("the request is not understood")?;
    let reply = handle(cluster, stop, request).unwrap_or_else(|error| Reply::Error(format!("{error:#}")));
    serde_json::to_writer(&mut stream, &reply)?;
    Ok(stream.write_all(b"\n")?)
}

fn handle(cluster: &Cluster, stop: Option<&mpsc::Sender<()>>, request: Request) -> Result<Reply> {
    match request {
        Request::Run { node, command, limit_s } => {
            let outcome = cluster.node(&node)?.run(&command, Duration::from_secs(limit_s))?;
            return Ok(Reply::Outcome { exit: outcome.exit, stdout: outcome.stdout, stderr: outcome.stderr });
        }
        Request::Reboot { node } => cluster.node(&node)?.reboot()?,
        Request::PowerCut { node } => cluster.node(&node)?.power_cut()?,
        Request::RestartApiServer => cluster.restart_api_server()?,
        Request::Collect { folder } => cluster.collect(&folder)?,
        Request::Stop => stop.and_then(|stop| stop.send(()).ok()).context("this cluster is not kept running")?,
    }
    Ok(Reply::Done)
}

/// The other end: a cluster that another process runs.
#[derive(Debug, Clone)]
pub struct Remote {
    folder: PathBuf,
}

impl Remote {
    /// The cluster whose folder this is.
    #[must_use]
    pub fn of(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// The cluster's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs a command on a node.
    ///
    /// # Errors
    /// When there is no such node or no verdict; any exit of the command is an [`Outcome`].
    pub fn run(&self, node: &str, command: &Command, limit: Duration) -> Result<Outcome> {
        let request = Request::Run { node: node.to_owned(), command: command.clone(), limit_s: limit.as_secs() };
        match self.ask(&request)? {
            Reply::Outcome { exit, stdout, stderr } => {
                Ok(Outcome { line: format!("{node}: {command}"), exit, stdout, stderr })
            }
            other => Err(anyhow!("the cluster answered {other:?}")),
        }
    }

    /// Asks for anything that has no result but success.
    ///
    /// # Errors
    /// What the cluster says went wrong, or that it is not there.
    pub fn order(&self, request: &Request) -> Result<()> {
        self.ask(request).map(drop)
    }

    fn ask(&self, request: &Request) -> Result<Reply> {
        let folder = File::open(&self.folder).with_context(|| format!("no cluster in {}", self.folder.display()))?;
        let mut stream = UnixStream::connect(short_path(&folder))
            .with_context(|| format!("no running cluster in {}", self.folder.display()))?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        match serde_json::from_str(&answer).context("the cluster went away without an answer")? {
            Reply::Error(error) => Err(anyhow!(error)),
            reply => Ok(reply),
        }
    }
}

/// The socket's path however long the folder's is: a socket's own path has 108 bytes at most.
fn short_path(folder: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))
}
