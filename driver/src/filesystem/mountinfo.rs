//! The mount table: what is mounted where, of which device, with which flags.
//!
//! The kernel's text is decoded here and not by a crate: mount points may hold blanks (octal escapes) and bytes that
//! are no UTF-8, and options may hold commas within quotes (SELinux contexts). A decoder that trips over one foreign
//! mount would make every volume of the node unusable.
//!
//! **Invariant.** The table is read whole, and a line that cannot be understood is an error, never a mount less.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use crate::device_number::DeviceNumber;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The kernel's number for it.
    pub id: u64,
    /// The mount that it sits on.
    pub parent: u64,
    /// What is mounted: the part of the filesystem that is visible here (`/` is all of it).
    pub root: PathBuf,
    /// Where it is mounted.
    pub target: PathBuf,
    /// Flags of this mount alone, e.g. `ro`, `noatime`.
    pub options: Vec<String>,
    /// The filesystem's type.
    pub fs_type: String,
    /// What it was mounted from, as the one who mounted it wrote it.
    pub source: OsString,
    /// Flags of the filesystem, the same for all its mounts; `ro` here means that nobody can write.
    pub super_options: Vec<String>,
    /// The block device behind it.
    pub mounted: Mounted,
}

/// What kind of thing is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mounted {
    /// A filesystem on this block device.
    Filesystem(DeviceNumber),
    /// The node of this block device itself, bound to a file.
    Node(DeviceNumber),
    /// Something that is on no block device, or whose device cannot be told.
    Other,
}

impl Mount {
    /// The block device behind it, as a filesystem or as a node.
    #[must_use]
    pub fn device(&self) -> Option<DeviceNumber> {
        match self.mounted {
            Mounted::Filesystem(number) | Mounted::Node(number) => Some(number),
            Mounted::Other => None,
        }
    }

    /// Whether nobody can write through this mount.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.has("ro") || self.filesystem_is_read_only()
    }

    /// Whether nobody can write to the filesystem, through whichever mount. A filesystem that was mounted for writing
    /// and is read-only now has met an error.
    #[must_use]
    pub fn filesystem_is_read_only(&self) -> bool {
        self.super_options.iter().any(|option| option == "ro" || option == "emergency_ro")
    }

    /// Whether this mount or its filesystem has the flag.
    #[must_use]
    pub fn has(&self, flag: &str) -> bool {
        self.options.iter().any(|option| option == flag)
    }

    /// As a person would name it: `ext4 of /dev/mapper/x (253:3)`.
    #[must_use]
    pub fn describe(&self) -> String {
        let source = self.source.to_string_lossy();
        match self.mounted {
            Mounted::Filesystem(number) => format!("{} of {source} ({number})", self.fs_type),
            Mounted::Node(number) => format!("the node of block device {number}"),
            Mounted::Other => format!("{} of {source}", self.fs_type),
        }
    }
}

/// Why there is no mount table.
#[derive(Debug, thiserror::Error)]
pub enum MountTableError {
    /// The kernel did not give it.
    #[error("cannot read {TABLE}")]
    Read(#[source] io::Error),
    /// A line is not as the kernel writes them.
    #[error("{TABLE} has a line that is not understood: {0:?}")]
    Line(String),
}

const TABLE: &str = "/proc/self/mountinfo";

/// Every mount of this mount namespace at one moment.
#[derive(Debug, Clone)]
pub struct MountTable(Vec<Mount>);

impl MountTable {
    /// Reads the present table. Touches no disk: the kernel writes it from memory, and the only paths looked at are
    /// nodes of devices.
    ///
    /// # Errors
    /// [`MountTableError`].
    pub fn read() -> Result<Self, MountTableError> {
        let text = std::fs::read(TABLE).map_err(MountTableError::Read)?;
        Self::parse(&text, &|path| DeviceNumber::of_node(path).ok().flatten())
    }

