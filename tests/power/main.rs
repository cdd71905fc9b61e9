//! The power suite: runs in a virtual machine, as root (`testbed suite power`).
//!
//! Every write and flush to the disk with the volumes and to the disk with the driver's state is recorded while the
//! driver works. Then both disks are made again as they were on stable storage at one moment, and a driver is started
//! on them as after a reboot: for the moment of every reply, and for a sample of the moments in between.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a step of a test that fails is a panic, in helpers too")]

mod client;
mod cuts;
mod history;
mod layers;
mod verify;
mod workload;

use quarry_tests::in_vm::{DriverSpec, DriverUnderTest, lvm};

use cuts::{Random, cuts};
use history::Recorder;
use layers::{Layer, shell};
use verify::Verifier;

/// The volume group.
const GROUP: &str = "power";
/// Where the driver's state is mounted.
const STATE: &str = "/run/power-state";
/// How many power cuts are looked at; replies come first.
const CUTS: usize = 26;

fn spec() -> DriverSpec {
    let mut spec = DriverSpec::with_config(&format!(
        "deviceClasses:\n  - name: default\n    volumeGroup: {GROUP}\n    poolPercent: 40\n    \
         devices: [/dev/mapper/power-pv]\ntimeouts: {{answerSeconds: 300, nodeAnswerSeconds: 300}}\n"
    ));
    spec.state_dir = Some(STATE.into());
    spec
}

/// The state's disk: no commit by a timer may make durable what the driver did not.
fn mount_state() {
    shell(&format!("mkdir -p {STATE} && mount -o commit=86400 /dev/mapper/power-state {STATE}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_every_power_cut_and_what_was_not_can_be_repeated() {
    let seed = std::env::var("QUARRY_POWER_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| {
        u64::from(std::process::id()) << 32 | u64::from(std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos())
    });
    println!("power: QUARRY_POWER_SEED={seed}");
    let (pv, state) = (Layer::find("pv"), Layer::find("state"));
    for layer in [&pv, &state] {
        layer.fill();
        layer.record();
    }
    let arguments = ["--devices", "/dev/mapper/power-pv", "--metadatasize", "4m", GROUP, "/dev/mapper/power-pv"];
    lvm("vgcreate", &arguments).unwrap().success().unwrap();
    shell("mkfs.ext4 -q -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 /dev/mapper/power-state");
    // The group is older than the power cuts.
    shell("sync /dev/mapper/power-pv");
    mount_state();

    let mut driver = DriverUnderTest::start(spec()).unwrap();
    let recorder = Recorder::new(&driver, &pv, &state);
    let history = workload::run(&driver, recorder).await;
    driver.kill().unwrap();
    layers::tear_down();

    let (mut pv, mut state) = (pv.replay(), state.replay());
    let cuts = cuts(&history, pv.log(), state.log(), CUTS, &mut Random::new(seed));
    println!("power: {} replies, {} power cuts", history.replies().count(), cuts.len());
    for (number, cut) in cuts.iter().enumerate() {
        println!("power: cut {}: {cut}", number + 1);
        pv.bring_up(&cut.pv);
        state.bring_up(&cut.state);
        mount_state();
        Verifier::new(&mut driver, &history, cut).await.verify().await;
        driver.kill().unwrap();
        layers::tear_down();
    }
}
