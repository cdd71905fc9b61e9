use super::*;
use crate::config::io::DiskModel;
use crate::io::cost::CostModel;
use crate::io::leave::LeaveError;
use crate::volume::io::IoWish;

const POD: &str = "6c7dba21-9a4c-4c1d-9a5b-4cf7f7a3d111";
const DISK: &str = "254:0";
const VOLUME: &str = "253:300";

/// Files that stand for a kernel's: what is written to one shows in it, as the kernel shows a line that it was given. What
/// only a kernel does (it refuses, it takes and ignores) is tested on one.
struct Machine {
    root: tempfile::TempDir,
}

impl Machine {
    fn new(controllers: &str) -> Self {
        let machine = Self { root: tempfile::tempdir().unwrap() };
        machine.put("cgroup/cgroup.controllers", controllers);
        machine.put("sys/devices/vda/dev", "254:0\n");
        machine.put("sys/devices/dm/dev", "253:300\n");
        for folder in ["sys/devices/dm/slaves", "sys/dev/block", "sys/block"] {
            std::fs::create_dir_all(machine.path(folder)).unwrap();
        }
        let link = |to: &str, at: &str| std::os::unix::fs::symlink(machine.path(to), machine.path(at)).unwrap();
        link("sys/devices/vda", "sys/devices/dm/slaves/vda");
        link("sys/devices/vda", "sys/block/vda");
        link("sys/devices/vda", "sys/dev/block/254:0");
        link("sys/devices/dm", "sys/dev/block/253:300");
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn text(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).unwrap()
    }

    fn control(&self, io: Io) -> Control {
        let places = Places { cgroups: self.path("cgroup"), sys: self.path("sys") };
        let state = self.path("state");
        std::fs::create_dir_all(&state).unwrap();
        Control::open(places, io, &state).unwrap()
    }

    fn pod(&self, folder: &str) {
        self.put(&format!("cgroup/{folder}/io.max"), "");
    }
}

fn tenant(parameters: &[(&str, &str)]) -> Tenant {
    let mut wish = IoWish::default();
    for (key, value) in parameters {
        assert!(wish.set(key, value).unwrap());
    }
    Tenant {
        volume: LvName::parse("pvc-1").unwrap(),
        target: "/target".to_owned(),
        pod: Some(POD.to_owned()),
        wish,
        pool: None,
        device: Some(VOLUME.parse().unwrap()),
    }
}

fn state(control: &Control, tenants: &[Tenant]) -> State {
    control.pass(tenants, Instant::now());
    control.states().remove(&publication(&tenants[0])).unwrap()
}

fn modelled() -> Io {
    let speed = CostModel {
        read_bps: 1 << 30,
        read_sequential_iops: 500,
        read_random_iops: 500,
        write_bps: 1 << 30,
        write_sequential_iops: 500,
        write_random_iops: 500,
    };
    Io { models: vec![DiskModel { disk: "vda".to_owned(), speed }], ..Io::default() }
}

#[test]
fn nothing_is_looked_at_while_nobody_asks() {
    let machine = Machine::new("");
    let control = machine.control(Io::default());
    assert_eq!(state(&control, &[tenant(&[])]), State::NotAsked);
    assert!(!machine.path("state/io.json").exists());
}

#[test]
fn what_is_missing_is_said_and_a_cgroup_is_awaited() {
    let machine = Machine::new("cpu io memory");
    let asked = [tenant(&[("readIops", "100")])];
    let control = machine.control(Io::default());
    assert!(control.pass(&asked, Instant::now()).awaited, "the pod's cgroup is awaited");
    assert_eq!(state(&control, &asked), State::Pending(Reason::CgroupNotFound));
    let strange = Tenant { pod: None, ..asked[0].clone() };
    assert_eq!(state(&control, &[strange]), State::NotEnforced(Reason::NoPod));
    let inactive = Tenant { device: None, ..asked[0].clone() };
    assert_eq!(state(&control, &[inactive]), State::Pending(Reason::NoDevice));

    std::fs::create_dir_all(machine.path(&format!("cgroup/kubepods/pod{POD}"))).unwrap();
    assert!(matches!(state(&control, &asked), State::NotEnforced(Reason::NoIoController(_))));
    let bare = Machine::new("cpu memory");
    assert!(matches!(state(&bare.control(Io::default()), &asked), State::NotEnforced(Reason::NoIoController(_))));
}

