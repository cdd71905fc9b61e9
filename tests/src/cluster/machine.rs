//! A node's virtual machine: booted, made a node of, rebooted.

use std::path::Path;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::network::{GATEWAY, Port};
use super::node::{CgroupDriver, NodeFiles, NodeSettings};
use crate::command::{Command, Outcome, Stream};
use crate::progress::Progress;
use crate::vm::{Disk, Network, STORAGE_MODULES, Vm, VmSpec};

/// How long `node.sh` may take: importing all images on a busy machine is the longest of it.
const SETUP_LIMIT: Duration = Duration::from_secs(600);
/// The disk that keeps containerd's images, kubelet's state and the node's identity.
const STATE_DISK: u64 = 10 << 30;
/// The state disk's name, and so its file's.
pub(super) const STATE: &str = "state";
/// What the node's network needs on top of [`STORAGE_MODULES`].
const NODE_MODULES: [&str; 12] = [
    "veth",
    "bridge",
    "br_netfilter",
    "nf_conntrack",
    "nf_tables",
    "nft_compat",
    "nft_chain_nat",
    "xt_comment",
    "xt_MASQUERADE",
    "xt_nat",
    "xt_tcpudp",
    "xt_conntrack",
];

/// A node's machine and what it needs to become a node.
#[derive(Debug)]
pub struct Machine {
    name: String,
    files: NodeFiles,
    vm: RwLock<Vm>,
    progress: Progress,
}

impl Machine {
    /// Boots the machine in `folder` (disks that are there are used) and runs `node.sh` in it.
    ///
    /// # Errors
    /// When it does not boot or a step of the script fails, with what the script said.
    pub fn start(
        folder: &Path,
        settings: &NodeSettings,
        network: Option<(&Path, &Port)>,
        files: NodeFiles,
        environment: &[(&str, &str)],
        progress: &Progress,
    ) -> Result<Self> {
        let mut spec = VmSpec::new(&settings.name, folder);
        spec.memory_mib = settings.memory;
        spec.udev = settings.udev;
        spec.systemd = settings.cgroup_driver == CgroupDriver::Systemd;
        spec.disks = vec![
            Disk { name: "data".to_owned(), size: settings.data_disk, iops: settings.data_disk_iops },
            Disk { name: STATE.to_owned(), size: STATE_DISK, iops: None },
        ];
        spec.modules = STORAGE_MODULES.into_iter().chain(NODE_MODULES).map(str::to_owned).collect();
        if let Some((namespace, port)) = network {
            spec.network = Network::Tap {
                namespace: namespace.to_owned(),
                tap: port.tap.clone(),
                mac: port.mac.clone(),
                address: format!("{}/24", port.address),
                gateway: Some(GATEWAY.to_string()),
            };
        }
        let vm = Vm::boot(spec)?;
        let machine = Self { name: settings.name.clone(), files, vm: RwLock::new(vm), progress: progress.clone() };
        machine.set_up(environment)?;
        Ok(machine)
    }

    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a command on the node.
    ///
    /// # Errors
    /// When the machine is off or died, or the command does not end; any exit is an [`Outcome`].
    pub fn run(&self, command: &Command, limit: Duration) -> Result<Outcome> {
        self.vm.read().unwrap_or_else(PoisonError::into_inner).run(command, limit)
    }

    /// Shuts the machine down in order, boots it from the same disks and makes it a node again.
    ///
    /// # Errors
    /// When it does not power off or boot.
    pub fn reboot(&self) -> Result<()> {
        {
            let mut vm = self.vm.write().unwrap_or_else(PoisonError::into_inner);
            vm.power_off()?;
            vm.boot_again()?;
        }
        self.set_up(&[])
    }

    /// Cuts the power (what was not synced is lost), boots from the same disks and makes it a node again.
    ///
    /// # Errors
    /// When it does not boot.
    pub fn power_cut(&self) -> Result<()> {
        self.vm.write().unwrap_or_else(PoisonError::into_inner).boot_again()?;
        self.set_up(&[])
    }

    /// Switches it off in order.
    ///
    /// # Errors
    /// When it does not power off.
    pub fn power_off(&self) -> Result<()> {
        self.vm.write().unwrap_or_else(PoisonError::into_inner).power_off()
    }

    fn set_up(&self, environment: &[(&str, &str)]) -> Result<()> {
        let command = Command::new("bash").arg(&self.files.script).env("NODE_SETTINGS", &self.files.settings);
        let command = environment.iter().fold(command, |command, (name, value)| command.env(name, value));
        let (mut said, mut line) = (Vec::new(), Vec::new());
        let vm = self.vm.read().unwrap_or_else(PoisonError::into_inner);
        let exit = vm.run_streaming(&command, SETUP_LIMIT, |stream, bytes| {
            said.extend_from_slice(bytes);
            if stream == Stream::Stdout {
                line.extend_from_slice(bytes);
                while let Some(end) = line.iter().position(|b| *b == b'\n') {
                    let text: Vec<u8> = line.drain(..=end).collect();
                    self.progress.say(&format!("  {}: {}", self.name, String::from_utf8_lossy(&text).trim_end()));
                }
            }
        });
        let exit = exit.with_context(|| format!("{} did not become a node", self.name))?;
        if !exit.success() {
            bail!(
                "{} did not become a node: its script ended with {exit} and said\n{}",
                self.name,
                String::from_utf8_lossy(&said)
            );
        }
        Ok(())
    }
}
