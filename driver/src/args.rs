//! The command line of `quarry-driver`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::telemetry::LogFormat;

/// Node-local LVM storage for Kubernetes: the node plugin.
#[derive(Debug, Parser)]
#[command(name = "quarry-driver", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `quarry-driver` does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve CSI on this node until SIGTERM.
    Run(RunArgs),
    /// Check a configuration file and say what a node makes of it.
    CheckConfig(CheckConfigArgs),
    /// Ask a running driver whether it serves; for liveness probes.
    Probe(ProbeArgs),
    /// List the node's volumes: how each stands, who uses it, what is wrong with it.
    Volumes(VolumesArgs),
    /// Show how the node stands: what is not in order, how full its volume groups, thin pools and volumes are.
    Status(StatusArgs),
    /// Change which log lines the running driver writes, until it ends.
    LogFilter(LogFilterArgs),
    /// Accept the loss of a volume whose logical volume has vanished, or of a volume group that will not come back.
    Forget(ForgetArgs),
    /// Delete a volume that nobody has asked for (`volumes` shows it as orphan, unanswered or adopted).
    RemoveOrphan(RemoveOrphanArgs),
    /// Measure the speed of disks on a scratch volume, so that weights on them hold.
    Calibrate(CalibrateArgs),
    /// What `calibrate` has a process do.
    #[command(hide = true)]
    IoProbe(IoProbeArgs),
    /// Put back what was changed on disks and cgroups for weights and limits: for when the driver goes for good. One that
    /// runs sets nothing more until it is started anew.
    RestoreIo(RestoreIoArgs),
}

/// Options of `run`. Of an option given twice the last counts, so that a chart's can be replaced.
#[derive(Debug, Clone, Args)]
#[command(args_override_self = true)]
pub struct RunArgs {
    /// The name of this node in Kubernetes.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// The configuration file; without one, the device class `default` is the volume group `quarry`.
    #[arg(long, env = "QUARRY_CONFIG")]
    pub config: Option<PathBuf>,
    /// The unix socket to serve CSI on, as a path or a `unix://` URL.
    #[arg(long, env = "CSI_ENDPOINT", default_value = "/csi/csi.sock", value_parser = socket_path)]
    pub csi_socket: PathBuf,
    /// The unix socket to register with kubelet on, in its folder `plugins_registry`; without one, nothing is registered.
    #[arg(long, env = "QUARRY_REGISTRATION_SOCKET", requires = "kubelet_csi_socket")]
    pub registration_socket: Option<PathBuf>,
    /// Where kubelet finds the CSI socket: its path on the host.
    #[arg(long, env = "QUARRY_KUBELET_CSI_SOCKET")]
    pub kubelet_csi_socket: Option<PathBuf>,
    /// The driver's own state.
    #[arg(long, env = "QUARRY_STATE_DIR", default_value = "/var/lib/quarry")]
    pub state_dir: PathBuf,
    /// The host's LVM configuration, taken over but for what the driver must set itself.
    #[arg(long, env = "QUARRY_HOST_LVM_DIR", default_value = "/etc/lvm")]
    pub host_lvm_dir: PathBuf,
    /// Where to serve `/livez`, `/readyz` and `/metrics`, e.g. `127.0.0.1:9808`; without it, they are not served.
    #[arg(long, env = "QUARRY_HTTP_ADDRESS")]
    pub http_address: Option<SocketAddr>,
    /// Whether `/metrics` has series for each volume, beside the sums.
    #[arg(long, env = "QUARRY_VOLUME_METRICS", default_value_t = true, action = clap::ArgAction::Set)]
    pub volume_metrics: bool,
    /// How log lines look.
    #[arg(long, env = "QUARRY_LOG_FORMAT", default_value = "json")]
    pub log_format: LogFormat,
    /// Which log lines there are, e.g. `info` or `quarry_driver=debug`.
    #[arg(long, env = "QUARRY_LOG_FILTER", default_value = "info")]
    pub log_filter: String,
}

/// Options of `check-config`.
#[derive(Debug, Args)]
pub struct CheckConfigArgs {
    /// The node to check it for.
    #[arg(long, env = "NODE_NAME", default_value = "")]
    pub node_name: String,
    /// The file.
    pub file: PathBuf,
}

/// Options of `probe`.
#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// The driver's CSI socket, as a path or a `unix://` URL.
    #[arg(long, env = "CSI_ENDPOINT", default_value = "/csi/csi.sock", value_parser = socket_path)]
    pub csi_socket: PathBuf,
    /// Seconds to wait for the answer.
    #[arg(long, default_value_t = 5)]
    pub timeout_seconds: u64,
}

/// How to reach the running driver.
#[derive(Debug, Args)]
pub struct AdminArgs {
    /// The driver's CSI socket, as a path or a `unix://` URL.
    #[arg(long, env = "CSI_ENDPOINT", default_value = "/csi/csi.sock", value_parser = socket_path)]
    pub csi_socket: PathBuf,
    /// Seconds to wait for the answer.
    #[arg(long, default_value_t = 30)]
    pub timeout_seconds: u64,
}

