//! The only code that starts processes.
//!
//! A command is an argument vector, never a shell line. Both of its pipes are drained at once, so no amount of output
//! can block it, and of a flood of errors only the beginning and the end are kept. It runs in a process group of its own;
//! at its limit the whole group is killed, because a killed parent's children would otherwise hold the pipes and go on.
//!
//! **Invariant.** [`Exec::run`] ends only when the process is gone. Whoever waits for it with a shorter patience (a
//! gRPC request) leaves it running and keeps the volume's lock with it. So "the command ended" is never a guess, and a
//! process that cannot be killed (D state) costs one thread, not one per retry.

mod excerpt;
mod ledger;
mod tools;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::crash;

use ledger::Ledger;

pub use ledger::{Counts, Kind, Running};
pub use tools::{MissingTool, Tool, Tools};

/// One command line, ready to run.
#[derive(Debug, Clone)]
pub struct Invocation {
    tool: Tool,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    kill_after: Duration,
}

impl Invocation {
    /// A command that is killed, with its process group, when it has run for `kill_after`.
    #[must_use]
    pub fn new(tool: &Tool, kill_after: Duration) -> Self {
        Self { tool: tool.clone(), arguments: Vec::new(), environment: Vec::new(), kill_after }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds several arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, arguments: I) -> Self {
        self.arguments.extend(arguments.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Sets a variable of the child's environment, which is otherwise `PATH` and `LC_ALL=C` alone.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// What crash points call it: the program, and lvm's verb.
    fn name(&self) -> impl fmt::Display {
        let Kind { program, verb } = self.kind();
        if verb.is_empty() { format!("exec.{program}") } else { format!("exec.{program}-{verb}") }
    }

    /// What it counts as: for `lvm` with its verb, for other programs without words.
    #[must_use]
    pub fn kind(&self) -> Kind {
        let program = self.tool.name();
        let verb = self.arguments.first().filter(|_| program == "lvm").map(|verb| verb.to_string_lossy().into_owned());
        Kind { program: program.to_owned(), verb: verb.unwrap_or_default() }
    }

    /// The command line as a person would read it, for logs and errors.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = self.tool.path().display().to_string();
        for argument in &self.arguments {
            line.push(' ');
            line.push_str(&argument.to_string_lossy());
        }
        line
    }
}

/// What a process left behind when it ended by itself.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for errors.
    pub line: String,
    /// How it ended.
    pub exit: Exit,
    /// Everything it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error, invalid UTF-8 replaced, trimmed, of very much only the beginning and the end.
    pub stderr: String,
    /// How long it ran.
    pub duration: Duration,
}

impl Output {
    /// The output, or an error with the command line, the exit and standard error unless the exit code is 0.
    ///
    /// # Errors
    /// [`ExecError::Failed`] for any other exit.
    pub fn success(self) -> Result<Self, ExecError> {
        match self.exit {
            Exit::Code(0) => Ok(self),
            exit => Err(ExecError::Failed { line: self.line, exit, stderr: self.stderr }),
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It returned this exit code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// Why a command gave no successful result.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The process could not be started.
    #[error("cannot start `{line}`")]
    Start {
        /// The command line.
        line: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The process could not be waited for, or its output not be read: its outcome is unknown.
    #[error("lost track of `{line}`")]
    Lost {
        /// The command line.
        line: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// It was still running at its limit and was killed: its outcome is unknown.
    #[error("`{line}` was killed after {} s without an end", after.as_secs())]
    Killed {
        /// The command line.
        line: String,
        /// How long it had run.
        after: Duration,
    },
    /// It ended, unsuccessfully.
    #[error("`{line}` ended with {exit}{}", say(stderr))]
    Failed {
        /// The command line.
        line: String,
        /// How it ended.
        exit: Exit,
        /// Its standard error, trimmed.
        stderr: String,
    },
}

impl ExecError {
    /// Whether the command may have done its work in part: killed by us or by somebody else, or out of sight.
    #[must_use]
    pub fn outcome_unknown(&self) -> bool {
        match self {
            Self::Start { .. } => false,
            Self::Lost { .. } | Self::Killed { .. } => true,
            Self::Failed { exit, .. } => matches!(exit, Exit::Signal(_)),
        }
    }
}

fn say(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(": {}", stderr.replace('\n', "; ")) }
}

/// Runs commands, counts them and knows which run.
#[derive(Debug, Clone, Default)]
pub struct Exec {
    ledger: Arc<Ledger>,
}

impl Exec {
    /// Runs a command until it is gone.
    ///
    /// Dropping the returned future does not stop the command.
    ///
    /// # Errors
    /// [`ExecError`]; a process that ended with any exit code is an [`Output`], not an error.
    pub async fn run(&self, invocation: Invocation) -> Result<Output, ExecError> {
        let line = invocation.line();
        let entry = Ledger::begin(&self.ledger, invocation.kind(), line.clone());
        let outcome = tokio::task::spawn_blocking(move || {
            let outcome = run_blocking(&invocation);
            entry.end(matches!(outcome, Err(ExecError::Killed { .. })));
            outcome
        })
        .await;
        outcome.unwrap_or_else(|join| Err(ExecError::Lost { line, source: std::io::Error::other(join) }))
    }

    /// The commands that run now, the oldest first.
    #[must_use]
    pub fn running(&self) -> Vec<Running> {
        self.ledger.running()
    }

    /// How many processes were started and how many of them killed at their limit, by what they are.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.ledger.counts()
    }
}

/// What every child finds programs by: `lvm` and the `mkfs` front ends start helpers of their own by name.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

#[expect(clippy::disallowed_methods, reason = "this is the one place that starts processes")]
fn run_blocking(invocation: &Invocation) -> Result<Output, ExecError> {
    let line = invocation.line();
    let mut environment: Vec<(OsString, OsString)> = vec![("PATH".into(), PATH.into()), ("LC_ALL".into(), "C".into())];
    environment.extend(invocation.environment.iter().cloned());
    let name = invocation.name();
    crash::point(format_args!("{name}.before"));
    let start = Instant::now();
    let not_started = |source| ExecError::Start { line: line.clone(), source };
    let (errors, stderr) = std::io::pipe().map_err(not_started)?;
    let errors = excerpt::drain(errors).map_err(not_started)?;
    let handle = duct::cmd(PathBuf::from(invocation.tool.path()), &invocation.arguments)
        .full_env(environment)
        .stdin_null()
        .stdout_capture()
        .stderr_file(stderr)
        .unchecked()
        .before_spawn(|command| {
            command.process_group(0);
            Ok(())
        })
        .start()
        .map_err(not_started)?;

    // One command, one process.
    let runs = handle.pids().first().map(|pid| crash::running(*pid));
    crash::point(format_args!("{name}.running"));
    let ended = handle.wait_timeout(invocation.kill_after);
    let killed = matches!(ended, Ok(None));
    if killed {
        tracing::error!(
            command = line,
            limit_s = invocation.kill_after.as_secs(),
            "command hangs: killing its process group"
        );
        for pid in handle.pids() {
            kill_group(pid, &line);
        }
    }
    let output = handle.wait().map_err(|source| ExecError::Lost { line: line.clone(), source })?;
    drop(runs);
    crash::point(format_args!("{name}.after"));
    let duration = start.elapsed();
    tracing::debug!(command = line, ms = duration.as_millis(), status = %output.status, "command ended");
    if killed {
        return Err(ExecError::Killed { line, after: duration });
    }
    let exit = match (output.status.code(), output.status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, signal) => Exit::Signal(signal.unwrap_or(0)),
    };
    Ok(Output { line, exit, stdout: output.stdout.clone(), stderr: errors.text(), duration })
}

fn kill_group(pid: u32, line: &str) {
    let Some(group) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) else {
        return;
    };
    if let Err(error) = rustix::process::kill_process_group(group, rustix::process::Signal::KILL) {
        tracing::error!(command = line, %error, "cannot kill the process group");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, kill_after: Duration) -> Invocation {
        Invocation::new(&Tool::at("sh", "/bin/sh").unwrap(), kill_after).args(["-c", script])
    }

