//! Makes LVM's metadata survive a power cut: LVM writes it with O_DIRECT, which may end in the disk's own cache.

use std::path::{Path, PathBuf};

use crate::crash;

/// A physical volume whose cache could not be flushed.
#[derive(Debug, thiserror::Error)]
#[error("cannot flush {}: the change may not survive a power cut", path.display())]
pub struct FlushError {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

/// Flushes the caches of all these devices. Blocks as long as they do.
///
/// # Errors
/// [`FlushError`] for the first that fails.
pub async fn flush(devices: Vec<PathBuf>) -> Result<(), FlushError> {
    let all = tokio::task::spawn_blocking(move || {
        crash::point("flush.before");
        devices.iter().try_for_each(|path| flush_one(path))?;
        crash::point("flush.after");
        Ok(())
    });
    match all.await {
        Ok(result) => result,
        Err(join) => Err(FlushError { path: PathBuf::new(), source: std::io::Error::other(join) }),
    }
}

fn flush_one(path: &Path) -> Result<(), FlushError> {
    // fsync of a block device's node sends the disk a flush.
    std::fs::File::open(path)
        .and_then(|device| device.sync_all())
        .map_err(|source| FlushError { path: path.to_owned(), source })
}
