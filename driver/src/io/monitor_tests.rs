use super::*;
use crate::volume::LvName;

/// Files that stand for a kernel's counters.
struct Machine {
    root: tempfile::TempDir,
    monitor: Monitor,
    begin: Instant,
    seconds: f64,
    queued_ms: f64,
    charged_us: f64,
    flushes: f64,
    pods: [f64; 2],
}

fn disk() -> Disk {
    Disk { number: "254:0".parse().unwrap(), name: "vda".to_owned() }
}

impl Machine {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for folder in ["cgroup/pod0", "cgroup/pod1", "sys/block/vda"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        Self {
            root,
            monitor: Monitor::default(),
            begin: Instant::now(),
            seconds: 0.0,
            queued_ms: 0.0,
            charged_us: 0.0,
            flushes: 0.0,
            pods: [0.0; 2],
        }
    }

    fn users(&self, pool: Option<&str>) -> Vec<User> {
        let user = |number: usize| User {
            publication: (LvName::parse(&format!("pvc-{number}")).unwrap(), "/target".to_owned()),
            cgroup: self.root.path().join(format!("cgroup/pod{number}")),
            pool: pool.map(str::to_owned),
            disks: [disk().number].into(),
        };
        [0, 1].into_iter().map(user).collect()
    }

    /// Two seconds with so many operations in the disk's queue, so much of the time charged, and so many writes a second
    /// of each pod.
    fn pass(&mut self, queue: f64, usage: f64, flushes: f64, writes: [f64; 2], pool: Option<&str>) {
        self.seconds += 2.0;
        self.queued_ms += queue * 2000.0;
        self.charged_us += usage * 2e6;
        self.flushes += flushes * 2.0;
        let put = |path: &str, text: String| fs::write(self.root.path().join(path), text).unwrap();
        put("sys/block/vda/stat", format!("1 0 8 0 1 0 8 0 0 0 {} 0 0 0 0 {} 0", self.queued_ms, self.flushes));
        put("cgroup/io.stat", format!("254:0 rbytes=1 cost.usage={}\n", self.charged_us));
        for (number, (pod, writes)) in self.pods.iter_mut().zip(writes).enumerate() {
            *pod += writes * 2.0;
            put(&format!("cgroup/pod{number}/io.stat"), format!("254:0 wios={pod} wbytes=1\n"));
        }
        let places = Places { cgroups: self.root.path().join("cgroup"), sys: self.root.path().join("sys") };
        let now = self.begin + Duration::from_secs_f64(self.seconds);
        let users = self.users(pool);
        self.monitor.look(&places, &[(disk(), 0.4)], &users, now);
    }

    fn behind(&self) -> bool {
        self.monitor.of_disk(&disk()).is_some()
    }
}

#[test]
fn a_deep_queue_and_little_charged_for_five_seconds_is_a_disk_behind_its_model() {
    let mut machine = Machine::new();
    for _ in 0..3 {
        machine.pass(60.0, 0.5, 0.0, [100.0, 100.0], None);
    }
    assert!(!machine.behind(), "not yet sure");
    machine.pass(60.0, 0.5, 0.0, [100.0, 100.0], None);
    assert!(machine.behind());
    let told = machine.monitor.of_disk(&disk()).unwrap().to_string();
    assert!(told.contains("vda") && told.contains("50 %"), "{told}");
    // It is remembered for a while after the disk was last seen so.
    for _ in 0..14 {
        machine.pass(0.3, 1.0, 0.0, [100.0, 400.0], None);
    }
    assert!(machine.behind());
    for _ in 0..2 {
        machine.pass(0.3, 1.0, 0.0, [100.0, 400.0], None);
    }
    assert!(!machine.behind());
}

#[test]
fn neither_a_deep_queue_nor_little_charged_alone_means_anything() {
    for (queue, usage) in [(60.0, 1.0), (0.9, 0.5), (0.2, 0.1), (7.0, 0.5)] {
        let mut machine = Machine::new();
        for _ in 0..10 {
            machine.pass(queue, usage, 0.0, [100.0, 400.0], None);
        }
        assert!(!machine.behind(), "{queue} {usage}");
    }
}

#[test]
fn writers_that_sync_in_one_pool_are_told_of() {
    let publication = |machine: &Machine| machine.users(None)[0].publication.clone();
    let cases = [
        // Flushes, writes of both, their pool, and whether it is told.
        (50.0, [100.0, 100.0], Some("vg/pool"), true),
        (0.5, [100.0, 100.0], Some("vg/pool"), false),
        (50.0, [100.0, 0.5], Some("vg/pool"), false),
        (50.0, [100.0, 100.0], None, false),
    ];
    for (flushes, writes, pool, told) in cases {
        let mut machine = Machine::new();
        for _ in 0..3 {
            machine.pass(0.5, 1.0, flushes, writes, pool);
        }
        let reason = machine.monitor.of_publication(&publication(&machine));
        assert_eq!(
            reason,
            told.then(|| Reason::SyncsShareThinPool("vg/pool".to_owned())),
            "{flushes} {writes:?} {pool:?}"
        );
    }
}
