//! Weights.

use crate::load::{Job, READ, WRITE, between, race, ratio};
use crate::scene::{Scene, THICK, THIN};
use crate::tenant::{Class, Tenant, configuration, fresh, root_line, with_io};

/// A group with a driver that knows its disk's speed, and two guaranteed pods on it.
async fn two(test: &str, kind: &[(&str, &str)]) -> (Scene, Tenant, Tenant) {
    let group = fresh(test);
    let configuration = configuration(&group, 90.0);
    let scene = Scene::with_config(group, &configuration).await;
    let a = Tenant::new(&scene, 1, Class::Guaranteed, &[kind, &[("ioWeight", "100")]].concat()).await;
    let b = Tenant::new(&scene, 2, Class::Guaranteed, &[kind, &[("ioWeight", "100")]].concat()).await;
    for tenant in [&a, &b] {
        tenant.becomes(&scene, "enforced", "").await;
    }
    (scene, a, b)
}

async fn give(scene: &Scene, tenant: &Tenant, weight: &str) {
    tenant.modify(scene, &[("ioWeight", weight)]).await.unwrap();
    tenant.shows("io.weight", &format!(" {weight}\n")).await;
    tenant.becomes(scene, "enforced", "").await;
}

#[tokio::test]
async fn thick_volumes_get_the_shares_that_they_ask_for() {
    let (scene, a, b) = two("thick", THICK).await;
    between("1:1", ratio(&race(&[(&a, READ), (&b, READ)])), 0.8, 1.25);
    give(&scene, &b, "300").await;
    between("1:3 of writes", ratio(&race(&[(&a, WRITE), (&b, WRITE)])), 2.5, 3.5);
    give(&scene, &b, "800").await;
    between("1:8", ratio(&race(&[(&a, READ), (&b, READ)])), 6.0, 10.0);
    // A neighbour's deep queue takes nothing from a shallow one.
    let noisy = Job::new("randread", 256);
    let quiet = Job::new("randread", 4);
    give(&scene, &b, "100").await;
    let iops = race(&[(&a, noisy), (&b, quiet)]);
    between("the quiet one's part of all", iops[1] / (iops[0] + iops[1]), 0.4, 0.6);
    // The driver's end takes nothing away.
    let disk = scene.group.disks()[0].clone();
    let mut scene = scene;
    assert!(scene.driver.stop().unwrap().success());
    assert!(root_line("io.cost.qos", &disk).contains("enable=1"));
    // Without control the queue's depth decides: so it was the weights.
    scene.driver.restore_io().unwrap();
    let iops = race(&[(&a, noisy), (&b, quiet)]);
    between("the quiet one's part without weights", iops[1] / (iops[0] + iops[1]), 0.0, 0.25);
    scene.restart().await;
    for tenant in [a, b] {
        tenant.end(&scene).await;
    }
}

#[tokio::test]
async fn overwritten_thin_volumes_get_the_shares_that_they_ask_for() {
    let (scene, a, b) = two("thin", THIN).await;
    give(&scene, &b, "800").await;
    between("1:8 of writes", ratio(&race(&[(&a, WRITE), (&b, WRITE)])), 6.0, 10.0);
    between("1:8 of a writer and a reader", ratio(&race(&[(&a, WRITE), (&b, READ)])), 6.0, 10.0);
    for tenant in [a, b] {
        tenant.end(&scene).await;
    }
}

#[tokio::test]
async fn pods_of_all_classes_compare_as_if_there_were_none() {
    let group = fresh("classes");
    let configuration = configuration(&group, 90.0);
    let scene = Scene::with_config(group, &configuration).await;
    let asks = |weight| [THICK, &[("ioWeight", weight)]].concat();
    let guaranteed = Tenant::new(&scene, 1, Class::Guaranteed, &asks("100")).await;
    let burstable = Tenant::new(&scene, 2, Class::Burstable, &asks("800")).await;
    let other = Tenant::new(&scene, 3, Class::Burstable, &asks("400")).await;
    let plain = Tenant::new(&scene, 4, Class::BestEffort, THICK).await;
    for tenant in [&guaranteed, &burstable, &other] {
        tenant.becomes(&scene, "enforced", "").await;
    }
    plain.becomes(&scene, "not-asked", "").await;
    let iops = race(&[(&guaranteed, READ), (&burstable, READ), (&other, READ), (&plain, READ)]);
    between("800 against 100, in another class", iops[1] / iops[0], 6.0, 10.0);
    between("400 against 100, in another class", iops[2] / iops[0], 3.0, 5.0);
    between("no weight against 100, in another class", iops[3] / iops[0], 0.7, 1.4);
    // The second burstable pod is idle now, and its part of the class's weight is not the first one's.
    let iops = race(&[(&guaranteed, READ), (&burstable, READ)]);
    between("800 against 100 beside an idle 400", ratio(&iops), 5.5, 10.0);
    for tenant in [guaranteed, burstable, other, plain] {
        tenant.end(&scene).await;
    }
}

#[tokio::test]
async fn bfq_divides_a_disk_where_the_operator_wants_it() {
    let group = fresh("bfq");
    let disk = group.disks()[0].file_name().unwrap().to_string_lossy().into_owned();
    let scheduler = || std::fs::read_to_string(format!("/sys/block/{disk}/queue/scheduler")).unwrap();
    let before = scheduler();
    let configuration = with_io(&group, "io: {weights: bfq}\n");
    let mut scene = Scene::with_config(group, &configuration).await;
    let a = Tenant::new(&scene, 1, Class::Guaranteed, &[THICK, &[("ioWeight", "100")]].concat()).await;
    let b = Tenant::new(&scene, 2, Class::Guaranteed, &[THICK, &[("ioWeight", "800")]].concat()).await;
    for tenant in [&a, &b] {
        tenant.becomes(&scene, "enforced", "").await;
    }
    assert!(scheduler().contains("[bfq]"));
    between("1:8", ratio(&race(&[(&a, READ), (&b, READ)])), 4.5, 12.0);
    assert!(scene.driver.stop().unwrap().success());
    scene.driver.restore_io().unwrap();
    assert_eq!(scheduler(), before);
    assert!(!std::fs::read_to_string(b.cgroup().join("io.bfq.weight")).unwrap().contains(':'));
}
