//! What every test here begins with: a driver on two volume groups, of which one has weak disks.

use std::ops::Deref;
use std::path::PathBuf;
use std::time::Duration;

use quarry_proto::csi::v1 as csi;
use quarry_tests::in_vm::{DriverUnderTest, VgOptions, VolumeGroup, WeakDisk};
use tonic::{Code, Status};

use crate::scene::{MIB, Scene, filesystem, spec};
use crate::watch::ADDRESS;

/// The parameters of volumes on the weak group.
pub const SICK: &[(&str, &str)] = &[("deviceClass", "sick"), ("provisioning", "thick")];
/// The parameters of volumes on the other one.
pub const WELL: &[(&str, &str)] = &[("deviceClass", "well"), ("provisioning", "thick")];

/// A driver with the classes `well` and `sick`.
pub struct Node {
    scene: Scene,
    /// The group of the class `sick`.
    pub sick: VolumeGroup,
    /// Its disks.
    pub disks: Vec<WeakDisk>,
}

impl Deref for Node {
    type Target = Scene;

    fn deref(&self) -> &Scene {
        &self.scene
    }
}

impl Node {
    /// With so many weak disks of so many MiB, and these lines more for their class and for all.
    pub async fn with(disks: usize, mib: u64, class: &str, more: &str) -> Self {
        let disks: Vec<WeakDisk> = (0..disks).map(|_| WeakDisk::new(mib).unwrap()).collect();
        let paths: Vec<PathBuf> = disks.iter().map(|disk| disk.path().to_owned()).collect();
        let sick = VolumeGroup::on("sick", paths, &VgOptions { disks: 0, arguments: small_metadata() }).unwrap();
        let well = VolumeGroup::fresh("well").unwrap();
        let config = format!(
            "deviceClasses:\n  - {{name: well, volumeGroup: {}}}\n  - {{name: sick, volumeGroup: {}{class}}}\n{more}",
            well.name(),
            sick.name()
        );
        let mut spec = spec(&config);
        spec.arguments = vec!["--http-address".to_owned(), ADDRESS.to_owned()];
        Self { scene: Scene::of(well, DriverUnderTest::start(spec).unwrap()).await, sick, disks }
    }

    /// With one weak disk and a driver that answers after two seconds.
    pub async fn new() -> Self {
        Self::with(1, 1024, "", "timeouts: {answerSeconds: 2, nodeAnswerSeconds: 2, shutdownSeconds: 3}\n").await
    }

    pub fn scene(&mut self) -> &mut Scene {
        &mut self.scene
    }

    /// Asks until the answer is no longer that the work goes on.
    pub async fn made(&self, name: &str, parameters: &[(&str, &str)]) -> Result<csi::Volume, Status> {
        settled(|| self.create(filesystem(name, 32 * MIB, parameters))).await
    }

    /// Asks once.
    pub async fn create_once(&self, name: &str, parameters: &[(&str, &str)]) -> Result<csi::Volume, Status> {
        self.create(filesystem(name, 32 * MIB, parameters)).await
    }

    /// The same for a deletion.
    pub async fn deleted(&self, id: &str) -> Result<(), Status> {
        settled(|| self.delete(id)).await
    }

    /// What ControllerGetVolume says.
    pub async fn get(&self, id: &str) -> Result<csi::Volume, Status> {
        let request = csi::ControllerGetVolumeRequest { volume_id: id.to_owned() };
        let answer = self.csi.controller.clone().controller_get_volume(request).await?;
        Ok(answer.into_inner().volume.unwrap())
    }

    /// What ListVolumes says, as ids in order.
    pub async fn ids(&self) -> Result<Vec<String>, Status> {
        let answer = self.csi.controller.clone().list_volumes(csi::ListVolumesRequest::default()).await?;
        let volumes = answer.into_inner().entries.into_iter().map(|entry| entry.volume.unwrap().volume_id);
        Ok(volumes.collect())
    }

    /// What GetCapacity says.
    pub async fn room(&self, parameters: &[(&str, &str)]) -> Result<i64, Status> {
        let request = csi::GetCapacityRequest { parameters: crate::scene::map(parameters), ..Default::default() };
        Ok(self.csi.controller.clone().get_capacity(request).await?.into_inner().available_capacity)
    }

    /// Volumes come and go on the sound group, and the driver itself is well.
    pub async fn other_group_is_served(&self, name: &str) {
        let volume = self.made(name, WELL).await.unwrap();
        assert_eq!(self.get(&volume.volume_id).await.unwrap().volume_id, volume.volume_id);
        assert!(self.room(WELL).await.unwrap() > 0);
        self.deleted(&volume.volume_id).await.unwrap();
        self.is_alive().await;
    }

    /// Liveness and Probe: the driver's own loop, whatever the disks do.
    pub async fn is_alive(&self) {
        assert_eq!(crate::watch::ask("/livez").await.0, 200);
        let probe = self.csi.identity.clone().probe(csi::ProbeRequest {}).await.unwrap().into_inner();
        assert_eq!(probe.ready, Some(true));
    }

    /// Waits until `/readyz` has no fault left.
    pub async fn becomes_ready(&self) {
        eventually("the driver is ready again", || async { crate::watch::ask("/readyz").await.0 == 200 }).await;
        assert_eq!(crate::watch::metric("quarry_ready").await, Some(1.0));
        for group in [self.group.name(), self.sick.name()] {
            assert_eq!(readable(group).await, Some(1.0), "{group}");
        }
    }

    /// Waits until `/readyz` tells of the sick group, saying all of this; metrics agree, and the other group is not named.
    pub async fn tells_of(&self, parts: &[&str]) {
        let told = || async {
            let (status, body) = crate::watch::ask("/readyz").await;
            status == 503 && parts.iter().all(|part| body.contains(part))
        };
        eventually(&format!("/readyz tells {parts:?}"), told).await;
        let (_, body) = crate::watch::ask("/readyz").await;
        assert!(body.contains(&format!("volume group {} of device class sick", self.sick.name())), "{body}");
        assert!(!body.contains(self.group.name()), "{body}");
        assert_eq!(crate::watch::metric("quarry_ready").await, Some(0.0));
        assert_eq!(readable(self.group.name()).await, Some(1.0));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // First of all: whoever removes a group waits for its disks.
        for disk in &self.disks {
            if let Err(error) = disk.heal() {
                eprintln!("cannot heal {}: {error:#}", disk.path().display());
            }
        }
    }
}

pub async fn readable(group: &str) -> Option<f64> {
    crate::watch::metric(&format!("quarry_volume_group_readable{{volume_group=\"{group}\"}}")).await
}

/// Asks again as long as the answer is ABORTED.
pub async fn settled<T, F: Future<Output = Result<T, Status>>>(ask: impl Fn() -> F) -> Result<T, Status> {
    for _ in 0..600 {
        match ask().await {
            Err(status) if status.code() == Code::Aborted => tokio::time::sleep(Duration::from_millis(200)).await,
            answer => return answer,
        }
    }
    panic!("the work does not end");
}

/// Waits for something to come about.
pub async fn eventually<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    for _ in 0..600 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let (_, readiness) = crate::watch::ask("/readyz").await;
    panic!("it did not come about that {what}; /readyz: {readiness}");
}

fn small_metadata() -> Vec<String> {
    ["--metadatasize", "4m"].map(str::to_owned).to_vec()
}
