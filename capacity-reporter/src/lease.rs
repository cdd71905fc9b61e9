//! One reporter of all holds the lease, and does what is to be done once for the cluster.
//!
//! Nobody asks for the lease over and over: all watch that one object, its holder renews it, and who has not seen it
//! renewed for its whole duration, by a clock of their own that no correction moves, tries to take it, at a random
//! moment so that thousands do not try at once.
//!
//! **Invariant.** A lease is written only in the version that was seen, so of two who try one has it. What its holder does
//! is right even if for a moment two of them do it.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease as Object;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::Config;
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::apply::{RequestError, within};
use crate::follow::{News, follow};
use crate::telemetry::metrics::Metrics;

/// The lease's name; the chart makes it.
pub const NAME: &str = "quarry-capacity-janitor";

/// The lease as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    holder: String,
    version: String,
    transitions: i32,
    /// How long it lasts since it was renewed.
    duration: Duration,
    /// When this was seen.
    at: Instant,
}

impl Seen {
    fn of(lease: &Object, now: Instant) -> Self {
        let spec = lease.spec.clone().unwrap_or_default();
        Self {
            holder: spec.holder_identity.unwrap_or_default(),
            version: lease.metadata.resource_version.clone().unwrap_or_default(),
            transitions: spec.lease_transitions.unwrap_or(0),
            duration: Duration::from_secs(spec.lease_duration_seconds.unwrap_or(0).max(0).unsigned_abs().into()),
            at: now,
        }
    }

    /// When it may be taken by others; at once where nobody holds it.
    fn free_at(&self) -> Instant {
        if self.holder.is_empty() { self.at } else { self.at + self.duration }
    }
}

/// One who may hold it.
#[derive(Clone)]
pub struct Lease {
    /// To watch and write it.
    pub client: Client,
    /// Its namespace.
    pub namespace: String,
    /// The name of this node: its reporter keeps the lease when it is started anew.
    pub me: String,
    /// How often it is renewed; it lasts three times as long.
    pub renew: Duration,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// How it was last seen.
    pub seen: Arc<watch::Sender<Option<Seen>>>,
}

impl Lease {
    fn api(&self) -> Api<Object> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Watches it, for ever.
    pub async fn watch(&self) {
        let seen = &self.seen;
        let config = Config::default().fields(&format!("metadata.name={NAME}"));
        let note = |lease: &Object| {
            let new = Seen::of(lease, Instant::now());
            // A list after a break shows the same version again, which is no sign of life.
            seen.send_if_modified(|known| {
                let fresh = known.as_ref().is_none_or(|known| known.version != new.version);
                if fresh {
                    *known = Some(new.clone());
                }
                fresh
            });
        };
        follow("the janitor's lease", self.api(), config, |news| match news {
            News::All(all) => match all.first() {
                Some(lease) => note(lease),
                None => {
                    tracing::warn!(
                        lease = NAME,
                        "there is no such lease: nobody cleans up after nodes that lost the driver"
                    );
                    seen.send_replace(None);
                }
            },
            News::Changed(lease) => note(&lease),
            News::Gone(_) => {
                seen.send_replace(None);
            }
        })
        .await;
    }

    /// Ends when it is this reporter's turn: it holds the lease, freshly renewed.
    pub async fn turn(&self) {
        let mut seen = self.seen.subscribe();
        loop {
            let now = seen.borrow_and_update().clone();
            let Some(now) = now else {
                if seen.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                continue;
            };
            let mine = now.holder == self.me;
            // One's own is renewed in time; who holds it after a start does so at once.
            let due = if mine { now.at + self.renew } else { now.free_at() + self.renew.mul_f64(fastrand::f64()) };
            self.metrics.janitor(mine);
            tokio::select! {
                changed = seen.changed() => {
                    if changed.is_err() {
                        std::future::pending::<()>().await;
                    }
                    continue;
                }
                () = tokio::time::sleep_until(due) => {}
            }
            match self.take(&now).await {
                Ok(()) => {
                    self.metrics.janitor(true);
                    if !mine {
                        tracing::info!(
                            lease = NAME,
                            before = now.holder,
                            "this reporter now cleans up after nodes that lost the driver"
                        );
                    }
                    // The version it has now comes by the watch.
                    tokio::time::timeout(self.renew, seen.changed()).await.ok();
                    return;
                }
                // Somebody else was faster: the watch says who.
                Err(error) if error.code() == Some(409) => {}
                Err(error) => {
                    tracing::warn!(
                        lease = NAME,
                        error = crate::telemetry::chain(&error),
                        "cannot take or renew the lease"
                    );
                }
            }
            // What was written, or will be, comes by the watch.
            tokio::time::timeout(self.renew, seen.changed()).await.ok();
        }
    }

    /// Gives it up, if this reporter holds it: a node may be about to lose the driver for good, and so its reporter.
    pub async fn release(&self) {
        let Some(seen) = self.seen.borrow().clone().filter(|seen| seen.holder == self.me) else { return };
        if let Err(error) = self.write(&seen, json!({"holderIdentity": "", "leaseDurationSeconds": 1})).await {
            tracing::info!(
                lease = NAME,
                error = crate::telemetry::chain(&error),
                "cannot give up the lease; it ends by itself"
            );
        }
    }

    /// Takes or renews it, if it still is as it was seen.
    async fn take(&self, seen: &Seen) -> Result<(), RequestError> {
        let now = format!("{:.6}", Timestamp::now());
        let mut spec = json!({
            "holderIdentity": self.me,
            "leaseDurationSeconds": (self.renew * 3).as_secs().max(1),
            "renewTime": now,
        });
        if seen.holder != self.me {
            spec["acquireTime"] = json!(now);
            spec["leaseTransitions"] = json!(seen.transitions.saturating_add(1));
        }
        self.write(seen, spec).await
    }

    async fn write(&self, seen: &Seen, spec: serde_json::Value) -> Result<(), RequestError> {
        let patch = json!({"metadata": {"resourceVersion": seen.version}, "spec": spec});
        let result = within(self.api().patch(NAME, &PatchParams::default(), &Patch::Merge(&patch))).await;
        self.metrics.requested("lease", &result);
        result.map(drop)
    }
}
