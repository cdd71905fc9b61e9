//! One suite: one machine, one program in it, one verdict; or the tests of one program in several machines, side by side.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::closing::{Closing, closing};
use crate::command::{Command, Exit, Stream};
use crate::scratch::Scratch;
use crate::vm::{Vm, VmSpec};

/// What came of a suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Every test passed, and there was at least one.
    Pass,
    /// A test failed.
    Fail,
    /// Nobody knows, for this reason.
    None(String),
}

impl Verdict {
    /// 0, 1 or 2.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Pass => 0,
            Self::Fail => 1,
            Self::None(_) => 2,
        })
    }
}

/// A suite's program and the machine it needs.
#[derive(Debug)]
pub struct Program {
    /// The suite's name, for people and for its folder.
    pub name: String,
    /// The command to run in the machine.
    pub command: Command,
    /// From starting the machine to its power-off.
    pub budget: Duration,
    /// Whether others run at the same time.
    pub side_by_side: bool,
    /// A file of the machine to copy here after a pass.
    pub result: Option<(std::path::PathBuf, std::path::PathBuf)>,
}

/// Boots a machine, runs the program with its output shown as it comes, and judges it. What the machine wrote is
/// removed after a pass and kept otherwise.
pub fn run(program: &Program, machine: impl FnOnce(&Path) -> VmSpec) -> Verdict {
    let scratch = match Scratch::new(&program.name) {
        Ok(scratch) => scratch,
        Err(error) => return conclude(&program.name, Verdict::None(format!("{error:#}"))),
    };
    let verdict = in_machine(program, machine(scratch.path()));
    let verdict = verdict.unwrap_or_else(|error| Verdict::None(format!("{error:#}")));
    let verdict = conclude(&program.name, verdict);
    if verdict != Verdict::Pass {
        match scratch.keep() {
            Ok(path) => eprintln!("testbed: console and logs are kept in {}", path.display()),
            Err(error) => eprintln!("testbed: cannot keep the console: {error:#}"),
        }
    }
    verdict
}

/// The same with several programs, each in a machine of its own, at the same time: what one verdict is of all of them.
pub(super) fn run_side_by_side(programs: &[Program], machine: impl Fn(&Program, &Path) -> VmSpec + Sync) -> Verdict {
    let machine = &machine;
    let verdicts: Vec<Verdict> = std::thread::scope(|scope| {
        let running: Vec<_> = programs
            .iter()
            .map(|program| scope.spawn(move || run(program, |folder| machine(program, folder))))
            .collect();
        let ended = |joined: std::thread::Result<Verdict>| {
            joined.unwrap_or_else(|_| Verdict::None("the one who watched the machine panicked".to_owned()))
        };
        running.into_iter().map(|running| ended(running.join())).collect()
    });
    let worst = |verdict: &&Verdict| match verdict {
        Verdict::Pass => 0,
        Verdict::None(_) => 1,
        // A test that failed is certain, whatever the other machine did.
        Verdict::Fail => 2,
    };
    let nothing = || Verdict::None("there was nothing to run".to_owned());
    verdicts.iter().max_by_key(worst).cloned().unwrap_or_else(nothing)
}

/// Shows what a program writes: at once, or, where another one writes too, in whole lines.
#[derive(Debug)]
struct Shown {
    whole_lines: bool,
    pending: Vec<u8>,
}

impl Drop for Shown {
    /// What a program that was killed had begun to say.
    fn drop(&mut self) {
        self.whole_lines = false;
        self.show(b"");
    }
}

impl Shown {
    fn show(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        let end = match self.whole_lines {
            true => self.pending.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1),
            false => self.pending.len(),
        };
        let mut out = std::io::stdout().lock();
        // A closed standard output is no reason to give up the suite.
        out.write_all(&self.pending[..end]).and_then(|()| out.flush()).ok();
        self.pending.drain(..end);
    }
}

pub(super) fn conclude(name: &str, verdict: Verdict) -> Verdict {
    match &verdict {
        Verdict::Pass => eprintln!("testbed: suite {}: pass", name),
        Verdict::Fail => eprintln!("testbed: suite {}: FAIL", name),
        Verdict::None(reason) => eprintln!("testbed: suite {}: NO VERDICT: {reason}", name),
    }
    verdict
}

