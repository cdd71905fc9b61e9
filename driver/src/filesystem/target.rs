//! The places where volumes are mounted: made before a mount, removed after the unmount.
//!
//! **Invariant.** Only an empty directory or an empty file is ever removed. What somebody wrote beneath a path while
//! nothing was mounted there stays.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::crash;

/// Access for root and its group alone: the orchestrator's folders above are as closed, and a mounted filesystem brings
/// its own mode.
const DIRECTORY_MODE: u32 = 0o750;
const FILE_MODE: u32 = 0o640;

/// Why a place cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Not a path to mount at.
    #[error("{0:?} is not an absolute path with a last name")]
    NotAbsolute(PathBuf),
    /// It should be a directory.
    #[error("{} is {found}; it must be a directory", path.display())]
    NotADirectory {
        /// The place.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// It should be a file.
    #[error("{} is {found}; a device node can be bound to a file only", path.display())]
    NotAFile {
        /// The place.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// Removing it would lose what is in it.
    #[error("{} is not mounted and holds data; move it away", .0.display())]
    HoldsData(PathBuf),
    /// The system refused.
    #[error("cannot {action} {}", path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// The same place without symbolic links, as the mount table names it. The last name itself is taken as it is: looking
/// at it would mean to look into what is mounted there.
///
/// # Errors
/// [`TargetError`]; a missing parent is [`TargetError::System`] with [`io::ErrorKind::NotFound`].
pub fn resolve(path: &Path) -> Result<PathBuf, TargetError> {
    let not_absolute = || TargetError::NotAbsolute(path.to_owned());
    let (Some(parent), Some(name)) = (path.parent().filter(|_| path.is_absolute()), path.file_name()) else {
        return Err(not_absolute());
    };
    let folder = parent.canonicalize().and_then(|folder| match folder.is_dir() {
        true => Ok(folder),
        false => Err(io::Error::from(io::ErrorKind::NotADirectory)),
    });
    let action = "resolve the folder of";
    let folder = folder.map_err(|source| TargetError::System { action, path: path.to_owned(), source })?;
    Ok(folder.join(name))
}

/// What is at a place on which nothing is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Nothing.
    Missing,
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link, a socket, a device node...
    Other(&'static str),
}

impl Place {
    /// Looks, without following a symbolic link at the last name.
    ///
    /// # Errors
    /// [`TargetError::System`].
    pub fn at(path: &Path) -> Result<Self, TargetError> {
        match std::fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_dir() => Ok(Self::Directory),
            Ok(metadata) if metadata.is_file() => Ok(Self::File),
            Ok(metadata) if metadata.is_symlink() => Ok(Self::Other("a symbolic link")),
            Ok(_) => Ok(Self::Other("a special file")),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(Self::Missing),
            Err(source) => Err(TargetError::System { action: "look at", path: path.to_owned(), source }),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Missing => "not there",
            Self::Directory => "a directory",
            Self::File => "a file",
            Self::Other(name) => name,
        }
    }
}

/// Demands a directory that exists.
///
/// # Errors
/// [`TargetError::NotADirectory`] for anything else, a missing one included.
pub fn demand_directory(path: &Path) -> Result<(), TargetError> {
    match Place::at(path)? {
        Place::Directory => Ok(()),
        found => Err(TargetError::NotADirectory { path: path.to_owned(), found: found.name() }),
    }
}

/// Makes a directory, and the folders above it, unless it is there.
///
/// # Errors
/// [`TargetError::NotADirectory`] if something else is in its place.
pub fn make_directory(path: &Path) -> Result<(), TargetError> {
    match Place::at(path)? {
        Place::Directory => Ok(()),
        Place::Missing => {
            crash::point("target.make-directory.before");
            let made = DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path);
            crash::point("target.make-directory.after");
            made.map_err(|source| TargetError::System { action: "make the directory", path: path.to_owned(), source })
        }
        found => Err(TargetError::NotADirectory { path: path.to_owned(), found: found.name() }),
    }
}

