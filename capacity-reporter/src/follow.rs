//! Watches that never end: whatever the API server answers, they are taken up again, with pauses after errors.
//!
//! **Invariant.** A watch that lost its place (410, an API server with another history) begins with a whole list, and
//! whoever follows it takes that list for all there is.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Range;
use std::time::Duration;

use futures::StreamExt as _;
use kube::Api;
use kube::Resource;
use kube::runtime::watcher::{self, Config, Event};
use serde::de::DeserializeOwned;

use crate::pace::Pause;
use crate::telemetry::chain;

/// The first pause after an error, and the longest: an API server that restarts is back within seconds.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// How many seconds a watch lasts before it is taken up again; each has its own length. Thousands of reporters begin their
/// watches at the same moment when an API server has restarted, and with one length they would come back together for ever.
const LASTS: Range<u32> = 200..290;

/// What a watch says.
#[derive(Debug)]
pub enum News<K> {
    /// These are all there are now.
    All(Vec<K>),
    /// One is new or has changed.
    Changed(K),
    /// One is gone; its last state.
    Gone(K),
}

/// Tells `on` what becomes of the objects of this kind, for ever.
pub async fn follow<K>(what: &str, api: Api<K>, config: Config, mut on: impl FnMut(News<K>))
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default,
{
    let mut pause = Pause::new(PAUSES.0, PAUSES.1);
    loop {
        let config = config.clone().timeout(fastrand::u32(LASTS));
        let mut stream = std::pin::pin!(watcher::watcher(api.clone(), config));
        // By namespace and name: while pages of a list come, an object may come twice.
        let mut listed = BTreeMap::new();
        while let Some(event) = stream.next().await {
            match event {
                Ok(event) => {
                    pause.reset();
                    match event {
                        Event::Init => listed.clear(),
                        Event::InitApply(object) => {
                            let meta = object.meta();
                            listed.insert((meta.namespace.clone(), meta.name.clone()), object);
                        }
                        Event::InitDone => on(News::All(std::mem::take(&mut listed).into_values().collect())),
                        Event::Apply(object) => on(News::Changed(object)),
                        Event::Delete(object) => on(News::Gone(object)),
                    }
                }
                Err(error) => {
                    let step = pause.step();
                    tracing::warn!(
                        what,
                        error = chain(&error),
                        pause_ms = step.as_millis(),
                        "a watch broke; taken up again"
                    );
                    tokio::time::sleep(step).await;
                    if lost_its_place(&error) {
                        break;
                    }
                }
            }
        }
    }
}

/// Whether the watch has to begin with a list: the library does so by itself only for some of these.
fn lost_its_place(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 410 || status.code == 400,
        watcher::Error::NoResourceVersion => true,
        _ => false,
    }
}
