//! Turns a parsed metadata text into a [`VolumeGroup`].
//!
//! Invariant: a missing or ill-typed key that matters is an error naming its place and line; unknown keys are
//! passed over. The keys are those of LVM's `lib/format_text/import_vsn1.c`.

use std::collections::{BTreeMap, HashMap};

use super::header::SECTOR;
use super::model::{
    Area, LogicalVolume, PhysicalVolume, PoolMessage, Segment, SegmentKind, Thin, ThinPool, VolumeGroup,
};
use super::place::{ModelError, Place};
use super::text::{self, Node, Value};

impl VolumeGroup {
    /// Reads a metadata text, as it is on disk or in a `vgcfgbackup` file.
    ///
    /// # Errors
    /// [`ModelError`] with the line at which the text is not what LVM writes.
    pub fn from_text(text: &[u8]) -> Result<Self, ModelError> {
        let document = text::parse(text)?;
        let root = Place { path: "the text".to_owned(), line: 1, section: &document };
        let contents = root.string("contents")?;
        if contents != "Text Format Volume Group" {
            return Err(root.wrong("contents", format!("{contents:?}"), "\"Text Format Volume Group\""));
        }
        let version = root.natural("version")?;
        if version != 1 {
            return Err(root.wrong("version", version.to_string(), "1"));
        }
        let mut groups = document.sections();
        let (entry, section) = groups.next().ok_or_else(|| root.inconsistent("it holds no volume group"))?;
        if let Some((second, _)) = groups.next() {
            return Err(root.inconsistent(format!("it holds two volume groups, {:?} and {:?}", entry.key, second.key)));
        }
        let place = Place { path: entry.key.to_string(), line: entry.line, section };
        import_group(&place, text.len() as u64 + 1)
    }
}

fn import_group(place: &Place<'_>, text_size: u64) -> Result<VolumeGroup, ModelError> {
    let extent_size = place.sectors("extent_size")?;
    if extent_size == 0 {
        return Err(place.wrong("extent_size", "0".to_owned(), "a positive number of sectors"));
    }
    let mut status = place.flags()?;
    let mut physical_volumes = Vec::new();
    let mut indices = HashMap::new();
    for pv in place.subsections("physical_volumes") {
        let volume = import_physical(&pv)?;
        if indices.insert(volume.key.clone(), physical_volumes.len()).is_some() {
            return Err(pv.inconsistent("there are two physical volumes of this name"));
        }
        physical_volumes.push(volume);
    }
    let mut taken = vec![Vec::new(); physical_volumes.len()];
    let mut logical_volumes = BTreeMap::new();
    for lv in place.subsections("logical_volumes") {
        let volume = import_logical(&lv, &indices)?;
        for segment in &volume.segments {
            for area in &segment.areas {
                if let Area::Physical { volume, start_extent, extent_count } = *area {
                    taken[volume].push((start_extent, start_extent.saturating_add(extent_count)));
                }
            }
        }
        if logical_volumes.insert(volume.name.clone(), volume).is_some() {
            return Err(lv.inconsistent("there are two logical volumes of this name"));
        }
    }
    for (volume, ranges) in physical_volumes.iter_mut().zip(taken) {
        (volume.extents_used, volume.longest_free) = covered(ranges, volume.extent_count);
    }
    let clustered = take(&mut status, "CLUSTERED").then(|| "clvm".to_owned());
    Ok(VolumeGroup {
        name: place.path.clone(),
        uuid: place.uuid()?,
        seqno: place.natural("seqno")?,
        extent_size,
        resizeable: take(&mut status, "RESIZEABLE"),
        readable: take(&mut status, "READ"),
        // LVM writes WRITE_LOCKED instead where readers that know no lock manager must not write.
        writeable: take(&mut status, "WRITE") | take(&mut status, "WRITE_LOCKED"),
        exported: take(&mut status, "EXPORTED"),
        system_id: place.optional_string("system_id")?.filter(|id| !id.is_empty()),
        lock_type: place.optional_string("lock_type")?.filter(|kind| !kind.is_empty() && kind != "none").or(clustered),
        other_flags: status,
        tags: place.strings("tags")?,
        allocation: place.optional_string("allocation_policy")?,
        max_logical_volumes: place.optional_natural("max_lv")?.unwrap_or(0),
        physical_volumes,
        logical_volumes,
        text_size,
    })
}

fn import_physical(place: &Place<'_>) -> Result<PhysicalVolume, ModelError> {
    let mut flags = place.flags()?;
    Ok(PhysicalVolume {
        key: place.name().to_owned(),
        uuid: place.uuid()?,
        device_hint: place.optional_string("device")?.unwrap_or_default(),
        allocatable: take(&mut flags, "ALLOCATABLE"),
        missing: take(&mut flags, "MISSING"),
        other_flags: flags,
        tags: place.strings("tags")?,
        device_size: place.optional_natural("dev_size")?.unwrap_or(0).saturating_mul(SECTOR as u64),
        extents_start: place.sectors("pe_start")?,
        extent_count: place.natural("pe_count")?,
        extents_used: 0,
        longest_free: 0,
    })
}

