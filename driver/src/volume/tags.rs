//! The LVM tags of a volume: what makes it ours, what shaped it and how far its preparation is.
//!
//! Tags are set in the same `lvcreate` that makes the volume, so they cannot be lost without it. They are short: a
//! volume group's metadata area is finite, and long tags halve the number of volumes it holds.

use std::collections::BTreeSet;

use data_encoding::BASE32_NOPAD;
use sha2::{Digest as _, Sha256};

use super::io::{IoWish, Limits, Weight};
use super::{Content, FilesystemType, LvName};

/// On every volume of ours. An LV without it is never changed or removed.
pub const MARK: &str = "quarry";
/// On every thin pool that the driver made.
pub const POOL_MARK: &str = "quarry-pool";

const CLASS: &str = "c=";
const CONTENT: &str = "f=";
const STAGE: &str = "g=";
const NAME: &str = "n=";
const MKFS: &str = "o=";
/// Begins the tag with the weight that a volume asks for.
pub const WEIGHT: &str = "w=";
/// Begins the tag with the limits that it asks for.
pub const LIMITS: &str = "l=";

/// How far a volume's preparation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// A thick raw block volume that may still show what earlier volumes left; no node RPC takes it.
    Unzeroed,
    /// Never formatted, nor handed out before as a filesystem; a raw block volume stays here.
    New,
    /// mkfs was begun by us and not seen to end; never mounted.
    Formatting,
    /// mkfs ended well.
    Formatted,
}

impl Stage {
    const ALL: [Self; 4] = [Self::Unzeroed, Self::New, Self::Formatting, Self::Formatted];

    /// The tag that says so.
    #[must_use]
    pub fn tag(self) -> String {
        format!("{STAGE}{}", self.name())
    }

    /// As a word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unzeroed => "unzeroed",
            Self::New => "new",
            Self::Formatting => "formatting",
            Self::Formatted => "formatted",
        }
    }
}

/// What the tags of one volume say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tags {
    /// The device class it was asked for.
    pub class: String,
    /// Filesystem or raw block.
    pub content: Content,
    /// How far it is.
    pub stage: Stage,
    /// A hash of the mkfs options, if it has any.
    pub mkfs_hash: Option<String>,
    /// The CSI name where the LV name is a hash of it.
    pub csi_name: Option<String>,
    /// Its share of the disk, and its limits: these may change.
    pub io: IoWish,
}

/// Tags of a volume that is marked as ours and that we cannot read: made by a newer version, or changed by hand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TagError {
    /// A tag is not there.
    #[error("it lacks the tag {0}<...>")]
    Missing(&'static str),
    /// A tag says something unknown.
    #[error("its tag {0:?} is not understood")]
    Unknown(String),
    /// Two tags of one kind, as a cut-off change would leave them.
    #[error("it has more than one tag {0}<...>")]
    Twice(&'static str),
}

impl Tags {
    /// The tags of a new volume.
    #[must_use]
    pub fn new(
        class: &str,
        content: Content,
        stage: Stage,
        mkfs_options: &[String],
        csi_name: &str,
        lv: &LvName,
    ) -> Self {
        Self {
            class: class.to_owned(),
            content,
            stage,
            mkfs_hash: mkfs_hash(mkfs_options),
            csi_name: (lv.as_str() != csi_name).then(|| csi_name.to_owned()),
            io: IoWish::default(),
        }
    }

    /// The same with a share and limits.
    #[must_use]
    pub fn with_io(self, io: IoWish) -> Self {
        Self { io, ..self }
    }

    /// As `lvcreate --addtag` takes them.
    #[must_use]
    pub fn to_lvm(&self) -> Vec<String> {
        let mut tags = vec![
            MARK.to_owned(),
            format!("{CLASS}{}", self.class),
            format!("{CONTENT}{}", self.content.name()),
            self.stage.tag(),
        ];
        tags.extend(self.mkfs_hash.iter().map(|hash| format!("{MKFS}{hash}")));
        tags.extend(self.csi_name.iter().map(|name| format!("{NAME}{}", BASE32_NOPAD.encode(name.as_bytes()))));
        tags.extend(io_tags(&self.io));
        tags
    }

    /// Whether an LV with these tags is ours at all.
    #[must_use]
    pub fn is_ours(tags: &BTreeSet<String>) -> bool {
        tags.contains(MARK)
    }

    /// Reads the tags of an LV that is ours. Tags of other kinds (an admin's) are left alone.
    ///
    /// # Errors
    /// [`TagError`] where they do not say what a volume of ours must say.
    pub fn parse(tags: &BTreeSet<String>) -> Result<Self, TagError> {
        let one = |prefix: &'static str| {
            let mut found = tags.iter().filter_map(|tag| tag.strip_prefix(prefix));
            match (found.next(), found.next()) {
                (_, Some(_)) => Err(TagError::Twice(prefix)),
                (first, None) => Ok(first),
            }
        };
        let content = one(CONTENT)?.ok_or(TagError::Missing(CONTENT))?;
        let stage = one(STAGE)?.ok_or(TagError::Missing(STAGE))?;
        Ok(Self {
            class: one(CLASS)?.ok_or(TagError::Missing(CLASS))?.to_owned(),
            content: parse_content(content).ok_or_else(|| TagError::Unknown(format!("{CONTENT}{content}")))?,
            stage: Stage::ALL
                .into_iter()
                .find(|s| s.name() == stage)
                .ok_or_else(|| TagError::Unknown(format!("{STAGE}{stage}")))?,
            mkfs_hash: one(MKFS)?.map(str::to_owned),
            csi_name: one(NAME)?.map(parse_name).transpose()?,
            io: IoWish {
                weight: one(WEIGHT)?.map(parse_weight).transpose()?,
                limits: one(LIMITS)?.map(parse_limits).transpose()?.unwrap_or_default(),
            },
        })
    }
}

