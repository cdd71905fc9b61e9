//! Asks the kernel's device-mapper for what is not on disk: which devices exist, whether they are open or
//! suspended, and how full a thin pool is.
//!
//! Invariant: the only unsafe code of the driver; every request here reads, but for one that throws away a table which
//! is not in use ([`DeviceMapper::clear_table`]) and one that tells a target something ([`DeviceMapper::message`]). Each may
//! block while a device is being suspended or its table loaded: call it on a thread that may wait, such as
//! `tokio::task::spawn_blocking`.

#![expect(unsafe_code, reason = "device-mapper and loop devices are asked by ioctl, which no safe crate wraps")]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::ioctl::{Direction, Ioctl, IoctlOutput, Opcode, opcode};

use super::dm_status::{StatusError, TargetStatus};
use super::dm_wire::{Answer, HEAD, parse_list, parse_targets};
use crate::device_number::DeviceNumber;

/// Where the kernel listens.
const CONTROL: &str = "/dev/mapper/control";
/// What an answer gets at first; doubled while the kernel says that it was too small.
const FIRST_ROOM: usize = 16 << 10;
/// 100,000 devices with long names take 20 MB.
const MOST_ROOM: usize = 64 << 20;

const FLAG_BUFFER_FULL: u32 = 1 << 8;
/// A status must not make a thin pool commit first: that writes, and hangs with the pool's disk.
const FLAG_NO_FLUSH: u32 = 1 << 11;

const COMMAND_VERSION: u8 = 0;
const COMMAND_LIST_DEVICES: u8 = 2;
const COMMAND_DEVICE_STATUS: u8 = 7;
const COMMAND_TABLE_CLEAR: u8 = 10;
const COMMAND_TABLE_STATUS: u8 = 12;
const COMMAND_TARGET_MESSAGE: u8 = 14;

/// A request that the kernel did not answer as asked.
#[derive(Debug, thiserror::Error)]
pub enum DmError {
    /// The control device is not there or not to be opened.
    #[error("cannot open {CONTROL}; is the dm-mod module loaded and the host's /dev mounted")]
    Control(#[source] io::Error),
    /// The kernel refused.
    #[error("device-mapper refused to {action}")]
    Refused {
        /// What was asked.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The answer is not of the form that the kernel documents.
    #[error("device-mapper's answer to \"{action}\" makes no sense: {what}")]
    Answer {
        /// What was asked.
        action: String,
        /// What is wrong with it.
        what: String,
    },
    /// A name or identifier that device-mapper cannot have.
    #[error("{given:?} cannot be a device-mapper {what}: at most {most} bytes without NUL")]
    Key {
        /// What was given.
        given: String,
        /// Whether it was meant as a name or an identifier.
        what: &'static str,
        /// Longest allowed.
        most: usize,
    },
    /// A target's status line could not be understood.
    #[error("the status of {device} is not understood")]
    Status {
        /// The device.
        device: String,
        /// What is wrong.
        source: StatusError,
    },
}

/// How to name a device to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key<'a> {
    /// By name, such as `quarry-pvc--1`.
    Name(&'a str),
    /// By identifier, such as `LVM-…-tpool`; survives a rename of the volume group.
    Uuid(&'a str),
}

/// A device in the list of all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedDevice {
    /// Its name.
    pub name: String,
    /// Its number.
    pub number: DeviceNumber,
}

/// The state of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Its name.
    pub name: String,
    /// Its identifier; LVM's begin with `LVM-`. Empty if its maker gave none.
    pub uuid: String,
    /// Its number.
    pub number: DeviceNumber,
    /// How often it is open; mounts and devices stacked on it count.
    pub open_count: u32,
    /// Reads and writes wait until it is resumed.
    pub suspended: bool,
    /// Made read-only.
    pub read_only: bool,
    /// It has a table that serves reads and writes.
    pub live_table: bool,
    /// It has a table that was loaded but not taken into use.
    pub inactive_table: bool,
    /// Counts events such as a pool running full.
    pub event_number: u32,
}

/// One target of a device's table with its status.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// First sector of the device that it serves.
    pub start_sector: u64,
    /// Sectors that it serves.
    pub sectors: u64,
    /// What kind it is, and its status if that kind is known here.
    pub status: TargetStatus,
}

/// An open connection to device-mapper. Every request may block: see the module.
#[derive(Debug)]
pub struct DeviceMapper {
    control: File,
}

