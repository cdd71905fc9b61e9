//! Major and minor numbers of devices.
//!
//! Invariant: numbers are taken apart by the kernel's rules for all 32 bits, not by dividing by 256.

use std::fmt;
use std::str::FromStr;

/// The number of a block device. The minor of a device-mapper device changes at every boot: never store it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber {
    /// The driver's number.
    pub major: u32,
    /// The device's number among the driver's.
    pub minor: u32,
}

/// A string that is no `major:minor`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a device number: expected major:minor")]
pub struct DeviceNumberError {
    /// What was found instead.
    pub given: String,
}

impl DeviceNumber {
    /// From the number that `stat` gives (`st_rdev`).
    #[must_use]
    pub fn from_rdev(rdev: u64) -> Self {
        Self { major: rustix::fs::major(rdev), minor: rustix::fs::minor(rdev) }
    }

    /// From the number as device-mapper and loop devices pass it (the kernel's `huge_encode_dev`).
    #[must_use]
    pub fn from_kernel(encoded: u64) -> Self {
        // 12 bits of major above 8 bits of minor, the minor's upper 12 bits on top.
        let field = |value: u64| u32::try_from(value & 0xffff_ffff).unwrap_or(u32::MAX);
        Self {
            major: field((encoded & 0xf_ff00) >> 8),
            minor: field((encoded & 0xff) | ((encoded >> 12) & 0xfff_ff00)),
        }
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for DeviceNumber {
    type Err = DeviceNumberError;

    fn from_str(given: &str) -> Result<Self, DeviceNumberError> {
        let numbers = given.trim().split_once(':');
        numbers
            .and_then(|(major, minor)| Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? }))
            .ok_or_else(|| DeviceNumberError { given: given.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn minors_above_255_are_kept() {
        // 253:300, as stat and as device-mapper encode it.
        let number = DeviceNumber { major: 253, minor: 300 };
        assert_eq!(DeviceNumber::from_rdev(rustix::fs::makedev(253, 300)), number);
        assert_eq!(DeviceNumber::from_kernel(0x10_fd2c), number);
        assert_eq!("253:300\n".parse::<DeviceNumber>().unwrap(), number);
        assert_eq!(number.to_string(), "253:300");
    }

    #[test]
    fn other_strings_are_refused() {
        for wrong in ["", "253", "253:", ":1", "a:b", "253:1:2", "-1:0"] {
            assert!(wrong.parse::<DeviceNumber>().is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn the_kernels_two_encodings_agree(major in 0_u32..4096, minor in 0_u32..(1 << 20)) {
            let number = DeviceNumber { major, minor };
            prop_assert_eq!(DeviceNumber::from_rdev(rustix::fs::makedev(major, minor)), number);
            let huge = u64::from((minor & 0xff) | (major << 8)) | (u64::from(minor & !0xff) << 12);
            prop_assert_eq!(DeviceNumber::from_kernel(huge), number);
        }
    }
}