    #[tokio::test]
    async fn output_of_both_pipes_beyond_their_buffers_arrives() {
        let script = "head -c 300000 /dev/zero | tr '\\0' e >&2; echo ok";
        let output = Exec::default().run(sh(script, Duration::from_secs(60))).await.unwrap();
        assert_eq!(
            (output.exit, output.stdout.as_slice(), output.stderr.len() < 10_000),
            (Exit::Code(0), &b"ok\n"[..], true)
        );
        assert!(output.stderr.starts_with("eee") && output.stderr.ends_with("eee"), "{}", output.stderr);
        assert!(output.stderr.contains(" bytes left out"), "{}", output.stderr);
    }

    #[tokio::test]
    async fn a_command_over_its_limit_dies_with_its_children() {
        let marker = tempfile::tempdir().unwrap();
        let file = marker.path().join("grandchild-went-on");
        let script = format!("(sleep 2; touch {}) & wait", file.display());
        let outcome = Exec::default().run(sh(&script, Duration::from_millis(200))).await;
        assert!(matches!(outcome, Err(ExecError::Killed { .. })), "{outcome:?}");
        assert!(outcome.unwrap_err().outcome_unknown());
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(!file.exists(), "the grandchild outlived its process group");
    }

    #[tokio::test]
    async fn the_environment_is_ours_alone_and_the_exit_is_told() {
        let output = Exec::default()
            .run(sh("env; echo bad thing >&2; exit 5", Duration::from_secs(60)).env("A", "b"))
            .await
            .unwrap();
        let stdout = String::from_utf8(output.stdout.clone()).unwrap();
        let mut names: Vec<&str> = stdout.lines().filter_map(|l| l.split('=').next()).collect();
        names.sort_unstable();
        names.retain(|n| !["PWD", "_", "SHLVL", "OLDPWD"].contains(n));
        assert_eq!(names, ["A", "LC_ALL", "PATH"]);
        let error = output.success().unwrap_err();
        assert!(!error.outcome_unknown());
        assert!(error.to_string().ends_with("ended with exit code 5: bad thing"), "{error}");
    }

    #[tokio::test]
    async fn processes_are_counted_by_tool() {
        let exec = Exec::default();
        exec.run(sh("true", Duration::from_secs(60))).await.unwrap();
        exec.run(sh("true", Duration::from_secs(60))).await.unwrap();
        let kind = Kind { program: "sh".to_owned(), verb: String::new() };
        assert_eq!(exec.counts().started.get(&kind), Some(&2));
        assert!(exec.running().is_empty() && exec.counts().killed.values().all(|killed| *killed == 0));
    }

    #[tokio::test]
    async fn a_command_is_shown_while_it_runs_and_counted_when_killed() {
        let exec = Exec::default();
        let (other, command) = (exec.clone(), sh("exec sleep 60", Duration::from_millis(300)));
        let task = tokio::spawn(async move { other.run(command).await });
        while exec.running().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(exec.running()[0].line.contains("exec sleep 60"), "{:?}", exec.running());
        assert!(matches!(task.await.unwrap(), Err(ExecError::Killed { .. })));
        assert_eq!((exec.running().len(), exec.counts().killed.values().sum::<u64>()), (0, 1));
        // It ran until its limit, and that is counted.
        assert!(exec.counts().time.values().sum::<Duration>() >= Duration::from_millis(300));
    }
}
