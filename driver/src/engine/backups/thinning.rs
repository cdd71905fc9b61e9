//! Which copies of one group's metadata are not needed any more. Pure.
//!
//! **Invariant.** The newest copies stay, and what stays is bounded in number and in bytes.

use std::collections::BTreeSet;

/// So many of the newest stay whatever their age.
const NEWEST: usize = 12;
/// Of older ones the last of each hour stays, for so many hours in which there was any.
const HOURS: usize = 24;
/// Of those before, the last of each day, for so many days.
const DAYS: usize = 14;
/// All of a group's copies together have no more bytes; the two newest stay even so.
const BYTES: u64 = 64 << 20;

/// A copy that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// When it was made, in seconds since 1970, UTC.
    pub second: i64,
    /// Its size.
    pub bytes: u64,
}

/// The places in `copies`, which are ordered from the oldest to the newest, of those that go.
#[must_use]
pub fn superfluous(copies: &[Kept]) -> Vec<usize> {
    let (mut hours, mut days) = (BTreeSet::new(), BTreeSet::new());
    let (mut bytes, mut kept) = (0_u64, 0_usize);
    let mut gone = Vec::new();
    for (place, copy) in copies.iter().enumerate().rev() {
        let wanted = if kept < NEWEST {
            true
        } else {
            // The last one of an hour or a day is met first, and does not change when that is over.
            let (hour, day) = (copy.second.div_euclid(3600), copy.second.div_euclid(86_400));
            (hours.len() < HOURS && hours.insert(hour)) || (days.len() < DAYS && days.insert(day))
        };
        let fits = bytes.saturating_add(copy.bytes) <= BYTES || kept < 2;
        if wanted && fits {
            bytes = bytes.saturating_add(copy.bytes);
            kept += 1;
        } else {
            gone.push(place);
        }
    }
    gone
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stays(copies: &[Kept]) -> Vec<Kept> {
        let gone = superfluous(copies);
        copies.iter().enumerate().filter(|(place, _)| !gone.contains(place)).map(|(_, copy)| *copy).collect()
    }

    #[test]
    fn a_busy_month_leaves_the_newest_the_hours_and_the_days() {
        let mut copies = Vec::new();
        for second in (0..30 * 86_400).step_by(60) {
            copies.push(Kept { second, bytes: 1000 });
            copies = stays(&copies);
        }
        assert!(copies.len() <= NEWEST + HOURS + DAYS, "{}", copies.len());
        let last = copies.last().unwrap().second;
        assert_eq!(last, 30 * 86_400 - 60);
        for age in [0, 60, 3600, 5 * 3600, 20 * 3600, 3 * 86_400, 10 * 86_400] {
            let wanted = last - age;
            // One from before that moment, and not much older.
            let slack = if age < 120 {
                10
            } else if age < 86_400 {
                2 * 3600
            } else {
                2 * 86_400
            };
            assert!(
                copies.iter().any(|copy| copy.second <= wanted && wanted - copy.second <= slack),
                "{age}: {copies:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn the_newest_stay_and_the_rest_is_bounded(
            copies in prop::collection::vec((0_i64..4_000_000, 0_u64..40 << 20), 0..300),
        ) {
            let mut copies: Vec<Kept> = copies.into_iter().map(|(second, bytes)| Kept { second, bytes }).collect();
            copies.sort_by_key(|copy| copy.second);
            let left = stays(&copies);
            prop_assert!(left.len() <= NEWEST + HOURS + DAYS);
            prop_assert!(left.len() <= 2 || left.iter().map(|copy| copy.bytes).sum::<u64>() <= BYTES);
            prop_assert!(left.ends_with(&copies[copies.len().saturating_sub(2)..]));
            prop_assert_eq!(stays(&left), left);
        }
    }
}
