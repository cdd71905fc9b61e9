//! What most tests of the driver begin with: a volume group, a driver on it, a client, and a few questions.

use std::collections::HashMap;
use std::time::Duration;

use quarry_proto::csi::v1 as csi;
use quarry_proto::csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use quarry_tests::in_vm::{Csi, DriverSpec, DriverUnderTest, VgOptions, VolumeGroup};
use tonic::{Code, Status};

pub const MIB: i64 = 1 << 20;
pub const GIB: i64 = 1 << 30;

/// An emulated machine on a busy host is slow: what a test waits for is the end of the work, not the driver's patience.
const PATIENCE: &str = "timeouts: {answerSeconds: 300, nodeAnswerSeconds: 300}\n";

/// A volume group with a driver on it, whose log counts LVM's processes.
pub struct Scene {
    pub csi: Csi,
    // Dropped in this order: the driver, then the group it uses.
    pub driver: DriverUnderTest,
    pub group: VolumeGroup,
}

impl Scene {
    pub async fn new(test: &str) -> Self {
        Self::on(VolumeGroup::fresh(test).unwrap(), "").await
    }

    /// A scene on a group made in some way, with more lines for its device class.
    pub async fn on(group: VolumeGroup, class: &str) -> Self {
        let config = format!("deviceClasses:\n  - name: default\n    volumeGroup: {}\n{class}{PATIENCE}", group.name());
        Self::with_config(group, &config).await
    }

    pub async fn with_config(group: VolumeGroup, config: &str) -> Self {
        Self::of(group, DriverUnderTest::start(spec(config)).unwrap()).await
    }

    /// Of a driver that was started in some way.
    pub async fn of(group: VolumeGroup, driver: DriverUnderTest) -> Self {
        Self { csi: serving(&driver).await, driver, group }
    }

    /// Starts the driver again, after it was stopped or killed.
    pub async fn restart(&mut self) {
        self.driver.launch().unwrap();
        self.csi = serving(&self.driver).await;
    }

    pub async fn create(&self, request: csi::CreateVolumeRequest) -> Result<csi::Volume, Status> {
        let answer = self.csi.controller.clone().create_volume(request).await?;
        Ok(answer.into_inner().volume.unwrap())
    }

    pub async fn delete(&self, id: &str) -> Result<(), Status> {
        let request = csi::DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
        self.csi.controller.clone().delete_volume(request).await.map(drop)
    }

    pub async fn list(&self) -> Vec<csi::Volume> {
        let answer = self.csi.controller.clone().list_volumes(csi::ListVolumesRequest::default()).await.unwrap();
        answer.into_inner().entries.into_iter().map(|entry| entry.volume.unwrap()).collect()
    }

    /// What GetCapacity says: both of its figures are the same.
    pub async fn capacity(&self, parameters: &[(&str, &str)]) -> i64 {
        self.told(parameters).await.unwrap()
    }

    /// The same, or why it says nothing.
    pub async fn told(&self, parameters: &[(&str, &str)]) -> Result<i64, Status> {
        let request = csi::GetCapacityRequest { parameters: map(parameters), ..Default::default() };
        let answer = self.csi.controller.clone().get_capacity(request).await?.into_inner();
        assert_eq!(answer.maximum_volume_size, Some(answer.available_capacity));
        Ok(answer.available_capacity)
    }

    /// Waits for half a minute for something to come about.
    pub async fn eventually<F: Future<Output = bool>>(&self, what: &str, holds: impl Fn() -> F) {
        for _ in 0..300 {
            if holds().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("it did not come about that {what}; {}", self.driver.log_tail(30));
    }

    /// Waits until GetCapacity says what is expected: changes behind the driver's back are noticed, not polled for.
    pub async fn capacity_becomes(&self, parameters: &[(&str, &str)], expected: impl Fn(i64) -> bool) -> i64 {
        for _ in 0..300 {
            let capacity = self.capacity(parameters).await;
            if expected(capacity) {
                return capacity;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the capacity is still {} after half a minute", self.capacity(parameters).await);
    }

    /// The verbs of all LVM processes that the driver has started so far.
    pub fn lvm_processes(&self) -> Vec<String> {
        let log = self.driver.log();
        let commands = log.lines().filter(|line| line.contains("command ended") && line.contains("/lvm "));
        commands.map(|line| line.split("/lvm ").nth(1).unwrap().split([' ', '"']).next().unwrap().to_owned()).collect()
    }

    /// The names of the group's volumes that are not LVM's own.
    pub fn volumes(&self) -> Vec<String> {
        let rows = self.group.lvs("lv_name,lv_tags").unwrap();
        let ours = rows.into_iter().filter(|row| row["lv_tags"].split(',').any(|tag| tag == "quarry"));
        ours.map(|mut row| row.remove("lv_name").unwrap()).collect()
    }
}

/// A client, when the driver answers: its socket is there from the first moment, its answers come after the start's work.
async fn serving(driver: &DriverUnderTest) -> Csi {
    let mut csi = driver.connect().await.unwrap();
    csi.identity.probe(csi::ProbeRequest {}).await.unwrap();
    csi
}

pub fn spec(config: &str) -> DriverSpec {
    let mut spec = DriverSpec::with_config(config);
    spec.env.push(("QUARRY_LOG_FILTER".to_owned(), "debug,h2=info,hyper=info,tower=info,sled=info".to_owned()));
    spec
}

/// A group of one disk with a metadata area of its own size.
pub fn group_with(test: &str, arguments: &[&str]) -> VolumeGroup {
    let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    VolumeGroup::with(test, &VgOptions { disks: 1, arguments }).unwrap()
}

pub fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn request(name: &str, bytes: i64, parameters: &[(&str, &str)], access: AccessType) -> csi::CreateVolumeRequest {
    csi::CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(csi::CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
        volume_capabilities: vec![csi::VolumeCapability {
            access_mode: Some(AccessMode { mode: 7 }),
            access_type: Some(access),
        }],
        parameters: map(parameters),
        ..Default::default()
    }
}

pub fn filesystem(name: &str, bytes: i64, parameters: &[(&str, &str)]) -> csi::CreateVolumeRequest {
    request(name, bytes, parameters, AccessType::Mount(MountVolume::default()))
}

pub fn block(name: &str, bytes: i64, parameters: &[(&str, &str)]) -> csi::CreateVolumeRequest {
    request(name, bytes, parameters, AccessType::Block(BlockVolume {}))
}

pub const THICK: &[(&str, &str)] = &[("provisioning", "thick")];
pub const THIN: &[(&str, &str)] = &[];

/// Asserts a refusal: its code, and what its message names.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(outcome: Result<T, Status>, code: Code, parts: &[&str]) {
    let status = outcome.expect_err("should have been refused");
    assert_eq!(status.code(), code, "{status:?}");
    for part in parts {
        assert!(status.message().contains(part), "{:?} does not name {part:?}", status.message());
    }
}

/// Runs a shell line in the machine; it must succeed.
#[track_caller]
pub fn shell(script: &str) -> String {
    let command = quarry_tests::command::Command::shell(script);
    let outcome = quarry_tests::process::run(&command, Duration::from_secs(300)).unwrap();
    outcome.success().unwrap().stdout_text()
}
