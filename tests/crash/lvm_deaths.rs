//! LVM's commands die in mid-command, before each call that changes device-mapper's state: alone, or with the driver,
//! as at a pod's end. And they outlive a driver that died alone.
//!
//! A wrapper in place of lvm(8) runs the real one under strace(1) where a test orders it: strace numbers its calls and
//! kills it before the ordered one is done.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use quarry_tests::command::Command;
use quarry_tests::in_vm::lvm;
use quarry_tests::process;

use crate::invariant;
use crate::lane::Lane;
use crate::operation::{Kind, Operation, Subject};
use crate::points::{PoolBefore, summary};
use crate::report::{Line, Report};

const LVM: &str = "/usr/sbin/lvm";
const FOLDER: &str = "/run/crash-lvm";

/// The order lies beside the driver's LVM configuration: so it means that driver's commands alone. It is taken by the
/// first command line that has all of its words.
const WRAPPER: &str = r#"#!/bin/sh
real=/run/crash-lvm/lvm
order=$LVM_SYSTEM_DIR/../lvm-order
[ -n "$LVM_SYSTEM_DIR" ] && [ -e "$order" ] || exec $real "$@"
read mode nth trace first second < "$order"
case " $* " in *" $first "*" $second "*) ;; *) exec $real "$@" ;; esac
mv "$order" "$order.taken"
case $mode in
    trace) exec strace -o "$trace" -e trace=ioctl $real "$@" ;;
    alone) exec strace -o "$trace" -e trace=ioctl -e "inject=ioctl:signal=KILL:when=$nth" $real "$@" ;;
    # A session of its own: the kernel lets stopped processes go on whose group the driver's death orphans.
    stop) exec setsid --wait strace -o "$trace" -e trace=ioctl -e "inject=ioctl:signal=STOP:when=$nth" $real "$@" ;;
    both)
        strace -o "$trace" -e trace=ioctl -e "inject=ioctl:signal=KILL:when=$nth" $real "$@"
        kill -KILL $PPID
        ;;
esac
"#;

/// The wrapper in lvm's place, until it is dropped.
#[derive(Debug)]
pub struct Wrapper;

impl Wrapper {
    pub fn install() -> Result<Self> {
        fs::create_dir_all(FOLDER)?;
        let wrapper = Path::new(FOLDER).join("wrapper");
        fs::copy(LVM, Path::new(FOLDER).join("lvm")).context("cannot copy lvm")?;
        fs::write(&wrapper, WRAPPER)?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        rustix::mount::mount_bind(&wrapper, LVM).context("cannot take lvm's place")?;
        Ok(Self)
    }
}

impl Drop for Wrapper {
    fn drop(&mut self) {
        if let Err(error) = rustix::mount::unmount(LVM, rustix::mount::UnmountFlags::empty()) {
            eprintln!("the wrapper stays in lvm's place: {error}");
        }
    }
}

/// Who dies when LVM comes to the ordered call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Lvm,
    Both,
    /// LVM stops there, and the driver dies alone.
    Driver,
}

impl Who {
    fn word(self) -> &'static str {
        match self {
            Self::Lvm => "alone",
            Self::Both => "both",
            Self::Driver => "stop",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Lvm => "lvm",
            Self::Both => "lvm and driver",
            Self::Driver => "driver, lvm goes on later",
        }
    }
}

/// A command of which every death is tried.
#[derive(Debug, Clone, Copy)]
pub struct Deaths {
    pub name: &'static str,
    kind: Kind,
    operation: Operation,
    /// Two words that its command line has, in this order.
    words: [&'static str; 2],
    /// What the operation finds of the thin pool.
    pool: PoolBefore,
    /// The volume's device is taken away before, as after a reboot.
    inactive: bool,
    who: &'static [Who],
}

const THIN: Kind = Kind { name: "thin-filesystem", thick: false, block: false };
const THIN_BLOCK: Kind = Kind { name: "thin-block", thick: false, block: true };
const THICK: Kind = Kind { name: "thick-filesystem", thick: true, block: false };
const RAW: Kind = Kind { name: "thick-block", thick: true, block: true };

const fn deaths(name: &'static str, kind: Kind, operation: Operation, words: [&'static str; 2]) -> Deaths {
    Deaths { name, kind, operation, words, pool: PoolBefore::Kept, inactive: false, who: &[Who::Lvm, Who::Both] }
}

