//! Metrics of volume groups, thin pools, device classes, disks and volumes.
//!
//! Labels have the same names everywhere: `node`, `volume_group`, `pool`, `device_class`, `disk`, `volume`. A claim is
//! `claim_namespace` and `claim`, since `namespace` is what Prometheus calls the driver's own.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use crate::engine::inventory::{ClassFigures, GroupFigures, Inventory, PoolFigures, VolumeFigures};
use crate::io::State;
use crate::io::block_stat::BlockStat;
use crate::io::control::Publication;
use crate::volume::io::Limits;

use super::exposition::{Exposition, Kind, Labels};

/// What became of weights and limits, by volume and target path.
pub type Shares = BTreeMap<Publication, State>;

/// Writes all of them; those of single volumes where `each_volume` says so.
pub fn write(text: &mut Exposition, node: &str, inventory: &Inventory, shares: &Shares, each_volume: bool) {
    let node = Labels::of(&[("node", node)]);
    groups(text, &node, &inventory.groups);
    pools(text, &node, &inventory.pools);
    classes(text, &node, inventory);
    disks(text, &node, inventory);
    if each_volume {
        volumes(text, &node, &inventory.volumes, shares);
    }
}

/// One gauge, of each of several things.
fn gauge<'a, T: 'a>(
    text: &mut Exposition,
    things: &'a [(Labels, &'a T)],
    name: &'static str,
    help: &str,
    value: impl Fn(&T) -> Option<f64>,
) {
    text.family(name, Kind::Gauge, help);
    for (labels, thing) in things {
        if let Some(value) = value(thing) {
            text.sample(labels, value);
        }
    }
}

/// A figure as Prometheus has it: exact up to 8 PiB.
#[expect(clippy::cast_precision_loss, reason = "Prometheus knows floats only")]
fn number(value: u64) -> f64 {
    value as f64
}

fn groups(text: &mut Exposition, node: &Labels, groups: &[GroupFigures]) {
    let of: Vec<(Labels, &GroupFigures)> =
        groups.iter().map(|group| (node.with("volume_group", &group.name), group)).collect();
    let mut each = |name, help: &str, value: fn(&GroupFigures) -> Option<f64>| gauge(text, &of, name, help, value);
    each("quarry_volume_group_size_bytes", "Bytes of all extents of the volume group.", |g| Some(number(g.size)));
    each("quarry_volume_group_free_bytes", "Bytes of the volume group that no logical volume has.", |g| {
        Some(number(g.free))
    });
    each(
        "quarry_volume_group_allocatable_bytes",
        "Free bytes that LVM can give to new logical volumes: not on missing physical volumes, nor on such that are not to be allocated from.",
        |g| Some(number(g.allocatable)),
    );
    each(
        "quarry_volume_group_metadata_size_bytes",
        "The longest description of the volume group that its metadata areas take.",
        |g| Some(number(g.metadata_limit)),
    );
    each("quarry_volume_group_metadata_used_bytes", "The length of the volume group's description.", |g| {
        Some(number(g.metadata_used))
    });
    each("quarry_volume_group_logical_volumes", "Logical volumes that LVM shows, whoever made them.", |g| {
        Some(number(g.logical_volumes))
    });
    each(
        "quarry_volume_group_logical_volumes_limit",
        "Logical volumes that the volume group may have; no value where it has no limit.",
        |g| g.logical_volumes_limit.map(number),
    );
    each("quarry_volume_group_snapshots", "Logical volumes that are snapshots.", |g| Some(number(g.snapshots)));
    each(
        "quarry_volume_group_changeable",
        "1 where LVM may change the volume group, 0 where it is exported, read-only or shared.",
        |g| Some(f64::from(u8::from(g.changeable))),
    );
    each(
        "quarry_volume_group_sample_timestamp_seconds",
        "When the kernel was last asked about the volume group's volumes, in seconds since 1970.",
        |g| g.sampled,
    );
    text.family("quarry_volume_group_info", Kind::Gauge, "A volume group's UUID and allocation policy; always 1.");
    for (labels, group) in &of {
        text.sample(&labels.with("uuid", &group.uuid).with("allocation", &group.allocation), 1);
    }
    let physical: Vec<_> = of
        .iter()
        .flat_map(|(labels, group)| group.physical.iter().map(|volume| (labels.with("device", &volume.device), volume)))
        .collect();
    gauge(text, &physical, "quarry_physical_volume_size_bytes", "Bytes of the physical volume's extents.", |p| {
        Some(number(p.size))
    });
    gauge(
        text,
        &physical,
        "quarry_physical_volume_free_bytes",
        "Bytes of the physical volume that no logical volume has.",
        |p| Some(number(p.free)),
    );
    gauge(
        text,
        &physical,
        "quarry_physical_volume_allocatable",
        "1 where LVM gives away extents of the physical volume, else 0.",
        |p| Some(f64::from(u8::from(p.allocatable))),
    );
    gauge(
        text,
        &physical,
        "quarry_physical_volume_missing",
        "1 where the physical volume is not there, else 0.",
        |p| Some(f64::from(u8::from(p.missing))),
    );
}

