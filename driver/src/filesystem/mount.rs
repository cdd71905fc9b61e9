//! Mounting and unmounting.
//!
//! mount(8) and umount(8) are run, not their system calls: every option an administrator may write works, and a mount
//! that hangs on its disk hangs in a child process.
//!
//! **Invariant.** What is mounted is asked of the kernel, before and after; nothing is mounted over anything else, and
//! nothing is unmounted by force or lazily.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::device_number::DeviceNumber;
use crate::exec::{ExecError, Invocation, Output};
use crate::volume::FilesystemType;

use super::{Filesystems, Mount, MountTable, MountTableError, Mounted};

/// A filesystem to mount.
#[derive(Debug, Clone, Copy)]
pub struct MountRequest<'a> {
    /// The device's node.
    pub device: &'a Path,
    /// The device.
    pub number: DeviceNumber,
    /// An existing directory, free of symbolic links ([`super::target::resolve`]).
    pub target: &'a Path,
    /// The filesystem on the device.
    pub fs: FilesystemType,
    /// Options as mount(8) takes them after `-o`.
    pub flags: &'a [String],
}

/// What a mount or a bind found to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// Everything was so already.
    Already,
}

/// Why something is not mounted, or not unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount table could not be read.
    #[error("cannot tell what is mounted at {}", target.display())]
    Table {
        /// Where.
        target: PathBuf,
        /// Why.
        #[source]
        source: MountTableError,
    },
    /// Something else is mounted there.
    #[error("{} is taken: {found} is mounted there, not {expected}", target.display())]
    Occupied {
        /// Where.
        target: PathBuf,
        /// What is.
        found: String,
        /// What should be.
        expected: String,
    },
    /// The right thing is mounted there in another way.
    #[error("{} is mounted already, but {difference}", target.display())]
    OtherwiseMounted {
        /// Where.
        target: PathBuf,
        /// In what it differs.
        difference: String,
    },
    /// The filesystem was mounted for writing and met an error since.
    #[error(
        "the filesystem at {} has become read-only after an error; end the pods that use it: it is checked before the \
         next mount",
        target.display()
    )]
    TurnedReadOnly {
        /// Where.
        target: PathBuf,
    },
    /// It is not known whether it takes writes.
    #[error("cannot tell whether the filesystem at {} takes writes", target.display())]
    Writability {
        /// Where.
        target: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// mount or umount failed.
    #[error("cannot {action} {}", target.display())]
    Command {
        /// Which: `mount`, `bind`, `unmount`.
        action: &'static str,
        /// Where.
        target: PathBuf,
        /// Why.
        #[source]
        source: ExecError,
    },
    /// The command said it worked, and the kernel does not say so.
    #[error("{} should be {state} now, and is not: {found}", target.display())]
    WithoutEffect {
        /// Where.
        target: PathBuf,
        /// What it should be.
        state: &'static str,
        /// What is.
        found: String,
    },
}

impl Filesystems {
    /// Mounts the filesystem of a device, unless it is mounted there already in the same way.
    ///
    /// # Errors
    /// [`MountError`]; nothing is mounted then that was not before.
    pub async fn mount(&self, request: MountRequest<'_>) -> Result<Outcome, MountError> {
        let target = request.target;
        if let Some(mount) = table(target)?.at(target) {
            return is_as_requested(mount, request).map(|()| Outcome::Already);
        }
        let mut invocation = self.invocation(&self.tools.mount).args(["-t", request.fs.name()]);
        if !request.flags.is_empty() {
            invocation = invocation.arg("-o").arg(request.flags.join(","));
        }
        let invocation = invocation.arg("--source").arg(request.device).arg("--target").arg(target);
        self.run("mount", target, invocation).await?;
        match table(target)?.at(target) {
            Some(mount) if mount.mounted == Mounted::Filesystem(request.number) => Ok(Outcome::Done),
            found => Err(without_effect(target, "mounted", found)),
        }
    }

    /// Shows the filesystem that is mounted at `source` also at `target`, an existing directory.
    ///
    /// # Errors
    /// [`MountError`].
    pub async fn bind(
        &self,
        source: &Path,
        target: &Path,
        number: DeviceNumber,
        read_only: bool,
    ) -> Result<Outcome, MountError> {
        let table = table(target)?;
        let Some(staged) = table.at(source).filter(|mount| mount.mounted == Mounted::Filesystem(number)) else {
            return Err(without_effect(source, "mounted", table.at(source)));
        };
        // A bind inherits the flags of the mount it is made from.
        let wanted =
            Bind { mounted: staged.mounted, root: Some(staged.root.clone()), read_only: read_only || staged.has("ro") };
        self.bind_as(source, target, &wanted).await
    }

