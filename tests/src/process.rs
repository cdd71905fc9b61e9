//! The only code of the test bed that starts processes.
//!
//! **Invariant.** Nothing that is started here outlives the test bed: every process leads a group of its own, the
//! group is killed when its handle is dropped or the test bed is told to end ([`end_on_signals`]), and a long-lived one
//! asks the kernel (`PR_SET_PDEATHSIG`, set by `setpriv`) to kill it when the test bed is killed outright. The kernel
//! counts the *thread* that forked as the parent, so one thread, which never ends, does all the forking.

mod signals;
mod tree;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

pub use signals::{SignalHook, end_on_signals, on_signal};

use crate::command::{Command, Exit, Outcome, Stream};
use crate::wait;

/// How long the outputs of an ended process are still read: a daemon that it left behind may hold them for ever.
const DRAIN: Duration = Duration::from_secs(2);
/// How long a killed process may take to be gone: it may first have to finish a system call.
const REAP: Duration = Duration::from_secs(30);

/// Where a long-lived process writes both of its outputs.
#[derive(Debug, Clone, Copy)]
pub enum Log<'a> {
    /// To this file, made new.
    File(&'a Path),
    /// To the end of this file.
    Append(&'a Path),
    /// To the test bed's own outputs.
    Inherit,
}

/// Runs a command to its end and keeps its outputs.
///
/// # Errors
/// If it cannot be started, or was still running at `limit` and was killed with its group. Any exit is an [`Outcome`].
pub fn run(command: &Command, limit: Duration) -> Result<Outcome> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let piped = Piped::start(command, Leash::Short, Leftovers::Kill)?;
    let exit = piped.follow(limit, |stream, bytes| match stream {
        Stream::Stdout => stdout.extend_from_slice(bytes),
        Stream::Stderr => stderr.extend_from_slice(bytes),
    })?;
    Ok(Outcome { line: command.to_string(), exit, stdout, stderr })
}

/// Runs a command to its end and hands its outputs on as they come.
///
/// # Errors
/// As [`run`].
pub fn run_streaming(command: &Command, limit: Duration, sink: impl FnMut(Stream, &[u8])) -> Result<Exit> {
    Piped::start(command, Leash::Long, Leftovers::Kill)?.follow(limit, sink)
}

/// Starts a process that runs until it is told to end, ends by itself, or its handle is dropped.
///
/// # Errors
/// If its log cannot be opened or it cannot be started.
pub fn start(command: &Command, log: Log<'_>) -> Result<Child> {
    let open = |path: &Path, append| {
        let file = File::options().create(true).write(true).append(append).truncate(!append).open(path);
        file.with_context(|| format!("cannot open the log {}", path.display()))
    };
    let (stdout, stderr) = match log {
        Log::Inherit => (Stdio::inherit(), Stdio::inherit()),
        Log::File(path) | Log::Append(path) => {
            let file = open(path, matches!(log, Log::Append(_)))?;
            (file.try_clone()?.into(), file.into())
        }
    };
    let mut child = fork(command, Leash::Long, stdout, stderr)?;
    if let (Some(mut pipe), Some(bytes)) = (child.stdin.take(), command.stdin.clone()) {
        thread::spawn(move || pipe.write_all(&bytes).ok());
    }
    Ok(Child { group: Group::register(command, child), line: command.to_string() })
}

/// A long-lived process; dropping it kills its group.
#[derive(Debug)]
pub struct Child {
    group: Arc<Group>,
    line: String,
}