fn import_logical(place: &Place<'_>, volumes: &HashMap<String, usize>) -> Result<LogicalVolume, ModelError> {
    let mut flags = place.flags()?;
    let mut segments = Vec::new();
    for (entry, section) in place.section.sections() {
        segments.push(import_segment(&place.inner(entry, section), volumes)?);
    }
    let count = place.natural("segment_count")?;
    if count != segments.len() as u64 {
        return Err(place.inconsistent(format!("segment_count is {count}, but there are {}", segments.len())));
    }
    segments.sort_by_key(|segment: &Segment| segment.start_extent);
    let mut next = 0_u64;
    for segment in &segments {
        if segment.start_extent != next {
            return Err(place.inconsistent(format!(
                "a segment starts at extent {} where {next} is expected",
                segment.start_extent
            )));
        }
        next = next.saturating_add(segment.extent_count);
    }
    Ok(LogicalVolume {
        name: place.name().to_owned(),
        uuid: place.uuid()?,
        readable: take(&mut flags, "READ"),
        writeable: take(&mut flags, "WRITE"),
        visible_flag: take(&mut flags, "VISIBLE"),
        activation_skip: take(&mut flags, "ACTIVATION_SKIP"),
        error_when_full: take(&mut flags, "ERROR_WHEN_FULL"),
        other_flags: flags,
        tags: place.strings("tags")?,
        creation_time: place.optional_natural("creation_time")?,
        segments,
    })
}

fn import_segment(place: &Place<'_>, volumes: &HashMap<String, usize>) -> Result<Segment, ModelError> {
    let start_extent = place.natural("start_extent")?;
    let extent_count = place.natural("extent_count")?;
    let written = place.string("type")?;
    // Flags that older LVM must not ignore follow the type: "cache-pool+METADATA_FORMAT".
    let (name, _) = written.split_once('+').unwrap_or((&written, ""));
    let is_striped = name == "striped" || name == "linear";
    let stripes = place.optional_natural("stripe_count")?.unwrap_or(1).max(1);
    if is_striped && extent_count % stripes != 0 {
        return Err(place.inconsistent(format!("{extent_count} extents cannot be spread over {stripes} stripes")));
    }
    // Only stripes divide the segment; whatever else names a physical volume is taken to use it in full.
    let length = if is_striped { extent_count / stripes } else { extent_count };
    let areas = import_areas(place, volumes, length)?;
    let kind = match name {
        "striped" | "linear" if areas.len() as u64 != stripes => {
            return Err(place.inconsistent(format!("stripe_count is {stripes}, but there are {}", areas.len())));
        }
        "striped" | "linear" if stripes == 1 => SegmentKind::Linear,
        "striped" | "linear" => SegmentKind::Striped { stripe_size: place.sectors("stripe_size")? },
        "thin-pool" => SegmentKind::ThinPool(import_pool(place)?),
        "thin" => SegmentKind::Thin(Thin {
            pool: place.string("thin_pool")?,
            device_id: place.natural("device_id")?,
            transaction_id: place.natural("transaction_id")?,
            origin: place.optional_string("origin")?,
            external_origin: place.optional_string("external_origin")?,
            merge: place.optional_string("merge")?,
        }),
        "snapshot" => SegmentKind::Snapshot {
            origin: place.optional_string("origin")?,
            store: match place.optional_string("cow_store")? {
                Some(store) => Some(store),
                None => place.optional_string("merging_store")?,
            },
        },
        other => SegmentKind::Other(other.to_owned()),
    };
    Ok(Segment { start_extent, extent_count, kind, areas })
}

fn import_pool(place: &Place<'_>) -> Result<ThinPool, ModelError> {
    let mut messages = Vec::new();
    for (entry, section) in place.section.sections() {
        let message = place.inner(entry, section);
        let known = if let Some(name) = message.optional_string("create")? {
            PoolMessage::Create(name)
        } else if let Some(device) = message.optional_natural("delete")? {
            PoolMessage::Delete(device)
        } else {
            let keys: Vec<&str> = section.entries.iter().map(|entry| entry.key.as_ref()).collect();
            PoolMessage::Other(keys.join(" "))
        };
        messages.push(known);
    }
    Ok(ThinPool {
        data: place.string("pool")?,
        metadata: place.string("metadata")?,
        chunk_size: place.sectors("chunk_size")?,
        transaction_id: place.natural("transaction_id")?,
        // LVM's default when the key is not there is not to zero.
        zero_new_blocks: place.optional_natural("zero_new_blocks")?.unwrap_or(0) != 0,
        discards: place.optional_string("discards")?.unwrap_or_else(|| "passdown".to_owned()),
        messages,
    })
}

