//! The driver is killed at random times, alone or with what it runs, while several callers make, use and delete
//! volumes; afterwards nothing is lost, left over or doubled.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use quarry_tests::in_vm::Csi;

use crate::invariant;
use crate::lane::{Expected, Lane};
use crate::operation::{Kind, Operation, Subject};
use crate::report::Report;

/// For how long, in seconds, by this environment variable.
const SECONDS: &str = "QUARRY_CRASH_SECONDS";
const DEFAULT_SECONDS: u64 = 120;
/// How long a caller asks for one thing: under constant deaths much is begun again.
const PATIENCE: Duration = Duration::from_secs(600);

/// One caller each.
const KINDS: [Kind; 4] = [
    Kind { name: "thin-filesystem", thick: false, block: false },
    Kind { name: "thin-block", thick: false, block: true },
    Kind { name: "thick-filesystem", thick: true, block: false },
    Kind { name: "thick-block", thick: true, block: true },
];

pub async fn all(report: &Report) -> Result<()> {
    let seconds = match std::env::var(SECONDS) {
        Ok(text) => text.parse().with_context(|| format!("{SECONDS} is {text:?}, should be a number of seconds"))?,
        Err(_) => DEFAULT_SECONDS,
    };
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let mut random = Random(u64::from(since.subsec_nanos()) | 1);
    println!("random deaths: {seconds} s, seed {}", random.0);
    let mut lane = Lane::new("random".to_owned(), false).await?;
    let (over, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut callers = Vec::new();
    for (number, kind) in KINDS.into_iter().enumerate() {
        let subjects: Vec<Subject> = (0..10 + seconds / 2)
            .map(|life| Subject::new(&lane.scene, kind, &format!("pvc-{number}-{life}")))
            .collect();
        let (socket, over, done) = (lane.scene.driver.socket(), Arc::clone(&over), Arc::clone(&done));
        callers.push(tokio::spawn(async move { caller(&socket, subjects, &over, &done).await }));
    }

    let (begin, mut deaths) = (Instant::now(), [0, 0]);
    while begin.elapsed() < Duration::from_secs(seconds) && !callers.iter().any(tokio::task::JoinHandle::is_finished) {
        // From the middle of the start to a few requests later.
        tokio::time::sleep(Duration::from_millis(200 + random.below(4000))).await;
        let with_children = random.below(2) == 1;
        deaths[usize::from(with_children)] += 1;
        // Blocking, while the callers go on.
        tokio::task::block_in_place(|| {
            let driver = &mut lane.scene.driver;
            if with_children { driver.kill() } else { driver.crash() }?;
            driver.launch()
        })?;
    }
    over.store(true, Ordering::Relaxed);
    lane.answers().await?;
    let mut left = Vec::new();
    for caller in callers {
        let (subject, expected) = caller.await??;
        lane.expected.volumes.extend(expected.volumes);
        lane.expected.mounts.extend(expected.mounts);
        left.extend(subject);
    }
    let counts = format!(
        "{} deaths alone, {} with its commands; {} requests done",
        deaths[0],
        deaths[1],
        done.load(Ordering::Relaxed)
    );
    report.note("random", "everything at once", "any time", invariant::check(&lane).await.map(|()| counts));

    // What is left can be ended like any other.
    for (mut subject, from) in left {
        for operation in Operation::ALL.into_iter().skip_while(|operation| *operation != from) {
            subject.insist(&lane.scene.csi, operation).await?;
            subject.done(&mut lane.expected, operation)?;
            if operation == Operation::StageAgain {
                subject.insist(&lane.scene.csi, Operation::Unstage).await?;
                subject.done(&mut lane.expected, Operation::Unstage)?;
            }
        }
    }
    let outcome = invariant::check(&lane).await.map(|()| "all volumes ended".to_owned());
    report.note("random", "the rest", "any time", outcome);
    Ok(())
}

/// What is left of a caller's last volume: the volume with the operation that comes next.
type Rest = (Option<(Subject, Operation)>, Expected);

/// Leads one volume after the other through its life, until it is over.
async fn caller(socket: &Path, subjects: Vec<Subject>, over: &AtomicBool, done: &AtomicU64) -> Result<Rest> {
    let mut expected = Expected::default();
    for mut subject in subjects {
        for operation in Operation::ALL {
            if over.load(Ordering::Relaxed) {
                let rest = (operation != Operation::Create).then_some((subject, operation));
                return Ok((rest, expected));
            }
            if operation == Operation::Delete {
                insist(socket, &subject, Operation::Unstage).await?;
                subject.done(&mut expected, Operation::Unstage)?;
            }
            insist(socket, &subject, operation).await?;
            subject.done(&mut expected, operation).with_context(|| subject.name.clone())?;
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
    bail!("the caller has ended all of its volumes")
}

/// Asks until it is done, connecting anew each time: the driver comes and goes.
async fn insist(socket: &Path, subject: &Subject, operation: Operation) -> Result<()> {
    let begin = Instant::now();
    let mut last = String::new();
    while begin.elapsed() < PATIENCE {
        if let Ok(csi) = Csi::connect(socket).await {
            match subject.ask(&csi, operation).await {
                Ok(()) => return Ok(()),
                Err(status) => last = format!("{:?}: {}", status.code(), status.message()),
            }
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    bail!("{} of {} was never done, last {last}", operation.name(), subject.name)
}

/// Numbers that need not be good, only told: Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
