//! What a volume goes through, each step asked as its caller asks it, and what must be true after it.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use quarry_proto::csi::v1 as csi;
use quarry_tests::in_vm::Csi;
use tonic::{Code, Status};

use crate::lane::Expected;
use crate::pod::{Pod, text};
use crate::scene::{MIB, Scene, THICK, THIN, block, filesystem};

/// A kind of volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// For the table and for names.
    pub name: &'static str,
    /// Thick, or thin.
    pub thick: bool,
    /// Raw block, or a filesystem.
    pub block: bool,
}

/// Sizes in bytes: what is zeroed or formatted, an emulated machine does slowly.
const BLOCK_SIZE: i64 = 8 * MIB;
const FILESYSTEM_SIZE: i64 = 32 * MIB;

/// A request of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Create,
    Stage,
    Publish,
    Unpublish,
    Unstage,
    StageAgain,
    Delete,
}

impl Operation {
    /// A whole life, in order.
    pub const ALL: [Self; 7] =
        [Self::Create, Self::Stage, Self::Publish, Self::Unpublish, Self::Unstage, Self::StageAgain, Self::Delete];

    /// Whether it may change anything in LVM.
    pub fn changes_lvm(self) -> bool {
        !matches!(self, Self::Publish | Self::Unpublish | Self::Unstage)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Stage => "stage (fresh)",
            Self::Publish => "publish",
            Self::Unpublish => "unpublish",
            Self::Unstage => "unstage",
            Self::StageAgain => "stage (formatted)",
            Self::Delete => "delete",
        }
    }

    /// What a caller asks for that wants nothing more of it, where there is such a thing.
    pub fn contrary(self) -> Option<Self> {
        match self {
            Self::Create => Some(Self::Delete),
            Self::Stage | Self::StageAgain => Some(Self::Unstage),
            Self::Publish => Some(Self::Unpublish),
            Self::Unpublish | Self::Unstage | Self::Delete => None,
        }
    }
}

/// The pod that it is for.
const POD: &str = "pod";

/// What the pod has written.
const CONTENT: &[u8] = b"written by the pod";

/// One volume on its way.
pub struct Subject {
    pub kind: Kind,
    pub name: String,
    pod: Pod,
    device: PathBuf,
    /// Whether the pod has written.
    written: bool,
}

impl Subject {
    pub fn new(scene: &Scene, kind: Kind, name: &str) -> Self {
        // The caller knows the volume by what CreateVolume answers; the answer is compared with this.
        let volume = csi::Volume { volume_id: format!("node-1/{name}"), ..Default::default() };
        let pod = match kind.block {
            true => Pod::with_block(scene, volume),
            false => Pod::with_filesystem(scene, volume, "ext4", &[]),
        };
        let device = pod.device(scene).into();
        Self { kind, name: name.to_owned(), pod, device, written: false }
    }

    pub fn id(&self) -> &str {
        &self.pod.volume.volume_id
    }

    /// Where the pod finds it.
    pub fn target(&self) -> PathBuf {
        self.pod.target(POD)
    }

    pub fn request(&self) -> csi::CreateVolumeRequest {
        let parameters = if self.kind.thick { THICK } else { THIN };
        match self.kind.block {
            true => block(&self.name, BLOCK_SIZE, parameters),
            false => filesystem(&self.name, FILESYSTEM_SIZE, parameters),
        }
    }

