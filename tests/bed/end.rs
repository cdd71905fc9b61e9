//! Nothing outlives the test bed, however it ends.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use quarry_tests::command::{Command, Exit};
use quarry_tests::process::{self, Child, Log};
use quarry_tests::wait;
use rustix::process::Signal;

use super::SOON;

/// A test bed that runs a machine, and the machine's process.
fn testbed_with_machine(folder: &Path) -> (Child, u32) {
    let command = Command::new(env!("CARGO_BIN_EXE_testbed")).args(["vm", "--", "sleep", "1000"]);
    let command = command.env("CARGO_TARGET_DIR", folder.display().to_string());
    let log = folder.join("log");
    let testbed = process::start(&command, Log::File(&log)).unwrap();
    let up = || Ok(fs::read_to_string(&log)?.contains("machine up").then_some(()));
    wait::until("the machine", 2 * SOON, Duration::from_millis(100), up)
        .unwrap_or_else(|error| panic!("{error:#}\n{}", fs::read_to_string(&log).unwrap()));
    let machines: Vec<u32> =
        children(testbed.pid()).into_iter().filter(|pid| name(*pid) == "qemu-system-x86").collect();
    assert_eq!(machines.len(), 1, "{machines:?}");
    (testbed, machines[0])
}

fn children(of: i32) -> BTreeSet<u32> {
    let threads = fs::read_dir(format!("/proc/{of}/task")).unwrap().flatten();
    let lists = threads.map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    lists.flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>()).collect()
}

fn name(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim().chars().take(15).collect()
}

/// Waits until a process is gone, or dead and not yet reaped by whoever inherited it.
fn assert_gone(pid: u32) {
    let gone = || Ok(fs::read(format!("/proc/{pid}/cmdline")).map_or(true, |line| line.is_empty()).then_some(()));
    wait::until("end of the machine", Duration::from_secs(20), Duration::from_millis(50), gone).unwrap();
}

#[test]
fn a_killed_test_bed_takes_its_machine_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let (mut testbed, machine) = testbed_with_machine(folder.path());
    assert_eq!(testbed.crash().unwrap(), Exit::Signal(9));
    assert_gone(machine);
}

#[test]
fn a_test_bed_told_to_end_takes_its_machine_and_its_scratch_with_it() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let folder = tempfile::tempdir().unwrap();
        let (testbed, machine) = testbed_with_machine(folder.path());
        let scratch = folder.path().join("testbed");
        assert_eq!(fs::read_dir(&scratch).unwrap().count(), 1);
        let pid = rustix::process::Pid::from_raw(testbed.pid()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
        assert_eq!(testbed.wait(Duration::from_secs(30)).unwrap(), Exit::Code(code));
        assert_gone(machine);
        assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0, "the scratch folder is left behind");
    }
}
