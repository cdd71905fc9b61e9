//! The moments at which the power is cut.
//!
//! A tick is of one moment in both logs. Between two ticks the order of entries of different logs is not known; so a
//! moment there is looked at only if one of the disks had nothing made stable meanwhile: it is as it was at the tick.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use quarry_tests::log_writes::{Entry, WriteLog};

use crate::history::History;

/// How much of a log is on a disk.
#[derive(Debug, Clone)]
pub struct Place {
    /// All entries before this one.
    pub up_to: usize,
    /// And these: a part of what the next flush would make stable.
    pub torn: Vec<usize>,
}

/// A moment.
#[derive(Debug, Clone)]
pub struct Cut {
    pub pv: Place,
    pub state: Place,
    /// The last tick before it, or it itself.
    pub tick: usize,
    /// Whether it is later than that tick.
    pub later: bool,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (when, tick) = (if self.later { "after " } else { "at " }, self.tick);
        write!(f, "{when}t{tick}, volumes' disk up to entry {}, state's up to {}", self.pv.up_to, self.state.up_to)?;
        for (disk, torn) in [("volumes'", &self.pv.torn), ("state's", &self.state.torn)] {
            if !torn.is_empty() {
                write!(f, ", and of what was not flushed on the {disk} entries {torn:?}")?;
            }
        }
        Ok(())
    }
}

/// SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }
}

/// Every reply, and a sample of all other moments up to so many in all, in the order of time.
pub fn cuts(history: &History, pv: &WriteLog, state: &WriteLog, count: usize, random: &mut Random) -> Vec<Cut> {
    let (pv_marks, state_marks) = (marks(history, pv), marks(history, state));
    let at = |tick: usize| Cut {
        pv: Place { up_to: pv_marks[tick], torn: Vec::new() },
        state: Place { up_to: state_marks[tick], torn: Vec::new() },
        tick,
        later: false,
    };
    // One moment can be met twice: as a reply and as the flush before it.
    let mut chosen = BTreeMap::new();
    let mut keep = |cut: Cut| {
        let (pv, state) = (cut.pv.clone(), cut.state.clone());
        chosen.entry((pv.up_to, state.up_to, pv.torn, state.torn)).or_insert(cut);
    };
    let replies: BTreeSet<usize> = history.replies().collect();
    replies.iter().for_each(|tick| keep(at(*tick)));
    let mut others: Vec<Cut> = Vec::new();
    for tick in 0..history.ticks {
        if !replies.contains(&tick) {
            others.push(at(tick));
        }
        if tick + 1 == history.ticks {
            break;
        }
        let pv_places = places(pv, pv_marks[tick], pv_marks[tick + 1], random);
        let state_places = places(state, state_marks[tick], state_marks[tick + 1], random);
        match (pv_places.is_empty(), state_places.is_empty()) {
            (false, true) => others.extend(pv_places.into_iter().map(|pv| Cut { pv, later: true, ..at(tick) })),
            (true, false) => {
                others.extend(state_places.into_iter().map(|state| Cut { state, later: true, ..at(tick) }))
            }
            _ => {}
        }
    }
    println!("power: {} moments besides the replies", others.len());
    let mut left = count.saturating_sub(replies.len());
    while left > 0 && !others.is_empty() {
        keep(others.swap_remove(random.below(others.len())));
        left -= 1;
    }
    let cuts: Vec<Cut> = chosen.into_values().collect();
    // Both logs are applied onwards only.
    assert!(cuts.is_sorted_by_key(|cut| cut.state.up_to), "the moments are not in one order: {cuts:?}");
    cuts
}

fn marks(history: &History, log: &WriteLog) -> Vec<usize> {
    (0..history.ticks).map(|tick| log.mark(&History::mark(tick)).unwrap()).collect()
}

/// The flushes between two places, each once as it ended and, where it made anything stable, once as it was about to
/// end: with any part of that.
fn places(log: &WriteLog, from: usize, to: usize, random: &mut Random) -> Vec<Place> {
    let mut places = Vec::new();
    let (mut begin, mut writes) = (from, Vec::new());
    for place in from..to {
        match &log.entries()[place] {
            Entry::Mark(_) => {}
            Entry::Write { .. } | Entry::Discard { .. } => writes.push(place),
            Entry::Flush => {
                let torn: Vec<usize> = writes.drain(..).filter(|_| random.below(2) == 0).collect();
                if !torn.is_empty() {
                    places.push(Place { up_to: begin, torn });
                }
                begin = place + 1;
                places.push(Place { up_to: begin, torn: Vec::new() });
            }
        }
    }
    places
}
