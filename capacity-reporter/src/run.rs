//! Runs the reporter: from its options to the tasks that never end.
//!
//! **Invariant.** SIGTERM cleans nothing: it looks the same in an update and at the end of an installation, and a node
//! without objects gets no new volumes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use kube::{Client, Config};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::apply::Applier;
use crate::args::RunArgs;
use crate::claims::Claims;
use crate::driver::{Current, Description, Signal};
use crate::identity::Identity;
use crate::janitor::{INTERVAL, Janitor};
use crate::lease::Lease;
use crate::objects::Objects;
use crate::pace::Pace;
use crate::publish::Publisher;
use crate::shares::Shares;
use crate::telemetry::http;
use crate::telemetry::metrics::Metrics;
use crate::{classes, driver};

/// How long the end may take: the lease is given up, if there is an API server to tell.
const FAREWELL: Duration = Duration::from_secs(3);

/// A client with the pod's own account.
///
/// # Errors
/// The process is in no pod, or that has no token.
pub fn client() -> anyhow::Result<Client> {
    client_of(Config::incluster().context("cannot find the API server and the pod's token")?)
}

/// A client as the reporter needs it, of this API server and account.
///
/// # Errors
/// What the configuration says cannot be used.
pub fn client_of(mut config: Config) -> anyhow::Result<Client> {
    // Whoever sends a request decides whether and when it is sent again.
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(5));
    Client::try_from(config).context("cannot make a client of the API server")
}

/// Reports until `end` is cancelled.
///
/// # Errors
/// Whatever keeps the reporter from beginning; later, a driver that is another one than before.
pub async fn run(args: RunArgs, end: CancellationToken) -> anyhow::Result<()> {
    let metrics = Arc::new(Metrics::of_node(&args.node_name).context("the metrics cannot be made")?);
    if let Some(address) = args.http_address {
        tokio::spawn(http::serve(http::bind(address).await?, Arc::clone(&metrics)));
    }
    report(args, client()?, metrics, end).await
}

/// Reports until `end` is cancelled, with this client.
///
/// # Errors
/// As [`run`].
pub async fn report(
    args: RunArgs,
    client: Client,
    metrics: Arc<Metrics>,
    end: CancellationToken,
) -> anyhow::Result<()> {
    let lease = Lease {
        client: client.clone(),
        namespace: args.namespace.clone(),
        me: args.node_name.clone(),
        renew: INTERVAL.min(args.forget_nodes_after / 3).max(Duration::from_secs(1)),
        metrics: Arc::clone(&metrics),
        seen: Arc::new(watch::Sender::new(None)),
    };
    tokio::select! {
        reported = for_ever(&args, client, metrics, lease.clone()) => reported,
        () = end.cancelled() => {
            tokio::time::timeout(FAREWELL, lease.release()).await.ok();
            Ok(())
        }
    }
}

async fn for_ever(args: &RunArgs, client: Client, metrics: Arc<Metrics>, lease: Lease) -> anyhow::Result<()> {
    tracing::info!(
        node = args.node_name,
        namespace = args.namespace,
        version = env!("CARGO_PKG_VERSION"),
        "reporting capacity"
    );
    let changed = Arc::new(Notify::new());
    let signal = Signal::default();
    let (to_current, current) = watch::channel(Current::None);
    let keep_driver = driver::keep(&args.csi_socket, &to_current, &changed, &signal, &metrics);
    let rest = async {
        let mut known = current.clone();
        // Nothing can be said or cleaned up before it is known of whom.
        let description = match &*known.wait_for(Option::is_some).await? {
            Some(driver) => driver.description().clone(),
            None => bail!("the driver is gone"),
        };
        let identity = Identity {
            driver: description.name.clone(),
            node: args.node_name.clone(),
            segment: description.segment.clone(),
            namespace: args.namespace.clone(),
        };
        tokio::select! {
            () = tasks(args, client, identity, current.clone(), &changed, &signal, &metrics, lease) => bail!("a task has ended"),
            other = another(known, description) => other,
        }
    };
    tokio::select! {
        () = keep_driver => bail!("the driver is watched no more"),
        rest = rest => rest,
    }
}

/// All that is done once the driver is known.
#[expect(clippy::too_many_arguments, reason = "what the tasks share, handed out once")]
async fn tasks(
    args: &RunArgs,
    client: Client,
    identity: Identity,
    current: watch::Receiver<Current>,
    changed: &Arc<Notify>,
    signal: &Signal,
    metrics: &Arc<Metrics>,
    lease: Lease,
) {
    let objects = Objects::default();
    let applier = Applier::new(client.clone(), Arc::clone(metrics));
    let (to_classes, known_classes) = watch::channel(None);
    let mut news = known_classes.clone();
    let tell = async {
        while news.changed().await.is_ok() {
            changed.notify_one();
        }
    };
    let publisher = Publisher {
        identity: identity.clone(),
        applier: applier.clone(),
        objects: objects.clone(),
        classes: known_classes.clone(),
        driver: current.clone(),
        changed: Arc::clone(changed),
        signal: signal.clone(),
        pace: Pace::new(args.requests_per_second, args.request_burst),
        metrics: Arc::clone(metrics),
    };
    let claims = Claims { client: client.clone(), classes: known_classes, metrics: Arc::clone(metrics) };
    let shares = Shares::new(client.clone(), &identity, Arc::clone(metrics), args.tell_after);
    let janitor = Janitor {
        client: client.clone(),
        applier,
        driver: identity.driver.clone(),
        after: args.forget_nodes_after,
        metrics: Arc::clone(metrics),
    };
    tokio::select! {
        () = classes::keep(client.clone(), identity.driver.clone(), to_classes) => {}
        () = tell => {}
        () = objects.keep(client, &identity, Arc::clone(changed)) => {}
        () = publisher.run() => {}
        () = claims.run(current.clone()) => {}
        () = shares.run(current) => {}
        () = janitor.run(lease) => {}
    }
}

/// Ends when the driver calls itself or its node otherwise than before: everything here was named after that.
async fn another(mut current: watch::Receiver<Current>, before: Description) -> anyhow::Result<()> {
    loop {
        current.changed().await?;
        let now = current.borrow_and_update().as_ref().map(|driver| driver.description().clone());
        if let Some(now) = now.filter(|now| *now != before) {
            bail!("the driver was {before:?} and is {now:?} now; beginning anew");
        }
    }
}
