//! The images that every test cluster has; the driver's own image comes from its recipe (`manifests/image`).

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::go::Binaries;
use super::image::Image;
use super::store::{Key, Store};
use crate::command::{Command, Outcome};
use crate::progress::Progress;
use crate::suite::build::{self, Profile};
use crate::{cache, process};

/// Debian's packages may come over a slow line.
const BUILD_LIMIT: Duration = Duration::from_secs(1800);
/// The repository of the driver's image, as the chart names it.
pub const DRIVER: &str = "localhost/quarry-driver";

/// What holds a pod's namespaces; containerd is configured to use it.
pub const PAUSE: &str = "registry.k8s.io/pause:3.10";
/// What the test pods run: a static busybox with all its commands.
pub const BUSYBOX: &str = "localhost/busybox:test";
/// The sidecar under the name that the chart gives it.
pub const PROVISIONER: &str = "registry.k8s.io/sig-storage/csi-provisioner:v6.3.0";

/// An image file, named by its content.
#[derive(Debug, Clone)]
pub struct Archive {
    /// A docker-archive; its file name is unique to its content.
    pub path: PathBuf,
    /// Names the part of the content that seldom changes and so is worth keeping imported: all of it, or the layers
    /// below the driver's binary.
    pub stable: String,
}

/// The images of every cluster: pause, busybox and csi-provisioner.
///
/// # Errors
/// When busybox is not installed or the store cannot be written.
pub fn stock(store: &Store, binaries: &Binaries) -> Result<Vec<Archive>> {
    let busybox = Path::new("/bin/busybox");
    let provisioner = binaries.path("csi-provisioner")?;
    let forever = "trap 'exit 0' TERM INT; while :; do sleep 2147483647 & wait $!; done";
    let pause = Image::new(PAUSE).program("bin/busybox", busybox).entrypoint(&["/bin/busybox", "sh", "-c", forever]);
    let sidecar = Image::new(PROVISIONER).program("csi-provisioner", &provisioner).entrypoint(&["/csi-provisioner"]);
    [("pause", pause), ("busybox", busybox_image(busybox)?), ("csi-provisioner", sidecar)]
        .into_iter()
        .map(|(name, image)| archive(store, name, &image))
        .collect()
}

fn busybox_image(busybox: &Path) -> Result<Image> {
    let list = process::run(&Command::new(busybox).arg("--list"), Duration::from_secs(10))
        .and_then(Outcome::success)
        .context("the test pods run busybox: install busybox-static")?;
    let image = Image::new(BUSYBOX)
        .program("bin/busybox", busybox)
        .text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
        .text("etc/group", "root:x:0:\nnobody:x:65534:\n")
        .folder("root", 0o700)
        .folder("tmp", 0o1777)
        .command(&["/bin/sh"]);
    let commands = list.stdout_text();
    Ok(commands.lines().filter(|c| *c != "busybox").fold(image, |image, c| image.link(&format!("bin/{c}"), "busybox")))
}

/// The nodes' image, made by its recipe from this checkout's driver and capacity-reporter, which are built first, with
/// cargo's development profile: their dependencies are the test bed's own and so built already.
///
/// # Errors
/// When one does not build or the recipe fails.
pub fn driver(store: &Store, progress: &Progress) -> Result<Archive> {
    let built = progress.step("build the driver and the capacity-reporter", || {
        Ok([build::driver(Profile::Debug)?, build::reporter(Profile::Debug)?])
    })?;
    let recipe = cache::workspace().join("manifests/image/build");
    let version = env!("CARGO_PKG_VERSION");
    let mut key = Key::default().with(version).with_file(&recipe)?;
    for program in &built {
        key = key.with_file(program)?;
    }
    let file = format!("driver-{}.tar", key.clone().name());
    let folder = store.folder("image-driver", key, |folder| {
        progress.step("make the nodes' image", || {
            let tag = format!("{DRIVER}:{version}");
            let mut command = Command::new(&recipe).args(["--tag", &tag]);
            let mut stripped = Vec::new();
            for (option, program) in ["--binary", "--reporter"].into_iter().zip(&built) {
                let binary = folder.join(option.trim_start_matches('-'));
                let strip = Command::new("strip").arg("-o").arg(&binary).arg(program);
                process::run(&strip, BUILD_LIMIT)?.success()?;
                command = command.arg(option).arg(&binary);
                stripped.push(binary);
            }
            process::run(&command.arg("--out").arg(folder.join(&file)), BUILD_LIMIT)?.success()?;
            stripped.iter().try_for_each(|binary| {
                std::fs::remove_file(binary).with_context(|| format!("cannot remove {}", binary.display()))
            })
        })
    })?;
    let path = folder.join(file);
    let stable = base_layer(&path)?;
    Ok(Archive { path, stable })
}

/// The digest of an archive's lowest layer.
fn base_layer(path: &Path) -> Result<String> {
    let mut archive = tar::Archive::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?);
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.path()?.as_os_str() == "manifest.json" {
            let mut text = String::new();
            entry.read_to_string(&mut text)?;
            let manifest: serde_json::Value = serde_json::from_str(&text)?;
            let layer = manifest.pointer("/0/Layers/0").and_then(serde_json::Value::as_str);
            return layer
                .map(str::to_owned)
                .with_context(|| format!("{}: the manifest names no layer", path.display()));
        }
    }
    bail!("{} has no manifest.json", path.display())
}

fn archive(store: &Store, name: &str, image: &Image) -> Result<Archive> {
    let key = image.key()?;
    let file = format!("{name}-{}.tar", key.clone().name());
    let folder = store.folder(&format!("image-{name}"), key, |folder| image.write(&folder.join(&file)))?;
    Ok(Archive { path: folder.join(&file), stable: file })
}
