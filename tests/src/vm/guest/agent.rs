//! Runs commands for the host, several at once, and tells their outputs and ends over a virtio-serial port.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use super::{REPORT, shutdown};
use crate::command::{Command, Stream};
use crate::process::{Group, Leash, Leftovers, Piped};
use crate::vm::qemu::PORT;
use crate::vm::wire::{CHUNK, Frame, Kind};
use crate::wait;

/// How it is started.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Switch the machine off at the end: the first process will not.
    #[arg(long)]
    power_off: bool,
}

/// Serves until the host asks for power-off.
///
/// # Errors
/// If the port is not there or breaks.
pub fn run(arguments: &Arguments) -> Result<()> {
    let served = serve();
    if !arguments.power_off {
        return served;
    }
    if let Err(error) = served {
        println!("vm-agent: {error:#}");
    }
    shutdown::power_off()
}

fn serve() -> Result<()> {
    let path = port()?;
    let file = File::options().read(true).write(true).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    let mut reader = Port(file.try_clone().context("cannot clone the agent port")?);
    let agent = Agent { writer: Arc::new(Mutex::new(file)), running: Arc::default() };
    let mut inputs: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    loop {
        let frame = Frame::read(&mut reader).context("cannot read from the agent port")?;
        let Some(frame) = frame else { bail!("the agent port ended") };
        match frame.kind {
            Kind::Ping => agent.send(&Frame::new(Kind::Pong, frame.id, fs::read(REPORT)?))?,
            Kind::Input => inputs.entry(frame.id).or_default().extend(frame.payload),
            Kind::Run => agent.start(frame.id, &frame.payload, inputs.remove(&frame.id).unwrap_or_default()),
            Kind::Kill => {
                if let Some(group) = lock(&agent.running).get(&frame.id) {
                    group.signal(Signal::KILL)?;
                }
            }
            Kind::PowerOff => return Ok(()),
            other => bail!("the host sent a {other:?} frame"),
        }
    }
}

#[derive(Clone)]
struct Agent {
    writer: Arc<Mutex<File>>,
    running: Arc<Mutex<BTreeMap<u32, Arc<Group>>>>,
}

impl Agent {
    fn send(&self, frame: &Frame) -> io::Result<()> {
        frame.write(&mut *lock(&self.writer))
    }

    fn start(&self, id: u32, order: &[u8], input: Vec<u8>) {
        let started = serde_json::from_slice::<Command>(order).context("the command is not understood").and_then(
            |mut command| {
                command.stdin = command.stdin.map(|_| input);
                Piped::start(&command, Leash::Short, Leftovers::Keep)
            },
        );
        match started {
            Err(error) => self.fail(id, &error),
            Ok(process) => {
                lock(&self.running).insert(id, process.group());
                let agent = self.clone();
                std::thread::spawn(move || agent.follow(id, &process));
            }
        }
    }

    fn follow(&self, id: u32, process: &Piped) {
        let ended = process.follow(Duration::MAX, |stream, bytes| {
            let kind = match stream {
                Stream::Stdout => Kind::Stdout,
                Stream::Stderr => Kind::Stderr,
            };
            for chunk in bytes.chunks(CHUNK) {
                self.send(&Frame::new(kind, id, chunk)).ok();
            }
        });
        lock(&self.running).remove(&id);
        let verdict = ended.and_then(|exit| Ok(serde_json::to_vec(&exit)?));
        match verdict {
            Ok(verdict) => drop(self.send(&Frame::new(Kind::Exit, id, verdict))),
            Err(error) => self.fail(id, &error),
        }
    }

    fn fail(&self, id: u32, error: &anyhow::Error) {
        self.send(&Frame::new(Kind::Failed, id, format!("{error:#}"))).ok();
    }
}

/// The device of the agent's port. Links by name are made by udevd, which may not be there.
fn port() -> Result<PathBuf> {
    for entry in fs::read_dir("/sys/class/virtio-ports").context("no virtio ports")? {
        let entry = entry?;
        if fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim() == PORT) {
            return Ok(PathBuf::from("/dev").join(entry.file_name()));
        }
    }
    bail!("no virtio port is named {PORT}")
}

/// A port reads as ended while nobody is connected on the host: that is a time to wait.
struct Port(File);

impl Read for Port {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer)? {
                0 if !buffer.is_empty() => wait::pause(Duration::from_millis(20)),
                count => return Ok(count),
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
