//! On a node of a real cluster: from LVM's change to the changed object, for the driver's own changes and for other
//! programs', beside csi-provisioner's own publishing for the same driver.
//!
//! It runs on the node, so that one clock times both ends. csi-provisioner publishes into a namespace of its own, where
//! the capacity-reporter, which has swept at its start, leaves its objects alone.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::CSIStorageCapacity;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use quarry_proto::csi::v1 as csi;
use quarry_proto::csi::v1::controller_client::ControllerClient;
use quarry_proto::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use quarry_tests::command::Command;
use quarry_tests::process::{self, Child, Log};
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tonic::transport::{Channel, Endpoint};

use crate::results::Percentiles;
use crate::scrape::Scrape;
use crate::world::Observer;

/// The driver's socket on a node.
const SOCKET: &str = "/var/lib/kubelet/plugins/lvm.quarry.storage/csi.sock";
const REPORTER: &str = "quarry-capacity-reporter";
/// Class, and what the driver is told for it.
const CLASSES: [(&str, &str); 2] = [("quarry-thin", "thin"), ("quarry-thick", "thick")];
const BYTES: i64 = 32 << 20;
/// How long a change may take to be published by the capacity-reporter, and by csi-provisioner, which looks once a minute.
const SOON: Duration = Duration::from_secs(30);
const LATE: Duration = Duration::from_secs(100);
/// Volumes made at once to count requests.
const VOLUMES: usize = 100;
/// Of other programs' changes that csi-provisioner finds once a minute.
const POLLS: usize = 4;
/// The namespace of claims, and of csi-provisioner's objects.
const NAMESPACE: &str = "bench";

/// What is measured, and with what.
#[derive(Debug, Serialize, Deserialize)]
pub struct Orders {
    /// The administrator's.
    pub kubeconfig: PathBuf,
    /// The node that this runs on.
    pub node: String,
    /// csi-provisioner's program.
    pub provisioner: PathBuf,
    /// How often each change is measured.
    pub samples: usize,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// The node's machine.
    pub machine: String,
    /// From change to object, by what and who.
    pub delays: Vec<Delay>,
    /// Requests for capacity objects per 100 volumes, by what and verb.
    pub requests: BTreeMap<String, BTreeMap<String, f64>>,
}

/// How long one kind of change took.
#[derive(Debug, Serialize)]
pub struct Delay {
    /// What changed, and who published it.
    pub what: String,
    /// From the end of the change: the driver's reply, the end of the command, the volume's object. 0 where it was
    /// published before.
    pub from_end: Percentiles,
    /// From its begin.
    pub from_begin: Percentiles,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "One node of a cluster: virtual machine, {}", self.machine)?;
        writeln!(
            f,
            "From a change to the changed object as a watcher on the node sees it, ms; from the change's end (the driver's \
             reply, the command's\nend, the volume's object), 0 where it was published before that, and from its begin."
        )?;
        let head = |what| format!("{what:>9} {:>8} {:>8}", "p99", "max");
        writeln!(f, "{:<44} {:>4} {}   {}", "", "n", head("end: p50"), head("beg: p50"))?;
        for delay in &self.delays {
            writeln!(f, "{delay}")?;
        }
        writeln!(f, "Requests for capacity objects (APPLY: capacity-reporter; POST, PUT: csi-provisioner)")?;
        for (what, requests) in &self.requests {
            let all: Vec<String> = requests.iter().map(|(verb, count)| format!("{verb} {count}")).collect();
            writeln!(f, "  {what:<42} {}", all.join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Delay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, from_end, from_begin } = self;
        let row = |of: &Percentiles| format!("{:>9.0} {:>8.0} {:>8.0}", of.p50_ms, of.p99_ms, of.max_ms);
        write!(f, "{what:<44} {:>4} {}   {}", from_end.samples, row(from_end), row(from_begin))
    }
}

