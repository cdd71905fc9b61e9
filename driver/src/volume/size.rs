//! Sizes: the unit, and from a CSI capacity range to the size of a logical volume.

use std::fmt;

use super::Content;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(pub u64);

/// 1 MiB.
pub const MIB: u64 = 1 << 20;
/// 1 GiB.
pub const GIB: u64 = 1 << 30;
/// The size of a volume when the request names none.
pub const DEFAULT_SIZE: Bytes = Bytes(GIB);

impl Bytes {
    /// The next multiple of `unit` that is not smaller, or nothing where that exceeds 64 bits or `unit` is 0.
    #[must_use]
    pub fn round_up(self, unit: Self) -> Option<Self> {
        self.0.checked_next_multiple_of(unit.0).map(Self)
    }

    /// The previous multiple of `unit` that is not larger; 0 for a unit of 0.
    #[must_use]
    pub fn round_down(self, unit: Self) -> Self {
        Self(self.0.checked_rem(unit.0).map_or(0, |rest| self.0 - rest))
    }

    /// As CSI writes sizes.
    #[must_use]
    pub fn as_i64(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }
}

impl fmt::Display for Bytes {
    /// `1073741824 (1 GiB)`: exact, and readable.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", GIB), ("MiB", MIB), ("KiB", 1 << 10)];
        write!(f, "{}", self.0)?;
        match UNITS.iter().find(|(_, unit)| self.0 >= *unit) {
            Some((name, unit)) if self.0.is_multiple_of(*unit) => {
                write!(f, " ({} {name})", self.0 / unit)
            }
            Some((name, unit)) => {
                let tenths = u128::from(self.0) * 10 / u128::from(*unit);
                write!(f, " ({}.{} {name})", tenths / 10, tenths % 10)
            }
            None => f.write_str(" bytes"),
        }
    }
}

/// The smallest volume that can hold what is asked for.
///
/// The filesystems' figures are what their mkfs accepts with its defaults: xfs refuses less than 300 MiB, btrfs needs
/// about 110 and is of use from 200, ext4 below 32 MiB is mostly journal.
#[must_use]
pub fn minimum(content: Content) -> Bytes {
    use super::FilesystemType::{Btrfs, Ext4, Xfs};
    match content {
        Content::Block => Bytes(MIB),
        Content::Filesystem(Ext4) => Bytes(32 * MIB),
        Content::Filesystem(Xfs) => Bytes(300 * MIB),
        Content::Filesystem(Btrfs) => Bytes(200 * MIB),
    }
}

/// A CSI capacity range, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeRange {
    /// At least this.
    pub required: Option<Bytes>,
    /// At most this.
    pub limit: Option<Bytes>,
}

/// Why no volume size fits a request; the gRPC code is OUT_OF_RANGE for all, INVALID_ARGUMENT for negative numbers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// A negative figure.
    #[error("capacity_range.{field} is {value}; it must not be negative")]
    Negative {
        /// `required_bytes` or `limit_bytes`.
        field: &'static str,
        /// What was sent.
        value: i64,
    },
    /// The limit lies below the requirement.
    #[error("capacity_range.limit_bytes {limit} is less than required_bytes {required}")]
    LimitBelowRequired {
        /// At most.
        limit: Bytes,
        /// At least.
        required: Bytes,
    },
    /// Nothing between requirement and limit can be made.
    #[error("no size fits capacity_range: the smallest possible here is {smallest}, limit_bytes is {limit}")]
    LimitTooSmall {
        /// What would have to be made.
        smallest: Bytes,
        /// At most.
        limit: Bytes,
    },
    /// Larger than any volume can be.
    #[error("capacity_range.required_bytes {required} is larger than any volume can be")]
    TooLarge {
        /// At least.
        required: Bytes,
    },
}

impl SizeRange {
    /// From the figures of a CSI request; 0 means that none is given.
    ///
    /// # Errors
    /// [`SizeError`] for negative figures or a limit below the requirement.
    pub fn new(required_bytes: i64, limit_bytes: i64) -> Result<Self, SizeError> {
        let figure = |field, value: i64| match u64::try_from(value) {
            Err(_) => Err(SizeError::Negative { field, value }),
            Ok(0) => Ok(None),
            Ok(bytes) => Ok(Some(Bytes(bytes))),
        };
        let required = figure("required_bytes", required_bytes)?;
        let limit = figure("limit_bytes", limit_bytes)?;
        match (required, limit) {
            (Some(required), Some(limit)) if limit < required => Err(SizeError::LimitBelowRequired { limit, required }),
            _ => Ok(Self { required, limit }),
        }
    }

