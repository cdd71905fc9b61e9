//! A command of LVM is cut off between its metadata and the kernel's thin pool, and then the node reboots: nothing is active,
//! and LVM's own refresh tells a pool only what it missed while one of its volumes is.

use quarry_tests::in_vm::lvm;

use crate::scene::{MIB, Scene, THIN, block, shell};

const CREATE: &str = "lvcreate -y -V 32m --thinpool quarry-pool -n theirs";
const REMOVE: &str = "lvremove -y";

#[tokio::test]
async fn a_pool_learns_after_a_reboot_of_the_volume_that_it_was_to_make() {
    let mut scene = with_a_pool("unmade").await;
    let vg = scene.group.name().to_owned();
    let create = format!("{CREATE} {vg}");
    let call = rehearse(&create);
    rehearse(&format!("{REMOVE} {vg}/theirs"));
    dies(&create, call);
    reboots(&mut scene).await;

    lvm("lvchange", &["-a", "y", &format!("{vg}/theirs")]).unwrap().success().unwrap();
    scene.create(block("pvc-2", 32 * MIB, THIN)).await.unwrap();
    assert_eq!(scene.volumes(), ["pvc-1", "pvc-2"]);
}

#[tokio::test]
async fn a_pool_learns_after_a_reboot_of_the_volume_that_it_was_to_remove() {
    let mut scene = with_a_pool("unsaid").await;
    let vg = scene.group.name().to_owned();
    let (create, remove) = (format!("{CREATE} {vg}"), format!("{REMOVE} {vg}/theirs"));
    rehearse(&create);
    let call = rehearse(&remove);
    rehearse(&create);
    dies(&remove, call);
    reboots(&mut scene).await;

    scene.create(block("pvc-2", 32 * MIB, THIN)).await.unwrap();
    assert_eq!(scene.volumes(), ["pvc-1", "pvc-2"]);
}

/// With a volume of the driver's; the driver does not run.
async fn with_a_pool(test: &str) -> Scene {
    let mut scene = Scene::new(test).await;
    scene.create(block("pvc-1", 32 * MIB, THIN)).await.unwrap();
    scene.driver.stop().unwrap();
    scene
}

/// Runs an lvm command to its end. Tells which of its ioctl(2) calls is the first by which it told the pool something.
fn rehearse(command: &str) -> usize {
    shell(&format!("LVM_SUPPRESS_FD_WARNINGS=1 strace -o /run/rehearsal -e trace=ioctl lvm {command} 2>&1"));
    let trace = std::fs::read_to_string("/run/rehearsal").unwrap();
    let told = trace.lines().position(|line| line.contains("DM_TARGET_MSG"));
    1 + told.unwrap_or_else(|| panic!("it told the pool nothing:\n{trace}"))
}

/// The same command in the same state dies there.
fn dies(command: &str, call: usize) {
    let inject = format!("inject=ioctl:signal=KILL:when={call}");
    shell(&format!("! strace -o /run/death -e trace=ioctl -e {inject} lvm {command} >/dev/null 2>&1"));
}

/// Nothing is active, the driver starts, and the pool is at LVM's transaction.
async fn reboots(scene: &mut Scene) {
    let vg = scene.group.name().to_owned();
    let rows = scene.group.lvs("lv_name,transaction_id").unwrap();
    let pool = rows.into_iter().find(|row| row["lv_name"] == "quarry-pool").unwrap();
    let expected = pool["transaction_id"].clone();
    let kernel = || {
        let status = shell(&format!("dmsetup status {}-quarry--pool-tpool", vg.replace('-', "--")));
        status.split(' ').nth(3).unwrap().to_owned()
    };
    assert_ne!(kernel(), expected, "the command did not die between the two");
    lvm("vgchange", &["-a", "n", &vg]).unwrap().success().unwrap();
    scene.restart().await;
    assert_eq!(kernel(), expected);
    assert!(scene.capacity(THIN).await > 0);
}
