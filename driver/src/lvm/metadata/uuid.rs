//! LVM's identifiers of physical volumes, volume groups and logical volumes.
//!
//! Invariant: an [`LvmUuid`] holds 32 characters of LVM's alphabet, so it is safe in a path or a command line.

use std::fmt;
use std::str::FromStr;

/// Characters between the dashes of the written form.
const GROUPS: [usize; 7] = [6, 4, 4, 4, 4, 4, 6];

/// The 32 characters that name a physical volume, a volume group or a logical volume for ever.
///
/// Written with dashes (`LzMVfm-1GcQ-urAP-4CV6-ixFf-Qfcg-dXrYPL`) in LVM's text and reports, without
/// in labels and in device-mapper names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LvmUuid([u8; 32]);

/// A string that is no LVM identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not an LVM identifier: expected 32 letters, digits, ! or #, with or without dashes")]
pub struct UuidError {
    /// What was found instead.
    pub given: String,
}

impl LvmUuid {
    /// The identifier as a label on disk holds it.
    ///
    /// # Errors
    /// [`UuidError`] if there are not exactly 32 characters of LVM's alphabet.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, UuidError> {
        match <[u8; 32]>::try_from(bytes) {
            Ok(characters) if characters.iter().all(|&c| allowed(c)) => Ok(Self(characters)),
            _ => Err(UuidError { given: String::from_utf8_lossy(bytes).into_owned() }),
        }
    }

    /// The 32 characters without dashes, as in labels and in device-mapper identifiers.
    #[must_use]
    pub fn compact(&self) -> String {
        self.0.iter().map(|&c| char::from(c)).collect()
    }
}

/// LVM's alphabet (`lib/uuid/uuid.c`).
fn allowed(character: u8) -> bool {
    character.is_ascii_alphanumeric() || character == b'!' || character == b'#'
}

impl FromStr for LvmUuid {
    type Err = UuidError;

    fn from_str(given: &str) -> Result<Self, UuidError> {
        let wrong = || UuidError { given: given.to_owned() };
        let compact: Vec<u8> = given.bytes().filter(|&c| c != b'-').collect();
        let uuid = Self::from_bytes(&compact).map_err(|_| wrong())?;
        // Dashes only where LVM puts them: anything else is not what LVM wrote.
        if given.len() == compact.len() || uuid.to_string() == given { Ok(uuid) } else { Err(wrong()) }
    }
}

impl fmt::Display for LvmUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_slice();
        for (position, length) in GROUPS.into_iter().enumerate() {
            if position > 0 {
                f.write_str("-")?;
            }
            let (group, after) = rest.split_at(length);
            rest = after;
            for &character in group {
                write!(f, "{}", char::from(character))?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for LvmUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITTEN: &str = "LzMVfm-1GcQ-urAP-4CV6-ixFf-Qfcg-dXrYPL";

    #[test]
    fn both_forms_are_one_identifier() {
        let uuid: LvmUuid = WRITTEN.parse().unwrap();
        assert_eq!(uuid.to_string(), WRITTEN);
        assert_eq!(uuid.compact(), "LzMVfm1GcQurAP4CV6ixFfQfcgdXrYPL");
        assert_eq!(uuid.compact().parse::<LvmUuid>().unwrap(), uuid);
        assert_eq!(LvmUuid::from_bytes(uuid.compact().as_bytes()).unwrap(), uuid);
    }

    #[test]
    fn other_strings_are_refused() {
        for wrong in [
            "",
            "LzMVfm",
            "LzMVfm-1GcQ-urAP-4CV6-ixFf-Qfcg-dXrYP",
            "LzMVfm-1GcQ-urAP-4CV6-ixFf-Qfcg-dXrYP/",
            "LzMVfm1-GcQ-urAP-4CV6-ixFf-Qfcg-dXrYPL",
            "LzMVfm-1GcQ-urAP-4CV6-ixFf-Qfcg-dXrYPé",
        ] {
            let error = wrong.parse::<LvmUuid>().unwrap_err();
            assert!(error.to_string().contains("not an LVM identifier"), "{error}");
        }
    }
}