    /// Asks once.
    pub async fn ask(&self, csi: &Csi, operation: Operation) -> Result<(), Status> {
        let (mut node, mut controller) = (csi.node.clone(), csi.controller.clone());
        let (volume_id, target_path) = (self.id().to_owned(), text(&self.target()));
        let staging_target_path = text(&self.pod.staging());
        match operation {
            Operation::Create => {
                let volume = controller.create_volume(self.request()).await?.into_inner().volume.unwrap_or_default();
                if volume.volume_id != volume_id {
                    return Err(Status::internal(format!("the volume is called {}", volume.volume_id)));
                }
            }
            Operation::Stage | Operation::StageAgain => drop(node.node_stage_volume(self.pod.stage_request()).await?),
            Operation::Publish => drop(node.node_publish_volume(self.pod.publish_request(POD)).await?),
            Operation::Unpublish => {
                let request = csi::NodeUnpublishVolumeRequest { volume_id, target_path };
                drop(node.node_unpublish_volume(request).await?);
            }
            Operation::Unstage => {
                let request = csi::NodeUnstageVolumeRequest { volume_id, staging_target_path };
                drop(node.node_unstage_volume(request).await?);
            }
            Operation::Delete => {
                let request = csi::DeleteVolumeRequest { volume_id, ..Default::default() };
                drop(controller.delete_volume(request).await?);
            }
        }
        Ok(())
    }

    /// Asks until it is done, as every caller does; tells the refusals on the way.
    pub async fn insist(&self, csi: &Csi, operation: Operation) -> Result<Vec<Code>> {
        let mut refusals = Vec::new();
        let mut last = None;
        while refusals.len() < 60 {
            match self.ask(csi, operation).await {
                Ok(()) => return Ok(refusals),
                Err(status) => {
                    refusals.push(status.code());
                    last = Some(status);
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
        }
        let last = last.map(|status| format!("{:?}: {}", status.code(), status.message())).unwrap_or_default();
        bail!("{} of {} was refused {} times, last with {last}", operation.name(), self.name, refusals.len())
    }

    /// Notes what an operation has brought about, looks at the volume's data, and has the pod write.
    pub fn done(&mut self, expected: &mut Expected, operation: Operation) -> Result<()> {
        let (staging, target) = (self.pod.staging(), self.target());
        match operation {
            Operation::Create => {
                expected.volumes.insert(self.name.clone());
                if self.kind.block {
                    ensure!(reads_zero(&self.device)?, "a new raw block volume shows what others wrote");
                }
            }
            Operation::Stage if self.kind.block => {}
            Operation::Stage => {
                expected.mounts.insert(staging.clone());
                let names =
                    std::fs::read_dir(&staging)?.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>>>()?;
                ensure!(names == ["lost+found"], "a new filesystem holds {names:?}");
                write(&staging.join("kept"))?;
                self.written = true;
            }
            Operation::Publish => {
                expected.mounts.insert(target.clone());
                if self.kind.block {
                    write(&target)?;
                    self.written = true;
                } else {
                    self.compare(&target.join("kept"))?;
                }
            }
            Operation::Unpublish => {
                expected.mounts.remove(&target);
                ensure!(!target.exists(), "{} is left", target.display());
            }
            Operation::Unstage => {
                expected.mounts.remove(&staging);
                ensure!(staging.is_dir(), "{} is gone; kubelet made it", staging.display());
            }
            Operation::StageAgain if self.kind.block => self.compare(&self.device)?,
            Operation::StageAgain => {
                expected.mounts.insert(staging.clone());
                self.compare(&staging.join("kept"))?;
            }
            Operation::Delete => {
                expected.volumes.remove(&self.name);
                self.written = false;
            }
        }
        Ok(())
    }

    fn compare(&self, path: &Path) -> Result<()> {
        let mut content = vec![0; CONTENT.len()];
        let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut content));
        read.with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(
            !self.written || content == CONTENT,
            "{} holds {:?}",
            path.display(),
            String::from_utf8_lossy(&content)
        );
        Ok(())
    }
}

fn write(path: &Path) -> Result<()> {
    let mut file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    let written = file.write_all(CONTENT).and_then(|()| file.sync_all());
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// Whether the whole device reads as zero.
fn reads_zero(device: &Path) -> Result<bool> {
    let mut file = std::fs::File::open(device).with_context(|| format!("cannot open {}", device.display()))?;
    let size = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(0))?;
    let mut buffer = vec![0; usize::try_from(MIB)?];
    let mut left = size;
    while left > 0 {
        let part = buffer.len().min(usize::try_from(left)?);
        file.read_exact(&mut buffer[..part])?;
        if buffer[..part].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        left -= part as u64;
    }
    Ok(true)
}
