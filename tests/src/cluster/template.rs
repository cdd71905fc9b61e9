//! The state disk that nodes start from: images imported once, not once per node and start.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::certificates::Authority;
use super::machine::{Machine, STATE};
use super::network::Port;
use super::node::{self, NodeSettings};
use crate::artifacts::{Archive, Binaries, Key, Store};
use crate::command::Command;
use crate::process;
use crate::progress::Progress;

/// The disk's file with the images on it; made in a virtual machine when the stable parts of the images changed.
pub(super) fn state_disk(
    store: &Store,
    images: &[Archive],
    binaries: &Binaries,
    progress: &Progress,
) -> Result<PathBuf> {
    // What the script does and what the images have that seldom changes; an image's other layers are imported by each
    // node on top.
    let key = images.iter().fold(Key::default().with(include_str!("node.sh")), |key, image| key.with(&image.stable));
    let folder = store.folder("state-disk", key, |folder| {
        progress.step("make the nodes' state disk with the images (once, then cached)", || {
            let mut settings = NodeSettings::usual("template");
            settings.volume_group = None;
            settings.data_disk = 1 << 20;
            let authority = Authority::create(&folder.join("pki"))?;
            let kubelet = binaries.path("kubelet")?;
            let files = node::write_files(folder, &settings, &[Port::of(1)], 0, &authority, &kubelet, images)?;
            let machine = Machine::start(folder, &settings, None, files, &[("PREPARE_ONLY", "yes")], progress)?;
            machine.power_off()?;
            drop(machine);
            let keep = format!("{STATE}.img");
            for entry in fs::read_dir(folder)?.flatten().filter(|e| e.file_name() != keep.as_str()) {
                let path = entry.path();
                if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
                    .with_context(|| format!("cannot remove {}", path.display()))?;
            }
            Ok(())
        })
    })?;
    Ok(folder.join(format!("{STATE}.img")))
}

/// Gives a node its copy: shared blocks where the filesystem can, else only what is not a hole.
pub(super) fn copy(template: &Path, folder: &Path) -> Result<()> {
    let command = Command::new("cp").args(["--reflink=auto", "--sparse=auto"]).arg(template).arg(folder);
    process::run(&command, Duration::from_secs(300))?.success().context("cannot copy the state disk").map(drop)
}
