//! Serves `quarry.v1.Capacity`.
//!
//! **Invariant.** An open stream keeps no driver from ending: asked to end, the driver ends all of them at once.

use std::sync::Arc;

use futures::stream::{self, Stream, StreamExt as _};
use quarry_proto::quarry::v1 as proto;
use quarry_proto::quarry::v1::capacity_server::Capacity;
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tokio_util::sync::CancellationToken;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use crate::csi::status::no_shares;
use crate::engine::{Change, Engine, Listener};
use crate::io::{Control, State};
use crate::volume::LvName;

use super::claims::Claims;

/// Tells of changes, and takes up who can tell of pods' claims.
#[derive(Debug, Clone)]
pub struct CapacityService {
    engine: Arc<Engine>,
    claims: Claims,
    shares: Option<Arc<Control>>,
    ending: CancellationToken,
}

impl CapacityService {
    /// Of the engine's volume groups, and of what became of weights and limits, until `ending` is cancelled.
    #[must_use]
    pub fn new(engine: Arc<Engine>, claims: Claims, shares: Option<Arc<Control>>, ending: CancellationToken) -> Self {
        Self { engine, claims, shares, ending }
    }

    /// A stream that is asked when a message can go on its way: what happens meanwhile becomes the next one.
    fn until_the_end<T: Send + 'static>(
        &self,
        messages: impl Stream<Item = Result<T, Status>> + Send + 'static,
    ) -> Response<BoxStream<T>> {
        Response::new(Box::pin(messages.take_until(self.ending.clone().cancelled_owned())))
    }
}

fn shares(engine: &Engine, control: &Control) -> proto::SharesResponse {
    let journal = engine.journaled();
    let share = |((lv, target), state): ((LvName, String), State)| {
        let claim = journal.volumes.get(&lv).and_then(|record| record.claim.clone());
        let (claim_namespace, claim_name) = claim.map(|claim| (claim.namespace, claim.name)).unwrap_or_default();
        let pod = journal.published.get(&(lv, target)).and_then(|row| row.pod.as_ref()?.name.clone());
        proto::Share {
            claim_namespace,
            claim_name,
            pod_name: pod.unwrap_or_default(),
            state: state.name().to_owned(),
            reason: state.reason().map(|reason| reason.name().to_owned()).unwrap_or_default(),
            problem: state.reason().map(ToString::to_string).unwrap_or_default(),
        }
    };
    proto::SharesResponse { shares: control.states().into_iter().map(share).collect() }
}

#[tonic::async_trait]
impl Capacity for CapacityService {
    async fn watch(
        &self,
        _: Request<proto::WatchRequest>,
    ) -> Result<Response<BoxStream<proto::WatchResponse>>, Status> {
        let changes = self.engine.changes().listen();
        let next = |mut changes: Listener| async {
            let change = changes.next().await?;
            Some((Ok(message(change)), changes))
        };
        Ok(self.until_the_end(stream::unfold(changes, next)))
    }

    async fn shares(
        &self,
        _: Request<proto::SharesRequest>,
    ) -> Result<Response<BoxStream<proto::SharesResponse>>, Status> {
        let control = self.shares.clone().ok_or_else(no_shares)?;
        let engine = Arc::clone(&self.engine);
        // The first message tells how things stand.
        let news = WatchStream::new(control.news());
        Ok(self.until_the_end(news.map(move |_| Ok(shares(&engine, &control)))))
    }

    async fn claims(
        &self,
        request: Request<Streaming<proto::ClaimsAnswer>>,
    ) -> Result<Response<BoxStream<proto::ClaimsQuestion>>, Status> {
        let mut answers = request.into_inner();
        let (sender, questions) = Claims::channel();
        let (claims, ending) = (self.claims.clone(), self.ending.clone());
        tokio::spawn(async move {
            let mut connected = None;
            loop {
                let answer = tokio::select! {
                    () = ending.cancelled() => return,
                    () = sender.closed() => return,
                    answer = answers.message() => answer,
                };
                // A client that breaks off is one that goes away.
                let Ok(Some(answer)) = answer else { return };
                // It is asked from its first message on, which is no answer yet.
                let connected = connected.get_or_insert_with(|| claims.connect(sender.clone()));
                if answer.id != 0 {
                    connected.answered(answer);
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(questions))))
    }
}

fn message(change: Change) -> proto::WatchResponse {
    let reason = change.reason.map_or_else(|| "nothing has changed yet".to_owned(), |reason| reason.to_string());
    proto::WatchResponse { sequence: change.sequence, reason, device_classes: change.classes.into_iter().collect() }
}