/// Every list of the segment in which names of volumes alternate with extents, whatever its key.
fn import_areas(place: &Place<'_>, volumes: &HashMap<String, usize>, length: u64) -> Result<Vec<Area>, ModelError> {
    let mut areas = Vec::new();
    for entry in &place.section.entries {
        let Node::Value(Value::List(list)) = &entry.node else {
            continue;
        };
        for pair in list.chunks(2) {
            let [Value::Text(name), Value::Integer(start)] = pair else {
                continue;
            };
            let start_extent =
                u64::try_from(*start).map_err(|_| place.wrong(&entry.key, start.to_string(), "extents from 0"))?;
            areas.push(match volumes.get(name.as_ref()) {
                Some(&volume) => Area::Physical { volume, start_extent, extent_count: length },
                None => Area::Logical { name: name.to_string(), start_extent },
            });
        }
    }
    Ok(areas)
}

/// How many of `count` extents the ranges cover together, and the longest stretch that none covers.
fn covered(mut ranges: Vec<(u64, u64)>, count: u64) -> (u64, u64) {
    ranges.sort_unstable();
    let (mut used, mut longest_free) = (0, 0);
    let mut behind = 0;
    for (start, end) in ranges {
        let start = start.max(behind);
        let end = end.min(count);
        if end > start {
            used += end - start;
            longest_free = longest_free.max(start - behind);
            behind = end;
        }
    }
    (used, longest_free.max(count.saturating_sub(behind)))
}

