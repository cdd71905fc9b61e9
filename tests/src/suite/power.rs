//! Power cuts on real LVM.

use anyhow::Result;

use super::build::{self, Profile};
use super::{Program, Suite, Verdict, budget, run};
use crate::command::Command;
use crate::vm::{Disk, VmSpec};

/// The disks, in the order of `/dev/vda` on: the names are serial numbers, by which the suite finds them.
const DISKS: [(&str, u64); 8] = [
    ("scratch-pv", 448),
    ("scratch-pv-log", 8192),
    ("scratch-pv-replay", 448),
    ("scratch-pv-after", 1024),
    ("scratch-state", 128),
    ("scratch-state-log", 2048),
    ("scratch-state-replay", 128),
    ("scratch-state-after", 512),
];

/// The environment variable with the seed of a run.
const SEED: &str = "QUARRY_POWER_SEED";

/// Builds the suite and runs it in one machine.
///
/// # Errors
/// If it cannot be built.
pub fn suite(filter: &[String]) -> Result<Verdict> {
    let tests = build::test_program("power")?;
    let driver = build::driver(Profile::Debug)?;
    let command = Command::new(tests).arg("--test-threads=1").arg("--nocapture").args(filter);
    let mut command = command.env("QUARRY_DRIVER_BIN", driver);
    // Repeats a run's choice of moments.
    command.env.extend(std::env::var(SEED).ok().map(|seed| (SEED.to_owned(), seed)));
    let program =
        Program { name: "power".to_owned(), command, budget: budget(Suite::Power), side_by_side: false, result: None };
    Ok(run(&program, |folder| {
        let mut spec = VmSpec::new("power", folder);
        spec.memory_mib = 3072;
        spec.disks = DISKS.iter().map(|(name, mib)| Disk::mib(name, *mib)).collect();
        spec
    }))
}
