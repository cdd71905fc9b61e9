//! A scratch volume on a real disk, with two cgroups beside the pods'.
//!
//! **Invariant.** The disk's own counters are compared with what was done here: what somebody else did meanwhile spoils a
//! measurement, and it is told.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::device_number::DeviceNumber;
use crate::exec::{Exec, Invocation, Tool};
use crate::telemetry::chain;

use super::super::block_stat::{BlockStat, counted};
use super::super::control::{Control, Places};
use super::super::cost::{self, CostModel};
use super::super::keyed::{self, CHARGED};
use super::super::sysfs::Disk;
use super::Failure;
use super::probe::{Tick, clock_ms};
use super::procedure::{Load, Race, Rate, Rig};

/// The cgroup above the two.
const CGROUP: &str = "quarry-calibration";
const LIGHT: &str = "light";
const HEAVY: &str = "heavy";

/// Both processes must run through the window that is looked at: their starts take some time.
const SLACK: Duration = Duration::from_millis(2500);
/// How long after its time a process may end: its last operations wait in queues.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often the kernel's counters are read.
const SAMPLE: Duration = Duration::from_millis(100);
/// Part of the own bytes that others may move, and bytes that they may move in any case: LVM's metadata, a log's line.
const FOREIGN_PART: f64 = 0.02;
const FOREIGN_BYTES: f64 = 512.0 * 1024.0;

/// The two cgroups, there as long as this is.
#[derive(Debug)]
struct Cgroups(PathBuf);

impl Cgroups {
    fn make(root: &Path, disk: DeviceNumber) -> Result<Self, Failure> {
        let folder = root.join(CGROUP);
        let cgroups = Self(folder.clone());
        let failed =
            |path: &Path, error: std::io::Error| Failure::Failed(format!("cannot set up {}: {error}", path.display()));
        for path in [folder.clone(), folder.join(LIGHT), folder.join(HEAVY)] {
            match fs::create_dir(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed(&path, error)),
                _ => {}
            }
            if path == folder {
                let control = folder.join("cgroup.subtree_control");
                fs::write(&control, "+io").map_err(|error| failed(&control, error))?;
            }
        }
        let weight = |path: &Path, weight: u32| {
            cost::write(&path.join("io.weight"), &format!("{disk} {weight}"))
                .map_err(|reason| Failure::Failed(reason.to_string()))
        };
        weight(&folder.join(LIGHT), 100)?;
        weight(&folder.join(HEAVY), 400)?;
        Ok(cgroups)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for path in [self.0.join(LIGHT), self.0.join(HEAVY), self.0.clone()] {
            if let Err(error) = fs::remove_dir(&path) {
                tracing::warn!(path = %path.display(), %error, "a cgroup of the calibration is left; the next one uses it");
            }
        }
    }
}

/// What the kernel counted of a disk at a moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at_ms: u64,
    /// Milliseconds that operations were in the queue, summed over them.
    queued_ms: f64,
    /// Microseconds that iocost charged; nothing while it is off.
    charged_us: f64,
    bytes: f64,
}

/// See [`Rig`].
#[derive(Debug)]
pub struct DiskRig {
    control: Arc<Control>,
    exec: Exec,
    probe: Tool,
    disk: Disk,
    device: PathBuf,
    /// How much of the device is used: what was written before.
    bytes: u64,
    cgroups: Cgroups,
}