fn pools(text: &mut Exposition, node: &Labels, pools: &[PoolFigures]) {
    let of: Vec<(Labels, &PoolFigures)> =
        pools.iter().map(|pool| (node.with("volume_group", &pool.group).with("pool", &pool.name), pool)).collect();
    let mut each = |name, help: &str, value: fn(&PoolFigures) -> Option<f64>| gauge(text, &of, name, help, value);
    each("quarry_pool_size_bytes", "Bytes of the thin pool's data.", |p| Some(number(p.size)));
    each(
        "quarry_pool_used_bytes",
        "Bytes of the thin pool's data in use; no value where the kernel does not tell.",
        |p| Some(number(p.fill?.data_used)),
    );
    each("quarry_pool_metadata_size_bytes", "Bytes of the thin pool's metadata.", |p| Some(number(p.metadata_size)));
    each("quarry_pool_metadata_used_bytes", "Bytes of the thin pool's metadata in use.", |p| {
        Some(number(p.fill?.metadata_used))
    });
    each("quarry_pool_promised_bytes", "Bytes promised to the thin pool's volumes: the sum of their sizes.", |p| {
        Some(number(p.promised))
    });
    each("quarry_pool_growth_bytes", "Bytes by which the driver may still enlarge the thin pool.", |p| {
        Some(number(p.growth))
    });
    each("quarry_pool_chunk_bytes", "Bytes that the thin pool gives out at a time.", |p| Some(number(p.chunk)));
    each("quarry_pool_volumes", "Thin volumes in the thin pool, whoever made them.", |p| Some(number(p.volumes)));
    each(
        "quarry_pool_usable",
        "1 where the kernel told how full the thin pool is when it was last asked, 0 where it did not, or the pool has failed.",
        |p| Some(f64::from(u8::from(p.fill.is_some()))),
    );
    each(
        "quarry_pool_fails_when_full",
        "1 where writes to a full thin pool fail at once, 0 where they wait for room.",
        |p| Some(f64::from(u8::from(p.error_when_full))),
    );
}

