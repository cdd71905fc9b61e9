//! The inside of a machine: its first process ([`init`]) and the agent that runs commands ([`agent`]). Both are the
//! `testbed` binary itself, which the machine sees through this machine's root.

pub mod agent;
pub mod init;
mod shutdown;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::cache;

/// Where [`init`] leaves its report for [`agent`].
const REPORT: &str = "/run/quarry/report.json";

/// How the boot went, told by the agent's first answer.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// What did not work, for people. A machine with problems does not count as booted.
    pub problems: Vec<String>,
}

/// The `testbed` binary: `QUARRY_TESTBED_BIN`, else this program if it is it, else the one that cargo built last.
pub(super) fn testbed_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("QUARRY_TESTBED_BIN") {
        return Ok(PathBuf::from(path));
    }
    let own = std::env::current_exe().context("cannot tell the path of this program")?;
    // A running program that cargo has built anew is told as deleted; the new one is at its path.
    let own = own.to_string_lossy().trim_end_matches(" (deleted)").to_owned();
    let built = cache::target().join("debug/testbed");
    let own = PathBuf::from(own);
    for path in [Some(own).filter(|own| own.ends_with("testbed")), Some(built)].into_iter().flatten() {
        if path.exists() {
            return Ok(path);
        }
    }
    bail!("no testbed binary: build it with `cargo build -p quarry-tests --bin testbed` or set QUARRY_TESTBED_BIN")
}