impl DiskRig {
    /// On a scratch volume, which is written whole first, or as far as `fill` lasts.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn new(
        control: Arc<Control>,
        exec: Exec,
        disk: Disk,
        device: PathBuf,
        bytes: u64,
        fill: Duration,
    ) -> Result<Self, Failure> {
        let own =
            std::env::current_exe().map_err(|error| Failure::Failed(format!("cannot find this program: {error}")))?;
        let probe = Tool::at("quarry-driver", own).map_err(|error| Failure::Failed(error.to_string()))?;
        let cgroups = Cgroups::make(&control.places().cgroups, disk.number)?;
        let mut rig = Self { control, exec, probe, disk, device, bytes, cgroups };
        rig.control.try_model(&rig.disk, None)?;
        let load = Load { block: 1 << 20, reads_percent: 0, sequential: true, depth: 4 };
        let ticks = rig.probe(LIGHT, 0, bytes, load, fill, true).await?;
        let written = ticks.last().map_or(0, |tick| tick.writes) << 20;
        // Less than what a random offset needs to be random.
        if written < LEAST_FILLED {
            return Err(Failure::Failed(format!(
                "only {written} bytes of a scratch volume were written in {} s",
                fill.as_secs()
            )));
        }
        rig.bytes = written;
        Ok(rig)
    }

    fn places(&self) -> &Places {
        self.control.places()
    }

    fn sample(&self) -> Result<Sample, Failure> {
        let at_ms = clock_ms();
        let stat = BlockStat::of_disk(&self.places().sys, &self.disk.name)?;
        let path = self.places().cgroups.join("io.stat");
        let io = fs::read_to_string(&path);
        let io = io.map_err(|error| Failure::Failed(format!("cannot read {}: {error}", path.display())))?;
        Ok(Sample {
            at_ms,
            queued_ms: counted(stat.queued_ms),
            charged_us: keyed::number(&io, self.disk.number, CHARGED).unwrap_or_default(),
            bytes: counted(stat.bytes()),
        })
    }

    async fn probe(
        &self,
        cgroup: &str,
        start: u64,
        length: u64,
        load: Load,
        run: Duration,
        once: bool,
    ) -> Result<Vec<Tick>, Failure> {
        let mut words = vec![
            "io-probe".to_owned(),
            "--device".to_owned(),
            self.device.display().to_string(),
            "--cgroup".to_owned(),
            self.cgroups.path(cgroup).display().to_string(),
        ];
        let numbers = [
            ("--start", start),
            ("--length", length),
            ("--block", load.block),
            ("--depth", u64::from(load.depth)),
            ("--reads-percent", u64::from(load.reads_percent)),
            ("--milliseconds", u64::try_from(run.as_millis()).unwrap_or(u64::MAX)),
        ];
        words.extend(numbers.into_iter().flat_map(|(option, number)| [option.to_owned(), number.to_string()]));
        words.extend(load.sequential.then(|| "--sequential".to_owned()));
        words.extend(once.then(|| "--once".to_owned()));
        let failed = |error: crate::exec::ExecError| Failure::Failed(chain(&error));
        let ended = self.exec.run(Invocation::new(&self.probe, run + PATIENCE).args(words)).await.map_err(failed)?;
        let output = ended.success().map_err(failed)?;
        serde_json::from_slice(&output.stdout)
            .map_err(|error| Failure::Failed(format!("what a measuring process said is not understood: {error}")))
    }

    /// Reads the counters until `done`.
    async fn watch<T>(&self, done: impl Future<Output = T>) -> Result<(T, Vec<Sample>), Failure> {
        let mut samples = vec![self.sample()?];
        tokio::pin!(done);
        loop {
            tokio::select! {
                outcome = &mut done => {
                    samples.push(self.sample()?);
                    return Ok((outcome, samples));
                }
                () = tokio::time::sleep(SAMPLE) => samples.push(self.sample()?),
            }
        }
    }

    /// Whether somebody else moved more bytes than nobody would notice.
    fn undisturbed(&self, samples: &[Sample], own: f64) -> Result<(), Failure> {
        let (Some(first), Some(last)) = (samples.first(), samples.last()) else { return Err(Failure::Stuck) };
        let foreign = last.bytes - first.bytes - own;
        if foreign > own * FOREIGN_PART + FOREIGN_BYTES {
            tracing::info!(disk = self.disk.name, own, foreign, "calibration: somebody else uses the disk");
            return Err(Failure::Disturbed);
        }
        Ok(())
    }
}

/// A scratch volume of which less was written is no ground for random offsets.
const LEAST_FILLED: u64 = 64 << 20;

fn bytes(ticks: &[Tick], load: Load) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a fraction of a percent matters, not a byte")]
    ticks.last().map_or(0.0, |tick| ((tick.reads + tick.writes) * load.block) as f64)
}

/// The rate between two moments, by counters that were noted now and then.
fn rate(ticks: &[Tick], from: u64, to: u64) -> Option<Rate> {
    #[expect(clippy::cast_precision_loss, reason = "counts of seconds")]
    let per_second = |of: fn(&Tick) -> u64| {
        let points: Vec<(u64, f64)> = ticks.iter().map(|tick| (tick.at_ms, of(tick) as f64)).collect();
        Some((between(&points, to)? - between(&points, from)?) * 1000.0 / (to - from) as f64)
    };
    Some(Rate { reads: per_second(|tick| tick.reads)?, writes: per_second(|tick| tick.writes)? })
}

