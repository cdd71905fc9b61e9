//! Answers the driver's question which other claims a pod waits for.
//!
//! The scheduler checks each claim of a pod alone, so two that fit singly may not fit together. Only the driver can tell,
//! and only Kubernetes knows which claims belong together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::ListParams;
use kube::{Api, Client};
use quarry_proto::quarry::v1::capacity_client::CapacityClient;
use quarry_proto::quarry::v1::{ClaimsAnswer, ClaimsQuestion, PodClaim};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use crate::apply::{PAGE, RequestError, within};
use crate::classes::{Class, Classes};
use crate::driver::{Current, Driver, Work, with_each};
use crate::quantity;
use crate::telemetry::chain;
use crate::telemetry::metrics::Metrics;

/// Questions that are answered at the same time; the driver waits for each of them.
const AT_ONCE: usize = 8;
/// After a stream that broke while the driver is there.
const PAUSE: Duration = Duration::from_secs(1);
/// Selects pods that wait for a node.
const WAITING: &str = "spec.nodeName=,status.phase=Pending";

/// Who answers.
#[derive(Clone)]
pub struct Claims {
    /// To ask Kubernetes.
    pub client: Client,
    /// The classes whose claims count.
    pub classes: watch::Receiver<Classes>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// Why the question has no answer.
#[derive(Debug, thiserror::Error)]
enum ClaimError {
    #[error("cannot list the waiting pods of namespace {namespace}")]
    Pods {
        namespace: String,
        #[source]
        source: RequestError,
    },
    #[error("cannot read claim {namespace}/{name}")]
    Claim {
        namespace: String,
        name: String,
        #[source]
        source: RequestError,
    },
    #[error("the StorageClasses are not known yet")]
    Classes,
    #[error("claim {namespace}/{name}")]
    Size {
        namespace: String,
        name: String,
        #[source]
        source: quantity::QuantityError,
    },
}

impl Claims {
    /// Answers whatever driver there is, for ever.
    pub async fn run(self, driver: watch::Receiver<Current>) {
        with_each(driver, PAUSE, self).await;
    }

    /// The answer to a question; also that there is none.
    pub async fn others(&self, question: &ClaimsQuestion) -> ClaimsAnswer {
        let found = self.find(question).await;
        let ClaimsQuestion { id, namespace, name } = question;
        match found {
            Ok(others) => {
                let names: Vec<&str> = others.iter().map(|claim| claim.name.as_str()).collect();
                tracing::debug!(namespace, claim = name, others = names.join(","), "other claims of the pod");
                ClaimsAnswer { id: *id, others, error: String::new() }
            }
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(namespace, claim = name, error, "cannot tell the driver of a pod's other claims");
                ClaimsAnswer { id: *id, others: Vec::new(), error }
            }
        }
    }

    async fn find(&self, question: &ClaimsQuestion) -> Result<Vec<PodClaim>, ClaimError> {
        let classes = self.classes.borrow().clone().ok_or(ClaimError::Classes)?;
        let mut names = BTreeSet::new();
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &question.namespace);
        let mut parameters = ListParams::default().fields(WAITING).limit(PAGE);
        loop {
            let page = within(pods.list(&parameters)).await;
            self.metrics.requested("list", &page);
            let page = page.map_err(|source| ClaimError::Pods { namespace: question.namespace.clone(), source })?;
            let claims = page.items.iter().map(claims_of).filter(|claims| claims.contains(&question.name));
            names.extend(claims.flatten());
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => parameters.continue_token = Some(token),
                None => break,
            }
        }
        names.remove(&question.name);
        let mut others = Vec::new();
        for name in names {
            others.extend(self.claim(&question.namespace, name, &classes).await?);
        }
        Ok(others)
    }

    /// A claim, if it waits for a volume of ours.
    async fn claim(
        &self,
        namespace: &str,
        name: String,
        classes: &BTreeMap<String, Class>,
    ) -> Result<Option<PodClaim>, ClaimError> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let claim = within(claims.get_opt(&name)).await;
        self.metrics.requested("get", &claim);
        let claim = claim.map_err(|source| ClaimError::Claim {
            namespace: namespace.to_owned(),
            name: name.clone(),
            source,
        })?;
        let size = |source| ClaimError::Size { namespace: namespace.to_owned(), name, source };
        // One that an ephemeral volume will have is made in a moment; then it is asked for itself.
        claim.map_or(Ok(None), |claim| waiting(claim, classes)).map_err(size)
    }
}