/// Makes an empty file, and the folders above it, unless it is there.
///
/// # Errors
/// [`TargetError::NotAFile`] if something else is in its place.
pub fn make_file(path: &Path) -> Result<(), TargetError> {
    match Place::at(path)? {
        Place::File => Ok(()),
        Place::Missing => {
            if let Some(parent) = path.parent() {
                make_directory(parent)?;
            }
            crash::point("target.make-file.before");
            let made = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path);
            crash::point("target.make-file.after");
            made.map(drop).map_err(|source| TargetError::System {
                action: "make the file",
                path: path.to_owned(),
                source,
            })
        }
        found => Err(TargetError::NotAFile { path: path.to_owned(), found: found.name() }),
    }
}

/// Removes an empty directory or an empty file on which nothing is mounted; one that is not there is removed already.
///
/// # Errors
/// [`TargetError::HoldsData`] rather than losing anything.
pub fn remove(path: &Path) -> Result<(), TargetError> {
    crash::point("target.remove.before");
    let result = match Place::at(path)? {
        Place::Missing => Ok(()),
        Place::Directory => std::fs::remove_dir(path),
        Place::File => match std::fs::metadata(path) {
            Ok(metadata) if metadata.len() > 0 => return Err(TargetError::HoldsData(path.to_owned())),
            Ok(_) => std::fs::remove_file(path),
            Err(error) => Err(error),
        },
        found @ Place::Other(_) => {
            return Err(TargetError::NotADirectory { path: path.to_owned(), found: found.name() });
        }
    };
    crash::point("target.remove.after");
    match result {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Err(TargetError::HoldsData(path.to_owned())),
        Err(source) => Err(TargetError::System { action: "remove", path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_folders_above_are_resolved_and_the_last_name_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("real")).unwrap();
        std::os::unix::fs::symlink(root.join("real"), root.join("link")).unwrap();
        assert_eq!(resolve(&root.join("link/mount")).unwrap(), root.join("real/mount"));
        assert_eq!(resolve(&root.join("link")).unwrap(), root.join("link"));
        assert_eq!(resolve(&root.join("link/../link/mount/")).unwrap(), root.join("real/mount"));
        for bad in ["relative/path", "", "/", "/a/.."] {
            assert!(matches!(resolve(Path::new(bad)), Err(TargetError::NotAbsolute(_))), "{bad}");
        }
        let missing = resolve(&root.join("missing/mount")).unwrap_err();
        assert!(matches!(missing, TargetError::System { .. }), "{missing}");
    }

    #[test]
    fn making_is_idempotent_and_says_what_is_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let (directory, file) = (folder.path().join("a/b/mount"), folder.path().join("c/d/device"));
        for _ in 0..2 {
            make_directory(&directory).unwrap();
            make_file(&file).unwrap();
        }
        assert_eq!(std::fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o750);
        assert_eq!(
            make_directory(&file).unwrap_err().to_string(),
            format!("{} is a file; it must be a directory", file.display())
        );
        assert!(make_file(&directory).unwrap_err().to_string().contains("is a directory; a device node"));
        assert!(demand_directory(&folder.path().join("x")).unwrap_err().to_string().contains("is not there"));
    }

    #[test]
    fn nothing_that_holds_data_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (directory, file) = (folder.path().join("mount"), folder.path().join("device"));
        make_directory(&directory).unwrap();
        std::fs::write(directory.join("data"), "x").unwrap();
        std::fs::write(&file, "x").unwrap();
        assert!(matches!(remove(&directory), Err(TargetError::HoldsData(_))));
        assert!(matches!(remove(&file), Err(TargetError::HoldsData(_))));
        assert!(directory.join("data").exists() && file.exists());
        std::fs::remove_file(directory.join("data")).unwrap();
        std::fs::write(&file, "").unwrap();
        for _ in 0..2 {
            remove(&directory).unwrap();
            remove(&file).unwrap();
        }
        assert!(!directory.exists() && !file.exists());
    }
}
