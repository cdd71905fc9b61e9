//! Asks the kernel's device-mapper for what is not on disk: which devices exist, whether they are open or
//! suspended, and how full a thin pool is.
//!
//! Invariant: the only unsafe code of the driver; every request here reads, but for one that throws away a table which
//! is not in use ([`DeviceMapper::clear_table`]). Each may
//! block while a device is being suspended or its table loaded: call it on a thread that may wait, such as
//! `tokio::task::spawn_blocking`.

#![expect(unsafe_code, reason = "device-mapper and loop devices are asked by ioctl, which no safe crate wraps")]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::path::Path;

use rustix::ioctl::{Direction, Ioctl, IoctlOutput, Opcode, opcode};

use super::dm_status::{StatusError, TargetStatus};
use crate::device_number::DeviceNumber;

/// Where the kernel listens.
const CONTROL: &str = "/dev/mapper/control";
/// `struct dm_ioctl` of `linux/dm-ioctl.h`: the head of every request and answer.
const HEAD: usize = 312;
/// The interface that every kernel with thin pools speaks.
const INTERFACE: [u32; 3] = [4, 0, 0];
const NAME: std::ops::Range<usize> = 48..176;
const UUID: std::ops::Range<usize> = 176..305;
/// What an answer gets at first; doubled while the kernel says that it was too small.
const FIRST_ROOM: usize = 16 << 10;
/// 100,000 devices with long names take 20 MB.
const MOST_ROOM: usize = 64 << 20;

const FLAG_READ_ONLY: u32 = 1;
const FLAG_SUSPENDED: u32 = 1 << 1;
const FLAG_LIVE_TABLE: u32 = 1 << 5;
/// The size of an answer that is a head alone: where the kernel's structure has its last member (`dm_ioctl.data`).
const NO_DATA: usize = 305;

const FLAG_INACTIVE_TABLE: u32 = 1 << 6;
const FLAG_BUFFER_FULL: u32 = 1 << 8;
/// A status must not make a thin pool commit first: that writes, and hangs with the pool's disk.
const FLAG_NO_FLUSH: u32 = 1 << 11;

const COMMAND_VERSION: u8 = 0;
const COMMAND_LIST_DEVICES: u8 = 2;
const COMMAND_DEVICE_STATUS: u8 = 7;
const COMMAND_TABLE_CLEAR: u8 = 10;
const COMMAND_TABLE_STATUS: u8 = 12;

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
        let mut room = FIRST_ROOM;
        loop {
            let mut answer = Answer::request(room, key, flags)?;
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
        let nothing = Some(rustix::io::Errno::NXIO.raw_os_error());
        matches!(self, Self::Refused { source, .. } if source.raw_os_error() == nothing)
    }
}

impl<'a> Key<'a> {
    fn text(self) -> &'a str {
        match self {
            Self::Name(text) | Self::Uuid(text) => text,
        }
    }
}

/// A request's buffer, which the kernel turns into the answer. In words of 8 bytes: the kernel's structures
/// hold such words, so the buffer must be aligned for them.
#[derive(Debug)]
struct Answer {
    words: Vec<u64>,
}

impl Answer {
    fn request(room: usize, key: Option<Key<'_>>, flags: u32) -> Result<Self, DmError> {
        let mut bytes = vec![0_u8; room];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        for (position, number) in INTERFACE.iter().enumerate() {
            put(position * 4, &number.to_ne_bytes());
        }
        let size = u32::try_from(room).unwrap_or(u32::MAX);
        put(12, &size.to_ne_bytes());
        put(16, &(HEAD as u32).to_ne_bytes());
        put(28, &flags.to_ne_bytes());
        if let Some(key) = key {
            let (place, what) = match key {
                Key::Name(_) => (NAME, "name"),
                Key::Uuid(_) => (UUID, "identifier"),
            };
            // One byte stays for the closing NUL.
            let most = place.len() - 1;
            let given = key.text();
            if given.is_empty() || given.len() > most || given.contains('\0') {
                return Err(DmError::Key { given: given.to_owned(), what, most });
            }
            put(place.start, given.as_bytes());
        }
        let words = bytes.chunks_exact(8).map(|chunk| chunk.try_into().map_or(0, u64::from_ne_bytes)).collect();
        Ok(Self { words })
    }

    fn bytes(&self, range: std::ops::Range<usize>) -> Vec<u8> {
        let all = self.words.iter().flat_map(|word| word.to_ne_bytes());
        all.skip(range.start).take(range.len()).collect()
    }

