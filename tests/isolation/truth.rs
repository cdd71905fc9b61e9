//! What is not so is not said to be so.

use std::fs;

use crate::load::{Job, READ, between, race, ratio};
use crate::scene::{Scene, THICK, THIN};
use crate::tenant::{CGROUPS, Class, Tenant, configuration, fresh, number, root_line, with_io};

#[tokio::test]
async fn a_weight_without_a_model_is_not_enforced_and_is_not_said_to_be() {
    let group = fresh("bare");
    let configuration = with_io(&group, "io: {calibration: onRequest}\n");
    let scene = Scene::with_config(group, &configuration).await;
    let a = Tenant::new(&scene, 1, Class::Guaranteed, &[THICK, &[("ioWeight", "100")]].concat()).await;
    let b = Tenant::new(&scene, 2, Class::Guaranteed, &[THICK, &[("ioWeight", "800")]].concat()).await;
    b.becomes(&scene, "not-enforced", "Uncalibrated").await;
    between("100:800 on a disk without a model", ratio(&race(&[(&a, READ), (&b, READ)])), 0.7, 1.4);
    let disk = &scene.group.disks()[0];
    assert!(!root_line("io.cost.qos", disk).contains("enable=1"), "the disk is left alone");
    for tenant in [a, b] {
        tenant.end(&scene).await;
    }
}

#[tokio::test]
async fn a_disk_that_somebody_else_controls_is_left_alone() {
    let group = fresh("foreign");
    let disk = group.disks()[0].clone();
    let qos = format!("{CGROUPS}/io.cost.qos");
    fs::write(&qos, format!("{} enable=1 ctrl=user min=50 max=100", number(&disk))).unwrap();
    let configuration = configuration(&group, 90.0);
    let scene = Scene::with_config(group, &configuration).await;
    let tenant = Tenant::new(&scene, 1, Class::Guaranteed, &[THICK, &[("ioWeight", "800")]].concat()).await;
    tenant.becomes(&scene, "not-enforced", "ForeignQosSettings").await;
    assert!(root_line("io.cost.qos", &disk).contains("min=50"));
    // When they let go of it, it is taken up.
    fs::write(&qos, format!("{} enable=0", number(&disk))).unwrap();
    tenant.becomes(&scene, "enforced", "").await;
    tenant.end(&scene).await;
}

#[tokio::test]
async fn where_the_io_controller_is_missing_it_is_said_and_it_is_taken_up_when_it_comes() {
    let group = fresh("controller");
    let configuration = configuration(&group, 90.0);
    let scene = Scene::with_config(group, &configuration).await;
    let asks = [THICK, &[("ioWeight", "800"), ("readIops", "100")]].concat();
    let tenant = Tenant::new(&scene, 1, Class::Burstable, &asks).await;
    tenant.becomes(&scene, "enforced", "").await;
    let above = tenant.cgroup().parent().unwrap().join("cgroup.subtree_control");
    fs::write(&above, "-io").unwrap();
    assert!(!tenant.cgroup().join("io.weight").exists(), "the kernel took the controller away");
    tenant.becomes(&scene, "not-enforced", "NoIoController").await;
    fs::write(&above, "+io").unwrap();
    tenant.becomes(&scene, "enforced", "").await;
    tenant.shows("io.weight", &format!("{} 800\n", number(&scene.group.disks()[0]))).await;
    tenant.shows("io.max", "riops=100").await;
    tenant.end(&scene).await;
}

