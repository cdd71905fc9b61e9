//! Real Kubernetes clusters: the control plane on this machine, the nodes in virtual machines.
//!
//! **Invariant.** A cluster is one folder and the processes that [`Cluster`] owns. Dropping it, or any end of the
//! test bed, ends them all; the folder of a test bed that was killed outright is removed at the next start. The folder
//! of a cluster that did not pass is kept, less its disks.

pub mod bed;
pub mod capacity;
pub mod certificates;
mod collect;
pub mod control;
pub mod kubectl;
mod machine;
mod network;
mod node;
pub mod nodeless;
pub mod objects;
mod plane;
pub mod release;
mod service;
mod setup;
mod template;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};

use self::certificates::Authority;
use self::kubectl::{Kubectl, condition};
use self::machine::Machine;
use self::network::{Network, Port};
pub use self::node::{CgroupDriver, NodeSettings};
use self::plane::ControlPlane;
pub use self::setup::Parts;
use crate::artifacts::{Archive, Binaries, Store};
use crate::progress::Progress;
use crate::scratch::{self, Scratch};
use crate::wait;

/// How long a node may take to be ready once its kubelet runs.
const READY_LIMIT: Duration = Duration::from_secs(300);

/// How long requests to a cluster that ends may take.
const UNSHARE_LIMIT: Duration = Duration::from_secs(60);

/// What the folders of clusters are called.
const FOLDER: &str = "cluster";

/// The environment variable that names the folder of the cluster that a test program is to use.
pub const FOLDER_VARIABLE: &str = "QUARRY_CLUSTER";

/// What a cluster is to be.
#[derive(Debug, Clone)]
pub struct ClusterSettings {
    /// Its nodes.
    pub nodes: Vec<NodeSettings>,
    /// The images every node has from the start.
    pub images: Vec<Archive>,
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order: nodes, control plane, network, folder.
    machines: Vec<Machine>,
    plane: ControlPlane,
    network: Network,
    folder: Scratch,
}

impl Cluster {
    /// Starts a cluster; every node is Ready when this returns.
    ///
    /// # Errors
    /// When a part does not start; everything that did is stopped.
    pub fn start(settings: &ClusterSettings, binaries: &Binaries, store: &Store, progress: &Progress) -> Result<Self> {
        let template = template::state_disk(store, &settings.images, binaries, progress)?;
        let folder = Scratch::new(FOLDER)?;
        match Running::start(folder.path(), settings, binaries, &template, progress) {
            Ok(parts) => {
                let Running { machines, plane, network } = parts;
                let cluster = Self { machines, plane, network, folder };
                let ready = || cluster.machines.iter().try_for_each(|m| cluster.wait_ready(m.name()));
                match progress.step("wait until the nodes are Ready", ready) {
                    Ok(()) => Ok(cluster),
                    Err(error) => Err(error.context(format!("the logs are in {}", cluster.stop_and_keep()?.display()))),
                }
            }
            Err(error) => {
                Err(error.context(format!("the cluster did not start; its logs are in {}", folder.keep()?.display())))
            }
        }
    }

    /// The cluster that was served on its socket, once the requests that run have ended.
    ///
    /// # Errors
    /// When they do not end.
    pub fn unshare(shared: Arc<Self>) -> Result<Self> {
        let alone = || Ok((Arc::strong_count(&shared) == 1).then_some(()));
        wait::until("end of the requests to the cluster", UNSHARE_LIMIT, Duration::from_millis(20), alone)?;
        Arc::into_inner(shared).context("the cluster is still in use")
    }

    /// Its folder: scripts `kubectl` and `helm`, logs, the control socket.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// kubectl as its administrator.
    #[must_use]
    pub fn kubectl(&self) -> Kubectl {
        Kubectl::of(self.folder())
    }

    /// The script that runs helm as its administrator.
    #[must_use]
    pub fn helm(&self) -> PathBuf {
        self.folder().join("helm")
    }

