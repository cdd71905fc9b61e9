//! How a node stands, on one screen: what is not in order, and bars of how full volume groups, thin pools and volumes are.

use quarry_proto::quarry::v1 as proto;

use crate::engine::Engine;
use crate::telemetry::health::Health;

use super::table::{claim, lines, or_dash, size, used_by};

/// How many characters a full bar has.
const BAR: u64 = 20;

/// What the engine and the checks know.
#[must_use]
pub fn of(engine: &Engine, health: &Health, volumes: Vec<proto::Volume>) -> proto::GetStatusResponse {
    let inventory = engine.inventory();
    let faults = health.faults().into_iter().map(|fault| proto::Fault {
        subject: fault.subject,
        reason: fault.reason,
        for_seconds: fault.since.map(|since| since.as_secs()),
    });
    let groups = inventory.groups.into_iter().map(|group| proto::VolumeGroup {
        name: group.name,
        size_bytes: group.size,
        free_bytes: group.free,
    });
    let pools = inventory.pools.into_iter().map(|pool| proto::Pool {
        volume_group: pool.group,
        name: pool.name,
        size_bytes: pool.size,
        used_bytes: pool.fill.map(|fill| fill.data_used),
        metadata_size_bytes: pool.metadata_size,
        metadata_used_bytes: pool.fill.map(|fill| fill.metadata_used),
        promised_bytes: pool.promised,
        growth_bytes: pool.growth,
    });
    let classes = inventory.classes.into_iter().map(|class| proto::DeviceClass {
        name: class.name,
        volume_group: class.group,
        pool: class.pool,
        thin_room_bytes: class.thin_room,
        thick_room_bytes: class.thick_room,
    });
    proto::GetStatusResponse {
        node: engine.node().to_string(),
        faults: faults.collect(),
        volume_groups: groups.collect(),
        pools: pools.collect(),
        device_classes: classes.collect(),
        volumes,
    }
}

/// For people.
#[must_use]
pub fn text(status: &proto::GetStatusResponse) -> String {
    let mut text = match &status.faults[..] {
        [] => format!("node {}: everything is in order\n", status.node),
        faults => {
            let lines = faults.iter().map(|fault| {
                let since = fault.for_seconds.map(|seconds| format!(" (for {seconds} s)")).unwrap_or_default();
                format!("  {}: {}{since}\n", fault.subject, fault.reason)
            });
            format!("node {}: not in order:\n{}", status.node, lines.collect::<String>())
        }
    };
    let mut section = |header: &[&str], right: &[usize], rows: Vec<Vec<String>>| {
        if !rows.is_empty() {
            text.push('\n');
            text.push_str(&lines(header, right, rows));
        }
    };
    let groups = status.volume_groups.iter().map(|group| {
        let taken = group.size_bytes.saturating_sub(group.free_bytes);
        vec![group.name.clone(), size(group.size_bytes), bar(taken, group.size_bytes), size(group.free_bytes)]
    });
    section(&["VOLUME GROUP", "SIZE", "IN LOGICAL VOLUMES", "FREE"], &[1, 3], groups.collect());
    let pools = status.pools.iter().map(|pool| {
        let filled = |used: Option<u64>, of| used.map_or_else(|| "not known".to_owned(), |used| bar(used, of));
        vec![
            format!("{}/{}", pool.volume_group, pool.name),
            size(pool.size_bytes),
            filled(pool.used_bytes, pool.size_bytes),
            filled(pool.metadata_used_bytes, pool.metadata_size_bytes),
            size(pool.promised_bytes),
            size(pool.growth_bytes),
        ]
    });
    section(&["THIN POOL", "SIZE", "DATA", "METADATA", "PROMISED", "MAY GROW BY"], &[1, 4, 5], pools.collect());
    let classes = status.device_classes.iter().map(|class| {
        let room = |room: Option<u64>| room.map_or_else(|| "not known".to_owned(), size);
        vec![
            class.name.clone(),
            format!("{} ({})", class.volume_group, class.pool),
            room(class.thin_room_bytes),
            room(class.thick_room_bytes),
        ]
    });
    let header = ["DEVICE CLASS", "VOLUME GROUP (POOL)", "LARGEST THIN VOLUME", "LARGEST THICK VOLUME"];
    section(&header, &[2, 3], classes.collect());
    let volumes = status.volumes.iter().map(|volume| {
        let used = match volume.used_bytes {
            Some(used) => bar(used, volume.size_bytes),
            None => "-".to_owned(),
        };
        vec![
            volume.name.clone(),
            or_dash(claim(volume)),
            size(volume.size_bytes),
            used,
            volume.state.clone(),
            used_by(volume),
        ]
    });
    section(&["VOLUME", "CLAIM", "SIZE", "REALLY USED", "STATE", "USED BY"], &[2], volumes.collect());
    text
}