    /// The size of the logical volume to make: what is required (or the default, or the smallest sensible), rounded up
    /// to whole extents.
    ///
    /// # Errors
    /// [`SizeError`] when that exceeds the limit.
    pub fn volume_size(self, content: Content, extent: Bytes) -> Result<Bytes, SizeError> {
        let least = minimum(content);
        let wanted = match (self.required, self.limit) {
            (Some(required), _) => required.max(least),
            // A limit alone: the default where it allows, else what it allows.
            (None, Some(limit)) => DEFAULT_SIZE.min(limit.round_down(extent)).max(least),
            (None, None) => DEFAULT_SIZE.max(least),
        };
        let too_large = SizeError::TooLarge { required: wanted };
        let size = wanted.round_up(extent).ok_or(too_large.clone())?;
        if i64::try_from(size.0).is_err() {
            return Err(too_large);
        }
        match self.limit {
            Some(limit) if size > limit => Err(SizeError::LimitTooSmall { smallest: size, limit }),
            _ => Ok(size),
        }
    }

    /// Whether an existing volume of `size` answers this request.
    #[must_use]
    pub fn contains(self, size: Bytes) -> bool {
        self.required.is_none_or(|required| size >= required) && self.limit.is_none_or(|limit| size <= limit)
    }
}

#[cfg(test)]
mod tests {
    use super::super::FilesystemType;
    use super::*;
    use proptest::prelude::*;

    const EXTENT: Bytes = Bytes(4 * MIB);
    const EXT4: Content = Content::Filesystem(FilesystemType::Ext4);

    #[test]
    fn sizes_read_as_a_person_would_write_them() {
        assert_eq!(Bytes(GIB).to_string(), "1073741824 (1 GiB)");
        assert_eq!(Bytes(GIB + GIB / 2).to_string(), "1610612736 (1.5 GiB)");
        assert_eq!(Bytes(5).to_string(), "5 bytes");
    }

    #[test]
    fn a_request_is_rounded_up_to_extents_and_minimum() {
        let size = |required, limit, content| SizeRange::new(required, limit).unwrap().volume_size(content, EXTENT);
        assert_eq!(size(0, 0, EXT4), Ok(Bytes(GIB)));
        assert_eq!(size(1, 0, EXT4), Ok(Bytes(32 * MIB)));
        assert_eq!(size(1, 0, Content::Filesystem(FilesystemType::Xfs)), Ok(Bytes(300 * MIB)));
        assert_eq!(size(1, 0, Content::Block), Ok(EXTENT));
        assert_eq!(size(100 * MIB as i64 + 1, 0, EXT4), Ok(Bytes(104 * MIB)));
        assert_eq!(size(0, 50 * MIB as i64, EXT4), Ok(Bytes(48 * MIB)), "a limit alone is used, in whole extents");
    }

    #[test]
    fn what_cannot_be_is_said_with_the_figures() {
        assert_eq!(SizeRange::new(-1, 0), Err(SizeError::Negative { field: "required_bytes", value: -1 }));
        let error = SizeRange::new(3, 2).unwrap_err();
        assert_eq!(error.to_string(), "capacity_range.limit_bytes 2 bytes is less than required_bytes 3 bytes");
        let tight = SizeRange::new(GIB as i64 + 1, GIB as i64 + 1).unwrap();
        assert!(matches!(tight.volume_size(EXT4, EXTENT), Err(SizeError::LimitTooSmall { .. })));
        let huge = SizeRange::new(i64::MAX, 0).unwrap();
        assert!(matches!(huge.volume_size(EXT4, EXTENT), Err(SizeError::TooLarge { .. })));
    }

    proptest! {
        #[test]
        fn a_chosen_size_always_answers_its_own_request(required in 0..=i64::MAX, limit in 0..=i64::MAX, shift in 12u32..30) {
            let extent = Bytes(1 << shift);
            if let Ok(range) = SizeRange::new(required, limit)
                && let Ok(size) = range.volume_size(EXT4, extent)
            {
                prop_assert!(range.contains(size));
                prop_assert_eq!(size.0 % extent.0, 0);
                prop_assert!(size >= minimum(EXT4));
            }
        }
    }
}