    /// Shows the node of a block device at `target`, an existing file.
    ///
    /// # Errors
    /// [`MountError`].
    pub async fn bind_node(&self, node: &Path, target: &Path, number: DeviceNumber) -> Result<Outcome, MountError> {
        self.bind_as(node, target, &Bind { mounted: Mounted::Node(number), root: None, read_only: false }).await
    }

    async fn bind_as(&self, source: &Path, target: &Path, wanted: &Bind) -> Result<Outcome, MountError> {
        if let Some(mount) = table(target)?.at(target) {
            return is_as_bound(mount, wanted).map(|()| Outcome::Already);
        }
        // mount(8) makes a read-only bind in two steps, the bind and its change to read-only.
        let options = if wanted.read_only { "bind,ro" } else { "bind" };
        let invocation = self.invocation(&self.tools.mount).args(["-o", options]);
        let invocation = invocation.arg("--source").arg(source).arg("--target").arg(target);
        let bound = self.run("bind", target, invocation).await;
        let table = table(target)?;
        match (bound, table.at(target)) {
            (Ok(()), Some(mount)) if is_as_bound(mount, wanted).is_ok() => Ok(Outcome::Done),
            (bound, Some(mount)) if mount.mounted == wanted.mounted => {
                // Only the first step was done; what nobody uses yet must not stay writable.
                self.run("unmount", target, self.invocation(&self.tools.umount).arg(target)).await?;
                Err(bound.err().unwrap_or_else(|| without_effect(target, "mounted read-only", Some(mount))))
            }
            (Err(error), _) => Err(error),
            (Ok(()), found) => Err(without_effect(target, "bound", found)),
        }
    }

    /// Whether a mounted filesystem still takes writes: asked by making a file without a name, which nobody sees and
    /// which is gone at once.
    ///
    /// Nothing less tells. A filesystem that met an error refuses writes, but kernels from 6.12 on (and the stable ones
    /// before) no longer mark it read-only in the mount table, and xfs never did.
    ///
    /// # Errors
    /// [`MountError::Writability`] for an answer that says neither.
    pub async fn takes_writes(&self, target: &Path) -> Result<bool, MountError> {
        use rustix::fs::{Mode, OFlags};
        let path = target.to_owned();
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let made = super::blocking(move || Ok(rustix::fs::open(path, flags, Mode::RUSR).map(drop)?)).await;
        let Err(source) = made else { return Ok(true) };
        match Errno::from_io_error(&source) {
            Some(Errno::ROFS | Errno::IO) => Ok(false),
            // Metadata found damaged.
            Some(Errno::UCLEAN | Errno::BADMSG) => Ok(false),
            // Full is not broken.
            Some(Errno::NOSPC | Errno::DQUOT) => Ok(true),
            _ => Err(MountError::Writability { target: target.to_owned(), source }),
        }
    }

    /// Unmounts whatever is mounted at a place free of symbolic links, one mount after the other if several lie on one
    /// another; `ours` says of each whether it may be.
    ///
    /// # Errors
    /// [`MountError::Occupied`] at the first that `ours` denies.
    pub async fn unmount(
        &self,
        target: &Path,
        expected: &str,
        ours: impl Fn(&Mount) -> bool,
    ) -> Result<Outcome, MountError> {
        let mut outcome = Outcome::Already;
        loop {
            let table = table(target)?;
            let Some(mount) = table.at(target) else { return Ok(outcome) };
            if !ours(mount) {
                return Err(MountError::Occupied {
                    target: target.to_owned(),
                    found: mount.describe(),
                    expected: expected.to_owned(),
                });
            }
            let id = mount.id;
            self.run("unmount", target, self.invocation(&self.tools.umount).arg(target)).await?;
            // Each turn removes one mount; an umount without effect must not turn for ever.
            if let Some(same) = self::table(target)?.at(target).filter(|mount| mount.id == id) {
                return Err(without_effect(target, "unmounted", Some(same)));
            }
            outcome = Outcome::Done;
        }
    }

    async fn run(&self, action: &'static str, target: &Path, invocation: Invocation) -> Result<(), MountError> {
        let output = self.exec.run(invocation).await.and_then(Output::success);
        let output = output.map_err(|source| MountError::Command { action, target: target.to_owned(), source })?;
        tracing::info!(action, command = output.line, ms = output.duration.as_millis(), "mounts changed");
        Ok(())
    }
}

fn table(target: &Path) -> Result<MountTable, MountError> {
    MountTable::read().map_err(|source| MountError::Table { target: target.to_owned(), source })
}

fn without_effect(target: &Path, state: &'static str, found: Option<&Mount>) -> MountError {
    let found = found.map_or_else(|| "nothing is mounted there".to_owned(), Mount::describe);
    MountError::WithoutEffect { target: target.to_owned(), state, found }
}