impl Child {
    /// Its process id, which is its group's too.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.group.pid.as_raw_nonzero().get()
    }

    /// How it ended, or `None` while it runs.
    ///
    /// # Errors
    /// If the kernel cannot tell.
    pub fn try_wait(&self) -> Result<Option<Exit>> {
        if self.group.ended(WaitIdOptions::NOHANG)? { self.group.reap(Leftovers::Kill).map(Some) } else { Ok(None) }
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// If it still runs at `limit`; it goes on running.
    pub fn wait(&self, limit: Duration) -> Result<Exit> {
        wait::until(&format!("end of `{}`", self.line), limit, Duration::from_millis(20), || self.try_wait())
    }

    /// Sends a signal to its whole group; nothing if it has ended.
    ///
    /// # Errors
    /// If the signal cannot be sent.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.group.signal(signal)
    }

    /// Kills it alone, as a crash would: its group and its children go on.
    ///
    /// # Errors
    /// If even SIGKILL does not end it.
    pub fn crash(&mut self) -> Result<Exit> {
        rustix::process::kill_process(self.group.pid, Signal::KILL).ok();
        let gone = || Ok(self.group.ended(WaitIdOptions::NOHANG)?.then_some(()));
        wait::until(&format!("end of `{}`", self.line), REAP, Duration::from_millis(5), gone)?;
        self.group.reap(Leftovers::Keep)
    }

    /// Kills it with all its descendants, whatever groups they are in, as the end of its container would.
    ///
    /// # Errors
    /// If even SIGKILL does not end it.
    pub fn kill_tree(&mut self) -> Result<Exit> {
        if let Some(exit) = self.try_wait()? {
            return Ok(exit);
        }
        tree::kill(self.group.pid);
        self.wait(REAP)
    }

    /// Asks it to end (SIGTERM) and kills it if it has not within `grace`.
    ///
    /// # Errors
    /// If signals cannot be sent, or even SIGKILL does not end it.
    pub fn stop(&self, grace: Duration) -> Result<Exit> {
        if let Some(exit) = self.try_wait()? {
            return Ok(exit);
        }
        self.signal(Signal::TERM)?;
        if let Ok(exit) = self.wait(grace) {
            return Ok(exit);
        }
        self.signal(Signal::KILL)?;
        self.wait(REAP)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.group.kill_and_reap();
    }
}

/// Whether the kernel kills the process when the test bed is killed outright. A short command would pay for that with
/// one more program start, which is dear in an emulated machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leash {
    /// It ends soon anyway.
    Short,
    /// It dies with the test bed.
    Long,
}

/// What becomes of a process's group when the process itself has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leftovers {
    /// It is killed.
    Kill,
    /// It may go on: the virtual machine that it runs in ends it.
    Keep,
}

/// News of a [`Piped`] process.
#[derive(Debug)]
pub(crate) enum Event {
    /// It wrote this.
    Output(Stream, Vec<u8>),
    /// It ended; nothing follows.
    Ended(Result<Exit>),
}

/// A process whose outputs come as events.
#[derive(Debug)]
pub(crate) struct Piped {
    group: Arc<Group>,
    events: Receiver<Event>,
    line: String,
}

impl Piped {
    pub(crate) fn start(command: &Command, leash: Leash, leftovers: Leftovers) -> Result<Self> {
        let mut child = fork(command, leash, Stdio::piped(), Stdio::piped())?;
        let (sender, events) = mpsc::channel();
        let (done, drained) = mpsc::channel::<()>();
        if let Some(pipe) = child.stdout.take() {
            forward(pipe, Stream::Stdout, sender.clone(), done.clone());
        }
        if let Some(pipe) = child.stderr.take() {
            forward(pipe, Stream::Stderr, sender.clone(), done.clone());
        }
        if let (Some(mut pipe), Some(bytes)) = (child.stdin.take(), command.stdin.clone()) {
            // A process may end without reading its input: a broken pipe is its own affair.
            thread::spawn(move || pipe.write_all(&bytes).ok());
        }
        drop(done);
        let group = Group::register(command, child);
        let waiter = Arc::clone(&group);
        thread::spawn(move || {
            let exit = waiter.ended(WaitIdOptions::empty()).and_then(|_| waiter.reap(leftovers));
            // Ends when both readers have dropped their end, or at the bound.
            let bound = Instant::now() + DRAIN;
            while drained.recv_timeout(bound.saturating_duration_since(Instant::now())).is_ok() {}
            sender.send(Event::Ended(exit)).ok();
        });
        Ok(Self { group, events, line: command.to_string() })
    }

    /// A handle that can signal the process from elsewhere.
    pub(crate) fn group(&self) -> Arc<Group> {
        Arc::clone(&self.group)
    }

