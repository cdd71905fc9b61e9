//! The first process of a machine, after the initramfs: mounts, modules, devices, network; then the agent.
//!
//! **Invariant.** It never ends: it reaps orphans until the agent is gone, then switches the machine off; or it becomes
//! systemd, and the agent switches it off. What did not work is reported, never passed over.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::WaitOptions;

use super::{REPORT, Report, shutdown};
use crate::command::Command;
use crate::process::{self, Child, Log};
use crate::vm::BootOrder;
use crate::vm::initramfs::ORDER;

/// How long one step of the boot may take.
const STEP: Duration = Duration::from_secs(60);
/// What commands find programs by.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Does everything up to power-off.
///
/// # Errors
/// Only if this is not the first process of a machine.
pub fn run() -> Result<()> {
    if std::process::id() != 1 || !Path::new(ORDER).exists() {
        bail!("vm-init is the first process of a virtual machine, not a command for people");
    }
    if let Err(error) = serve() {
        println!("vm-init: {error:#}");
    }
    shutdown::power_off()
}

fn serve() -> Result<()> {
    let order: BootOrder = serde_json::from_slice(&fs::read(ORDER).context("cannot read the boot order")?)?;
    let mut problems = Vec::new();
    let steps: [(&str, &dyn Fn() -> Result<()>); 7] = [
        ("mounts", &mounts),
        ("cgroups", &cgroups),
        ("host name", &|| host_name(&order.hostname)),
        ("modules", &|| modules(&order)),
        ("udevd", &|| if order.udev { udevd() } else { Ok(()) }),
        ("network", &|| network(&order)),
        ("setup", &|| order.setup.as_ref().map_or(Ok(()), |setup| command(setup.clone()))),
    ];
    for (name, step) in steps {
        if let Err(error) = step() {
            println!("vm-init: {name}: {error:#}");
            problems.push(format!("{name}: {error:#}"));
        }
    }
    fs::write(REPORT, serde_json::to_vec(&Report { problems })?).context("cannot write the report")?;

    let own = std::env::current_exe().context("cannot tell the path of this program")?;
    let agent = Command::new(own)
        .arg("vm-agent")
        .args(order.systemd.then_some("--power-off"))
        .env("PATH", PATH)
        .env("HOME", "/root")
        .env("LC_ALL", "C.UTF-8");
    let agent = process::start(&agent.cwd("/"), Log::Inherit)?;
    println!("vm-init: agent started at {}", fs::read_to_string("/proc/uptime").unwrap_or_default().trim());
    if order.systemd { become_systemd(agent) } else { reap_until_gone(agent) }
}

/// Only returns if that fails. Nothing of this machine's root is started by it: it is there for those who ask it for slices
/// and scopes over its own socket, as the kubelet and runc do where there is no bus.
#[expect(clippy::disallowed_methods, reason = "no process is started: this one becomes another")]
fn become_systemd(agent: Child) -> Result<()> {
    std::mem::forget(agent);
    let units = Path::new("/run/quarry/units");
    fs::create_dir_all(units).with_context(|| format!("cannot make {}", units.display()))?;
    // What units refer to by default, and the one that it is to reach.
    for name in ["machine", "basic", "sysinit", "shutdown"] {
        let unit = units.join(format!("{name}.target"));
        let text = format!("[Unit]\nDescription={name} of a test machine\nDefaultDependencies=no\n");
        fs::write(&unit, text).with_context(|| format!("cannot write {}", unit.display()))?;
    }
    // It takes the group that it is started in for the root of all it has.
    fs::write("/sys/fs/cgroup/cgroup.procs", "1").context("cannot move back to the root group")?;
    let failed = std::process::Command::new("/lib/systemd/systemd")
        .args(["--system", "--unit=machine.target", "--log-target=console", "--log-level=notice", "--show-status=no"])
        .env("PATH", PATH)
        .env("SYSTEMD_UNIT_PATH", format!("{}:/run/systemd/transient", units.display()))
        .env("SYSTEMD_GENERATOR_PATH", "/nonexistent")
        .exec();
    Err(failed).context("cannot run systemd")
}

