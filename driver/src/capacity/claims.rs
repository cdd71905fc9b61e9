//! Asks which other claims a pod waits for, over the stream that a client has opened for this.
//!
//! **Invariant.** No answer is no refusal: without a client, or where it does not answer in time, the claim counts as one
//! that stands alone. No question outlives its limit.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quarry_proto::quarry::v1 as proto;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::engine::PodClaim;
use crate::journal::Claim;
use crate::volume::name::NameError;
use crate::volume::parameters::{ParameterError, Parameters};
use crate::volume::{Bytes, Content, FilesystemType, LvName};

/// How long a creation waits for the answer.
const WAIT: Duration = Duration::from_secs(2);

/// Questions under way to one client.
const QUESTIONS: usize = 64;

/// What a client is sent.
pub type Question = Result<proto::ClaimsQuestion, Status>;

/// The clients that can be asked.
#[derive(Debug, Clone, Default)]
pub struct Claims {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// By number: the newest is the last.
    clients: BTreeMap<u64, Client>,
    /// It was told that nobody answers.
    told: bool,
}

#[derive(Debug)]
struct Client {
    questions: mpsc::Sender<Question>,
    waiting: BTreeMap<u64, oneshot::Sender<proto::ClaimsAnswer>>,
}

/// A client's place, given up when dropped.
#[derive(Debug)]
#[must_use = "the client is asked as long as this lives"]
pub struct Connected {
    claims: Claims,
    number: u64,
}

/// Why nobody knows of other claims.
#[derive(Debug, thiserror::Error)]
enum Unanswered {
    #[error("no client is connected")]
    NoClient,
    #[error("the client takes no questions")]
    Busy,
    #[error("the client went away")]
    Gone,
    #[error("the client did not answer within {} s", WAIT.as_secs())]
    Late,
    #[error("the client cannot say: {0}")]
    Refused(String),
}

/// A claim that the client told of and that is not one of ours in form.
#[derive(Debug, thiserror::Error)]
enum NotAClaim {
    #[error("volume name")]
    Name(#[from] NameError),
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    #[error("content {0:?} is neither `block` nor a filesystem")]
    Content(String),
}

impl Claims {
    /// A channel for questions to a client that is not asked yet.
    #[must_use]
    pub fn channel() -> (mpsc::Sender<Question>, mpsc::Receiver<Question>) {
        mpsc::channel(QUESTIONS)
    }

    /// Asks this client from now on.
    pub fn connect(&self, questions: mpsc::Sender<Question>) -> Connected {
        let mut state = self.state();
        state.next += 1;
        state.told = false;
        let number = state.next;
        state.clients.insert(number, Client { questions, waiting: BTreeMap::new() });
        tracing::info!("a client tells of pods' other claims from now on");
        Connected { claims: self.clone(), number }
    }

    /// The other claims of the pod that waits for this one; none where nobody says.
    pub async fn others(&self, claim: &Claim) -> Vec<PodClaim> {
        let answer = match self.ask(claim).await {
            Ok(answer) => answer,
            Err(why) => {
                let first = !std::mem::replace(&mut self.state().told, true);
                let Claim { namespace, name } = claim;
                match why {
                    _ if !first => tracing::debug!(namespace, name, %why, "a claim is taken to stand alone"),
                    Unanswered::NoClient => tracing::info!(namespace, name, %why, "claims are taken to stand alone"),
                    _ => tracing::warn!(namespace, name, %why, "claims are taken to stand alone"),
                }
                return Vec::new();
            }
        };
        self.state().told = false;
        let understood = |told: proto::PodClaim| {
            let (namespace, name) = (told.namespace.clone(), told.name.clone());
            // One that cannot be made anywhere needs no room.
            understand(told)
                .inspect_err(|error| {
                    let error = crate::telemetry::chain(error);
                    tracing::warn!(namespace, name, error, "a claim that no volume can be made for is left out");
                })
                .ok()
        };
        answer.others.into_iter().filter_map(understood).collect()
    }

