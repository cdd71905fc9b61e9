//! A volume group with its physical and logical volumes, typed.
//!
//! Invariant: pure data and arithmetic; every figure comes from the metadata text alone. What is not on disk
//! (active, open, suspended, a thin pool's fill) comes from `crate::lvm::dm`.

use std::collections::BTreeMap;

use super::LvmUuid;

/// One volume group as one valid metadata text describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct VolumeGroup {
    /// Its name, which can change and need not be unique.
    pub name: String,
    /// Its identifier, which never changes.
    pub uuid: LvmUuid,
    /// Counts commits; `vgcfgrestore` can repeat a number with other contents.
    pub seqno: u64,
    /// Bytes of an extent.
    pub extent_size: u64,
    /// May be changed in size; without it LVM allocates nothing.
    pub resizeable: bool,
    /// May be read.
    pub readable: bool,
    /// May be changed.
    pub writeable: bool,
    /// Exported: LVM refuses to use it.
    pub exported: bool,
    /// Belongs to the host with this id; LVM refuses it on another.
    pub system_id: Option<String>,
    /// Shared between hosts by a lock manager (`lvmlockd`), or clustered.
    pub lock_type: Option<String>,
    /// Status words and flags without a field of their own here.
    pub other_flags: Vec<String>,
    /// Tags of the group.
    pub tags: Vec<String>,
    /// How LVM chooses extents, where it is not `normal`: `contiguous`, `cling`, `anywhere` ...
    pub allocation: Option<String>,
    /// Most logical volumes allowed; 0 means no limit.
    pub max_logical_volumes: u64,
    /// Its physical volumes in the text's order; [`Area::Physical`] counts in it.
    pub physical_volumes: Vec<PhysicalVolume>,
    /// Its logical volumes by name, hidden ones too.
    pub logical_volumes: BTreeMap<String, LogicalVolume>,
    /// Length of the text, in bytes, with its closing NUL.
    pub text_size: u64,
}

/// A physical volume as the group's text describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct PhysicalVolume {
    /// Name within the text (`pv0`).
    pub key: String,
    /// Its identifier, which is in the label of the device.
    pub uuid: LvmUuid,
    /// Device it was last seen on. A hint: devices change their names.
    pub device_hint: String,
    /// Whether LVM may allocate from it (`pvchange -x`).
    pub allocatable: bool,
    /// Whether the group has gone on without it.
    pub missing: bool,
    /// Status words and flags without a field of their own here.
    pub other_flags: Vec<String>,
    /// Tags of the physical volume.
    pub tags: Vec<String>,
    /// Size of the device in bytes when the text was written; 0 if the text does not say.
    pub device_size: u64,
    /// First byte of the first extent.
    pub extents_start: u64,
    /// Extents in all.
    pub extent_count: u64,
    /// Extents that some segment uses.
    pub extents_used: u64,
    /// The longest stretch of extents that no segment uses.
    pub longest_free: u64,
}

impl PhysicalVolume {
    /// Extents that no segment uses.
    #[must_use]
    pub fn free_extents(&self) -> u64 {
        self.extent_count.saturating_sub(self.extents_used)
    }

    /// Extents that LVM can give to a new volume: none if it is missing or not to be allocated from.
    #[must_use]
    pub fn allocatable_extents(&self) -> u64 {
        if self.allocatable && !self.missing { self.free_extents() } else { 0 }
    }
}

/// A logical volume, visible or hidden.
#[derive(Debug, Clone, PartialEq)]
pub struct LogicalVolume {
    /// Its name.
    pub name: String,
    /// Its identifier, which a rename does not change.
    pub uuid: LvmUuid,
    /// May be read.
    pub readable: bool,
    /// May be written.
    pub writeable: bool,
    /// The flag alone; [`VolumeGroup::is_visible`] decides as LVM does.
    pub visible_flag: bool,
    /// Left out by ordinary activation (`k` in the attributes), as thin snapshots are by default.
    pub activation_skip: bool,
    /// A thin pool that fails writes at once when it is full, instead of queueing them.
    pub error_when_full: bool,
    /// Status words and flags without a field of their own here (`LOCKED`, `PVMOVE`, …).
    pub other_flags: Vec<String>,
    /// Tags, in the text's order.
    pub tags: Vec<String>,
    /// Seconds since 1970; none if the text does not say.
    pub creation_time: Option<u64>,
    /// Segments, ascending and without gaps.
    pub segments: Vec<Segment>,
}

/// A stretch of a logical volume that is mapped in one way.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// First extent within the logical volume.
    pub start_extent: u64,
    /// Length in extents.
    pub extent_count: u64,
    /// How it is mapped.
    pub kind: SegmentKind,
    /// What it lies on, as far as the text gives it with offsets.
    pub areas: Vec<Area>,
}

