//! Which deaths are tried: all, or one part of several where time is short.
//!
//! **Invariant.** All parts together are all deaths, and a part is the same whenever it is asked for again.

use std::fmt;

use anyhow::{Context as _, Result, ensure};

/// `N`: one of N parts, another one each time; `K/N`: the Kth of these; not set: all.
pub const VARIABLE: &str = "QUARRY_CRASH_SAMPLE";

/// A part of all deaths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// From 0.
    part: usize,
    parts: usize,
}

impl Sample {
    /// As the environment has it.
    ///
    /// # Errors
    /// A value that names no part.
    pub fn from_environment() -> Result<Self> {
        match std::env::var(VARIABLE) {
            Ok(text) => Self::parse(&text, any).with_context(|| {
                format!("{VARIABLE} is {text:?}, should be a number of parts such as 8, or one of them such as 3/8")
            }),
            Err(_) => Ok(Self { part: 0, parts: 1 }),
        }
    }

    fn parse(text: &str, any: fn(usize) -> usize) -> Result<Self> {
        let (part, parts) = match text.split_once('/') {
            Some((part, parts)) => (Some(part.parse::<usize>()?), parts.parse()?),
            None => (None, text.parse()?),
        };
        ensure!(parts > 0, "no parts");
        ensure!(part.is_none_or(|part| (1..=parts).contains(&part)), "there is no such part");
        Ok(Self { part: part.map_or_else(|| any(parts), |part| part - 1), parts })
    }

    /// Those of a list that are in this part. The name says where the list begins in turn, so that of short lists not
    /// all have their first in the same part.
    #[must_use]
    pub fn pick<T>(self, name: &str, mut all: Vec<T>) -> Vec<T> {
        let mut index = name.bytes().map(usize::from).sum::<usize>();
        all.retain(|_| {
            index += 1;
            index % self.parts == self.part
        });
        all
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parts {
            1 => f.write_str("every death"),
            parts => write!(f, "part {}/{parts} of all deaths ({VARIABLE} chooses)", self.part + 1),
        }
    }
}

/// Another one each time.
fn any(parts: usize) -> usize {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    usize::try_from(since.as_secs()).unwrap_or_default() % parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_parts_together_are_everything_once() {
        for name in ["", "thin create", "thick delete"] {
            let mut all: Vec<u32> = (1..=8)
                .flat_map(|part| Sample::parse(&format!("{part}/8"), any).unwrap().pick(name, (0..37).collect()))
                .collect();
            all.sort_unstable();
            assert_eq!(all, (0..37).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_number_alone_means_any_part_and_nonsense_is_refused() {
        assert_eq!(Sample::parse("8", |parts| parts - 1).unwrap(), Sample { part: 7, parts: 8 });
        for nonsense in ["0", "", "1/0", "0/3", "4/3", "a", "1/2/3"] {
            assert!(Sample::parse(nonsense, |_| 0).is_err(), "{nonsense:?} was taken");
        }
    }
}
