//! Virtual machines: QEMU with the stock Debian kernel, and an agent inside that runs commands for the caller.
//!
//! **Invariant.** `Err` means *no verdict*: the machine did not boot, died, or a command did not end within its limit.
//! Only an [`Outcome`] or [`Exit`] that the agent reported is a verdict. Nothing here waits without a bound.

mod accelerator;
mod agent;
mod console;
mod cpio;
pub mod guest;
pub(crate) mod initramfs;
mod kernel;
mod qemu;
mod spec;
mod wire;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

pub use accelerator::{Accelerator, accelerator};
pub use agent::Running;
pub use console::{Finding, Severity};
pub use kernel::{Kernel, kernel};
pub(crate) use spec::BootOrder;
pub use spec::{Disk, NETWORK_MODULES, Network, STORAGE_MODULES, VmSpec};

use crate::command::{Command, Exit, Outcome, Stream};
use crate::process::Child;
use agent::Agent;

/// How long a boot may take: 5-10 s under software emulation, several times that on a busy machine.
const BOOT: Duration = Duration::from_secs(180);
/// How long a machine may take to unmount everything and to power off.
const POWER_OFF: Duration = Duration::from_secs(60);

/// A booted virtual machine. Dropping it is a power cut.
#[derive(Debug)]
pub struct Vm {
    spec: VmSpec,
    kernel: Kernel,
    accelerator: Accelerator,
    running: Option<Powered>,
    boots: u32,
}

#[derive(Debug)]
struct Powered {
    agent: Agent,
    qemu: Child,
}

impl Vm {
    /// Boots a machine and waits until its agent answers.
    ///
    /// # Errors
    /// If the kernel cannot be had, QEMU does not start, or the machine is not up in time; the error ends with what
    /// the console has to say.
    pub fn boot(spec: VmSpec) -> Result<Self> {
        let accelerator = accelerator()?;
        Self::boot_with(spec, accelerator, BOOT)
    }

    fn boot_with(spec: VmSpec, accelerator: Accelerator, limit: Duration) -> Result<Self> {
        let mut vm = Self { spec, kernel: kernel()?, accelerator, running: None, boots: 0 };
        vm.power_on(limit)?;
        Ok(vm)
    }

    fn power_on(&mut self, limit: Duration) -> Result<()> {
        let begin = Instant::now();
        self.boots += 1;
        let name = self.spec.name.clone();
        let dir = self.spec.work_dir.clone();
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        for disk in &self.spec.disks {
            qemu::ensure_disk(&dir, disk)?;
        }
        let order = self.boot_order();
        let initramfs = initramfs::build(&self.kernel, &order, &dir)?;
        let qemu = qemu::start(&self.spec, &self.kernel, &initramfs, self.accelerator, &self.console_path())?;
        let agent = Agent::connect(&dir, &qemu, &self.console_path(), begin + limit);
        let agent = agent.with_context(|| {
            let tail = console::tail(&self.console_path(), 30);
            format!("virtual machine {name} did not boot; its console ends with\n{tail}")
        })?;
        self.running = Some(Powered { agent, qemu });
        Ok(())
    }

    fn boot_order(&self) -> BootOrder {
        let address = match &self.spec.network {
            Network::None => None,
            Network::User => Some(("10.0.2.15/24".to_owned(), Some("10.0.2.2".to_owned()))),
            Network::Tap { address, gateway, .. } => Some((address.clone(), gateway.clone())),
        };
        BootOrder {
            hostname: self.spec.name.clone(),
            kernel_release: self.kernel.release.clone(),
            modules_dir: self.kernel.modules_dir(),
            modules: self.spec.modules.clone(),
            udev: self.spec.udev,
            systemd: self.spec.systemd,
            address,
            setup: self.spec.setup.clone(),
        }
    }

    /// What it was booted from.
    #[must_use]
    pub fn spec(&self) -> &VmSpec {
        &self.spec
    }

    /// The console of the last boot; earlier boots' are beside it.
    #[must_use]
    pub fn console_path(&self) -> PathBuf {
        self.spec.work_dir.join(format!("console-{}.log", self.boots))
    }

    /// What looks bad on the console so far.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        console::scan_file(&self.console_path())
    }

    /// Runs a command in the machine to its end, as root.
    ///
    /// # Errors
    /// No verdict: the machine is off or died, or the command had not ended within `limit` and was killed.
    pub fn run(&self, command: &Command, limit: Duration) -> Result<Outcome> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let exit = self.run_streaming(command, limit, |stream, bytes| match stream {
            Stream::Stdout => stdout.extend_from_slice(bytes),
            Stream::Stderr => stderr.extend_from_slice(bytes),
        })?;
        Ok(Outcome { line: command.to_string(), exit, stdout, stderr })
    }

    /// As [`Vm::run`], but hands the outputs on as they come.
    ///
    /// # Errors
    /// As [`Vm::run`].
    pub fn run_streaming(&self, command: &Command, limit: Duration, sink: impl FnMut(Stream, &[u8])) -> Result<Exit> {
        self.spawn(command)?.follow(limit, sink)
    }

    /// Starts a command in the machine and leaves it running; it ends with the machine at the latest. Its outputs wait
    /// in memory for [`Running::follow`]: let a chatty process write to a file in the guest.
    ///
    /// # Errors
    /// If the machine is off or died, or the command cannot be started.
    pub fn spawn(&self, command: &Command) -> Result<Running> {
        self.agent()?.spawn(command)
    }

    /// The contents of a file in the machine.
    ///
    /// # Errors
    /// If it cannot be read, or no verdict.
    pub fn read_file(&self, path: impl AsRef<Path>, limit: Duration) -> Result<Vec<u8>> {
        Ok(self.run(&Command::new("cat").arg("--").arg(path.as_ref()), limit)?.success()?.stdout)
    }

    /// Writes a file in the machine, with the folders above it.
    ///
    /// # Errors
    /// If it cannot be written, or no verdict.
    pub fn write_file(&self, path: impl AsRef<Path>, contents: impl Into<Vec<u8>>, limit: Duration) -> Result<()> {
        let script = Command::shell("mkdir -p \"$(dirname \"$1\")\"; cat > \"$1\"").arg("write").arg(path.as_ref());
        self.run(&script.stdin(contents), limit)?.success().map(drop)
    }

    /// Ends all processes in the machine, unmounts its filesystems and switches it off.
    ///
    /// # Errors
    /// If it is still running after a minute, after which it is killed.
    pub fn power_off(&mut self) -> Result<()> {
        let Some(powered) = self.running.take() else { return Ok(()) };
        powered.agent.power_off()?;
        let ended = powered.qemu.wait(POWER_OFF);
        ended.with_context(|| format!("virtual machine {} does not power off", self.spec.name)).map(drop)
    }

    /// Cuts the power: what the guest had not yet written to its disks is lost. Nothing if it is off.
    pub fn kill(&mut self) {
        self.running = None;
    }

    /// Boots the machine again from the same disks: after [`Vm::power_off`] or [`Vm::kill`], or as a hard reset.
    ///
    /// # Errors
    /// As [`Vm::boot`].
    pub fn boot_again(&mut self) -> Result<()> {
        self.kill();
        self.power_on(BOOT)
    }

    fn agent(&self) -> Result<&Agent> {
        let powered = self.running.as_ref();
        powered.map(|p| &p.agent).ok_or_else(|| anyhow!("virtual machine {} is off", self.spec.name))
    }
}