/// Whether an existing mount is the requested one.
fn is_as_requested(mount: &Mount, request: MountRequest<'_>) -> Result<(), MountError> {
    let target = request.target.to_owned();
    if mount.mounted != Mounted::Filesystem(request.number) {
        let expected = format!("{} of {} ({})", request.fs, request.device.display(), request.number);
        return Err(MountError::Occupied { target, found: mount.describe(), expected });
    }
    if mount.fs_type != request.fs.name() {
        let difference = format!("as {}, not {}", mount.fs_type, request.fs);
        return Err(MountError::OtherwiseMounted { target, difference });
    }
    let flags: Vec<String> = request.flags.iter().flat_map(|flag| super::mountinfo::split_options(flag)).collect();
    if let Some(difference) = difference(mount, &flags) {
        return Err(MountError::OtherwiseMounted { target, difference });
    }
    let read_only = flags.iter().rev().find_map(|flag| match flag.as_str() {
        "ro" => Some(true),
        "rw" => Some(false),
        _ => None,
    });
    if mount.filesystem_is_read_only() && read_only != Some(true) {
        return Err(MountError::TurnedReadOnly { target });
    }
    Ok(())
}

/// The first requested flag that an existing mount certainly does not have.
///
/// Only the flags that every filesystem shares can be compared: the kernel shows them always, and a filesystem's own
/// only where they differ from its defaults.
fn difference(mount: &Mount, flags: &[String]) -> Option<String> {
    // A flag, and its contrary; the later of the two in a list wins.
    const SHOWN: [(&str, &str); 7] = [
        ("ro", "rw"),
        ("nosuid", "suid"),
        ("nodev", "dev"),
        ("noexec", "exec"),
        ("noatime", "atime"),
        ("nodiratime", "diratime"),
        ("relatime", "norelatime"),
    ];
    for (flag, contrary) in SHOWN {
        let asked = flags.iter().rev().find(|asked| *asked == flag || *asked == contrary);
        let Some(asked) = asked else { continue };
        // `atime` and `norelatime` leave the choice to the kernel; `noatime` wins over `relatime`.
        let wanted = asked == flag;
        if !wanted && matches!(contrary, "atime" | "norelatime") || flag == "relatime" && mount.has("noatime") {
            continue;
        }
        if mount.has(flag) != wanted {
            return Some(format!("without {asked}"));
        }
    }
    // One filesystem has one SELinux context; two pods with different ones must not share it.
    let context = |option: &String| option.strip_prefix("context=").map(|label| label.trim_matches('"').to_owned());
    let wanted = flags.iter().find_map(context);
    let present = mount.super_options.iter().find_map(context);
    match (wanted, present) {
        (Some(wanted), Some(present)) if wanted != present => {
            Some(format!("with the SELinux context {present}, not {wanted}"))
        }
        _ => None,
    }
}

/// How a bind mount should be.
struct Bind {
    mounted: Mounted,
    /// Which part of the filesystem; of a node it goes without saying.
    root: Option<PathBuf>,
    /// Of a node it would mean nothing: the flag of the mount does not stop writes to the device.
    read_only: bool,
}

