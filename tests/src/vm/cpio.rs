//! Writes cpio archives in the `newc` format, which the kernel unpacks as its first root (Documentation/driver-api/
//! early-userspace/buffer-format.rst). Archives may follow one another; later ones add to earlier ones.

/// An archive under construction. Folders must come before what is in them.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;

impl Archive {
    /// Adds a folder; `path` is relative to the root, without a leading slash.
    pub(super) fn folder(&mut self, path: &str) {
        self.entry(path, FOLDER | 0o755, &[]);
    }

    /// Adds a file with the permission bits `mode`.
    pub(super) fn file(&mut self, path: &str, mode: u32, contents: &[u8]) {
        self.entry(path, FILE | mode, contents);
    }

    /// The finished archive, padded so that another one may follow.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entries = 0;
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, contents: &[u8]) {
        self.entries += 1;
        // Sizes fit: whoever adds 4 GiB to an initramfs gets a kernel that says so.
        let size = u32::try_from(contents.len()).unwrap_or(u32::MAX);
        let name = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
        // inode, mode, uid, gid, links, mtime, size, device major/minor, rdev major/minor, name size, check
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Command;
    use crate::process;
    use std::time::Duration;

    #[test]
    fn another_implementation_unpacks_what_was_packed() {
        let mut archive = Archive::default();
        archive.folder("bin");
        archive.file("bin/a", 0o755, b"#!/bin/sh\n");
        archive.file("empty", 0o600, b"");
        archive.file("three", 0o644, b"abc");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 512, 0);
        let dir = tempfile::tempdir().unwrap();
        let cpio = Command::new("cpio").args(["-idm", "--quiet"]).cwd(dir.path()).stdin(bytes);
        process::run(&cpio, Duration::from_secs(20)).unwrap().success().unwrap();
        assert_eq!(std::fs::read(dir.path().join("bin/a")).unwrap(), b"#!/bin/sh\n");
        assert_eq!(std::fs::read(dir.path().join("empty")).unwrap(), b"");
        assert_eq!(std::fs::read(dir.path().join("three")).unwrap(), b"abc");
        use std::os::unix::fs::PermissionsExt as _;
        let mode = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("bin/a"), mode("empty"), mode("three")), (0o755, 0o600, 0o644));
    }
}