/// A counter's value at a moment between two at which it was noted.
fn between(points: &[(u64, f64)], at: u64) -> Option<f64> {
    let after = points.iter().position(|(moment, _)| *moment >= at)?;
    let (later, high) = *points.get(after)?;
    if later == at {
        return Some(high);
    }
    let (earlier, low) = *points.get(after.checked_sub(1)?)?;
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of seconds")]
    let part = (at - earlier) as f64 / (later - earlier) as f64;
    Some(low + (high - low) * part)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

const NOT_LONG: &str = "the measuring processes did not run for as long as they should have";

#[tonic::async_trait]
impl Rig for DiskRig {
    async fn measure(&mut self, load: Load, run: Duration, skip: Duration) -> Result<Rate, Failure> {
        self.control.try_model(&self.disk, None)?;
        let (ticks, samples) = self.watch(self.probe(LIGHT, 0, self.bytes, load, run + SAMPLE, false)).await?;
        let ticks = ticks?;
        self.undisturbed(&samples, bytes(&ticks, load))?;
        let begin = ticks.first().ok_or(Failure::Stuck)?.at_ms;
        let from = begin + millis(skip);
        rate(&ticks, from, begin + millis(run)).ok_or_else(|| Failure::Failed(NOT_LONG.to_owned()))
    }

    async fn install(&mut self, model: CostModel) -> Result<(), Failure> {
        self.control.try_model(&self.disk, Some(model))
    }

    async fn race(&mut self, light: Load, heavy: Load, run: Duration, skip: Duration) -> Result<Race, Failure> {
        let half = self.bytes / 2 / (1 << 20) * (1 << 20);
        let long = run + SLACK;
        let both = async {
            tokio::join!(
                self.probe(LIGHT, 0, half, light, long, false),
                self.probe(HEAVY, half, half, heavy, long, false)
            )
        };
        let ((slow, fast), samples) = self.watch(both).await?;
        let (slow, fast) = (slow?, fast?);
        self.undisturbed(&samples, bytes(&slow, light) + bytes(&fast, heavy))?;
        let not_long = || Failure::Failed(NOT_LONG.to_owned());
        let begin =
            [&slow, &fast].into_iter().filter_map(|ticks| Some(ticks.first()?.at_ms)).max().ok_or(Failure::Stuck)?;
        let (from, to) = (begin + millis(skip), begin + millis(run));
        let grown = |of: fn(&Sample) -> f64, from: u64, to: u64| {
            let points: Vec<(u64, f64)> = samples.iter().map(|sample| (sample.at_ms, of(sample))).collect();
            Some(between(&points, to)? - between(&points, from)?)
        };
        let queue = |from: u64, to: u64| {
            #[expect(clippy::cast_precision_loss, reason = "milliseconds of seconds")]
            grown(|sample| sample.queued_ms, from, to).map(|queued| queued / (to - from) as f64)
        };
        let last = queue(to - 1000, to).ok_or_else(not_long)?;
        let before = queue(to - 2000, to - 1000).ok_or_else(not_long)?;
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of seconds")]
        let usage = grown(|sample| sample.charged_us, from, to).ok_or_else(not_long)? / ((to - from) as f64 * 1000.0);
        Ok(Race {
            light: rate(&slow, from, to).ok_or_else(not_long)?,
            heavy: rate(&fast, from, to).ok_or_else(not_long)?,
            queue: last,
            growth: last - before,
            usage,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_the_window_alone() {
        let ticks: Vec<Tick> = (0..=20_u64).map(|n| Tick { at_ms: 1000 + n * 100, reads: n * 60, writes: 0 }).collect();
        let rate = rate(&ticks, 1550, 2550).unwrap();
        assert!((rate.reads - 600.0).abs() < 0.5 && rate.writes.abs() < 0.5, "{rate:?}");
        assert_eq!(super::rate(&ticks, 500, 1500), None, "it did not run then");
        assert_eq!(super::rate(&ticks, 1500, 3500), None, "it did not run so long");
    }
}
