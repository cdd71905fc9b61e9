//! What is true whenever the driver is at rest, whatever has died before.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use quarry_proto::quarry::v1 as admin;
use quarry_tests::command::Command;
use quarry_tests::in_vm::{Row, VolumeGroup};
use quarry_tests::process;

use crate::lane::{self, Lane};

const FIELDS: &str = "lv_name,lv_uuid,lv_size,lv_tags,lv_attr,seg_pe_ranges,transaction_id";

/// Fails with everything that is not as it should be.
pub async fn check(lane: &Lane) -> Result<()> {
    let mut wrong = logical_volumes(lane).await?;
    wrong.extend(mounts(lane).await?);
    conclude(wrong)
}

/// The same without a look at LVM, after what only mounts.
pub async fn check_mounts(lane: &Lane) -> Result<()> {
    conclude(mounts(lane).await?)
}

fn conclude(wrong: Vec<String>) -> Result<()> {
    if !wrong.is_empty() {
        bail!("{}", wrong.join("; "));
    }
    Ok(())
}

async fn logical_volumes(lane: &Lane) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let vg = lane.scene.group.name();
    let rows = lane.scene.group.lvs(FIELDS)?;
    let ours: BTreeMap<String, &Row> =
        rows.iter().filter(|row| tagged(row)).map(|row| (row["lv_name"].clone(), row)).collect();

    // Every volume is a logical volume and an entry of the list, and nothing else is.
    let volumes: BTreeSet<String> = ours.keys().cloned().collect();
    if volumes != lane.expected.volumes {
        wrong.push(format!("logical volumes of ours are {volumes:?}, should be {:?}", lane.expected.volumes));
    }
    let mut listed: Vec<String> = lane.scene.list().await.into_iter().map(|volume| volume.volume_id).collect();
    listed.sort();
    let expected: Vec<String> = lane.expected.volumes.iter().map(|name| format!("node-1/{name}")).collect();
    if listed != expected {
        wrong.push(format!("listed are {listed:?}, should be {expected:?}"));
    }

    // Nothing else has come into the group: hidden parts of the pool have brackets.
    let spare = |name: &str| lane.spare_may_be_left && name.starts_with("lvol");
    let own = |name: &str| {
        name == "theirs" || name == lane::IN_POOL || name == "quarry-pool" || name.starts_with('[') || spare(name)
    };
    for row in rows.iter().filter(|row| !tagged(row) && !own(&row["lv_name"])) {
        wrong.push(format!("logical volume {} ({}) is left over", row["lv_name"], row["lv_attr"]));
    }

    // Each can be used.
    for (name, row) in &ours {
        let attributes: Vec<char> = row["lv_attr"].chars().collect();
        if attributes.get(4) != Some(&'a') || attributes.get(8) != Some(&'-') {
            wrong.push(format!("volume {name} has the attributes {}", row["lv_attr"]));
        }
    }
    let prefix = format!("{}-", vg.replace('-', "--"));
    let known: BTreeSet<String> = rows.iter().map(|row| mapping(&prefix, &row["lv_name"])).collect();
    for (name, suspended) in mappings(&prefix)? {
        if suspended {
            wrong.push(format!("device {name} is suspended"));
        }
        if !known.contains(&name) && !known.contains(name.trim_end_matches("-tpool")) {
            wrong.push(format!("device {name} belongs to no logical volume"));
        }
    }
    for row in rows.iter().filter(|row| !row["transaction_id"].is_empty()) {
        let kernel = kernel_transaction(&format!("{}-tpool", mapping(&prefix, &row["lv_name"])))?;
        if kernel.as_ref().is_some_and(|kernel| *kernel != row["transaction_id"]) {
            let (pool, metadata) = (&row["lv_name"], &row["transaction_id"]);
            wrong.push(format!(
                "pool {pool} is at transaction {metadata} in LVM's metadata and at {kernel:?} in the kernel"
            ));
        }
    }

    let theirs = theirs(&rows);
    if theirs != lane.theirs {
        wrong.push(format!("the foreign volume was {:?}, it is {theirs:?}", lane.theirs));
    }
    Ok(wrong)
}

