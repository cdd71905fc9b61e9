//! What the benchmark measured, as a table and as JSON.

use std::fmt;

use anyhow::{Context as _, Result};
use quarry_tests::in_vm::describe;
use serde::Serialize;

/// The samples of one contender.
#[derive(Debug)]
pub struct Measured {
    name: String,
    create: Vec<f64>,
    delete: Vec<f64>,
    create_processes: Vec<usize>,
    delete_processes: Vec<usize>,
}

impl Measured {
    /// None yet.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            create: Vec::new(),
            delete: Vec::new(),
            create_processes: Vec::new(),
            delete_processes: Vec::new(),
        }
    }

    /// One volume's: milliseconds and processes.
    pub fn add(&mut self, create: f64, create_processes: usize, delete: f64, delete_processes: usize) {
        self.create.push(create);
        self.delete.push(delete);
        self.create_processes.push(create_processes);
        self.delete_processes.push(delete_processes);
    }
}

/// The results of one run.
#[derive(Debug, Serialize)]
pub struct Results {
    machine: String,
    rounds: usize,
    rows: Vec<Row>,
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    create: Figures,
    delete: Figures,
}

/// One operation of one contender.
#[derive(Debug, Serialize)]
struct Figures {
    p50_ms: f64,
    p90_ms: f64,
    /// The median, by that of one LVM process that does the same.
    ratio: f64,
    lvm_processes: usize,
}

impl Results {
    /// Sums up. The contenders come in groups that begin with the one they are compared with: `one lvm process`.
    ///
    /// # Errors
    /// Without samples, or where the machine does not tell what it is.
    pub fn of(measured: Vec<Measured>, rounds: usize) -> Result<Self> {
        let mut rows: Vec<Row> = Vec::new();
        let mut base = (f64::NAN, f64::NAN);
        for one in measured {
            let create = percentile(&one.create, 50).context("no samples")?;
            let delete = percentile(&one.delete, 50).context("no samples")?;
            if one.name.starts_with("one lvm process") {
                base = (create, delete);
            }
            rows.push(Row {
                create: figures(&one.create, base.0, &one.create_processes)?,
                delete: figures(&one.delete, base.1, &one.delete_processes)?,
                name: one.name,
            });
        }
        Ok(Self { machine: describe()?, rounds, rows })
    }
}

fn figures(samples: &[f64], base: f64, processes: &[usize]) -> Result<Figures> {
    let p50 = percentile(samples, 50).context("no samples")?;
    let p90 = percentile(samples, 90).context("no samples")?;
    let processes = processes.iter().max().copied().context("no samples")?;
    Ok(Figures { p50_ms: p50, p90_ms: p90, ratio: p50 / base, lvm_processes: processes })
}

fn percentile(samples: &[f64], percent: usize) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied()
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}; {} rounds in turns; ratio: median by that of one lvm process", self.machine, self.rounds)?;
        writeln!(f, "{:<34} {:>36}   {:>36}", "", "create", "delete")?;
        let head = format!("{:>9} {:>9} {:>7} {:>8}", "p50 ms", "p90 ms", "ratio", "lvm runs");
        writeln!(f, "{:<34} {head:>36}   {head:>36}", "")?;
        for row in &self.rows {
            write!(f, "{:<34}", row.name)?;
            for (index, figures) in [&row.create, &row.delete].into_iter().enumerate() {
                let gap = if index == 0 { " " } else { "   " };
                let Figures { p50_ms, p90_ms, ratio, lvm_processes } = figures;
                write!(f, "{gap}{p50_ms:>9.1} {p90_ms:>9.1} {ratio:>7.2} {lvm_processes:>8}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
