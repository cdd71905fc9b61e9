//! What metrics and `quarry-driver status` show of volume groups, pools and volumes: the last readings, the last samples
//! and the journal, side by side.
//!
//! **Invariant.** Asking looks at no disk, asks no kernel and runs no process: everything here is known already.

mod volumes;

use std::path::PathBuf;

use crate::config::DeviceClass;
use crate::io::facts::DiskFacts;
use crate::lvm::metadata::LvmUuid;
use crate::lvm::metadata::model::{LogicalVolume, SegmentKind};
use crate::volume::capacity::PoolSpace;
use crate::volume::io::Limits;
use crate::volume::tags::POOL_MARK;
use crate::volume::{Bytes, LvName, Provisioning};

use super::room::policy_of;
use super::sampler::Sample;
use super::usage::Fill;
use super::{Engine, Reading};

pub use volumes::Figures;

/// All of it.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    /// The volume groups in use.
    pub groups: Vec<GroupFigures>,
    /// Their thin pools.
    pub pools: Vec<PoolFigures>,
    /// The device classes of the configuration.
    pub classes: Vec<ClassFigures>,
    /// Every volume that LVM shows or the journal knows.
    pub volumes: Vec<VolumeFigures>,
    /// The disks below the active ones.
    pub disks: Vec<DiskFacts>,
}

/// A volume group.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GroupFigures {
    /// Its name.
    pub name: String,
    /// Its identifier.
    pub uuid: String,
    /// How LVM chooses extents: `normal`, `contiguous`, `cling`, `anywhere`.
    pub allocation: String,
    /// Bytes of all its extents.
    pub size: u64,
    /// Bytes that no logical volume has.
    pub free: u64,
    /// Of these what LVM can give to a new volume.
    pub allocatable: u64,
    /// The longest description of the group that its metadata areas take, in bytes.
    pub metadata_limit: u64,
    /// The length of the present one.
    pub metadata_used: u64,
    /// How many logical volumes LVM shows, whoever made them.
    pub logical_volumes: u64,
    /// How many it may have; nothing where there is no limit.
    pub logical_volumes_limit: Option<u64>,
    /// How many of them are snapshots.
    pub snapshots: u64,
    /// Whether LVM may change it.
    pub changeable: bool,
    /// Its physical volumes.
    pub physical: Vec<PhysicalFigures>,
    /// When its volumes were last measured, in seconds since 1970.
    pub sampled: Option<f64>,
}

/// A physical volume.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PhysicalFigures {
    /// Where it is, or was last seen.
    pub device: String,
    /// Bytes of its extents.
    pub size: u64,
    /// Bytes that no logical volume has.
    pub free: u64,
    /// Whether LVM allocates from it.
    pub allocatable: bool,
    /// Whether it is not there.
    pub missing: bool,
}

/// A thin pool.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PoolFigures {
    /// Its volume group.
    pub group: String,
    /// Its name.
    pub name: String,
    /// Bytes of its data.
    pub size: u64,
    /// Bytes of its metadata.
    pub metadata_size: u64,
    /// Bytes that are given out at a time.
    pub chunk: u64,
    /// Bytes promised to its thin volumes, each in whole chunks.
    pub promised: u64,
    /// How many thin volumes it has, whoever made them.
    pub volumes: u64,
    /// By how many bytes its data may still grow.
    pub growth: u64,
    /// How full it is; nothing where the kernel did not say, or says that it cannot be written.
    pub fill: Option<PoolFill>,
    /// Whether a full pool fails writes at once, instead of letting them wait.
    pub error_when_full: bool,
}

/// How full a thin pool is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolFill {
    /// Bytes of data in use.
    pub data_used: u64,
    /// Bytes of metadata in use.
    pub metadata_used: u64,
}

/// A device class.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClassFigures {
    /// Its name.
    pub name: String,
    /// Its volume group.
    pub group: String,
    /// Its thin pool, made or not.
    pub pool: String,
    /// Bytes of the group that are never given away.
    pub reserve: u64,
    /// How many bytes may be promised for each of the pool's.
    pub ratio: f64,
    /// The largest thin volume that can be made now; nothing where it cannot be told.
    pub thin_room: Option<u64>,
    /// The same, thick.
    pub thick_room: Option<u64>,
}

