//! Builds what a suite runs, with cargo's own progress shown.

use std::io::Write as _;
use std::path::{Path, PathBuf};
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

/// Builds a benchmark's program that is a load itself, and so must not be slowed down by its own build.
pub(super) fn load_program(name: &str) -> Result<PathBuf> {
    build(&["test", "--no-run", "--profile", "load", "--workspace", "--test", name], name)
}

/// Builds the driver.
pub(crate) fn driver(profile: Profile) -> Result<PathBuf> {
    let mut arguments = vec!["build", "--workspace", "--bin", "quarry-driver"];
    if profile == Profile::Release {
        arguments.push("--release");
    }
    build(&arguments, "quarry-driver")
}

/// Builds the capacity-reporter.
pub(crate) fn reporter(profile: Profile) -> Result<PathBuf> {
    const NAME: &str = "quarry-capacity-reporter";
    let mut arguments = vec!["build", "--workspace", "--bin", NAME];
    if profile == Profile::Release {
        arguments.push("--release");
    }
    build(&arguments, NAME)
}

/// Builds the driver with its crash points.
pub(super) fn driver_with_crash_points(profile: Profile) -> Result<PathBuf> {
    const NAME: &str = "quarry-driver-crash";
    let mut arguments = vec!["build", "--workspace", "--bin", NAME, "--features", "quarry-driver/crash-points"];
    if profile == Profile::Release {
        arguments.push("--release");
    }
    build(&arguments, NAME)
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
    let built = executable(&String::from_utf8_lossy(&messages), target);
    keep(&built.with_context(|| format!("cargo built no program {target}"))?)
}

/// A machine maps a program that it runs from this folder's filesystem: another build must not change it meanwhile. So it
/// gets a name of its own, which stays what it is; those of runs that are over go.
fn keep(built: &Path) -> Result<PathBuf> {
    let all = cache::target().join("testbed/programs");
    let own = all.join(std::process::id().to_string());
    std::fs::create_dir_all(&own).with_context(|| format!("cannot make {}", own.display()))?;
    for entry in std::fs::read_dir(&all).with_context(|| format!("cannot read {}", all.display()))? {
        let entry = entry?;
        if !Path::new("/proc").join(entry.file_name()).exists() {
            std::fs::remove_dir_all(entry.path())
                .with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    let kept = own.join(built.file_name().context("a program without a name")?);
    // cargo never writes into a file that is there: it makes a new one.
    match std::fs::hard_link(built, &kept) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        linked => linked.with_context(|| format!("cannot link {}", kept.display()))?,
    }
    Ok(kept)
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
