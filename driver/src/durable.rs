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
