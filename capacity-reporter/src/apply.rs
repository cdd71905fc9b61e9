//! Carries out changes at the API server: one request each, within a bound of time.
//!
//! **Invariant.** A request can change only the object it was meant for: one is made only where there is none of its
//! name, and changed or deleted only while its UID is the known one.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::CSIStorageCapacity;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use tokio::time::Instant;

use crate::identity::{Identity, MANAGER};
use crate::object::{Figures, Object, Owner, manifest};
use crate::plan::{Action, Change};
use crate::telemetry::chain;
use crate::telemetry::metrics::Metrics;

/// How long one request may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Why a request had no success.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The API server refused it, or it did not get there.
    #[error("the API server refused the request or could not be reached")]
    Kube(#[source] kube::Error),
    /// Nothing came back.
    #[error("the API server did not answer within {} s", LIMIT.as_secs())]
    NoAnswer,
    /// The name is taken by an object of somebody else.
    #[error(
        "the object {namespace}/{name} is there and not marked as ours (its labels are {labels}): it is left alone, and \
         as long as it is there, nothing can be published for its StorageClass; delete it"
    )]
    Foreign {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What it is marked as.
        labels: String,
    },
}

impl RequestError {
    /// The HTTP status, where there is one.
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Kube(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }

    /// How long the API server asks not to be asked again.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        let Self::Kube(kube::Error::Api(status)) = self else { return None };
        let seconds = status.details.as_ref()?.retry_after_seconds;
        (seconds > 0).then(|| Duration::from_secs(u64::from(seconds)))
    }
}

/// Waits for the answer to a request, within the bound.
///
/// # Errors
/// [`RequestError`].
pub async fn within<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, RequestError> {
    match tokio::time::timeout(LIMIT, request).await {
        Ok(answer) => answer.map_err(RequestError::Kube),
        Err(_) => Err(RequestError::NoAnswer),
    }
}

/// Asks again, after a pause each time, until there is an answer or the time is up: an API server that is away for a moment
/// must not keep an installation from being removed. `failed` says in the log what did not come about.
///
/// # Errors
/// The last one.
pub async fn insist<T, F>(end: Instant, pause: Duration, failed: &str, ask: impl Fn() -> F) -> Result<T, RequestError>
where
    F: Future<Output = Result<T, RequestError>>,
{
    loop {
        match ask().await {
            Err(error) if Instant::now() < end => tracing::warn!(error = chain(&error), "{failed}; tried again"),
            outcome => return outcome,
        }
        tokio::time::sleep(pause).await;
    }
}

/// What came of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// This is what is there now.
    Written(Box<Object>),
    /// It is gone.
    Deleted,
    /// It is another object than it was; the watch will tell.
    Outdated,
}

/// Who makes the changes.
#[derive(Clone)]
pub struct Applier {
    client: Client,
    metrics: Arc<Metrics>,
}

impl Applier {
    /// With this client.
    #[must_use]
    pub fn new(client: Client, metrics: Arc<Metrics>) -> Self {
        Self { client, metrics }
    }