#[test]
fn limits_are_written_with_all_four_keys_and_taken_back() {
    let machine = Machine::new("io");
    let folder = format!("kubepods/burstable/pod{POD}");
    machine.pod(&folder);
    let control = machine.control(Io::default());
    let asked = [tenant(&[("readIops", "100"), ("writeBps", "1Mi")])];
    assert_eq!(state(&control, &asked), State::Enforced);
    let file = format!("cgroup/{folder}/io.max");
    assert_eq!(machine.text(&file), format!("{VOLUME} rbps=max wbps=1048576 riops=100 wiops=max"));
    assert_eq!(control.counts().repaired, 0);

    // Somebody else's hand is noticed and counted.
    machine.put(&file, &format!("{VOLUME} rbps=max wbps=max riops=max wiops=max"));
    assert_eq!(state(&control, &asked), State::Enforced);
    assert_eq!((control.counts().repaired, machine.text(&file).contains("riops=100")), (1, true));

    // A new driver knows by its notes what the last one set.
    let control = machine.control(Io::default());
    control.pass(&[], Instant::now());
    assert!(machine.text(&file).starts_with(&format!("{VOLUME} rbps=max wbps=max riops=max wiops=max")));
}

#[test]
fn a_weight_needs_a_model_and_leaves_what_is_anothers() {
    let machine = Machine::new("io");
    let folder = format!("kubepods/pod{POD}");
    machine.pod(&folder);
    machine.put(&format!("cgroup/{folder}/io.weight"), "");
    let asked = [tenant(&[("ioWeight", "800")])];
    assert_eq!(
        state(&machine.control(Io::default()), &asked),
        State::NotEnforced(Reason::Uncalibrated { disk: "vda".to_owned(), why: None })
    );
    assert_eq!(state(&machine.control(modelled()), &asked), State::NotEnforced(Reason::NoIocost));

    machine.put("cgroup/io.cost.qos", &format!("{DISK} enable=1 ctrl=auto rpct=0.00"));
    machine.put("cgroup/io.cost.model", "");
    assert!(matches!(
        state(&machine.control(modelled()), &asked),
        State::NotEnforced(Reason::ForeignQosSettings(what)) if what.contains("ctrl=auto")
    ));
    assert_eq!(machine.text(&format!("cgroup/{folder}/io.weight")), "");

    machine.put("cgroup/io.cost.qos", "");
    let control = machine.control(modelled());
    assert_eq!(state(&control, &asked), State::Enforced);
    assert!(machine.text("cgroup/io.cost.model").contains("rrandiops=500"));
    assert_eq!(machine.text(&format!("cgroup/{folder}/io.weight")), format!("{DISK} 800"));
}

#[test]
fn a_pod_in_a_class_has_its_share_only_where_the_class_has_it_too() {
    let machine = Machine::new("io");
    let folder = format!("kubepods/burstable/pod{POD}");
    machine.pod(&folder);
    for file in ["io.cost.qos", "io.cost.model", "kubepods/burstable/io.weight", &format!("{folder}/io.weight")] {
        machine.put(&format!("cgroup/{file}"), "");
    }
    machine.put(&format!("cgroup/{folder}/io.stat"), &format!("{DISK} rbytes=4096 wbytes=0 rios=1 wios=0\n"));
    let asked = [tenant(&[("ioWeight", "800")])];
    let control = machine.control(modelled());
    assert_eq!(state(&control, &asked), State::Enforced);
    assert_eq!(machine.text("cgroup/kubepods/burstable/io.weight"), format!("{DISK} 800"));

    // Idle for a while: the class keeps what it has.
    control.pass(&asked, Instant::now() + Duration::from_secs(60));
    assert_eq!(machine.text("cgroup/kubepods/burstable/io.weight"), format!("{DISK} 800"));

    let left_alone = machine.control(Io { qos_classes: false, ..modelled() });
    assert_eq!(state(&left_alone, &asked), State::NotEnforced(Reason::ClassNotManaged));
}