#[tokio::test]
async fn what_somebody_changes_is_put_right_and_at_the_end_everything_is_put_back() {
    let group = fresh("drift");
    let disk = group.disks()[0].clone();
    let configuration = configuration(&group, 90.0);
    let mut scene = Scene::with_config(group, &configuration).await;
    let tenant = Tenant::new(&scene, 1, Class::Burstable, &[THICK, &[("ioWeight", "800")]].concat()).await;
    tenant.becomes(&scene, "enforced", "").await;

    let qos = format!("{CGROUPS}/io.cost.qos");
    fs::write(&qos, format!("{} enable=0", number(&disk))).unwrap();
    for _ in 0..100 {
        if root_line("io.cost.qos", &disk).contains("enable=1") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    assert!(root_line("io.cost.qos", &disk).contains("enable=1"));
    fs::write(tenant.cgroup().join("io.weight"), format!("{} 1", number(&disk))).unwrap();
    tenant.shows("io.weight", " 800\n").await;

    // A new driver takes up what the last one set, and does not think it another's.
    scene.driver.kill().unwrap();
    scene.restart().await;
    tenant.becomes(&scene, "enforced", "").await;

    let nothing_is_set = || {
        assert!(!root_line("io.cost.qos", &disk).contains("enable=1"), "{}", root_line("io.cost.qos", &disk));
        assert!(!fs::read_to_string(tenant.cgroup().join("io.weight")).unwrap().contains(':'));
        assert!(!fs::read_to_string(format!("{CGROUPS}/kubepods/burstable/io.weight")).unwrap().contains(':'));
    };
    // One that runs does it, and lets it be; a new one is there to stay.
    scene.driver.restore_io().unwrap();
    tenant.becomes(&scene, "not-enforced", "PutBack").await;
    nothing_is_set();
    scene.driver.kill().unwrap();
    scene.restart().await;
    tenant.becomes(&scene, "enforced", "").await;

    assert!(scene.driver.stop().unwrap().success());
    scene.driver.restore_io().unwrap();
    nothing_is_set();
}

#[tokio::test]
async fn a_model_that_is_too_fast_is_found_out_while_pods_are_at_work() {
    let group = fresh("toofast");
    let configuration = configuration(&group, 200.0);
    let scene = Scene::with_config(group, &configuration).await;
    let a = Tenant::new(&scene, 1, Class::Guaranteed, &[THICK, &[("ioWeight", "100")]].concat()).await;
    let b = Tenant::new(&scene, 2, Class::Guaranteed, &[THICK, &[("ioWeight", "800")]].concat()).await;
    for tenant in [&a, &b] {
        // The kernel shows all that it was given; that it does not help is seen in use.
        tenant.becomes(&scene, "enforced", "").await;
    }
    between("1:8 by a model of twice the speed", ratio(&race(&[(&a, READ), (&b, READ)])), 0.7, 2.0);
    for tenant in [&a, &b] {
        tenant.becomes(&scene, "not-enforced", "DiskBehindModel").await;
    }
    for tenant in [a, b] {
        tenant.end(&scene).await;
    }
}

#[tokio::test]
async fn two_that_sync_in_one_thin_pool_are_not_said_to_have_their_shares() {
    let group = fresh("syncs");
    let configuration = configuration(&group, 90.0);
    let scene = Scene::with_config(group, &configuration).await;
    let asks = |weight| [THIN, &[("ioWeight", weight)]].concat();
    let a = Tenant::new(&scene, 1, Class::Guaranteed, &asks("100")).await;
    let b = Tenant::new(&scene, 2, Class::Guaranteed, &asks("800")).await;
    for tenant in [&a, &b] {
        tenant.becomes(&scene, "enforced", "").await;
    }
    let syncs = |depth| Job { sync: true, ..Job::new("randwrite", depth) };
    let iops = race(&[(&a, syncs(16)), (&b, syncs(2))]);
    assert!(ratio(&iops) < 4.0, "the weights do not hold here: {iops:?}");
    for tenant in [&a, &b] {
        tenant.becomes(&scene, "not-enforced", "SyncsShareThinPool").await;
    }
    // One of them alone has its share.
    race(&[(&a, syncs(16)), (&b, READ)]);
    race(&[(&a, syncs(16)), (&b, READ)]);
    race(&[(&a, syncs(16)), (&b, READ)]);
    b.becomes(&scene, "enforced", "").await;
    for tenant in [a, b] {
        tenant.end(&scene).await;
    }
}
