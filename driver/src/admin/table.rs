//! Volumes as a table for people and as JSON for programs.

use comfy_table::{CellAlignment, Table, presets};
use quarry_proto::quarry::v1 as proto;
use serde_json::{Value, json};

/// A table: one volume a line, what is wrong in the last column.
#[must_use]
pub fn table(volumes: &[proto::Volume]) -> String {
    if volumes.is_empty() {
        return "no volumes\n".to_owned();
    }
    let header = ["VOLUME", "CLAIM", "NODE", "CLASS", "SIZE", "KIND", "STATE", "USED BY", "WEIGHT", "PROBLEM"];
    let rows = volumes.iter().map(|volume| {
        vec![
            volume.name.clone(),
            or_dash(claim(volume)),
            volume.node.clone(),
            or_dash(volume.device_class.clone()),
            size(volume.size_bytes),
            or_dash([volume.provisioning.as_str(), volume.content.as_str()].join(" ").trim().to_owned()),
            volume.state.clone(),
            used_by(volume),
            weight(volume),
            problem(volume),
        ]
    });
    lines(&header, &[4], rows.collect())
}

/// What came of calibrations: one disk a line.
#[must_use]
pub fn calibrations(disks: &[proto::CalibratedDisk]) -> String {
    if disks.is_empty() {
        return "no disk lies alone below a physical volume of a device class\n".to_owned();
    }
    let header = ["DISK", "READ IOPS", "WRITE IOPS", "MODEL READ", "MODEL WRITE", "1:4 GAVE", "PROBLEM"];
    let rows = disks.iter().map(|disk| {
        let given = |text: String| if disk.problem.is_empty() { text } else { "-".to_owned() };
        vec![
            disk.disk.clone(),
            given(format!("{:.0}", disk.read_iops)),
            given(format!("{:.0}", disk.write_iops)),
            given(disk.model_read_iops.to_string()),
            given(disk.model_write_iops.to_string()),
            given(format!("1:{:.2}", disk.ratio)),
            or_dash(disk.problem.clone()),
        ]
    });
    lines(&header, &[], rows.collect())
}

/// A header and rows in columns, those of these numbers aligned to the right.
pub(super) fn lines(header: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(header);
    table.add_rows(rows);
    for index in right {
        if let Some(column) = table.column_mut(*index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim().to_owned() + "\n").collect()
}

pub(super) fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

pub(super) fn claim(volume: &proto::Volume) -> String {
    if volume.claim_name.is_empty() {
        return String::new();
    }
    format!("{}/{}", volume.claim_namespace, volume.claim_name)
}

/// In the largest unit that leaves no more than four digits before the point.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match UNITS.into_iter().find(|(_, shift)| bytes >> shift > 0) {
        None => format!("{bytes} B"),
        Some((unit, shift)) => {
            let tenths = (u128::from(bytes) * 10) >> shift;
            if tenths % 10 == 0 {
                format!("{} {unit}", tenths / 10)
            } else {
                format!("{}.{} {unit}", tenths / 10, tenths % 10)
            }
        }
    }
}

/// The pods that have it; else whether it is staged.
pub(super) fn used_by(volume: &proto::Volume) -> String {
    let pods: Vec<String> = volume.published.iter().map(pod).collect();
    match (pods.is_empty(), volume.staged_paths.is_empty()) {
        (false, _) => pods.join(", "),
        (true, false) => "staged".to_owned(),
        (true, true) => "-".to_owned(),
    }
}

fn pod(publication: &proto::Publication) -> String {
    match (publication.pod_name.is_empty(), publication.pod_uid.is_empty()) {
        (false, _) => format!("{}/{}", publication.pod_namespace, publication.pod_name),
        (true, false) => format!("pod {}", publication.pod_uid),
        (true, true) => publication.target_path.clone(),
    }
}

