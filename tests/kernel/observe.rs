//! What the driver shows of itself, next to what LVM says of the same volumes.

use std::time::Duration;

use quarry_tests::in_vm::{DriverUnderTest, VolumeGroup};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::pod::{Pod, text};
use crate::scene::{GIB, MIB, Scene, THICK, THIN, block, filesystem, map, shell, spec};

const ADDRESS: &str = "127.0.0.1:9808";

async fn metrics() -> String {
    let mut connection = tokio::net::TcpStream::connect(ADDRESS).await.unwrap();
    connection.write_all(b"GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// The value of the only series of a metric with all these labels.
#[track_caller]
fn value(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let lines = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
    let found: Vec<&str> = lines.filter(|line| labels.iter().all(|label| line.contains(label))).collect();
    assert!(found.len() <= 1, "{found:#?}");
    found.first().map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
}

#[tokio::test]
async fn figures_are_lvms_own_and_cost_no_process() {
    let group = VolumeGroup::fresh("observe").unwrap();
    let config = format!(
        "deviceClasses:\n  - name: default\n    volumeGroup: {}\ntimeouts: {{answerSeconds: 300, nodeAnswerSeconds: 300}}\n",
        group.name()
    );
    let mut spec = spec(&config);
    spec.arguments.push(format!("--http-address={ADDRESS}"));
    let scene = Scene::of(group, DriverUnderTest::start(spec).unwrap()).await;
    let mut request = filesystem("pvc-1", GIB, THIN);
    request.parameters = map(&[("csi.storage.k8s.io/pvc/namespace", "db"), ("csi.storage.k8s.io/pvc/name", "data-0")]);
    let volume = scene.create(request).await.unwrap();
    scene.create(block("raw", 64 * MIB, THICK)).await.unwrap();
    let pod = Pod::with_filesystem(&scene, volume, "ext4", &[]);
    pod.stage(&scene).await.unwrap();
    pod.publish(&scene, "one").await.unwrap();
    shell(&format!("dd if=/dev/urandom of={}/data bs=1M count=32 conv=fsync status=none", text(&pod.target("one"))));

    // What a thin volume really uses is asked of the kernel from time to time.
    let of_volume = ["volume=\"pvc-1\"", "claim_namespace=\"db\"", "claim=\"data-0\"", "node=\"node-1\""];
    let close = |a: f64, b: f64| (a - b).abs() < 1_048_576.0;
    let lvm_says = |name: &str| {
        let rows = scene.group.lvs("lv_name,lv_size,data_percent,metadata_percent").unwrap();
        let row = rows.into_iter().find(|row| row["lv_name"].trim_matches(['[', ']']) == name).unwrap();
        let number = |field: &str| row[field].parse::<f64>().unwrap();
        (number("lv_size"), number("data_percent") / 100.0 * number("lv_size"))
    };
    let mut shown = None;
    for _ in 0..120 {
        shown = value(&metrics().await, "quarry_volume_used_bytes", &of_volume);
        if shown.is_some_and(|used| used > 33_554_432.0 && close(used, lvm_says("pvc-1").1)) {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let (size, used) = lvm_says("pvc-1");
    assert!(shown.is_some_and(|shown| close(shown, used)), "{shown:?} is shown, LVM says {used}");

    let before = scene.lvm_processes();
    let told = metrics().await;
    for _ in 0..20 {
        metrics().await;
    }
    assert_eq!(scene.lvm_processes(), before, "a scrape starts no process");

    assert_eq!(value(&told, "quarry_volume_size_bytes", &of_volume), Some(size));
    assert!(value(&told, "quarry_volume_written_bytes_total", &of_volume).unwrap() >= 33_554_432.0);
    let group = format!("volume_group=\"{}\"", scene.group.name());
    let vgs = scene.group.vgs("vg_size,vg_free,lv_count").unwrap();
    for (name, field) in [
        ("quarry_volume_group_size_bytes", "vg_size"),
        ("quarry_volume_group_free_bytes", "vg_free"),
        ("quarry_volume_group_logical_volumes", "lv_count"),
    ] {
        assert_eq!(value(&told, name, &[&group]), Some(vgs[field].parse().unwrap()), "{name}");
    }
    let of_pool = [group.as_str(), "pool=\"quarry-pool\""];
    let (pool_size, pool_used) = lvm_says("quarry-pool");
    assert_eq!(value(&told, "quarry_pool_size_bytes", &of_pool), Some(pool_size));
    let shown = value(&told, "quarry_pool_used_bytes", &of_pool).unwrap();
    assert!((shown - pool_used).abs() < pool_size / 5000.0, "{shown} is shown, LVM says {pool_used}");
    assert_eq!(value(&told, "quarry_pool_promised_bytes", &of_pool), Some(size));
    assert_eq!(value(&told, "quarry_volumes", &["state=\"ready\""]), Some(2.0));

    let status = scene.driver.ask(&["status"]).unwrap();
    assert!(status.starts_with("node node-1: everything is in order\n"), "{status}");
    let line = |word: &str| status.lines().find(|line| line.starts_with(word)).unwrap_or_else(|| panic!("{status}"));
    assert!(line("pvc-1").contains("db/data-0") && line("pvc-1").contains("[#-"), "{status}");
    assert!(line(&format!("{}/quarry-pool", scene.group.name())).contains("[#"), "{status}");
    pod.unpublish(&scene, "one").await.unwrap();
    pod.unstage(&scene).await.unwrap();
}
