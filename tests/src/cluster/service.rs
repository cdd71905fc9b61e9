//! A named long-lived process with a log file.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::command::Command;
use crate::process::{self, Child, Log};

/// How many bytes of a log an error quotes.
const QUOTE: usize = 1500;
const GRACE: Duration = Duration::from_secs(5);

/// A running service; it is killed when this is dropped.
#[derive(Debug)]
pub struct Service {
    name: String,
    command: Command,
    child: Child,
    log: PathBuf,
}

impl Service {
    /// Starts the command; both its outputs go to the file `log`.
    ///
    /// # Errors
    /// When it cannot be started or its log cannot be written.
    pub fn start(name: &str, command: &Command, log: &Path) -> Result<Self> {
        let child = process::start(command, Log::File(log))?;
        Ok(Self { name: name.to_owned(), command: command.clone(), child, log: log.to_owned() })
    }

    /// Ends it, asked first and killed soon after, and starts it again; its log goes on.
    ///
    /// # Errors
    /// When it does not end or cannot be started.
    pub fn restart(&mut self) -> Result<()> {
        self.child.stop(GRACE)?;
        self.child = process::start(&self.command, Log::Append(&self.log))?;
        Ok(())
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.pid()
    }

    /// Fails, quoting the end of its log, when it has ended.
    ///
    /// # Errors
    /// When it does not run.
    pub fn check(&self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(exit) => {
                bail!("{} ended with {exit}; the end of {}:\n{}", self.name, self.log.display(), self.log_end())
            }
        }
    }

    /// Ends it: asked first, killed soon after.
    ///
    /// # Errors
    /// When it does not even end when killed.
    pub fn stop(self) -> Result<()> {
        self.child.stop(GRACE).map(drop)
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_end(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(QUOTE)..]).into_owned()
    }
}
