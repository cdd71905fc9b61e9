//! A reporter between its API server and its driver.

use std::sync::Arc;
use std::time::Duration;

use clap::Parser as _;
use quarry_capacity_reporter::args::{Cli, Command, RunArgs};
use quarry_capacity_reporter::identity::Identity;
use quarry_capacity_reporter::run::report;
use quarry_capacity_reporter::telemetry::metrics::Metrics;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::driver::Driver;

pub const OBJECTS: &str = "csistoragecapacities";
pub const GIB: i64 = 1 << 30;
/// How long a test waits for what must happen.
const LIMIT: Duration = Duration::from_secs(20);
/// How long a test waits for what must not happen.
pub const QUIET: Duration = Duration::from_millis(700);

/// A reporter that runs, and whom it talks to.
pub struct Scene {
    pub api: Api,
    pub driver: Driver,
    pub metrics: Arc<Metrics>,
    _folder: tempfile::TempDir,
    pub reporter: Option<tokio::task::JoinHandle<anyhow::Result<()>>>,
    pub end: CancellationToken,
    pub more: Vec<&'static str>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        if let Some(reporter) = self.reporter.take() {
            reporter.abort();
        }
    }
}

pub fn class(device_class: &str, provisioner: &str) -> Value {
    json!({"provisioner": provisioner, "parameters": {"deviceClass": device_class}, "volumeBindingMode": "WaitForFirstConsumer"})
}

pub fn name(class: &str) -> String {
    Identity {
        driver: "lvm.quarry.storage".to_owned(),
        node: "node-1".to_owned(),
        segment: (String::new(), String::new()),
        namespace: String::new(),
    }
    .object_name(class)
}

impl Scene {
    /// Two classes, `a` with 4 GiB and `b` with 2 GiB; nothing runs yet.
    pub fn set() -> Self {
        let api = Api::default();
        api.put("nodes", "", "node-1", json!({"metadata": {"uid": "node-uid"}}));
        api.put("leases", "quarry", "quarry-capacity-janitor", json!({"spec": {}}));
        api.put("storageclasses", "", "a", class("a", "lvm.quarry.storage"));
        api.put("storageclasses", "", "b", class("b", "lvm.quarry.storage"));
        api.put("storageclasses", "", "c", class("c", "somebody.else"));
        let folder = tempfile::tempdir().unwrap();
        let driver = Driver::start(&folder.path().join("csi.sock"), "node-1");
        driver.whisper("a", Ok((4 * GIB, Some(4 * GIB))));
        driver.whisper("b", Ok((3 * GIB, Some(2 * GIB))));
        let metrics = Arc::new(Metrics::new().unwrap());
        Self { api, driver, metrics, _folder: folder, reporter: None, end: CancellationToken::new(), more: Vec::new() }
    }

    /// The same, and both are published.
    pub async fn settled() -> Self {
        let mut scene = Self::set();
        scene.begin();
        scene.until_told("a", "4Gi").await;
        scene.until_told("b", "2Gi").await;
        scene.still().await;
        scene
    }

    pub fn begin(&mut self) {
        let socket = self.driver.socket().to_str().unwrap();
        let line = ["r", "run", "--node-name=node-1", "--namespace=quarry", "--csi-socket", socket];
        let Command::Run(args) = Cli::parse_from(line.iter().chain(&self.more)).command else { panic!("not run") };
        let args: RunArgs = args;
        self.reporter =
            Some(tokio::spawn(report(args, self.api.client(), Arc::clone(&self.metrics), self.end.clone())));
    }

    /// The classes whose objects were seen to say what the driver says.
    pub fn agreed(&self) -> Vec<String> {
        let text = String::from_utf8(self.metrics.text().unwrap()).unwrap();
        let lines = text.lines().filter(|line| line.starts_with("quarry_capacity_object_timestamp_seconds{"));
        lines.map(|line| line.split('"').nth(1).unwrap().to_owned()).collect()
    }

    /// The reporter is killed.
    pub async fn kill(&mut self) {
        let reporter = self.reporter.take().unwrap();
        reporter.abort();
        reporter.await.unwrap_err();
    }

    /// The objects of a class.
    pub fn objects(&self, class: &str) -> Vec<Value> {
        self.api.all(OBJECTS).into_iter().filter(|object| object["storageClassName"] == class).collect()
    }

    pub fn told(&self, class: &str) -> Option<String> {
        let objects = self.objects(class);
        let [object] = &objects[..] else { return None };
        Some(object["maximumVolumeSize"].as_str().unwrap().to_owned())
    }

    /// Waits until exactly one object of the class says this.
    pub async fn until_told(&self, class: &str, size: &str) {
        self.until(&format!("{size} of {class}"), || self.told(class).as_deref() == Some(size)).await;
    }

    pub async fn until(&self, what: &str, mut check: impl FnMut() -> bool) {
        let wait = async {
            while !check() {
                assert!(self.reporter.as_ref().is_none_or(|r| !r.is_finished()), "the reporter ended");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(LIMIT, wait).await.is_ok(), "no {what}: {:#?}", self.api.all(OBJECTS));
    }

    /// Waits until no request but watches has come for a while.
    pub async fn still(&self) {
        loop {
            let before = self.api.requests();
            tokio::time::sleep(QUIET).await;
            if self.api.requests() == before {
                return;
            }
        }
    }
}
