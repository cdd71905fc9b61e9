//! Decodes LVM's label, physical volume header and metadata area headers from bytes.
//!
//! Invariant: what is returned passed its checksum; bytes that carry LVM's magic but fail a check are an
//! error, never "no label". The layout is LVM's `lib/format_text/layout.h` and `lib/label/label.h`; all
//! numbers are little-endian.

use super::{LvmUuid, UuidError};

/// Bytes of a sector, LVM's unit on disk.
pub const SECTOR: usize = 512;
/// A label may be in any of the first four sectors.
pub const LABEL_SECTORS: usize = 4;
/// A metadata area starts with one sector of header; the text's circular buffer fills the rest.
pub const AREA_HEADER: usize = SECTOR;

const LABEL_ID: &[u8; 8] = b"LABELONE";
const LABEL_TYPE: &[u8; 8] = b"LVM2 001";
const AREA_MAGIC: &[u8; 16] = b" LVM2 x[5A%r0N*>";
const AREA_VERSION: u32 = 1;
/// Set in a slot's flags by `--metadataignore y`: LVM neither reads nor writes this area.
const LOCATION_IGNORED: u32 = 1;
/// Set in the header extension's flags of a physical volume that belongs to a volume group.
const EXTENSION_USED: u32 = 1;

/// LVM's checksum: the polynomial of CRC-32, started with LVM's own value, without the final inversion.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u32 {
    continue_checksum(INITIAL_CHECKSUM, bytes)
}

/// What LVM starts every checksum with (`lib/misc/crc.h`).
pub(super) const INITIAL_CHECKSUM: u32 = 0xf597_a6cf;

/// Goes on with a checksum over a further piece: a text that wraps is summed in two pieces.
pub(super) fn continue_checksum(so_far: u32, bytes: &[u8]) -> u32 {
    // The library keeps the inverted state, as zlib does.
    let mut hasher = crc32fast::Hasher::new_with_initial(!so_far);
    hasher.update(bytes);
    !hasher.finalize()
}

/// A stretch of a device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskArea {
    /// Where it starts, from the device's first byte.
    pub offset: u64,
    /// How long it is; 0 means "to the end" for the data area of a physical volume.
    pub size: u64,
}

/// A valid label with the physical volume header behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// Sector the label was found in (0-3).
    pub sector: usize,
    /// Identifier of this physical volume.
    pub pv_uuid: LvmUuid,
    /// Size of the device when the label was written, in bytes.
    pub device_size: u64,
    /// Where the extents are.
    pub data_areas: Vec<DiskArea>,
    /// Where the metadata areas are; empty with `--pvmetadatacopies 0`.
    pub metadata_areas: Vec<DiskArea>,
    /// Whether the label says that the volume belongs to a group; older labels do not say.
    pub in_use: Option<bool>,
}

/// Where one text of metadata lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TextLocation {
    /// Start, in bytes from the metadata area's start (the text wraps round at the area's end).
    pub offset: u64,
    /// Length in bytes, with its closing NUL.
    pub size: u64,
    /// LVM's checksum of the text.
    pub checksum: u32,
}

/// What a valid metadata area header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AreaHeader {
    /// LVM was told to leave this area alone; its text, if any, is not kept up to date.
    pub ignored: bool,
    /// The text in force; none in a physical volume that belongs to no group.
    pub committed: Option<TextLocation>,
    /// A text that is being committed right now, or was when its writer died.
    pub precommitted: Option<TextLocation>,
}

