//! A volume group with thousands of volumes, by writing its metadata instead of running lvcreate thousands of times.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use quarry_tests::in_vm::{VgOptions, VolumeGroup, lvm};

/// Small extents: a volume takes one.
const EXTENT: &str = "256k";

/// A fresh group with so many thick volumes of ours, none of them active.
pub fn group(volumes: usize) -> Result<VolumeGroup> {
    let arguments = ["--metadatasize", "64m", "-s", EXTENT].map(str::to_owned).to_vec();
    let group = VolumeGroup::with("crowd", &VgOptions { disks: 1, arguments })?;
    if volumes == 0 {
        return Ok(group);
    }
    let file = format!("/run/{}.vg", group.name());
    lvm("vgcfgbackup", &["-f", &file, group.name()])?.success()?;
    let text = std::fs::read_to_string(&file)?;
    std::fs::write(&file, crowded(&text, volumes)?)?;
    lvm("vgcfgrestore", &["-f", &file, group.name()])?.success()?;
    let count = group.vgs("lv_count")?["lv_count"].parse::<usize>()?;
    ensure!(count == volumes, "the group has {count} volumes, it should have {volumes}");
    Ok(group)
}

/// The metadata with volumes of one extent each.
fn crowded(text: &str, volumes: usize) -> Result<String> {
    let (before, after) = text.split_once("\tphysical_volumes {").context("no physical_volumes in the metadata")?;
    let end = after.find("\n\t}\n").context("physical_volumes have no end")? + "\n\t}\n".len();
    let (physical, rest) = after.split_at(end);
    let mut new = format!("{before}\tphysical_volumes {{{physical}\n\tlogical_volumes {{\n");
    for number in 0..volumes {
        write!(
            new,
            "\t\tpvc-{number:08x}-0000-4000-8000-000000000000 {{\n\
             \t\t\tid = \"{}\"\n\t\t\tstatus = [\"READ\", \"WRITE\", \"VISIBLE\"]\n\t\t\tflags = []\n\
             \t\t\ttags = [\"quarry\", \"c=default\", \"f=ext4\", \"g=formatted\"]\n\
             \t\t\tcreation_time = 1700000000\n\t\t\tcreation_host = \"bench\"\n\t\t\tsegment_count = 1\n\
             \t\t\tsegment1 {{\n\t\t\t\tstart_extent = 0\n\t\t\t\textent_count = 1\n\t\t\t\ttype = \"striped\"\n\
             \t\t\t\tstripe_count = 1\n\t\t\t\tstripes = [\n\t\t\t\t\t\"pv0\", {number}\n\t\t\t\t]\n\t\t\t}}\n\t\t}}\n",
            uuid(number)
        )?;
    }
    new.push_str("\t}\n");
    new.push_str(rest);
    Ok(new)
}

/// A UUID as LVM writes it: 6-4-4-4-4-4-6 characters.
fn uuid(number: usize) -> String {
    let digits = format!("{number:032}");
    let mut parts = Vec::new();
    let mut at = 0;
    for length in [6, 4, 4, 4, 4, 4, 6] {
        parts.push(&digits[at..at + length]);
        at += length;
    }
    parts.join("-")
}
