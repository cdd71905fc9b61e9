//! What kubelet and csi-provisioner would ask for the suite's volumes.

use std::collections::HashMap;
use std::path::PathBuf;

use quarry_proto::csi::v1 as csi;
use quarry_proto::csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use quarry_tests::in_vm::{Csi, DriverUnderTest};
use tonic::Status;

use crate::GROUP;

const MIB: i64 = 1 << 20;

/// A volume of the workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    pub block: bool,
    pub thick: bool,
}

impl Kind {
    /// Its name says what a volume is.
    pub fn of(volume: &str) -> Self {
        Self { block: volume.contains("raw"), thick: volume.contains("thick") }
    }

    fn capability(self) -> csi::VolumeCapability {
        let access = if self.block {
            AccessType::Block(BlockVolume {})
        } else {
            AccessType::Mount(MountVolume { fs_type: "ext4".to_owned(), ..Default::default() })
        };
        csi::VolumeCapability { access_mode: Some(AccessMode { mode: 7 }), access_type: Some(access) }
    }

    /// The tags that LVM must show, less that of the stage.
    pub fn tags(self) -> [&'static str; 3] {
        ["quarry", "c=default", if self.block { "f=block" } else { "f=ext4" }]
    }
}

/// A client of one driver.
pub struct Client {
    csi: Csi,
    folder: PathBuf,
}

impl Client {
    /// When the driver answers.
    pub async fn new(driver: &DriverUnderTest) -> Self {
        let mut csi = driver.connect().await.unwrap();
        csi.identity.probe(csi::ProbeRequest {}).await.unwrap();
        Self { csi, folder: driver.path("staging") }
    }

    pub async fn create(&self, volume: &str) -> Result<(), Status> {
        let kind = Kind::of(volume);
        let provisioning = if kind.thick { "thick" } else { "thin" };
        let request = csi::CreateVolumeRequest {
            name: volume.to_owned(),
            capacity_range: Some(csi::CapacityRange { required_bytes: 16 * MIB, limit_bytes: 0 }),
            volume_capabilities: vec![kind.capability()],
            parameters: HashMap::from([("provisioning".to_owned(), provisioning.to_owned())]),
            ..Default::default()
        };
        let made = self.csi.controller.clone().create_volume(request).await?.into_inner().volume.unwrap();
        assert_eq!(made.volume_id, format!("node-1/{volume}"));
        Ok(())
    }

    pub async fn delete(&self, volume: &str) -> Result<(), Status> {
        let request = csi::DeleteVolumeRequest { volume_id: format!("node-1/{volume}"), ..Default::default() };
        self.csi.controller.clone().delete_volume(request).await.map(drop)
    }

    /// Where a volume is staged.
    pub fn staging(&self, volume: &str) -> PathBuf {
        self.folder.join(volume)
    }

    pub async fn stage(&self, volume: &str) -> Result<(), Status> {
        std::fs::create_dir_all(self.staging(volume)).unwrap();
        let request = csi::NodeStageVolumeRequest {
            volume_id: format!("node-1/{volume}"),
            staging_target_path: self.staging(volume).display().to_string(),
            volume_capability: Some(Kind::of(volume).capability()),
            ..Default::default()
        };
        self.csi.node.clone().node_stage_volume(request).await.map(drop)
    }

    pub async fn unstage(&self, volume: &str) -> Result<(), Status> {
        let request = csi::NodeUnstageVolumeRequest {
            volume_id: format!("node-1/{volume}"),
            staging_target_path: self.staging(volume).display().to_string(),
        };
        self.csi.node.clone().node_unstage_volume(request).await.map(drop)
    }

    pub async fn list(&self) -> Vec<String> {
        let answer = self.csi.controller.clone().list_volumes(csi::ListVolumesRequest::default()).await.unwrap();
        let handles = answer.into_inner().entries.into_iter().map(|entry| entry.volume.unwrap().volume_id);
        let mut names: Vec<String> = handles.map(|id| id.strip_prefix("node-1/").unwrap().to_owned()).collect();
        names.sort();
        names
    }
}

/// A volume's device.
pub fn device(volume: &str) -> String {
    format!("/dev/{GROUP}/{volume}")
}
