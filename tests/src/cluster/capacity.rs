//! What the nodes tell the scheduler about their room.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::bed::{Bed, RUN};
use super::kubectl::{items, text};
use super::release::NAMESPACE;
use crate::command::Command;
use crate::process::{self, Child, Log};
use crate::wait;

/// How long to wait for a figure, on a machine that emulates several others.
pub const FRESH: Duration = Duration::from_secs(120);
/// Where an object says of which node it is.
pub const TOPOLOGY: &str = "topology.lvm.quarry.storage/node";

/// What a node's capacity object says, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// How much there is.
    pub total: u64,
    /// The largest volume that can be made.
    pub largest: u64,
}

/// All capacity objects of the cluster.
///
/// # Errors
/// When the API server does not tell.
pub fn objects(bed: &Bed) -> Result<Vec<Value>> {
    Ok(items(&bed.kubectl.get("csistoragecapacities --all-namespaces")?).to_vec())
}

/// The objects of a class on a node; whoever made them.
///
/// # Errors
/// When the API server does not tell.
pub fn objects_of(bed: &Bed, class: &str, node: &str) -> Result<Vec<Value>> {
    let own = |o: &Value| text(o, "/storageClassName") == class && o["nodeTopology"]["matchLabels"][TOPOLOGY] == node;
    Ok(objects(bed)?.into_iter().filter(own).collect())
}

/// The published room of a class on a node; exactly one object says it.
///
/// # Errors
/// When that is not so for too long.
pub fn published(bed: &Bed, class: &str, node: &str) -> Result<Room> {
    wait::until(&format!("one capacity object of {class} on {node}"), FRESH, Duration::from_secs(1), || {
        let own = objects_of(bed, class, node)?;
        let [object] = &own[..] else { return Ok(None) };
        let (total, largest) = (text(object, "/capacity"), text(object, "/maximumVolumeSize"));
        ensure!(!total.is_empty() && !largest.is_empty(), "the object lacks one of its figures: {object}");
        Ok(Some(Room { total: bytes(total)?, largest: bytes(largest)? }))
    })
}

/// The published room once it no longer changes: tests before this one have just given theirs back.
///
/// # Errors
/// When it does not come to rest.
pub fn settled(bed: &Bed, class: &str, node: &str) -> Result<Room> {
    let mut last = None;
    wait::until(&format!("steady room of {class} on {node}"), FRESH * 2, Duration::from_secs(3), || {
        let room = published(bed, class, node)?;
        Ok((last.replace(room) == Some(room)).then_some(room))
    })
}

/// Waits until the published room is as wished for.
///
/// # Errors
/// At the limit, with what it is.
pub fn until(
    bed: &Bed,
    class: &str,
    node: &str,
    wish: &str,
    limit: Duration,
    check: impl Fn(Room) -> bool,
) -> Result<Room> {
    let mut last = None;
    wait::until(&format!("{wish} of {class} on {node}"), limit, Duration::from_millis(300), || {
        let room = published(bed, class, node)?;
        last = Some(room);
        Ok(check(room).then_some(room))
    })
    .with_context(|| format!("last it was {last:?}"))
}

/// A quantity of Kubernetes with a binary suffix, or none.
fn bytes(quantity: &str) -> Result<u64> {
    let split = quantity.find(|c: char| !c.is_ascii_digit()).unwrap_or(quantity.len());
    let (digits, suffix) = quantity.split_at(split);
    let shift = match suffix {
        "" => 0,
        "Ki" => 10,
        "Mi" => 20,
        "Gi" => 30,
        "Ti" => 40,
        _ => bail!("the quantity {quantity:?} has an unknown suffix"),
    };
    Ok(digits.parse::<u64>().with_context(|| format!("the quantity {quantity:?}"))? << shift)
}

/// Records everything that becomes of the capacity objects, without a gap, while the API server runs.
#[derive(Debug)]
pub struct Record {
    _watch: Child,
    log: PathBuf,
    /// Keeps the file.
    _folder: tempfile::TempDir,
}

impl Record {
    /// Begins; `there` objects are there now.
    ///
    /// # Errors
    /// When the watch does not start.
    pub fn begin(bed: &Bed, there: usize) -> Result<Self> {
        let folder = tempfile::tempdir().context("no folder for a record")?;
        let log = folder.path().join("watch");
        let line = "jsonpath={.type} {.object.metadata.name} {.object.maximumVolumeSize}{\"\\n\"}";
        let command = Command::new(bed.kubectl.program()).args([
            "get",
            "csistoragecapacities",
            "--namespace",
            NAMESPACE,
            "--watch",
            "--output-watch-events",
            "--output",
            line,
        ]);
        let watch = process::start(&command, Log::File(&log))?;
        let record = Self { _watch: watch, log, _folder: folder };
        wait::until("the record's first lines", RUN, Duration::from_millis(100), || {
            Ok((record.lines()?.len() >= there).then_some(()))
        })?;
        Ok(record)
    }

    fn lines(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(&self.log).with_context(|| format!("cannot read {}", self.log.display()))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// What happened so far, one event a line: what, which object, its largest volume. The first lines are what was there.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn events(&self) -> Result<Vec<String>> {
        self.lines()
    }

    /// Fails when an object was deleted or said that nothing is left.
    ///
    /// # Errors
    /// What happened.
    pub fn nothing_was_lost(&self) -> Result<()> {
        let events = self.events()?;
        let lost = |event: &&String| event.starts_with("DELETED") || event.ends_with(" 0");
        let lost: Vec<&String> = events.iter().filter(lost).collect();
        ensure!(lost.is_empty(), "a node was without room for a while: {lost:?}; all events: {events:#?}");
        ensure!(events.iter().all(|e| e.starts_with("ADDED") || e.starts_with("MODIFIED")), "no record: {events:#?}");
        Ok(())
    }
}