/// What a segment lies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Area {
    /// Extents of a physical volume.
    Physical {
        /// Index in [`VolumeGroup::physical_volumes`].
        volume: usize,
        /// First extent on it.
        start_extent: u64,
        /// Extents used there.
        extent_count: u64,
    },
    /// Another logical volume of the group.
    Logical {
        /// Its name.
        name: String,
        /// First extent in it.
        start_extent: u64,
    },
}

/// How a segment is mapped.
#[derive(Debug, Clone, PartialEq)]
pub enum SegmentKind {
    /// One stripe: consecutive extents.
    Linear,
    /// Several stripes.
    Striped {
        /// Bytes of a stripe before the next one begins.
        stripe_size: u64,
    },
    /// The pool that thin volumes live in.
    ThinPool(ThinPool),
    /// A volume in a thin pool.
    Thin(Thin),
    /// The hidden volume that ties an old-style snapshot to its origin.
    Snapshot {
        /// Volume the snapshot was made of; absent where LVM wrote a merging store.
        origin: Option<String>,
        /// Volume that stores the differences.
        store: Option<String>,
    },
    /// Anything else, by LVM's name of it (`raid1`, `cache`, `error`, …).
    Other(String),
}

/// What a thin pool's segment says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThinPool {
    /// Hidden volume with the data.
    pub data: String,
    /// Hidden volume with the pool's own metadata.
    pub metadata: String,
    /// Bytes that are given out at a time.
    pub chunk_size: u64,
    /// The kernel's pool must be at this transaction, or one of its volumes is half made.
    pub transaction_id: u64,
    /// Whether a chunk is zeroed before a volume gets it: without it a volume shows earlier volumes' bytes.
    pub zero_new_blocks: bool,
    /// `ignore`, `nopassdown` or `passdown`.
    pub discards: String,
    /// Work that the kernel's pool was not told yet: a command is under way, or was killed.
    pub messages: Vec<PoolMessage>,
}

/// What the kernel's thin pool must still be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolMessage {
    /// This logical volume must be made in it.
    Create(String),
    /// The device with this number must be removed from it.
    Delete(u64),
    /// A message of another kind, as written.
    Other(String),
}

/// What a thin volume's segment says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thin {
    /// Its pool.
    pub pool: String,
    /// Number within the pool.
    pub device_id: u64,
    /// Transaction of the pool that made it.
    pub transaction_id: u64,
    /// Volume that it is a snapshot of, while that volume exists.
    pub origin: Option<String>,
    /// Read-only volume outside the pool that holds what this one was never written.
    pub external_origin: Option<String>,
    /// Volume that this snapshot is being merged into.
    pub merge: Option<String>,
}

/// How a volume's space is provided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provisioning<'a> {
    /// Extents of its own, linear or striped.
    Thick,
    /// Chunks of a pool, when written.
    Thin {
        /// Name of the pool.
        pool: &'a str,
    },
    /// A thin pool itself.
    Pool,
    /// Another kind, by LVM's name, or a mixture.
    Other(&'a str),
}

impl LogicalVolume {
    /// Length in extents.
    #[must_use]
    pub fn extent_count(&self) -> u64 {
        self.segments.iter().map(|segment| segment.extent_count).sum()
    }

    /// How its space is provided.
    #[must_use]
    pub fn provisioning(&self) -> Provisioning<'_> {
        let mut all = self.segments.iter().map(|segment| match &segment.kind {
            SegmentKind::Linear | SegmentKind::Striped { .. } => Provisioning::Thick,
            SegmentKind::ThinPool(_) => Provisioning::Pool,
            SegmentKind::Thin(thin) => Provisioning::Thin { pool: &thin.pool },
            SegmentKind::Snapshot { .. } => Provisioning::Other("snapshot"),
            SegmentKind::Other(name) => Provisioning::Other(name),
        });
        match all.next() {
            None => Provisioning::Other("empty"),
            Some(first) => all.find(|&next| next != first).map_or(first, |_| Provisioning::Other("mixed")),
        }
    }

    /// Its thin pool segment, if it is a thin pool.
    #[must_use]
    pub fn thin_pool(&self) -> Option<&ThinPool> {
        self.segments.iter().find_map(|segment| match &segment.kind {
            SegmentKind::ThinPool(pool) => Some(pool),
            _ => None,
        })
    }

    /// Its thin segment, if it is a thin volume.
    #[must_use]
    pub fn thin(&self) -> Option<&Thin> {
        self.segments.iter().find_map(|segment| match &segment.kind {
            SegmentKind::Thin(thin) => Some(thin),
            _ => None,
        })
    }

    /// Whether it carries a tag.
    #[must_use]
    pub fn has_tag(&self, tag: &str) -> bool {
        self.tags.iter().any(|own| own == tag)
    }

    /// The rest of the first tag with that prefix: `"default"` for `"c="` and a tag `c=default`.
    #[must_use]
    pub fn tag_value(&self, prefix: &str) -> Option<&str> {
        self.tags.iter().find_map(|tag| tag.strip_prefix(prefix))
    }
}