    /// `node` tells which block device a node in the file tree stands for.
    fn parse(text: &[u8], node: &dyn Fn(&Path) -> Option<DeviceNumber>) -> Result<Self, MountTableError> {
        text.split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| {
                parse_line(line, node).ok_or_else(|| MountTableError::Line(String::from_utf8_lossy(line).into_owned()))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// What is mounted at a path, the topmost where several mounts lie on one another. The path must be free of
    /// symbolic links: see [`super::target::resolve`].
    #[must_use]
    pub fn at(&self, path: &Path) -> Option<&Mount> {
        let here = || self.0.iter().filter(|mount| mount.target == path);
        here().find(|mount| !here().any(|other| other.parent == mount.id && other.id != mount.id))
    }

    /// Every mount.
    pub fn iter(&self) -> impl Iterator<Item = &Mount> {
        self.0.iter()
    }

    /// Every mount of a device: of the filesystem on it, and of its node.
    pub fn users_of(&self, device: DeviceNumber) -> impl Iterator<Item = &Mount> {
        self.0.iter().filter(move |mount| mount.device() == Some(device))
    }
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`, see proc(5).
fn parse_line(line: &[u8], node: &dyn Fn(&Path) -> Option<DeviceNumber>) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut text = || fields.next().and_then(|field| std::str::from_utf8(field).ok());
    let id = text()?.parse().ok()?;
    let parent = text()?.parse().ok()?;
    let device: DeviceNumber = text()?.parse().ok()?;
    let root = PathBuf::from(unescape(fields.next()?));
    let target = PathBuf::from(unescape(fields.next()?));
    let options = options(fields.next()?);
    fields.by_ref().find(|field| *field == b"-")?;
    let fs_type = String::from_utf8(unescape(fields.next()?).into_vec()).ok()?;
    let source = unescape(fields.next()?);
    // An empty last field is a filesystem without options.
    let super_options = self::options(fields.next()?);

    let mounted = if is_device_tree(&fs_type) && root != Path::new("/") {
        node(&target).map_or(Mounted::Other, Mounted::Node)
    } else if device.major != 0 {
        Mounted::Filesystem(device)
    } else if fs_type == "btrfs" {
        // btrfs shows an anonymous number; what it was mounted from leads to the device.
        node(Path::new(&source)).map_or(Mounted::Other, Mounted::Filesystem)
    } else {
        Mounted::Other
    };
    Some(Mount { id, parent, root, target, options, fs_type, source, super_options, mounted })
}

/// Filesystems that hold device nodes; a container's own `/dev` is a tmpfs.
fn is_device_tree(fs_type: &str) -> bool {
    matches!(fs_type, "devtmpfs" | "tmpfs")
}

/// Undoes the kernel's `\040` for a blank, and so on.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        if let [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] = rest {
            bytes.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
            rest = after;
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    OsString::from_vec(bytes)
}

/// Splits at commas outside quotes.
fn options(field: &[u8]) -> Vec<String> {
    let field = unescape(field);
    split_options(&String::from_utf8_lossy(field.as_bytes()))
}

/// Splits mount options at commas outside double quotes.
#[must_use]
pub fn split_options(text: &str) -> Vec<String> {
    let mut quoted = false;
    text.split(|c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    })
    .filter(|option| !option.is_empty())
    .map(str::to_owned)
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DM3: DeviceNumber = DeviceNumber { major: 253, minor: 3 };

    /// As a node with kubelet shows it.
    const SAMPLE: &str = r#"22 27 0:21 / /proc rw,relatime - proc proc rw
24 27 0:6 / /dev rw,relatime shared:2 - devtmpfs devtmpfs rw,size=12334460k,nr_inodes=3083615,mode=755
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
90 27 253:3 / /var/lib/kubelet/plugins/kubernetes.io/csi/lvm.quarry.storage/0a/globalmount rw,noatime shared:40 - ext4 /dev/quarry/pvc-1 rw,stripe=16
91 27 253:3 / /var/lib/kubelet/pods/u1/volumes/kubernetes.io~csi/pvc-1/mount ro,noatime shared:40 - ext4 /dev/quarry/pvc-1 rw,stripe=16
92 27 0:6 /dm-3 /var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/publish/pvc-2/u2 rw,relatime shared:2 - devtmpfs devtmpfs rw
93 27 0:45 / /mnt/b\040c rw,relatime - btrfs /dev/quarry/pvc-3 rw,space_cache=v2,subvolid=5,subvol=/
94 93 253:4 / /mnt/b\040c ro,relatime - xfs /dev/mapper/quarry-x rw,context="system_u:object_r:container_file_t:s0:c1,c2",attr2
95 27 0:50 / /mnt/empty rw - fuse.x none "#;

    fn node(path: &Path) -> Option<DeviceNumber> {
        let nodes = [
            ("/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/publish/pvc-2/u2", DM3),
            ("/dev/quarry/pvc-3", DM3),
        ];
        nodes.iter().find(|(name, _)| path == Path::new(name)).map(|(_, number)| *number)
    }

    fn sample() -> MountTable {
        MountTable::parse(SAMPLE.as_bytes(), &node).unwrap()
    }

    #[test]
    fn every_use_of_a_device_is_found_whatever_its_form() {
        let table = sample();
        let users: Vec<u64> = table.users_of(DM3).map(|mount| mount.id).collect();
        assert_eq!(users, [90, 91, 92, 93]);
        let table_device = DeviceNumber { major: 0, minor: 6 };
        assert_eq!(table.users_of(table_device).count(), 0, "an anonymous number is no block device");
    }

    #[test]
    fn the_topmost_of_several_mounts_counts_and_blanks_are_decoded() {
        let table = sample();
        let top = table.at(Path::new("/mnt/b c")).unwrap();
        assert_eq!((top.id, top.fs_type.as_str()), (94, "xfs"));
        assert_eq!(top.super_options, ["rw", "context=\"system_u:object_r:container_file_t:s0:c1,c2\"", "attr2"]);
        assert_eq!(table.at(Path::new("/mnt/b")), None);
    }

    #[test]
    fn a_read_only_bind_differs_from_a_read_only_filesystem() {
        let table = sample();
        let bind = table.at(Path::new("/var/lib/kubelet/pods/u1/volumes/kubernetes.io~csi/pvc-1/mount")).unwrap();
        assert!(bind.is_read_only() && !bind.filesystem_is_read_only());
        let line = "90 27 253:3 / /m rw,noatime - ext4 /dev/quarry/pvc-1 ro,errors=remount-ro";
        let table = MountTable::parse(line.as_bytes(), &node).unwrap();
        assert!(table.at(Path::new("/m")).unwrap().filesystem_is_read_only());
    }

    #[test]
    fn a_line_that_is_not_understood_is_an_error_that_shows_it() {
        for bad in
            ["x", "22 27 0:21 / /proc rw,relatime proc proc rw", "22 27 0 / /p rw - proc proc rw", "22 27 0:1 / "]
        {
            let error = MountTable::parse(bad.as_bytes(), &node).unwrap_err();
            assert!(error.to_string().contains(bad), "{error}");
        }
    }

    #[test]
    fn a_mount_point_that_is_no_utf8_harms_nobody() {
        let mut text = b"95 27 0:50 / /mnt/\xff rw - fuse.x none rw\n".to_vec();
        text.extend(SAMPLE.as_bytes());
        let table = MountTable::parse(&text, &node).unwrap();
        assert_eq!(table.0.len(), SAMPLE.lines().count() + 1);
        assert_eq!(table.0.first().unwrap().target.as_os_str().as_bytes(), b"/mnt/\xff");
    }

    #[test]
    fn the_table_of_this_machine_is_read() {
        assert!(MountTable::read().unwrap().at(Path::new("/")).is_some());
    }

    proptest! {
        #[test]
        fn what_the_kernel_escapes_comes_back(path in proptest::collection::vec(1_u8.., 1..40)) {
            let mut escaped = Vec::new();
            for byte in &path {
                match byte {
                    b' ' | b'\t' | b'\n' | b'\\' | b'#' => escaped.extend(format!("\\{byte:03o}").bytes()),
                    other => escaped.push(*other),
                }
            }
            let line = unescape(&escaped);
            prop_assert_eq!(line.as_bytes(), path.as_slice());
        }
    }
}