/// Every command that creates, deletes or activates.
pub const ALL: [Deaths; 10] = [
    Deaths {
        pool: PoolBefore::Absent,
        ..deaths("lvm creates a pool", THIN, Operation::Create, ["lvcreate", "thin-pool"])
    },
    Deaths {
        pool: PoolBefore::TooSmall,
        ..deaths("lvm enlarges a pool", THIN_BLOCK, Operation::Create, ["lvextend", "-L"])
    },
    deaths("lvm creates thin", THIN, Operation::Create, ["lvcreate", "-V"]),
    Deaths { who: &[Who::Driver], ..deaths("lvm outlives the driver", THIN, Operation::Create, ["lvcreate", "-V"]) },
    deaths("lvm creates thick", THICK, Operation::Create, ["lvcreate", "-W"]),
    deaths("lvm creates thick raw block", RAW, Operation::Create, ["lvcreate", "-W"]),
    deaths("lvm deletes thin", THIN, Operation::Delete, ["lvremove", "-y"]),
    deaths("lvm deletes thick", THICK, Operation::Delete, ["lvremove", "-y"]),
    Deaths { inactive: true, ..deaths("lvm activates thin", THIN_BLOCK, Operation::Stage, ["lvchange", "-a"]) },
    Deaths { inactive: true, ..deaths("lvm activates thick", THICK, Operation::Stage, ["lvchange", "-a"]) },
];

/// A call of LVM's that changes device-mapper's state.
#[derive(Debug, Clone)]
struct Call {
    /// Which of all its calls of ioctl, counted from 1.
    nth: usize,
    text: String,
}

pub async fn all(report: &Report, deaths: Deaths) -> Result<()> {
    let name = format!("lvm{}", deaths.name.replace("lvm", "").replace(' ', ""));
    let begin = || async {
        let remade = deaths.pool != PoolBefore::Kept;
        let mut lane = Lane::new(name.clone(), deaths.kind.thick || remade).await?;
        lane.spare_may_be_left = remade;
        Ok::<_, anyhow::Error>(lane)
    };
    let mut lane = begin().await?;
    let (_, calls) = life(&mut lane, deaths, None, "pvc-0").await.context("the life without a death")?;
    ensure!(!calls.is_empty(), "{} changes nothing in device-mapper", deaths.name);
    let mut lives = 0;
    for who in deaths.who {
        for call in report.sample.pick(&format!("{}{who:?}", deaths.name), calls.iter().collect()) {
            lives += 1;
            let outcome = life(&mut lane, deaths, Some((*who, call)), &format!("pvc-{lives}")).await;
            let failed = outcome.is_err();
            report.add(Line {
                job: deaths.name.to_owned(),
                operation: deaths.operation.name().to_owned(),
                point: format!("{} ({})", call.text, who.text()),
                outcome: outcome.map(|(text, _)| text).map_err(|error| format!("{error:#}")),
            });
            if failed {
                eprintln!("---- log of the driver of {name} ----\n{}---- end ----", lane.scene.driver.log_tail(60));
                end_lvm(&lane).await;
                drop(lane);
                lane = begin().await?;
            }
        }
    }
    Ok(())
}

/// One life, with one death or, to learn the calls, with none.
async fn life(lane: &mut Lane, deaths: Deaths, end: Option<(Who, &Call)>, name: &str) -> Result<(String, Vec<Call>)> {
    let mut subject = Subject::new(&lane.scene, deaths.kind, name);
    let mut learned = (String::new(), Vec::new());
    // A thick filesystem volume is staged too: what an earlier one left on its blocks must have been wiped.
    let stages = deaths.operation == Operation::Stage || deaths.kind == THICK;
    let all = [Operation::Create, Operation::Stage, Operation::Unstage, Operation::Delete];
    let is_stage = |operation: &Operation| matches!(operation, Operation::Stage | Operation::Unstage);
    for operation in all.into_iter().filter(|operation| stages || !is_stage(operation)) {
        if operation == deaths.operation {
            deaths.pool.prepare(lane)?;
            if deaths.inactive {
                let path = format!("{}/{name}", lane.scene.group.name());
                lvm("lvchange", &["-an", "-y", &path])?.success()?;
            }
            learned = death(lane, &subject, deaths, end).await?;
        } else {
            let refusals = subject.insist(&lane.scene.csi, operation).await?;
            ensure!(refusals.is_empty(), "{} was refused: {refusals:?}", operation.name());
        }
        subject.done(&mut lane.expected, operation)?;
        if operation == deaths.operation {
            invariant::check(lane).await?;
            if lane.spare_is_left()? {
                learned.0.push_str("; a spare of the pool's metadata is left");
            }
        }
    }
    Ok(learned)
}

