//! Wherever a pod's cgroup is, and whatever its volume lies on.

use std::fs;

use quarry_tests::in_vm::{VgOptions, VolumeGroup};

use crate::scene::{Scene, THICK, shell};
use crate::tenant::{Class, Tenant, configuration, fresh, number, untouched, with, with_io};

/// Where a kubelet makes a pod's cgroup, by the pod's UID.
type Place = fn(&str) -> String;

#[tokio::test]
async fn a_pods_cgroup_is_found_wherever_a_kubelet_makes_it() {
    let group = fresh("places");
    let configuration = configuration(&group, 90.0);
    let scene = Scene::with_config(group, &configuration).await;
    let asks = [THICK, &[("ioWeight", "300"), ("writeIops", "50")]].concat();
    let places: [(&str, Place); 5] = [
        ("cgroupfs", |uid| format!("kubepods/besteffort/pod{uid}")),
        ("systemd, guaranteed", |uid| format!("kubepods.slice/kubepods-pod{}.slice", uid.replace('-', "_"))),
        ("systemd, burstable", |uid| {
            format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice", uid.replace('-', "_"))
        }),
        ("systemd, below kind's root", |uid| {
            let uid = uid.replace('-', "_");
            format!(
                "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{uid}.slice"
            )
        }),
        ("cgroupfs, below another root", |uid| format!("nodes/one/kubepods/burstable/pod{uid}")),
    ];
    for (index, (what, place)) in places.into_iter().enumerate() {
        println!("{what}");
        let tenant = Tenant::placed(&scene, u8::try_from(index).unwrap(), 64, place, &asks).await;
        tenant.becomes(&scene, "pending", "CgroupNotFound").await;
        tenant.make_cgroup();
        tenant.becomes(&scene, "enforced", "").await;
        tenant.shows("io.weight", &format!("{} 300\n", number(&scene.group.disks()[0]))).await;
        tenant.shows("io.max", "wiops=50").await;
        tenant.end(&scene).await;
    }
}

#[tokio::test]
async fn a_volume_on_two_disks_has_its_weight_on_both() {
    let group = with("both", &VgOptions { disks: 2, ..VgOptions::default() });
    let configuration = configuration(&group, 90.0);
    let scene = Scene::with_config(group, &configuration).await;
    let asks = [THICK, &[("ioWeight", "500")]].concat();
    let cgroup = |uid: &str| format!("kubepods/burstable/pod{uid}");
    let large = Tenant::placed(&scene, 1, 1200, cgroup, &asks).await;
    large.make_cgroup();
    let small = Tenant::new(&scene, 2, Class::Guaranteed, &asks).await;
    for tenant in [&large, &small] {
        tenant.becomes(&scene, "enforced", "").await;
    }
    let weights = |tenant: &Tenant| fs::read_to_string(tenant.cgroup().join("io.weight")).unwrap();
    let lines: Vec<String> = scene.group.disks().iter().map(|disk| format!("{} 500\n", number(disk))).collect();
    assert!(lines.iter().all(|line| weights(&large).contains(line)), "{}", weights(&large));
    assert_eq!(lines.iter().filter(|line| weights(&small).contains(*line)).count(), 1, "{}", weights(&small));
    for tenant in [large, small] {
        tenant.end(&scene).await;
    }
}

#[tokio::test]
async fn the_weight_of_a_volume_on_a_partition_is_on_its_whole_disk() {
    // One partition of LVM's type over nearly all of the disk, in a table as PCs have had it since 1983.
    let whole = fresh("whole").disks()[0].clone();
    let mut table = [0_u8; 512];
    table[446 + 4] = 0x8e;
    table[446 + 8..446 + 12].copy_from_slice(&2048_u32.to_le_bytes());
    table[446 + 12..446 + 16].copy_from_slice(&(1020_u32 * 2048).to_le_bytes());
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("table");
    fs::write(&file, table).unwrap();
    let name = whole.display();
    shell(&format!("dd if={} of={name} conv=fsync status=none && blockdev --rereadpt {name}", file.display()));
    let partition = format!("{name}1");
    let group = VolumeGroup::on("part", vec![partition.clone().into()], &VgOptions::default()).unwrap();
    untouched(&whole);
    let disk = whole.file_name().unwrap().to_string_lossy().into_owned();
    let speed = "{readBps: 1000000000000, readSequentialIops: 540, readRandomIops: 540, writeBps: 1000000000000, \
                 writeSequentialIops: 540, writeRandomIops: 540}";
    let io = format!("io:\n  models:\n    - {{disk: {disk}, speed: {speed}}}\n");
    let configuration = with_io(&group, &io);
    let scene = Scene::with_config(group, &configuration).await;
    let tenant = Tenant::new(&scene, 1, Class::Guaranteed, &[THICK, &[("ioWeight", "700")]].concat()).await;
    tenant.becomes(&scene, "enforced", "").await;
    tenant.shows("io.weight", &format!("{} 700\n", number(&whole))).await;
    tenant.end(&scene).await;
    drop(scene);
    shell(&format!("wipefs -q -a {name}; blockdev --rereadpt {name}"));
}
