//! One node: what its virtual machine needs to become one, and the files that say so.
//!
//! The machine sees this machine's root read-only, so its settings are files in the cluster's folder; `node.sh` reads
//! them at every boot.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::certificates::{self, Authority};
use super::network::{API_PORT, GATEWAY, Port, SERVICE_ADDRESS};
use crate::artifacts::{Archive, PAUSE};

/// What one node is like.
#[derive(Debug, Clone)]
pub struct NodeSettings {
    /// Its name in Kubernetes.
    pub name: String,
    /// The size of the disk that becomes the volume group, in bytes.
    pub data_disk: u64,
    /// What that disk does at most in a second; as much as it can without.
    pub data_disk_iops: Option<u32>,
    /// The volume group made on the data disk when that is blank; `None` makes none.
    pub volume_group: Option<String>,
    /// Memory of the machine in MiB.
    pub memory: u32,
    /// Whether udevd runs, as on real nodes.
    pub udev: bool,
    /// Kubelet's and containerd's cgroup driver.
    pub cgroup_driver: CgroupDriver,
}

/// Who makes the pods' cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CgroupDriver {
    /// Kubelet and runc themselves.
    #[default]
    Cgroupfs,
    /// systemd, asked over D-Bus: it is the machine's first process then.
    Systemd,
}

impl CgroupDriver {
    /// As the kubelet's configuration names it.
    fn name(self) -> &'static str {
        match self {
            Self::Cgroupfs => "cgroupfs",
            Self::Systemd => "systemd",
        }
    }
}

impl NodeSettings {
    /// The usual node: 8 GiB for volumes in the group `quarry`, 3 GiB of memory, udevd.
    #[must_use]
    pub fn usual(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            data_disk: 8 << 30,
            data_disk_iops: None,
            volume_group: Some("quarry".to_owned()),
            memory: 3072,
            udev: true,
            cgroup_driver: CgroupDriver::default(),
        }
    }
}

/// The files that one node reads at every boot.
#[derive(Debug, Clone)]
pub struct NodeFiles {
    /// `node.sh`.
    pub script: PathBuf,
    /// What `NODE_SETTINGS` must name.
    pub settings: PathBuf,
}

/// Writes the files of a node into `folder`. `ports` are those of all nodes, `own` is the index of this one.
///
/// # Errors
/// When the folder cannot be written.
pub fn write_files(
    folder: &Path,
    node: &NodeSettings,
    ports: &[Port],
    own: usize,
    authority: &Authority,
    kubelet: &Path,
    images: &[Archive],
) -> Result<NodeFiles> {
    let port = ports.get(own).context("a node without a port")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let write = |name: &str, text: &str| -> Result<PathBuf> {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    };
    let client = authority.client(
        &format!("{}-client", node.name),
        &format!("system:node:{}", node.name),
        Some("system:nodes"),
    )?;
    let serving = authority.server(&format!("{}-serving", node.name), &[&node.name, &port.address.to_string()])?;
    let api = format!("https://{GATEWAY}:{API_PORT}");
    certificates::write_kubeconfig(&folder.join("kubelet.kubeconfig"), &api, &authority.certificate(), &client)?;
    write("kubelet.json", &kubelet_configuration(node, authority, &serving).to_string())?;
    write("containerd.toml", &containerd_configuration(node.cgroup_driver))?;
    write("cni.conflist", &cni_configuration(&port.pods).to_string())?;
    let script = write("node.sh", include_str!("node.sh"))?;

    let routes: Vec<String> =
        ports.iter().filter(|p| p.address != port.address).map(|p| format!("{}={}", p.pods, p.address)).collect();
    let images: Vec<String> = images.iter().map(|i| i.path.display().to_string()).collect();
    let mut settings = String::new();
    for (name, value) in [
        ("NODE_NAME", node.name.as_str()),
        ("NODE_ADDRESS", &port.address.to_string()),
        ("SERVICE_ADDRESS", &SERVICE_ADDRESS.to_string()),
        ("API_ADDRESS", &format!("{GATEWAY}:{API_PORT}")),
        ("POD_ROUTES", &routes.join(" ")),
        ("VOLUME_GROUP", node.volume_group.as_deref().unwrap_or("")),
        ("SETTINGS_FOLDER", &folder.display().to_string()),
        ("KUBELET", &kubelet.display().to_string()),
        ("IMAGES", &images.join(" ")),
        ("CGROUP_DRIVER", node.cgroup_driver.name()),
    ] {
        writeln!(settings, "{name}={}", quoted(value))?;
    }
    Ok(NodeFiles { script, settings: write("settings", &settings)? })
}

/// A word that a shell takes literally.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', "'\\''"))
}

fn kubelet_configuration(
    node: &NodeSettings,
    authority: &Authority,
    serving: &certificates::Identity,
) -> serde_json::Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "cgroupDriver": node.cgroup_driver.name(),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "failSwapOn": false,
        // Nobody answers there: test pods need no names. Without an address kubelet warns about every pod.
        "clusterDNS": ["10.96.0.10"],
        "tlsCertFile": serving.certificate,
        "tlsPrivateKeyFile": serving.key,
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": authority.certificate()},
        },
        "authorization": {"mode": "Webhook"},
        // The state disk is as large as this machine lets it be, and small machines are not what is tested.
        "evictionHard": {"memory.available": "10Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageMinimumGCAge": "24h",
        // Pods of a powered-off node are found gone sooner than by default.
        "nodeStatusUpdateFrequency": "5s",
        "logging": {"verbosity": 2},
    })
}

fn containerd_configuration(driver: CgroupDriver) -> String {
    let systemd = driver == CgroupDriver::Systemd;
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = {systemd}
"#
    )
}

fn cni_configuration(pods: &str) -> serde_json::Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "quarry",
        "plugins": [{
            "type": "ptp",
            // Everything on the network has a route to the pods; and each rule costs two seconds of a pod's start.
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": pods}]],
                "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": "/var/lib/cni/networks",
            },
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_word_is_one_word() {
        assert_eq!(quoted("a 'b' $c"), r"'a '\''b'\'' $c'");
    }

    #[test]
    fn a_node_gets_routes_to_the_pods_of_the_others_only() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(&folder.path().join("pki")).unwrap();
        let ports = [Port::of(1), Port::of(2)];
        let node = NodeSettings::usual("quarry-2");
        let files = write_files(&folder.path().join("n"), &node, &ports, 1, &authority, Path::new("/k"), &[]).unwrap();
        let settings = fs::read_to_string(files.settings).unwrap();
        assert!(settings.contains("NODE_ADDRESS='10.77.0.12'\n"), "{settings}");
        assert!(settings.contains("POD_ROUTES='10.88.1.0/24=10.77.0.11'\n"), "{settings}");
    }
}