fn classes(text: &mut Exposition, node: &Labels, inventory: &Inventory) {
    let of: Vec<(Labels, &ClassFigures)> = inventory
        .classes
        .iter()
        .map(|class| {
            let labels = node.with("device_class", &class.name).with("volume_group", &class.group);
            (labels.with("pool", &class.pool), class)
        })
        .collect();
    gauge(
        text,
        &of,
        "quarry_class_reserve_bytes",
        "Bytes of the volume group that the device class never gives away.",
        |c| Some(number(c.reserve)),
    );
    gauge(
        text,
        &of,
        "quarry_class_overprovision_ratio",
        "How many bytes the device class may promise for each byte of its thin pool.",
        |c| Some(c.ratio),
    );
    text.family(
        "quarry_class_room_bytes",
        Kind::Gauge,
        "The largest volume that can be made now; no value where it cannot be told.",
    );
    for (labels, class) in &of {
        for (provisioning, room) in [("thin", class.thin_room), ("thick", class.thick_room)] {
            if let Some(room) = room {
                text.sample(&labels.with("provisioning", provisioning), room);
            }
        }
    }
    // Volumes of classes that are not configured any more are counted too.
    let mut sums: BTreeMap<(&str, &str, &str), (u64, u64)> = BTreeMap::new();
    for volume in inventory.volumes.iter().filter(|volume| !volume.group.is_empty()) {
        let sum = sums.entry((&volume.class, &volume.group, &volume.provisioning)).or_default();
        *sum = (sum.0 + 1, sum.1.saturating_add(volume.size));
    }
    let sums: Vec<(Labels, (u64, u64))> = sums
        .into_iter()
        .map(|((class, group, provisioning), sum)| {
            let labels = node.with("device_class", class).with("volume_group", group);
            (labels.with("provisioning", provisioning), sum)
        })
        .collect();
    text.family("quarry_class_volumes", Kind::Gauge, "Volumes of the device class.");
    for (labels, (count, _)) in &sums {
        text.sample(labels, count);
    }
    text.family("quarry_class_volumes_size_bytes", Kind::Gauge, "The sum of the sizes of the device class's volumes.");
    for (labels, (_, size)) in &sums {
        text.sample(labels, size);
    }
}

fn disks(text: &mut Exposition, node: &Labels, inventory: &Inventory) {
    let of: Vec<_> = inventory.disks.iter().map(|facts| (node.with("disk", &facts.disk), facts)).collect();
    gauge(text, &of, "quarry_disk_iocost_enabled", "1 where iocost controls the disk, else 0.", |d| {
        Some(f64::from(u8::from(d.enabled)))
    });
    gauge(
        text,
        &of,
        "quarry_disk_iocost_vrate_ratio",
        "How fast iocost lets the time of the disk's cost model run, against true time.",
        |d| d.vrate,
    );
    text.family(
        "quarry_disk_iocost_model_bytes_per_second",
        Kind::Gauge,
        "Sequential throughput in the disk's cost model.",
    );
    for (labels, model) in of.iter().filter_map(|(labels, facts)| Some((labels, facts.model?))) {
        for (direction, bytes) in ["read", "write"].into_iter().zip(model.bytes) {
            text.sample(&labels.with("direction", direction), bytes);
        }
    }
    text.family(
        "quarry_disk_iocost_model_operations_per_second",
        Kind::Gauge,
        "Operations of 4 KiB a second in the disk's cost model.",
    );
    for (labels, model) in of.iter().filter_map(|(labels, facts)| Some((labels, facts.model?))) {
        for (pattern, operations) in [("sequential", model.sequential), ("random", model.random)] {
            for (direction, number) in ["read", "write"].into_iter().zip(operations) {
                text.sample(&labels.with("direction", direction).with("pattern", pattern), number);
            }
        }
    }
}

/// A counter of what is read and written: its name, its help, its value.
type Counted = (&'static str, &'static str, fn(&BlockStat) -> u64);