/// A volume.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VolumeFigures {
    /// Its LV name.
    pub name: String,
    /// How it stands, as a word of [`super::survey::State`].
    pub state: &'static str,
    /// The namespace of its claim; empty where it is not known.
    pub claim_namespace: String,
    /// The name of its claim.
    pub claim: String,
    /// Its device class.
    pub class: String,
    /// Its volume group.
    pub group: String,
    /// Its thin pool; empty for a thick volume, or where it is not there.
    pub pool: String,
    /// `thin` or `thick`.
    pub provisioning: String,
    /// What is on it: `ext4`, `xfs`, `btrfs` or `block`.
    pub content: String,
    /// Its size in bytes.
    pub size: u64,
    /// The weight that it asks for.
    pub weight: Option<u32>,
    /// The limits that it asks for.
    pub limits: Limits,
    /// Where it is published, by target path.
    pub targets: Vec<String>,
    /// What the kernel said of it last.
    pub sample: Sample,
}

impl Engine {
    /// What there is.
    #[must_use]
    pub fn inventory(&self) -> Inventory {
        let mut inventory = Inventory::default();
        for group in self.groups.all() {
            let reading = group.known();
            inventory.groups.push(of_group(&reading, self.samples.when(group.uuid())));
            inventory.pools.extend(of_pools(&reading, &self.config.device_classes, |pool| self.gauge.known(pool)));
        }
        inventory.classes = self.class_figures();
        inventory.disks = self.samples.disks();
        inventory.volumes = self.volumes_figures();
        inventory
    }

    /// Bytes that a thin volume of ours really has in its pool, as last sampled; the volume group by UUID.
    #[must_use]
    pub fn used(&self, group: &str, volume: &LvName) -> Option<u64> {
        let group = self.groups.all().into_iter().find(|known| known.uuid().to_string() == group)?;
        let uuid = group.known().uuid_of(volume)?;
        self.samples.of(group.uuid(), uuid).used
    }

    fn class_figures(&self) -> Vec<ClassFigures> {
        let room = |class: &str, provisioning| self.changes.compared(class, provisioning).map(|room| room.0);
        let classes = self.config.device_classes.iter();
        let figures = classes.map(|class| ClassFigures {
            name: class.name.clone(),
            group: class.volume_group.clone(),
            pool: class.thin_pool.clone(),
            reserve: class.reserve_bytes,
            ratio: class.overprovision_ratio,
            thin_room: room(&class.name, Provisioning::Thin),
            thick_room: room(&class.name, Provisioning::Thick),
        });
        figures.collect()
    }
}

/// A group by a reading, whose volumes were sampled at this time.
#[must_use]
pub fn of_group(reading: &Reading, sampled: Option<f64>) -> GroupFigures {
    let (state, group) = (reading.state(), &reading.state().group);
    let bytes = |extents: u64| extents.saturating_mul(group.extent_size);
    let physical = group.physical_volumes.iter().map(|volume| {
        let device = state.devices.get(&volume.uuid).cloned();
        PhysicalFigures {
            device: device.unwrap_or_else(|| PathBuf::from(&volume.device_hint)).display().to_string(),
            size: bytes(volume.extent_count),
            free: bytes(volume.free_extents()),
            allocatable: volume.allocatable,
            missing: state.completeness.missing.iter().any(|missing| missing.uuid == volume.uuid),
        }
    });
    let visible = group.logical_volumes.values().filter(|volume| group.is_visible(volume)).count();
    GroupFigures {
        name: group.name.clone(),
        uuid: group.uuid.to_string(),
        allocation: group.allocation.clone().unwrap_or_else(|| "normal".to_owned()),
        size: bytes(group.extent_count()),
        free: bytes(group.free_extents()),
        allocatable: group.allocatable_bytes(),
        metadata_limit: state.room.largest_text,
        metadata_used: state.room.text,
        logical_volumes: count(visible),
        logical_volumes_limit: (group.max_logical_volumes > 0).then_some(group.max_logical_volumes),
        snapshots: count(group.logical_volumes.values().filter(|volume| is_snapshot(volume)).count()),
        changeable: group.writeable && !group.exported && group.lock_type.is_none(),
        physical: physical.collect(),
        sampled,
    }
}

/// The thin pools of a group by a reading, with what the kernel said of their fill.
#[must_use]
pub fn of_pools(
    reading: &Reading,
    classes: &[DeviceClass],
    fill: impl Fn(LvmUuid) -> Option<Fill>,
) -> Vec<PoolFigures> {
    let group = &reading.state().group;
    let pools = group.logical_volumes.values().filter_map(|volume| Some((volume, volume.thin_pool()?)));
    let figures = pools.map(|(volume, pool)| {
        let metadata_size = group.logical_volume(&pool.metadata).map_or(0, |metadata| group.size_of(metadata));
        let fill = fill(volume.uuid).map(|fill| PoolFill {
            data_used: fill.data_used_blocks.saturating_mul(pool.chunk_size),
            metadata_used: fill.metadata_used,
        });
        let mut figures = PoolFigures {
            group: group.name.clone(),
            name: volume.name.clone(),
            size: group.size_of(volume),
            metadata_size,
            chunk: pool.chunk_size,
            promised: group.promised_bytes(&volume.name, pool.chunk_size),
            volumes: count(group.thin_volumes(&volume.name).count()),
            growth: 0,
            fill,
            error_when_full: volume.error_when_full,
        };
        figures.growth = growth(reading, classes, volume, &figures);
        figures
    });
    figures.collect()
}