/// A short hash of mkfs options; nothing where there are none.
#[must_use]
pub fn mkfs_hash(options: &[String]) -> Option<String> {
    if options.is_empty() {
        return None;
    }
    let digest = Sha256::digest(options.join(" ").as_bytes());
    Some(BASE32_NOPAD.encode(digest.get(..10).unwrap_or_default()).to_ascii_lowercase())
}

/// The tags of a share and limits.
#[must_use]
pub fn io_tags(io: &IoWish) -> Vec<String> {
    let weight = io.weight.map(|weight| format!("{WEIGHT}{weight}"));
    let limits = io.limits.any().then(|| format!("{LIMITS}{}", io.limits.to_tag()));
    weight.into_iter().chain(limits).collect()
}

fn parse_weight(text: &str) -> Result<Weight, TagError> {
    text.parse().ok().and_then(Weight::new).ok_or_else(|| TagError::Unknown(format!("{WEIGHT}{text}")))
}

fn parse_limits(text: &str) -> Result<Limits, TagError> {
    Limits::from_tag(text).ok_or_else(|| TagError::Unknown(format!("{LIMITS}{text}")))
}

fn parse_content(text: &str) -> Option<Content> {
    if text == Content::Block.name() {
        return Some(Content::Block);
    }
    FilesystemType::ALL.into_iter().find(|fs| fs.name() == text).map(Content::Filesystem)
}

fn parse_name(text: &str) -> Result<String, TagError> {
    BASE32_NOPAD
        .decode(text.as_bytes())
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| TagError::Unknown(format!("{NAME}{text}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(csi_name: &str) -> Tags {
        let lv = LvName::for_csi_name(csi_name).unwrap();
        Tags::new("nvme", Content::Filesystem(FilesystemType::Xfs), Stage::New, &["-K".to_owned()], csi_name, &lv)
    }

    #[test]
    fn the_tags_of_a_usual_volume_are_short() {
        let tags =
            Tags::new("default", Content::Block, Stage::New, &[], "pvc-1", &LvName::for_csi_name("pvc-1").unwrap());
        assert_eq!(tags.to_lvm(), ["quarry", "c=default", "f=block", "g=new"]);
        let mut io = IoWish::default();
        io.set("ioWeight", "800").unwrap();
        io.set("writeIops", "500").unwrap();
        assert_eq!(tags.with_io(io).to_lvm()[4..], ["w=800", "l=-.500.-.-"]);
    }

    #[test]
    fn tags_we_cannot_read_are_an_error_not_a_guess() {
        let set = |tags: &[&str]| tags.iter().map(|t| (*t).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(Tags::parse(&set(&["quarry", "f=ext4", "g=new"])), Err(TagError::Missing("c=")));
        assert_eq!(Tags::parse(&set(&["quarry", "c=a", "f=zfs", "g=new"])), Err(TagError::Unknown("f=zfs".into())));
        assert_eq!(Tags::parse(&set(&["quarry", "c=a", "f=ext4", "g=new", "g=formatted"])), Err(TagError::Twice("g=")));
    }

    proptest! {
        #[test]
        fn tags_are_read_back_and_lvm_takes_them(name in "\\PC{1,32}", weight in 1_u32..=10_000, limit in 1_u64..) {
            let limits = Limits { write_bps: std::num::NonZeroU64::new(limit), ..Limits::default() };
            let tags = sample(&name).with_io(IoWish { weight: Weight::new(weight), limits });
            let written = tags.to_lvm();
            for tag in &written {
                prop_assert!(tag.len() <= 1024 && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+.-=".contains(&b)));
            }
            prop_assert_eq!(Tags::parse(&written.into_iter().collect()).unwrap(), tags);
        }
    }
}
