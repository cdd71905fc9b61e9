//! What a caller says about a virtual machine.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::command::Command;

/// Modules for LVM, the three filesystems, faults on block devices, records of what is written to them, and weights between volumes.
pub const STORAGE_MODULES: [&str; 12] = [
    "dm-mod",
    "dm-thin-pool",
    "dm-snapshot",
    "dm-flakey",
    "dm-delay",
    "dm-log-writes",
    "ext4",
    "xfs",
    "btrfs",
    "loop",
    "bfq",
    "overlay",
];

/// Modules for a Kubernetes node's network, on top of [`STORAGE_MODULES`].
pub const NETWORK_MODULES: [&str; 11] = [
    "veth",
    "bridge",
    "br_netfilter",
    "nf_conntrack",
    "iptable_nat",
    "iptable_filter",
    "ip6table_nat",
    "xt_comment",
    "xt_conntrack",
    "xt_MASQUERADE",
    "xt_mark",
];

/// A virtual machine to boot.
///
/// Inside, `/` is the root of this machine, read-only under an overlay in memory: everything installed here is there,
/// and nothing written there stays, except on the disks.
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// Its host name, and its name in errors.
    pub name: String,
    /// Memory in MiB; what is written to `/` comes out of it.
    pub memory_mib: u32,
    /// Number of processors.
    pub cpus: u32,
    /// Disks, which the guest sees as `/dev/vda`, `/dev/vdb` ... in this order.
    pub disks: Vec<Disk>,
    /// Whether udevd runs in it, as on most real nodes.
    pub udev: bool,
    /// Whether systemd becomes its first process once it has booted, with no units but those that it is asked for.
    pub systemd: bool,
    /// Kernel modules to load; one that cannot be loaded fails the boot.
    pub modules: Vec<String>,
    /// Its one network interface, `eth0`.
    pub network: Network,
    /// A command that must succeed before the machine counts as booted.
    pub setup: Option<Command>,
    /// Folder for its disks and its console, made if missing. What is there already is used: so a machine keeps its
    /// state when it is booted from the same folder again.
    pub work_dir: PathBuf,
}

impl VmSpec {
    /// A machine with two processors, 2 GiB, the storage modules, no disk, no udevd, no systemd and no network.
    #[must_use]
    pub fn new(name: &str, work_dir: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            memory_mib: 2048,
            cpus: 2,
            disks: Vec::new(),
            udev: false,
            systemd: false,
            modules: STORAGE_MODULES.map(str::to_owned).to_vec(),
            network: Network::None,
            setup: None,
            work_dir: work_dir.into(),
        }
    }
}

/// A disk: a sparse file in the machine's folder, made at the first boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Names the file (`<name>.img`), and is the disk's serial number in the guest (`/sys/block/vda/serial`): at most
    /// 20 bytes.
    pub name: String,
    /// Size in bytes, a multiple of 512.
    pub size: u64,
    /// How many operations a second it does at most; as fast as it can where there is none.
    pub iops: Option<u32>,
}

impl Disk {
    /// A disk of so many MiB.
    #[must_use]
    pub fn mib(name: &str, mib: u64) -> Self {
        Self { name: name.to_owned(), size: mib << 20, iops: None }
    }

    /// The same disk with no more than so many operations a second.
    #[must_use]
    pub fn limited(self, iops: u32) -> Self {
        Self { iops: Some(iops), ..self }
    }

    /// A disk of so many GiB.
    #[must_use]
    pub fn gib(name: &str, gib: u64) -> Self {
        Self::mib(name, gib << 10)
    }
}

/// The network interface `eth0` of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// None at all: loopback only.
    None,
    /// QEMU's own user-mode network: 10.0.2.15, this machine's loopback is 10.0.2.2.
    User,
    /// A tap device in a network namespace, both made by the caller. QEMU itself then runs in that namespace.
    Tap {
        /// The namespace's file: `/run/netns/NAME`, or `/proc/PID/ns/net` of a process in it.
        namespace: PathBuf,
        /// Name of the tap device in it.
        tap: String,
        /// Hardware address of `eth0`, such as `52:54:00:00:00:01`.
        mac: String,
        /// The guest's address with its prefix length, such as `10.7.0.11/24`.
        address: String,
        /// The guest's default route, an address without prefix length.
        gateway: Option<String>,
    },
}

/// What the first process of the guest is told: [`VmSpec`] less what concerns QEMU alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BootOrder {
    /// Host name.
    pub hostname: String,
    /// Name of the kernel's modules folder (`uname -r`).
    pub kernel_release: String,
    /// Where that folder is, in the guest's view.
    pub modules_dir: PathBuf,
    /// Modules to load.
    pub modules: Vec<String>,
    /// Whether to run udevd.
    pub udev: bool,
    /// Whether systemd takes over in the end.
    pub systemd: bool,
    /// Address with prefix length and default route of `eth0`.
    pub address: Option<(String, Option<String>)>,
    /// Must succeed before the agent answers.
    pub setup: Option<Command>,
}
