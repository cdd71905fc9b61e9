//! Orders to a running driver: note the points it passes, or die at one of them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The environment variable by which the driver knows the file.
pub const VARIABLE: &str = "QUARRY_CRASH_FILE";

/// Who dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// The driver; what it runs goes on.
    Alone,
    /// The driver with what it runs, as at a pod's end.
    WithChildren,
}

/// Where the driver is to die.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The point's name.
    pub point: String,
    /// At which of its passes, counted from 1.
    pub pass: usize,
    /// Who dies.
    pub death: Death,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.point)?;
        if self.pass > 1 {
            write!(f, " #{}", self.pass)?;
        }
        match self.death {
            Death::Alone => f.write_str(" (command goes on)"),
            Death::WithChildren => Ok(()),
        }
    }
}

/// Every death there is along these passed points: while a command runs, the driver dies with it and without it.
pub fn targets(passed: &[String]) -> Vec<Target> {
    let mut passes: BTreeMap<&str, usize> = BTreeMap::new();
    let mut targets = Vec::new();
    for point in passed {
        let pass = passes.entry(point).or_default();
        *pass += 1;
        targets.push(Target { point: point.clone(), pass: *pass, death: Death::WithChildren });
        if point.ends_with(".running") {
            targets.push(Target { point: point.clone(), pass: *pass, death: Death::Alone });
        }
    }
    targets
}

/// The file with the order, and where passed points are noted.
#[derive(Debug)]
pub struct Orders {
    folder: PathBuf,
    last: u64,
}

impl Orders {
    /// Orders in this folder.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), last: 0 }
    }

    /// What [`VARIABLE`] is set to.
    pub fn file(&self) -> PathBuf {
        self.folder.join("crash-order")
    }

    fn trace(&self) -> PathBuf {
        self.folder.join(format!("crash-trace-{}", self.last))
    }

    /// From now on points are noted; at `target` the driver dies.
    pub fn give(&mut self, target: Option<&Target>) -> Result<()> {
        self.last += 1;
        let mut text = format!("{} {}", self.last, self.trace().display());
        if let Some(Target { point, pass, death }) = target {
            let who = match death {
                Death::Alone => "alone",
                Death::WithChildren => "children",
            };
            text.push_str(&format!(" {point} {pass} {who}"));
        }
        let new = self.folder.join("crash-order.new");
        std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, self.file())).context("cannot give an order")
    }

    /// The points that were passed since the order, in order.
    pub fn passed(&self) -> Result<Vec<String>> {
        match std::fs::read_to_string(self.trace()) {
            Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error).context("cannot read which points were passed"),
        }
    }

    /// Takes the order back; tells the points that were passed.
    pub fn take_back(&self) -> Result<Vec<String>> {
        std::fs::remove_file(self.file()).context("cannot take an order back")?;
        let passed = self.passed()?;
        std::fs::remove_file(self.trace()).ok();
        Ok(passed)
    }
}

/// Whether the driver came to the point.
pub fn reached(passed: &[String], target: &Target) -> bool {
    passed.iter().filter(|point| **point == target.point).count() >= target.pass
}
