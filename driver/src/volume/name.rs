//! From a CSI volume name to the name of its logical volume.
//!
//! **Invariant.** The same CSI name always gives the same LV name, on every node and for every volume group: a repeated
//! request finds what the first one made. Two CSI names never give one LV name (but for SHA-256 collisions).

use std::fmt;

use data_encoding::BASE32_NOPAD;
use sha2::{Digest as _, Sha256};

/// The longest CSI name, in bytes (CSI specification: strings have at most 128).
pub const MAX_CSI_NAME: usize = 128;
/// The longest LV name we make. With a topology value of 63 bytes and the slash a handle has at most 128.
const MAX_LV_NAME: usize = 64;
/// The longest LV name once device-mapper has doubled its hyphens; with [`MAX_ESCAPED_VG`] and the suffixes of LVM's
/// inner devices it stays below device-mapper's 127.
const MAX_ESCAPED_LV: usize = 76;
/// The longest VG name, hyphens counted twice, that a device class may name.
pub const MAX_ESCAPED_VG: usize = 40;
/// What our own hashed names start with; CSI names that start so are hashed too.
const HASHED: &str = "q-";

/// The name of a logical volume of ours.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LvName(String);

/// A CSI name that no volume can have; INVALID_ARGUMENT.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing given.
    #[error("name is empty; CreateVolume needs one")]
    Empty,
    /// Over the specification's limit.
    #[error("name has {0} bytes; a CSI name has at most {MAX_CSI_NAME}")]
    TooLong(usize),
    /// A character that the specification forbids.
    #[error("name contains the control character {0:?}")]
    ControlCharacter(char),
}

impl LvName {
    /// The LV name for a CSI name: the name itself where LVM takes it (so that `lvs` shows the claim's `pvc-<uid>`),
    /// else `q-` and a hash.
    ///
    /// # Errors
    /// [`NameError`] for a name that the CSI specification does not allow.
    pub fn for_csi_name(name: &str) -> Result<Self, NameError> {
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        if name.len() > MAX_CSI_NAME {
            return Err(NameError::TooLong(name.len()));
        }
        if let Some(control) = name.chars().find(|c| c.is_control()) {
            return Err(NameError::ControlCharacter(control));
        }
        if Self::is_plain(name) { Ok(Self(name.to_owned())) } else { Ok(Self(hashed(name))) }
    }

    /// The name in a volume handle or in LVM's metadata, if it can be one of ours.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hash = text.strip_prefix(HASHED).is_some_and(|hash| {
            hash.len() == 32 && hash.bytes().all(|b| b.is_ascii_lowercase() || (b'2'..=b'7').contains(&b))
        });
        (hash || Self::is_plain(text)).then(|| Self(text.to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether LVM takes this as a name, and it cannot be mistaken for one of LVM's or our own making.
    fn is_plain(name: &str) -> bool {
        !name.starts_with(HASHED)
            && name.len() <= MAX_LV_NAME
            && escaped_len(name) <= MAX_ESCAPED_LV
            && lvm_accepts(name)
    }
}

impl fmt::Display for LvName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Length of a name in device-mapper, which writes each hyphen twice.
#[must_use]
pub fn escaped_len(name: &str) -> usize {
    name.len() + name.bytes().filter(|b| *b == b'-').count()
}

/// LVM's rules for names of VGs and LVs (lvm(8), "VALID NAMES").
#[must_use]
pub fn lvm_accepts(name: &str) -> bool {
    const RESERVED_PREFIXES: [&str; 2] = ["snapshot", "pvmove"];
    const RESERVED_PARTS: [&str; 18] = [
        "_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_imeta", "_iorig", "_mimage", "_mlog", "_pmspare", "_rimage",
        "_rmeta", "_tdata", "_tmeta", "_vdata", "_vorigin", "_wcorig", "lvol",
    ];
    !name.is_empty()
        && !name.starts_with('-')
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"+_.-".contains(&b))
        && !RESERVED_PREFIXES.iter().any(|p| name.starts_with(p))
        && !RESERVED_PARTS.iter().any(|p| name.contains(p))
}

/// `q-` and 160 bits of SHA-256 in base 32, lower case: 34 characters.
fn hashed(name: &str) -> String {
    let digest = Sha256::digest(name.as_bytes());
    let text = BASE32_NOPAD.encode(digest.get(..20).unwrap_or_default()).to_ascii_lowercase();
    format!("{HASHED}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_claims_name_stays_readable() {
        let name = "pvc-8d1b9f6e-6b0a-4f0e-8f3d-2f6d4b2a9c11";
        assert_eq!(LvName::for_csi_name(name).unwrap().as_str(), name);
    }

    #[test]
    fn names_that_lvm_or_we_reserve_are_hashed() {
        let long = "a".repeat(128);
        let hyphens = "-".repeat(60);
        for name in ["snapshot1", "x_tdata", "-a", "a b", "a/b", "..", "q-abc", "ümlaut", "lvol0", &long, &hyphens] {
            let lv = LvName::for_csi_name(name).unwrap();
            assert!(lv.as_str().starts_with("q-") && lv.as_str().len() == 34, "{name} -> {lv}");
            assert_eq!(LvName::parse(lv.as_str()), Some(lv.clone()));
        }
        assert_eq!(LvName::for_csi_name(""), Err(NameError::Empty));
        assert_eq!(LvName::for_csi_name(&"a".repeat(129)), Err(NameError::TooLong(129)));
        assert_eq!(LvName::for_csi_name("a\nb"), Err(NameError::ControlCharacter('\n')));
        assert_eq!(LvName::parse("q-short"), None);
    }

    proptest! {
        #[test]
        fn every_name_is_one_lvm_takes_and_none_collide(a in "\\PC{1,32}", b in "\\PC{1,32}") {
            let (x, y) = (LvName::for_csi_name(&a).unwrap(), LvName::for_csi_name(&b).unwrap());
            prop_assert!(lvm_accepts(x.as_str()));
            prop_assert!(x.as_str().len() <= MAX_LV_NAME && escaped_len(x.as_str()) <= MAX_ESCAPED_LV);
            prop_assert_eq!(a == b, x == y);
        }
    }
}
