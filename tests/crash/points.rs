//! The driver dies at every one of its own points, in every operation of a volume's life.

use std::collections::BTreeMap;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use quarry_tests::command::Command;
use quarry_tests::process;
use tonic::Code;

use crate::invariant;
use crate::lane::{Fate, Lane};
use crate::operation::{Kind, Operation, Subject};
use crate::orders::{Target, reached, targets};
use crate::report::{Line, Report};

/// What the caller does after the driver has died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// Asks again.
    Insists,
    /// Asks for the contrary.
    GivesUp,
}

/// Deaths, one for each operation of one life.
type Turn = BTreeMap<Operation, Target>;

/// A kind of volume with the operations in which it differs from the others.
#[derive(Debug, Clone, Copy)]
pub struct Course {
    pub kind: Kind,
    pub operations: &'static [Operation],
}

/// Kills the driver at every point of the operations, one life for each death.
pub async fn all(report: &Report, course: Course) -> Result<()> {
    let kind = course.kind;
    let begin = || Lane::new(kind.name.replace('-', ""), kind.thick);
    let mut lane = begin().await?;
    let passed = traced(&mut lane, course).await.context("the life without a death")?;
    let mut lives = 0;
    for caller in [Caller::Insists, Caller::GivesUp] {
        let mut left: BTreeMap<Operation, Vec<Target>> =
            passed.iter().map(|(op, points)| (*op, targets(points))).collect();
        if caller == Caller::GivesUp {
            left.retain(|operation, _| operation.contrary().is_some());
            // What the contrary finds differs by what the commands have done.
            left.values_mut().for_each(|targets| targets.retain(|target| target.point.starts_with("exec.")));
        }
        for (operation, targets) in &mut left {
            let name = format!("{}{caller:?}{}", kind.name, operation.name());
            *targets = report.sample.pick(&name, std::mem::take(targets));
            targets.reverse();
        }
        loop {
            let turn: Turn = left.iter_mut().filter_map(|(op, targets)| Some((*op, targets.pop()?))).collect();
            if turn.is_empty() {
                break;
            }
            lives += 1;
            let name = format!("pvc-{lives}");
            if !life(&mut lane, report, course, &name, &turn, caller).await {
                // Nothing is known of what is left; the rest of the points deserve a sound beginning.
                drop(lane);
                lane = begin().await?;
            }
        }
    }
    Ok(())
}

/// A life without a death: the points that each operation passes.
async fn traced(lane: &mut Lane, course: Course) -> Result<BTreeMap<Operation, Vec<String>>> {
    let mut subject = Subject::new(&lane.scene, course.kind, "pvc-0");
    let mut passed = BTreeMap::new();
    for operation in course.operations.iter().copied() {
        before(lane, &mut subject, course, operation).await?;
        lane.orders.give(None)?;
        let refusals = subject.insist(&lane.scene.csi, operation).await?;
        let points = lane.orders.take_back()?;
        ensure!(refusals.is_empty(), "{} was refused with {refusals:?}", operation.name());
        ensure!(points.len() >= 2, "{} passes no points: is the driver built with them?", operation.name());
        passed.insert(operation, points);
        subject.done(&mut lane.expected, operation)?;
        invariant::check(lane).await.with_context(|| format!("after {}", operation.name()))?;
    }
    Ok(passed)
}

/// What lies between two operations of a life and is not one of them.
async fn before(lane: &mut Lane, subject: &mut Subject, course: Course, operation: Operation) -> Result<()> {
    if operation == Operation::Delete && course.operations.contains(&Operation::StageAgain) {
        subject.insist(&lane.scene.csi, Operation::Unstage).await?;
        subject.done(&mut lane.expected, Operation::Unstage)?;
    }
    Ok(())
}

/// What a creation finds of its thin pool, made so before each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolBefore {
    /// The pool as it is.
    Kept,
    /// None: the creation makes it.
    Absent,
    /// One that is too small: the creation enlarges it.
    TooSmall,
}

impl PoolBefore {
    pub fn prepare(self, lane: &Lane) -> Result<()> {
        match self {
            Self::Kept => Ok(()),
            Self::Absent => lane.remove_pool(),
            Self::TooSmall => lane.shrink_pool(),
        }
    }
}

/// The creation that makes the thin pool first, again and again.
pub async fn first_pool(report: &Report) -> Result<()> {
    creations(report, "first-thin", "create with its pool", PoolBefore::Absent).await
}

/// The creation that enlarges the thin pool first, again and again.
pub async fn growing_pool(report: &Report) -> Result<()> {
    creations(report, "growing-thin", "create with a larger pool", PoolBefore::TooSmall).await
}

