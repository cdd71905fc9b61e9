//! Pods with volumes: a cgroup where the kubelet would make it, and a raw block volume published to it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use quarry_proto::csi::v1 as csi;
use quarry_tests::in_vm::{VgOptions, VolumeGroup};
use serde_json::Value;
use tonic::Status;

use crate::pod::Pod;
use crate::scene::{MIB, Scene, block, map, shell};

/// The root of cgroup v2.
pub const CGROUPS: &str = "/sys/fs/cgroup";
/// What a disk of this machine does.
pub const IOPS: f64 = 600.0;

/// A fresh group, on a disk that nobody has set up.
pub fn fresh(test: &str) -> VolumeGroup {
    with(test, &VgOptions::default())
}

/// The same, made with options.
pub fn with(test: &str, options: &VgOptions) -> VolumeGroup {
    let group = VolumeGroup::with(test, options).unwrap();
    for disk in group.disks() {
        untouched(disk);
    }
    group
}

/// Takes away what a driver that was killed left on a disk.
pub fn untouched(disk: &Path) {
    let name = disk.file_name().unwrap().to_string_lossy().into_owned();
    fs::write(format!("{CGROUPS}/io.cost.qos"), format!("{} enable=0", number(disk))).unwrap();
    fs::write(format!("/sys/block/{name}/queue/scheduler"), "none").unwrap();
}

/// A driver's configuration with a model of the group's disks at this share of their true speed.
pub fn configuration(group: &VolumeGroup, percent: f64) -> String {
    let iops = IOPS * percent / 100.0;
    let models: Vec<String> = group
        .disks()
        .iter()
        .map(|disk| {
            let name = disk.file_name().unwrap().to_string_lossy().into_owned();
            // Operations are what is scarce here: their size costs nothing.
            format!(
                "    - disk: {name}\n      speed: {{readBps: 1000000000000, readSequentialIops: {iops}, readRandomIops: {iops}, \
                 writeBps: 1000000000000, writeSequentialIops: {iops}, writeRandomIops: {iops}}}\n"
            )
        })
        .collect();
    with_io(group, &format!("io:\n  models:\n{}", models.join("")))
}

/// A driver's configuration with this part about disks.
pub fn with_io(group: &VolumeGroup, io: &str) -> String {
    format!(
        "deviceClasses:\n  - {{name: default, volumeGroup: {}}}\ntimeouts: {{answerSeconds: 300, nodeAnswerSeconds: 300}}\n{io}",
        group.name()
    )
}

/// Of which class a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Class {
    fn folder(self) -> &'static str {
        match self {
            Self::Guaranteed => "kubepods",
            Self::Burstable => "kubepods/burstable",
            Self::BestEffort => "kubepods/besteffort",
        }
    }
}

static PODS: AtomicU32 = AtomicU32::new(1);

/// A pod and its volume.
pub struct Tenant {
    pub uid: String,
    pub volume: csi::Volume,
    /// Its cgroup's folder, below the root.
    cgroup: PathBuf,
    pod: Pod,
}

impl Tenant {
    /// A pod, with the written volume of that number with these parameters.
    pub async fn new(scene: &Scene, number: u8, class: Class, parameters: &[(&str, &str)]) -> Self {
        let tenant = Self::without_cgroup(scene, number, class, parameters).await;
        tenant.make_cgroup();
        tenant
    }

    /// The same before its cgroup is there: so a pod can be when its volumes are published.
    pub async fn without_cgroup(scene: &Scene, number: u8, class: Class, parameters: &[(&str, &str)]) -> Self {
        let cgroup = |uid: &str| format!("{}/pod{uid}", class.folder());
        Self::placed(scene, number, 64, cgroup, parameters).await
    }

    /// One whose cgroup will be somewhere else, with a volume of so many MiB.
    pub async fn placed(
        scene: &Scene,
        number: u8,
        mib: i64,
        cgroup: impl Fn(&str) -> String,
        parameters: &[(&str, &str)],
    ) -> Self {
        let volume = scene.create(block(&format!("pvc-{number}"), mib * MIB, parameters)).await.unwrap();
        // No two pods of a run share one.
        let uid = format!("{:08x}-0000-4000-8000-000000000000", PODS.fetch_add(1, Ordering::Relaxed));
        let cgroup = PathBuf::from(cgroup(&uid));
        let tenant = Self { uid, pod: Pod::with_block(scene, volume.clone()), volume, cgroup };
        tenant.pod.stage(scene).await.unwrap();
        tenant.publish(scene).await.unwrap();
        // Thin blocks are allocated by this: what is measured later are reads and overwrites.
        shell(&format!("dd if=/dev/zero of={} bs=1M count=64 oflag=direct status=none", tenant.device().display()));
        tenant
    }

