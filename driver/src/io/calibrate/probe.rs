//! What a calibration's child process does: reads and writes a scratch volume, and counts.
//!
//! **Invariant.** Each operation is given to the kernel by a thread of its own: iocost blocks who submits, and who submits
//! several at once is counted in batches.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::args::IoProbeArgs;

/// How often the counters are noted.
const TICK: Duration = Duration::from_millis(100);
/// What direct IO is aligned to.
const ALIGNMENT: usize = 4096;

/// The counters at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tick {
    /// Milliseconds of the machine's monotonic clock.
    pub at_ms: u64,
    /// Reads that ended since the start.
    pub reads: u64,
    /// Writes that ended since the start.
    pub writes: u64,
}

/// The machine's monotonic clock, in milliseconds: the same in every process.
#[must_use]
pub fn clock_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or_default() * 1000 + u64::try_from(now.tv_nsec).unwrap_or_default() / 1_000_000
}

#[derive(Debug, Default)]
struct Shared {
    reads: AtomicU64,
    writes: AtomicU64,
    /// The next block of a sequential run.
    next: AtomicU64,
    stop: AtomicBool,
    error: Mutex<Option<io::Error>>,
}

#[expect(clippy::disallowed_methods, reason = "a process and a thread of its own")]
fn rest() {
    std::thread::sleep(TICK);
}

/// Enters the cgroup, does the work, and tells the counters over time.
///
/// # Errors
/// The cgroup cannot be entered, the device not be opened, read or written.
pub fn run(args: &IoProbeArgs) -> io::Result<Vec<Tick>> {
    // Nobody would stop it if the driver were gone.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    if let Some(cgroup) = &args.cgroup {
        std::fs::write(cgroup.join("cgroup.procs"), "0")?;
    }
    let flags = i32::try_from(OFlags::DIRECT.bits()).map_err(io::Error::other)?;
    let device = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&args.device)?;
    let shared = Shared::default();
    let mut ticks = Vec::new();
    let mut tick = || {
        let (reads, writes) = (shared.reads.load(Relaxed), shared.writes.load(Relaxed));
        ticks.push(Tick { at_ms: clock_ms(), reads, writes });
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..args.depth)
            .map(|number| {
                let (shared, device) = (&shared, device.as_fd());
                scope.spawn(move || {
                    if let Err(error) = work(args, device, u64::from(number), shared) {
                        *shared.error.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                        shared.stop.store(true, Relaxed);
                    }
                })
            })
            .collect();
        // Counted from when all are at work: a busy machine takes its time to start them.
        tick();
        let end = Instant::now() + Duration::from_millis(args.milliseconds);
        while !shared.stop.load(Relaxed) && Instant::now() < end && !threads.iter().all(|thread| thread.is_finished()) {
            rest();
            tick();
        }
        shared.stop.store(true, Relaxed);
    });
    // What was under way has ended.
    tick();
    match shared.error.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(ticks),
    }
}

fn work(args: &IoProbeArgs, device: BorrowedFd<'_>, seed: u64, shared: &Shared) -> io::Result<()> {
    let block = usize::try_from(args.block).map_err(io::Error::other)?;
    let mut memory = vec![0_u8; block + ALIGNMENT];
    let skip = memory.as_ptr().align_offset(ALIGNMENT);
    let buffer = memory.get_mut(skip..skip + block).ok_or_else(|| io::Error::other("memory cannot be aligned"))?;
    let mut random = fastrand::Rng::with_seed(seed + clock_ms());
    // What disks that compress or skip zeroes would make too little of.
    random.fill(buffer);
    let blocks = (args.length / args.block).max(1);
    while !shared.stop.load(Relaxed) {
        let number = if args.sequential { shared.next.fetch_add(1, Relaxed) } else { random.u64(..blocks) };
        if args.once && number >= blocks {
            return Ok(());
        }
        let offset = args.start + number % blocks * args.block;
        let is_read = random.u8(..100) < args.reads_percent;
        let done = match is_read {
            true => rustix::io::pread(device, &mut *buffer, offset)?,
            false => rustix::io::pwrite(device, buffer, offset)?,
        };
        if done != block {
            return Err(io::Error::other(format!("{done} of {block} bytes were done at {offset}")));
        }
        if is_read { &shared.reads } else { &shared.writes }.fetch_add(1, Relaxed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_filled_once_and_what_was_done_is_counted() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let args = IoProbeArgs {
            device: file.path().to_owned(),
            cgroup: None,
            start: 0,
            length: 1 << 20,
            block: 64 << 10,
            depth: 2,
            reads_percent: 0,
            sequential: true,
            once: true,
            milliseconds: 30_000,
        };
        // Not every filesystem of a test machine knows direct IO.
        let ticks = match run(&args) {
            Err(error) if error.raw_os_error() == Some(22) => return,
            ticks => ticks.unwrap(),
        };
        assert_eq!(ticks.last().map(|tick| (tick.reads, tick.writes)), Some((0, 16)));
        let text = std::fs::read(file.path()).unwrap();
        assert!(text.chunks(4096).all(|part| part.iter().any(|byte| *byte != 0)), "all of it was written");
    }
}
