//! Many reporters in one process: the real code, each with a simulated driver on a socket of its own, its own client with
//! its own connections, and the token of its own node.
//!
//! No process may have as many open files as thousands of reporters need, so there are several herds, each a process of
//! this program that takes orders over a socket.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use futures::{StreamExt as _, TryStreamExt as _};
use kube::{Client, Config};
use quarry_capacity_reporter::args::{Cli, Command as ReporterCommand, RunArgs};
use quarry_capacity_reporter::run;
use quarry_capacity_reporter::telemetry::metrics::Metrics;
use quarry_tests::cluster::release::NAMESPACE;
use quarry_tests::command::Command;
use quarry_tests::process::{self, Child, Log};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::driver::Driver;
use crate::{CLASSES, exposition};

/// How many reporters of a herd begin at the same time.
const AT_ONCE: usize = 16;
/// How long one may take until all it has to say is published.
const LIMIT: Duration = Duration::from_secs(120);

/// A node whose reporter is to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Member {
    /// The node's name.
    pub node: String,
    /// Its UID.
    pub uid: String,
    /// A token of the reporters' account, bound to the node.
    pub token: String,
    /// The API server to talk to.
    pub server: String,
    /// Bytes of room in each class at first.
    pub room: i64,
}

/// What a herd can be told.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// Start these; answered when each has published.
    Start(Vec<Member>),
    /// Have the driver of this node, or of all, say so many bytes of every class.
    Say {
        /// Which.
        node: Option<String>,
        /// How much.
        bytes: i64,
    },
    /// Tell what was asked of the API server so far.
    Count,
}

/// What the reporters of a herd asked of the API server so far, besides watches: how often, by verb and what came of it.
pub type Counts = BTreeMap<String, u64>;

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Done(Counts),
    Failed(String),
}

/// A herd, seen from whoever gives it orders.
pub struct Herd {
    _process: Child,
    stream: BufReader<UnixStream>,
}

impl Herd {
    /// Starts its process, which trusts this authority.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(folder: &Path, index: usize, authority: &Path) -> Result<Self> {
        let socket = folder.join(format!("herd-{index}.sock"));
        let own = std::env::current_exe().context("cannot find the own program")?;
        let command = Command::new(own).arg("herd").arg(&socket).arg(authority);
        let process = process::start(&command, Log::Inherit)?;
        for _ in 0..500 {
            if let Ok(stream) = UnixStream::connect(&socket).await {
                return Ok(Self { _process: process, stream: BufReader::new(stream) });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("a herd does not answer on {}", socket.display())
    }

    /// Gives an order and waits for its answer.
    ///
    /// # Errors
    /// What kept it from being carried out.
    pub async fn order(&mut self, order: &Order) -> Result<Counts> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).await.context("the herd is gone")?;
        let mut answer = String::new();
        self.stream.read_line(&mut answer).await.context("the herd is gone")?;
        match serde_json::from_str(&answer).context("the herd went away without an answer")? {
            Answer::Done(counts) => Ok(counts),
            Answer::Failed(error) => bail!("{error}"),
        }
    }
}

/// One reporter and its driver.
struct Running {
    driver: Driver,
    metrics: Arc<Metrics>,
}

/// Is a herd, until whoever gives orders is gone.
///
/// # Errors
/// When the socket cannot be served.
pub fn serve(socket: &Path, authority: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let folder = tempfile::tempdir().context("no folder for the drivers' sockets")?;
        let (stream, _) = UnixListener::bind(socket).context("cannot make the herd's socket")?.accept().await?;
        let mut stream = BufReader::new(stream);
        let mut running = HashMap::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let done = carry_out(serde_json::from_str(&line)?, &mut running, folder.path(), authority).await;
            let answer = done.map_or_else(|error| Answer::Failed(format!("{error:#}")), Answer::Done);
            let mut line = serde_json::to_vec(&answer)?;
            line.push(b'\n');
            stream.get_mut().write_all(&line).await?;
        }
    })
}

async fn carry_out(
    order: Order,
    running: &mut HashMap<String, Running>,
    folder: &Path,
    authority: &Path,
) -> Result<Counts> {
    match order {
        Order::Start(members) => {
            let started = futures::stream::iter(members)
                .map(|member| begin(member, folder, authority))
                .buffer_unordered(AT_ONCE)
                .try_collect::<Vec<_>>();
            running.extend(started.await?);
        }
        Order::Say { node, bytes } => {
            for one in running.iter().filter(|(name, _)| node.as_ref().is_none_or(|node| node == *name)) {
                say(&one.1.driver, bytes);
            }
        }
        Order::Count => {}
    }
    let mut counts = Counts::new();
    for one in running.values() {
        count(&String::from_utf8_lossy(&one.metrics.text()?), &mut counts)?;
    }
    Ok(counts)
}

/// Adds up what a reporter's metrics say of its requests.
///
/// # Errors
/// When they are not understood.
pub fn count(metrics: &str, counts: &mut Counts) -> Result<()> {
    for line in exposition::lines(metrics).filter(|line| line.name == "quarry_capacity_requests_total") {
        let what = format!("{} {}", line.label("verb"), line.label("result"));
        // Counters of requests are whole.
        *counts.entry(what).or_default() += line.value as u64;
    }
    Ok(())
}

/// Has a driver say so many bytes of every class.
pub fn say(driver: &Driver, bytes: i64) {
    for class in CLASSES {
        driver.whisper(class, Ok((bytes, Some(bytes))));
    }
    driver.signal();
}

/// Starts a reporter with its driver; it has published all it has to say when this returns.
async fn begin(member: Member, folder: &Path, authority: &Path) -> Result<(String, Running)> {
    let Member { node, token, server, room, .. } = member;
    let driver = Driver::start(&folder.join(&node), &node);
    say(&driver, room);
    let metrics = Arc::new(Metrics::new()?);
    let args = arguments(&node, driver.socket())?;
    let client = client(&server, authority, token)?;
    let reporter = tokio::spawn(run::report(args, client, Arc::clone(&metrics), CancellationToken::new()));
    let published = async {
        while !metrics.ready() && !reporter.is_finished() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, published).await.with_context(|| format!("{node} does not publish"))?;
    if reporter.is_finished() {
        reporter.await?.with_context(|| format!("the reporter of {node} ended"))?;
    }
    Ok((node, Running { driver, metrics }))
}

fn arguments(node: &str, socket: &Path) -> Result<RunArgs> {
    let line = ["reporter", "run", "--node-name", node, "--namespace", NAMESPACE, "--csi-socket"].map(PathBuf::from);
    match Cli::try_parse_from(line.into_iter().chain([socket.to_owned()]))?.command {
        ReporterCommand::Run(args) => Ok(args),
        other => bail!("`run` is not {other:?}"),
    }
}

fn client(server: &str, authority: &Path, token: String) -> Result<Client> {
    let mut config = Config::new(server.parse().context("the API server's address")?);
    config.root_cert_file = Some(authority.to_owned());
    config.auth_info.token = Some(token.into());
    run::client_of(config)
}
