//! The driver and LVM on a real kernel.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::build::{self, Profile};
use super::run::run_side_by_side;
use super::{Program, Suite, Verdict, budget, run};
use crate::command::Command;
use crate::process;
use crate::vm::{Disk, VmSpec};

/// Builds the suite and runs it: all of it in two machines side by side, which takes little more than half the time, and a
/// part in one.
///
/// `filter` goes to the test program: names of tests, `--exact`, `--skip NAME` ...
///
/// # Errors
/// If it cannot be built.
pub fn suite(udev: bool, filter: &[String]) -> Result<Verdict> {
    let tests = build::test_program("kernel")?;
    let driver = build::driver(Profile::Debug)?;
    let (name, suite) = if udev { ("kernel-udev", Suite::KernelUdev) } else { ("kernel", Suite::Kernel) };
    let program = |name: String, words: &[String], side_by_side: bool| {
        let command = Command::new(&tests).arg("--test-threads=1").args(words);
        let command = command.env("QUARRY_DRIVER_BIN", &driver).env("RUST_BACKTRACE", "1");
        Program { name, command, budget: budget(suite), side_by_side, result: None }
    };
    if !filter.is_empty() {
        return Ok(run(&program(name.to_owned(), filter, false), |folder| machine(name, udev, folder)));
    }
    let shares = (0..).zip(shares(&all(&tests)?));
    let programs: Vec<Program> =
        shares.map(|(number, names)| program(format!("{name}-{number}"), &names, true)).collect();
    Ok(run_side_by_side(&programs, |program, folder| machine(&program.name, udev, folder)))
}

/// The names of all tests.
fn all(tests: &Path) -> Result<Vec<String>> {
    let list = Command::new(tests).args(["--list", "--format", "terse"]);
    let list = process::run(&list, Duration::from_secs(60))?.success()?.stdout_text();
    Ok(list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

/// Arguments for two test programs that together run all of these. Neighbours are of one kind, and take about as long.
fn shares(names: &[String]) -> [Vec<String>; 2] {
    [0, 1].map(|share| {
        let own = names.iter().skip(share).step_by(2).cloned();
        std::iter::once("--exact".to_owned()).chain(own).collect()
    })
}

/// A machine with six scratch disks, two of them large.
pub(super) fn machine(name: &str, udev: bool, folder: &Path) -> VmSpec {
    let mut spec = VmSpec::new(name, folder);
    spec.udev = udev;
    spec.memory_mib = 3072;
    spec.disks = (0..6).map(|n| Disk::gib(&format!("scratch{n}"), if n < 2 { 16 } else { 4 })).collect();
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_machines_run_every_test_once() {
        let names = ["a::b", "a::c", "d"].map(str::to_owned);
        let [one, two] = shares(&names);
        assert_eq!(
            (one, two),
            (vec!["--exact".into(), "a::b".into(), "d".into()], vec!["--exact".into(), "a::c".into()])
        );
    }
}