impl DeviceMapper {
    /// Connects.
    ///
    /// # Errors
    /// [`DmError::Control`] if the host has no device-mapper or its `/dev` is not here.
    pub fn open() -> Result<Self, DmError> {
        let control = File::options().read(true).write(true).open(CONTROL).map_err(DmError::Control)?;
        Ok(Self { control })
    }

    /// The kernel's interface version: major, minor, patch level.
    ///
    /// # Errors
    /// [`DmError`] if the kernel refuses.
    pub fn version(&self) -> Result<(u32, u32, u32), DmError> {
        let answer = self.ask(COMMAND_VERSION, None, 0, "tell its version")?;
        Ok((answer.u32_at(0), answer.u32_at(4), answer.u32_at(8)))
    }

    /// Every device there is, LVM's and others.
    ///
    /// # Errors
    /// [`DmError`] if the kernel refuses or its answer makes no sense.
    pub fn list(&self) -> Result<Vec<ListedDevice>, DmError> {
        const ACTION: &str = "list its devices";
        let answer = self.ask(COMMAND_LIST_DEVICES, None, 0, ACTION)?;
        parse_list(answer.payload(ACTION)?, ACTION)
    }

    /// One device's state; `None` is the kernel's word that there is no such device.
    ///
    /// # Errors
    /// [`DmError`] if the kernel refuses for any other reason.
    pub fn status(&self, key: Key<'_>) -> Result<Option<DeviceStatus>, DmError> {
        let action = format!("tell the state of {}", key.text());
        let answer = match self.ask(COMMAND_DEVICE_STATUS, Some(key), 0, &action) {
            Ok(answer) => answer,
            Err(error) if error.is_no_such_device() => return Ok(None),
            Err(error) => return Err(error),
        };
        answer.device_status(&action).map(Some)
    }

    /// The targets of a device's live table with their status, without making a pool write anything first; `None` is
    /// the kernel's word that there is no such device.
    ///
    /// # Errors
    /// [`DmError`] if the kernel refuses for any other reason or a thin target's status is not understood.
    pub fn table_status(&self, key: Key<'_>) -> Result<Option<Vec<Target>>, DmError> {
        let action = format!("tell the table status of {}", key.text());
        let answer = match self.ask(COMMAND_TABLE_STATUS, Some(key), FLAG_NO_FLUSH, &action) {
            Ok(answer) => answer,
            Err(error) if error.is_no_such_device() => return Ok(None),
            Err(error) => return Err(error),
        };
        let count = answer.u32_at(20);
        parse_targets(answer.payload(&action)?, count, key.text(), &action).map(Some)
    }

    /// Throws away a table that was loaded and not taken into use; the one in use stays.
    ///
    /// # Errors
    /// [`DmError`] if the kernel refuses.
    pub fn clear_table(&self, key: Key<'_>) -> Result<(), DmError> {
        let action = format!("clear the inactive table of {}", key.text());
        self.ask(COMMAND_TABLE_CLEAR, Some(key), 0, &action).map(drop)
    }

    /// Tells the target that serves the device's first sector something, in its own words (such as `delete 5`).
    ///
    /// # Errors
    /// [`DmError`] if the kernel refuses; what its answer means is the target's own.
    pub fn message(&self, key: Key<'_>, message: &str) -> Result<(), DmError> {
        let action = format!("tell {} \"{message}\"", key.text());
        // `struct dm_target_msg`: the sector, then the text with its end.
        let payload = [&0_u64.to_ne_bytes()[..], message.as_bytes(), &[0]].concat();
        self.ask_with(COMMAND_TARGET_MESSAGE, Some(key), 0, &payload, &action).map(drop)
    }

    /// All of LVM's devices: those whose identifier begins with `LVM-` and, if given, then with `vg`. One request per
    /// device; a device that goes away meanwhile is left out.
    ///
    /// # Errors
    /// [`DmError`] if the kernel refuses.
    pub fn lvm_devices(&self, vg: Option<super::metadata::LvmUuid>) -> Result<Vec<DeviceStatus>, DmError> {
        let prefix = vg.map_or_else(|| "LVM-".to_owned(), |vg| format!("LVM-{}", vg.compact()));
        let mut found = Vec::new();
        for device in self.list()? {
            let status = self.status(Key::Name(&device.name))?;
            found.extend(status.filter(|status| status.uuid.starts_with(&prefix)));
        }
        Ok(found)
    }

