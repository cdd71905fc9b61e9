//! Compares the driver's view of a volume group with what LVM itself reports.
//!
//! Invariant: both sides are turned into the same flat list of facts, so that a fact one side lacks is a difference.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use quarry_driver::lvm::metadata::assemble::GroupState;
use quarry_driver::lvm::metadata::model::{Area, LogicalVolume, SegmentKind, VolumeGroup};
use serde_json::Value;

/// One fact a line: what it is about, and what it is.
pub type Facts = BTreeMap<String, String>;

fn put(facts: &mut Facts, about: impl Into<String>, fact: impl ToString) {
    facts.insert(about.into(), fact.to_string());
}

fn sorted<'a>(tags: impl Iterator<Item = &'a str>) -> String {
    // LVM's reports sort tags by byte.
    let tags: BTreeSet<&str> = tags.filter(|tag| !tag.is_empty()).collect();
    tags.into_iter().collect::<Vec<_>>().join(",")
}

/// The facts in the driver's view.
pub fn of_state(state: &GroupState) -> Facts {
    let group = &state.group;
    let mut facts = Facts::new();
    let visible: Vec<&LogicalVolume> =
        group.logical_volumes.values().filter(|volume| group.is_visible(volume)).collect();
    put(&mut facts, "vg/name", &group.name);
    put(&mut facts, "vg/uuid", group.uuid);
    put(&mut facts, "vg/seqno", group.seqno);
    put(&mut facts, "vg/extent size", group.extent_size);
    put(&mut facts, "vg/size", group.extent_count() * group.extent_size);
    put(&mut facts, "vg/extents", group.extent_count());
    put(&mut facts, "vg/free extents", group.free_extents());
    put(&mut facts, "vg/missing", state.completeness.missing.len());
    put(&mut facts, "vg/writeable", group.writeable);
    put(&mut facts, "vg/resizeable", group.resizeable);
    put(&mut facts, "vg/exported", group.exported);
    put(&mut facts, "vg/tags", sorted(group.tags.iter().map(String::as_str)));
    put(&mut facts, "vg/physical volumes", group.physical_volumes.len());
    put(&mut facts, "vg/logical volumes", visible.len());
    for volume in &group.physical_volumes {
        let about = |what: &str| format!("pv/{}/{what}", volume.uuid);
        let device = state.devices.get(&volume.uuid);
        let node = device.map_or("[unknown]".to_owned(), |device| device.display().to_string());
        put(&mut facts, about("device"), node);
        put(&mut facts, about("extents"), volume.extent_count);
        put(&mut facts, about("used extents"), volume.extents_used);
        put(&mut facts, about("start"), volume.extents_start);
        put(&mut facts, about("allocatable"), volume.allocatable);
        put(&mut facts, about("missing"), device.is_none() || volume.missing);
        put(&mut facts, about("tags"), sorted(volume.tags.iter().map(String::as_str)));
    }
    for volume in visible {
        of_volume(group, volume, &mut facts);
    }
    for volume in group.logical_volumes.values() {
        for area in volume.segments.iter().flat_map(|segment| &segment.areas) {
            if let Area::Physical { volume: on, start_extent, extent_count } = area {
                let uuid = group.physical_volumes[*on].uuid;
                let fact = format!("{} extents of {}", extent_count, volume.name);
                put(&mut facts, format!("pvseg/{uuid}/{start_extent}"), fact);
            }
        }
    }
    facts
}

