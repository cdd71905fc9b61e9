//! The command line of `quarry-capacity-reporter`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::telemetry::LogFormat;

/// Tells the scheduler how much room this node has.
#[derive(Debug, Parser)]
#[command(name = "quarry-capacity-reporter", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `quarry-capacity-reporter` does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Keep this node's CSIStorageCapacity objects true until SIGTERM, which leaves them as they are.
    Run(RunArgs),
    /// Take the right to write from all reporters, then delete every object of the driver: for the end of an installation.
    Clean(CleanArgs),
    /// Have every node's driver put back what it set for weights and limits: for the end of an installation.
    RestoreIo(RestoreIoArgs),
}

/// Options of `run`. Of an option given twice the last counts, so that a chart's can be replaced.
#[derive(Debug, Clone, Args)]
#[command(args_override_self = true)]
pub struct RunArgs {
    /// The name of this node in Kubernetes.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// The namespace for the objects: the pod's own.
    #[arg(long, env = "NAMESPACE")]
    pub namespace: String,
    /// The driver's CSI socket, as a path or a `unix://` URL.
    #[arg(long, env = "CSI_ENDPOINT", default_value = "/csi/csi.sock", value_parser = socket_path)]
    pub csi_socket: PathBuf,
    /// Writes a second to the API server, at most and in the long run.
    #[arg(long, env = "QUARRY_REQUESTS_PER_SECOND", default_value = "5", value_parser = rate)]
    pub requests_per_second: f64,
    /// How many writes there may be at once after a pause.
    #[arg(long, env = "QUARRY_REQUEST_BURST", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub request_burst: u32,
    /// For how long a node must have been without the driver before its objects are deleted, e.g. `15m`.
    #[arg(long, env = "QUARRY_FORGET_NODES_AFTER", default_value = "15m", value_parser = duration)]
    pub forget_nodes_after: Duration,
    /// How long a volume's weight or limits must not hold before an event on its claim tells it.
    #[arg(long, default_value = "15s", value_parser = duration)]
    pub tell_after: Duration,
    /// Where to serve `/livez`, `/readyz` and `/metrics`, e.g. `127.0.0.1:9809`; without it, they are not served.
    #[arg(long, env = "QUARRY_HTTP_ADDRESS")]
    pub http_address: Option<SocketAddr>,
    /// How log lines look.
    #[arg(long, env = "QUARRY_LOG_FORMAT", default_value = "json")]
    pub log_format: LogFormat,
    /// Which log lines there are, e.g. `info` or `quarry_capacity_reporter=debug`.
    #[arg(long, env = "QUARRY_LOG_FILTER", default_value = "info")]
    pub log_filter: String,
}

/// Options of `clean`.
#[derive(Debug, Clone, Args)]
pub struct CleanArgs {
    /// The namespace of the installation.
    #[arg(long, env = "NAMESPACE")]
    pub namespace: String,
    /// The driver's name.
    #[arg(long, default_value = "lvm.quarry.storage")]
    pub driver_name: String,
    /// The RoleBinding that lets the reporters write.
    #[arg(long, default_value = "quarry-capacity")]
    pub role_binding: String,
    /// For how long there must have been no object before this is done.
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub quiet: Duration,
    /// When to give up.
    #[arg(long, default_value = "4m", value_parser = duration)]
    pub timeout: Duration,
    /// How log lines look.
    #[arg(long, env = "QUARRY_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Which log lines there are.
    #[arg(long, env = "QUARRY_LOG_FILTER", default_value = "info")]
    pub log_filter: String,
}

/// Options of `restore-io`.
#[derive(Debug, Clone, Args)]
pub struct RestoreIoArgs {
    /// The namespace of the installation.
    #[arg(long, env = "NAMESPACE")]
    pub namespace: String,
    /// The labels of the nodes' pods.
    #[arg(long, default_value = "app.kubernetes.io/name=quarry,app.kubernetes.io/component=node")]
    pub selector: String,
    /// The driver's container in them.
    #[arg(long, default_value = "driver")]
    pub container: String,
    /// The driver's CSI socket in that container, as a path or a `unix://` URL.
    #[arg(long, default_value = "/csi/csi.sock", value_parser = socket_path)]
    pub csi_socket: PathBuf,
    /// When to give up.
    #[arg(long, default_value = "2m", value_parser = duration)]
    pub timeout: Duration,
    /// How log lines look.
    #[arg(long, env = "QUARRY_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Which log lines there are.
    #[arg(long, env = "QUARRY_LOG_FILTER", default_value = "info")]
    pub log_filter: String,
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

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if rate.is_finite() && rate > 0.0 { Ok(rate) } else { Err(format!("{text} is not more than 0")) }
}

/// A duration as Go and the chart write it: `90s`, `1m30s`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration such as 90s, 15m or 1h30m");
    let (mut rest, mut sum) = (text, Duration::ZERO);
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, unit) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let length = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
        let (unit, after) = unit.split_at(length);
        let factor = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        let part = number.checked_mul(factor).ok_or_else(wrong)?;
        sum = sum.checked_add(Duration::from_millis(part)).ok_or_else(wrong)?;
        rest = after;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_as_the_chart_writes_them() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("1h30m", 5400), ("1000ms", 1), ("0s", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "90", "s", "1x", "-1s", "1s2", "99999999999999999999s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn of_an_option_given_twice_the_last_counts_and_zero_is_no_rate() {
        let line = ["r", "run", "--node-name", "a", "--namespace", "n", "--requests-per-second", "1"];
        let more = ["--requests-per-second", "2.5", "--csi-socket", "unix:///a/b"];
        let Command::Run(run) = Cli::parse_from(line.iter().chain(&more)).command else { panic!("not run") };
        assert_eq!((run.requests_per_second, run.csi_socket), (2.5, PathBuf::from("/a/b")));
        for wrong in [["--requests-per-second", "0"], ["--request-burst", "0"], ["--csi-socket", "tcp://a"]] {
            assert!(Cli::try_parse_from(line.iter().chain(&wrong)).is_err(), "{wrong:?}");
        }
    }
}