async fn creations(report: &Report, name: &'static str, operation: &str, pool: PoolBefore) -> Result<()> {
    let kind = Kind { name, thick: false, block: true };
    let begin = || async {
        let mut lane = Lane::new(name.replace('-', ""), true).await?;
        lane.spare_may_be_left = true;
        Ok::<_, anyhow::Error>(lane)
    };
    let mut lane = begin().await?;
    let mut left: Option<Vec<Target>> = None;
    let mut lives = 0;
    loop {
        let target = match &mut left {
            None => None,
            Some(targets) => match targets.pop() {
                None => return Ok(()),
                target => target,
            },
        };
        pool.prepare(&lane)?;
        let mut subject = Subject::new(&lane.scene, kind, &format!("pvc-{lives}"));
        lives += 1;
        if left.is_none() {
            lane.orders.give(None)?;
        }
        let mut outcome = one(&mut lane, &mut subject, Operation::Create, target.as_ref(), Caller::Insists).await;
        if left.is_none() {
            let mut targets = report.sample.pick(KIND.name, targets(&lane.orders.take_back()?));
            targets.reverse();
            left = Some(targets);
        }
        if outcome.is_ok()
            && let Err(error) = subject.insist(&lane.scene.csi, Operation::Delete).await
        {
            outcome = Err(error);
        }
        subject.done(&mut lane.expected, Operation::Delete)?;
        let failed = outcome.is_err();
        if let Some(target) = target {
            report.note(name, operation, &target.to_string(), outcome);
        } else {
            outcome.context("the creation without a death")?;
        }
        if failed {
            drop(lane);
            lane = begin().await?;
        }
    }
}

/// The start of the driver, with a frozen thin pool to repair.
pub async fn start(report: &Report) -> Result<()> {
    let mut lane = Lane::new("start".to_owned(), false).await?;
    let freeze = |lane: &mut Lane| -> Result<()> {
        lane.scene.driver.crash()?;
        let pool = format!("{}-quarry--pool-tpool", lane.scene.group.name());
        let command = Command::new("dmsetup").args(["suspend", "--noudevsync", &pool]);
        process::run(&command, Duration::from_secs(60))?.success().map(drop)
    };
    freeze(&mut lane)?;
    lane.orders.give(None)?;
    lane.restart().await?;
    let passed = lane.orders.take_back()?;
    invariant::check(&lane).await.context("after the start without a death")?;
    for target in report.sample.pick("start", targets(&passed)) {
        freeze(&mut lane)?;
        lane.orders.give(Some(&target))?;
        // It may die before anybody can connect, or later.
        lane.scene.driver.launch().ok();
        lane.scene.driver.wait_for_end().ok();
        let died = reached(&lane.orders.take_back()?, &target);
        lane.restart().await?;
        let outcome = invariant::check(&lane).await;
        let outcome = outcome.map(|()| if died { "started again" } else { "not passed this time" }.to_owned());
        let failed = outcome.is_err();
        report.note("any", "start", &target.to_string(), outcome);
        if failed {
            drop(lane);
            lane = Lane::new("start".to_owned(), false).await?;
        }
    }
    Ok(())
}

/// One life with its deaths. False if something is wrong after one of them.
async fn life(lane: &mut Lane, report: &Report, course: Course, name: &str, turn: &Turn, caller: Caller) -> bool {
    let kind = course.kind;
    let mut subject = Subject::new(&lane.scene, kind, name);
    for operation in course.operations.iter().copied() {
        let target = turn.get(&operation);
        let outcome = match before(lane, &mut subject, course, operation).await {
            Ok(()) => one(lane, &mut subject, operation, target, caller).await,
            Err(error) => Err(error),
        };
        let point = target.map_or_else(|| "(nowhere)".to_owned(), Target::to_string);
        let failed = outcome.is_err();
        if target.is_some() || failed {
            let operation = match (caller, operation.contrary()) {
                (Caller::GivesUp, Some(contrary)) if target.is_some() => {
                    format!("{}, then {}", operation.name(), contrary.name())
                }
                _ => operation.name().to_owned(),
            };
            let outcome = outcome.map_err(|error| format!("{error:#}"));
            report.add(Line { job: kind.name.to_owned(), operation, point, outcome });
        }
        if failed {
            eprintln!("---- log of the driver of {} ----\n{}---- end ----", kind.name, lane.scene.driver.log_tail(60));
            return false;
        }
    }
    true
}

/// One operation, with its death if there is to be one, to its end.
async fn one(
    lane: &mut Lane,
    subject: &mut Subject,
    operation: Operation,
    target: Option<&Target>,
    caller: Caller,
) -> Result<String> {
    let Some(target) = target else {
        subject.insist(&lane.scene.csi, operation).await?;
        subject.done(&mut lane.expected, operation)?;
        return Ok(String::new());
    };
    let fate = lane.strike(subject, operation, target).await?;
    let mut said = String::new();
    if let (Fate::Died, Caller::GivesUp, Some(contrary)) = (&fate, caller, operation.contrary()) {
        said = summary(contrary.name(), &subject.insist(&lane.scene.csi, contrary).await?);
        subject.done(&mut lane.expected, contrary)?;
        invariant::check(lane).await.with_context(|| format!("after {}", contrary.name()))?;
        subject.insist(&lane.scene.csi, operation).await?;
    }
    if let (Fate::Died, Caller::Insists) = (&fate, caller) {
        said = summary("asked again", &subject.insist(&lane.scene.csi, operation).await?);
    }
    subject.done(&mut lane.expected, operation)?;
    if operation.changes_lvm() {
        invariant::check(lane).await?;
    } else {
        invariant::check_mounts(lane).await?;
    }
    match fate {
        Fate::Died => Ok(said),
        // What notices changes in the background may have been faster.
        Fate::Passed => Ok("not passed this time".to_owned()),
    }
}

/// What a caller did, and the refusals that it met.
pub fn summary(what: &str, refusals: &[Code]) -> String {
    match refusals {
        [] => what.to_owned(),
        codes => format!("{what} {} times: {codes:?}", codes.len() + 1),
    }
}