/// By how many bytes a pool may grow: none where no class has it, or it is an admin's.
fn growth(reading: &Reading, classes: &[DeviceClass], volume: &LogicalVolume, pool: &PoolFigures) -> u64 {
    let group = &reading.state().group;
    let space = PoolSpace {
        size: Bytes(pool.size),
        data_used: Bytes(pool.fill.map_or(0, |fill| fill.data_used)),
        promised: Bytes(pool.promised),
        chunk: Bytes(pool.chunk),
        metadata_size: Bytes(pool.metadata_size),
        metadata_used: Bytes(pool.fill.map_or(0, |fill| fill.metadata_used)),
        ours: volume.has_tag(POOL_MARK) && group.allocates_anywhere(),
    };
    let of_pool = classes.iter().filter(|class| class.volume_group == group.name && class.thin_pool == volume.name);
    let growth = of_pool.filter_map(|class| reading.space().plan_growth(&space, &policy_of(class))?.data);
    growth.map(|data| data.0.saturating_sub(pool.size)).max().unwrap_or(0)
}

fn is_snapshot(volume: &LogicalVolume) -> bool {
    volume.thin().is_some_and(|thin| thin.origin.is_some())
        || volume.segments.iter().any(|segment| matches!(segment.kind, SegmentKind::Snapshot { .. }))
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::config::Config;
    use crate::engine::Settings;
    use crate::exec::{Exec, Tool, Tools};
    use crate::journal::{Change, Claim, Entry, Origin, SledJournal};
    use crate::lvm::metadata::assemble::{Completeness, GroupState, MetadataRoom, MissingVolume};
    use crate::lvm::metadata::model::VolumeGroup;

    /// A group as LVM wrote it: a pool of 100 MiB with three thin volumes and a snapshot, a thick volume.
    fn reading() -> Reading {
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/lvm/thin.json");
        let fixture: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(fixture).unwrap()).unwrap();
        let mut texts = Vec::new();
        find_texts(&fixture, &mut texts);
        // With all that the driver writes on one of them.
        let text =
            texts.first().unwrap().replace(r#""c=default"]"#, r#""c=default", "f=ext4", "g=formatted", "w=800"]"#);
        let group = VolumeGroup::from_text(text.as_bytes()).unwrap();
        let uuid = group.physical_volumes[0].uuid;
        Reading::new(GroupState {
            devices: [(uuid, "/dev/vdc".into())].into(),
            room: MetadataRoom { largest_text: 1 << 19, text: group.text_size },
            group: group.into(),
            completeness: Completeness::default(),
            text: None,
        })
    }

    fn find_texts(value: &serde_json::Value, texts: &mut Vec<String>) {
        match value {
            serde_json::Value::String(text) if text.contains("Text Format Volume Group") => texts.push(text.clone()),
            serde_json::Value::Array(values) => values.iter().for_each(|value| find_texts(value, texts)),
            serde_json::Value::Object(values) => values.values().for_each(|value| find_texts(value, texts)),
            _ => {}
        }
    }

    const MIB: u64 = 1 << 20;

    /// An engine with that group, whose disks it never looks at.
    async fn engine(folder: &Path, reading: Reading) -> Arc<Engine> {
        let config = "deviceClasses: [{name: default, volumeGroup: quarry, devices: [/dev/none]}]";
        // None is run.
        let sh = Tool::at("sh", "/bin/sh").unwrap();
        let tools = Tools {
            lvm: sh.clone(),
            blkid: sh.clone(),
            blkdiscard: sh.clone(),
            mkfs_ext4: sh.clone(),
            mkfs_xfs: sh.clone(),
            mkfs_btrfs: sh.clone(),
            e2fsck: sh.clone(),
            wipefs: sh.clone(),
            mount: sh.clone(),
            umount: sh,
        };
        let settings = Settings {
            node_name: "node-1".to_owned(),
            config: Config::parse(config, Path::new("config.yaml"), "node-1").unwrap(),
            tools,
            state_dir: folder.to_owned(),
            host_lvm_dir: folder.join("none"),
            exec: Exec::default(),
            journal: Arc::new(SledJournal::open(folder).await.unwrap().journal),
        };
        let engine = Engine::open(settings).await.unwrap();
        engine.groups.adopt(reading);
        engine
    }

    #[tokio::test]
    async fn a_volume_is_what_lvm_shows_with_what_the_journal_knows() {
        let folder = tempfile::tempdir().unwrap();
        let engine = engine(folder.path(), reading()).await;
        let known = |engine: &Engine| {
            let all = engine.inventory().volumes.into_iter();
            all.map(|volume| (volume.name.clone(), volume)).collect::<std::collections::BTreeMap<_, _>>()
        };
        let volume = &known(&engine)["pvc-1"];
        assert_eq!((volume.state, volume.class.as_str(), volume.pool.as_str()), ("adopted", "default", "quarry-pool"));
        assert_eq!((volume.size, volume.provisioning.as_str(), volume.claim.as_str()), (40 * MIB, "thin", ""));
        assert_eq!((volume.weight, volume.sample.clone()), (Some(800), Sample::default()));
        // Ours are those with our tag, and one of these has tags that nobody understands.
        let states: Vec<(String, &str)> = known(&engine).into_iter().map(|(name, v)| (name, v.state)).collect();
        assert_eq!(states, [("pvc-1".to_owned(), "adopted"), ("pvc-2".to_owned(), "unreadable")]);

        let lv = LvName::parse("pvc-1").unwrap();
        let shown = engine.groups.all()[0].known().volume(engine.node(), &lv).unwrap().unwrap();
        let claim = Claim { namespace: "db".to_owned(), name: "data-0".to_owned() };
        let record = crate::engine::records::record_of(&shown, Some(claim), Origin::Asked, 0);
        engine.journal().write("test", vec![Change::Put(Entry::Volume(lv, record))]).await.unwrap();
        let volume = &known(&engine)["pvc-1"];
        let claim = (volume.claim_namespace.as_str(), volume.claim.as_str());
        assert_eq!((volume.state, claim), ("ready", ("db", "data-0")));
    }

    #[test]
    fn a_group_and_its_pool_are_as_lvm_wrote_them() {
        let figures = of_group(&reading(), Some(7.0));
        let used = (100 + 4 + 4 + 8) * MIB;
        assert_eq!((figures.size, figures.free, figures.allocatable), (511 * MIB, 511 * MIB - used, 511 * MIB - used));
        // The pool, its three volumes, the thick one; not what LVM hides.
        assert_eq!((figures.logical_volumes, figures.snapshots, figures.logical_volumes_limit), (5, 1, None));
        assert_eq!((figures.allocation.as_str(), figures.sampled), ("normal", Some(7.0)));
        let [disk] = &figures.physical[..] else { panic!("{figures:?}") };
        assert_eq!((disk.device.as_str(), disk.free, disk.missing), ("/dev/vdc", 511 * MIB - used, false));

        let asked = std::cell::Cell::new(None);
        let fill = |pool| {
            asked.set(Some(pool));
            Some(Fill { data_used_blocks: 16, metadata_used: 4096 })
        };
        let [pool] = &of_pools(&reading(), &Config::zero().device_classes, fill)[..] else { panic!("not one pool") };
        assert_eq!((pool.group.as_str(), pool.name.as_str(), pool.volumes), ("quarry", "quarry-pool", 3));
        assert_eq!((pool.size, pool.metadata_size, pool.chunk), (100 * MIB, 4 * MIB, 64 << 10));
        assert_eq!(pool.promised, (40 + 1024 + 40) * MIB);
        assert_eq!(pool.fill, Some(PoolFill { data_used: MIB, metadata_used: 4096 }));
        assert!(pool.error_when_full && asked.get().is_some());
        // It grows to its share, nine tenths of the group, less its metadata and the spare.
        assert_eq!(pool.growth, 511 * 9 / 10 * MIB - 8 * MIB - 100 * MIB);
    }

    #[test]
    fn a_missing_disk_shows_and_a_pool_of_nobody_does_not_grow() {
        let mut state = reading().state().clone();
        let uuid = state.group.physical_volumes[0].uuid;
        state.devices.clear();
        state.completeness.missing.push(MissingVolume { uuid, hint: "/dev/vdc".to_owned(), device: None });
        let figures = of_group(&Reading::new(state), None);
        assert_eq!((figures.physical[0].missing, figures.physical[0].device.as_str()), (true, "/dev/vdc"));
        let pools = of_pools(&reading(), &[], |_| None);
        assert_eq!((pools[0].growth, pools[0].fill), (0, None));
    }
}