    /// A node by its name.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, name: &str) -> Result<&Machine> {
        self.machines.iter().find(|m| m.name() == name).with_context(|| {
            let names: Vec<&str> = self.nodes().collect();
            format!("no node {name:?}; nodes are {}", names.join(", "))
        })
    }

    /// The names of the nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.machines.iter().map(Machine::name)
    }

    /// The nodes' addresses in the cluster's network, in the same order.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        (1..).zip(&self.machines).map(|(index, _)| Port::of(index).address)
    }

    /// Waits until Kubernetes says that a node is ready.
    ///
    /// # Errors
    /// After two minutes, or when a part of the control plane has ended.
    pub fn wait_ready(&self, node: &str) -> Result<()> {
        self.kubectl().wait(&format!("node {node}"), "Ready", READY_LIMIT, |object| {
            self.plane.check()?;
            Ok((condition(object, "Ready") == "True").then_some(()))
        })
    }

    /// Stops the API server and starts it again.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn restart_api_server(&self) -> Result<()> {
        self.plane.restart_api_server()
    }

    /// Collects what explains a failure into `folder`: logs of all parts, consoles, objects, events, LVM's state.
    ///
    /// # Errors
    /// Only when the folder cannot be written; what cannot be had is said in its place.
    pub fn collect(&self, folder: &Path) -> Result<()> {
        collect::collect(self, folder)
    }

    /// Collects what explains a failure into the cluster's folder, ends everything, keeps the folder and gives its path.
    ///
    /// # Errors
    /// When the folder cannot be written or a part does not end.
    pub fn stop_and_keep(self) -> Result<PathBuf> {
        self.collect(&self.folder().join("collected"))?;
        let Self { machines, plane, network, folder } = self;
        drop(machines);
        plane.stop()?;
        drop(network);
        let objects = folder.path().join("etcd");
        fs::remove_dir_all(&objects).with_context(|| format!("cannot remove {}", objects.display()))?;
        folder.keep()
    }

    /// Ends everything. Nodes are switched off without ceremony: nothing of them is kept.
    ///
    /// # Errors
    /// When a part does not end.
    pub fn stop(self) -> Result<()> {
        let Self { machines, plane, network, folder } = self;
        drop(machines);
        plane.stop()?;
        drop(network);
        drop(folder);
        Ok(())
    }
}

/// What runs of a cluster.
struct Running {
    machines: Vec<Machine>,
    plane: ControlPlane,
    network: Network,
}

impl Running {
    fn start(
        folder: &Path,
        settings: &ClusterSettings,
        binaries: &Binaries,
        template: &Path,
        progress: &Progress,
    ) -> Result<Self> {
        let network = Network::create(&folder.join("network.log"))?;
        let authority = Authority::create(&folder.join("pki"))?;
        let ports = (1..)
            .take(settings.nodes.len())
            .map(|index: usize| u8::try_from(index).ok().filter(|i| *i <= network::MAX_NODES).map(Port::of))
            .collect::<Option<Vec<Port>>>()
            .with_context(|| format!("a cluster has at most {} nodes", network::MAX_NODES))?;
        let kubelet = binaries.path("kubelet")?;
        let mut prepared = Vec::new();
        for (index, (node, port)) in settings.nodes.iter().zip(&ports).enumerate() {
            network.plug(port)?;
            let place = folder.join(&node.name);
            let files = node::write_files(&place, node, &ports, index, &authority, &kubelet, &settings.images)?;
            template::copy(template, &place)?;
            prepared.push((node, port, place, files));
        }
        write_script(folder, "kubectl", &network, &binaries.path("kubectl")?)?;
        write_script(folder, "helm", &network, &binaries.path("helm")?)?;
        write_script(folder, INSIDE, &network, Path::new(""))?;

        let namespace = network.file();
        let names = settings.nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>().join(", ");
        let (plane, machines) = progress.step(&format!("start the control plane and the nodes {names}"), || {
            thread::scope(|scope| {
                let nodes: Vec<_> = prepared
                    .into_iter()
                    .map(|(node, port, place, files)| {
                        let namespace = &namespace;
                        scope.spawn(move || Machine::start(&place, node, Some((namespace, port)), files, &[], progress))
                    })
                    .collect();
                let plane = ControlPlane::start(binaries, &network, &authority, folder);
                if plane.is_ok() {
                    progress.say("  the control plane is ready");
                }
                let machines: Vec<Result<Machine>> = nodes
                    .into_iter()
                    .map(|n| n.join().unwrap_or_else(|_| Err(anyhow!("a node's thread failed"))))
                    .collect();
                Ok((plane?, machines.into_iter().collect::<Result<Vec<_>>>()?))
            })
        })?;
        Ok(Self { machines, plane, network })
    }
}

/// The folders of the clusters that this checkout's test bed runs now, and the process ids of their test beds.
///
/// # Errors
/// When the folders cannot be listed.
pub fn running() -> Result<Vec<(PathBuf, i32)>> {
    scratch::running(FOLDER)
}

/// The script that runs any program inside the cluster's network.
pub const INSIDE: &str = "inside";

/// Leaves a script that runs a program inside the cluster's network, as its administrator; its first argument where none is
/// named.
fn write_script(folder: &Path, name: &str, network: &Network, program: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let text = format!(
        "#!/bin/sh\n# {name} for this test cluster, whose API server answers in its own network namespace only.\n\
         export KUBECONFIG={folder}/admin.kubeconfig HELM_CACHE_HOME={folder}/helm-home HELM_CONFIG_HOME={folder}/helm-home \
         HELM_DATA_HOME={folder}/helm-home\nexec nsenter --net={} -- {} \"$@\"\n",
        network.file().display(),
        program.display(),
        folder = folder.display(),
    );
    if folder.display().to_string().contains([' ', '\'', '"', '$']) {
        bail!("the folder {} has a character that a script would have to quote", folder.display());
    }
    let path = folder.join(name);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).context("cannot make a script executable")
}