async fn death(
    lane: &mut Lane,
    subject: &Subject,
    deaths: Deaths,
    end: Option<(Who, &Call)>,
) -> Result<(String, Vec<Call>)> {
    let state = lane.scene.driver.state_dir();
    let (order, trace) = (state.join("lvm-order"), state.join("lvm-trace"));
    let [first, second] = deaths.words;
    // What an earlier life left in it must not be taken for this one's.
    fs::remove_file(&trace)
        .or_else(|error| if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
    let (mode, nth) = end.map_or(("trace", 0), |(who, call)| (who.word(), call.nth));
    fs::write(&order, format!("{mode} {nth} {} {first} {second}\n", trace.display()))?;
    let operation = deaths.operation;
    let Some((who, call)) = end else {
        let refusals = subject.insist(&lane.scene.csi, operation).await?;
        ensure!(refusals.is_empty(), "{} was refused: {refusals:?}", operation.name());
        ensure!(!order.exists(), "no command had the words {first} {second}");
        let calls = changes(&fs::read_to_string(&trace).context("strace wrote nothing")?);
        return Ok((String::new(), calls));
    };
    if who == Who::Driver {
        outlive(lane, subject, operation, &trace).await?;
    } else if let Ok(()) = subject.ask(&lane.scene.csi, operation).await
        && who == Who::Both
    {
        bail!("{} was answered by a driver that should have died", operation.name());
    }
    ensure!(!order.exists(), "no command had the words {first} {second}");
    let text = fs::read_to_string(&trace).context("strace wrote nothing")?;
    let came = changes(&text).into_iter().next_back();
    ensure!(
        came.as_ref().is_some_and(|came| came.nth == call.nth) || who == Who::Driver,
        "lvm was to die before {} and died before {came:?}",
        call.text
    );
    if who == Who::Both {
        lane.scene.driver.wait_for_end()?;
        lane.restart().await?;
    }
    // Before the caller asks again: nobody else may have to wait for that.
    lane.others_are_well().context("before the caller asks again")?;
    let refusals = subject.insist(&lane.scene.csi, operation).await?;
    Ok((summary("asked again", &refusals), Vec::new()))
}

/// Stops LVM at the ordered call, has the driver die alone and a new one start, and lets LVM go on.
async fn outlive(lane: &mut Lane, subject: &Subject, operation: Operation, trace: &Path) -> Result<()> {
    let system_dir = lane.scene.driver.state_dir().join("lvm");
    let pid = {
        let csi = lane.scene.csi.clone();
        let asked = subject.ask(&csi, operation);
        tokio::pin!(asked);
        let mut pid = None;
        for _ in 0..600 {
            tokio::select! {
                answer = &mut asked => bail!("{} was answered, though lvm should have stopped: {answer:?}", operation.name()),
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            }
            // Under strace a process stops for a moment at every call; this stop is for good.
            let stopped = fs::read_to_string(trace).is_ok_and(|text| text.contains("stopped by SIGSTOP"));
            pid = if stopped { running_lvm(&system_dir) } else { None };
            if pid.is_some() {
                break;
            }
        }
        pid.with_context(|| format!("lvm did not stop; it did:\n{}", fs::read_to_string(trace).unwrap_or_default()))?
    };
    lane.scene.driver.crash()?;
    lane.scene.driver.launch()?;
    let said = "waiting for an lvm command of a driver that is gone";
    for _ in 0..300 {
        if lane.scene.driver.log_tail(20).contains(said) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(lane.scene.driver.log_tail(20).contains(said), "the new driver does not wait for lvm of the old one");
    let raw = rustix::process::Pid::from_raw(pid).context("no process id")?;
    rustix::process::kill_process(raw, rustix::process::Signal::CONT).context("cannot let lvm go on")?;
    lane.answers().await
}

/// Ends an `lvm` that a failed life left stopped: it holds LVM's lock on its group, and others wait for that.
async fn end_lvm(lane: &Lane) {
    while let Some(pid) = running_lvm(&lane.scene.driver.state_dir().join("lvm")) {
        let killed = rustix::process::Pid::from_raw(pid)
            .map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL));
        if !matches!(killed, Some(Ok(()))) {
            return eprintln!("lvm {pid} stays: {killed:?}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// An `lvm` with this configuration.
fn running_lvm(system_dir: &Path) -> Option<i32> {
    let variable = format!("LVM_SYSTEM_DIR={}", system_dir.display());
    let real = PathBuf::from(FOLDER).join("lvm");
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let is_lvm = fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == real);
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if is_lvm && environment.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes()) {
            return Some(pid);
        }
    }
    None
}

/// The calls that change device-mapper's state, from what strace wrote.
fn changes(trace: &str) -> Vec<Call> {
    const CHANGES: [&str; 8] = [
        "DM_DEV_CREATE",
        "DM_TABLE_LOAD",
        "DM_DEV_SUSPEND",
        "DM_DEV_REMOVE",
        "DM_TARGET_MSG",
        "DM_DEV_RENAME",
        "DM_TABLE_CLEAR",
        "DM_REMOVE_ALL",
    ];
    let calls = trace.lines().filter(|line| line.starts_with("ioctl(")).enumerate();
    let changes = calls.filter_map(|(index, line)| {
        let name = CHANGES.iter().find(|name| line.contains(*name))?;
        let meaning = match *name {
            "DM_DEV_SUSPEND" if line.contains("DM_SUSPEND_FLAG") => "suspend".to_owned(),
            "DM_DEV_SUSPEND" => "resume".to_owned(),
            name => name.trim_start_matches("DM_").replace('_', " ").to_lowercase(),
        };
        let nth = index + 1;
        let device = ["name=\"", "uuid=\""].iter().find_map(|key| line.split(key).nth(1)?.split('"').next());
        Some(Call { nth, text: format!("{meaning} {} (call {nth})", device.unwrap_or("?")) })
    });
    changes.collect()
}

/// Fails unless strace is there.
pub fn demand_strace() -> Result<()> {
    process::run(&Command::new("strace").arg("--version"), Duration::from_secs(60))?.success().map(drop)
}