fn of_volume(group: &VolumeGroup, volume: &LogicalVolume, facts: &mut Facts) {
    let about = |what: &str| format!("lv/{}/{what}", volume.name);
    put(facts, about("uuid"), volume.uuid);
    put(facts, about("size"), group.size_of(volume));
    put(facts, about("tags"), sorted(volume.tags.iter().map(String::as_str)));
    put(facts, about("writeable"), volume.writeable);
    put(facts, about("activation skip"), volume.activation_skip);
    let thin = volume.thin();
    put(facts, about("pool"), thin.map_or("", |thin| &thin.pool));
    if let Some(pool) = volume.thin_pool() {
        put(facts, about("data"), &pool.data);
        put(facts, about("metadata"), &pool.metadata);
    }
    let snapshot_of =
        group.logical_volumes.values().flat_map(|other| &other.segments).find_map(|segment| match &segment.kind {
            SegmentKind::Snapshot { origin, store } if store.as_ref() == Some(&volume.name) => origin.as_deref(),
            _ => None,
        });
    let origin = thin.and_then(|thin| thin.origin.as_deref()).or(snapshot_of);
    put(facts, about("origin"), origin.unwrap_or(""));
    for segment in &volume.segments {
        let about = |what: &str| format!("seg/{}/{}/{what}", volume.name, segment.start_extent);
        put(facts, about("extents"), segment.extent_count);
        let kind = match &segment.kind {
            SegmentKind::Linear => "linear",
            SegmentKind::Striped { .. } => "striped",
            SegmentKind::ThinPool(_) => "thin-pool",
            SegmentKind::Thin(_) => "thin",
            SegmentKind::Snapshot { .. } => "snapshot",
            SegmentKind::Other(name) => name,
        };
        put(facts, about("type"), kind);
        match &segment.kind {
            SegmentKind::Linear | SegmentKind::Striped { .. } => put(facts, about("stripes"), segment.areas.len()),
            SegmentKind::ThinPool(pool) => {
                put(facts, about("chunk"), pool.chunk_size);
                put(facts, about("transaction"), pool.transaction_id);
                put(facts, about("zero"), pool.zero_new_blocks);
                put(facts, about("discards"), &pool.discards);
            }
            SegmentKind::Thin(thin) => put(facts, about("device id"), thin.device_id),
            _ => {}
        }
    }
}

