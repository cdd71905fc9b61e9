//! Brings names of files to the disk: a file that was made, renamed or removed is so after a power cut only when its folder
//! was synchronised.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use crate::crash;

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

/// Replaces a file's contents: whoever reads it has the old ones or the new ones, after a power cut, too. `what` names it
/// in the crash points `WHAT.write.*`.
///
/// # Errors
/// The system's.
pub fn replace(path: &Path, contents: &[u8], what: &str) -> io::Result<()> {
    let point = |step: &str| crash::point(format_args!("{what}.write.{step}"));
    let new = path.with_extension("new");
    point("before");
    let mut file = File::create(&new)?;
    point("created");
    file.write_all(contents)?;
    file.sync_all()?;
    point("written");
    std::fs::rename(&new, path)?;
    point("renamed");
    sync_parent(path)?;
    point("after");
    Ok(())
}
