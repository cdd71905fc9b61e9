//! The first root of a machine: busybox, the modules that reach this machine's root, and the order for
//! [`super::guest`], which takes over from there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::cpio::Archive;
use super::kernel::Kernel;
use super::spec::BootOrder;
use crate::cache;
use crate::command::Command;
use crate::process;

/// What the machine needs before it sees this machine's root.
const FIRST_MODULES: [&str; 8] =
    ["virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "9pnet_virtio", "9p", "overlay"];

/// Where the order is found by [`super::guest`].
pub(crate) const ORDER: &str = "/run/quarry/boot.json";

/// Writes the initramfs for one boot into `dir`.
pub(super) fn build(kernel: &Kernel, order: &BootOrder, dir: &Path) -> Result<PathBuf> {
    let mut bytes = std::fs::read(base(kernel)?).context("cannot read the cached initramfs")?;
    let testbed = crate::vm::guest::testbed_binary()?;
    let mut own = Archive::default();
    own.file("boot.json", 0o644, &serde_json::to_vec(order).context("cannot encode the boot order")?);
    own.file("second", 0o755, second_stage(&testbed).as_bytes());
    bytes.extend(own.finish());
    let path = dir.join("initramfs");
    std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn second_stage(testbed: &Path) -> String {
    let quoted = testbed.display().to_string().replace('\'', r"'\''");
    format!("exec /bin/busybox switch_root /newroot '{quoted}' vm-init\n")
}

/// The part that is the same for every boot of a kernel, in the cache.
fn base(kernel: &Kernel) -> Result<PathBuf> {
    let place = cache::folder("initramfs")?.join(format!("{}-{}", kernel.release, fingerprint()));
    cache::ensure(&place, |scratch| {
        let path = scratch.join("base");
        std::fs::write(&path, pack(kernel)?).with_context(|| format!("cannot write {}", path.display()))
    })?;
    Ok(place.join("base"))
}

/// Changes whenever what [`pack`] makes changes.
fn fingerprint() -> String {
    use std::hash::{Hash as _, Hasher as _};
    let mut hasher = std::hash::DefaultHasher::new();
    (FIRST_MODULES, INIT).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn pack(kernel: &Kernel) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["bin", "modules", "proc", "sys", "dev", "lower", "up", "newroot"] {
        archive.folder(folder);
    }
    let busybox =
        std::fs::read("/bin/busybox").context("cannot read /bin/busybox: install the package busybox-static")?;
    archive.file("bin/busybox", 0o755, &busybox);
    let mut order = String::new();
    for module in module_files(kernel)? {
        let name = module.file_name().context("a module without a name")?.to_string_lossy().into_owned();
        let contents = std::fs::read(&module).with_context(|| format!("cannot read {}", module.display()))?;
        archive.file(&format!("modules/{name}"), 0o644, &contents);
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    archive.file("init", 0o755, INIT.as_bytes());
    Ok(archive.finish())
}

/// Files of the first modules and what they depend on, in the order of loading.
fn module_files(kernel: &Kernel) -> Result<Vec<PathBuf>> {
    let query =
        Command::new("modprobe").arg("-d").arg(&kernel.root).args(["-S", &kernel.release, "--show-depends", "-a"]);
    let shown = process::run(&query.args(FIRST_MODULES), Duration::from_secs(60))?.success()?.stdout_text();
    let mut files: Vec<PathBuf> = Vec::new();
    for line in shown.lines() {
        match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["insmod", path, ..] => {
                let path = PathBuf::from(path);
                if !files.contains(&path) {
                    files.push(path);
                }
            }
            ["builtin", ..] => {}
            _ => bail!("modprobe --show-depends printed {line:?}"),
        }
    }
    Ok(files)
}

/// The first process: brings up this machine's root, read-only, under an overlay in memory.
const INIT: &str = r#"#!/bin/busybox sh
B=/bin/busybox
fail() { echo "init: $1"; $B poweroff -f; }
$B mount -t proc proc /proc && $B mount -t sysfs sys /sys && $B mount -t devtmpfs dev /dev || fail "no proc, sys or dev"
while read module; do $B insmod /modules/$module || fail "module $module"; done < /modules/order
$B mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=512000,cache=loose hostroot /lower || fail "the host's root"
$B mount -t tmpfs -o size=90% up /up && $B mkdir /up/u /up/w || fail "tmpfs"
$B mount -t overlay -o lowerdir=/lower,upperdir=/up/u,workdir=/up/w root /newroot || fail "overlay"
$B mkdir -p /newroot/dev /newroot/proc /newroot/sys /newroot/run
for d in dev proc sys; do $B mount --move /$d /newroot/$d || fail "moving $d"; done
$B mount -t tmpfs run /newroot/run && $B mkdir /newroot/run/quarry && $B cp /boot.json /newroot/run/quarry/ || fail "the boot order"
. /second
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_path_of_the_test_bed_survives_the_shell() {
        let script = second_stage(Path::new("/a b/it's/testbed"));
        assert_eq!(script, "exec /bin/busybox switch_root /newroot '/a b/it'\\''s/testbed' vm-init\n");
    }
}
