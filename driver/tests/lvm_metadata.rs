//! Reading LVM's metadata, on what LVM 2.03.16 wrote in a number of scenarios: the driver's view must be what
//! LVM itself reported, and every kind of damage must be told, never taken for absence.

#[path = "support/lvm_report.rs"]
mod lvm_report;
#[path = "support/pv_image.rs"]
mod pv_image;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use pv_image::{AREA, Scenario, damage, write_header, write_text};
use quarry_driver::lvm::metadata::assemble::{Assembly, FoundVolume, GroupState, assemble};
use quarry_driver::lvm::metadata::header::{HeaderError, largest_text};
use quarry_driver::lvm::metadata::model::{Provisioning, VolumeGroup};
use quarry_driver::lvm::metadata::read::{Probe, PvOnDisk, ReadError, read_header, read_physical_volume};

/// The scenarios in which nothing is missing.
const WHOLE: [&str; 10] =
    ["empty", "linear", "thin", "mixed", "cached", "wrapped", "copies", "exported", "labelsector", "default"];

fn read(image: &Path) -> Result<PvOnDisk> {
    match read_physical_volume(image)? {
        Probe::PhysicalVolume(on_disk) => Ok(on_disk),
        Probe::NotPhysicalVolume => bail!("{} is no physical volume", image.display()),
    }
}

/// What the images show, under the names of the devices that they were.
fn look(scenario: &Scenario) -> Result<Assembly> {
    let pairs = scenario.images.iter().zip(&scenario.nodes);
    let found = pairs.map(|(image, node)| Ok(FoundVolume { device: node.clone(), on_disk: read(image)? }));
    Ok(assemble(&found.collect::<Result<Vec<_>>>()?))
}

fn only_group(assembly: &Assembly) -> Result<&GroupState> {
    match assembly.groups.as_slice() {
        [group] => Ok(group),
        others => bail!("{} groups instead of one", others.len()),
    }
}

fn text_of(image: &Path) -> Result<String> {
    let on_disk = read(image)?;
    let contents = on_disk.areas[0].contents.as_ref().map_err(Clone::clone)?;
    let text = contents.text.clone().context("no text")?;
    Ok(String::from_utf8(text.to_vec())?)
}

#[test]
fn every_scenario_is_seen_as_lvm_sees_it() -> Result<()> {
    for name in WHOLE.iter().chain(&["gone", "missing"]) {
        let scenario = Scenario::load(name)?;
        let assembly = look(&scenario)?;
        let state = only_group(&assembly)?;
        let expected = lvm_report::of_report(&scenario.report, &state.group.uuid.to_string())?;
        let mut found = lvm_report::of_state(state);
        if *name == "exported" {
            // LVM lists no volumes of an exported group, and reports on it otherwise alike.
            found.retain(|about, _| expected.contains_key(about));
        }
        assert!(expected.len() > 15, "{name}: the report says next to nothing: {expected:?}");
        let free = lvm_report::metadata_free(&scenario.report, &state.group.uuid.to_string())?;
        assert!(free.abs_diff(state.room.free()) <= 1024, "{name}: {free} {:?}", state.room);
        pretty_equal(name, &found, &expected);
    }
    Ok(())
}

fn pretty_equal(name: &str, found: &lvm_report::Facts, expected: &lvm_report::Facts) {
    let mut differences = Vec::new();
    for about in found.keys().chain(expected.keys()).collect::<std::collections::BTreeSet<_>>() {
        if found.get(about) != expected.get(about) {
            differences.push(format!("{about}: driver {:?}, lvm {:?}", found.get(about), expected.get(about)));
        }
    }
    assert!(differences.is_empty(), "{name}:\n{}", differences.join("\n"));
}