fn volumes(text: &mut Exposition, node: &Labels, volumes: &[VolumeFigures], shares: &Shares) {
    let labels = |volume: &VolumeFigures| {
        let labels = node.with("volume", &volume.name).with("device_class", &volume.class);
        labels.with("claim_namespace", &volume.claim_namespace).with("claim", &volume.claim)
    };
    let of: Vec<(Labels, &VolumeFigures)> = volumes.iter().map(|volume| (labels(volume), volume)).collect();
    text.family("quarry_volume_info", Kind::Gauge, "Where a volume is, what is on it and how it stands; always 1.");
    for (labels, volume) in &of {
        let labels = labels.with("volume_group", &volume.group).with("pool", &volume.pool);
        let labels = labels.with("provisioning", &volume.provisioning).with("content", &volume.content);
        text.sample(&labels.with("state", volume.state), 1);
    }
    // Of a volume whose tags nobody understands no size is known.
    gauge(text, &of, "quarry_volume_size_bytes", "The volume's size.", |v| (v.size > 0).then_some(number(v.size)));
    gauge(
        text,
        &of,
        "quarry_volume_used_bytes",
        "Bytes that the thin volume really has in its pool; no value of thick volumes, nor while it is not active.",
        |v| v.sample.used.map(number),
    );
    let traffic: [Counted; 4] = [
        ("quarry_volume_reads_total", "Reads of the volume's device, since it came to be.", |t| t.reads),
        ("quarry_volume_read_bytes_total", "Bytes read from the volume's device.", |t| t.read_bytes),
        ("quarry_volume_writes_total", "Writes to the volume's device.", |t| t.writes),
        ("quarry_volume_written_bytes_total", "Bytes written to the volume's device.", |t| t.written_bytes),
    ];
    for (name, help, value) in traffic {
        text.family(name, Kind::Counter, help);
        for (labels, traffic) in of.iter().filter_map(|(labels, volume)| Some((labels, volume.sample.traffic?))) {
            text.sample(labels, value(&traffic));
        }
    }
    gauge(
        text,
        &of,
        "quarry_volume_io_weight",
        "The weight that the volume asks for; no value where it asks for none.",
        |v| v.weight.map(f64::from),
    );
    limits(
        text,
        &of,
        "quarry_volume_io_limit_operations_per_second",
        "Operations that a pod may do on the volume at most, where the volume asks for a limit.",
        |limits| [limits.read_iops, limits.write_iops],
    );
    limits(
        text,
        &of,
        "quarry_volume_io_limit_bytes_per_second",
        "Bytes that a pod may read or write on the volume at most, where the volume asks for a limit.",
        |limits| [limits.read_bps, limits.write_bps],
    );
    text.family("quarry_volume_disk", Kind::Gauge, "Which disks are below the volume; always 1.");
    for (labels, volume) in &of {
        for disk in &volume.sample.disks {
            text.sample(&labels.with("disk", disk), 1);
        }
    }
    text.family(
        "quarry_volume_io_device_seconds_total",
        Kind::Counter,
        "Seconds of the time of the disk's cost model that the volume's pods have used, on disks that iocost controls; a pod's use is one, also where it has several volumes there.",
    );
    for (labels, volume) in &of {
        for (disk, seconds) in &volume.sample.device_seconds {
            text.sample(&labels.with("disk", disk), seconds);
        }
    }
    text.family(
        "quarry_volume_io_state",
        Kind::Gauge,
        "What became of the volume's weight and limits, and why they are not enforced; of several pods the worst; always 1.",
    );
    for (labels, volume) in of.iter().filter(|(_, volume)| !volume.targets.is_empty()) {
        if let Some(state) = worst(volume, shares) {
            let reason = state.reason().map_or("", |reason| reason.name());
            text.sample(&labels.with("state", state.name()).with("reason", reason), 1);
        }
    }
}

/// Limits of reading and writing; one that nobody asks for has no value.
fn limits(
    text: &mut Exposition,
    volumes: &[(Labels, &VolumeFigures)],
    name: &'static str,
    help: &str,
    values: impl Fn(&Limits) -> [Option<NonZeroU64>; 2],
) {
    text.family(name, Kind::Gauge, help);
    for (labels, volume) in volumes {
        for (direction, limit) in ["read", "write"].into_iter().zip(values(&volume.limits)) {
            if let Some(limit) = limit {
                text.sample(&labels.with("direction", direction), limit);
            }
        }
    }
}

/// The state at the pod where least of what the volume asks for came about.
fn worst<'a>(volume: &VolumeFigures, shares: &'a Shares) -> Option<&'a State> {
    let rank = |state: &State| match state {
        State::NotAsked => 0,
        State::Enforced => 1,
        State::Pending(_) => 2,
        State::NotEnforced(_) => 3,
    };
    let lv = crate::volume::LvName::parse(&volume.name)?;
    volume.targets.iter().filter_map(|target| shares.get(&(lv.clone(), target.clone()))).max_by_key(|state| rank(state))
}
