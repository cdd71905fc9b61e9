//! Runs the driver: from its options to a served socket, and to an orderly end.
//!
//! **Invariant.** Asked to end, the driver begins nothing new and ends within a bound, whatever still runs or stays
//! connected; what still ran is named.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use quarry_proto::csi::v1::controller_server::ControllerServer;
use quarry_proto::csi::v1::identity_client::IdentityClient;
use quarry_proto::csi::v1::identity_server::IdentityServer;
use quarry_proto::csi::v1::node_server::NodeServer;
use quarry_proto::quarry::v1::admin_server::AdminServer;
use quarry_proto::quarry::v1::capacity_server::CapacityServer;
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Endpoint, Server};

use crate::admin::service::AdminService;
use crate::args::{CheckConfigArgs, ProbeArgs, RunArgs};
use crate::capacity::claims::Claims;
use crate::capacity::service::CapacityService;
use crate::config::Config;
use crate::csi::controller::ControllerService;
use crate::csi::detached::{Detached, Operation};
use crate::csi::identity::Identity;
use crate::csi::intake::Intake;
use crate::csi::node::NodeService;
use crate::csi::registration::{Registered, Registration};
use crate::csi::socket::Socket;
use crate::engine::{Engine, Settings, survey};
use crate::exec::{Exec, Tools};
use crate::filesystem::Filesystems;
use crate::io::Control;
use crate::io::calibrate::{Calibrator, Ground};
use crate::io::control::{Places, Tenants};
use crate::journal::{Journal, JournalCheck, Rebuilt, SledJournal};
use crate::telemetry::health::{Check, Fault, Health};
use crate::telemetry::http;
use crate::telemetry::metrics::{Metrics, Origin, Snapshot, Source};

/// How long a driver waits for another one on this node to end: the old pod of a rollout.
const LOCK_WAIT: Duration = Duration::from_secs(30);

/// How a driver is asked to end: once, and again by who does not want to wait.
#[derive(Debug, Clone, Default)]
pub struct Ending {
    /// Nothing new is begun; what runs is waited for.
    pub asked: CancellationToken,
    /// Nothing is waited for any more.
    pub hurried: CancellationToken,
}

impl Ending {
    /// Ends when what runs is not to be waited for any more: some time after the driver was asked to end, or at once.
    async fn overdue(&self, bound: Duration) {
        let bounded = async {
            self.asked.cancelled().await;
            tokio::time::sleep(bound).await;
        };
        tokio::select! {
            () = bounded => {}
            () = self.hurried.cancelled() => {}
        }
    }
}

/// A driver that ends is alive and not ready.
impl Check for Ending {
    fn faults(&self) -> Vec<Fault> {
        let fault = || Fault { subject: "driver".to_owned(), reason: "it is ending".to_owned(), since: None };
        self.asked.is_cancelled().then(fault).into_iter().collect()
    }
}