/// Takes a word out of the list and says whether it was there.
fn take(words: &mut Vec<String>, word: &str) -> bool {
    let before = words.len();
    words.retain(|other| other != word);
    words.len() < before
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A small group in the form in which LVM writes it to disk.
    const TEXT: &str = r#"quarry {
id = "oWJdY3-ZzO2-xDxg-beqd-gbAU-R1lE-YGMcfv"
seqno = 4
format = "lvm2"
status = ["RESIZEABLE", "READ", "WRITE"]
flags = []
extent_size = 8192
max_lv = 0

physical_volumes {

pv0 {
id = "YePVui-KtBD-MIgq-jDlI-MCt1-4WWU-AYnZQM"
device = "/dev/vdc"

status = ["ALLOCATABLE"]
flags = []
dev_size = 1048576
pe_start = 2048
pe_count = 100
}
}

logical_volumes {

data {
id = "p3DVkf-Nhvo-OXlY-u6La-FzOZ-KeHK-c7Wdpa"
status = ["READ", "WRITE", "VISIBLE"]
flags = []
tags = ["quarry"]
creation_time = 1795256748
creation_host = "(none)"
segment_count = 1

segment1 {
start_extent = 0
extent_count = 8

type = "striped"
stripe_count = 1

stripes = [
"pv0", 10
]
}
}
}

}
contents = "Text Format Volume Group"
version = 1
"#;

    fn import(text: &str) -> Result<VolumeGroup, ModelError> {
        VolumeGroup::from_text(text.as_bytes())
    }

    /// The error and everything below it, in one line.
    fn complaint(text: &str) -> String {
        let error = import(text).unwrap_err();
        let mut sentence = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            sentence.push_str(&format!(": {error}"));
            cause = error.source();
        }
        sentence
    }

    #[test]
    fn a_group_is_read() {
        let group = import(TEXT).unwrap();
        assert_eq!((group.name.as_str(), group.seqno, group.extent_size), ("quarry", 4, 4 << 20));
        assert_eq!(group.physical_volumes[0].extents_used, 8);
        assert_eq!(group.allocatable_bytes(), 92 * (4 << 20));
        assert_eq!(group.size_of(&group.logical_volumes["data"]), 8 * (4 << 20));
        assert_eq!(group.text_size, TEXT.len() as u64 + 1);
        assert!(group.is_visible(&group.logical_volumes["data"]));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named_with_its_line() {
        for (from, to, complaint_of) in [
            ("seqno = 4\n", "", "line 1: quarry has no seqno"),
            ("seqno = 4", "seqno = -4", "line 3: quarry/seqno is -4, expected a whole number from 0"),
            ("seqno = 4", "seqno = \"4\"", "line 3: quarry/seqno is \"4\""),
            ("extent_size = 8192", "extent_size = 0", "quarry/extent_size is 0"),
            ("pe_count = 100\n", "", "line 12: quarry/physical_volumes/pv0 has no pe_count"),
            ("YePVui-", "YePVu/-", "quarry/physical_volumes/pv0/id is wrong"),
            ("segment_count = 1", "segment_count = 2", "segment_count is 2, but there are 1"),
            ("start_extent = 0", "start_extent = 1", "a segment starts at extent 1 where 0 is expected"),
            ("stripe_count = 1", "stripe_count = 2", "stripe_count is 2, but there are 1"),
            ("stripe_count = 1", "stripe_count = 3", "8 extents cannot be spread over 3 stripes"),
            ("\"pv0\", 10", "\"pv0\", -10", "stripes is -10, expected extents from 0"),
            ("type = \"striped\"\n", "", "segment1 has no type"),
            ("type = \"striped\"", "type = \"thin\"", "segment1 has no thin_pool"),
            ("status = [\"ALLOCATABLE\"]\n", "", "pv0 has no status"),
            ("[\"quarry\"]", "[1]", "tags is 1, expected a list of strings"),
            ("version = 1", "version = 2", "the text/version is 2, expected 1"),
            ("Text Format Volume Group", "Text", "the text/contents is \"Text\""),
            ("contents =", "other { }\ncontents =", "it holds two volume groups, \"quarry\" and \"other\""),
            ("seqno = 4", "seqno 4", "the metadata text is malformed: line 3: expected = or {"),
        ] {
            assert!(TEXT.contains(from), "{from:?}");
            let complaint = complaint(&TEXT.replacen(from, to, 1));
            assert!(complaint.contains(complaint_of), "{from:?} -> {to:?}: {complaint}");
        }
    }

    #[test]
    fn unknown_words_and_keys_are_kept_or_passed_over() {
        let text =
            TEXT.replace("\"VISIBLE\"]", "\"VISIBLE\", \"LOCKED\"]").replace("max_lv = 0", "max_lv = 7\nnew = [1]");
        let group = import(&text).unwrap();
        assert_eq!(group.logical_volumes["data"].other_flags, ["LOCKED"]);
        assert_eq!(group.max_logical_volumes, 7);
        let text = TEXT.replace("flags = []\nextent_size", "flags = []\nlock_type = \"sanlock\"\nextent_size");
        assert_eq!(import(&text).unwrap().lock_type.as_deref(), Some("sanlock"));
        let text = TEXT.replace("\"WRITE\"]\nflags = []\nextent", "\"WRITE_LOCKED\"]\nflags = []\nextent");
        assert!(import(&text).unwrap().writeable);
    }

    #[test]
    fn whatever_uses_a_physical_volume_is_counted() {
        // A kind unknown here, with a list under another name, reaching over the end.
        let text = TEXT.replace("type = \"striped\"", "type = \"novel\"").replace("stripes = [", "legs = [");
        let group = import(&text).unwrap();
        assert_eq!(group.physical_volumes[0].extents_used, 8);
        assert_eq!(group.logical_volumes["data"].provisioning(), super::super::model::Provisioning::Other("novel"));
        let group = import(&text.replace("\"pv0\", 10", "\"pv0\", 95, \"pv0\", 97")).unwrap();
        assert_eq!(group.physical_volumes[0].extents_used, 5);
    }

    #[test]
    fn outstanding_pool_messages_are_seen() {
        let pool = "type = \"thin-pool\"\nmetadata = \"m\"\npool = \"d\"\ntransaction_id = 5\nchunk_size = 128\n\
            message1 {\ncreate = \"data\"\n}\nmessage2 {\ndelete = 7\n}\nmessage3 {\nodd = 1\n}\n";
        let text = TEXT.replace("type = \"striped\"\nstripe_count = 1\n\nstripes = [\n\"pv0\", 10\n]\n", pool);
        let group = import(&text).unwrap();
        let pool = group.logical_volumes["data"].thin_pool().unwrap();
        let expected = [PoolMessage::Create("data".into()), PoolMessage::Delete(7), PoolMessage::Other("odd".into())];
        assert_eq!(pool.messages, expected);
        assert!(!pool.zero_new_blocks, "LVM's default without the key");
    }

    proptest! {
        #[test]
        fn a_text_with_a_hole_never_panics(start in 0..TEXT.len(), length in 1_usize..40, with in "[ -~]{0,3}") {
            let mut text = TEXT.to_owned();
            text.replace_range(start..(start + length).min(TEXT.len()), &with);
            let _ = import(&text);
        }

        #[test]
        fn covered_extents_are_those_in_any_range(ranges in proptest::collection::vec((0_u64..60, 0_u64..30), 0..12)) {
            let ranges: Vec<_> = ranges.into_iter().map(|(start, length)| (start, start + length)).collect();
            let used = |extent: &u64| ranges.iter().any(|range| range.0 <= *extent && *extent < range.1);
            let (mut free, mut longest) = (0, 0);
            for extent in 0..50 {
                free = if used(&extent) { 0 } else { free + 1 };
                longest = longest.max(free);
            }
            prop_assert_eq!(covered(ranges.clone(), 50), ((0..50).filter(used).count() as u64, longest));
        }
    }
}
