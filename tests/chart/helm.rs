//! Renders the chart with Helm, the way a user does, and reads what came out.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use quarry_tests::artifacts::{Binaries, Store};
use quarry_tests::cache;
use quarry_tests::command::{Command, Outcome};
use quarry_tests::process;
use quarry_tests::progress::Progress;
use serde_json::Value;

/// The version of the cluster that Helm is to assume.
const KUBERNETES: &str = "1.36.0";
/// The namespace of the release.
pub const NAMESPACE: &str = "storage";

/// The chart's folder.
pub fn chart() -> PathBuf {
    cache::workspace().join("manifests/chart")
}

/// Helm as the test clusters use it; the first test builds it where that was not done yet.
static HELM: LazyLock<PathBuf> = LazyLock::new(|| {
    let binaries = Binaries::build(&Store::open().unwrap(), &["helm"], &Progress::default()).unwrap();
    binaries.path("helm").unwrap()
});

/// `helm` with these arguments, to its end.
pub fn helm(arguments: &[&str]) -> Outcome {
    let program: &Path = &HELM;
    process::run(&Command::new(program).args(arguments), Duration::from_secs(60)).unwrap()
}

/// What `helm template` says to a values file with this text.
pub fn render(values: &str) -> Outcome {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("values.yaml");
    std::fs::write(&file, values).unwrap();
    let (chart, file) = (chart(), file);
    helm(&[
        "template",
        "quarry",
        chart.to_str().unwrap(),
        "--namespace",
        NAMESPACE,
        "--kube-version",
        KUBERNETES,
        "--values",
        file.to_str().unwrap(),
    ])
}

/// The objects of a rendered chart.
#[derive(Debug)]
pub struct Objects(pub Vec<Value>);

impl Objects {
    /// Renders the chart with a values file of this text.
    pub fn with(values: &str) -> Self {
        let text = render(values).success().unwrap().stdout_text();
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        Self(objects.into_iter().filter(|object| !object.is_null()).collect())
    }

    /// All objects of a kind.
    pub fn of_kind(&self, kind: &str) -> Vec<&Value> {
        self.0.iter().filter(|object| object["kind"] == kind).collect()
    }

    /// The only object of a kind.
    pub fn only(&self, kind: &str) -> &Value {
        let [object] = self.of_kind(kind)[..] else { panic!("not exactly one {kind}: {:?}", self.of_kind(kind)) };
        object
    }

    /// The pods' specification.
    pub fn pod(&self) -> &Value {
        &self.only("DaemonSet")["spec"]["template"]["spec"]
    }

    /// A container of the pods.
    pub fn container(&self, name: &str) -> &Value {
        let containers = self.pod()["containers"].as_array().unwrap();
        containers.iter().find(|container| container["name"] == name).unwrap()
    }

    /// The arguments of a container.
    pub fn arguments(&self, container: &str) -> Vec<&str> {
        self.container(container)["args"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
    }

    /// The volumes of the pods that a container mounts.
    pub fn volumes_of(&self, container: &str) -> Vec<&Value> {
        let mounts = self.container(container)["volumeMounts"].as_array().unwrap();
        let volumes = self.pod()["volumes"].as_array().unwrap();
        let named = |mount: &Value| volumes.iter().find(|volume| volume["name"] == mount["name"]).unwrap();
        mounts.iter().map(named).collect()
    }

    /// The driver's configuration file, where there is one.
    pub fn configuration(&self) -> Option<&str> {
        self.of_kind("ConfigMap").first().map(|map| map["data"]["config.yaml"].as_str().unwrap())
    }
}
