//! One LVM command line: the verb and its words, and what may be done when it does not end.

use std::fmt;
use std::path::Path;

/// Whether a command changes LVM's or device-mapper's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// A report. It may be killed at any time.
    Read,
    /// It changes state: killed only as the last resort, and the volume group is repaired before its next use.
    Change,
}

/// A verb with its words.
///
/// **Invariant.** Words hold no blanks, quotes, backslashes or control characters, and there are fewer than 60: so the
/// same command means the same as a process and as a line typed into an `lvm` shell, which knows no escapes and drops
/// lines of 64 words in silence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    words: Vec<String>,
    effect: Effect,
}

/// A word that must not reach LVM; a defect of the driver, since names, tags and sizes are checked before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WordError {
    /// A character that an `lvm` shell would take for something else.
    #[error(
        "refusing to pass {word:?} to lvm {verb}: it has a character other than letters, digits and _+.:/=,@%{{}}-"
    )]
    Character {
        /// The verb.
        verb: String,
        /// The word.
        word: String,
    },
    /// Too many words.
    #[error("refusing to run lvm {verb} with {count} words; an lvm shell takes fewer than 64")]
    TooMany {
        /// The verb.
        verb: String,
        /// How many.
        count: usize,
    },
}

impl Command {
    /// A command of a verb, without words yet.
    #[must_use]
    pub fn new(verb: &'static str, effect: Effect) -> Self {
        Self { words: vec![verb.to_owned()], effect }
    }

    /// Adds a word.
    #[must_use]
    pub fn word(mut self, word: impl Into<String>) -> Self {
        self.words.push(word.into());
        self
    }

    /// Adds an option and its value, as two words.
    #[must_use]
    pub fn option(self, name: &'static str, value: impl fmt::Display) -> Self {
        self.word(name).word(value.to_string())
    }

    /// Adds one `--addtag` for each tag.
    #[must_use]
    pub fn add_tags<S: AsRef<str>>(self, tags: impl IntoIterator<Item = S>) -> Self {
        tags.into_iter().fold(self, |command, tag| command.option("--addtag", tag.as_ref()))
    }

    /// Has LVM look at these devices alone, whatever its devices file says: it reads every device it may use, and would
    /// hang on one of another volume group that hangs. The last word stays the last.
    #[must_use]
    pub fn on_devices<'a>(mut self, devices: impl IntoIterator<Item = &'a Path>) -> Self {
        let devices: Vec<String> = devices.into_iter().map(|device| device.display().to_string()).collect();
        if !devices.is_empty() && !self.words.is_empty() {
            self.words.splice(1..1, ["--devices".to_owned(), devices.join(",")]);
        }
        self
    }

    /// The verb.
    #[must_use]
    pub fn verb(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// Whether it changes anything.
    #[must_use]
    pub fn effect(&self) -> Effect {
        self.effect
    }

    /// The verb and its words, checked.
    ///
    /// # Errors
    /// [`WordError`].
    pub fn words(&self) -> Result<&[String], WordError> {
        let sound = |word: &String| {
            !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+.:/=,@%{}-".contains(&b))
        };
        let verb = || self.words.first().cloned().unwrap_or_default();
        if let Some(word) = self.words.iter().find(|word| !sound(word)) {
            return Err(WordError::Character { verb: verb(), word: word.clone() });
        }
        if self.words.len() >= 60 {
            return Err(WordError::TooMany { verb: verb(), count: self.words.len() });
        }
        Ok(&self.words)
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lvm {}", self.words.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_behind_the_verb() {
        let command = Command::new("lvremove", Effect::Change).word("-y").word("vg/lv");
        let devices = [Path::new("/dev/sda"), Path::new("/dev/dm-0")];
        assert_eq!(
            command.clone().on_devices(devices).to_string(),
            "lvm lvremove --devices /dev/sda,/dev/dm-0 -y vg/lv"
        );
        assert_eq!(command.clone().on_devices([]), command);
    }

    #[test]
    fn words_that_a_shell_would_take_apart_are_refused() {
        let command = |word: &str| Command::new("lvcreate", Effect::Change).word(word);
        assert!(command("pvc-1").words().is_ok());
        for bad in ["a b", "a\nb", "'a'", "a;b", "", "ä", "a\\b", "#a"] {
            assert!(matches!(command(bad).words(), Err(WordError::Character { .. })), "{bad:?}");
        }
        let many = Command::new("lvcreate", Effect::Change).add_tags(vec!["t"; 30]);
        assert!(matches!(many.words(), Err(WordError::TooMany { count: 61, .. })));
    }
}
