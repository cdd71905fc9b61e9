//! Limits.

use tonic::Code;

use crate::load::{READ, WRITE, between, race};
use crate::scene::{Scene, THICK, THIN, refused, shell};
use crate::tenant::{Class, Tenant, fresh, with_io};

#[tokio::test]
async fn limits_hold_and_change_while_the_volume_is_used() {
    // Of the first 256 numbers none is left: the volumes get numbers that do not fit into eight bits.
    shell("for n in $(seq 0 255); do dmsetup create filler$n --table '0 8 zero'; done");
    let group = fresh("limits");
    let configuration = with_io(&group, "");
    let mut scene = Scene::with_config(group, &configuration).await;
    let asks = [THIN, &[("readIops", "100"), ("writeIops", "50")]].concat();
    let tenant = Tenant::without_cgroup(&scene, 1, Class::Burstable, &asks).await;
    tenant.becomes(&scene, "pending", "CgroupNotFound").await;
    tenant.make_cgroup();
    tenant.becomes(&scene, "enforced", "").await;
    let line = std::fs::read_to_string(tenant.cgroup().join("io.max")).unwrap();
    let minor: u32 = line.split([':', ' ']).nth(1).unwrap().parse().unwrap();
    assert!(minor > 255, "{line}");
    between("reads a second", race(&[(&tenant, READ)])[0], 85.0, 105.0);
    between("writes a second", race(&[(&tenant, WRITE)])[0], 40.0, 55.0);

    tenant.modify(&scene, &[("readIops", "200")]).await.unwrap();
    tenant.shows("io.max", "riops=200 wiops=50").await;
    between("reads a second", race(&[(&tenant, READ)])[0], 170.0, 210.0);

    // All or nothing, and one error that names the field.
    let wrong = tenant.modify(&scene, &[("readIops", "300"), ("writeIops", "none")]).await;
    refused(wrong, Code::InvalidArgument, &["writeIops", "none", "max for no limit"]);
    let wrong = tenant.modify(&scene, &[("readIops", "300"), ("deviceClass", "other")]).await;
    refused(wrong, Code::InvalidArgument, &["deviceClass", "ioWeight"]);
    tenant.shows("io.max", "riops=200 wiops=50").await;

    // What was asked last outlasts the driver; a cgroup made anew gets it again.
    scene.driver.kill().unwrap();
    std::fs::remove_dir(tenant.cgroup()).unwrap();
    tenant.make_cgroup();
    assert_eq!(std::fs::read_to_string(tenant.cgroup().join("io.max")).unwrap(), "");
    scene.restart().await;
    tenant.shows("io.max", "riops=200 wiops=50").await;

    tenant.modify(&scene, &[("readIops", "max"), ("writeIops", "max")]).await.unwrap();
    tenant.becomes(&scene, "not-asked", "").await;
    let free = race(&[(&tenant, READ)])[0];
    assert!(free > 300.0, "{free} reads a second without a limit");
    tenant.end(&scene).await;
    drop(scene);
    shell("for n in $(seq 0 255); do dmsetup remove filler$n; done");
}

#[tokio::test]
async fn a_limit_is_of_its_own_volume_alone_and_goes_with_the_pod() {
    let group = fresh("alone");
    let configuration = with_io(&group, "");
    let scene = Scene::with_config(group, &configuration).await;
    let limited = Tenant::new(&scene, 1, Class::Guaranteed, &[THICK, &[("readBps", "409600")]].concat()).await;
    let free = Tenant::new(&scene, 2, Class::Guaranteed, THICK).await;
    limited.becomes(&scene, "enforced", "").await;
    let iops = race(&[(&limited, READ), (&free, READ)]);
    between("4 KiB reads at 400 KiB a second", iops[0], 85.0, 105.0);
    assert!(iops[1] > 300.0, "the other pod got {iops:?}");
    limited.unpublish(&scene).await;
    for _ in 0..100 {
        if !std::fs::read_to_string(limited.cgroup().join("io.max")).unwrap().contains("rbps=409600") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    assert_eq!(std::fs::read_to_string(limited.cgroup().join("io.max")).unwrap(), "");
    free.end(&scene).await;
}
