//! The host's end of the channel to the agent in a machine.
//!
//! **Invariant.** A command's end is known only from the agent's own frame for it. A channel that breaks ends every
//! command that waits with an error, at once.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};

use super::console::{self, Watch};
use super::guest::Report;
use super::wire::{CHUNK, Frame, Kind};
use crate::command::{Command, Exit, Stream};
use crate::process::Child;
use crate::wait;

/// Name of the socket in the machine's folder.
pub(super) const SOCKET: &str = "agent.sock";

/// How often a waiting caller looks at the console.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Agent {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    writer: Mutex<UnixStream>,
    /// Who waits for frames, by command number; `None` when the channel is broken.
    waiting: Mutex<Option<BTreeMap<u32, Sender<Frame>>>>,
    next: Mutex<u32>,
    console: PathBuf,
}

impl Agent {
    /// Connects to the machine that QEMU runs and waits until its agent answers and reports a good boot.
    pub(super) fn connect(dir: &Path, qemu: &Child, console: &Path, deadline: Instant) -> Result<Self> {
        let left = || deadline.saturating_duration_since(Instant::now());
        let alive = |context: &str| match qemu.try_wait()? {
            Some(exit) => bail!("qemu ended with {exit} {context}"),
            None => Ok(()),
        };
        let stream = wait::until("qemu's agent socket", left(), Duration::from_millis(20), || {
            alive("before it opened its agent socket; see qemu.log beside the console")?;
            connect_in(dir)
        })?;
        let mut reader = stream.try_clone().context("cannot clone the agent socket")?;
        let shared = Arc::new(Shared {
            writer: Mutex::new(stream),
            waiting: Mutex::new(Some(BTreeMap::new())),
            next: Mutex::new(1),
            console: console.to_owned(),
        });
        let for_reader = Arc::clone(&shared);
        std::thread::spawn(move || for_reader.read_all(&mut reader));

        let agent = Self { shared };
        let (id, answers) = agent.shared.register()?;
        agent.shared.send(&Frame::new(Kind::Ping, id, []))?;
        let mut watch = Watch::new(console);
        let pong = wait::until("answer of the agent", left(), Duration::from_millis(20), || {
            alive("while the machine booted")?;
            watch.look()?;
            Ok(answers.try_recv().ok())
        })?;
        agent.shared.forget(id);
        let report: Report = serde_json::from_slice(&pong.payload).context("the agent's report is not understood")?;
        if !report.problems.is_empty() {
            bail!("the machine came up with problems: {}", report.problems.join("; "));
        }
        Ok(agent)
    }

    pub(super) fn spawn(&self, command: &Command) -> Result<Running> {
        let shared = &self.shared;
        let (id, frames) = shared.register()?;
        let running = Running { shared: Arc::clone(shared), id, frames, line: command.to_string(), ended: None };
        let mut order = command.clone();
        if let Some(stdin) = &mut order.stdin {
            for chunk in std::mem::take(stdin).chunks(CHUNK) {
                shared.send(&Frame::new(Kind::Input, id, chunk))?;
            }
        }
        let order = serde_json::to_vec(&order).context("cannot encode a command")?;
        shared.send(&Frame::new(Kind::Run, id, order))?;
        Ok(running)
    }

    pub(super) fn power_off(&self) -> Result<()> {
        self.shared.send(&Frame::new(Kind::PowerOff, 0, []))
    }
}

/// Connects to the socket in `dir` however long the folder's name is: a socket's own path has 108 bytes at most.
fn connect_in(dir: &Path) -> Result<Option<UnixStream>> {
    let folder = std::fs::File::open(dir).with_context(|| format!("cannot open {}", dir.display()))?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd());
    match UnixStream::connect(path) {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused) => {
            Ok(None)
        }
        Err(error) => Err(error).context("cannot connect to the agent socket"),
    }
}