#[test]
fn whole_groups_are_complete() -> Result<()> {
    for name in WHOLE {
        let assembly = look(&Scenario::load(name)?)?;
        let completeness = &only_group(&assembly)?.completeness;
        assert!(completeness.is_complete(), "{name}: {completeness}");
        assert!(!completeness.may_settle(), "{name}: {completeness}");
        assert_eq!(completeness.to_string(), "complete");
        assert!(assembly.orphans.is_empty() && assembly.unattributed.is_empty(), "{name}");
    }
    Ok(())
}

#[test]
fn a_thin_pool_is_known_with_all_that_matters() -> Result<()> {
    let assembly = look(&Scenario::load("thin")?)?;
    let group = &only_group(&assembly)?.group;
    let volume = group.logical_volume("quarry-pool").context("no pool")?;
    let pool = volume.thin_pool().context("not a pool")?;
    assert!(pool.zero_new_blocks && volume.error_when_full && pool.messages.is_empty());
    assert_eq!((pool.chunk_size, pool.transaction_id), (64 << 10, 3));
    assert_eq!(volume.provisioning(), Provisioning::Pool);
    let thin = group.logical_volume("pvc-1").context("no pvc-1")?;
    assert_eq!(thin.provisioning(), Provisioning::Thin { pool: "quarry-pool" });
    assert!(thin.has_tag("quarry") && thin.tag_value("c=") == Some("default"));
    assert_eq!(group.promised_bytes("quarry-pool", 64 << 10), (40 + 1024 + 40) << 20);
    assert_eq!(group.thin_volumes("quarry-pool").count(), 3);
    assert!(group.logical_volume("snap").context("no snap")?.activation_skip);
    let thick = group.logical_volume("thick").context("no thick")?;
    assert_eq!(thick.provisioning(), Provisioning::Thick);
    let hidden = group.logical_volume("quarry-pool_tdata").context("no data")?;
    assert!(!group.is_visible(hidden));
    Ok(())
}

#[test]
fn odd_tags_survive() -> Result<()> {
    let assembly = look(&Scenario::load("linear")?)?;
    let volume = only_group(&assembly)?.group.logical_volumes["linear"].clone();
    assert_eq!(volume.tags, ["quarry", "c=default", "x/:=&#!y", "g=new", "T_+.-"]);
    Ok(())
}

#[test]
fn space_not_to_be_allocated_is_not_counted_as_room() -> Result<()> {
    let assembly = look(&Scenario::load("mixed")?)?;
    let group = &only_group(&assembly)?.group;
    let third = &group.physical_volumes[2];
    assert!(!third.allocatable && third.free_extents() > 0);
    assert_eq!(group.free_extents() - third.free_extents(), group.allocatable_extents());
    // Nor anything in a group that LVM refuses to change.
    let assembly = look(&Scenario::load("exported")?)?;
    let group = &only_group(&assembly)?.group;
    assert!(group.exported && group.free_extents() > 0);
    assert_eq!(group.allocatable_bytes(), 0);
    // Nor what a missing physical volume had.
    let assembly = look(&Scenario::load("missing")?)?;
    let group = &only_group(&assembly)?.group;
    assert_eq!(group.allocatable_extents(), 511 - 50);
    Ok(())
}

#[test]
fn the_smallest_area_limits_the_text() -> Result<()> {
    let assembly = look(&Scenario::load("default")?)?;
    let room = only_group(&assembly)?.room;
    // The number in LVM's own error message.
    assert_eq!(room.largest_text, 521_472);
    assert_eq!(room.free(), 521_472 - room.text);
    let assembly = look(&Scenario::load("copies")?)?;
    assert_eq!(only_group(&assembly)?.room.largest_text, largest_text(61_440));
    Ok(())
}

#[test]
fn another_hosts_group_is_known_as_such() -> Result<()> {
    let assembly = look(&Scenario::load("foreign")?)?;
    assert_eq!(only_group(&assembly)?.group.system_id.as_deref(), Some("some-host"));
    Ok(())
}