    fn u32_at(&self, at: usize) -> u32 {
        let word = self.words.get(at / 8).copied().unwrap_or(0).to_ne_bytes();
        let half = &word[at % 8..at % 8 + 4];
        half.try_into().map_or(0, u32::from_ne_bytes)
    }

    fn flags(&self) -> u32 {
        self.u32_at(28)
    }

    /// What follows the head, as the kernel says where.
    fn payload(&self, action: &str) -> Result<Vec<u8>, DmError> {
        let size = self.u32_at(12) as usize;
        let start = self.u32_at(16) as usize;
        let room = self.words.len() * 8;
        // A device without a live table has no targets: then the kernel does not say where they begin.
        if size == NO_DATA {
            return Ok(Vec::new());
        }
        // The kernel leaves the size of the buffer in place when there is nothing to tell.
        if start < HEAD || size > room || start > size {
            return Err(DmError::Answer {
                action: action.to_owned(),
                what: format!("data from byte {start} to {size} of {room}"),
            });
        }
        Ok(self.bytes(start..size))
    }

    fn device_status(&self, action: &str) -> Result<DeviceStatus, DmError> {
        let text = |place| {
            c_string(&self.bytes(place))
                .ok_or_else(|| DmError::Answer { action: action.to_owned(), what: "a name without end".to_owned() })
        };
        let flags = self.flags();
        Ok(DeviceStatus {
            name: text(NAME)?,
            uuid: text(UUID)?,
            number: DeviceNumber::from_kernel(self.words.get(5).copied().unwrap_or(0)),
            open_count: self.u32_at(24),
            suspended: flags & FLAG_SUSPENDED != 0,
            read_only: flags & FLAG_READ_ONLY != 0,
            live_table: flags & FLAG_LIVE_TABLE != 0,
            inactive_table: flags & FLAG_INACTIVE_TABLE != 0,
            event_number: self.u32_at(32),
        })
    }
}

/// The text before the first NUL.
fn c_string(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
}

/// `struct dm_name_list`: number, distance to the next entry (0 at the last), name.
fn parse_list(payload: Vec<u8>, action: &str) -> Result<Vec<ListedDevice>, DmError> {
    let wrong = |what: &str| DmError::Answer { action: action.to_owned(), what: what.to_owned() };
    let mut devices = Vec::new();
    // No device at all: kernels answer with nothing, or with one entry without a number.
    if payload.is_empty() {
        return Ok(devices);
    }
    let mut rest = payload.as_slice();
    loop {
        let head = rest.get(..12).ok_or_else(|| wrong("an entry is cut off"))?;
        let number = head[..8].try_into().map_or(0, u64::from_ne_bytes);
        let next = head[8..].try_into().map_or(0, u32::from_ne_bytes) as usize;
        if number == 0 {
            return Ok(devices);
        }
        let name = c_string(&rest[12..]).ok_or_else(|| wrong("a name without end"))?;
        devices.push(ListedDevice { name, number: DeviceNumber::from_kernel(number) });
        if next == 0 {
            return Ok(devices);
        }
        rest = rest.get(next..).ok_or_else(|| wrong("an entry points outside"))?;
    }
}