impl VolumeGroup {
    /// The logical volume of that name.
    #[must_use]
    pub fn logical_volume(&self, name: &str) -> Option<&LogicalVolume> {
        self.logical_volumes.get(name)
    }

    /// Bytes of a logical volume.
    #[must_use]
    pub fn size_of(&self, volume: &LogicalVolume) -> u64 {
        volume.extent_count().saturating_mul(self.extent_size)
    }

    /// Whether LVM shows the volume without `--all`: hidden parts are not shown, an old-style snapshot's store is
    /// shown when its origin is (`lv_is_visible` in LVM's `metadata.c`).
    #[must_use]
    pub fn is_visible(&self, volume: &LogicalVolume) -> bool {
        let is_snapshot = |v: &LogicalVolume| v.segments.iter().any(|s| matches!(s.kind, SegmentKind::Snapshot { .. }));
        if is_snapshot(volume) {
            return false;
        }
        if volume.visible_flag {
            return true;
        }
        let origin = self.logical_volumes.values().flat_map(|v| &v.segments).find_map(|s| match &s.kind {
            SegmentKind::Snapshot { origin: Some(origin), store: Some(store) } if *store == volume.name => {
                self.logical_volumes.get(origin)
            }
            _ => None,
        });
        origin.is_some_and(|origin| origin.visible_flag)
    }

    /// Extents of all physical volumes.
    #[must_use]
    pub fn extent_count(&self) -> u64 {
        self.physical_volumes.iter().map(|volume| volume.extent_count).sum()
    }

    /// Extents that no segment uses, wherever they are (LVM's `vg_free_count`).
    #[must_use]
    pub fn free_extents(&self) -> u64 {
        self.physical_volumes.iter().map(PhysicalVolume::free_extents).sum()
    }

    /// Extents that LVM can give to a new volume: not those of missing physical volumes, nor of ones not to be
    /// allocated from; none at all in a group that LVM would refuse to change.
    #[must_use]
    pub fn allocatable_extents(&self) -> u64 {
        if !self.resizeable || !self.writeable || self.exported {
            return 0;
        }
        self.physical_volumes.iter().map(PhysicalVolume::allocatable_extents).sum()
    }

    /// Whether a logical volume may lie on any free extents, as with the allocation policies `normal` and `anywhere`, and
    /// not only on such that are next to each other (`contiguous`) or on one physical volume (`cling`).
    #[must_use]
    pub fn allocates_anywhere(&self) -> bool {
        matches!(self.allocation.as_deref(), None | Some("normal" | "anywhere" | "inherit"))
    }

    /// The longest stretch of extents that LVM can give to a new volume.
    #[must_use]
    pub fn longest_allocatable(&self) -> u64 {
        let allocatable = self.physical_volumes.iter().filter(|volume| volume.allocatable_extents() > 0);
        allocatable.map(|volume| volume.longest_free).max().unwrap_or(0).min(self.allocatable_extents())
    }

    /// [`Self::allocatable_extents`] in bytes: the largest linear volume that LVM can make.
    #[must_use]
    pub fn allocatable_bytes(&self) -> u64 {
        self.allocatable_extents().saturating_mul(self.extent_size)
    }

    /// The thin volumes of a pool, by name.
    pub fn thin_volumes<'a>(&'a self, pool: &'a str) -> impl Iterator<Item = &'a LogicalVolume> {
        self.logical_volumes.values().filter(move |volume| volume.thin().is_some_and(|thin| thin.pool == pool))
    }

    /// What a pool promised: the sum of the sizes of its thin volumes, snapshots too, in bytes, each counted in whole
    /// chunks of this size.
    #[must_use]
    pub fn promised_bytes(&self, pool: &str, chunk: u64) -> u64 {
        let whole = |size: u64| size.checked_next_multiple_of(chunk).unwrap_or(u64::MAX);
        self.thin_volumes(pool).map(|volume| whole(self.size_of(volume))).fold(0, u64::saturating_add)
    }

    /// The spare that LVM keeps for the metadata of thin pools, to repair them; it is known by its name
    /// (`_read_lvnames` in LVM's `import_vsn1.c`).
    #[must_use]
    pub fn pool_metadata_spare(&self) -> Option<&LogicalVolume> {
        self.logical_volumes.values().find(|volume| !volume.visible_flag && volume.name.contains("_pmspare"))
    }

    /// The physical volume with that identifier.
    #[must_use]
    pub fn physical_volume(&self, uuid: LvmUuid) -> Option<&PhysicalVolume> {
        self.physical_volumes.iter().find(|volume| volume.uuid == uuid)
    }
}