    async fn ask(&self, claim: &Claim) -> Result<proto::ClaimsAnswer, Unanswered> {
        let (number, id, answer) = {
            let mut state = self.state();
            state.next += 1;
            let id = state.next;
            let (number, client) = state.clients.iter_mut().next_back().ok_or(Unanswered::NoClient)?;
            let question = proto::ClaimsQuestion { id, namespace: claim.namespace.clone(), name: claim.name.clone() };
            client.questions.try_send(Ok(question)).map_err(|_| Unanswered::Busy)?;
            let (sender, answer) = oneshot::channel();
            client.waiting.insert(id, sender);
            (*number, id, answer)
        };
        let answer = tokio::time::timeout(WAIT, answer).await;
        if let Some(client) = self.state().clients.get_mut(&number) {
            client.waiting.remove(&id);
        }
        match answer {
            Err(_) => Err(Unanswered::Late),
            Ok(Err(_)) => Err(Unanswered::Gone),
            Ok(Ok(answer)) if !answer.error.is_empty() => Err(Unanswered::Refused(answer.error)),
            Ok(Ok(answer)) => Ok(answer),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connected {
    /// Takes an answer of the client. One to a question that nobody waits for any more is dropped.
    pub fn answered(&self, answer: proto::ClaimsAnswer) {
        let mut state = self.claims.state();
        let client = state.clients.get_mut(&self.number);
        if let Some(waiting) = client.and_then(|client| client.waiting.remove(&answer.id)) {
            waiting.send(answer).ok();
        }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        // Who waits for it is told by the end of its channel.
        self.claims.state().clients.remove(&self.number);
        tracing::info!("a client that told of pods' other claims went away");
    }
}

fn understand(told: proto::PodClaim) -> Result<PodClaim, NotAClaim> {
    let parameters = Parameters::parse(&told.parameters)?;
    let content = match told.content.as_str() {
        "block" => Content::Block,
        "" => Content::Filesystem(parameters.fs_type.unwrap_or(FilesystemType::Ext4)),
        name => Content::Filesystem(name.parse().map_err(|_| NotAClaim::Content(name.to_owned()))?),
    };
    Ok(PodClaim {
        claim: Claim { namespace: told.namespace, name: told.name },
        lv: LvName::for_csi_name(&told.volume_name)?,
        class: parameters.device_class,
        provisioning: parameters.provisioning,
        content,
        requested: Bytes(told.requested_bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Provisioning;

    fn claim() -> Claim {
        Claim { namespace: "default".to_owned(), name: "a".to_owned() }
    }

    fn told(name: &str) -> proto::PodClaim {
        proto::PodClaim {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            volume_name: format!("pvc-{name}"),
            parameters: [("provisioning".to_owned(), "thick".to_owned())].into(),
            requested_bytes: 6 << 30,
            content: "xfs".to_owned(),
        }
    }

    /// Answers the next question.
    async fn answer(connected: &Connected, questions: &mut mpsc::Receiver<Question>, answer: proto::ClaimsAnswer) {
        let question = questions.recv().await.unwrap().unwrap();
        assert_eq!((question.namespace.as_str(), question.name.as_str()), ("default", "a"));
        connected.answered(proto::ClaimsAnswer { id: question.id, ..answer });
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_client_is_asked_and_when_it_leaves_the_one_before() {
        let claims = Claims::default();
        let (sender, mut first) = Claims::channel();
        let older = claims.connect(sender);
        let (sender, mut second) = Claims::channel();
        let newer = claims.connect(sender);
        let others = proto::ClaimsAnswer { others: vec![told("b")], ..Default::default() };
        let question = claim();
        let (known, ()) = tokio::join!(claims.others(&question), answer(&newer, &mut second, others));
        let [known] = &known[..] else { panic!("{known:?}") };
        assert_eq!(
            (known.lv.as_str(), known.provisioning, known.requested),
            ("pvc-b", Provisioning::Thick, Bytes(6 << 30))
        );
        assert_eq!(known.content, Content::Filesystem(FilesystemType::Xfs));
        drop(newer);
        let (known, ()) = tokio::join!(claims.others(&question), answer(&older, &mut first, Default::default()));
        assert_eq!(known, []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_stands_alone_where_nobody_says_otherwise() {
        let (claims, question) = (Claims::default(), claim());
        assert_eq!(claims.others(&question).await, []);
        let (sender, mut questions) = Claims::channel();
        let connected = claims.connect(sender);
        // It does not answer: the limit ends the question, and a late answer finds nobody.
        let begin = tokio::time::Instant::now();
        assert_eq!(claims.others(&question).await, []);
        assert_eq!(begin.elapsed(), WAIT);
        answer(&connected, &mut questions, Default::default()).await;
        // It cannot say.
        let error = proto::ClaimsAnswer { error: "no watch yet".into(), others: vec![told("b")], ..Default::default() };
        let (known, ()) = tokio::join!(claims.others(&question), answer(&connected, &mut questions, error));
        assert_eq!(known, []);
        // It goes away in between.
        let leave = async {
            questions.recv().await.unwrap().unwrap();
            drop(connected);
        };
        let (known, ()) = tokio::join!(claims.others(&question), leave);
        assert_eq!(known, []);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_claim_of_ours_is_left_out() {
        let (claims, question) = (Claims::default(), claim());
        let (sender, mut questions) = Claims::channel();
        let connected = claims.connect(sender);
        let others = vec![
            proto::PodClaim { content: "zfs".into(), ..told("b") },
            proto::PodClaim { volume_name: String::new(), ..told("c") },
            proto::PodClaim { parameters: [("clas".to_owned(), "x".to_owned())].into(), ..told("d") },
            proto::PodClaim { content: "block".into(), ..told("e") },
        ];
        let others = proto::ClaimsAnswer { others, ..Default::default() };
        let (known, ()) = tokio::join!(claims.others(&question), answer(&connected, &mut questions, others));
        assert_eq!(known.iter().map(|claim| claim.lv.as_str()).collect::<Vec<_>>(), ["pvc-e"]);
    }
}