impl Shared {
    fn register(&self) -> Result<(u32, Receiver<Frame>)> {
        let (sender, receiver) = mpsc::channel();
        let mut next = lock(&self.next);
        let id = *next;
        *next += 1;
        lock(&self.waiting).as_mut().ok_or_else(|| self.gone())?.insert(id, sender);
        Ok((id, receiver))
    }

    fn forget(&self, id: u32) {
        if let Some(waiting) = lock(&self.waiting).as_mut() {
            waiting.remove(&id);
        }
    }

    fn send(&self, frame: &Frame) -> Result<()> {
        frame.write(&mut *lock(&self.writer)).map_err(|error| self.gone().context(error))
    }

    fn read_all(&self, from: &mut UnixStream) {
        loop {
            match Frame::read(from) {
                Ok(Some(frame)) => {
                    if let Some(waiting) = lock(&self.waiting).as_ref().and_then(|w| w.get(&frame.id)) {
                        waiting.send(frame).ok();
                    }
                }
                Ok(None) => break,
                // QEMU ended with frames unread.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
                Err(error) => {
                    eprintln!("testbed: the channel to a virtual machine broke: {error}");
                    break;
                }
            }
        }
        *lock(&self.waiting) = None;
    }

    fn gone(&self) -> anyhow::Error {
        anyhow!("the virtual machine is gone; its console ends with\n{}", console::tail(&self.console, 30))
    }
}

/// A command that runs in a machine. Dropping it leaves the command running.
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    id: u32,
    frames: Receiver<Frame>,
    line: String,
    ended: Option<Exit>,
}

impl Running {
    /// Hands its outputs on until it ends by itself.
    ///
    /// # Errors
    /// No verdict: it was still running at `limit` and was killed, the machine died, or its console shows a kernel
    /// that cannot go on.
    pub fn follow(&mut self, limit: Duration, mut sink: impl FnMut(Stream, &[u8])) -> Result<Exit> {
        let end = Instant::now() + limit;
        let mut watch = Watch::new(&self.shared.console);
        while self.ended.is_none() {
            let left = end.saturating_duration_since(Instant::now());
            match self.frames.recv_timeout(left.min(LOOK)) {
                Ok(frame) => self.take(frame, &mut sink)?,
                Err(RecvTimeoutError::Disconnected) => return Err(self.shared.gone()),
                Err(RecvTimeoutError::Timeout) => {
                    watch.look()?;
                    if left.is_zero() {
                        self.kill().ok();
                        bail!("`{}` had not ended after {} s in the virtual machine", self.line, limit.as_secs());
                    }
                }
            }
        }
        self.ended.ok_or_else(|| self.shared.gone())
    }

    /// How it ended, or `None` while it runs; its outputs so far are dropped.
    ///
    /// # Errors
    /// No verdict: the machine died.
    pub fn try_wait(&mut self) -> Result<Option<Exit>> {
        while self.ended.is_none() {
            match self.frames.try_recv() {
                Ok(frame) => self.take(frame, &mut |_, _| ())?,
                Err(mpsc::TryRecvError::Empty) => break,
                Err(mpsc::TryRecvError::Disconnected) => return Err(self.shared.gone()),
            }
        }
        Ok(self.ended)
    }

    /// Kills it with its process group; [`Running::follow`] then tells its end.
    ///
    /// # Errors
    /// If the machine died.
    pub fn kill(&self) -> Result<()> {
        self.shared.send(&Frame::new(Kind::Kill, self.id, []))
    }

    fn take(&mut self, frame: Frame, sink: &mut impl FnMut(Stream, &[u8])) -> Result<()> {
        match frame.kind {
            Kind::Stdout => sink(Stream::Stdout, &frame.payload),
            Kind::Stderr => sink(Stream::Stderr, &frame.payload),
            Kind::Exit => {
                self.ended =
                    Some(serde_json::from_slice(&frame.payload).context("the agent's verdict is not understood")?);
            }
            Kind::Failed => bail!("in the virtual machine: {}", String::from_utf8_lossy(&frame.payload)),
            other => bail!("the agent sent a {other:?} frame for `{}`", self.line),
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.forget(self.id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
