//! The LVM commands Quarry gives, one function each. All take absolute sizes and answer prompts beforehand (`-y`).

use std::fmt;
use std::path::Path;

use super::command::{Command, Effect};
use super::metadata::LvmUuid;
use crate::volume::capacity::{PoolGrowth, PoolPlan};
use crate::volume::{Bytes, LvName};

/// Makes a thick volume. Old signatures are wiped when `wipe` is set (a filesystem is to come); a raw block volume is
/// zeroed whole afterwards instead.
#[must_use]
pub fn create_thick(vg: &str, lv: &LvName, extents: u64, wipe: bool, tags: &[String]) -> Command {
    let yes_no = if wipe { "y" } else { "n" };
    Command::new("lvcreate", Effect::Change)
        .word("-y")
        .option("-n", lv)
        .option("-l", extents)
        .option("-W", yes_no)
        .option("-Z", yes_no)
        .add_tags(tags)
        .word(vg)
}

/// Makes a volume on one physical volume, which nobody reads before it was written.
#[must_use]
pub fn create_scratch(vg: &str, name: &str, extents: u64, tag: &str, device: &Path) -> Command {
    Command::new("lvcreate", Effect::Change)
        .word("-y")
        .option("-n", name)
        .option("-l", extents)
        .option("-W", "n")
        .option("-Z", "n")
        .add_tags([tag])
        .word(vg)
        .word(device.display().to_string())
}

/// Makes a thin volume in a pool.
#[must_use]
pub fn create_thin(vg: &str, pool: &str, lv: &LvName, size: Bytes, tags: &[String]) -> Command {
    Command::new("lvcreate", Effect::Change)
        .word("-y")
        .option("-n", lv)
        .option("-V", format_args!("{}b", size.0))
        .option("--thinpool", pool)
        .add_tags(tags)
        .word(vg)
}

/// Makes a thin pool: it zeroes new blocks, and a full pool fails writes at once instead of hanging them for a minute.
/// The latter by the configuration's `error_when_full`: lvcreate 2.03.16 documents `--errorwhenfull` and refuses it.
#[must_use]
pub fn create_pool(vg: &str, pool: &str, plan: &PoolPlan, tag: &str) -> Command {
    Command::new("lvcreate", Effect::Change)
        .word("-y")
        .option("--type", "thin-pool")
        .option("-n", pool)
        .option("-L", format_args!("{}b", plan.data.0))
        .option("--poolmetadatasize", format_args!("{}b", plan.metadata.0))
        .option("--chunksize", format_args!("{}b", plan.chunk.0))
        .option("-Z", "y")
        .add_tags([tag])
        .word(vg)
}

/// Enlarges a thin pool's data, its metadata, or both.
#[must_use]
pub fn grow_pool(vg: &str, pool: &str, growth: &PoolGrowth) -> Command {
    let mut command = Command::new("lvextend", Effect::Change).word("-y");
    if let Some(data) = growth.data {
        command = command.option("-L", format_args!("{}b", data.0));
    }
    if let Some(metadata) = growth.metadata {
        command = command.option("--poolmetadatasize", format_args!("{}b", metadata.0));
    }
    command.word(format!("{vg}/{pool}"))
}

/// Removes a volume, if the name still belongs to the LV with that UUID: LVM compares under its own lock.
#[must_use]
pub fn remove(vg: &str, lv: impl fmt::Display, uuid: LvmUuid) -> Command {
    Command::new("lvremove", Effect::Change)
        .word("-y")
        .option("-S", format_args!("lv_uuid={uuid}"))
        .word(format!("{vg}/{lv}"))
}

/// Replaces tags by others, in one commit.
#[must_use]
pub fn retag(vg: &str, lv: &LvName, from: &[String], to: &[String]) -> Command {
    let without =
        from.iter().fold(Command::new("lvchange", Effect::Change), |command, tag| command.option("--deltag", tag));
    without.add_tags(to).word(format!("{vg}/{lv}"))
}

/// Activates a volume (and the pool under it), also one marked to be skipped.
#[must_use]
pub fn activate(vg: &str, lv: &str) -> Command {
    Command::new("lvchange", Effect::Change).option("-a", "y").word("-K").word("-y").word(format!("{vg}/{lv}"))
}

/// Deactivates a volume.
#[must_use]
pub fn deactivate(vg: &str, lv: &str) -> Command {
    Command::new("lvchange", Effect::Change).option("-a", "n").word("-y").word(format!("{vg}/{lv}"))
}

/// Loads the tables of all active devices of a volume group again, sends outstanding pool messages and resumes what is
/// suspended: the repair after an lvm that died in mid-command.
#[must_use]
pub fn refresh_group(vg: &str) -> Command {
    Command::new("vgchange", Effect::Change).word("--refresh").word(vg)
}

/// The same for one volume: resumes a suspended snapshot origin, which [`refresh_group`] leaves.
#[must_use]
pub fn refresh_volume(vg: &str, lv: &str) -> Command {
    Command::new("lvchange", Effect::Change).word("--refresh").word(format!("{vg}/{lv}"))
}

/// Lists every logical volume of every volume group: what affirms that one is absent.
#[must_use]
pub fn list() -> Command {
    Command::new("lvs", Effect::Read)
        .word("-a")
        .option("--reportformat", "json")
        .option("--units", "b")
        .word("--nosuffix")
        .option("-o", super::report::FIELDS)
}