#[test]
fn a_physical_volume_without_a_group_is_an_orphan() -> Result<()> {
    let assembly = look(&Scenario::load("orphan")?)?;
    assert!(assembly.groups.is_empty());
    assert_eq!(assembly.orphans.len(), 1);
    assert!(!assembly.orphans[0].in_use);
    // A part of a group whose metadata is elsewhere says so in its label.
    let mut scenario = Scenario::load("copies")?;
    scenario.images = vec![scenario.images[1].clone()];
    let assembly = look(&scenario)?;
    assert!(assembly.groups.is_empty() && assembly.orphans[0].in_use);
    Ok(())
}

#[test]
fn a_missing_physical_volume_is_told() -> Result<()> {
    let assembly = look(&Scenario::load("gone")?)?;
    let completeness = &only_group(&assembly)?.completeness;
    assert!(!completeness.is_complete());
    assert_eq!(completeness.missing.len(), 1);
    assert!(completeness.to_string().contains("was not found (last seen on /dev/vdd)"), "{completeness}");

    let assembly = look(&Scenario::load("missing")?)?;
    let state = only_group(&assembly)?;
    assert!(!state.completeness.is_complete());
    assert!(state.group.physical_volumes[1].missing);
    Ok(())
}

#[test]
fn a_physical_volume_that_came_back_is_not_believed() -> Result<()> {
    let scenario = Scenario::load("returned")?;
    let assembly = look(&scenario)?;
    let state = only_group(&assembly)?;
    assert_eq!(state.group.seqno, 6);
    assert!(state.group.logical_volume("on-d").is_none(), "the old text won");
    // The group dropped it or still knows it as missing, as LVM left it; either way it is told.
    let completeness = &state.completeness;
    let told = completeness.missing.iter().any(|volume| volume.device.as_deref() == Some(Path::new("/dev/vdd")))
        || completeness.outdated.iter().any(|device| device.device == Path::new("/dev/vdd"));
    assert!(told, "{completeness}");
    Ok(())
}

#[test]
fn the_newest_text_wins_and_the_rest_is_told() -> Result<()> {
    let scenario = Scenario::load("linear")?;
    let text = text_of(&scenario.images[0])?;
    let seqno = only_group(&look(&scenario)?)?.group.seqno;
    let newer = text.replace(&format!("seqno = {seqno}"), &format!("seqno = {}", seqno + 1));
    write_text(&scenario.images[1], &newer.replace("\nro {", "\nrenamed {"))?;
    let assembly = look(&scenario)?;
    let state = only_group(&assembly)?;
    assert_eq!(state.group.seqno, seqno + 1);
    assert!(state.group.logical_volume("renamed").is_some() && state.group.logical_volume("ro").is_none());
    let completeness = &state.completeness;
    assert_eq!((completeness.stale.len(), completeness.stale[0].seqno), (1, Some(seqno)));
    // As LVM: the newest is the truth; but a second look is due, a commit may be going on.
    assert!(completeness.is_complete() && completeness.may_settle());
    Ok(())
}

#[test]
fn two_truths_are_a_conflict() -> Result<()> {
    let scenario = Scenario::load("linear")?;
    let text = text_of(&scenario.images[0])?;
    write_text(&scenario.images[1], &text.replace("\nro {", "\nrenamed {"))?;
    let assembly = look(&scenario)?;
    let completeness = &only_group(&assembly)?.completeness;
    assert!(!completeness.is_complete());
    assert!(completeness.to_string().contains("the same seqno"), "{completeness}");
    Ok(())
}

#[test]
fn a_copy_of_the_text_on_a_volume_that_it_does_not_list_never_wins() -> Result<()> {
    let group = Scenario::load("linear")?;
    let stranger = Scenario::load("wrapped")?;
    let seqno = only_group(&look(&group)?)?.group.seqno;
    let forged = text_of(&group.images[0])?.replace(&format!("seqno = {seqno}"), "seqno = 999999");
    write_text(&stranger.images[0], &forged)?;
    let device =
        |image: &PathBuf| -> Result<FoundVolume> { Ok(FoundVolume { device: image.clone(), on_disk: read(image)? }) };
    let found = [device(&stranger.images[0])?, device(&group.images[0])?, device(&group.images[1])?];
    let assembly = assemble(&found);
    let state = only_group(&assembly)?;
    assert_eq!(state.group.seqno, seqno);
    assert!(state.completeness.is_complete());
    assert_eq!(state.completeness.outdated.len(), 1);
    assert_eq!(state.completeness.outdated[0].device, stranger.images[0]);
    Ok(())
}

