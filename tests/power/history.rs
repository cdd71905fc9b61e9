//! What was asked of the driver and what it acknowledged, with marks in both logs.
//!
//! Why a mark tells the truth: at a reply the driver and every command that it started are frozen, before anything else
//! happens, then both logs get their mark, then they go on. Between reply and mark nobody flushes: not the driver, not
//! LVM, not the filesystem of the state folder, whose commits by a timer are switched off. Only a thin pool's kernel
//! thread may, for changes of its own metadata; so not every lost flush shows at a thin volume, but every one at a thick
//! volume that is made alone. And because nobody runs, the two marks are of one moment.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quarry_tests::in_vm::DriverUnderTest;
use quarry_tests::wait;

use crate::layers::Layer;

/// The cgroup that is frozen.
const CGROUP: &str = "/sys/fs/cgroup/power";

/// What one request, or the pod's own work on a volume, does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Create,
    Stage,
    /// The pod has written its file and synchronised it.
    Write,
    Unstage,
    Delete,
}

/// A request and when it was answered.
#[derive(Debug, Clone)]
pub struct Step {
    pub volume: &'static str,
    pub act: Act,
    /// How many ticks there were before it was sent.
    pub begun: usize,
    /// The tick at its reply.
    pub replied: Option<usize>,
}

/// All steps, in the order in which they were sent, and the number of ticks. Tick `n` is the mark `t<n>` in both logs.
#[derive(Debug, Default, Clone)]
pub struct History {
    pub steps: Vec<Step>,
    pub ticks: usize,
}

impl History {
    /// The ticks at replies.
    pub fn replies(&self) -> impl Iterator<Item = usize> {
        self.steps.iter().filter_map(|step| step.replied)
    }

    /// The mark of a tick.
    pub fn mark(tick: usize) -> String {
        format!("t{tick}")
    }
}

/// Writes the history.
pub struct Recorder<'a> {
    layers: [&'a Layer; 2],
    history: Mutex<History>,
    /// One tick at a time.
    turn: Mutex<()>,
    done: AtomicBool,
}

impl<'a> Recorder<'a> {
    /// Takes the driver, and so all that it starts, into a group that can be frozen.
    pub fn new(driver: &DriverUnderTest, pv: &'a Layer, state: &'a Layer) -> Self {
        fs::create_dir_all(CGROUP).unwrap();
        fs::write(Path::new(CGROUP).join("cgroup.procs"), driver.pid().unwrap().to_string()).unwrap();
        Self { layers: [pv, state], history: Mutex::default(), turn: Mutex::default(), done: AtomicBool::new(false) }
    }

    /// Marks this moment.
    pub fn tick(&self) -> usize {
        let _turn = self.turn.lock().unwrap();
        freeze(true);
        let tick = self.history.lock().unwrap().ticks;
        std::thread::scope(|scope| {
            for layer in self.layers {
                scope.spawn(move || layer.mark(&History::mark(tick)));
            }
        });
        self.history.lock().unwrap().ticks += 1;
        freeze(false);
        tick
    }

    /// Ticks until the work is done: the moments between replies. A frozen driver does no work, so it is left alone
    /// several times as long as a tick takes.
    pub fn tick_on(&self) {
        while !self.done.load(Ordering::Relaxed) {
            let begin = Instant::now();
            self.tick();
            wait::pause(begin.elapsed() * 4);
        }
    }

    /// A request, or a pod's work, and the mark at its reply.
    pub async fn step(&self, volume: &'static str, act: Act, work: impl Future<Output = ()>) {
        let place = {
            let mut history = self.history.lock().unwrap();
            let begun = history.ticks;
            history.steps.push(Step { volume, act, begun, replied: None });
            history.steps.len() - 1
        };
        work.await;
        // Not on another thread: nothing may come in between.
        let tick = tokio::task::block_in_place(|| self.tick());
        println!("power: t{tick}: {act:?} {volume}");
        self.history.lock().unwrap().steps[place].replied = Some(tick);
    }

    /// Ends the ticking when it is dropped.
    pub fn done_when_dropped(&self) -> Done<'_> {
        Done(&self.done)
    }

    pub fn history(self) -> History {
        self.history.into_inner().unwrap()
    }
}

/// The work is going on as long as this lives.
pub struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn freeze(frozen: bool) {
    let (file, wanted) = (Path::new(CGROUP).join("cgroup.freeze"), u8::from(frozen));
    fs::write(file, wanted.to_string()).unwrap();
    let events = Path::new(CGROUP).join("cgroup.events");
    let is = || Ok(fs::read_to_string(&events)?.contains(&format!("frozen {wanted}")).then_some(()));
    wait::until("the freezing of the driver", Duration::from_secs(60), Duration::from_millis(1), is).unwrap();
}
