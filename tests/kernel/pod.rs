//! The node's half of a test: what kubelet would ask for a pod, on folders like kubelet's.

use std::path::{Path, PathBuf};

use quarry_proto::csi::v1 as csi;
use quarry_proto::csi::v1::volume_capability::access_mode::Mode;
use quarry_proto::csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use tonic::Status;

use crate::scene::Scene;

/// One volume on its way to a pod.
pub struct Pod {
    /// The volume, as CreateVolume answered it.
    pub volume: csi::Volume,
    /// What the pod wants; tests change it.
    pub capability: csi::VolumeCapability,
    /// Whether NodePublishVolume asks for reading only.
    pub readonly: bool,
    folder: PathBuf,
}

impl Pod {
    /// A pod for a filesystem volume, with folders of its own in the driver's.
    pub fn with_filesystem(scene: &Scene, volume: csi::Volume, fs_type: &str, flags: &[&str]) -> Self {
        let mount = MountVolume {
            fs_type: fs_type.to_owned(),
            mount_flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            ..Default::default()
        };
        Self::new(scene, volume, AccessType::Mount(mount))
    }

    /// A pod for a raw block volume.
    pub fn with_block(scene: &Scene, volume: csi::Volume) -> Self {
        Self::new(scene, volume, AccessType::Block(BlockVolume {}))
    }

    fn new(scene: &Scene, volume: csi::Volume, access: AccessType) -> Self {
        let folder = scene.driver.path(&volume.volume_id.replace('/', "_"));
        std::fs::create_dir_all(folder.join("staging")).unwrap();
        let capability = csi::VolumeCapability {
            access_mode: Some(AccessMode { mode: Mode::SingleNodeMultiWriter.into() }),
            access_type: Some(access),
        };
        Self { volume, capability, readonly: false, folder }
    }

    pub fn set_mode(&mut self, mode: Mode) {
        self.capability.access_mode = Some(AccessMode { mode: mode.into() });
    }

    /// Where the volume is staged.
    pub fn staging(&self) -> PathBuf {
        self.folder.join("staging")
    }

    /// Where a pod of that name finds it; neither it nor the folder above exists before.
    pub fn target(&self, pod: &str) -> PathBuf {
        self.folder.join("pods").join(pod).join("mount")
    }

    pub fn stage_request(&self) -> csi::NodeStageVolumeRequest {
        csi::NodeStageVolumeRequest {
            volume_id: self.volume.volume_id.clone(),
            staging_target_path: text(&self.staging()),
            volume_capability: Some(self.capability.clone()),
            volume_context: self.volume.volume_context.clone(),
            ..Default::default()
        }
    }

    pub fn publish_request(&self, pod: &str) -> csi::NodePublishVolumeRequest {
        csi::NodePublishVolumeRequest {
            volume_id: self.volume.volume_id.clone(),
            staging_target_path: text(&self.staging()),
            target_path: text(&self.target(pod)),
            volume_capability: Some(self.capability.clone()),
            readonly: self.readonly,
            volume_context: self.volume.volume_context.clone(),
            ..Default::default()
        }
    }

    pub async fn stage(&self, scene: &Scene) -> Result<(), Status> {
        scene.csi.node.clone().node_stage_volume(self.stage_request()).await.map(drop)
    }

    pub async fn unstage(&self, scene: &Scene) -> Result<(), Status> {
        let request = csi::NodeUnstageVolumeRequest {
            volume_id: self.volume.volume_id.clone(),
            staging_target_path: text(&self.staging()),
        };
        scene.csi.node.clone().node_unstage_volume(request).await.map(drop)
    }

    pub async fn publish(&self, scene: &Scene, pod: &str) -> Result<(), Status> {
        scene.csi.node.clone().node_publish_volume(self.publish_request(pod)).await.map(drop)
    }

    pub async fn unpublish(&self, scene: &Scene, pod: &str) -> Result<(), Status> {
        let request = csi::NodeUnpublishVolumeRequest {
            volume_id: self.volume.volume_id.clone(),
            target_path: text(&self.target(pod)),
        };
        scene.csi.node.clone().node_unpublish_volume(request).await.map(drop)
    }

    pub async fn stats(&self, scene: &Scene, path: &Path) -> Result<Vec<csi::VolumeUsage>, Status> {
        let request = csi::NodeGetVolumeStatsRequest {
            volume_id: self.volume.volume_id.clone(),
            volume_path: text(path),
            ..Default::default()
        };
        Ok(scene.csi.node.clone().node_get_volume_stats(request).await?.into_inner().usage)
    }

    /// Stages and publishes to one pod.
    pub async fn start(&self, scene: &Scene, pod: &str) {
        self.stage(scene).await.unwrap();
        self.publish(scene, pod).await.unwrap();
    }

    /// Unpublishes from one pod and unstages.
    pub async fn end(&self, scene: &Scene, pod: &str) {
        self.unpublish(scene, pod).await.unwrap();
        self.unstage(scene).await.unwrap();
    }

    /// The stage tag of the volume, as LVM has it.
    pub fn stage_tag(&self, scene: &Scene) -> String {
        let rows = scene.group.lvs("lv_name,lv_tags").unwrap();
        let name = self.volume.volume_id.split('/').nth(1).unwrap();
        let row = rows.iter().find(|row| row["lv_name"] == name).unwrap();
        row["lv_tags"].split(',').find(|tag| tag.starts_with("g=")).unwrap().to_owned()
    }

    /// The path of its device.
    pub fn device(&self, scene: &Scene) -> String {
        format!("/dev/{}/{}", scene.group.name(), self.volume.volume_id.split('/').nth(1).unwrap())
    }
}

pub fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}
