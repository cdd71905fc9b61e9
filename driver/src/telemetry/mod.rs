//! Logs, and over HTTP: is the driver alive, what is not in order, how much of what.

pub mod exposition;
pub mod health;
pub mod http;
pub mod inventory;
pub mod metrics;
pub mod store;

use std::io::IsTerminal as _;
use std::sync::OnceLock;

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::reload::Handle;

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line, for log collectors.
    Json,
    /// For people.
    Text,
}

/// Starts logging to standard error.
///
/// # Errors
/// A filter that cannot be parsed, or logging that was started before.
pub fn start(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_current_span(true).with_span_list(false);
            let builder = builder.with_filter_reloading();
            keep(builder.reload_handle());
            builder.try_init()
        }
        LogFormat::Text => {
            let builder = builder.with_ansi(std::io::stderr().is_terminal()).with_filter_reloading();
            keep(builder.reload_handle());
            builder.try_init()
        }
    };
    started.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}

/// Puts another filter in place of the present one, and tells that.
type Refilter = Box<dyn Fn(EnvFilter) -> anyhow::Result<String> + Send + Sync>;

/// Set once, when logging starts.
static REFILTER: OnceLock<Refilter> = OnceLock::new();

fn keep<S: 'static>(handle: Handle<EnvFilter, S>) {
    let refilter = move |filter: EnvFilter| {
        let before = handle.with_current(ToString::to_string)?;
        handle.reload(filter)?;
        Ok(before)
    };
    // A second start of logging fails below, and changes nothing.
    let _ = REFILTER.set(Box::new(refilter));
}

/// Changes which log lines there are, while the process runs; tells what was before.
///
/// # Errors
/// A filter that cannot be parsed; logging that was not started.
pub fn refilter(filter: &str) -> anyhow::Result<String> {
    let parsed = EnvFilter::try_new(filter).with_context(|| format!("log filter {filter:?}"))?;
    let refilter = REFILTER.get().context("logging was not started")?;
    refilter(parsed)
}

/// An error with everything that caused it, joined by colons: what a log line or a gRPC message says.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