#[test]
fn one_physical_volume_in_two_groups_is_a_conflict_of_both() -> Result<()> {
    let group = Scenario::load("linear")?;
    let other = Scenario::load("default")?;
    let first = only_group(&look(&group)?)?.group.physical_volumes[0].uuid.to_string();
    // A second group whose text lists its own volume and the first one of the other group.
    let text = text_of(&other.images[0])?;
    let own = text.find("\npv0 {").context("no pv0")?;
    let end = own + text[own..].find("\n}").context("no end of pv0")? + 2;
    let mut second = text[own..end].replace("pv0", "pv1");
    let id = second.find("id = \"").context("no id")? + 6;
    second.replace_range(id..id + first.len(), &first);
    write_text(&other.images[0], &format!("{}{second}{}", &text[..end], &text[end..]))?;
    let mut found = Vec::new();
    for image in group.images.iter().chain(&other.images) {
        found.push(FoundVolume { device: image.clone(), on_disk: read(image)? });
    }
    let assembly = assemble(&found);
    assert_eq!(assembly.groups.len(), 2);
    for state in &assembly.groups {
        assert!(state.completeness.to_string().contains("is listed by volume group"), "{}", state.completeness);
        assert!(!state.completeness.is_complete());
    }
    Ok(())
}

#[test]
fn a_damaged_area_is_told_and_the_other_copy_serves() -> Result<()> {
    let scenario = Scenario::load("linear")?;
    for (at, what) in [(AREA + 30, "header"), (AREA + 9216 + 100, "text")] {
        let scenario = Scenario::load("linear")?;
        damage(&scenario.images[1], at)?;
        let assembly = look(&scenario)?;
        let state = only_group(&assembly)?;
        assert_eq!(state.completeness.unread.len(), 1, "{what}");
        assert!(!state.completeness.is_complete());
        assert!(state.completeness.to_string().contains("does not match its checksum"), "{}", state.completeness);
    }
    // With no copy left there is no group, and the reason is told.
    for image in &scenario.images {
        damage(image, AREA + 30)?;
    }
    let assembly = look(&scenario)?;
    assert!(assembly.groups.is_empty());
    assert_eq!(assembly.unattributed.len(), 2);
    assert!(assembly.orphans.iter().all(|orphan| orphan.in_use));
    Ok(())
}

#[test]
fn a_text_that_is_not_understood_is_told() -> Result<()> {
    let scenario = Scenario::load("empty")?;
    write_text(&scenario.images[0], "quarry {\n  seqno = what\n}\n")?;
    let assembly = look(&scenario)?;
    assert!(assembly.groups.is_empty());
    let problem = anyhow::Error::from(assembly.unattributed[0].problem.clone());
    assert!(format!("{problem:#}").contains("line 2: expected a number or a quoted string, found 'w'"), "{problem:#}");
    Ok(())
}