#[derive(Default)]
struct Samples {
    from_end: Vec<Duration>,
    from_begin: Vec<Duration>,
}

impl Samples {
    fn add(&mut self, begin: Instant, end: Instant, told: Instant) {
        self.from_begin.push(told.saturating_duration_since(begin));
        self.from_end.push(told.saturating_duration_since(end));
    }

    fn named(self, what: String) -> Delay {
        Delay { what, from_end: Percentiles::of(&self.from_end), from_begin: Percentiles::of(&self.from_begin) }
    }
}

struct Bench {
    orders: Orders,
    client: Client,
    observer: Observer,
    provisioner: String,
    delays: Vec<Delay>,
    requests: BTreeMap<String, BTreeMap<String, f64>>,
}

/// Who publishes an object.
fn manager(object: &CSIStorageCapacity) -> String {
    let labels = object.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get("csi.storage.k8s.io/managed-by")).cloned().unwrap_or_default()
}

/// Measures everything on this node.
///
/// # Errors
/// What kept it from measuring.
pub async fn run(orders: Orders) -> Result<Figures> {
    let kubeconfig = Kubeconfig::read_from(&orders.kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let client = Client::try_from(config)?;
    let namespace = serde_json::from_value(json!({"metadata": {"name": NAMESPACE}}))?;
    Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await?;
    let observer = Observer::start(client.clone(), manager).await?;
    let provisioner = format!("external-provisioner-{}", orders.node);
    let mut bench = Bench { orders, client, observer, provisioner, delays: Vec::new(), requests: BTreeMap::new() };
    let mut driver = ControllerClient::new(connect(Path::new(SOCKET)).await?);
    // The first thin volume makes the pool, which is no usual change.
    create(&mut driver, "bench-first", "thin").await?;
    for (class, provisioning) in CLASSES {
        bench.own(&mut driver, class, provisioning).await?;
    }
    bench.foreign(bench.orders.samples, false).await?;
    let publisher = bench.start_provisioner().await?;
    bench.claims().await?;
    bench.hundred().await?;
    bench.foreign(POLLS, true).await?;
    drop(publisher);
    delete(&mut driver, &bench.orders.node, "bench-first").await?;
    Ok(Figures { machine: quarry_tests::in_vm::machine()?, delays: bench.delays, requests: bench.requests })
}

async fn connect(socket: &Path) -> Result<Channel> {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_: http::Uri| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await.context("no driver")
}

async fn create(driver: &mut ControllerClient<Channel>, name: &str, provisioning: &str) -> Result<()> {
    let request = csi::CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(csi::CapacityRange { required_bytes: BYTES, limit_bytes: 0 }),
        volume_capabilities: vec![csi::VolumeCapability {
            access_mode: Some(AccessMode { mode: 7 }),
            access_type: Some(AccessType::Mount(MountVolume::default())),
        }],
        parameters: HashMap::from([("provisioning".to_owned(), provisioning.to_owned())]),
        ..Default::default()
    };
    driver.create_volume(request).await.with_context(|| format!("cannot make {name}")).map(drop)
}

async fn delete(driver: &mut ControllerClient<Channel>, node: &str, name: &str) -> Result<()> {
    let request = csi::DeleteVolumeRequest { volume_id: format!("{node}/{name}"), ..Default::default() };
    driver.delete_volume(request).await.with_context(|| format!("cannot delete {name}")).map(drop)
}

async fn pause() {
    // Longer than the reporter's own pause between two rounds.
    tokio::time::sleep(Duration::from_millis(400)).await;
}

impl Bench {
    /// Told at once as well: what was measured is not lost with what is measured after it.
    fn keep(&mut self, delay: Delay) {
        println!("{delay}");
        self.delays.push(delay);
    }