/// Mounted is what was asked for, once, and recorded; and the others can go on.
async fn mounts(lane: &Lane) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let mounts = mounts_below(&lane.scene.driver.path(""))?;
    let expected: Vec<PathBuf> = lane.expected.mounts.iter().cloned().collect();
    if mounts != expected {
        wrong.push(format!("mounted are {mounts:?}, should be {expected:?}"));
    }
    wrong.extend(records(lane).await?);

    if let Err(error) = lane.others_are_well() {
        wrong.push(format!("{error:#}"));
    }
    Ok(wrong)
}

/// What LVM tells about the foreign volume.
pub fn of_theirs(group: &VolumeGroup) -> Result<Option<Row>> {
    Ok(theirs(&group.lvs(FIELDS)?))
}

fn theirs(rows: &[Row]) -> Option<Row> {
    rows.iter().find(|row| row["lv_name"] == "theirs").cloned()
}

/// What is wrong with the driver's own records: of each volume it has exactly one, as of one that somebody asked for,
/// with the mounts that there are, and it has no more.
async fn records(lane: &Lane) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let answer = lane.scene.csi.admin.clone().list_volumes(admin::ListVolumesRequest {}).await?.into_inner();
    let names: Vec<&String> = answer.volumes.iter().map(|volume| &volume.name).collect();
    if names != lane.expected.volumes.iter().collect::<Vec<_>>() {
        wrong.push(format!("recorded are {names:?}, should be {:?}", lane.expected.volumes));
    }
    let mut mounts = Vec::new();
    for volume in answer.volumes {
        let (name, state, problem) = (&volume.name, &volume.state, &volume.problem);
        if !volume.recorded || state != "ready" || !problem.is_empty() {
            wrong.push(format!("volume {name} is {state}, recorded: {}, problem: {problem:?}", volume.recorded));
        }
        mounts.extend(volume.published.into_iter().map(|published| PathBuf::from(published.target_path)));
        // A raw block volume is staged without a mount.
        let staged = volume.staged_paths.into_iter().filter(|_| volume.content != "block");
        mounts.extend(staged.map(PathBuf::from));
    }
    mounts.sort();
    let expected: Vec<PathBuf> = lane.expected.mounts.iter().cloned().collect();
    if mounts != expected {
        wrong.push(format!("recorded as staged or published are {mounts:?}, should be {expected:?}"));
    }
    Ok(wrong)
}

fn tagged(row: &Row) -> bool {
    row["lv_tags"].split(',').any(|tag| tag == "quarry")
}

/// The device-mapper name of a logical volume, which LVM's reports show in brackets where it is hidden.
fn mapping(prefix: &str, name: &str) -> String {
    format!("{prefix}{}", name.trim_matches(['[', ']']).replace('-', "--"))
}

/// The group's devices, and whether each is suspended.
fn mappings(prefix: &str) -> Result<Vec<(String, bool)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let folder = entry?.path().join("dm");
        let Ok(name) = fs::read_to_string(folder.join("name")) else { continue };
        let name = name.trim().to_owned();
        if name.strip_prefix(prefix).is_some_and(|rest| !rest.starts_with('-')) {
            let suspended = fs::read_to_string(folder.join("suspended")).context("cannot ask for a device's state")?;
            found.push((name, suspended.trim() == "1"));
        }
    }
    Ok(found)
}

/// The transaction id of a live pool.
fn kernel_transaction(device: &str) -> Result<Option<String>> {
    let command = Command::new("dmsetup").args(["status", "--noflush", "--target", "thin-pool", device]);
    let status = process::run(&command, Duration::from_secs(60))?;
    if !status.exit.success() {
        return Ok(None);
    }
    // `0 7340032 thin-pool 3 ...`
    Ok(status.stdout_text().split_whitespace().nth(3).map(str::to_owned))
}

/// Mount points below a folder, sorted; one that is mounted over twice comes twice.
fn mounts_below(folder: &std::path::Path) -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mount table")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut points: Vec<PathBuf> = points.filter(|point| point.starts_with(folder)).collect();
    points.sort();
    Ok(points)
}
