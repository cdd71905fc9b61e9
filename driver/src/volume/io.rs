//! What a volume asks of its disk: a share of it, and limits.
//!
//! These are the parameters that may change while a volume is used. They shape nothing on it.

use std::fmt;
use std::num::NonZeroU64;

use super::parameters::ParameterError;

const WEIGHT: &str = "ioWeight";
const READ_IOPS: &str = "readIops";
const WRITE_IOPS: &str = "writeIops";
const READ_BPS: &str = "readBps";
const WRITE_BPS: &str = "writeBps";
/// The keys, in the order in which they are listed to people.
pub const KEYS: [&str; 5] = [WEIGHT, READ_IOPS, WRITE_IOPS, READ_BPS, WRITE_BPS];

/// No limit, where a limit may stand: as the kernel writes it in `io.max`.
const NO_LIMIT: &str = "max";

/// A share of a disk's time, against the other pods' on it: 1 to 10000 (cgroup v2, `io.weight`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(u16);

impl Weight {
    /// What a cgroup has that nobody gave a weight.
    pub const DEFAULT: Self = Self(100);
    /// The largest.
    pub const MAX: Self = Self(10_000);

    /// Nothing where the number is no weight.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        u16::try_from(number).ok().filter(|number| (1..=Self::MAX.0).contains(number)).map(Self)
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0.into()
    }

    /// Both together, at most the largest.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0).min(Self::MAX.0))
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a pod may do at most on the volume's own device (cgroup v2, `io.max`); none means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Limits {
    /// Reads a second.
    pub read_iops: Option<NonZeroU64>,
    /// Writes a second.
    pub write_iops: Option<NonZeroU64>,
    /// Bytes read a second.
    pub read_bps: Option<NonZeroU64>,
    /// Bytes written a second.
    pub write_bps: Option<NonZeroU64>,
}

impl Limits {
    /// Whether there is any.
    #[must_use]
    pub fn any(&self) -> bool {
        *self != Self::default()
    }

    fn each(&self) -> [Option<NonZeroU64>; 4] {
        [self.read_iops, self.write_iops, self.read_bps, self.write_bps]
    }

    /// As a tag's value: the four numbers, `-` for none.
    #[must_use]
    pub fn to_tag(&self) -> String {
        self.each().map(|limit| limit.map_or_else(|| "-".to_owned(), |limit| limit.to_string())).join(".")
    }

    /// The reverse of [`Self::to_tag`].
    #[must_use]
    pub fn from_tag(text: &str) -> Option<Self> {
        let limits: Option<Vec<Option<NonZeroU64>>> =
            text.split('.').map(|limit| if limit == "-" { Some(None) } else { limit.parse().ok().map(Some) }).collect();
        match limits.as_deref() {
            Some([read_iops, write_iops, read_bps, write_bps]) => Some(Self {
                read_iops: *read_iops,
                write_iops: *write_iops,
                read_bps: *read_bps,
                write_bps: *write_bps,
            }),
            _ => None,
        }
    }
}

/// A share and limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct IoWish {
    /// The share; none means that nobody asked for one, which counts like the default.
    pub weight: Option<Weight>,
    /// The limits.
    pub limits: Limits,
}

impl IoWish {
    /// Takes one parameter; false where the key is none of these.
    ///
    /// # Errors
    /// [`ParameterError::Value`]; then nothing has changed.
    pub fn set(&mut self, key: &str, value: &str) -> Result<bool, ParameterError> {
        match key {
            WEIGHT => self.weight = Some(weight(value)?),
            READ_IOPS => self.limits.read_iops = count(READ_IOPS, value)?,
            WRITE_IOPS => self.limits.write_iops = count(WRITE_IOPS, value)?,
            READ_BPS => self.limits.read_bps = bytes(READ_BPS, value)?,
            WRITE_BPS => self.limits.write_bps = bytes(WRITE_BPS, value)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Whether anything is asked for.
    #[must_use]
    pub fn any(&self) -> bool {
        self.weight.is_some() || self.limits.any()
    }
}

fn weight(value: &str) -> Result<Weight, ParameterError> {
    let number = whole(value).and_then(|number| u32::try_from(number).ok());
    number.and_then(Weight::new).ok_or_else(|| ParameterError::Value {
        key: WEIGHT,
        value: value.to_owned(),
        expected: "a whole number from 1 to 10000",
    })
}

fn count(key: &'static str, value: &str) -> Result<Option<NonZeroU64>, ParameterError> {
    limit(value, whole(value)).ok_or_else(|| ParameterError::Value {
        key,
        value: value.to_owned(),
        expected: "a whole number from 1 on, or max for no limit",
    })
}

fn bytes(key: &'static str, value: &str) -> Result<Option<NonZeroU64>, ParameterError> {
    const UNITS: [(&str, u64); 8] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("k", 1000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
    ];
    let unit = UNITS.into_iter().find_map(|(unit, factor)| Some((value.strip_suffix(unit)?, factor)));
    let (digits, factor) = unit.unwrap_or((value, 1));
    let number = whole(digits).and_then(|number| number.checked_mul(factor));
    limit(value, number).ok_or_else(|| ParameterError::Value {
        key,
        value: value.to_owned(),
        expected: "bytes per second, such as 104857600 or 100Mi, or max for no limit",
    })
}

/// `+5` and ` 5`, which `parse` takes, are no numbers here: what is written must be what is meant.
fn whole(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn limit(text: &str, number: Option<u64>) -> Option<Option<NonZeroU64>> {
    if text == NO_LIMIT { Some(None) } else { number.and_then(NonZeroU64::new).map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wish(pairs: &[(&str, &str)]) -> Result<IoWish, ParameterError> {
        let mut wish = IoWish::default();
        for (key, value) in pairs {
            assert!(wish.set(key, value)?, "{key} is a key of these");
        }
        Ok(wish)
    }

    #[test]
    fn numbers_and_units_are_understood() {
        let asked = wish(&[("ioWeight", "800"), ("readIops", "500"), ("writeBps", "10Mi"), ("readBps", "2M")]).unwrap();
        assert_eq!(asked.weight, Weight::new(800));
        let limits = asked.limits;
        assert_eq!(limits.to_tag(), "500.-.2000000.10485760");
        let lifted = wish(&[("readIops", "500"), ("readIops", "max")]).unwrap();
        assert!(!lifted.any());
        assert!(!IoWish::default().set("provisioning", "thin").unwrap());
    }

    #[test]
    fn wrong_values_name_key_value_and_what_is_right() {
        for (key, value, expected) in [
            ("ioWeight", "0", "from 1 to 10000"),
            ("ioWeight", "10001", "from 1 to 10000"),
            ("ioWeight", "+5", "from 1 to 10000"),
            ("readIops", "0", "from 1 on"),
            ("writeIops", "1k", "from 1 on"),
            ("readBps", "1.5Mi", "bytes per second"),
            ("writeBps", "99999999999999999999", "bytes per second"),
            ("writeBps", "20000000Ti", "bytes per second"),
            ("readBps", "", "bytes per second"),
        ] {
            let error = wish(&[(key, value)]).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains(value) && error.contains(expected), "{error}");
        }
    }

    proptest! {
        #[test]
        fn limits_are_read_back_from_their_tag(numbers in proptest::array::uniform4(proptest::option::of(1u64..))) {
            let [read_iops, write_iops, read_bps, write_bps] = numbers.map(|number| number.and_then(NonZeroU64::new));
            let limits = Limits { read_iops, write_iops, read_bps, write_bps };
            prop_assert_eq!(Limits::from_tag(&limits.to_tag()), Some(limits));
        }
    }
}
