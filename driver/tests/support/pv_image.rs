//! Device images for tests: real ones taken from disks that LVM wrote, and changed copies of them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use quarry_driver::lvm::metadata::header::checksum;
use serde_json::Value;
use tempfile::TempDir;

/// A scenario that was played with LVM, from `tests/fixtures/lvm`.
pub struct Scenario {
    /// Keeps the images.
    _folder: TempDir,
    /// One sparse image per device.
    pub images: Vec<PathBuf>,
    /// The nodes that these were.
    pub nodes: Vec<PathBuf>,
    /// What `lvm fullreport` said of it.
    pub report: Value,
}

impl Scenario {
    /// Lays out the images of the scenario of that name.
    pub fn load(name: &str) -> Result<Self> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/lvm").join(format!("{name}.json"));
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let fixture: Value = serde_json::from_str(&text)?;
        let folder = tempfile::tempdir()?;
        let mut images = Vec::new();
        let mut nodes = Vec::new();
        for (number, device) in fixture["devices"].as_array().context("no devices")?.iter().enumerate() {
            let path = folder.path().join(format!("{name}-{number}"));
            let image = File::create(&path)?;
            image.set_len(device["size"].as_u64().context("no size")?)?;
            for piece in device["pieces"].as_array().context("no pieces")? {
                let bytes = piece["bytes"].as_str().context("no bytes")?;
                // One character a byte; zeros at the end were left out.
                let bytes = bytes.chars().map(u8::try_from).collect::<Result<Vec<u8>, _>>()?;
                image.write_all_at(&bytes, piece["offset"].as_u64().context("no offset")?)?;
            }
            images.push(path);
            nodes.push(PathBuf::from(device["node"].as_str().context("no node")?));
        }
        Ok(Self { _folder: folder, images, nodes, report: fixture["fullreport"].clone() })
    }
}

/// Where LVM puts the first metadata area.
pub const AREA: u64 = 4096;

/// Replaces the text of an image's first metadata area, with right checksums, as a commit does.
pub fn write_text(image: &Path, text: &str) -> Result<()> {
    let file = File::options().read(true).write(true).open(image)?;
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    file.write_all_at(&bytes, AREA + 512)?;
    let mut header = [0; 512];
    file.read_exact_at(&mut header, AREA)?;
    header[40..48].copy_from_slice(&512_u64.to_le_bytes());
    header[48..56].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    header[56..60].copy_from_slice(&checksum(&bytes).to_le_bytes());
    write_header(&file, AREA, &mut header)
}

/// Writes a metadata area header with its right checksum.
pub fn write_header(file: &File, at: u64, header: &mut [u8; 512]) -> Result<()> {
    let sum = checksum(&header[4..]);
    header[..4].copy_from_slice(&sum.to_le_bytes());
    Ok(file.write_all_at(header, at)?)
}

/// Changes one byte of an image.
pub fn damage(image: &Path, at: u64) -> Result<()> {
    let file = File::options().read(true).write(true).open(image)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    Ok(file.write_all_at(&[byte[0] ^ 0x20], at)?)
}