/// Bytes that look like LVM's but fail a check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The label's checksum does not match its sector.
    #[error(
        "the label in sector {sector} is damaged: its checksum is {stored:#010x}, its contents give {computed:#010x}"
    )]
    LabelChecksum {
        /// Sector of the label.
        sector: usize,
        /// Checksum on disk.
        stored: u32,
        /// Checksum of the bytes on disk.
        computed: u32,
    },
    /// The label is of another format, or points outside its sector.
    #[error("the label in sector {sector} is of an unknown form: {what}")]
    LabelForm {
        /// Sector of the label.
        sector: usize,
        /// What is wrong.
        what: String,
    },
    /// The identifier in the label is none.
    #[error("the label in sector {sector} names no physical volume")]
    LabelUuid {
        /// Sector of the label.
        sector: usize,
        /// Which characters were found.
        source: UuidError,
    },
    /// A metadata area's header fails its checksum: it is damaged, or is being written.
    #[error(
        "the header of the metadata area at byte {offset} does not match its checksum: {stored:#010x} stored, {computed:#010x} computed"
    )]
    AreaChecksum {
        /// Start of the area.
        offset: u64,
        /// Checksum on disk.
        stored: u32,
        /// Checksum of the bytes on disk.
        computed: u32,
    },
    /// A metadata area's header is not one that this driver knows.
    #[error("the header of the metadata area at byte {offset} is of an unknown form: {what}")]
    AreaForm {
        /// Start of the area.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// A text does not match the checksum in the header: it is damaged, or was just replaced.
    #[error(
        "the metadata text at byte {offset} does not match its checksum: {stored:#010x} stored, {computed:#010x} computed"
    )]
    TextChecksum {
        /// Start of the text, in bytes from the device's start.
        offset: u64,
        /// Checksum in the header.
        stored: u32,
        /// Checksum of the text.
        computed: u32,
    },
}

impl HeaderError {
    /// Whether a commit going on at this moment can explain the error, so that a second look may succeed.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::LabelChecksum { .. } | Self::AreaChecksum { .. } | Self::TextChecksum { .. })
    }
}

/// Finds the label in a device's first four sectors.
///
/// `Ok(None)` is an affirmation: these sectors carry no LVM label. Fewer bytes than four sectors are right
/// only for a device that has no more.
///
/// # Errors
/// [`HeaderError`] if a label is there but damaged or of an unknown form.
pub fn find_label(first_sectors: &[u8]) -> Result<Option<Label>, HeaderError> {
    for (sector, bytes) in first_sectors.chunks_exact(SECTOR).take(LABEL_SECTORS).enumerate() {
        if bytes.starts_with(LABEL_ID) {
            return decode_label(sector, bytes).map(Some);
        }
    }
    Ok(None)
}

fn decode_label(sector: usize, bytes: &[u8]) -> Result<Label, HeaderError> {
    let form = |what: String| HeaderError::LabelForm { sector, what };
    let number = u64_at(bytes, 8);
    if number != sector as u64 {
        return Err(form(format!("it says that it is in sector {number}")));
    }
    let stored = u32_at(bytes, 16);
    let computed = checksum(&bytes[20..SECTOR]);
    if stored != computed {
        return Err(HeaderError::LabelChecksum { sector, stored, computed });
    }
    if &bytes[24..32] != LABEL_TYPE {
        let kind = String::from_utf8_lossy(&bytes[24..32]).into_owned();
        return Err(form(format!("its type is {kind:?}, not \"LVM2 001\"")));
    }
    let start = u32_at(bytes, 20) as usize;
    let header = bytes
        .get(start..)
        .filter(|header| start >= 32 && header.len() >= 40)
        .ok_or_else(|| form(format!("its contents start at byte {start} of its sector")))?;
    let pv_uuid = LvmUuid::from_bytes(&header[..32]).map_err(|source| HeaderError::LabelUuid { sector, source })?;
    let outside = || form("a list of areas has no end in its sector".to_owned());
    let (data_areas, rest) = areas(&header[40..]).ok_or_else(outside)?;
    let (metadata_areas, rest) = areas(rest).ok_or_else(outside)?;
    // Version 0 (or no room) is a label without the extension; flags came with version 2.
    let in_use = (rest.len() >= 8 && u32_at(rest, 0) >= 2).then(|| u32_at(rest, 4) & EXTENSION_USED != 0);
    Ok(Label { sector, pv_uuid, device_size: u64_at(header, 32), data_areas, metadata_areas, in_use })
}

