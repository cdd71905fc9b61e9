//! Commands in a machine, its disks over a reboot, and what a failing kernel looks like.

use std::time::{Duration, Instant};

use quarry_tests::command::{Command, Exit, Stream};
use quarry_tests::vm::{Disk, Network, Severity, Vm, VmSpec};

use super::SOON;

fn spec(folder: &tempfile::TempDir) -> VmSpec {
    let mut spec = VmSpec::new("bed", folder.path());
    spec.disks = vec![Disk::gib("scratch0", 1), Disk::gib("state", 1)];
    spec
}

/// Runs a script that must succeed and gives its output.
fn output(vm: &Vm, script: &str) -> String {
    vm.run(&Command::shell(script), SOON).unwrap().success().unwrap().stdout_text()
}

#[test]
fn commands_run_at_once_with_their_own_input_output_and_end() {
    let folder = tempfile::tempdir().unwrap();
    let mut vm = Vm::boot(spec(&folder)).unwrap();

    // Exits, signals and both outputs are told apart.
    let outcome = vm.run(&Command::shell("echo out; echo err >&2; exit 7"), SOON).unwrap();
    let told = (outcome.exit, outcome.stdout_text(), outcome.stderr_text());
    assert_eq!(told, (Exit::Code(7), "out\n".into(), "err\n".into()));
    assert_eq!(vm.run(&Command::shell("kill -9 $$"), SOON).unwrap().exit, Exit::Signal(9));
    let error = vm.run(&Command::new("/no/such/program"), SOON).unwrap_err();
    assert!(format!("{error:#}").contains("cannot start `/no/such/program`"), "{error:#}");

    // Environment and folder arrive; so does more than a megabyte of input, and comes back.
    let command = Command::shell("echo $A; pwd").env("A", "b c").cwd("/proc");
    assert_eq!(vm.run(&command, SOON).unwrap().stdout_text(), "b c\n/proc\n");
    let bytes: Vec<u8> = (0..1_500_000_u32).map(|n| (n % 251) as u8).collect();
    assert_eq!(vm.run(&Command::new("cat").stdin(bytes.clone()), SOON).unwrap().stdout, bytes);
    vm.write_file("/run/deep/er/file", bytes.clone(), SOON).unwrap();
    assert_eq!(vm.read_file("/run/deep/er/file", SOON).unwrap(), bytes);

    // Four commands wait for one another: only all at once can they end.
    let waits =
        |n: usize| format!("mkfifo /run/f{n} 2>/dev/null || true; echo {n} > /run/f{n} & cat /run/f{}", (n + 1) % 4);
    output(&vm, "for n in 0 1 2 3; do mkfifo /run/f$n; done");
    let mut running: Vec<_> = (0..4).map(|n| vm.spawn(&Command::shell(&waits(n))).unwrap()).collect();
    for (n, command) in running.iter_mut().enumerate() {
        let mut said = Vec::new();
        let exit = command.follow(SOON, |_, bytes| said.extend_from_slice(bytes)).unwrap();
        assert_eq!((exit, String::from_utf8(said).unwrap()), (Exit::Code(0), format!("{}\n", (n + 1) % 4)));
    }

    // One that is killed tells so; one over its limit has no verdict, and is gone.
    let mut sleeper = vm.spawn(&Command::new("sleep").arg("1000")).unwrap();
    assert_eq!(sleeper.try_wait().unwrap(), None);
    sleeper.kill().unwrap();
    assert_eq!(sleeper.follow(SOON, |_, _| ()).unwrap(), Exit::Signal(9));
    let error = vm.run(&Command::shell("exec sleep 2000"), Duration::from_secs(1)).unwrap_err();
    assert!(error.to_string().contains("had not ended after 1 s"), "{error}");
    assert_eq!(output(&vm, "sleep 1; pgrep -fc '^sleep 2000' || true"), "0\n");

    // Output comes while the command runs.
    let mut first = None;
    let begin = Instant::now();
    let slow = Command::shell("echo early; sleep 4");
    vm.run_streaming(&slow, SOON, |stream, _| _ = first.get_or_insert((stream, begin.elapsed()))).unwrap();
    let (stream, at) = first.unwrap();
    assert_eq!(stream, Stream::Stdout);
    assert!(begin.elapsed() - at > Duration::from_secs(3), "the first output came only after {at:?}");

    // What a node needs of its machine.
    let controllers = output(&vm, "cat /sys/fs/cgroup/cgroup.subtree_control");
    assert!(
        ["cpu", "io", "memory", "pids"].iter().all(|c| controllers.split_whitespace().any(|w| w == *c)),
        "{controllers}"
    );
    assert_eq!(output(&vm, "cat /sys/block/vdb/serial; cat /proc/sys/kernel/hostname"), "statebed\n");
    vm.power_off().unwrap();
    assert!(vm.run(&Command::new("true"), SOON).unwrap_err().to_string().contains("is off"));
}