#[test]
fn a_driver_that_goes_for_good_puts_everything_back_and_sets_nothing_more() {
    let machine = Machine::new("io");
    let folder = format!("kubepods/pod{POD}");
    machine.pod(&folder);
    let control = machine.control(Io::default());
    let asked = [tenant(&[("readIops", "100")])];
    assert_eq!(state(&control, &asked), State::Enforced);
    assert_eq!(control.leave(), Ok(1));
    machine.put("cgroup/io.cost.qos", "");
    machine.put("cgroup/io.cost.model", "");
    let file = format!("cgroup/{folder}/io.max");
    let nothing = format!("{VOLUME} rbps=max wbps=max riops=max wiops=max");
    assert_eq!(machine.text(&file), nothing);
    assert_eq!(state(&control, &asked), State::NotEnforced(Reason::PutBack));
    assert_eq!(machine.text(&file), nothing);
    assert_eq!(control.leave(), Ok(0));
    let disk = Disk { number: DISK.parse().unwrap(), name: "vda".to_owned() };
    let refused = control.begin_calibration(&disk).unwrap_err().to_string();
    assert!(refused.starts_with("PutBack: "), "{refused}");
    // Another one, or the same one anew, is there to stay.
    assert_eq!(state(&machine.control(Io::default()), &asked), State::Enforced);

    let control = machine.control(Io::default());
    control.begin_calibration(&disk).unwrap();
    assert_eq!(control.leave(), Err(LeaveError::Calibrating("vda".to_owned())));
    assert_eq!(state(&control, &asked), State::Enforced);
}

/// The same tenants for ever.
struct Steady(Vec<Tenant>);

#[tonic::async_trait]
impl Tenants for Steady {
    async fn tenants(&self) -> Vec<Tenant> {
        self.0.clone()
    }

    async fn changed(&self) {
        std::future::pending().await
    }
}

#[tokio::test]
async fn a_cgroup_that_appears_is_seen_without_the_clock() {
    let machine = Machine::new("io");
    std::fs::create_dir_all(machine.path("cgroup/kubepods/burstable")).unwrap();
    let asked = tenant(&[("readIops", "100")]);
    let mut control = machine.control(Io::default());
    control.period = Duration::from_secs(3600);
    let control = Arc::new(control);
    let mut news = control.news();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(Arc::clone(&control).run(Arc::new(Steady(vec![asked.clone()])), shutdown.clone()));
    let becomes = async |state: State| {
        let mut news = control.news();
        while control.states().get(&publication(&asked)) != Some(&state) {
            news.changed().await.unwrap();
        }
    };
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, news.changed()).await.expect("a first pass").unwrap();
    becomes(State::Pending(Reason::CgroupNotFound)).await;

    // Only a kernel makes a cgroup's folder and its files at once: here it may take some attempts.
    let folder = format!("kubepods/burstable/pod{POD}");
    let made = async {
        loop {
            machine.pod(&folder);
            if tokio::time::timeout(Duration::from_millis(500), becomes(State::Enforced)).await.is_ok() {
                return;
            }
            std::fs::remove_dir_all(machine.path(&format!("cgroup/{folder}"))).unwrap();
        }
    };
    tokio::time::timeout(limit, made).await.expect("the pod's limits without the clock");
    assert!(machine.text(&format!("cgroup/{folder}/io.max")).contains("riops=100"));
    shutdown.cancel();
    running.await.unwrap();
}
