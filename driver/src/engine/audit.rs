//! Looks over all volumes once a minute, and says once what became of one that is lost, orphaned or out of reach.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::volume::LvName;

use super::Engine;
use super::survey::{State, Surveyed};

/// How often.
const PERIOD: Duration = Duration::from_secs(60);

/// What a person should know of.
const TROUBLE: [State; 4] = [State::Orphan, State::Lost, State::Unknown, State::Unreadable];

impl Engine {
    /// Tells of volumes that came into a state that a person should know of, and of those that left it. Ends when
    /// `shutdown` is cancelled.
    pub async fn audit(self: Arc<Self>, shutdown: CancellationToken) {
        let mut known = BTreeMap::new();
        loop {
            for news in changes(&mut known, &self.survey().await) {
                let (volume, state) = (news.lv.to_string(), news.state.name());
                match news.state {
                    state if !TROUBLE.contains(&state) => tracing::info!(volume, %state, "a volume is in order again"),
                    State::Orphan => tracing::warn!(volume, problem = news.problem, "a volume is an orphan"),
                    _ => tracing::error!(volume, state, problem = news.problem, "a volume is out of reach"),
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
    }
}

/// The volumes whose state is news: trouble that was not known, and its end.
fn changes<'a>(known: &mut BTreeMap<LvName, State>, volumes: &'a [Surveyed]) -> Vec<&'a Surveyed> {
    let now = volumes.iter().filter(|volume| TROUBLE.contains(&volume.state));
    let now: BTreeMap<LvName, State> = now.map(|volume| (volume.lv.clone(), volume.state)).collect();
    let before = std::mem::replace(known, now);
    volumes.iter().filter(|volume| before.get(&volume.lv) != known.get(&volume.lv)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_told_once_and_so_is_its_end() {
        let volume = |name: &str, state| Surveyed {
            lv: LvName::parse(name).unwrap(),
            state,
            record: None,
            recorded: true,
            problem: None,
            staged: vec![],
            published: vec![],
        };
        let mut known = BTreeMap::new();
        let mut told = |volumes: &[Surveyed]| -> Vec<State> {
            changes(&mut known, volumes).into_iter().map(|volume| volume.state).collect()
        };
        let well = [volume("a", State::Ready), volume("b", State::Creating)];
        let ill = [volume("a", State::Lost), volume("b", State::Ready)];
        assert_eq!(told(&well), []);
        assert_eq!(told(&ill), [State::Lost]);
        assert_eq!(told(&ill), []);
        assert_eq!(told(&well), [State::Ready]);
        assert_eq!(told(&ill), [State::Lost]);
        // Forgotten: not listed any more, and no news.
        assert_eq!(told(&well[1..]), []);
    }
}