/// Options of `volumes`.
#[derive(Debug, Args)]
pub struct VolumesArgs {
    /// The driver.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// How the list looks.
    #[arg(short, long, default_value = "table")]
    pub output: OutputFormat,
    /// Where no driver runs: the name of this node.
    #[arg(long, env = "NODE_NAME", default_value = "")]
    pub node_name: String,
    /// Where no driver runs: its configuration file.
    #[arg(long, env = "QUARRY_CONFIG")]
    pub config: Option<PathBuf>,
    /// Where no driver runs: its own state.
    #[arg(long, env = "QUARRY_STATE_DIR", default_value = "/var/lib/quarry")]
    pub state_dir: PathBuf,
    /// Where no driver runs: the host's LVM configuration.
    #[arg(long, env = "QUARRY_HOST_LVM_DIR", default_value = "/etc/lvm")]
    pub host_lvm_dir: PathBuf,
}

/// Options of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The driver.
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// Options of `log-filter`.
#[derive(Debug, Args)]
pub struct LogFilterArgs {
    /// The driver.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// A level, or levels by module, e.g. `debug` or `info,quarry_driver::lvm=debug`.
    pub filter: String,
}

/// How a list looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OutputFormat {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Options of `forget`.
#[derive(Debug, Args)]
pub struct ForgetArgs {
    /// The driver.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// The volume, by the name that `volumes` shows.
    #[arg(conflicts_with = "volume_group", required_unless_present = "volume_group")]
    pub volume: Option<String>,
    /// The volume group, by name or UUID.
    #[arg(long)]
    pub volume_group: Option<String>,
}

/// Options of `remove-orphan`.
#[derive(Debug, Args)]
pub struct RemoveOrphanArgs {
    /// The driver.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// The volume, by the name that `volumes` shows.
    pub volume: String,
}

/// Options of `calibrate`.
#[derive(Debug, Args)]
pub struct CalibrateArgs {
    /// The driver's CSI socket, as a path or a `unix://` URL.
    #[arg(long, env = "CSI_ENDPOINT", default_value = "/csi/csi.sock", value_parser = socket_path)]
    pub csi_socket: PathBuf,
    /// Seconds to wait for the answer; the driver goes on all the same.
    #[arg(long, default_value_t = 900)]
    pub timeout_seconds: u64,
    /// Disks by their names in /sys/block, e.g. nvme0n1; all that lie below device classes where none is named.
    pub disks: Vec<String>,
}

/// Options of `io-probe`.
#[derive(Debug, Args)]
pub struct IoProbeArgs {
    /// The device, whose contents are lost.
    #[arg(long)]
    pub device: PathBuf,
    /// The folder of the cgroup to enter first.
    #[arg(long)]
    pub cgroup: Option<PathBuf>,
    /// The first byte that is used.
    #[arg(long)]
    pub start: u64,
    /// How many bytes are used.
    #[arg(long)]
    pub length: u64,
    /// Bytes of an operation.
    #[arg(long)]
    pub block: u64,
    /// Operations at once.
    #[arg(long)]
    pub depth: u32,
    /// How many of a hundred operations are reads.
    #[arg(long)]
    pub reads_percent: u8,
    /// One after the other instead of anywhere.
    #[arg(long)]
    pub sequential: bool,
    /// Ends after the last byte, when it comes to that.
    #[arg(long)]
    pub once: bool,
    /// Ends after this time.
    #[arg(long)]
    pub milliseconds: u64,
}

/// Options of `restore-io`.
#[derive(Debug, Args)]
pub struct RestoreIoArgs {
    /// The driver.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Where no driver runs: its own state.
    #[arg(long, env = "QUARRY_STATE_DIR", default_value = "/var/lib/quarry")]
    pub state_dir: PathBuf,
}

/// CSI's `CSI_ENDPOINT` may be a URL.
fn socket_path(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")).unwrap_or(text);
    if path.starts_with('/') {
        Ok(PathBuf::from(path))
    } else {
        Err(format!("{text:?} is not the absolute path of a unix socket"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_option_given_twice_the_last_counts() {
        let line = ["quarry-driver", "run", "--node-name", "a", "--csi-socket", "/a", "--csi-socket", "/b"];
        let Command::Run(run) = Cli::parse_from(line).command else { panic!("not run") };
        assert_eq!(run.csi_socket, PathBuf::from("/b"));
    }

    #[test]
    fn either_a_volume_or_a_group_is_forgotten() {
        let parse = |words: &[&str]| Cli::try_parse_from([&["quarry-driver", "forget"], words].concat()).is_ok();
        assert!(parse(&["pvc-1"]) && parse(&["--volume-group", "quarry"]));
        assert!(!parse(&[]) && !parse(&["pvc-1", "--volume-group", "quarry"]));
    }

    #[test]
    fn an_endpoint_may_be_a_path_or_a_url() {
        for text in ["/csi/csi.sock", "unix:///csi/csi.sock", "unix:/csi/csi.sock"] {
            assert_eq!(socket_path(text), Ok(PathBuf::from("/csi/csi.sock")), "{text}");
        }
        assert!(socket_path("tcp://1.2.3.4:5").is_err());
    }
}