    async fn publish(&self, scene: &Scene) -> Result<(), Status> {
        let mut request = self.pod.publish_request(&self.uid);
        request.volume_context.extend(map(&[("csi.storage.k8s.io/pod.uid", &self.uid)]));
        scene.csi.node.clone().node_publish_volume(request).await.map(drop)
    }

    /// Ends the pod.
    pub async fn end(self, scene: &Scene) {
        self.pod.end(scene, &self.uid).await;
        scene.delete(&self.volume.volume_id).await.unwrap();
        fs::remove_dir(self.cgroup()).ok();
    }

    /// Unpublishes, and leaves the rest.
    pub async fn unpublish(&self, scene: &Scene) {
        self.pod.unpublish(scene, &self.uid).await.unwrap();
    }

    /// Where the pod finds its device.
    pub fn device(&self) -> PathBuf {
        self.pod.target(&self.uid)
    }

    pub fn cgroup(&self) -> PathBuf {
        Path::new(CGROUPS).join(&self.cgroup)
    }

    /// Makes its cgroup, with those above it.
    pub fn make_cgroup(&self) {
        let mut above = PathBuf::from(CGROUPS);
        for part in self.cgroup.parent().unwrap() {
            above.push(part);
            fs::create_dir_all(&above).unwrap();
            fs::write(above.join("cgroup.subtree_control"), "+io").unwrap();
        }
        fs::create_dir_all(self.cgroup()).unwrap();
    }

    /// Changes what its volume asks for.
    pub async fn modify(&self, scene: &Scene, parameters: &[(&str, &str)]) -> Result<(), Status> {
        let request = csi::ControllerModifyVolumeRequest {
            volume_id: self.volume.volume_id.clone(),
            mutable_parameters: map(parameters),
            ..Default::default()
        };
        scene.csi.controller.clone().controller_modify_volume(request).await.map(drop)
    }

    /// What `quarry-driver volumes` says of its volume at this pod.
    pub fn publication(&self, scene: &Scene) -> Value {
        let list = scene.driver.volumes().unwrap();
        let volumes = list["volumes"].as_array().unwrap();
        let volume = volumes.iter().find(|volume| volume["handle"] == self.volume.volume_id.as_str()).unwrap();
        volume["published"][0].clone()
    }

    /// Waits until the driver says this of its share, with this in the reason.
    pub async fn becomes(&self, scene: &Scene, state: &str, reason: &str) {
        self.becomes_within(scene, Duration::from_secs(30), state, reason).await;
    }

    /// The same with more patience.
    pub async fn becomes_within(&self, scene: &Scene, patience: Duration, state: &str, reason: &str) {
        for _ in 0..patience.as_millis() / 200 {
            let is = self.publication(scene);
            if is["ioState"] == state && is["ioProblem"].as_str().unwrap_or_default().contains(reason) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        panic!("it did not become {state} {reason:?}: {:#}\n{}", self.publication(scene), scene.driver.log_tail(30));
    }

    /// Waits until its cgroup's file has this line.
    pub async fn shows(&self, file: &str, part: &str) {
        let path = self.cgroup().join(file);
        for _ in 0..150 {
            if fs::read_to_string(&path).is_ok_and(|text| text.contains(part)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        panic!("{} does not come to show {part:?}: {:?}", path.display(), fs::read_to_string(&path));
    }
}

/// What a test leaves that failed, or whose driver has ended, would look like a user of the next one's volumes.
impl Drop for Tenant {
    fn drop(&mut self) {
        shell(&format!("while umount {} 2>/dev/null; do :; done", self.device().display()));
    }
}

/// The number of a disk, as cgroup files have it.
pub fn number(disk: &Path) -> String {
    let name = disk.file_name().unwrap().to_string_lossy().into_owned();
    fs::read_to_string(format!("/sys/block/{name}/dev")).unwrap().trim().to_owned()
}

/// The line of a disk in a file of the root cgroup.
pub fn root_line(file: &str, disk: &Path) -> String {
    let text = fs::read_to_string(Path::new(CGROUPS).join(file)).unwrap();
    let number = number(disk);
    text.lines().find(|line| line.starts_with(&format!("{number} "))).unwrap_or_default().to_owned()
}