/// At each pod, with what became of it: `800 enforced`. Limits alone have no number.
fn weight(volume: &proto::Volume) -> String {
    let is_asked = |p: &&proto::Publication| p.io_weight > 0 || !matches!(p.io_state.as_str(), "" | "not-asked");
    let weights = volume.published.iter().filter(is_asked).map(|p| {
        let number = if p.io_weight > 0 { p.io_weight.to_string() } else { "limits".to_owned() };
        [number.as_str(), p.io_state.as_str()].join(" ").trim().to_owned()
    });
    or_dash(weights.collect::<Vec<_>>().join(", "))
}

/// What is wrong with the volume, and with its share at its pods.
fn problem(volume: &proto::Volume) -> String {
    let mut problems = vec![volume.problem.as_str()];
    problems.extend(volume.published.iter().map(|p| p.io_problem.as_str()));
    problems.retain(|problem| !problem.is_empty());
    or_dash(problems.join("; "))
}

/// JSON: the same, with everything there is.
#[must_use]
pub fn json(volumes: &[proto::Volume]) -> Value {
    let claim = |volume: &proto::Volume| {
        if volume.claim_name.is_empty() {
            return Value::Null;
        }
        json!({"namespace": volume.claim_namespace, "name": volume.claim_name})
    };
    let publication = |of: &proto::Publication| {
        json!({
            "targetPath": of.target_path,
            "pod": {"uid": of.pod_uid, "namespace": of.pod_namespace, "name": of.pod_name},
            "readOnly": of.read_only,
            "ioWeight": (of.io_weight > 0).then_some(of.io_weight),
            "ioState": (!of.io_state.is_empty()).then_some(&of.io_state),
            "ioProblem": (!of.io_problem.is_empty()).then_some(&of.io_problem),
        })
    };
    let volume = |volume: &proto::Volume| {
        json!({
            "name": volume.name,
            "handle": volume.handle,
            "node": volume.node,
            "claim": claim(volume),
            "deviceClass": volume.device_class,
            "volumeGroup": {"name": volume.volume_group, "uuid": volume.volume_group_uuid},
            "uuid": volume.uuid,
            "provisioning": volume.provisioning,
            "content": volume.content,
            "sizeBytes": volume.size_bytes,
            "state": volume.state,
            "problem": (!volume.problem.is_empty()).then_some(&volume.problem),
            "staged": volume.staged_paths,
            "published": volume.published.iter().map(publication).collect::<Vec<_>>(),
            "recorded": volume.recorded,
        })
    };
    json!({"volumes": volumes.iter().map(volume).collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_one_line_with_its_claim_its_pod_and_what_is_wrong() {
        let volume = proto::Volume {
            name: "pvc-1".to_owned(),
            node: "node-1".to_owned(),
            claim_namespace: "db".to_owned(),
            claim_name: "data-0".to_owned(),
            device_class: "nvme".to_owned(),
            provisioning: "thin".to_owned(),
            content: "ext4".to_owned(),
            size_bytes: (3 << 30) / 2,
            state: "lost".to_owned(),
            problem: "its logical volume in quarry has vanished".to_owned(),
            published: vec![proto::Publication {
                pod_namespace: "db".to_owned(),
                pod_name: "pg-0".to_owned(),
                io_weight: 800,
                io_state: "enforced".to_owned(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let text = table(std::slice::from_ref(&volume));
        let line: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        let expected = "pvc-1 db/data-0 node-1 nvme 1.5 GiB thin ext4 lost db/pg-0 800 enforced its logical volume in quarry has vanished";
        assert_eq!(line, expected.split(' ').collect::<Vec<_>>());
        let json = json(&[volume]);
        assert_eq!(json["volumes"][0]["claim"]["name"], "data-0");
        assert_eq!(json["volumes"][0]["published"][0]["ioWeight"], 800);
        assert_eq!(table(&[]), "no volumes\n");
    }

    #[test]
    fn sizes_are_rounded_down_to_a_tenth() {
        for (bytes, text) in [(0, "0 B"), (1 << 30, "1 GiB"), ((1 << 30) - 1, "1023.9 MiB"), (5 << 40, "5 TiB")] {
            assert_eq!(size(bytes), text);
        }
    }
}