#[test]
fn no_label_a_damaged_label_and_no_device_are_three_things() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let blank = folder.path().join("blank");
    std::fs::File::create(&blank)?.set_len(1 << 20)?;
    assert!(matches!(read_header(&blank)?, Probe::NotPhysicalVolume));
    assert!(matches!(read_physical_volume(&blank)?, Probe::NotPhysicalVolume));
    // Smaller than four sectors: read whole, no label.
    std::fs::File::create(&blank)?.set_len(1024)?;
    assert!(matches!(read_header(&blank)?, Probe::NotPhysicalVolume));

    let scenario = Scenario::load("empty")?;
    damage(&scenario.images[0], 512 + 40)?;
    let error = read_header(&scenario.images[0]).unwrap_err();
    assert!(matches!(error, ReadError::Header(HeaderError::LabelChecksum { sector: 1, .. })), "{error:?}");

    let error = read_header(&folder.path().join("nothing")).unwrap_err();
    assert!(matches!(error, ReadError::Io { .. }), "{error:?}");
    // A device that ends before its metadata.
    let scenario = Scenario::load("empty")?;
    std::fs::File::options().write(true).open(&scenario.images[0])?.set_len(AREA)?;
    let on_disk = read(&scenario.images[0])?;
    assert!(matches!(on_disk.areas[0].contents, Err(ReadError::Short { offset: AREA, .. })));
    Ok(())
}

#[test]
fn hostile_headers_are_refused() -> Result<()> {
    let mut header = [0_u8; 512];
    for (offset, size) in [(100_u64, 700_u64), (512, 1 << 40), (1 << 40, 700), (u64::MAX, u64::MAX), (61_440, 1)] {
        let scenario = Scenario::load("empty")?;
        let file = std::fs::File::options().read(true).write(true).open(&scenario.images[0])?;
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut header, AREA)?;
        header[40..48].copy_from_slice(&offset.to_le_bytes());
        header[48..56].copy_from_slice(&size.to_le_bytes());
        write_header(&file, AREA, &mut header)?;
        let on_disk = read(&scenario.images[0])?;
        let error = on_disk.areas[0].contents.as_ref().unwrap_err();
        assert!(matches!(error, ReadError::Header(HeaderError::AreaForm { .. })), "{offset} {size}: {error:?}");
    }
    Ok(())
}

#[test]
fn the_fingerprint_changes_with_every_commit_and_only_then() -> Result<()> {
    let scenario = Scenario::load("linear")?;
    let fingerprint = |image: &Path| -> Result<_> {
        let Probe::PhysicalVolume(header) = read_header(image)? else { bail!("no physical volume") };
        let fingerprint = header.fingerprint()?;
        assert_eq!(fingerprint, read(image)?.fingerprint()?, "both ways of reading must agree");
        Ok(fingerprint)
    };
    let before = fingerprint(&scenario.images[0])?;
    assert_eq!(fingerprint(&scenario.images[0])?, before);
    let text = text_of(&scenario.images[0])?;
    write_text(&scenario.images[0], &text.replace("g=new", "g=old"))?;
    assert_ne!(fingerprint(&scenario.images[0])?, before, "the same seqno and length, other contents");
    damage(&scenario.images[0], AREA + 30)?;
    assert!(fingerprint(&scenario.images[0]).is_err());
    Ok(())
}

#[test]
fn a_commit_under_the_readers_hands_is_waited_for() -> Result<()> {
    let scenario = Scenario::load("empty")?;
    let image = Arc::new(scenario.images[0].clone());
    let text = text_of(&image)?;
    let writer = {
        let image = Arc::clone(&image);
        std::thread::spawn(move || -> Result<()> {
            for round in 0..300 {
                // LVM writes the new text beside the old one; writing over it is worse than LVM ever is.
                write_text(&image, &text.replace("seqno = 1", &format!("seqno = {}", 1 + round % 9)))?;
                std::thread::yield_now();
            }
            Ok(())
        })
    };
    let mut read_whole = 0;
    while !writer.is_finished() {
        let on_disk = read(&image)?;
        match &on_disk.areas[0].contents {
            Ok(contents) => {
                let group = VolumeGroup::from_text(contents.text.as_ref().context("no text")?)?;
                assert_eq!(group.name, "quarry");
                read_whole += 1;
            }
            Err(ReadError::Header(error)) => assert!(error.may_pass(), "{error}"),
            Err(error) => bail!("{error}"),
        }
    }
    writer.join().expect("the writer does not panic")?;
    assert!(read_whole > 0);
    Ok(())
}
