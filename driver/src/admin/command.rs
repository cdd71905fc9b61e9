//! What `quarry-driver` asks of the running driver over its socket: `volumes`, `status`, `forget`, `remove-orphan`,
//! `calibrate`, `restore-io`, `log-filter`. Where none runs, `volumes` and `restore-io` look and do themselves.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use quarry_proto::quarry::v1 as proto;
use quarry_proto::quarry::v1::admin_client::AdminClient;
use rustix::fs::{FlockOperation, flock};
use tonic::transport::{Channel, Endpoint};

use super::{service, table};
use crate::args::{
    AdminArgs, CalibrateArgs, ForgetArgs, IoProbeArgs, LogFilterArgs, OutputFormat, RemoveOrphanArgs, RestoreIoArgs,
    StatusArgs, VolumesArgs,
};
use crate::config::{self, Config};
use crate::engine::{Engine, Settings};
use crate::exec::{Exec, Tools};
use crate::io::Control;
use crate::io::control::Places;
use crate::journal::SledJournal;

/// The volumes as text, in the format asked for.
///
/// # Errors
/// No driver answers, and one runs or the journal cannot be read.
pub async fn volumes(args: &VolumesArgs) -> anyhow::Result<String> {
    let volumes = match connect(&args.admin).await? {
        Some(mut client) => {
            let asked = client.list_volumes(proto::ListVolumesRequest {});
            within(&args.admin, asked).await?.volumes
        }
        None => without_driver(args).await?,
    };
    Ok(match args.output {
        OutputFormat::Table => table::table(&volumes),
        OutputFormat::Json => format!("{:#}\n", table::json(&volumes)),
    })
}

/// How the node stands, as text.
///
/// # Errors
/// No driver runs.
pub async fn status(args: &StatusArgs) -> anyhow::Result<String> {
    let mut client = running(&args.admin).await?;
    let status = within(&args.admin, client.get_status(proto::GetStatusRequest {})).await?;
    Ok(super::status::text(&status))
}

/// Has the driver write other log lines; says what it wrote before.
///
/// # Errors
/// No driver runs, or the filter is none.
pub async fn log_filter(args: &LogFilterArgs) -> anyhow::Result<String> {
    let mut client = running(&args.admin).await?;
    let request = proto::SetLogFilterRequest { filter: args.filter.clone() };
    let before = within(&args.admin, client.set_log_filter(request)).await?.before;
    Ok(format!("the log's filter is {} (before: {before})\n", args.filter))
}

/// Has the driver forget a volume or a volume group; what it says.
///
/// # Errors
/// No driver runs, or it refuses.
pub async fn forget(args: &ForgetArgs) -> anyhow::Result<String> {
    let mut client = running(&args.admin).await?;
    match (&args.volume, &args.volume_group) {
        (Some(name), None) => {
            let request = proto::ForgetVolumeRequest { name: name.clone() };
            within(&args.admin, client.forget_volume(request)).await?;
            Ok(format!("volume {name} is forgotten\n"))
        }
        (None, Some(group)) => {
            let request = proto::ForgetVolumeGroupRequest { volume_group: group.clone() };
            let volumes = within(&args.admin, client.forget_volume_group(request)).await?.volumes;
            let names = if volumes.is_empty() { "no known volumes".to_owned() } else { volumes.join(", ") };
            Ok(format!("volume group {group} is forgotten, with {names}\n"))
        }
        _ => bail!("name a volume, or a group with --volume-group"),
    }
}

/// Has the driver delete a volume that nobody asked for.
///
/// # Errors
/// No driver runs, or it refuses.
pub async fn remove_orphan(args: &RemoveOrphanArgs) -> anyhow::Result<String> {
    let mut client = running(&args.admin).await?;
    let request = proto::RemoveOrphanRequest { name: args.volume.clone() };
    within(&args.admin, client.remove_orphan(request)).await?;
    Ok(format!("volume {} is deleted\n", args.volume))
}

/// Has the driver calibrate disks; what came of each.
///
/// # Errors
/// No driver runs, it refuses, or a disk could not be calibrated.
pub async fn calibrate(args: &CalibrateArgs) -> anyhow::Result<String> {
    let admin = AdminArgs { csi_socket: args.csi_socket.clone(), timeout_seconds: args.timeout_seconds };
    let mut client = running(&admin).await?;
    let asked = client.calibrate(proto::CalibrateRequest { disks: args.disks.clone() });
    let disks = within(&admin, asked).await?.disks;
    let text = table::calibrations(&disks);
    match disks.iter().filter(|disk| !disk.problem.is_empty()).count() {
        0 => Ok(text),
        failed => bail!("{failed} of {} disks could not be calibrated\n{text}", disks.len()),
    }
}