    fn ask(&self, command: u8, key: Option<Key<'_>>, flags: u32, action: &str) -> Result<Answer, DmError> {
        self.ask_with(command, key, flags, &[], action)
    }

    fn ask_with(
        &self,
        command: u8,
        key: Option<Key<'_>>,
        flags: u32,
        payload: &[u8],
        action: &str,
    ) -> Result<Answer, DmError> {
        let mut room = FIRST_ROOM;
        loop {
            let mut answer = Answer::request(room, key, flags, payload)?;
            // SAFETY: `Request` states the whole buffer's size in its head, so the kernel stays within it; the
            // commands used here read and write nothing but that buffer.
            let outcome = unsafe { rustix::ioctl::ioctl(&self.control, Request::new(command, &mut answer)) };
            outcome.map_err(|errno| DmError::Refused { action: action.to_owned(), source: errno.into() })?;
            if answer.flags() & FLAG_BUFFER_FULL == 0 {
                return Ok(answer);
            }
            if room >= MOST_ROOM {
                return Err(DmError::Answer {
                    action: action.to_owned(),
                    what: format!("it does not fit in {MOST_ROOM} bytes"),
                });
            }
            room *= 2;
        }
    }
}

impl DmError {
    /// Device-mapper says ENXIO for a device that does not exist.
    fn is_no_such_device(&self) -> bool {
        self.is(Errno::NXIO)
    }

    /// Whether this is what the kernel answered.
    #[must_use]
    pub fn is(&self, errno: Errno) -> bool {
        matches!(self, Self::Refused { source, .. } if source.raw_os_error() == Some(errno.raw_os_error()))
    }
}

impl<'a> Key<'a> {
    /// The name or the identifier.
    pub(super) fn text(self) -> &'a str {
        match self {
            Self::Name(text) | Self::Uuid(text) => text,
        }
    }
}

/// The request as the library wants it.
struct Request<'a> {
    command: u8,
    buffer: &'a mut Answer,
}

impl<'a> Request<'a> {
    fn new(command: u8, buffer: &'a mut Answer) -> Self {
        Self { command, buffer }
    }
}

// SAFETY: device-mapper's commands take a pointer to a `dm_ioctl` whose `data_size` (set by `Answer::request`) is
// the length of the buffer, which `Answer` owns and keeps in place while the call lasts.
unsafe impl Ioctl for Request<'_> {
    type Output = ();

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::from_components(Direction::ReadWrite, 0xfd, self.command, HEAD)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.buffer.as_mut_ptr()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// What lies under a loop device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoopBacking {
    /// A block device, such as the volume that kubelet shows to a pod.
    Device(DeviceNumber),
    /// A regular file.
    File,
}

/// Asks a loop device what lies under it. The answer does not depend on this process's view of the filesystem, as
/// the path in `/sys` does.
///
/// # Errors
/// The kernel's answer, `ENXIO` for a loop device that is not set up.
pub fn loop_backing(device: &Path) -> io::Result<LoopBacking> {
    let file = File::open(device)?;
    let mut info = LoopStatus { words: [0; 29] };
    // SAFETY: `LoopStatus` is as long as the kernel's `struct loop_info64`, into which the command writes.
    unsafe { rustix::ioctl::ioctl(&file, &mut info) }?;
    // `lo_rdevice`: the number of the device under it, 0 over a file.
    match info.words[2] {
        0 => Ok(LoopBacking::File),
        number => Ok(LoopBacking::Device(DeviceNumber::from_kernel(number))),
    }
}

/// `struct loop_info64` of `linux/loop.h`: 232 bytes.
struct LoopStatus {
    words: [u64; 29],
}

// SAFETY: LOOP_GET_STATUS64 (0x4c05) writes one `loop_info64` to the pointer, for which `words` has the length and
// the alignment.
unsafe impl Ioctl for &mut LoopStatus {
    type Output = ();

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        0x4c05
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.words.as_mut_ptr().cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_number_by_which_the_kernel_knows_it() {
        // A table's status, as in linux/dm-ioctl.h.
        let mut buffer = Answer::request(1024, Some(Key::Uuid("LVM-x")), FLAG_NO_FLUSH, &[]).unwrap();
        assert_eq!(Request::new(COMMAND_TABLE_STATUS, &mut buffer).opcode(), 0xc138_fd0c);
    }
}
