//! The network of one cluster: a namespace, a bridge in it, and a tap device per node.
//!
//! The API server runs on this machine inside the namespace, the nodes hang on its bridge; so nodes reach the API
//! server and the API server reaches the kubelets (logs, exec), and nothing of it touches the machine's own network.
//!
//! **Invariant.** The namespace lives as long as a process in it: nothing is left in `/run/netns`, and when the test
//! bed dies, by whatever signal, its children die and the namespace with its devices goes with them.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::service::Service;
use crate::command::Command;
use crate::{process, wait};

/// The address of the bridge: the API server listens here, nodes route through it.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// Where the API server answers.
pub const API_PORT: u16 = 6443;
/// The cluster address of the service `kubernetes`, the first of [`SERVICE_RANGE`].
pub const SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// Where service addresses come from.
pub const SERVICE_RANGE: &str = "10.96.0.0/16";
/// The most nodes that have an address.
pub const MAX_NODES: u8 = 200;

const BRIDGE: &str = "nodes";

/// A namespace with its bridge, held open by a process.
#[derive(Debug)]
pub struct Network {
    holder: Service,
}

/// What a node needs to be on the network; `index` counts from 1.
#[derive(Debug, Clone)]
pub struct Port {
    /// The tap device on the bridge.
    pub tap: String,
    /// The node's hardware address.
    pub mac: String,
    /// The node's address, on a /24 with [`GATEWAY`].
    pub address: Ipv4Addr,
    /// The node's pods get addresses from this range.
    pub pods: String,
}

impl Port {
    /// The port of the node with this index, from 1 to [`MAX_NODES`].
    #[must_use]
    pub fn of(index: u8) -> Self {
        Self {
            tap: format!("node{index}"),
            mac: format!("52:54:00:77:00:{index:02x}"),
            address: Ipv4Addr::new(10, 77, 0, 10 + index),
            pods: format!("10.88.{index}.0/24"),
        }
    }
}

impl Network {
    /// Makes the namespace and its bridge.
    ///
    /// # Errors
    /// When this machine does not allow network namespaces, bridges or tap devices.
    pub fn create(log: &Path) -> Result<Self> {
        let own = fs::read_link("/proc/self/ns/net").context("cannot read the own network namespace")?;
        let holder = Service::start(
            "network namespace",
            &Command::new("unshare").args(["--net", "--", "sleep", "infinity"]),
            log,
        )?;
        let link = PathBuf::from(format!("/proc/{}/ns/net", holder.pid()));
        let made = || {
            holder.check().context("root and a kernel with network namespaces are needed")?;
            Ok(fs::read_link(&link).is_ok_and(|namespace| namespace != own).then_some(()))
        };
        wait::until("the network namespace", Duration::from_secs(10), Duration::from_millis(20), made)?;
        let network = Self { holder };
        network.ip("link set lo up")?;
        network.ip(&format!("link add {BRIDGE} type bridge"))?;
        network.ip(&format!("addr add {GATEWAY}/24 dev {BRIDGE}"))?;
        network.ip(&format!("link set {BRIDGE} up"))?;
        Ok(network)
    }

    /// Plugs a node in: its tap device, and the way to its pods.
    ///
    /// # Errors
    /// When the device cannot be made.
    pub fn plug(&self, port: &Port) -> Result<()> {
        let tap = &port.tap;
        self.ip(&format!("tuntap add dev {tap} mode tap")).context("a node needs /dev/net/tun")?;
        self.ip(&format!("link set {tap} master {BRIDGE} up"))?;
        self.ip(&format!("route add {} via {}", port.pods, port.address))
    }

    /// The namespace's file: `nsenter --net=FILE` enters it.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.holder.pid()))
    }

    /// `command` as it runs inside the namespace.
    #[must_use]
    pub fn inside(&self, command: Command) -> Command {
        let mut argv = vec!["nsenter".to_owned(), format!("--net={}", self.file().display()), "--".to_owned()];
        argv.extend(command.argv);
        Command { argv, ..command }
    }

    fn ip(&self, arguments: &str) -> Result<()> {
        let command = self.inside(Command::new("ip").args(arguments.split(' ')));
        process::run(&command, Duration::from_secs(20))?.success().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_differ() {
        let ports: Vec<Port> = (1..=MAX_NODES).map(Port::of).collect();
        for key in [
            |p: &Port| p.tap.clone(),
            |p: &Port| p.mac.clone(),
            |p: &Port| p.address.to_string(),
            |p: &Port| p.pods.clone(),
        ] {
            let mut keys: Vec<String> = ports.iter().map(key).collect();
            keys.sort();
            keys.dedup();
            assert_eq!(keys.len(), ports.len());
        }
        assert!(ports.iter().all(|p| p.address != GATEWAY));
    }
}
