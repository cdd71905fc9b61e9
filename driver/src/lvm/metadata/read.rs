//! Reads a physical volume's headers and texts from its device, past the page cache.
//!
//! Invariant: "a physical volume", "affirmed to be none" and "cannot tell" are three different outcomes.
//! Every function here blocks, on a dead disk for ever: call it on a thread that may be lost
//! (`crate::lvm::discover` does).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::OFlags;

use super::header::{self, AREA_HEADER, AreaHeader, DiskArea, HeaderError, LABEL_SECTORS, Label, SECTOR};
use super::{LvmUuid, header::TextLocation};

/// Alignment of direct reads: the largest logical block of the disks that Linux supports as a whole.
const ALIGNMENT: u64 = 4096;
/// How often an area is looked at whose checksums do not match, as while LVM commits.
const ATTEMPTS: u32 = 8;
/// Time between two looks; a commit takes milliseconds.
const PAUSE: Duration = Duration::from_millis(2);
/// No text is believed to be larger: 100,000 volumes with long tags have 70 MB.
const LARGEST_BELIEVED_TEXT: u64 = 256 << 20;

/// Why a device, or a metadata area of it, could not be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The kernel refused to open or to read.
    #[error("cannot {action}")]
    Io {
        /// What was tried, with its place on the device.
        action: String,
        /// The kernel's answer.
        source: Arc<io::Error>,
    },
    /// The device ends before the data that its header promises.
    #[error("the device ends within the {wanted} bytes at byte {offset}")]
    Short {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        wanted: u64,
    },
    /// What was read fails a check.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The header promises a text larger than any that is believed.
    #[error(
        "the metadata text at byte {offset} claims {size} bytes; more than {LARGEST_BELIEVED_TEXT} are not believed"
    )]
    TooLarge {
        /// Start of the text, in bytes from the device's start.
        offset: u64,
        /// Its claimed size.
        size: u64,
    },
}

impl ReadError {
    fn may_pass(&self) -> bool {
        matches!(self, Self::Header(error) if error.may_pass())
    }
}

/// What a look at a device found, when it could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe<T> {
    /// Its first sectors were read whole and carry no LVM label.
    NotPhysicalVolume,
    /// It is a physical volume.
    PhysicalVolume(T),
}

/// A physical volume's label and the headers of its metadata areas.
#[derive(Debug, Clone)]
pub struct PvHeader {
    /// The label.
    pub label: Label,
    /// Its metadata areas, in the label's order.
    pub areas: Vec<MetadataArea>,
}

/// A metadata area: where it is, and its header if that could be read.
#[derive(Debug, Clone)]
pub struct MetadataArea {
    /// Where it lies on the device.
    pub place: DiskArea,
    /// Its header, or why it is not known.
    pub header: Result<AreaHeader, ReadError>,
}

/// A physical volume as it is on disk: headers and texts.
#[derive(Debug, Clone)]
pub struct PvOnDisk {
    /// The label.
    pub label: Label,
    /// Its metadata areas, in the label's order.
    pub areas: Vec<AreaOnDisk>,
}

/// A metadata area with its text, header and text checked.
#[derive(Debug, Clone)]
pub struct AreaOnDisk {
    /// Where it lies on the device.
    pub place: DiskArea,
    /// What it holds, or why that is not known.
    pub contents: Result<AreaContents, ReadError>,
}

/// A valid header and the text it points to.
#[derive(Debug, Clone)]
pub struct AreaContents {
    /// The header.
    pub header: AreaHeader,
    /// The text in force, without its closing NUL; none if the header points to none.
    pub text: Option<Arc<[u8]>>,
}

/// Changes whenever a commit changed a physical volume's metadata, and costs two small reads to get.
///
/// Compared instead of the group's `seqno`, which `vgcfgrestore` repeats with other contents.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    pv_uuid: LvmUuid,
    areas: Vec<(u64, bool, Option<TextLocation>)>,
}

impl PvHeader {
    /// The fingerprint of what is in force.
    ///
    /// # Errors
    /// The error of the first area whose header is not known.
    pub fn fingerprint(&self) -> Result<Fingerprint, ReadError> {
        let headers = self.areas.iter().map(|area| (area.place, area.header.clone()));
        fingerprint_of(self.label.pv_uuid, headers)
    }
}

impl PvOnDisk {
    /// The fingerprint of what was read.
    ///
    /// # Errors
    /// The error of the first area that is not known.
    pub fn fingerprint(&self) -> Result<Fingerprint, ReadError> {
        let headers = self.areas.iter().map(|area| {
            let header = area.contents.as_ref().map(|contents| contents.header);
            (area.place, header.map_err(Clone::clone))
        });
        fingerprint_of(self.label.pv_uuid, headers)
    }
}

fn fingerprint_of(
    pv_uuid: LvmUuid,
    headers: impl Iterator<Item = (DiskArea, Result<AreaHeader, ReadError>)>,
) -> Result<Fingerprint, ReadError> {
    let areas = headers
        .map(|(place, header)| header.map(|h| (place.offset, h.ignored, h.committed)))
        .collect::<Result<_, _>>()?;
    Ok(Fingerprint { pv_uuid, areas })
}

/// Reads label and area headers, not the texts: 0.1-0.2 ms at any number of volumes.
///
/// # Errors
/// [`ReadError`] if the device cannot be read or its label is damaged. A damaged area is no error of the
/// whole: see [`MetadataArea::header`].
pub fn read_header(device: &Path) -> Result<Probe<PvHeader>, ReadError> {
    let mut reader = Reader::open(device)?;
    let Some(label) = patiently(|| reader.label())? else {
        return Ok(Probe::NotPhysicalVolume);
    };
    let areas = label
        .metadata_areas
        .iter()
        .map(|&place| MetadataArea { place, header: patiently(|| reader.area_header(place)) })
        .collect();
    Ok(Probe::PhysicalVolume(PvHeader { label, areas }))
}