/// Serves CSI until it is asked to end, then waits for the operations under way, within a bound.
///
/// # Errors
/// Whatever keeps the driver from serving; at the end, that something still ran.
pub async fn run(args: RunArgs, ending: Ending) -> anyhow::Result<()> {
    let config = match &args.config {
        Some(path) => Config::load(path, &args.node_name)?,
        None => Config::zero(),
    };
    let config_hash = config_hash(args.config.as_deref())?;
    std::fs::create_dir_all(&args.state_dir)
        .with_context(|| format!("cannot make the state folder {}", args.state_dir.display()))?;
    let _lock = lock_state(&args.state_dir).await?;
    let tools = Tools::find().context("a program that the driver needs is missing")?;
    // Bound before the volume groups are looked at: a second driver on the same socket ends here, having done nothing.
    let Socket { listener, path } = Socket::bind(&args.csi_socket)?;
    let http = match args.http_address {
        Some(address) => Some(http::bind(address).await?),
        None => None,
    };
    let exec = Exec::default();
    let opened = SledJournal::open(&args.state_dir).await?;
    if let Some(Rebuilt { why, aside }) = &opened.rebuilt {
        let aside = aside.as_ref().map(|aside| aside.display().to_string());
        tracing::error!(why, aside, "the journal begins anew: volumes are found again in LVM");
    }
    let bound = config.timeouts.shutdown();
    let started = Engine::start(Settings {
        node_name: args.node_name.clone(),
        config,
        tools: tools.clone(),
        state_dir: args.state_dir.clone(),
        host_lvm_dir: args.host_lvm_dir.clone(),
        exec: exec.clone(),
        journal: journal(opened.journal),
    });
    let engine = tokio::select! {
        started = started => started?,
        () = ending.overdue(bound) => anyhow::bail!("ended while it was starting"),
    };
    // Ends what only serves; later than `asked`, when the operations have ended.
    let end = CancellationToken::new();
    let shares = match Control::open(Places::default(), engine.config().io.clone(), &args.state_dir) {
        Ok(shares) => Some(Arc::new(shares)),
        Err(error) => {
            // Volumes are served all the same.
            tracing::error!(error = crate::telemetry::chain(&error), "no weights and limits are set");
            None
        }
    };
    if let Some(shares) = &shares {
        tokio::spawn(Arc::clone(shares).run(Arc::clone(&engine) as Arc<dyn Tenants>, end.clone()));
    }
    let calibrator = shares.as_ref().map(|shares| {
        let calibrator = Calibrator::new(Arc::clone(shares), Arc::clone(&engine) as Arc<dyn Ground>, exec.clone());
        let calibrator = Arc::new(calibrator);
        if shares.calibrates_by_itself() {
            tokio::spawn(Arc::clone(&calibrator).run(ending.asked.clone()));
        }
        calibrator
    });
    let watch = tokio::spawn(Arc::clone(&engine).watch(end.clone()));
    let announce = tokio::spawn(Arc::clone(&engine).announce(end.clone()));
    tokio::spawn(Arc::clone(&engine).sample(end.clone()));
    let audit = tokio::spawn(Arc::clone(&engine).audit(end.clone()));
    // Cancelled after the last change, which is copied too.
    let work_done = CancellationToken::new();
    let backups = tokio::spawn(Arc::clone(engine.backups()).keep(work_done.clone()));
    let detached = Detached::default();
    let origin = Origin { node: args.node_name.clone(), config: config_hash, each_volume: args.volume_metrics };
    let metrics = Arc::new(Metrics::new(origin).context("the metrics cannot be made")?);
    let parts = Parts {
        health: Health::default()
            .with(Arc::clone(&engine) as Arc<dyn Check>)
            .with(Arc::new(JournalCheck(Arc::clone(engine.journal()))))
            .with(Arc::new(ending.clone())),
        engine: Arc::clone(&engine),
        exec: exec.clone(),
        detached: detached.clone(),
        shares: shares.clone(),
    };
    if let Some(listener) = http {
        let (health, source) = (parts.health.clone(), Arc::new(parts.clone()));
        tokio::spawn(http::Endpoint { health, metrics: Arc::clone(&metrics), source }.serve(listener, end.clone()));
    }
    let claims = Claims::default();
    let timeouts = engine.config().timeouts;
    let filesystems = Filesystems::new(exec, tools, timeouts.kill());
    let node = NodeService::new(Arc::clone(&engine), filesystems, detached.clone(), timeouts.node_answer());
    let registration = args.registration_socket.clone().zip(args.kubelet_csi_socket.clone());
    let registration = registration.map(|(socket, csi_socket)| {
        let (state, _) = tokio::sync::watch::channel(Registered::Waiting);
        tokio::spawn(Registration { socket, csi_socket }.serve(state, ending.asked.clone()))
    });
    tracing::info!(node = args.node_name, socket = %args.csi_socket.display(), version = env!("CARGO_PKG_VERSION"), "serving CSI");
    let server = Server::builder()
        .layer(Intake { metrics, ending: ending.asked.clone() })
        .add_service(IdentityServer::new(Identity))
        .add_service(ControllerServer::new(ControllerService::new(
            Arc::clone(&engine),
            detached.clone(),
            claims.clone(),
        )))
        .add_service(NodeServer::new(node))
        .add_service(CapacityServer::new(CapacityService::new(
            Arc::clone(&engine),
            claims,
            shares.clone(),
            ending.asked.clone(),
        )))
        .add_service(AdminServer::new(AdminService::new(
            Arc::clone(&engine),
            detached.clone(),
            shares,
            calibrator,
            parts.health.clone(),
        )))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), end.clone().cancelled_owned());
    let mut server = tokio::spawn(server);
    let served = tokio::select! {
        served = &mut server => served?.context("the CSI server failed"),
        () = ending.asked.cancelled() => Ok(()),
        // Nobody can reach the driver any more, and nobody would notice: whoever restarts it makes a new socket.
        () = path.lost() => Err(anyhow::anyhow!("the socket {} was removed", args.csi_socket.display())),
    };
    ending.asked.cancel();
    let ended = parts.finish(timeouts.shutdown(), &ending.hurried).await;
    end.cancel();
    // The last answers are on their way. A client that keeps a request or a connection open does not keep the driver.
    if ended.is_ok() && !server.is_finished() {
        drop(tokio::time::timeout(LAST_ANSWERS, server).await);
    }
    path.remove();
    work_done.cancel();
    // A watch that waits for a hung disk, or a registration that waits for its client, is left to itself.
    if let Some(registration) = registration {
        match tokio::time::timeout(LAST_ANSWERS, registration).await {
            Ok(registered) => registered??,
            Err(_) => tracing::warn!("the registration with kubelet does not end"),
        }
    }
    for background in [watch, announce, audit, backups] {
        drop(tokio::time::timeout(LAST_ANSWERS, background).await);
    }
    tracing::info!("ended");
    served.and(ended)
}