#[test]
fn disks_keep_their_state_over_power_off_and_power_cut() {
    let folder = tempfile::tempdir().unwrap();
    let mut vm = Vm::boot(VmSpec { udev: true, network: Network::User, ..spec(&folder) }).unwrap();
    output(&vm, "mkfs.ext4 -q /dev/vdb; mkdir /run/state; mount /dev/vdb /run/state; echo one > /run/state/file");
    assert!(output(&vm, "ls -l /dev/disk/by-id").contains("virtio-scratch0"), "udevd makes its links");
    assert!(output(&vm, "ip -brief address").contains("10.0.2.15/24"));
    vm.power_off().unwrap();

    vm.boot_again().unwrap();
    assert_eq!(output(&vm, "mkdir /run/state; mount /dev/vdb /run/state; cat /run/state/file"), "one\n");
    let clean = output(&vm, "dmesg");
    assert!(!clean.contains("recovery complete"), "power-off left the filesystem unclean");
    output(&vm, "echo two > /run/state/file; sync; echo three > /run/state/never-synced");
    vm.kill();

    vm.boot_again().unwrap();
    assert_eq!(output(&vm, "mkdir /run/state; mount /dev/vdb /run/state; cat /run/state/file"), "two\n");
    let recovered = output(&vm, "dmesg");
    assert!(recovered.contains("recovery complete"), "a power cut leaves a journal to replay");
    let consoles = [1, 2, 3].map(|n| folder.path().join(format!("console-{n}.log")).exists());
    assert_eq!(consoles, [true; 3], "each boot has its console");
}

#[test]
fn a_kernel_that_fails_is_no_verdict() {
    let folder = tempfile::tempdir().unwrap();
    let vm = Vm::boot(spec(&folder)).unwrap();
    let mut waiting = vm.spawn(&Command::new("sleep").arg("1000")).unwrap();
    let begin = Instant::now();
    let error = vm.run(&Command::shell("echo c > /proc/sysrq-trigger; sleep 1000"), SOON).unwrap_err().to_string();
    assert!(error.contains("Kernel panic") || error.contains("is gone"), "{error}");
    assert!(waiting.follow(SOON, |_, _| ()).is_err(), "every command of a dead machine ends");
    assert!(begin.elapsed() < Duration::from_secs(60), "a dead machine is noticed at once");
    assert!(vm.findings().iter().any(|finding| finding.severity == Severity::Fatal));
}

#[test]
fn a_boot_with_something_wrong_is_an_error_that_says_what() {
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = spec(&folder);
    wrong.modules.push("no-such-module".to_owned());
    wrong.setup = Some(Command::shell("echo broken setup >&2; exit 3"));
    let error = format!("{:#}", Vm::boot(wrong).unwrap_err());
    assert!(error.contains("no-such-module") && error.contains("broken setup"), "{error}");
}
