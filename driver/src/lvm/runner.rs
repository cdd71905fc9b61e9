//! Runs LVM commands. The seam through which another way of running them can serve the same verbs.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use super::command::{Command, Effect, WordError};
use crate::exec::{Exec, ExecError, Invocation, Tool};

/// What an LVM command printed.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Standard output; a report in JSON where one was asked for.
    pub stdout: Vec<u8>,
}

/// Why an LVM command did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub enum LvmError {
    /// The command line is not one we would run.
    #[error(transparent)]
    Word(#[from] WordError),
    /// It did not start, failed, or was lost.
    #[error(transparent)]
    Exec(#[from] ExecError),
}

impl LvmError {
    /// Whether the command may have done part of its work: the volume group is to be repaired before its next use, and
    /// only a new reading tells what is there.
    #[must_use]
    pub fn outcome_unknown(&self) -> bool {
        match self {
            Self::Word(_) => false,
            Self::Exec(error) => error.outcome_unknown(),
        }
    }
}

/// The result of running a command.
pub type Running<'a> = Pin<Box<dyn Future<Output = Result<Reply, LvmError>> + Send + 'a>>;

/// Something that runs LVM commands.
pub trait Runner: Send + Sync + std::fmt::Debug {
    /// Runs a command until it is gone. Fails unless LVM reports success.
    fn run(&self, command: Command) -> Running<'_>;
}

/// A process for each command.
#[derive(Debug, Clone)]
pub struct Processes {
    exec: Exec,
    lvm: Tool,
    system_dir: PathBuf,
    read_limit: Duration,
    change_limit: Duration,
}

impl Processes {
    /// Runs `lvm` with its configuration from `system_dir`. Reports are killed after `read_limit`, changes after the far
    /// longer `change_limit`.
    #[must_use]
    pub fn new(exec: Exec, lvm: Tool, system_dir: PathBuf, read_limit: Duration, change_limit: Duration) -> Self {
        Self { exec, lvm, system_dir, read_limit, change_limit }
    }
}

impl Runner for Processes {
    fn run(&self, command: Command) -> Running<'_> {
        Box::pin(async move {
            let limit = match command.effect() {
                Effect::Read => self.read_limit,
                Effect::Change => self.change_limit,
            };
            let invocation = Invocation::new(&self.lvm, limit)
                .args(command.words()?)
                .env("LVM_SYSTEM_DIR", &self.system_dir)
                // Sockets and the journal are open in this process; lvm would complain about each.
                .env("LVM_SUPPRESS_FD_WARNINGS", "1");
            let output = self.exec.run(invocation).await?.success()?;
            if !output.stderr.is_empty() {
                tracing::debug!(command = output.line, stderr = output.stderr, "lvm remarked");
            }
            Ok(Reply { stdout: output.stdout })
        })
    }
}