    /// Hands outputs on until the process has ended.
    pub(crate) fn follow(&self, limit: Duration, mut sink: impl FnMut(Stream, &[u8])) -> Result<Exit> {
        let end = Instant::now().checked_add(limit);
        loop {
            let left = end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
            match self.events.recv_timeout(left) {
                Ok(Event::Output(stream, bytes)) => sink(stream, &bytes),
                Ok(Event::Ended(exit)) => return exit,
                Err(RecvTimeoutError::Timeout) => {
                    self.group.signal(Signal::KILL)?;
                    bail!("`{}` was killed after {} s without an end", self.line, limit.as_secs());
                }
                Err(RecvTimeoutError::Disconnected) => bail!("lost track of `{}`", self.line),
            }
        }
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        // Its waiter reaps it.
        self.group.signal(Signal::KILL).ok();
    }
}

fn forward(mut pipe: impl Read + Send + 'static, stream: Stream, events: Sender<Event>, done: Sender<()>) {
    thread::spawn(move || {
        let _done = done;
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            if events.send(Event::Output(stream, buffer[..count].to_vec())).is_err() {
                return;
            }
        }
    });
}

/// A process group that this process started. The leader stays a zombie until [`Group::reap`], so its number is nobody
/// else's before that, and is never signalled after it.
#[derive(Debug)]
pub(crate) struct Group {
    pid: Pid,
    line: String,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Running(std::process::Child),
    Ended(Exit),
}

impl Group {
    fn register(command: &Command, child: std::process::Child) -> Arc<Self> {
        let pid = pid_of(&child);
        lock(&LIVE).insert(pid.as_raw_nonzero().get());
        Arc::new(Self { pid, line: command.to_string(), state: Mutex::new(State::Running(child)) })
    }

    /// Whether the leader has ended, without reaping it.
    fn ended(&self, options: WaitIdOptions) -> Result<bool> {
        if matches!(*lock(&self.state), State::Ended(_)) {
            return Ok(true);
        }
        loop {
            match rustix::process::waitid(
                WaitId::Pid(self.pid),
                WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | options,
            ) {
                Ok(status) => return Ok(status.is_some()),
                Err(rustix::io::Errno::INTR) => {}
                // Somebody else asked the same and was faster.
                Err(rustix::io::Errno::CHILD) if matches!(*lock(&self.state), State::Ended(_)) => return Ok(true),
                Err(error) => return Err(error).with_context(|| format!("cannot wait for `{}`", self.line)),
            }
        }
    }

    fn reap(&self, leftovers: Leftovers) -> Result<Exit> {
        let mut state = lock(&self.state);
        let child = match &mut *state {
            State::Ended(exit) => return Ok(*exit),
            State::Running(child) => child,
        };
        if leftovers == Leftovers::Kill {
            rustix::process::kill_process_group(self.pid, Signal::KILL).ok();
        }
        let status = child.wait().with_context(|| format!("cannot wait for `{}`", self.line))?;
        lock(&LIVE).remove(&self.pid.as_raw_nonzero().get());
        let exit = exit_of(status);
        *state = State::Ended(exit);
        Ok(exit)
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let state = lock(&self.state);
        if matches!(*state, State::Running(_)) {
            let sent = rustix::process::kill_process_group(self.pid, signal);
            sent.with_context(|| format!("cannot signal `{}`", self.line))?;
        }
        Ok(())
    }

    fn kill_and_reap(&self) {
        let ended = self.signal(Signal::KILL).and_then(|()| {
            let gone = || Ok(self.ended(WaitIdOptions::NOHANG)?.then_some(()));
            wait::until(&format!("end of `{}`", self.line), REAP, Duration::from_millis(10), gone)?;
            self.reap(Leftovers::Kill)
        });
        if let Err(error) = ended {
            eprintln!("testbed: {error:#}");
        }
    }
}

fn exit_of(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, signal) => Exit::Signal(signal.unwrap_or(0)),
    }
}

/// The number of a child: a positive `i32`, as every process id.
fn pid_of(child: &std::process::Child) -> Pid {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw).unwrap_or(Pid::INIT)
}

type Job = Box<dyn FnOnce() + Send>;