/// The facts about one volume group in LVM's own report.
pub fn of_report(report: &Value, vg_uuid: &str) -> Result<Facts> {
    let reports = report["report"].as_array().context("no report in LVM's answer")?;
    let found = reports.iter().find(|report| report["vg"][0]["vg_uuid"] == vg_uuid);
    let report = found.with_context(|| format!("volume group {vg_uuid} is not in LVM's answer"))?;
    let mut facts = Facts::new();
    let vg = Row(&report["vg"][0]);
    let attributes = vg.text("vg_attr")?;
    put(&mut facts, "vg/name", vg.text("vg_name")?);
    put(&mut facts, "vg/uuid", vg.text("vg_uuid")?);
    put(&mut facts, "vg/seqno", vg.text("vg_seqno")?);
    put(&mut facts, "vg/extent size", vg.text("vg_extent_size")?);
    put(&mut facts, "vg/size", vg.text("vg_size")?);
    put(&mut facts, "vg/extents", vg.text("vg_extent_count")?);
    put(&mut facts, "vg/free extents", vg.text("vg_free_count")?);
    put(&mut facts, "vg/missing", vg.text("vg_missing_pv_count")?);
    put(&mut facts, "vg/writeable", attributes.starts_with('w'));
    put(&mut facts, "vg/resizeable", attributes.chars().nth(1) == Some('z'));
    put(&mut facts, "vg/exported", attributes.chars().nth(2) == Some('x'));
    put(&mut facts, "vg/tags", sorted(vg.text("vg_tags")?.split(',')));
    put(&mut facts, "vg/physical volumes", vg.text("pv_count")?);
    put(&mut facts, "vg/logical volumes", vg.text("lv_count")?);
    let mut identifiers = BTreeMap::new();
    for pv in rows(report, "pv")? {
        let uuid = pv.text("pv_uuid")?;
        let about = |what: &str| format!("pv/{uuid}/{what}");
        let attributes = pv.text("pv_attr")?;
        identifiers.insert(pv.text("pv_name")?, uuid);
        put(&mut facts, about("device"), pv.text("pv_name")?);
        put(&mut facts, about("extents"), pv.text("pv_pe_count")?);
        put(&mut facts, about("used extents"), pv.text("pv_pe_alloc_count")?);
        put(&mut facts, about("start"), pv.text("pe_start")?);
        put(&mut facts, about("allocatable"), attributes.starts_with('a'));
        put(&mut facts, about("missing"), attributes.chars().nth(2) == Some('m'));
        put(&mut facts, about("tags"), sorted(pv.text("pv_tags")?.split(',')));
    }
    for lv in rows(report, "lv")? {
        let name = lv.text("lv_name")?;
        let about = |what: &str| format!("lv/{name}/{what}");
        let attributes = lv.text("lv_attr")?;
        let bare = |field: &str| Ok::<_, anyhow::Error>(lv.text(field)?.trim_matches(['[', ']']).to_owned());
        put(&mut facts, about("uuid"), lv.text("lv_uuid")?);
        put(&mut facts, about("size"), lv.text("lv_size")?);
        put(&mut facts, about("tags"), sorted(lv.text("lv_tags")?.split(',')));
        put(&mut facts, about("writeable"), attributes.chars().nth(1) == Some('w'));
        put(&mut facts, about("activation skip"), attributes.chars().nth(9) == Some('k'));
        let is_cache = attributes.starts_with('C');
        put(&mut facts, about("pool"), if is_cache { String::new() } else { bare("pool_lv")? });
        put(&mut facts, about("origin"), if is_cache { String::new() } else { bare("origin")? });
        if attributes.starts_with('t') {
            put(&mut facts, about("data"), bare("data_lv")?);
            put(&mut facts, about("metadata"), bare("metadata_lv")?);
        }
    }
    for segment in rows(report, "seg")? {
        let place = (segment.text("lv_name")?, segment.text("seg_start_pe")?);
        let about = |what: &str| format!("seg/{}/{}/{what}", place.0, place.1);
        let kind = segment.text("segtype")?;
        put(&mut facts, about("type"), kind);
        put(&mut facts, about("extents"), segment.text("seg_size_pe")?);
        match kind {
            "linear" | "striped" => put(&mut facts, about("stripes"), segment.text("stripes")?),
            "thin-pool" => {
                put(&mut facts, about("chunk"), segment.text("chunk_size")?);
                put(&mut facts, about("transaction"), segment.text("transaction_id")?);
                put(&mut facts, about("zero"), segment.text("zero")? == "zero");
                put(&mut facts, about("discards"), segment.text("discards")?);
            }
            "thin" => put(&mut facts, about("device id"), segment.text("thin_id")?),
            _ => {}
        }
    }
    for segment in rows(report, "pvseg")? {
        let owner = segment.text("lv_name")?.trim_matches(['[', ']']);
        // Rows without an owner are the free stretches.
        if !owner.is_empty() {
            let uuid = identifiers.get(segment.text("pv_name")?).context("a pvseg row of an unknown pv")?;
            let fact = format!("{} extents of {owner}", segment.text("pvseg_size")?);
            put(&mut facts, format!("pvseg/{uuid}/{}", segment.text("pvseg_start")?), fact);
        }
    }
    Ok(facts)
}

/// What LVM reports as left for a longer text. It rounds to sectors more than once: good to 1 KiB.
pub fn metadata_free(report: &Value, vg_uuid: &str) -> Result<u64> {
    let reports = report["report"].as_array().context("no report in LVM's answer")?;
    let found = reports.iter().find(|report| report["vg"][0]["vg_uuid"] == vg_uuid);
    let report = found.with_context(|| format!("volume group {vg_uuid} is not in LVM's answer"))?;
    Ok(Row(&report["vg"][0]).text("vg_mda_free")?.parse()?)
}

fn rows<'a>(report: &'a Value, kind: &str) -> Result<Vec<Row<'a>>> {
    let rows = report[kind].as_array().with_context(|| format!("no {kind} rows in LVM's answer"))?;
    Ok(rows.iter().map(Row).collect())
}

struct Row<'a>(&'a Value);

impl<'a> Row<'a> {
    fn text(&self, field: &str) -> Result<&'a str> {
        self.0[field].as_str().with_context(|| format!("no {field} in {}", self.0))
    }
}
