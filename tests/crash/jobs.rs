//! What there is to do, and several volume groups at it at once: an emulated machine mostly waits.

use std::sync::Mutex;

use anyhow::{Context as _, Result};

use quarry_tests::sample::Sample;

use crate::operation::{Kind, Operation};
use crate::points::Course;
use crate::report::Report;
use crate::{lvm_deaths, points, random};

/// How many volume groups at once.
const LANES: usize = 3;

/// Kinds of volumes, each with the operations in which it differs from those before it.
const COURSES: [Course; 3] = [
    Course { kind: Kind { name: "thin-filesystem", thick: false, block: false }, operations: &Operation::ALL },
    Course {
        kind: Kind { name: "thick-block", thick: true, block: true },
        operations: &[
            Operation::Create,
            Operation::Stage,
            Operation::Publish,
            Operation::Unpublish,
            Operation::Unstage,
            Operation::Delete,
        ],
    },
    Course {
        kind: Kind { name: "thick-filesystem", thick: true, block: false },
        operations: &[Operation::Create, Operation::Delete],
    },
];

type Work = Box<dyn FnOnce(&Report) -> Result<()> + Send>;

struct Job {
    name: String,
    work: Work,
}

/// Does all of it whose name has one of the filter's words, with this part of the deaths.
pub fn run(filter: &[String], sample: Sample) -> Report {
    let report = Report::of(sample);
    let mut points: Vec<Job> = COURSES
        .into_iter()
        .map(|course| job(format!("points {}", course.kind.name), move |report| block_on(points::all(report, course))))
        .collect();
    points.push(job("points first pool".to_owned(), |report| block_on(points::first_pool(report))));
    points.push(job("points growing pool".to_owned(), |report| block_on(points::growing_pool(report))));
    points.push(job("points start".to_owned(), |report| block_on(points::start(report))));
    at_once(&report, points, filter);

    let deaths = lvm_deaths::ALL
        .map(|deaths| job(deaths.name.to_owned(), move |report| block_on(lvm_deaths::all(report, deaths))));
    let deaths = wanted(deaths.into(), filter);
    if !deaths.is_empty() {
        match lvm_deaths::demand_strace().and_then(|()| lvm_deaths::Wrapper::install()) {
            Ok(_wrapper) => at_once(&report, deaths, filter),
            Err(error) => report.note("lvm", "all", "-", Err(error)),
        }
    }
    at_once(&report, vec![job("random".to_owned(), |report| block_on(random::all(report)))], filter);
    report
}

fn job(name: String, work: impl FnOnce(&Report) -> Result<()> + Send + 'static) -> Job {
    Job { name, work: Box::new(work) }
}

fn wanted(mut jobs: Vec<Job>, filter: &[String]) -> Vec<Job> {
    jobs.retain(|job| filter.is_empty() || filter.iter().any(|word| job.name.contains(word.as_str())));
    jobs
}

/// Several threads: a caller that waits for a disk must not hold up the others.
fn block_on(work: impl Future<Output = Result<()>>) -> Result<()> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_all().build().context("no runtime")?.block_on(work)
}

fn at_once(report: &Report, jobs: Vec<Job>, filter: &[String]) {
    let mut jobs = wanted(jobs, filter);
    jobs.reverse();
    let queue = Mutex::new(jobs);
    let next = || queue.lock().ok().and_then(|mut jobs| jobs.pop());
    std::thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                while let Some(job) = next() {
                    let Job { name, work } = job;
                    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(report)));
                    let outcome = outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("panicked")));
                    report.note(&name, "all", "-", outcome.map(|()| "done".to_owned()));
                }
            });
        }
    });
}