    fn api(&self, namespace: &str) -> Api<CSIStorageCapacity> {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn count<T>(
        &self,
        verb: &str,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, RequestError> {
        let result = within(request).await;
        self.metrics.requested(verb, &result);
        result
    }

    /// Makes one change.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn apply(&self, identity: &Identity, owner: &Owner, change: &Change) -> Result<Done, RequestError> {
        match &change.action {
            Action::Create(figures) => self.create(identity, owner, change, *figures).await,
            Action::Update { uid, figures } => {
                let object = manifest(identity, owner, &change.class, *figures, Some(uid));
                let parameters = PatchParams::apply(MANAGER).force();
                let patch = Patch::Apply(&object);
                let api = self.api(&change.namespace);
                match self.count("apply", api.patch(&change.name, &parameters, &patch)).await {
                    Ok(object) => Ok(Done::Written(Box::new(Object::of(object)))),
                    // It is gone, or another one has its name.
                    Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(Done::Outdated),
                    Err(error) => Err(error),
                }
            }
            Action::Delete { uid } => self.delete(&change.namespace, &change.name, uid).await,
        }
    }

    /// Makes an object where there is none. Not by an apply: that would take over whatever has the name.
    async fn create(
        &self,
        identity: &Identity,
        owner: &Owner,
        change: &Change,
        figures: Figures,
    ) -> Result<Done, RequestError> {
        let api = self.api(&change.namespace);
        let object = manifest(identity, owner, &change.class, figures, None);
        let object =
            serde_json::from_value(object).map_err(|error| RequestError::Kube(kube::Error::SerdeError(error)))?;
        let parameters = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        match self.count("create", api.create(&parameters, &object)).await {
            Ok(object) => Ok(Done::Written(Box::new(Object::of(object)))),
            // Its watch is late, or it has lost the label by which it is watched, or it is not ours.
            Err(error) if error.code() == Some(409) => {
                let Some(there) = self.count("get", api.get_opt(&change.name)).await? else {
                    return Ok(Done::Outdated);
                };
                let there = Object::of(there);
                if there.is_ours(&identity.driver) {
                    return Ok(Done::Written(Box::new(there)));
                }
                let labels: Vec<String> = there.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
                Err(RequestError::Foreign {
                    namespace: there.namespace,
                    name: there.name,
                    labels: if labels.is_empty() { "none".to_owned() } else { labels.join(", ") },
                })
            }
            Err(error) => Err(error),
        }
    }

    /// Deletes this very object.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn delete(&self, namespace: &str, name: &str, uid: &str) -> Result<Done, RequestError> {
        let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let parameters = DeleteParams::default().preconditions(preconditions);
        match self.count("delete", self.api(namespace).delete(name, &parameters)).await {
            Ok(answer) => match answer.left().map(Object::of) {
                // Somebody's finalizer holds it back.
                Some(object) if object.leaving => Ok(Done::Written(Box::new(object))),
                _ => Ok(Done::Deleted),
            },
            Err(error) if error.code() == Some(404) => Ok(Done::Deleted),
            Err(error) if error.code() == Some(409) => Ok(Done::Outdated),
            Err(error) => Err(error),
        }
    }

    /// The objects that csi-provisioner wrote for this node, before the reporter was there to do it.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn left_by_provisioner(&self, identity: &Identity) -> Result<Vec<Object>, RequestError> {
        let api: Api<CSIStorageCapacity> = Api::all(self.client.clone());
        // With a name too long for the label all nodes' objects are looked at, a page at a time.
        let selector = identity.provisioner_selector();
        let selector = selector.unwrap_or_else(|| format!("{}={}", crate::identity::DRIVER_LABEL, identity.driver));
        let mut parameters = kube::api::ListParams::default().labels(&selector).limit(PAGE);
        let mut left = Vec::new();
        loop {
            let page = self.count("list", api.list(&parameters)).await?;
            let objects = page.items.into_iter().map(Object::of);
            left.extend(objects.filter(|object| object.is_of(identity) && by_provisioner(object)));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => parameters.continue_token = Some(token),
                None => return Ok(left),
            }
        }
    }

    /// The node that the objects belong to; nothing where Kubernetes has no such node.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn owner(&self, node: &str) -> Result<Option<Owner>, RequestError> {
        let api: Api<Node> = Api::all(self.client.clone());
        let node = self.count("get", api.get_metadata_opt(node)).await?;
        Ok(node.and_then(|node| Some(Owner { name: node.metadata.name?, uid: node.metadata.uid? })))
    }
}

/// How many objects a list brings at once.
pub const PAGE: u32 = 500;

/// Whether csi-provisioner keeps an object.
#[must_use]
pub fn by_provisioner(object: &Object) -> bool {
    let manager = object.labels.get(crate::identity::MANAGED_BY_LABEL);
    manager.is_some_and(|manager| manager.starts_with(crate::identity::PROVISIONER_PREFIX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tests::here;

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_never_answers_is_not_waited_for() {
        let never = tower::service_fn(|_: http::Request<kube::client::Body>| {
            std::future::pending::<Result<http::Response<kube::client::Body>, tower::BoxError>>()
        });
        let applier = Applier::new(Client::new(never, "default"), Arc::new(Metrics::new().unwrap()));
        let begin = tokio::time::Instant::now();
        let owner = Owner { name: "node-1".to_owned(), uid: "u".to_owned() };
        let change = Change {
            kind: crate::plan::Kind::Make,
            namespace: "quarry".to_owned(),
            name: here().object_name("c"),
            class: "c".to_owned(),
            action: Action::Create(Figures::NOTHING),
        };
        let error = applier.apply(&here(), &owner, &change).await.unwrap_err();
        assert!(matches!(error, RequestError::NoAnswer) && error.code().is_none(), "{error}");
        assert_eq!(begin.elapsed().as_secs(), LIMIT.as_secs());
    }
}