    /// Volumes made and deleted over the driver's socket.
    async fn own(&mut self, driver: &mut ControllerClient<Channel>, class: &str, provisioning: &str) -> Result<()> {
        let (mut made, mut deleted) = (Samples::default(), Samples::default());
        for index in 0..self.orders.samples {
            let name = format!("bench-{provisioning}-{index}");
            let before = self.observer.figure(REPORTER, class);
            let begin = Instant::now();
            create(driver, &name, provisioning).await?;
            let end = Instant::now();
            made.add(begin, end, self.observer.changed(REPORTER, class, before.as_deref(), SOON).await?);
            pause().await;
            let before = self.observer.figure(REPORTER, class);
            let begin = Instant::now();
            delete(driver, &self.orders.node, &name).await?;
            let end = Instant::now();
            deleted.add(begin, end, self.observer.changed(REPORTER, class, before.as_deref(), SOON).await?);
            pause().await;
        }
        self.keep(made.named(format!("CreateVolume, {provisioning}; capacity-reporter")));
        self.keep(deleted.named(format!("DeleteVolume, {provisioning}; capacity-reporter")));
        Ok(())
    }

    /// Logical volumes made and removed by hand. With csi-provisioner, thick ones only.
    async fn foreign(&mut self, samples: usize, provisioner: bool) -> Result<()> {
        let classes = if provisioner { &CLASSES[1..] } else { &CLASSES[..] };
        let publisher = self.provisioner.clone();
        let (who, limit) = if provisioner { (publisher.as_str(), LATE) } else { (REPORTER, SOON) };
        for (class, provisioning) in classes {
            let thin = ["lvcreate", "--yes", "--activate", "n", "--virtualsize", "32m", "--thinpool", "quarry-pool"];
            let thick = ["lvcreate", "--yes", "--activate", "n", "--zero", "n", "--size", "32m"];
            let make = Command::new("lvm").args(if *provisioning == "thin" { &thin[..] } else { &thick[..] });
            let make = make.args(["--name", "of-an-admin", "quarry"]);
            let remove = Command::new("lvm").args(["lvremove", "--yes", "quarry/of-an-admin"]);
            let (mut made, mut removed) = (Samples::default(), Samples::default());
            for index in 0..samples {
                if provisioner {
                    // At any moment of its minute.
                    tokio::time::sleep(Duration::from_secs(7 * u64::try_from(index)?)).await;
                }
                for (command, samples) in [(&make, &mut made), (&remove, &mut removed)] {
                    let before = self.observer.figure(who, class);
                    let begin = Instant::now();
                    lvm(command)?;
                    let end = Instant::now();
                    samples.add(begin, end, self.observer.changed(who, class, before.as_deref(), limit).await?);
                    pause().await;
                }
            }
            let who = if provisioner { "csi-provisioner" } else { "capacity-reporter" };
            self.keep(made.named(format!("lvcreate by hand, {provisioning}; {who}")));
            self.keep(removed.named(format!("lvremove by hand, {provisioning}; {who}")));
        }
        Ok(())
    }

    /// csi-provisioner as it publishes capacity, with its usual settings; the chart's, which does not, is stopped, so that
    /// this one makes the volumes.
    async fn start_provisioner(&self) -> Result<Child> {
        stop_others("csi-provisioner")?;
        let command = Command::new(&self.orders.provisioner)
            .args([
                "--enable-capacity",
                "--capacity-ownerref-level=-1",
                "--node-deployment",
                "--node-deployment-immediate-binding=false",
                "--strict-topology",
                "--immediate-topology=false",
                "--timeout=60s",
                "--kube-api-qps=20",
                "--kube-api-burst=40",
            ])
            .arg(format!("--csi-address={SOCKET}"))
            .arg(format!("--kubeconfig={}", self.orders.kubeconfig.display()))
            .env("NAMESPACE", NAMESPACE)
            .env("NODE_NAME", &self.orders.node);
        let child = process::start(&command, Log::File(Path::new("/run/csi-provisioner.log")))?;
        for (class, _) in CLASSES {
            let told = self.observer.changed(&self.provisioner, class, None, LATE).await;
            told.with_context(|| std::fs::read_to_string("/run/csi-provisioner.log").unwrap_or_default())?;
        }
        // It makes and removes a second object at its start.
        tokio::time::sleep(Duration::from_secs(10)).await;
        Ok(child)
    }

