//! One section of a metadata text, its keys read with their types; what is wrong names its place and line.

use std::str::FromStr;

use super::header::SECTOR;
use super::text::{Entry, Node, Section, TextError, Value};
use super::{LvmUuid, UuidError};

/// A text that is valid in form but does not describe a volume group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// It is not LVM's configuration text.
    #[error("the metadata text is malformed")]
    Text(#[from] TextError),
    /// A key that LVM always writes is not there.
    #[error("line {line}: {place} has no {key}")]
    Missing {
        /// Line of the section, from 1.
        line: u32,
        /// The section's path.
        place: String,
        /// The key.
        key: &'static str,
    },
    /// A key holds something else than LVM writes there.
    #[error("line {line}: {place}/{key} is {found}, expected {expected}")]
    Wrong {
        /// Line of the key, from 1.
        line: u32,
        /// The section's path.
        place: String,
        /// The key.
        key: String,
        /// What it holds.
        found: String,
        /// What belongs there.
        expected: &'static str,
    },
    /// An identifier is none.
    #[error("line {line}: {place}/id is wrong")]
    Uuid {
        /// Line of the key, from 1.
        line: u32,
        /// The section's path.
        place: String,
        /// What it holds.
        source: UuidError,
    },
    /// The parts do not fit together.
    #[error("line {line}: {place}: {what}")]
    Inconsistent {
        /// Line of the section, from 1.
        line: u32,
        /// The section's path.
        place: String,
        /// What does not fit.
        what: String,
    },
}

/// A section with its path and line, for messages.
pub(super) struct Place<'a> {
    pub path: String,
    pub line: u32,
    pub section: &'a Section<'a>,
}

impl<'a> Place<'a> {
    /// The last part of the path.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    pub fn inner(&self, entry: &Entry<'_>, section: &'a Section<'a>) -> Place<'a> {
        Place { path: format!("{}/{}", self.path, entry.key), line: entry.line, section }
    }

    /// The sections in a section, which need not be there.
    pub fn subsections(&self, key: &str) -> impl Iterator<Item = Place<'a>> {
        let found = self.section.entries.iter().find_map(|entry| match &entry.node {
            Node::Section(section) if entry.key == key => Some(self.inner(entry, section)),
            _ => None,
        });
        found.into_iter().flat_map(|place| {
            let section = place.section;
            section.sections().map(move |(entry, inner)| place.inner(entry, inner))
        })
    }

    pub fn inconsistent(&self, what: impl Into<String>) -> ModelError {
        ModelError::Inconsistent { line: self.line, place: self.path.clone(), what: what.into() }
    }

    pub fn wrong(&self, key: &str, found: String, expected: &'static str) -> ModelError {
        ModelError::Wrong {
            line: self.section.get(key).map_or(self.line, |entry| entry.line),
            place: self.path.clone(),
            key: key.to_owned(),
            found,
            expected,
        }
    }

    fn value(&self, key: &str, expected: &'static str) -> Result<Option<&'a Value<'a>>, ModelError> {
        match self.section.get(key).map(|entry| &entry.node) {
            None => Ok(None),
            Some(Node::Value(value)) => Ok(Some(value)),
            Some(Node::Section(_)) => Err(self.wrong(key, "a section".to_owned(), expected)),
        }
    }

    fn required<T>(&self, key: &'static str, value: Option<T>) -> Result<T, ModelError> {
        value.ok_or_else(|| ModelError::Missing { line: self.line, place: self.path.clone(), key })
    }

    pub fn optional_string(&self, key: &str) -> Result<Option<String>, ModelError> {
        const EXPECTED: &str = "a string";
        match self.value(key, EXPECTED)? {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text.to_string())),
            Some(other) => Err(self.wrong(key, other.to_string(), EXPECTED)),
        }
    }

    pub fn string(&self, key: &'static str) -> Result<String, ModelError> {
        let value = self.optional_string(key)?;
        self.required(key, value)
    }

    pub fn optional_natural(&self, key: &str) -> Result<Option<u64>, ModelError> {
        const EXPECTED: &str = "a whole number from 0";
        match self.value(key, EXPECTED)? {
            None => Ok(None),
            Some(Value::Integer(number)) => {
                u64::try_from(*number).map(Some).map_err(|_| self.wrong(key, number.to_string(), EXPECTED))
            }
            Some(other) => Err(self.wrong(key, other.to_string(), EXPECTED)),
        }
    }

    pub fn natural(&self, key: &'static str) -> Result<u64, ModelError> {
        let value = self.optional_natural(key)?;
        self.required(key, value)
    }

    /// A number of sectors, in bytes.
    pub fn sectors(&self, key: &'static str) -> Result<u64, ModelError> {
        let sectors = self.natural(key)?;
        sectors
            .checked_mul(SECTOR as u64)
            .ok_or_else(|| self.wrong(key, sectors.to_string(), "a size in sectors below 2^55"))
    }

    /// A list of strings; not there means empty.
    pub fn strings(&self, key: &str) -> Result<Vec<String>, ModelError> {
        const EXPECTED: &str = "a list of strings";
        let list = match self.value(key, EXPECTED)? {
            None => return Ok(Vec::new()),
            Some(Value::List(list)) => list.as_slice(),
            // LVM reads a lone string as a list of one.
            Some(single) => std::slice::from_ref(single),
        };
        list.iter()
            .map(|value| match value {
                Value::Text(text) => Ok(text.to_string()),
                other => Err(self.wrong(key, other.to_string(), EXPECTED)),
            })
            .collect()
    }

    /// Status words, which LVM always writes, and the later flags.
    pub fn flags(&self) -> Result<Vec<String>, ModelError> {
        self.required("status", self.section.get("status"))?;
        let mut words = self.strings("status")?;
        words.extend(self.strings("flags")?);
        Ok(words)
    }

    pub fn uuid(&self) -> Result<LvmUuid, ModelError> {
        let written = self.string("id")?;
        LvmUuid::from_str(&written).map_err(|source| ModelError::Uuid {
            line: self.section.get("id").map_or(self.line, |entry| entry.line),
            place: self.path.clone(),
            source,
        })
    }
}