/// Starts the process on the thread that does all the forking.
fn fork(command: &Command, leash: Leash, stdout: Stdio, stderr: Stdio) -> Result<std::process::Child> {
    static FORKER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let forker = FORKER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        thread::spawn(move || jobs.into_iter().for_each(|job| job()));
        Mutex::new(sender)
    });
    let mut prepared = prepare(command, leash)?;
    prepared.stdout(stdout).stderr(stderr);
    let (reply, answer) = mpsc::channel();
    let job: Job = Box::new(move || {
        reply.send(prepared.spawn()).ok();
    });
    lock(forker).send(job).map_err(|_| anyhow!("the forking thread is gone"))?;
    let child = answer.recv().context("the forking thread is gone")?;
    child.with_context(|| format!("cannot start `{command}`"))
}

#[expect(clippy::disallowed_methods, reason = "this is the one place of the test bed that starts processes")]
fn prepare(command: &Command, leash: Leash) -> Result<std::process::Command> {
    let Some((program, arguments)) = command.argv.split_first() else { bail!("a command line without a program") };
    let mut prepared = match leash {
        Leash::Short => std::process::Command::new(program),
        Leash::Long => {
            let mut wrapper = std::process::Command::new("setpriv");
            wrapper.args(["--pdeathsig", "KILL", "--"]).arg(program);
            wrapper
        }
    };
    prepared.args(arguments).envs(command.env.iter().map(|(name, value)| (name, value))).process_group(0);
    prepared.stdin(if command.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
    if let Some(folder) = &command.cwd {
        prepared.current_dir(folder);
    }
    Ok(prepared)
}

/// Leaders of the groups that run.
static LIVE: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Kills every group that runs.
pub fn kill_everything() {
    for pid in lock(&LIVE).iter().filter_map(|pid| Pid::from_raw(*pid)) {
        rustix::process::kill_process_group(pid, Signal::KILL).ok();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_outputs_and_the_exit_arrive_whole() {
        let script = "head -c 300000 /dev/zero | tr '\\0' e >&2; cat; exit 5";
        let outcome = run(&Command::shell(script).stdin("in"), Duration::from_secs(60)).unwrap();
        assert_eq!((outcome.exit, outcome.stdout_text(), outcome.stderr.len()), (Exit::Code(5), "in".into(), 300_000));
    }

    #[test]
    fn a_command_over_its_limit_dies_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("grandchild-went-on");
        let script = format!("(sleep 1; touch {}) & wait", file.display());
        let error = run(&Command::shell(&script), Duration::from_millis(100)).unwrap_err();
        assert!(error.to_string().contains("was killed after"), "{error}");
        wait::pause(Duration::from_millis(1500));
        assert!(!file.exists(), "the grandchild outlived its group");
    }

    #[test]
    fn a_daemon_that_holds_the_pipes_does_not_hold_the_caller() {
        let begin = Instant::now();
        let outcome = run(&Command::shell("setsid sleep 20 & echo up"), Duration::from_secs(15)).unwrap();
        assert_eq!((outcome.exit, outcome.stdout_text()), (Exit::Code(0), "up\n".into()));
        assert!(begin.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_dropped_child_is_gone_with_its_group() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let child = start(&Command::shell("sleep 30 & echo $!; wait"), Log::File(&log)).unwrap();
        let read = || Ok(std::fs::read_to_string(&log)?.trim().parse::<i32>().ok());
        let grandchild =
            wait::until("pid in the log", Duration::from_secs(20), Duration::from_millis(10), read).unwrap();
        drop(child);
        let gone = || Ok((!alive(grandchild)).then_some(()));
        wait::until("end of the grandchild", Duration::from_secs(10), Duration::from_millis(10), gone).unwrap();
    }

    #[test]
    fn a_stopped_child_tells_the_signal_and_then_ignores_more() {
        let child = start(&Command::new("sleep").arg("30"), Log::Inherit).unwrap();
        assert_eq!(child.stop(Duration::from_secs(10)).unwrap(), Exit::Signal(15));
        child.signal(Signal::KILL).unwrap();
        assert_eq!(child.try_wait().unwrap(), Some(Exit::Signal(15)));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&Command::new("/no/such/program"), Duration::from_secs(5)).unwrap_err();
        assert!(format!("{error:#}").starts_with("cannot start `/no/such/program`"), "{error:#}");
    }

    /// Whether a process exists and is no zombie.
    fn alive(pid: i32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'))
    }
}