/// Reaps orphans, and in the end the agent itself: nothing else starts processes from here on.
fn reap_until_gone(agent: Child) -> Result<()> {
    let pid = agent.pid();
    std::mem::forget(agent);
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((ended, _))) if ended.as_raw_nonzero().get() == pid => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for processes"),
        }
    }
}

fn mounts() -> Result<()> {
    let nothing = MountFlags::NOSUID | MountFlags::NODEV;
    for (kind, at, data) in [
        ("devpts", "/dev/pts", Some(c"mode=620,ptmxmode=666")),
        ("tmpfs", "/dev/shm", None),
        ("mqueue", "/dev/mqueue", None),
        ("cgroup2", "/sys/fs/cgroup", None),
        ("tmpfs", "/lib/modules", None),
    ] {
        fs::create_dir_all(at).with_context(|| format!("cannot make {at}"))?;
        mount(kind, at, kind, nothing, data).with_context(|| format!("cannot mount {kind} on {at}"))?;
    }
    for folder in ["/run/lock/lvm", "/run/lvm", "/run/udev"] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {folder}"))?;
    }
    // What says that this machine is a container is not true of its guest: udevd and others look for it.
    if Path::new("/.dockerenv").exists() {
        fs::remove_file("/.dockerenv").context("cannot hide /.dockerenv")?;
    }
    for (link, to) in [("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        let link = Path::new("/dev").join(link);
        if !link.exists() {
            symlink(Path::new("/proc/self").join(to), &link)
                .with_context(|| format!("cannot link {}", link.display()))?;
        }
    }
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC).context("cannot share mounts")
}

/// Moves this process, and so all later ones, out of the root group, and lets groups below it have every controller.
fn cgroups() -> Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    fs::create_dir_all(root.join("init"))?;
    fs::write(root.join("init/cgroup.procs"), "1").context("cannot move to a group of its own")?;
    for controller in fs::read_to_string(root.join("cgroup.controllers"))?.split_whitespace() {
        let enabled = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"));
        enabled.with_context(|| format!("cannot enable the controller {controller}"))?;
    }
    Ok(())
}

/// systemd sets what the file says.
fn host_name(name: &str) -> Result<()> {
    rustix::system::sethostname(name.as_bytes())?;
    fs::write("/etc/hostname", format!("{name}\n")).context("cannot write /etc/hostname")
}

fn modules(order: &BootOrder) -> Result<()> {
    symlink(&order.modules_dir, Path::new("/lib/modules").join(&order.kernel_release))?;
    if order.modules.is_empty() {
        return Ok(());
    }
    command(Command::new("modprobe").arg("-a").args(&order.modules))
}

fn udevd() -> Result<()> {
    // The one network card stays eth0: the rule that would rename it is masked.
    let rules = Path::new("/run/udev/rules.d");
    fs::create_dir_all(rules).with_context(|| format!("cannot make {}", rules.display()))?;
    symlink("/dev/null", rules.join("80-net-setup-link.rules")).context("cannot mask a udev rule")?;
    command(Command::new("/lib/systemd/systemd-udevd").arg("--daemon"))?;
    command(Command::new("udevadm").args(["trigger", "--type=subsystems", "--action=add"]))?;
    command(Command::new("udevadm").args(["trigger", "--type=devices", "--action=add"]))?;
    command(Command::new("udevadm").args(["settle", "--timeout=60"]))
}

fn network(order: &BootOrder) -> Result<()> {
    let mut batch = "link set lo up\n".to_owned();
    if let Some((address, gateway)) = &order.address {
        batch.push_str(&format!("link set eth0 up\naddress add {address} dev eth0\n"));
        if let Some(gateway) = gateway {
            batch.push_str(&format!("route add default via {gateway}\n"));
        }
    }
    command(Command::new("ip").args(["-batch", "-"]).stdin(batch))
}

fn command(command: Command) -> Result<()> {
    process::run(&command.env("PATH", PATH).env("LC_ALL", "C.UTF-8"), STEP)?.success().map(drop)
}
