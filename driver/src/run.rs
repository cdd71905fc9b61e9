//! Runs the driver: from its options to a served socket, and to an orderly end.

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
use rustix::fs::{FlockOperation, flock};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Endpoint, Server};

use crate::admin::service::AdminService;
use crate::args::{CheckConfigArgs, ProbeArgs, RunArgs};
use crate::config::Config;
use crate::csi::controller::ControllerService;
use crate::csi::detached::Detached;
use crate::csi::identity::Identity;
use crate::csi::node::NodeService;
use crate::csi::registration::{Registered, Registration};
use crate::csi::socket::Socket;
use crate::engine::{Engine, Settings};
use crate::exec::{Exec, Tools};
use crate::filesystem::Filesystems;
use crate::journal::{Journal, Rebuilt, SledJournal};

/// How long a driver waits for another one on this node to end: the old pod of a rollout.
const LOCK_WAIT: Duration = Duration::from_secs(30);

/// Serves CSI until `shutdown` is cancelled, then waits for the operations under way.
///
/// # Errors
/// Whatever keeps the driver from serving.
pub async fn run(args: RunArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let config = match &args.config {
        Some(path) => Config::load(path, &args.node_name)?,
        None => Config::zero(),
    };
    std::fs::create_dir_all(&args.state_dir)
        .with_context(|| format!("cannot make the state folder {}", args.state_dir.display()))?;
    let _lock = lock_state(&args.state_dir).await?;
    let tools = Tools::find().context("a program that the driver needs is missing")?;
    // Bound before the volume groups are looked at: a second driver on the same socket ends here, having done nothing.
    let Socket { listener, path } = Socket::bind(&args.csi_socket)?;
    let exec = Exec::default();
    let opened = SledJournal::open(&args.state_dir).await?;
    if let Some(Rebuilt { why, aside }) = &opened.rebuilt {
        let aside = aside.as_ref().map(|aside| aside.display().to_string());
        tracing::error!(why, aside, "the journal begins anew: volumes are found again in LVM");
    }
    let engine = Engine::start(Settings {
        node_name: args.node_name.clone(),
        config,
        tools: tools.clone(),
        state_dir: args.state_dir.clone(),
        host_lvm_dir: args.host_lvm_dir.clone(),
        exec: exec.clone(),
        journal: journal(opened.journal),
    })
    .await?;
    let watch = tokio::spawn(Arc::clone(&engine).watch(shutdown.clone()));
    let audit = tokio::spawn(Arc::clone(&engine).audit(shutdown.clone()));
    // Cancelled after the last change, which is copied too.
    let work_done = CancellationToken::new();
    let backups = tokio::spawn(Arc::clone(engine.backups()).keep(work_done.clone()));
    let detached = Detached::default();
    let timeouts = engine.config().timeouts;
    let filesystems = Filesystems::new(exec, tools, timeouts.kill());
    let node = NodeService::new(Arc::clone(&engine), filesystems, detached.clone(), timeouts.node_answer());
    let registration = args.registration_socket.clone().zip(args.kubelet_csi_socket.clone());
    let registration = registration.map(|(socket, csi_socket)| {
        let (state, _) = tokio::sync::watch::channel(Registered::Waiting);
        tokio::spawn(Registration { socket, csi_socket }.serve(state, shutdown.clone()))
    });
    tracing::info!(node = args.node_name, socket = %args.csi_socket.display(), version = env!("CARGO_PKG_VERSION"), "serving CSI");
    let served = Server::builder()
        .add_service(IdentityServer::new(Identity))
        .add_service(ControllerServer::new(ControllerService::new(Arc::clone(&engine), detached.clone())))
        .add_service(NodeServer::new(node))
        .add_service(AdminServer::new(AdminService::new(Arc::clone(&engine), detached.clone())))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown.clone().cancelled_owned());
    // A client that keeps its connection open must not keep the driver from ending.
    let served = tokio::select! {
        served = served => served.context("the CSI server failed"),
        () = after(&shutdown, DRAIN) => Ok(()),
        // Nobody can reach the driver any more, and nobody would notice: whoever restarts it makes a new socket.
        () = path.lost() => Err(anyhow::anyhow!("the socket {} was removed", args.csi_socket.display())),
    };
    shutdown.cancel();
    path.remove();
    tracing::info!(running = detached.running(), "waiting for the operations under way");
    detached.finish().await;
    engine.finish_background().await;
    watch.await?;
    audit.await?;
    work_done.cancel();
    backups.await?;
    if let Some(registration) = registration {
        registration.await??;
    }
    tracing::info!("ended");
    served
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

/// How long requests under way are waited for at the end; the work behind them is waited for without a bound.
const DRAIN: Duration = Duration::from_secs(5);

async fn after(shutdown: &CancellationToken, pause: Duration) {
    shutdown.cancelled().await;
    tokio::time::sleep(pause).await;
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