/// `struct dm_target_spec` and the status text behind each; `next` counts from the payload's start.
fn parse_targets(payload: Vec<u8>, count: u32, device: &str, action: &str) -> Result<Vec<Target>, DmError> {
    let wrong = |what: &str| DmError::Answer { action: action.to_owned(), what: what.to_owned() };
    let mut targets = Vec::new();
    let mut at = 0;
    for _ in 0..count {
        let head: &[u8] = payload.get(at..at + 40).ok_or_else(|| wrong("a target is cut off"))?;
        let start_sector = head[..8].try_into().map_or(0, u64::from_ne_bytes);
        let sectors = head[8..16].try_into().map_or(0, u64::from_ne_bytes);
        let next = head[20..24].try_into().map_or(0, u32::from_ne_bytes) as usize;
        // A type fills its 16 bytes without a NUL at most.
        let kind: String = head[24..40].iter().take_while(|&&byte| byte != 0).map(|&byte| char::from(byte)).collect();
        let line = payload.get(at + 40..).and_then(c_string).ok_or_else(|| wrong("a status without end"))?;
        let status = TargetStatus::parse(&kind, line.trim())
            .map_err(|source| DmError::Status { device: device.to_owned(), source })?;
        targets.push(Target { start_sector, sectors, status });
        at = next;
    }
    Ok(targets)
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
        self.buffer.words.as_mut_ptr().cast()
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
    fn a_request_is_laid_out_as_the_kernel_wants_it() {
        let request = Answer::request(1024, Some(Key::Uuid("LVM-x")), FLAG_NO_FLUSH).unwrap();
        let bytes = request.bytes(0..1024);
        assert_eq!(bytes.len(), 1024);
        assert_eq!(request.u32_at(0), 4);
        assert_eq!(request.u32_at(12), 1024);
        assert_eq!(request.u32_at(16), 312);
        assert_eq!(request.flags(), 1 << 11);
        assert_eq!(c_string(&bytes[UUID]).unwrap(), "LVM-x");
        assert_eq!(c_string(&bytes[NAME]).unwrap(), "");
        assert_eq!(request.words.as_ptr().align_offset(8), 0);
        // The number by which the kernel knows the request for a table's status (linux/dm-ioctl.h).
        let mut buffer = request;
        assert_eq!(Request::new(COMMAND_TABLE_STATUS, &mut buffer).opcode(), 0xc138_fd0c);
    }

    #[test]
    fn an_answer_without_data_is_empty_and_one_with_its_end_before_its_begin_is_none() {
        let mut answer = Answer::request(1024, Some(Key::Name("x")), 0).unwrap();
        let set_size =
            |answer: &mut Answer, size: u64| answer.words[1] = (answer.words[1] & 0xffff_ffff) | (size << 32);
        set_size(&mut answer, 305);
        assert_eq!(answer.payload("x").unwrap(), Vec::<u8>::new());
        for wrong in [0, 304, 306, 311, 1025] {
            set_size(&mut answer, wrong);
            assert!(matches!(answer.payload("x"), Err(DmError::Answer { .. })), "{wrong}");
        }
    }

    #[test]
    fn names_that_cannot_be_are_refused() {
        for (key, most) in [
            (Key::Name(""), 127),
            (Key::Name("a\0b"), 127),
            (Key::Name(&"x".repeat(128)), 127),
            (Key::Uuid(&"x".repeat(129)), 128),
        ] {
            let error = Answer::request(1024, Some(key), 0).unwrap_err();
            assert!(error.to_string().contains(&format!("at most {most} bytes")), "{error}");
        }
        assert!(Answer::request(1024, Some(Key::Name(&"x".repeat(127))), 0).is_ok());
    }

    fn listed(number: u64, next: u32, name: &str) -> Vec<u8> {
        let mut bytes = number.to_ne_bytes().to_vec();
        bytes.extend(next.to_ne_bytes());
        bytes.extend(name.as_bytes());
        bytes.push(0);
        bytes.resize(bytes.len().max(next as usize), 0);
        bytes
    }

    #[test]
    fn lists_are_read() {
        let mut payload = listed(0x10_fd2c, 40, "quarry-pvc--1");
        payload.extend(listed(0xfd00, 0, "quarry-pool"));
        let list = parse_list(payload.clone(), "x").unwrap();
        assert_eq!(list.len(), 2);
        assert_eq!((list[0].name.as_str(), list[0].number.minor), ("quarry-pvc--1", 300));
        assert_eq!(list[1].number, DeviceNumber { major: 253, minor: 0 });
        assert_eq!(parse_list(listed(0, 0, ""), "x").unwrap(), []);
        for cut in 1..payload.len() {
            // A cut may leave a shorter name without its end or an entry without a head: told, never a panic.
            let cut_off = parse_list(payload[..payload.len() - cut].to_vec(), "x");
            assert!(cut_off.is_err(), "{cut}: {cut_off:?}");
        }
    }

    fn target(next: u32, kind: &str, line: &str) -> Vec<u8> {
        let mut bytes = 0_u64.to_ne_bytes().to_vec();
        bytes.extend(2048_u64.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(next.to_ne_bytes());
        bytes.extend(kind.as_bytes());
        bytes.resize(40, 0);
        bytes.extend(line.as_bytes());
        bytes.push(0);
        bytes
    }

    #[test]
    fn targets_are_read() {
        let mut payload = target(48, "thin", "0 -");
        payload.resize(48, 0);
        payload.extend(target(96, "linear", ""));
        let targets = parse_targets(payload.clone(), 2, "d", "x").unwrap();
        assert_eq!(targets.len(), 2);
        assert_eq!(targets[0].sectors, 2048);
        assert!(matches!(targets[0].status, TargetStatus::Thin(_)));
        assert_eq!(targets[1].status, TargetStatus::Other { kind: "linear".into(), line: String::new() });
        assert!(parse_targets(payload, 3, "d", "x").is_err());
        let error = parse_targets(target(0, "thin", "what"), 1, "quarry-a", "x").unwrap_err();
        assert!(error.to_string().contains("quarry-a"), "{error}");
    }
}