/// How long the last answers may take to reach their callers.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// A hash of the configuration file, by which nodes with the same one are known; of an empty one where there is none.
fn config_hash(file: Option<&Path>) -> anyhow::Result<String> {
    let text = match file {
        Some(file) => std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?,
        None => Vec::new(),
    };
    let hash = data_encoding::HEXLOWER.encode(&Sha256::digest(text));
    Ok(hash.chars().take(16).collect())
}

/// The journal that was opened.
fn journal(opened: SledJournal) -> Arc<dyn Journal> {
    // What the journal costs is measured by leaving it out.
    #[cfg(feature = "crash-points")]
    if std::env::var_os("QUARRY_FORGETFUL_JOURNAL").is_some() {
        tracing::error!("the journal is kept in memory only: this is for measurements");
        return Arc::new(crate::journal::Forgetful::default());
    }
    Arc::new(opened)
}

/// The parts that know what runs and how things are.
#[derive(Debug, Clone)]
struct Parts {
    engine: Arc<Engine>,
    exec: Exec,
    detached: Detached,
    health: Health,
    shares: Option<Arc<Control>>,
}

impl Parts {
    /// Waits for the operations under way.
    ///
    /// # Errors
    /// Naming what still runs at the bound, or when it is not to be waited for any more.
    async fn finish(&self, bound: Duration, hurried: &CancellationToken) -> anyhow::Result<()> {
        let running = self.detached.running();
        tracing::info!(operations = list(&running), bound_s = bound.as_secs(), "ending: waiting for what runs");
        let all = async {
            self.detached.finish().await;
            self.engine.finish_background().await;
        };
        let why = tokio::select! {
            () = all => return Ok(()),
            () = tokio::time::sleep(bound) => format!("after {} s", bound.as_secs()),
            () = hurried.cancelled() => "at the second signal".to_owned(),
        };
        let operations = list(&self.detached.running());
        let commands = self.exec.running();
        let commands: Vec<String> =
            commands.iter().map(|command| format!("`{}` ({:.1} s)", command.line, command.age.as_secs_f64())).collect();
        let commands = if commands.is_empty() { "none".to_owned() } else { commands.join(", ") };
        tracing::error!(
            operations,
            commands,
            "ending {why} although something still runs; the next start finds out what came of it"
        );
        anyhow::bail!("ended {why} while there still ran: {operations}; commands: {commands}")
    }
}

