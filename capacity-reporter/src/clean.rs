//! The end of an installation: no object is left, although every node's reporter still runs and would put it back.
//!
//! **Invariant.** First the reporters lose the right to write, by the deletion of the RoleBinding that gives it; then the
//! objects go. So nothing depends on pods that end late or nodes that do not answer.

use std::time::Duration;

use k8s_openapi::api::rbac::v1::RoleBinding;
use k8s_openapi::api::storage::v1::CSIStorageCapacity;
use kube::api::{DeleteParams, ListParams, Preconditions};
use kube::core::PartialObjectMeta;
use kube::{Api, Client};
use tokio::time::Instant;

use crate::apply::{PAGE, RequestError, insist, within};
use crate::args::CleanArgs;
use crate::identity::DRIVER_LABEL;
use crate::telemetry::chain;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);

/// Why objects may be left.
#[derive(Debug, thiserror::Error)]
pub enum CleanError {
    /// The right could not be taken.
    #[error("cannot delete the RoleBinding {namespace}/{name}, which lets the nodes write capacity objects")]
    Binding {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: RequestError,
    },
    /// Objects stay, or nobody knows.
    #[error("after {} s there are still capacity objects of {driver}: {left}", .after.as_secs())]
    Left {
        /// The driver.
        driver: String,
        /// How long it was tried.
        after: Duration,
        /// Which objects, or why that is not known.
        left: String,
    },
}

/// Deletes every capacity object of the driver, in all namespaces, whoever wrote it.
///
/// # Errors
/// [`CleanError`].
pub async fn clean(client: &Client, args: &CleanArgs) -> Result<(), CleanError> {
    let begin = Instant::now();
    let failed = "cannot take the reporters' right to write";
    let taken = insist(begin + args.timeout, LOOK * 4, failed, || take_right(client, args)).await;
    taken.map_err(|source| {
        let (namespace, name) = (args.namespace.clone(), args.role_binding.clone());
        CleanError::Binding { namespace, name, source }
    })?;
    let mut last;
    let mut empty_since = None;
    let mut deleted = 0;
    loop {
        match sweep(client, args).await {
            Ok(found) if found.is_empty() => {
                let since = *empty_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= args.quiet {
                    tracing::info!(deleted, "no capacity object of the driver is left");
                    return Ok(());
                }
                last = "none now".to_owned();
            }
            Ok(found) => {
                empty_since = None;
                deleted += found.len();
                last = found.join(", ");
            }
            Err(error) => {
                empty_since = None;
                last = chain(&error);
                tracing::warn!(error = last, "tried again");
            }
        }
        if begin.elapsed() >= args.timeout && empty_since.is_none() {
            return Err(CleanError::Left { driver: args.driver_name.clone(), after: args.timeout, left: last });
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn take_right(client: &Client, args: &CleanArgs) -> Result<(), RequestError> {
    let api: Api<RoleBinding> = Api::namespaced(client.clone(), &args.namespace);
    match within(api.delete(&args.role_binding, &DeleteParams::default())).await {
        Ok(_) => {
            tracing::info!(role_binding = args.role_binding, "the nodes may write no more capacity objects");
            Ok(())
        }
        Err(error) if error.code() == Some(404) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Deletes what is there; says what that was.
async fn sweep(client: &Client, args: &CleanArgs) -> Result<Vec<String>, RequestError> {
    let api: Api<CSIStorageCapacity> = Api::all(client.clone());
    // Always the first page: what is deleted is not on the next one.
    let parameters = ListParams::default().labels(&format!("{DRIVER_LABEL}={}", args.driver_name)).limit(PAGE);
    let page = within(api.list_metadata(&parameters)).await?;
    let mut found = Vec::new();
    for object in page.items {
        found.push(delete(client, object).await?);
    }
    Ok(found)
}

async fn delete(client: &Client, object: PartialObjectMeta<CSIStorageCapacity>) -> Result<String, RequestError> {
    let metadata = object.metadata;
    let (namespace, name) = (metadata.namespace.unwrap_or_default(), metadata.name.unwrap_or_default());
    let api: Api<CSIStorageCapacity> = Api::namespaced(client.clone(), &namespace);
    let preconditions = Preconditions { uid: metadata.uid, resource_version: None };
    match within(api.delete(&name, &DeleteParams::default().preconditions(preconditions))).await {
        Err(error) if !matches!(error.code(), Some(404 | 409)) => Err(error),
        _ => Ok(format!("{namespace}/{name}")),
    }
}
