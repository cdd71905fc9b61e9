//! Device-mapper's requests and answers as they lie in memory (`linux/dm-ioctl.h`).

use std::ffi::c_void;

use super::dm::{DeviceStatus, DmError, Key, ListedDevice, Target};
use super::dm_status::TargetStatus;
use crate::device_number::DeviceNumber;

/// `struct dm_ioctl` of `linux/dm-ioctl.h`: the head of every request and answer.
pub(super) const HEAD: usize = 312;
/// The interface that every kernel with thin pools speaks.
const INTERFACE: [u32; 3] = [4, 0, 0];
const NAME: std::ops::Range<usize> = 48..176;
const UUID: std::ops::Range<usize> = 176..305;

const FLAG_READ_ONLY: u32 = 1;
const FLAG_SUSPENDED: u32 = 1 << 1;
const FLAG_LIVE_TABLE: u32 = 1 << 5;
const FLAG_INACTIVE_TABLE: u32 = 1 << 6;
/// The size of an answer that is a head alone: where the kernel's structure has its last member (`dm_ioctl.data`).
const NO_DATA: usize = 305;

/// A request's buffer, which the kernel turns into the answer. In words of 8 bytes: the kernel's structures
/// hold such words, so the buffer must be aligned for them.
#[derive(Debug)]
pub(super) struct Answer {
    words: Vec<u64>,
}

impl Answer {
    /// Room for an answer of so many bytes, with the request in it; `payload` follows the head.
    pub(super) fn request(room: usize, key: Option<Key<'_>>, flags: u32, payload: &[u8]) -> Result<Self, DmError> {
        let mut bytes = vec![0_u8; room.max(HEAD + payload.len()).next_multiple_of(8)];
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        for (position, number) in INTERFACE.iter().enumerate() {
            put(position * 4, &number.to_ne_bytes());
        }
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
        put(HEAD, payload);
        let words = bytes.chunks_exact(8).map(|chunk| chunk.try_into().map_or(0, u64::from_ne_bytes)).collect();
        Ok(Self { words })
    }

    /// Where the kernel finds it.
    pub(super) fn as_mut_ptr(&mut self) -> *mut c_void {
        self.words.as_mut_ptr().cast()
    }

    fn bytes(&self, range: std::ops::Range<usize>) -> Vec<u8> {
        let all = self.words.iter().flat_map(|word| word.to_ne_bytes());
        all.skip(range.start).take(range.len()).collect()
    }

    pub(super) fn u32_at(&self, at: usize) -> u32 {
        let word = self.words.get(at / 8).copied().unwrap_or(0).to_ne_bytes();
        let half = &word[at % 8..at % 8 + 4];
        half.try_into().map_or(0, u32::from_ne_bytes)
    }

    pub(super) fn flags(&self) -> u32 {
        self.u32_at(28)
    }

    /// What follows the head, as the kernel says where.
    pub(super) fn payload(&self, action: &str) -> Result<Vec<u8>, DmError> {
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

    pub(super) fn device_status(&self, action: &str) -> Result<DeviceStatus, DmError> {
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
pub(super) fn parse_list(payload: Vec<u8>, action: &str) -> Result<Vec<ListedDevice>, DmError> {
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
pub(super) fn parse_targets(payload: Vec<u8>, count: u32, device: &str, action: &str) -> Result<Vec<Target>, DmError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_laid_out_as_the_kernel_wants_it() {
        let request = Answer::request(1024, Some(Key::Uuid("LVM-x")), 1 << 11, b"told").unwrap();
        let bytes = request.bytes(0..1024);
        assert_eq!(bytes.len(), 1024);
        assert_eq!(request.u32_at(0), 4);
        assert_eq!(request.u32_at(12), 1024);
        assert_eq!(request.u32_at(16), 312);
        assert_eq!(request.flags(), 1 << 11);
        assert_eq!(c_string(&bytes[UUID]).unwrap(), "LVM-x");
        assert_eq!(c_string(&bytes[NAME]).unwrap(), "");
        assert_eq!(request.words.as_ptr().align_offset(8), 0);
        assert_eq!(&bytes[312..317], b"told\0");
    }

    #[test]
    fn an_answer_without_data_is_empty_and_one_with_its_end_before_its_begin_is_none() {
        let mut answer = Answer::request(1024, Some(Key::Name("x")), 0, &[]).unwrap();
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
            let error = Answer::request(1024, Some(key), 0, &[]).unwrap_err();
            assert!(error.to_string().contains(&format!("at most {most} bytes")), "{error}");
        }
        assert!(Answer::request(1024, Some(Key::Name(&"x".repeat(127))), 0, &[]).is_ok());
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