/// Puts back what was changed on disks and cgroups for weights and limits; what came of it. A running driver does it
/// itself, and sets nothing more until it is started anew.
///
/// # Errors
/// Something cannot be put back; or a driver runs and does not answer.
pub async fn restore_io(args: &RestoreIoArgs) -> anyhow::Result<String> {
    if let Some(mut client) = connect(&args.admin).await? {
        let count = within(&args.admin, client.restore_io(proto::RestoreIoRequest {})).await?.put_back;
        return Ok(format!("put back: {count}; the driver sets nothing more until it is started anew\n"));
    }
    let _lock = lock(&args.state_dir)?;
    let control = Control::open(Places::default(), config::Io::default(), &args.state_dir)?;
    let count = tokio::task::spawn_blocking(move || control.leave()).await??;
    Ok(format!("put back: {count}\n"))
}

/// Does what the driver has a process do while it calibrates a disk; its counters over time, as JSON.
///
/// # Errors
/// The device cannot be used.
pub fn io_probe(args: &IoProbeArgs) -> anyhow::Result<String> {
    let ticks =
        crate::io::calibrate::probe::run(args).with_context(|| format!("cannot use {}", args.device.display()))?;
    Ok(serde_json::to_string(&ticks)?)
}

async fn running(args: &AdminArgs) -> anyhow::Result<AdminClient<Channel>> {
    let client = connect(args).await?;
    client.with_context(|| format!("no driver serves on {}; only a running one can do that", args.csi_socket.display()))
}

/// A client of the running driver; nothing where none listens.
async fn connect(args: &AdminArgs) -> anyhow::Result<Option<AdminClient<Channel>>> {
    use std::io::ErrorKind;
    // The error of the channel does not say why; the socket's does.
    match tokio::net::UnixStream::connect(&args.csi_socket).await {
        Ok(_) => {}
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot connect to {}", args.csi_socket.display()));
        }
    }
    let endpoint = Endpoint::from_shared(format!("unix://{}", args.csi_socket.display()))?;
    Ok(Some(AdminClient::new(endpoint.connect().await?)))
}

/// The answer to a request, as long as it comes in time; a refusal is told in the driver's own words.
async fn within<T>(
    args: &AdminArgs,
    asked: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> anyhow::Result<T> {
    let limit = Duration::from_secs(args.timeout_seconds);
    match tokio::time::timeout(limit, asked).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => bail!("{}", status.message()),
        Err(_) => bail!("no answer within {} s", args.timeout_seconds),
    }
}

/// Looks itself: the journal and the disks are nobody's while no driver runs.
async fn without_driver(args: &VolumesArgs) -> anyhow::Result<Vec<proto::Volume>> {
    let config = match &args.config {
        Some(path) => Config::load(path, &args.node_name)?,
        None => Config::zero(),
    };
    let state_dir = &args.state_dir;
    let _lock = lock(state_dir)?;
    let opened = SledJournal::open(state_dir).await?;
    if let Some(rebuilt) = &opened.rebuilt {
        eprintln!("quarry-driver: the journal begins anew: {}", rebuilt.why);
    }
    let settings = Settings {
        node_name: args.node_name.clone(),
        config,
        tools: Tools::find()?,
        state_dir: state_dir.clone(),
        host_lvm_dir: args.host_lvm_dir.clone(),
        exec: Exec::default(),
        journal: Arc::new(opened.journal),
    };
    eprintln!("quarry-driver: no driver runs; this is what the journal and the disks say");
    Ok(service::volumes(&*Engine::open(settings).await?, &Default::default()).await)
}

fn lock(state_dir: &Path) -> anyhow::Result<std::fs::File> {
    let path = state_dir.join("lock");
    let file = std::fs::File::options().read(true).write(true).open(&path);
    let file = file.with_context(|| format!("no driver has run with the state folder {}", state_dir.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            bail!("a driver runs with the state folder {} and does not serve on the socket given", state_dir.display())
        }
        Err(error) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}