    async fn claim(&self, name: &str, class: &str) -> Result<String> {
        let claim = json!({
            "metadata": {"name": name, "annotations": {"volume.kubernetes.io/selected-node": self.orders.node}},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": class,
                "resources": {"requests": {"storage": BYTES.to_string()}},
            },
        });
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), NAMESPACE);
        let claim = claims.create(&PostParams::default(), &serde_json::from_value(claim)?).await?;
        Ok(format!("pvc-{}", claim.metadata.uid.context("a claim without a UID")?))
    }

    /// Volumes of claims, which csi-provisioner makes: both publishers hear of these as their own.
    async fn claims(&mut self) -> Result<()> {
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let (mut reporter, mut provisioner) = (Samples::default(), Samples::default());
        for index in 0..self.orders.samples {
            let (class, _) = CLASSES[index % CLASSES.len()];
            let (ours, theirs) =
                (self.observer.figure(REPORTER, class), self.observer.figure(&self.provisioner, class));
            let begin = Instant::now();
            let volume = self.claim(&format!("one-{index}"), class).await?;
            while volumes.get_opt(&volume).await?.is_none() {
                ensure!(begin.elapsed() < LATE, "{volume} is not made");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let end = Instant::now();
            reporter.add(begin, end, self.observer.changed(REPORTER, class, ours.as_deref(), SOON).await?);
            provisioner.add(
                begin,
                end,
                self.observer.changed(&self.provisioner, class, theirs.as_deref(), LATE).await?,
            );
            pause().await;
        }
        self.keep(reporter.named("a claim's volume; capacity-reporter".to_owned()));
        self.keep(provisioner.named("a claim's volume; csi-provisioner".to_owned()));
        self.remove_claims().await
    }

    async fn remove_claims(&self) -> Result<()> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), NAMESPACE);
        claims.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
        self.volumes(0).await?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        Ok(())
    }

    async fn volumes(&self, count: usize) -> Result<()> {
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let begin = Instant::now();
        loop {
            let there = volumes.list_metadata(&ListParams::default()).await?.items.len();
            if there == count {
                return Ok(());
            }
            ensure!(begin.elapsed() < Duration::from_secs(600), "{there} volumes instead of {count}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// A hundred volumes at once, and their end.
    async fn hundred(&mut self) -> Result<()> {
        let servers = [self.client.clone()];
        let before = Scrape::of(&servers).await?;
        for index in 0..VOLUMES {
            self.claim(&format!("many-{index}"), CLASSES[index % CLASSES.len()].0).await?;
        }
        self.volumes(VOLUMES).await?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let between = Scrape::of(&servers).await?;
        self.remove_claims().await?;
        let after = Scrape::of(&servers).await?;
        for (what, from, to) in [("made", &before, &between), ("deleted", &between, &after)] {
            let all = to.since(from).requests.into_iter();
            let capacity =
                all.filter_map(|(what, count)| Some((what.strip_suffix(" csistoragecapacities")?.to_owned(), count)));
            self.requests.insert(format!("{VOLUMES} volumes {what}"), capacity.collect());
        }
        Ok(())
    }
}

fn lvm(command: &Command) -> Result<()> {
    process::run(command, Duration::from_secs(120))?.success().map(drop)
}

/// Holds all processes of this name. They go on with the machine.
fn stop_others(name: &str) -> Result<()> {
    let mut held = 0;
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let comm = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if comm.trim_end() == name
            && let Some(pid) = Pid::from_raw(pid)
        {
            rustix::process::kill_process(pid, Signal::STOP)?;
            held += 1;
        }
    }
    ensure!(held > 0, "no {name} runs here");
    Ok(())
}