impl Work for Claims {
    async fn with(&mut self, driver: &Driver) -> Result<(), tonic::Status> {
        let (answers, stream) = mpsc::channel(AT_ONCE);
        // Says that somebody is here to be asked.
        answers.send(ClaimsAnswer::default()).await.ok();
        let mut client = CapacityClient::new(driver.channel());
        let questions = client.claims(ReceiverStream::new(stream)).await?.into_inner();
        let (own, answers) = (&*self, &answers);
        questions
            .try_for_each_concurrent(AT_ONCE, |question| async move {
                let answer = own.others(&question).await;
                answers.send(answer).await.ok();
                Ok(())
            })
            .await
    }
}

/// The names of the claims that a pod uses.
fn claims_of(pod: &Pod) -> BTreeSet<String> {
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(claim), _) => Some(claim.claim_name.clone()),
            (None, Some(_)) => Some(format!("{pod_name}-{}", volume.name)),
            (None, None) => None,
        })
        .collect()
}

/// What the driver needs to know of a claim, if that is unbound and one of our classes that wait for a pod.
fn waiting(
    claim: PersistentVolumeClaim,
    classes: &BTreeMap<String, Class>,
) -> Result<Option<PodClaim>, quantity::QuantityError> {
    let Some(spec) = claim.spec else { return Ok(None) };
    let bound = spec.volume_name.is_some_and(|name| !name.is_empty()) || claim.metadata.deletion_timestamp.is_some();
    let class = spec.storage_class_name.and_then(|name| classes.get(&name)).filter(|class| class.waits);
    let (Some(class), Some(uid), false) = (class, claim.metadata.uid, bound) else { return Ok(None) };
    let requested = spec.resources.and_then(|resources| resources.requests).and_then(|mut r| r.remove("storage"));
    let requested_bytes = requested.map_or(Ok(0), |quantity| quantity::parse(&quantity.0))?;
    let block = spec.volume_mode.as_deref() == Some("Block");
    Ok(Some(PodClaim {
        namespace: claim.metadata.namespace.unwrap_or_default(),
        name: claim.metadata.name.unwrap_or_default(),
        volume_name: format!("pvc-{uid}"),
        parameters: class.own_parameters(),
        requested_bytes,
        content: if block { "block".to_owned() } else { class.filesystem().to_owned() },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::collections::HashMap;

    fn classes() -> BTreeMap<String, Class> {
        let parameters = HashMap::from([
            ("deviceClass".to_owned(), "d".to_owned()),
            ("csi.storage.k8s.io/fstype".to_owned(), "xfs".to_owned()),
        ]);
        BTreeMap::from([
            ("thin".to_owned(), Class { parameters: parameters.clone(), waits: true }),
            ("immediate".to_owned(), Class { parameters, waits: false }),
        ])
    }

    fn claim(name: &str, class: &str) -> Value {
        json!({
            "metadata": {"namespace": "n", "name": name, "uid": format!("uid-{name}")},
            "spec": {"storageClassName": class, "resources": {"requests": {"storage": "6Gi"}}},
        })
    }

    fn read(value: Value) -> Option<PodClaim> {
        waiting(serde_json::from_value(value).unwrap(), &classes()).unwrap()
    }

    #[test]
    fn a_claim_counts_while_it_waits_for_one_of_our_volumes() {
        let found = read(claim("a", "thin")).unwrap();
        assert_eq!(
            (found.volume_name.as_str(), found.requested_bytes, found.content.as_str()),
            ("pvc-uid-a", 6 << 30, "xfs")
        );
        assert_eq!(found.parameters, HashMap::from([("deviceClass".to_owned(), "d".to_owned())]));
        let mut block = claim("a", "thin");
        block["spec"]["volumeMode"] = json!("Block");
        assert_eq!(read(block).unwrap().content, "block");
        let mut bound = claim("a", "thin");
        bound["spec"]["volumeName"] = json!("pvc-1");
        for other in [bound, claim("a", "immediate"), claim("a", "of others"), json!({"metadata": {"name": "a"}})] {
            assert_eq!(read(other), None);
        }
        let mut wrong = claim("a", "thin");
        wrong["spec"]["resources"]["requests"]["storage"] = json!("much");
        assert!(waiting(serde_json::from_value(wrong).unwrap(), &classes()).unwrap_err().to_string().contains("much"));
    }

    #[test]
    fn claims_of_ephemeral_volumes_are_named_after_pod_and_volume() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [], "volumes": [
            {"name": "x", "persistentVolumeClaim": {"claimName": "data"}}, {"name": "y", "ephemeral": {}}, {"name": "z", "emptyDir": {}},
        ]}});
        let found = claims_of(&serde_json::from_value(pod).unwrap());
        assert_eq!(found, BTreeSet::from(["data".to_owned(), "p-y".to_owned()]));
    }
}