/// A list of areas up to the entry whose offset is 0, and the bytes behind it.
fn areas(bytes: &[u8]) -> Option<(Vec<DiskArea>, &[u8])> {
    let mut found = Vec::new();
    let mut rest = bytes;
    loop {
        let (entry, after) = rest.split_at_checked(16)?;
        rest = after;
        let area = DiskArea { offset: u64_at(entry, 0), size: u64_at(entry, 8) };
        if area.offset == 0 {
            return Some((found, rest));
        }
        found.push(area);
    }
}

/// Decodes the first sector of the metadata area at `place`.
///
/// # Errors
/// [`HeaderError`] if the sector is damaged, is no such header, or points outside the area.
pub fn decode_area_header(bytes: &[u8], place: DiskArea) -> Result<AreaHeader, HeaderError> {
    let offset = place.offset;
    let form = |what: String| HeaderError::AreaForm { offset, what };
    let Some(bytes) = bytes.get(..AREA_HEADER) else {
        return Err(form(format!("{} bytes instead of {AREA_HEADER}", bytes.len())));
    };
    let stored = u32_at(bytes, 0);
    let computed = checksum(&bytes[4..]);
    if stored != computed {
        return Err(HeaderError::AreaChecksum { offset, stored, computed });
    }
    if &bytes[4..20] != AREA_MAGIC {
        return Err(form("LVM's magic is not there".to_owned()));
    }
    let version = u32_at(bytes, 20);
    if version != AREA_VERSION {
        return Err(form(format!("its version is {version}, not {AREA_VERSION}")));
    }
    let says = DiskArea { offset: u64_at(bytes, 24), size: u64_at(bytes, 32) };
    if says != place {
        return Err(form(format!(
            "it says that it has {} bytes from byte {}, the label says {} from {offset}",
            says.size, says.offset, place.size
        )));
    }
    // Two slots are in use: the text in force and the one being committed.
    let ignored = u32_at(bytes, 40 + 20) & LOCATION_IGNORED != 0;
    Ok(AreaHeader {
        ignored,
        committed: location(bytes, 40, place).map_err(form)?,
        precommitted: location(bytes, 64, place).map_err(form)?,
    })
}

/// One slot of an area header; an empty one has neither offset nor size.
fn location(bytes: &[u8], at: usize, place: DiskArea) -> Result<Option<TextLocation>, String> {
    let found =
        TextLocation { offset: u64_at(bytes, at), size: u64_at(bytes, at + 8), checksum: u32_at(bytes, at + 16) };
    if found.offset == 0 || found.size == 0 {
        return Ok(None);
    }
    let header = AREA_HEADER as u64;
    let fits = found.offset >= header && found.offset < place.size && found.size <= place.size.saturating_sub(header);
    if fits {
        Ok(Some(found))
    } else {
        Err(format!("it places {} bytes of text at byte {} of an area of {}", found.size, found.offset, place.size))
    }
}

impl TextLocation {
    /// The one or two stretches of the device that hold the text of the area at `place`, in order.
    ///
    /// The location must come from that area's header ([`decode_area_header`] checks that it fits).
    #[must_use]
    pub fn pieces(&self, place: DiskArea) -> Vec<DiskArea> {
        let to_the_end = place.size.saturating_sub(self.offset);
        let first = DiskArea { offset: place.offset + self.offset, size: self.size.min(to_the_end) };
        let wrapped = self.size - first.size;
        if wrapped == 0 {
            return vec![first];
        }
        let second = DiskArea { offset: place.offset + AREA_HEADER as u64, size: wrapped };
        vec![first, second]
    }
}

/// The largest text that LVM writes into a metadata area of this size: the old and the new text lie side by
/// side, each beginning on a sector (`_vg_write_raw` in LVM's `format-text.c`). 521,472 for LVM's default.
#[must_use]
pub fn largest_text(area_size: u64) -> u64 {
    (area_size.saturating_sub(AREA_HEADER as u64) / 2).saturating_sub(SECTOR as u64)
}

/// The number at a position that the caller knows to be inside.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

/// The number at a position that the caller knows to be inside.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}
