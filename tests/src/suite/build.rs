//! Builds what a suite runs, with cargo's own progress shown.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::cache;
use crate::command::{Command, Stream};
use crate::process;

/// How long a build may take: a clean one needs 5 minutes on two cores, in release mode 15.
const BUILD: Duration = Duration::from_secs(45 * 60);

/// Which of cargo's profiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Quick to build.
    Debug,
    /// What is shipped.
    Release,
}

/// Builds a suite's program, a `[[test]]` of this package.
pub(super) fn test_program(name: &str) -> Result<PathBuf> {
    build(&["test", "--no-run", "--workspace", "--test", name], name)
}

/// Builds the driver.
pub(crate) fn driver(profile: Profile) -> Result<PathBuf> {
    let mut arguments = vec!["build", "--workspace", "--bin", "quarry-driver"];
    if profile == Profile::Release {
        arguments.push("--release");
    }
    build(&arguments, "quarry-driver")
}

/// Builds the driver with its crash points.
pub(super) fn driver_with_crash_points() -> Result<PathBuf> {
    const NAME: &str = "quarry-driver-crash";
    build(&["build", "--workspace", "--bin", NAME, "--features", "quarry-driver/crash-points"], NAME)
}

/// Always of the whole workspace: with a part of it cargo chooses other features of the dependencies and builds them anew.
fn build(arguments: &[&str], target: &str) -> Result<PathBuf> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let command =
        Command::new(cargo).args(arguments).arg("--message-format=json-render-diagnostics").cwd(cache::workspace());
    let mut messages = Vec::new();
    let exit = process::run_streaming(&command, BUILD, |stream, bytes| match stream {
        Stream::Stdout => messages.extend_from_slice(bytes),
        Stream::Stderr => drop(std::io::stderr().write_all(bytes)),
    })?;
    if !exit.success() {
        bail!("`{command}` ended with {exit}");
    }
    executable(&String::from_utf8_lossy(&messages), target).with_context(|| format!("cargo built no program {target}"))
}

/// The program of a target, from cargo's messages.
fn executable(messages: &str, target: &str) -> Option<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut artifacts =
        messages.filter(|message| message["reason"] == "compiler-artifact" && message["target"]["name"] == target);
    artifacts.find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_among_the_artifacts() {
        let messages = "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"kernel\"},\"executable\":null}\n\
            plain text\n\
            {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"kernel\"},\"executable\":\"/t/kernel-1\"}\n";
        assert_eq!(executable(messages, "kernel"), Some(PathBuf::from("/t/kernel-1")));
        assert_eq!(executable(messages, "sanity"), None);
    }
}