fn in_machine(program: &Program, spec: VmSpec) -> Result<Verdict> {
    let begin = Instant::now();
    let mut vm = Vm::boot(spec)?;
    eprintln!("testbed: suite {}: machine up after {:.1} s", program.name, begin.elapsed().as_secs_f32());
    let mut output = Vec::new();
    let mut shown = Shown { whole_lines: program.side_by_side, pending: Vec::new() };
    let ended =
        vm.run_streaming(
            &program.command,
            program.budget.saturating_sub(begin.elapsed()),
            |stream, bytes| match stream {
                Stream::Stdout => {
                    output.extend_from_slice(bytes);
                    shown.show(bytes);
                }
                Stream::Stderr => drop(std::io::stderr().write_all(bytes)),
            },
        );
    drop(shown);
    let verdict = ended.map(|exit| judge(exit, closing(&String::from_utf8_lossy(&output))));
    for finding in vm.findings() {
        eprintln!("testbed: suite {}: console: {}", program.name, finding.line);
    }
    if !matches!(verdict, Ok(Verdict::Pass)) {
        keep_state(&vm);
    }
    if let (Ok(Verdict::Pass), Some((from, to))) = (&verdict, &program.result) {
        let contents = vm.read_file(from, Duration::from_secs(60)).context("cannot fetch the result")?;
        std::fs::create_dir_all(to.parent().context("the result needs a folder")?)?;
        std::fs::write(to, contents).with_context(|| format!("cannot write {}", to.display()))?;
        eprintln!("testbed: suite {}: result in {}", program.name, to.display());
    }
    match verdict {
        Ok(Verdict::Pass) => vm.power_off()?,
        _ => vm.kill(),
    }
    eprintln!(
        "testbed: suite {}: {:.1} s of {} s",
        program.name,
        begin.elapsed().as_secs_f32(),
        program.budget.as_secs()
    );
    verdict
}

/// What a person wants to know of a machine in which something went wrong: stuck tasks, processes, mappings, mounts,
/// and the logs of drivers that still run.
const STATE: &str = "echo w > /proc/sysrq-trigger; dmesg; echo; ps axfww -o pid,ppid,stat,etime,wchan:24,args; echo; \
     dmsetup info -c --noopencount; cat /proc/self/mounts; tail -n +1 /run/driver-*/log";

fn keep_state(vm: &Vm) {
    // A dead machine has no more to say than its console.
    if let Ok(state) = vm.run(&Command::new("sh").args(["-c", STATE]), Duration::from_secs(60)) {
        std::fs::write(vm.spec().work_dir.join("state.log"), state.stdout).ok();
    }
}

pub(super) fn judge(exit: Exit, closing: Option<Closing>) -> Verdict {
    match (exit, closing) {
        (Exit::Code(0), Some(Closing { passed: 1.., failed: 0 })) => Verdict::Pass,
        (Exit::Code(0), Some(Closing { passed: 0, failed: 0 })) => Verdict::None("no test ran".to_owned()),
        (Exit::Code(_), Some(Closing { failed: 1.., .. })) => Verdict::Fail,
        (exit, Some(_)) => Verdict::None(format!("its closing line tells no failure, but it ended with {exit}")),
        (exit, None) => Verdict::None(format!("it ended with {exit} and without a closing line")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_exit_and_a_closing_line_that_agree_make_a_verdict() {
        let line = |passed, failed| Some(Closing { passed, failed });
        assert_eq!(judge(Exit::Code(0), line(3, 0)), Verdict::Pass);
        assert_eq!(judge(Exit::Code(101), line(3, 1)), Verdict::Fail);
        assert_eq!(judge(Exit::Code(0), line(3, 1)), Verdict::Fail);
        for (exit, closing) in [
            (Exit::Code(0), None),
            (Exit::Code(0), line(0, 0)),
            (Exit::Code(101), None),
            (Exit::Code(101), line(3, 0)),
            (Exit::Signal(9), line(3, 0)),
            (Exit::Signal(6), None),
        ] {
            assert!(matches!(judge(exit, closing), Verdict::None(_)), "{exit} {closing:?}");
        }
    }
}
