//! kubectl: how tests and the demo talk to a cluster, the way its users do.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::command::{Command, Outcome};
use crate::{process, wait};

/// How long one call may take; calls that wait for something say their own limit.
const LIMIT: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(400);

/// Runs kubectl against one cluster.
#[derive(Debug, Clone)]
pub struct Kubectl {
    program: PathBuf,
    namespace: Option<String>,
}

impl Kubectl {
    /// With the script that [`super::Cluster`] leaves in its folder.
    #[must_use]
    pub fn of(folder: &Path) -> Self {
        Self { program: folder.join("kubectl"), namespace: None }
    }

    /// The same, in another namespace than `default`.
    #[must_use]
    pub fn within(&self, namespace: &str) -> Self {
        Self { namespace: Some(namespace.to_owned()), ..self.clone() }
    }

    /// The script, for people.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Runs it with these arguments, split at spaces, and gives its output.
    ///
    /// # Errors
    /// When it fails, with all it said.
    pub fn run(&self, arguments: &str) -> Result<String> {
        self.call(&arguments.split_whitespace().collect::<Vec<_>>())
    }

    /// Runs it with exactly these arguments.
    ///
    /// # Errors
    /// When it fails, with all it said.
    pub fn call(&self, arguments: &[&str]) -> Result<String> {
        Ok(self.outcome(arguments, LIMIT)?.success()?.stdout_text())
    }

    /// Runs it and gives whatever comes of it.
    ///
    /// # Errors
    /// Only when it cannot be started or does not end.
    pub fn outcome(&self, arguments: &[&str], limit: Duration) -> Result<Outcome> {
        process::run(&self.command().args(arguments), limit)
    }

    fn command(&self) -> Command {
        let namespace = self.namespace.iter().map(|name| format!("--namespace={name}"));
        Command::new(&self.program).args(namespace)
    }

    /// Creates or changes objects from a manifest.
    ///
    /// # Errors
    /// When the API server refuses them.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        let command = self.command().args(["apply", "-f", "-"]).stdin(manifest);
        process::run(&command, LIMIT)?.success().map(drop)
    }

    /// An object or a list as JSON.
    ///
    /// # Errors
    /// When there is no such object.
    pub fn get(&self, what: &str) -> Result<Value> {
        let text = self.run(&format!("get {what} -o json"))?;
        serde_json::from_str(&text).with_context(|| format!("kubectl get {what}: no JSON"))
    }

    /// As [`Kubectl::get`], but `None` when it does not exist.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub fn find(&self, what: &str) -> Result<Option<Value>> {
        let text = self.run(&format!("get {what} -o json --ignore-not-found"))?;
        if text.trim().is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&text).map(Some).with_context(|| format!("kubectl get {what}: no JSON"))
    }

    /// Waits until `check` finds a value in the object.
    ///
    /// # Errors
    /// At the limit, with the object's description and events; what `check` returns as an error, at once.
    pub fn wait<T>(
        &self,
        what: &str,
        wish: &str,
        limit: Duration,
        mut check: impl FnMut(&Value) -> Result<Option<T>>,
    ) -> Result<T> {
        let look = || match self.find(what)? {
            Some(object) => check(&object),
            None => Ok(None),
        };
        wait::until(&format!("{what}: {wish}"), limit, LOOK, look).with_context(|| {
            let said =
                self.outcome(&["describe"].into_iter().chain(what.split_whitespace()).collect::<Vec<_>>(), LIMIT);
            said.map_or_else(|error| error.to_string(), |o| o.stdout_text())
        })
    }

    /// Waits until the object is gone.
    ///
    /// # Errors
    /// At the limit.
    pub fn wait_gone(&self, what: &str, limit: Duration) -> Result<()> {
        let look = || Ok(self.find(what)?.is_none().then_some(()));
        wait::until(&format!("{what}: gone"), limit, LOOK, look).with_context(|| {
            let said =
                self.outcome(&["describe"].into_iter().chain(what.split_whitespace()).collect::<Vec<_>>(), LIMIT);
            said.map_or_else(|error| error.to_string(), |o| o.stdout_text())
        })
    }

    /// Runs a command in a pod's first container and gives its output.
    ///
    /// # Errors
    /// When the pod does not run or the command fails.
    pub fn exec(&self, pod: &str, command: &[&str]) -> Result<String> {
        let mut arguments = vec!["exec", pod, "--"];
        arguments.extend(command);
        self.call(&arguments)
    }
}

/// Text at a JSON pointer, empty when there is none.
#[must_use]
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

/// The items of a list.
#[must_use]
pub fn items(list: &Value) -> &[Value] {
    list.pointer("/items").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Whether a pod runs and is ready.
#[must_use]
pub fn pod_ready(pod: &Value) -> bool {
    text(pod, "/status/phase") == "Running"
        && condition(pod, "Ready") == "True"
        && pod.pointer("/metadata/deletionTimestamp").is_none()
}

/// The status of a condition (`True`, `False`, `Unknown`), empty when it is not told.
#[must_use]
pub fn condition<'a>(object: &'a Value, name: &str) -> &'a str {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    let found = conditions.into_iter().flatten().find(|c| text(c, "/type") == name);
    found.map_or("", |c| text(c, "/status"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_is_ready_when_it_runs_and_says_so_and_is_not_being_deleted() {
        let ready = json!({"metadata": {}, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        assert!(pod_ready(&ready));
        let mut leaving = ready.clone();
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert!(!pod_ready(&leaving));
        let mut starting = ready;
        starting["status"]["conditions"][0]["status"] = json!("False");
        assert!(!pod_ready(&starting));
        assert!(!pod_ready(&json!({})));
    }
}
