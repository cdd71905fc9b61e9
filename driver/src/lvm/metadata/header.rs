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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UUID: &str = "YePVuiKtBDMIgqjDlIMCt14WWUAYnZQM";

    /// A sector with a label, as LVM writes it.
    fn label(sector: u64, areas: &[u64]) -> Vec<u8> {
        let mut bytes = vec![0; SECTOR];
        bytes[..8].copy_from_slice(LABEL_ID);
        bytes[8..16].copy_from_slice(&sector.to_le_bytes());
        bytes[20..24].copy_from_slice(&32_u32.to_le_bytes());
        bytes[24..32].copy_from_slice(LABEL_TYPE);
        bytes[32..64].copy_from_slice(UUID.as_bytes());
        for (position, number) in areas.iter().enumerate() {
            let at = 64 + position * 8;
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        seal(bytes)
    }

    fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
        let sum = checksum(&bytes[20..SECTOR]);
        bytes[16..20].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Device size, one data area, one metadata area, extension of version 2 with the flag "in use".
    const AREAS: [u64; 10] = [1 << 30, 65536, 0, 0, 0, 4096, 61440, 0, 0, 0x1_0000_0002];

    #[test]
    fn the_checksum_is_lvms() {
        // From a label that LVM 2.03.16 wrote: the type and what follows, with the checksum stored before it.
        let mut sector = label(1, &[]);
        sector[32..].fill(0);
        sector[32..64].copy_from_slice(b"4eSjWTLRLjZM4kPVqvB6dI3YdDXEugP9");
        sector[64..72].copy_from_slice(&0x2000_0000_u64.to_le_bytes());
        sector[72..80].copy_from_slice(&0x1_0000_u64.to_le_bytes());
        sector[104..112].copy_from_slice(&0x1000_u64.to_le_bytes());
        sector[112..120].copy_from_slice(&0xf000_u64.to_le_bytes());
        sector[136..144].copy_from_slice(&[2, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(checksum(&sector[20..]), 0x4434_df29);
        assert_eq!(checksum(b""), 0xf597_a6cf);
        assert_eq!(continue_checksum(checksum(b"ab"), b"cd"), checksum(b"abcd"));
    }

    #[test]
    fn a_label_is_found_in_each_of_four_sectors_only() {
        for sector in 0..4_usize {
            let mut device = vec![0; sector * SECTOR];
            device.extend(label(sector as u64, &AREAS));
            device.resize(4096, 0);
            let found = find_label(&device).unwrap().unwrap();
            assert_eq!(found.sector, sector);
            assert_eq!(found.pv_uuid.compact(), UUID);
            assert_eq!(found.device_size, 1 << 30);
            assert_eq!(found.data_areas, [DiskArea { offset: 65536, size: 0 }]);
            assert_eq!(found.metadata_areas, [DiskArea { offset: 4096, size: 61440 }]);
            assert_eq!(found.in_use, Some(true));
        }
        let mut device = vec![0; 4 * SECTOR];
        device.extend(label(4, &AREAS));
        assert_eq!(find_label(&device), Ok(None));
    }

    #[test]
    fn broken_labels_are_errors_not_absence() {
        let error = |bytes: Vec<u8>| find_label(&bytes).unwrap_err().to_string();
        let mut other_sector = vec![0; SECTOR];
        other_sector.extend(label(3, &AREAS));
        assert!(error(other_sector).contains("it says that it is in sector 3"));
        let mut flipped = label(0, &AREAS);
        flipped[100] ^= 1;
        assert!(error(flipped).contains("damaged"));
        let mut kind = label(0, &AREAS);
        kind[24] = b'X';
        assert!(error(seal(kind)).contains("its type is"));
        let mut start = label(0, &AREAS);
        start[20..24].copy_from_slice(&500_u32.to_le_bytes());
        assert!(error(seal(start)).contains("start at byte 500"));
        let mut uuid = label(0, &AREAS);
        uuid[40] = b'/';
        assert!(error(seal(uuid)).contains("names no physical volume"));
        assert!(error(label(0, &[1 << 30; 56])).contains("has no end"));
    }

    #[test]
    fn a_text_at_the_end_wraps_to_behind_the_header() {
        let place = DiskArea { offset: 4096, size: 61440 };
        let text = TextLocation { offset: 59392, size: 9604, checksum: 0 };
        let expected = [DiskArea { offset: 4096 + 59392, size: 2048 }, DiskArea { offset: 4096 + 512, size: 7556 }];
        assert_eq!(text.pieces(place), expected);
        let text = TextLocation { offset: 512, size: 60928, checksum: 0 };
        assert_eq!(text.pieces(place), [DiskArea { offset: 4608, size: 60928 }]);
    }

    #[test]
    fn the_largest_text_is_lvms() {
        assert_eq!(largest_text(1_044_480), 521_472);
        assert_eq!(largest_text(0), 0);
        assert_eq!(largest_text(600), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..2100)) {
            let _ = find_label(&bytes);
            let _ = decode_area_header(&bytes, DiskArea { offset: 4096, size: 61440 });
        }

        #[test]
        fn any_label_with_a_right_checksum_gives_an_answer(
            start in 0_u32..600,
            contents in proptest::collection::vec(any::<u8>(), SECTOR - 32),
        ) {
            let mut bytes = label(0, &AREAS);
            bytes[20..24].copy_from_slice(&start.to_le_bytes());
            bytes[32..].copy_from_slice(&contents);
            let _ = find_label(&seal(bytes));
        }

        #[test]
        fn pieces_hold_the_text_and_stay_inside(size in 1024_u64..1 << 30, offset in 0_u64..1 << 30, length in 0_u64..1 << 30) {
            let place = DiskArea { offset: 4096, size };
            let mut header = vec![0; 512];
            header[4..20].copy_from_slice(AREA_MAGIC);
            header[20..24].copy_from_slice(&1_u32.to_le_bytes());
            header[24..32].copy_from_slice(&place.offset.to_le_bytes());
            header[32..40].copy_from_slice(&size.to_le_bytes());
            header[40..48].copy_from_slice(&offset.to_le_bytes());
            header[48..56].copy_from_slice(&length.to_le_bytes());
            let sum = checksum(&header[4..]);
            header[..4].copy_from_slice(&sum.to_le_bytes());
            if let Ok(AreaHeader { committed: Some(text), .. }) = decode_area_header(&header, place) {
                let pieces = text.pieces(place);
                prop_assert_eq!(pieces.iter().map(|piece| piece.size).sum::<u64>(), length);
                for piece in pieces {
                    prop_assert!(piece.offset >= place.offset + 512);
                    prop_assert!(piece.offset + piece.size <= place.offset + size);
                }
            }
        }
    }
}
