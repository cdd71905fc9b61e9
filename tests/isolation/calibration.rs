//! Disks whose speed nobody told.

use std::time::Duration;

use crate::load::{READ, between, race, ratio};
use crate::scene::{Scene, THICK, shell};
use crate::tenant::{CGROUPS, Class, IOPS, Tenant, fresh, root_line, with_io};

async fn two(scene: &Scene) -> (Tenant, Tenant) {
    let asks = |weight| [THICK, &[("ioWeight", weight)]].concat();
    let a = Tenant::new(scene, 1, Class::Guaranteed, &asks("100")).await;
    let b = Tenant::new(scene, 2, Class::Burstable, &asks("800")).await;
    (a, b)
}

fn leaves_nothing(scene: &Scene) {
    let rows = scene.group.lvs("lv_name").unwrap();
    assert!(rows.iter().all(|row| row["lv_name"].starts_with("pvc-")), "{rows:?}");
    assert!(!std::path::Path::new(&format!("{CGROUPS}/quarry-calibration")).exists());
}

/// The number after a key in the disk's line.
fn model(scene: &Scene, key: &str) -> f64 {
    let line = root_line("io.cost.model", &scene.group.disks()[0]);
    let word = line.split_ascii_whitespace().find_map(|word| word.strip_prefix(&format!("{key}=")));
    word.unwrap_or_else(|| panic!("no {key} in {line:?}")).parse().unwrap()
}

#[tokio::test]
async fn a_disk_is_measured_on_request_and_then_weights_hold_on_it() {
    let group = fresh("measured");
    let configuration = with_io(&group, "io: {calibration: onRequest}\n");
    let mut scene = Scene::with_config(group, &configuration).await;
    let (a, b) = two(&scene).await;
    b.becomes(&scene, "not-enforced", "Uncalibrated").await;
    let said = scene.driver.calibrate().unwrap();
    println!("{said}");
    let disk = scene.group.disks()[0].file_name().unwrap().to_string_lossy().into_owned();
    assert!(said.lines().nth(1).unwrap().starts_with(&disk), "{said}");
    leaves_nothing(&scene);
    // A little less than the disk does, and not much.
    between("the model's reads", model(&scene, "rrandiops"), 0.8 * IOPS, IOPS);
    between("the model's writes", model(&scene, "wrandiops"), 0.8 * IOPS, IOPS);
    for tenant in [&a, &b] {
        tenant.becomes(&scene, "enforced", "").await;
    }
    between("1:8", ratio(&race(&[(&a, READ), (&b, READ)])), 6.0, 10.0);
    between("alone", race(&[(&a, READ)])[0], 0.8 * IOPS, IOPS);
    // What was measured outlasts the driver; nothing is measured again.
    scene.driver.kill().unwrap();
    scene.restart().await;
    b.becomes(&scene, "enforced", "").await;
    let before = model(&scene, "rrandiops");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!((model(&scene, "rrandiops") - before).abs() < 0.1);
    for tenant in [a, b] {
        tenant.end(&scene).await;
    }
    assert!(scene.driver.stop().unwrap().success());
    scene.driver.restore_io().unwrap();
    assert!(!root_line("io.cost.qos", &scene.group.disks()[0]).contains("enable=1"));
}

#[tokio::test]
async fn a_quiet_disk_is_measured_by_itself_when_a_pod_needs_it_and_one_in_use_is_not() {
    let group = fresh("itself");
    let configuration = with_io(&group, "");
    let scene = Scene::with_config(group, &configuration).await;
    let asks = [THICK, &[("ioWeight", "800")]].concat();
    let tenant = Tenant::without_cgroup(&scene, 1, Class::Guaranteed, &asks).await;
    // Somebody is at work before the pod starts, so it is not the time for it.
    let device = tenant.device().display().to_string();
    // It has to outlive the command that starts it.
    shell(&format!(
        "setsid -f sh -c 'echo $$ >/run/reader; while :; do dd if={device} of=/dev/null bs=4k iflag=direct status=none; done' \
         >/dev/null 2>&1 </dev/null"
    ));
    tenant.make_cgroup();
    tenant.becomes(&scene, "not-enforced", "somebody else uses the disk").await;
    leaves_nothing(&scene);
    assert!(!root_line("io.cost.qos", &scene.group.disks()[0]).contains("enable=1"));
    let refused = scene.driver.calibrate().unwrap_err();
    assert!(format!("{refused:#}").contains("somebody else uses the disk"), "{refused:#}");
    shell("kill $(cat /run/reader); pkill -x dd; true");
    tenant.becomes_within(&scene, Duration::from_secs(300), "enforced", "").await;
    leaves_nothing(&scene);
    between("the model's reads", model(&scene, "rrandiops"), 0.8 * IOPS, IOPS);
    tenant.end(&scene).await;
}