/// Reads label, area headers and texts.
///
/// # Errors
/// [`ReadError`] if the device cannot be read or its label is damaged. A damaged area is no error of the
/// whole: see [`AreaOnDisk::contents`].
pub fn read_physical_volume(device: &Path) -> Result<Probe<PvOnDisk>, ReadError> {
    let mut reader = Reader::open(device)?;
    let Some(label) = patiently(|| reader.label())? else {
        return Ok(Probe::NotPhysicalVolume);
    };
    let areas = label
        .metadata_areas
        .iter()
        .map(|&place| AreaOnDisk { place, contents: patiently(|| reader.area(place)) })
        .collect();
    Ok(Probe::PhysicalVolume(PvOnDisk { label, areas }))
}

/// Repeats a read that a commit may have disturbed: two commits within one read replace the text that was
/// being read, and a header may be caught half written.
fn patiently<T>(mut read: impl FnMut() -> Result<T, ReadError>) -> Result<T, ReadError> {
    let mut attempt = 1;
    loop {
        match read() {
            Err(error) if error.may_pass() && attempt < ATTEMPTS => {
                attempt += 1;
                pause();
            }
            outcome => return outcome,
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "these reads block by contract, never on a runtime thread; there is nothing to be woken by"
)]
fn pause() {
    std::thread::sleep(PAUSE);
}

/// An open device and how it is read.
struct Reader {
    file: File,
    scratch: Vec<u8>,
}

impl Reader {
    fn open(device: &Path) -> Result<Self, ReadError> {
        let failed = |source| ReadError::Io { action: format!("open {}", device.display()), source: Arc::new(source) };
        // LVM writes past the page cache, so a cached block may be older than the disk. O_NONBLOCK: never wait
        // for a medium. A regular file has one truth, and not every filesystem reads it directly.
        let metadata = std::fs::metadata(device).map_err(failed)?;
        let direct = if metadata.file_type().is_block_device() { OFlags::DIRECT } else { OFlags::empty() };
        let flags = direct | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file =
            OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(device).map_err(failed)?;
        Ok(Self { file, scratch: Vec::new() })
    }

    /// Up to `size` bytes from `offset`; fewer only where the device ends.
    fn at_most(&mut self, offset: u64, size: u64) -> Result<&[u8], ReadError> {
        let failed = |source: io::Error| ReadError::Io {
            action: format!("read {size} bytes at byte {offset}"),
            source: Arc::new(source),
        };
        let too_far = || failed(io::Error::from(io::ErrorKind::InvalidInput));
        // Direct reads want an aligned place on the device, length and memory.
        let start = offset - offset % ALIGNMENT;
        let end =
            offset.checked_add(size).and_then(|end| end.checked_next_multiple_of(ALIGNMENT)).ok_or_else(too_far)?;
        let length = usize::try_from(end - start).map_err(|_| too_far())?;
        let alignment = ALIGNMENT as usize;
        self.scratch.resize(length + alignment, 0);
        let skip = self.scratch.as_ptr().align_offset(alignment);
        let window = self.scratch.get_mut(skip..skip + length).ok_or_else(too_far)?;
        let mut filled = 0;
        while filled < length {
            match self.file.read_at(&mut window[filled..], start + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
            // A count off the alignment is the device's end; asking on would be refused as unaligned.
            if filled % SECTOR != 0 {
                break;
            }
        }
        let from = usize::try_from(offset - start).map_err(|_| too_far())?;
        let size = usize::try_from(size).map_err(|_| too_far())?;
        let to = filled.min(from + size);
        Ok(window.get(from..to).unwrap_or_default())
    }

    fn exactly(&mut self, place: DiskArea) -> Result<&[u8], ReadError> {
        let bytes = self.at_most(place.offset, place.size)?;
        if bytes.len() as u64 == place.size {
            Ok(bytes)
        } else {
            Err(ReadError::Short { offset: place.offset, wanted: place.size })
        }
    }

    fn label(&mut self) -> Result<Option<Label>, ReadError> {
        let sectors = self.at_most(0, (LABEL_SECTORS * SECTOR) as u64)?;
        Ok(header::find_label(sectors)?)
    }

    fn area_header(&mut self, place: DiskArea) -> Result<AreaHeader, ReadError> {
        let bytes = self.exactly(DiskArea { offset: place.offset, size: AREA_HEADER as u64 })?;
        Ok(header::decode_area_header(bytes, place)?)
    }

    fn area(&mut self, place: DiskArea) -> Result<AreaContents, ReadError> {
        let header = self.area_header(place)?;
        let text = match header.committed {
            Some(location) => Some(self.text(place, location)?),
            None => None,
        };
        Ok(AreaContents { header, text })
    }

    fn text(&mut self, place: DiskArea, location: TextLocation) -> Result<Arc<[u8]>, ReadError> {
        let offset = place.offset + location.offset;
        if location.size > LARGEST_BELIEVED_TEXT {
            return Err(ReadError::TooLarge { offset, size: location.size });
        }
        let mut text = Vec::with_capacity(location.size as usize);
        for piece in location.pieces(place) {
            text.extend_from_slice(self.exactly(piece)?);
        }
        let computed = header::checksum(&text);
        if computed != location.checksum {
            return Err(HeaderError::TextChecksum { offset, stored: location.checksum, computed }.into());
        }
        // The closing NUL is part of what LVM sums up, not of the text.
        while text.last() == Some(&0) {
            text.pop();
        }
        Ok(text.into())
    }
}
