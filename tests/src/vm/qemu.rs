//! QEMU's command line.

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::accelerator::Accelerator;
use super::agent::SOCKET;
use super::kernel::Kernel;
use super::spec::{Disk, Network, VmSpec};
use crate::command::Command;
use crate::process::{self, Child, Log};

/// Name of the agent's port in the guest.
pub(super) const PORT: &str = "quarry.agent";

/// Makes a disk's file unless it is there.
pub(super) fn ensure_disk(dir: &Path, disk: &Disk) -> Result<()> {
    if disk.name.len() > 20 || disk.name.contains([',', '/']) || disk.size == 0 || !disk.size.is_multiple_of(512) {
        bail!(
            "disk {:?} of {} bytes: want a name of at most 20 bytes without , or /, and a multiple of 512",
            disk.name,
            disk.size
        );
    }
    let path = image(dir, disk);
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("cannot make {}", path.display()))?;
    let size = file.metadata()?.len();
    if size == 0 {
        file.set_len(disk.size).with_context(|| format!("cannot size {}", path.display()))?;
    } else if size != disk.size {
        bail!("{} has {size} bytes, but a disk of {} was asked for", path.display(), disk.size);
    }
    Ok(())
}

fn image(dir: &Path, disk: &Disk) -> std::path::PathBuf {
    dir.join(format!("{}.img", disk.name))
}

/// Starts QEMU in the machine's folder.
pub(super) fn start(
    spec: &VmSpec,
    kernel: &Kernel,
    initramfs: &Path,
    accelerator: Accelerator,
    console: &Path,
) -> Result<Child> {
    let socket = spec.work_dir.join(SOCKET);
    if socket.exists() {
        std::fs::remove_file(&socket).with_context(|| format!("cannot remove {}", socket.display()))?;
    }
    let command = command_line(spec, kernel, initramfs, accelerator, console);
    process::start(&command, Log::File(&spec.work_dir.join("qemu.log")))
}

fn command_line(spec: &VmSpec, kernel: &Kernel, initramfs: &Path, accelerator: Accelerator, console: &Path) -> Command {
    let mut qemu = match &spec.network {
        // Not `ip netns exec`: that would change QEMU's mounts, too, and so what the guest sees of this machine.
        Network::Tap { namespace, .. } => {
            Command::new("nsenter").arg(format!("--net={}", namespace.display())).arg("qemu-system-x86_64")
        }
        Network::None | Network::User => Command::new("qemu-system-x86_64"),
    };
    qemu = qemu.cwd(&spec.work_dir).args(["-name", &escape(&spec.name)]).args(accelerator.arguments());
    qemu = qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    qemu = qemu.args(["-m", &spec.memory_mib.to_string(), "-smp", &spec.cpus.to_string()]);
    qemu = qemu.arg("-kernel").arg(kernel.image()).arg("-initrd").arg(initramfs);
    // A kernel that fails ends QEMU at once instead of hanging: panic=-1 reboots, -no-reboot makes that an end.
    qemu = qemu
        .args(["-append", "console=ttyS0 panic=-1 oops=panic quiet mitigations=off random.trust_cpu=on quarry.vm=1"]);
    qemu = qemu.arg("-serial").arg(format!("file:{}", escape(&console.display().to_string())));
    qemu = qemu.args(["-virtfs", "local,path=/,mount_tag=hostroot,security_model=none,readonly=on,multidevs=remap"]);
    qemu = qemu.args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]);
    qemu = qemu.arg("-chardev").arg(format!("socket,id=agent,path={SOCKET},server=on,wait=off"));
    qemu = qemu.arg("-device").arg(format!("virtserialport,chardev=agent,name={PORT}"));
    for (index, disk) in spec.disks.iter().enumerate() {
        let file = escape(&image(&spec.work_dir, disk).display().to_string());
        // Zeroes become holes, however the guest writes them: images of many GiB that are wiped again and again would
        // fill this machine's disk. A guest's own request to write zeroes would keep the space.
        let limit = disk.iops.map(|iops| format!(",throttling.iops-total={iops}")).unwrap_or_default();
        let drive =
            format!("id=d{index},file={file},format=raw,if=none,cache=unsafe,discard=unmap,detect-zeroes=unmap{limit}");
        qemu = qemu.args(["-drive", &drive]);
        let device = format!("virtio-blk-pci,drive=d{index},serial={},write-zeroes=off", disk.name);
        qemu = qemu.args(["-device", &device]);
    }
    match &spec.network {
        Network::None => qemu,
        Network::User => qemu.args(["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile="]),
        Network::Tap { tap, mac, .. } => qemu
            .args(["-netdev", &format!("tap,id=n0,ifname={tap},script=no,downscript=no")])
            .args(["-device", &format!("virtio-net-pci,netdev=n0,mac={mac},romfile=")]),
    }
}

/// Doubles commas, as QEMU's options want it.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(spec: &VmSpec) -> String {
        let kernel = Kernel { release: "6.1".into(), root: "/k".into() };
        command_line(spec, &kernel, Path::new("/i"), Accelerator::Tcg, Path::new("/w/console-1.log")).to_string()
    }

    #[test]
    fn a_tap_puts_qemu_into_its_namespace() {
        let mut spec = VmSpec::new("n1", "/w");
        assert!(line(&spec).starts_with("qemu-system-x86_64 ") && !line(&spec).contains("netdev"));
        spec.network = Network::Tap {
            namespace: "/run/netns/ns".into(),
            tap: "tap0".into(),
            mac: "52:54:00:00:00:01".into(),
            address: "10.7.0.2/24".into(),
            gateway: None,
        };
        assert!(line(&spec).starts_with("nsenter --net=/run/netns/ns qemu-system-x86_64 "));
        assert!(line(&spec).contains("tap,id=n0,ifname=tap0,script=no"));
    }

    #[test]
    fn a_disk_keeps_its_contents_and_refuses_another_size() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk { name: "a".into(), size: 4096, iops: None };
        ensure_disk(dir.path(), &disk).unwrap();
        std::fs::write(dir.path().join("a.img"), vec![1; 4096]).unwrap();
        ensure_disk(dir.path(), &disk).unwrap();
        assert_eq!(std::fs::read(dir.path().join("a.img")).unwrap()[0], 1);
        let error =
            ensure_disk(dir.path(), &Disk { name: "a".into(), size: 8192, iops: None }).unwrap_err().to_string();
        assert!(error.contains("has 4096 bytes, but a disk of 8192"), "{error}");
        assert!(ensure_disk(dir.path(), &Disk { name: "b".into(), size: 5, iops: None }).is_err());
    }
}