fn list(operations: &[Operation]) -> String {
    if operations.is_empty() {
        return "none".to_owned();
    }
    operations.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Source for Parts {
    fn snapshot(&self) -> Snapshot {
        let running = self.exec.running();
        let inventory = self.engine.inventory();
        let count =
            |state: survey::State| inventory.volumes.iter().filter(|volume| volume.state == state.name()).count();
        let volumes = survey::State::ALL.into_iter().map(|state| (state.name(), count(state))).collect();
        Snapshot {
            commands: self.exec.counts(),
            running: running.len(),
            oldest: running.first().map(|command| command.age).unwrap_or_default(),
            operations: self.detached.running().len(),
            answered_early: self.detached.answered_early(),
            copies: self.engine.backups().written(),
            copies_failed: self.engine.backups().failures(),
            groups: self.engine.group_health().into_iter().map(|group| (group.name, group.readable)).collect(),
            ready: self.health.report().ready,
            journal: self.engine.journal().status(),
            volumes,
            inventory,
            shares: self.shares.as_ref().map(|shares| (shares.states(), shares.counts())).unwrap_or_default(),
        }
    }
}

/// One driver per node: two would not know of each other's changes.
async fn lock_state(state_dir: &Path) -> anyhow::Result<File> {
    let path = state_dir.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let give_up = tokio::time::Instant::now() + LOCK_WAIT;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if tokio::time::Instant::now() < give_up => {
                tracing::warn!(lock = %path.display(), "another driver runs on this node; waiting for its end");
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                anyhow::bail!(
                    "another driver holds {} and did not end within {} s",
                    path.display(),
                    LOCK_WAIT.as_secs()
                )
            }
            Err(error) => return Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }
}

/// Checks a configuration file; says what the node makes of it.
///
/// # Errors
/// What is wrong with the file.
pub fn check_config(args: &CheckConfigArgs) -> anyhow::Result<String> {
    use std::fmt::Write as _;
    let config = Config::load(&args.file, &args.node_name)?;
    let mut text = String::new();
    for class in &config.device_classes {
        let (name, vg, pool) = (&class.name, &class.volume_group, &class.thin_pool);
        writeln!(text, "device class {name}: volume group {vg}, thin pool {pool}")?;
    }
    if config.device_classes.is_empty() {
        text.push_str("no device class\n");
    }
    Ok(text)
}

/// Asks a running driver whether it serves.
///
/// # Errors
/// When it does not answer in time, or says no.
pub async fn probe(args: &ProbeArgs) -> anyhow::Result<()> {
    let limit = Duration::from_secs(args.timeout_seconds);
    let ask = async {
        let endpoint = Endpoint::from_shared(format!("unix://{}", args.csi_socket.display()))?;
        let channel = endpoint.connect().await;
        let channel =
            channel.map_err(|_| anyhow::anyhow!("nobody listens on the socket {}", args.csi_socket.display()))?;
        let answer = IdentityClient::new(channel).probe(quarry_proto::csi::v1::ProbeRequest {}).await?;
        anyhow::ensure!(answer.into_inner().ready.unwrap_or(true), "the driver is not ready");
        Ok(())
    };
    let asked = tokio::time::timeout(limit, ask).await;
    asked.with_context(|| format!("no answer within {} s", args.timeout_seconds))?
}
