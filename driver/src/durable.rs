//! Brings names of files to the disk: a file that was made, renamed or removed is so after a power cut only when its folder
//! was synchronised.

use std::fs::File;
use std::io;
use std::path::Path;

/// Synchronises a folder.
///
/// # Errors
/// The system's.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Synchronises the folder that a path is in.
///
/// # Errors
/// The system's.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    sync_folder(path.parent().unwrap_or(Path::new("/")))
}

/// Replaces a file's contents: after a power cut it has the old ones or the new ones.
///
/// # Errors
/// The system's.
pub fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    io::Write::write_all(&mut file, contents)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    sync_parent(path)
}
