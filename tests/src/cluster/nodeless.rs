//! Kubernetes' API without nodes: etcd and API servers on this machine, for nodes that are simulated.
//!
//! **Invariant.** As for a whole cluster: RBAC, node authorisation and admission are on, and it is one folder and the
//! processes that its handle owns.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::certificates::Authority;
use super::kubectl::Kubectl;
use super::network::{API_PORT, Network};
use super::plane::{ControlPlane, Setup, address};
use super::write_script;
use crate::artifacts::{Binaries, Store};
use crate::command::Command;
use crate::process;
use crate::progress::Progress;
use crate::scratch::Scratch;

/// Running API servers.
#[derive(Debug)]
pub struct Nodeless {
    // Dropped in this order: the processes, the network, the folder.
    plane: ControlPlane,
    network: Network,
    folder: Scratch,
    api_servers: u16,
}

/// What a program inside the network needs to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Access {
    /// The folder: scripts `kubectl` and `helm`, `admin.kubeconfig`, logs.
    pub folder: PathBuf,
    /// The certificate that the API servers' own are signed with, PEM.
    pub authority: PathBuf,
    /// The API servers' addresses, all of the same etcd.
    pub servers: Vec<String>,
    /// Process ids by names: `etcd`, `apiserver`, `apiserver-6444` ...
    pub processes: Vec<(String, i32)>,
}

impl Nodeless {
    /// Builds what is missing and starts so many API servers of one etcd; they are ready when this returns.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn start(name: &str, api_servers: u16, progress: &Progress) -> Result<Self> {
        let store = Store::open()?;
        let binaries = Binaries::build(&store, &["kubernetes", "helm"], progress)?;
        let folder = Scratch::new(name)?;
        let network = Network::create(&folder.path().join("network.log"))?;
        // Each client holds several connections, and all come from one address.
        let ports = Command::shell("echo 10000 65000 > /proc/sys/net/ipv4/ip_local_port_range");
        process::run(&network.inside(ports), Duration::from_secs(10))?.success()?;
        let authority = Authority::create(&folder.path().join("pki"))?;
        write_script(folder.path(), "kubectl", &network, &binaries.path("kubectl")?)?;
        write_script(folder.path(), "helm", &network, &binaries.path("helm")?)?;
        let setup = Setup { binaries: &binaries, network: &network, authority: &authority, folder: folder.path() };
        let what = format!("start etcd and {api_servers} API server(s)");
        let (plane, _) = progress.step(&what, || ControlPlane::start_api(&setup, api_servers))?;
        Ok(Self { plane, network, folder, api_servers })
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// kubectl as its administrator.
    #[must_use]
    pub fn kubectl(&self) -> Kubectl {
        Kubectl::of(self.folder())
    }

    /// What a program started by [`Self::inside`] needs to know.
    #[must_use]
    pub fn access(&self) -> Access {
        Access {
            folder: self.folder().to_owned(),
            authority: self.folder().join("pki/ca.crt"),
            servers: (API_PORT..).take(self.api_servers.into()).map(address).collect(),
            processes: self.plane.processes(),
        }
    }

    /// A command as it runs inside the network, where the API servers answer.
    #[must_use]
    pub fn inside(&self, command: Command) -> Command {
        self.network.inside(command)
    }

    /// Ends everything; the logs stay if `keep`.
    ///
    /// # Errors
    /// When a part does not end.
    pub fn stop(self, keep: bool) -> Result<Option<PathBuf>> {
        self.plane.stop()?;
        drop(self.network);
        if !keep {
            return Ok(None);
        }
        std::fs::remove_dir_all(self.folder.path().join("etcd"))?;
        self.folder.keep().map(Some)
    }
}