fn is_as_bound(mount: &Mount, wanted: &Bind) -> Result<(), MountError> {
    let target = mount.target.clone();
    if mount.mounted != wanted.mounted {
        let expected = match wanted.mounted {
            Mounted::Filesystem(number) => format!("the filesystem of block device {number}"),
            Mounted::Node(number) => format!("the node of block device {number}"),
            Mounted::Other => "nothing".to_owned(),
        };
        return Err(MountError::Occupied { target, found: mount.describe(), expected });
    }
    let Some(root) = &wanted.root else { return Ok(()) };
    let difference = if mount.root != *root {
        format!("only its folder {}", mount.root.display())
    } else if mount.has("ro") && !wanted.read_only {
        "for reading only".to_owned()
    } else if !mount.has("ro") && wanted.read_only {
        "for reading and writing".to_owned()
    } else {
        return Ok(());
    };
    Err(MountError::OtherwiseMounted { target, difference })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBER: DeviceNumber = DeviceNumber { major: 253, minor: 3 };

    fn mounted(options: &str, super_options: &str) -> Mount {
        Mount {
            id: 90,
            parent: 27,
            root: "/".into(),
            target: "/stage".into(),
            options: crate::filesystem::mountinfo::split_options(options),
            fs_type: "ext4".to_owned(),
            source: "/dev/quarry/pvc-1".into(),
            super_options: crate::filesystem::mountinfo::split_options(super_options),
            mounted: Mounted::Filesystem(NUMBER),
        }
    }

    fn compare(mount: &Mount, flags: &[&str]) -> Result<(), String> {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let request = MountRequest {
            device: Path::new("/dev/quarry/pvc-1"),
            number: NUMBER,
            target: Path::new("/stage"),
            fs: FilesystemType::Ext4,
            flags: &flags,
        };
        is_as_requested(mount, request).map_err(|error| error.to_string())
    }

    #[test]
    fn the_same_mount_is_recognised_under_every_flag_that_can_be_compared() {
        let plain = mounted("rw,relatime", "rw");
        for flags in [&[][..], &["rw"], &["atime"], &["discard"], &["errors=panic"], &["suid", "dev"], &["ro", "rw"]] {
            compare(&plain, flags).unwrap();
        }
        let strict = mounted("rw,nosuid,nodev,noexec,noatime", "rw,discard");
        for flags in [&["nosuid,nodev", "noatime"][..], &["relatime"], &["atime,noatime"], &[]] {
            compare(&strict, flags).unwrap();
        }
    }

    #[test]
    fn a_flag_that_an_existing_mount_lacks_is_named() {
        let plain = mounted("rw,relatime", "rw");
        for flag in ["ro", "nosuid", "noexec", "noatime"] {
            let error = compare(&plain, &[flag]).unwrap_err();
            assert_eq!(error, format!("/stage is mounted already, but without {flag}"));
        }
        let strict = mounted("rw,nosuid,relatime", "rw");
        assert_eq!(compare(&strict, &["suid"]).unwrap_err(), "/stage is mounted already, but without suid");
    }

    #[test]
    fn two_selinux_contexts_never_share_a_mount() {
        let one = mounted("rw", "rw,context=\"system_u:object_r:container_file_t:s0:c1,c2\"");
        compare(&one, &["context=\"system_u:object_r:container_file_t:s0:c1,c2\""]).unwrap();
        let other = compare(&one, &["context=\"system_u:object_r:container_file_t:s0:c3,c4\"", "noatime"]);
        assert!(other.unwrap_err().contains("without noatime"));
        let other = compare(&one, &["context=\"system_u:object_r:container_file_t:s0:c3,c4\""]).unwrap_err();
        assert!(other.contains("s0:c1,c2, not system_u:object_r:container_file_t:s0:c3,c4"), "{other}");
    }

    #[test]
    fn a_filesystem_that_met_an_error_is_told_from_one_mounted_for_reading() {
        let turned = mounted("rw,relatime", "ro,errors=remount-ro");
        assert!(compare(&turned, &[]).unwrap_err().contains("has become read-only after an error"));
        let asked = mounted("ro,relatime", "ro");
        compare(&asked, &["ro"]).unwrap();
        assert!(compare(&mounted("rw", "rw,emergency_ro"), &[]).unwrap_err().contains("after an error"));
    }

    #[test]
    fn another_device_or_filesystem_at_the_target_is_named() {
        let other = Mount { mounted: Mounted::Filesystem(DeviceNumber { major: 8, minor: 1 }), ..mounted("rw", "rw") };
        assert_eq!(
            compare(&other, &[]).unwrap_err(),
            "/stage is taken: ext4 of /dev/quarry/pvc-1 (8:1) is mounted there, not ext4 of /dev/quarry/pvc-1 (253:3)"
        );
        let xfs = Mount { fs_type: "xfs".to_owned(), ..mounted("rw", "rw") };
        assert_eq!(compare(&xfs, &[]).unwrap_err(), "/stage is mounted already, but as xfs, not ext4");
    }

    #[test]
    fn a_bind_is_compared_in_device_folder_and_direction() {
        let bind = |read_only| Bind { mounted: Mounted::Filesystem(NUMBER), root: Some("/".into()), read_only };
        is_as_bound(&mounted("rw", "rw"), &bind(false)).unwrap();
        is_as_bound(&mounted("ro", "rw"), &bind(true)).unwrap();
        for (options, read_only, text) in [("rw", true, "for reading and writing"), ("ro", false, "for reading only")] {
            let error = is_as_bound(&mounted(options, "rw"), &bind(read_only)).unwrap_err();
            assert!(error.to_string().ends_with(text), "{error}");
        }
        let folder = Mount { root: "/sub".into(), ..mounted("rw", "rw") };
        assert!(is_as_bound(&folder, &bind(false)).unwrap_err().to_string().ends_with("only its folder /sub"));
        let node = Mount { mounted: Mounted::Node(NUMBER), root: "/dm-3".into(), ..mounted("ro", "rw") };
        is_as_bound(&node, &Bind { mounted: Mounted::Node(NUMBER), root: None, read_only: false }).unwrap();
        assert!(matches!(is_as_bound(&node, &bind(false)), Err(MountError::Occupied { .. })));
    }
}
