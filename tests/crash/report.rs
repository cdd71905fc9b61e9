//! What came of every point: a line as it comes, and all of them as a table at the end.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::Result;

use quarry_tests::sample::Sample;

/// What came of one death.
#[derive(Debug, Clone)]
pub struct Line {
    /// Which kind of volume, or of test.
    pub job: String,
    /// What was asked of the driver.
    pub operation: String,
    /// Where it died, and who.
    pub point: String,
    /// What was needed to set it right; or what is wrong.
    pub outcome: Result<String, String>,
}

/// All lines, and of which deaths they tell.
#[derive(Debug)]
pub struct Report {
    pub sample: Sample,
    lines: Mutex<Vec<Line>>,
    begin: Instant,
}

impl Report {
    /// One without lines.
    pub fn of(sample: Sample) -> Self {
        Self { sample, lines: Mutex::default(), begin: Instant::now() }
    }

    /// Adds a line.
    pub fn add(&self, line: Line) {
        let word = if line.outcome.is_ok() { "ok  " } else { "FAIL" };
        let text = line.outcome.as_ref().map_or_else(String::as_str, String::as_str);
        let seconds = self.begin.elapsed().as_secs();
        println!("{seconds:>5} s {word} {} {} at {}: {text}", line.job, line.operation, line.point);
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    /// Adds the outcome of a whole test.
    pub fn note(&self, job: &str, operation: &str, point: &str, outcome: Result<String>) {
        let outcome = outcome.map_err(|error| format!("{error:#}"));
        self.add(Line { job: job.to_owned(), operation: operation.to_owned(), point: point.to_owned(), outcome });
    }

    /// How many lines tell a failure.
    pub fn failed(&self) -> usize {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().filter(|line| line.outcome.is_err()).count()
    }

    /// Prints the table and the closing line.
    pub fn print(&self) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone();
        lines.sort_by(|a, b| (&a.job, &a.operation).cmp(&(&b.job, &b.operation)));
        let width = |of: fn(&Line) -> &str| lines.iter().map(|line| of(line).len()).max().unwrap_or_default();
        let (job, operation, point) =
            (width(|line| &line.job), width(|line| &line.operation), width(|line| &line.point));
        println!("\n{:<job$}  {:<operation$}  {:<point$}  outcome", "volume", "operation", "died at");
        for line in &lines {
            let outcome = match &line.outcome {
                Ok(text) => text.clone(),
                Err(text) => format!("FAILED: {text}"),
            };
            println!("{:<job$}  {:<operation$}  {:<point$}  {outcome}", line.job, line.operation, line.point);
        }
        let failed = lines.iter().filter(|line| line.outcome.is_err()).count();
        // The test bed reads the last line.
        println!("\ntried: {}\n{} passed, {failed} failed", self.sample, lines.len() - failed);
    }
}