/// A part of a whole: `[#####---------------]  25 %`. Whatever is used shows, and only what is full is drawn full.
fn bar(part: u64, whole: u64) -> String {
    let share = |of: u64| u64::try_from(u128::from(part) * u128::from(of) / u128::from(whole.max(1))).unwrap_or(of);
    let filled = match share(BAR).min(BAR) {
        0 if part > 0 => 1,
        filled => filled,
    };
    let draw = |character: &str, count: u64| character.repeat(usize::try_from(count).unwrap_or(0));
    format!("[{}{}] {:>3} %", draw("#", filled), draw("-", BAR - filled), share(100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_empty_only_where_nothing_is_used_and_full_only_where_all_is() {
        for (part, whole, expected) in [
            (0, 100, "[--------------------]   0 %"),
            (1, 1000, "[#-------------------]   0 %"),
            (25, 100, "[#####---------------]  25 %"),
            (999, 1000, "[###################-]  99 %"),
            (100, 100, "[####################] 100 %"),
            (150, 100, "[####################] 150 %"),
            (0, 0, "[--------------------]   0 %"),
            (u64::MAX, u64::MAX, "[####################] 100 %"),
        ] {
            assert_eq!(bar(part, whole), expected, "{part} of {whole}");
        }
    }

    #[test]
    fn a_node_is_one_screen_with_what_is_wrong_first() {
        let mut status = proto::GetStatusResponse {
            node: "node-1".to_owned(),
            volume_groups: vec![proto::VolumeGroup {
                name: "quarry".to_owned(),
                size_bytes: 4 << 30,
                free_bytes: 1 << 30,
            }],
            pools: vec![proto::Pool {
                volume_group: "quarry".to_owned(),
                name: "quarry-pool".to_owned(),
                size_bytes: 3 << 30,
                used_bytes: None,
                metadata_size_bytes: 100,
                metadata_used_bytes: Some(50),
                promised_bytes: 5 << 30,
                growth_bytes: 0,
            }],
            device_classes: vec![proto::DeviceClass {
                name: "default".to_owned(),
                volume_group: "quarry".to_owned(),
                pool: "quarry-pool".to_owned(),
                thin_room_bytes: Some(1 << 30),
                thick_room_bytes: None,
            }],
            volumes: vec![proto::Volume {
                name: "pvc-1".to_owned(),
                claim_namespace: "db".to_owned(),
                claim_name: "data-0".to_owned(),
                size_bytes: 1 << 30,
                used_bytes: Some(1 << 29),
                state: "ready".to_owned(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let text_of = |status: &proto::GetStatusResponse| {
            let text = text(status);
            let words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
            words.collect::<Vec<_>>()
        };
        let lines = text_of(&status);
        assert_eq!(lines[0], "node node-1: everything is in order");
        for expected in [
            "quarry 4 GiB [###############-----] 75 % 1 GiB",
            "quarry/quarry-pool 3 GiB not known [##########----------] 50 % 5 GiB 0 B",
            "default quarry (quarry-pool) 1 GiB not known",
            "pvc-1 db/data-0 1 GiB [##########----------] 50 % ready -",
        ] {
            assert!(lines.iter().any(|line| line == expected), "{expected:?} is not in {lines:#?}");
        }
        status.faults.push(proto::Fault {
            subject: "volume group quarry".to_owned(),
            reason: "it is not found on this node".to_owned(),
            for_seconds: Some(7),
        });
        let lines = text_of(&status);
        assert_eq!(
            lines[..2],
            ["node node-1: not in order:", "volume group quarry: it is not found on this node (for 7 s)"]
        );
    }
}
