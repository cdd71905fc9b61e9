//! The programs Quarry runs: found and verified once, at start.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A program at an absolute path that existed and was executable at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool(Arc<(String, PathBuf)>);

impl Tool {
    /// A tool by its absolute path.
    ///
    /// # Errors
    /// [`MissingTool`] when there is no executable file.
    pub fn at(name: &str, path: impl Into<PathBuf>) -> Result<Self, MissingTool> {
        let path = path.into();
        let executable = path.is_absolute()
            && std::fs::metadata(&path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
        if executable {
            Ok(Self(Arc::new((name.to_owned(), path))))
        } else {
            Err(MissingTool { name: name.to_owned(), searched: path.display().to_string() })
        }
    }

    /// The first executable of that name in the folders.
    fn search(name: &str, folders: &[&str]) -> Result<Self, MissingTool> {
        folders
            .iter()
            .find_map(|folder| Self::at(name, Path::new(folder).join(name)).ok())
            .ok_or_else(|| MissingTool { name: name.to_owned(), searched: folders.join(", ") })
    }

    /// The program's name, e.g. `lvm`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.0
    }

    /// The program's absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.1
    }
}

/// A program that the driver needs and this machine or image lacks.
#[derive(Debug, thiserror::Error)]
#[error("no executable program `{name}` in {searched}")]
pub struct MissingTool {
    name: String,
    searched: String,
}

/// Declares the tools: field, program, what it is for.
macro_rules! tools {
    ($($field:ident = $program:literal, $purpose:literal;)*) => {
        /// Every program the driver may run.
        #[derive(Debug, Clone)]
        pub struct Tools {
            $(#[doc = concat!("`", $program, "`: ", $purpose)] pub $field: Tool,)*
        }

        impl Tools {
            /// Finds every tool.
            ///
            /// # Errors
            /// [`MissingTool`] for the first that is missing: the driver does not start with half of its tools.
            pub fn find() -> Result<Self, MissingTool> {
                const FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
                Ok(Self { $($field: Tool::search($program, &FOLDERS)?,)* })
            }
        }
    };
}

tools! {
    lvm = "lvm", "every LVM verb";
    blkid = "blkid", "what a device holds";
    blkdiscard = "blkdiscard", "zero a thick raw block volume";
    mkfs_ext4 = "mkfs.ext4", "make ext4";
    mkfs_xfs = "mkfs.xfs", "make xfs";
    mkfs_btrfs = "mkfs.btrfs", "make btrfs";
    e2fsck = "e2fsck", "check ext4 before it is mounted";
    wipefs = "wipefs", "wipe what an earlier volume left, where lvcreate was killed before it did";
    mount = "mount", "mount a filesystem or bind a path";
    umount = "umount", "unmount";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_is_named_with_the_folders_searched() {
        let error = Tool::search("no-such-tool", &["/usr/bin", "/bin"]).unwrap_err();
        assert_eq!(error.to_string(), "no executable program `no-such-tool` in /usr/bin, /bin");
    }

    #[test]
    fn a_file_that_cannot_be_executed_is_no_tool() {
        assert!(Tool::at("passwd", "/etc/passwd").is_err());
        assert!(Tool::at("sh", "bin/sh").is_err());
    }
}
