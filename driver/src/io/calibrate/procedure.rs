//! How a disk's cost model is found: four measurements, a model through them, races that show whether it holds, and a
//! margin.
//!
//! **Rules.** The model is the line through the cost of a 4 KiB and of a 1 MiB operation. One that is too fast controls
//! nothing: tenants queue in the disk, and iocost charges less than the time that passed. One that is too slow always
//! passes. So it is approached from above, and a part of what passed is given up for what short races do not see. All on a
//! scratch volume, so that writes are safe; sequential 4 KiB operations are modelled as random ones, since what lies
//! below merges them.

use std::time::Duration;

use super::super::cost::CostModel;
use super::Failure;

/// What a process does to the scratch volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Bytes of an operation.
    pub block: u64,
    /// How many of a hundred operations are reads.
    pub reads_percent: u8,
    /// One after the other instead of anywhere.
    pub sequential: bool,
    /// Operations at once.
    pub depth: u32,
}

impl Load {
    const fn random(reads_percent: u8, depth: u32) -> Self {
        Self { block: 4096, reads_percent, sequential: false, depth }
    }

    const fn sequential(block: u64, reads_percent: u8, depth: u32) -> Self {
        Self { block, reads_percent, sequential: true, depth }
    }
}

/// Operations a second.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rate {
    /// Reads.
    pub reads: f64,
    /// Writes.
    pub writes: f64,
}

impl Rate {
    fn all(self) -> f64 {
        self.reads + self.writes
    }
}

/// What a race of two showed, one with four times the weight of the other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Race {
    /// The one with the weight 100.
    pub light: Rate,
    /// The one with the weight 400.
    pub heavy: Rate,
    /// Operations in the disk's own queue at the end, on average over a second.
    pub queue: f64,
    /// By how many the queue grew in a second.
    pub growth: f64,
    /// What iocost charged, in terms of the time that passed.
    pub usage: f64,
}

/// Does what the procedure asks, on a disk.
#[tonic::async_trait]
pub trait Rig: Send {
    /// The rate of a load alone, with nobody in control.
    async fn measure(&mut self, load: Load, run: Duration, skip: Duration) -> Result<Rate, Failure>;

    /// Has iocost use a model.
    async fn install(&mut self, model: CostModel) -> Result<(), Failure>;

    /// Two loads at once, with weights 100 and 400.
    async fn race(&mut self, light: Load, heavy: Load, run: Duration, skip: Duration) -> Result<Race, Failure>;
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// The model to install.
    pub model: CostModel,
    /// What two with weights 1:4 got with it.
    pub ratio: f64,
    /// The disk's queue meanwhile.
    pub queue: f64,
    /// 4 KiB reads a second without control.
    pub read_iops: f64,
    /// 4 KiB writes a second without control.
    pub write_iops: f64,
}

/// Part of what passed short races that is used: an excess of a few percent takes longer than they last to fill the queue.
const MARGIN: f64 = 0.93;
/// Least and most that the one with four times the weight may get.
const RATIO: (f64, f64) = (3.5, 4.5);
/// Fewer charged than this: nothing was saturated, or the disk was the narrower place.
const LEAST_USAGE: f64 = 0.93;
/// Part of all operations under way that may be in the disk's queue: with the right model they wait before it.
const MOST_QUEUED: f64 = 0.25;
/// By what part of the rate the queue may grow in a second.
const MOST_GROWTH: f64 = 0.02;
/// How often a model is corrected before it is given up.
const TRIES: u32 = 8;
/// How often a disturbed measurement is repeated.
const REPEATS: u32 = 3;
/// Stands for "the size costs nothing".
const NO_LIMIT: f64 = 1e12;

const SECOND: Duration = Duration::from_secs(1);

/// A disk's speed as the four measurements see it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Speed {
    iops: f64,
    /// Bytes a second of the part of an operation beyond its first 4 KiB.
    bps: f64,
}

impl Speed {
    /// The line through the costs of both sizes.
    fn through(small: f64, large: f64) -> Self {
        let large = large.min(small);
        let beyond = 1.0 / large - 1.0 / small;
        // A difference within the measurements' error is none.
        let bps = if large >= small * 0.98 { NO_LIMIT } else { (MIB - PAGE) / beyond };
        Self { iops: small, bps: bps.min(NO_LIMIT) }
    }

    fn scaled(self, factor: f64) -> Self {
        Self { iops: self.iops * factor, bps: if self.bps >= NO_LIMIT { NO_LIMIT } else { self.bps * factor } }
    }

    /// Seconds that an operation is charged.
    fn cost(self, block: u64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a block has few bytes")]
        let beyond = block as f64 - PAGE;
        1.0 / self.iops + beyond / self.bps
    }
}

const MIB: f64 = 1_048_576.0;
const PAGE: f64 = 4096.0;

#[derive(Debug, Clone, Copy)]
struct Model {
    read: Speed,
    write: Speed,
}

impl Model {
    fn scaled(self, read: f64, write: f64) -> Self {
        Self { read: self.read.scaled(read), write: self.write.scaled(write) }
    }

    fn cost_model(self) -> CostModel {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at least 1, at most 10^12")]
        let whole = |number: f64| number.clamp(1.0, NO_LIMIT) as u64;
        let (read, write) = (whole(self.read.iops), whole(self.write.iops));
        CostModel {
            read_bps: whole(self.read.bps),
            read_sequential_iops: read,
            read_random_iops: read,
            write_bps: whole(self.write.bps),
            write_sequential_iops: write,
            write_random_iops: write,
        }
    }

    /// Seconds of the disk that a second of this work is charged.
    fn time(self, rate: Rate, block: u64) -> f64 {
        rate.reads * self.read.cost(block) + rate.writes * self.write.cost(block)
    }
}

/// A kind of race, and whose speed is wrong when it fails.
#[derive(Debug, Clone, Copy)]
struct Check {
    name: &'static str,
    load: Load,
    reads: bool,
    writes: bool,
}

const DEPTH: u32 = 16;
const CHECKS: [Check; 4] = [
    Check { name: "4 KiB reads", load: Load::random(100, DEPTH), reads: true, writes: false },
    Check { name: "4 KiB writes", load: Load::random(0, DEPTH), reads: false, writes: true },
    Check { name: "4 KiB reads and writes", load: Load::random(50, DEPTH), reads: true, writes: true },
    Check { name: "64 KiB writes", load: Load::sequential(64 << 10, 0, DEPTH), reads: false, writes: true },
];

/// Finds a disk's model. When this returns the model is installed; after an error, the last one that was tried may be.
///
/// # Errors
/// [`Failure`]: none was found that divides the disk, somebody else used it all the time, or the rig failed.
pub async fn calibrate(rig: &mut dyn Rig) -> Result<Found, Failure> {
    let read_small = measure(rig, Load::random(100, 32)).await?;
    let write_small = measure(rig, Load::random(0, 32)).await?;
    let read_large = measure(rig, Load::sequential(1 << 20, 100, 4)).await?;
    let write_large = measure(rig, Load::sequential(1 << 20, 0, 4)).await?;
    tracing::info!(read_small, write_small, read_large, write_large, "calibration: measured, in operations a second");
    let measured =
        Model { read: Speed::through(read_small, read_large), write: Speed::through(write_small, write_large) };
    let (mut read, mut write) = (1.0, 1.0);
    let mut tries = 0;
    for check in CHECKS {
        loop {
            let model = measured.scaled(read, write);
            rig.install(model.cost_model()).await?;
            let pair = (check.load, check.load);
            let (race, verdict) = judged(rig, check.name, pair, duration(check, model), model).await?;
            let correction = match verdict {
                Verdict::Holds => break,
                Verdict::Queues => race.usage.clamp(0.05, 0.98) * 0.99,
                Verdict::Uneven => 0.98,
            };
            tries += 1;
            if tries >= TRIES {
                return Err(Failure::NoModel { check: check.name, detail: describe(&race, model, pair) });
            }
            if check.reads {
                read *= correction;
            }
            if check.writes {
                write *= correction;
            }
        }
    }
    let model = measured.scaled(read * MARGIN, write * MARGIN);
    rig.install(model.cost_model()).await?;
    let pair = (Load::random(100, DEPTH), Load::random(50, DEPTH));
    let name = "4 KiB reads against reads and writes";
    let (last, verdict) = judged(rig, name, pair, SECOND * 5, model).await?;
    if verdict != Verdict::Holds {
        return Err(Failure::NoModel { check: name, detail: describe(&last, model, pair) });
    }
    Ok(Found {
        model: model.cost_model(),
        ratio: ratio(&last, model, pair),
        queue: last.queue,
        read_iops: read_small,
        write_iops: write_small,
    })
}

/// The small share must do some operations.
fn duration(check: Check, model: Model) -> Duration {
    let cost = model.time(
        Rate {
            reads: f64::from(check.load.reads_percent) / 100.0,
            writes: 1.0 - f64::from(check.load.reads_percent) / 100.0,
        },
        check.load.block,
    );
    Duration::from_secs_f64((1.0 + 20.0 * 5.0 * cost).clamp(3.0, 7.0))
}

async fn measure(rig: &mut dyn Rig, load: Load) -> Result<f64, Failure> {
    let mut run = Duration::from_millis(1500);
    let mut skip = Duration::from_millis(500);
    let mut disturbed = 0;
    loop {
        let rate = match rig.measure(load, run, skip).await {
            Err(Failure::Disturbed) if disturbed + 1 < REPEATS => {
                disturbed += 1;
                continue;
            }
            rate => rate?.all(),
        };
        let operations = rate * (run - skip).as_secs_f64();
        if operations >= 40.0 || run > SECOND * 4 {
            return if rate > 0.0 { Ok(rate) } else { Err(Failure::Stuck) };
        }
        (run, skip) = (SECOND * 5, SECOND);
    }
}

/// A race and what to think of it; an uneven one is repeated once with more time, for it may be chance.
async fn judged(
    rig: &mut dyn Rig,
    name: &'static str,
    pair: (Load, Load),
    run: Duration,
    model: Model,
) -> Result<(Race, Verdict), Failure> {
    let mut outcome = None;
    for run in [run, run * 2] {
        let race = race(rig, pair, run).await?;
        let verdict = judge(&race, model, pair);
        let Race { queue, usage, .. } = race;
        tracing::info!(race = name, ?verdict, ratio = ratio(&race, model, pair), queue, usage, "calibration: raced");
        outcome = Some((race, verdict));
        if verdict != Verdict::Uneven {
            break;
        }
    }
    outcome.ok_or(Failure::Stuck)
}

async fn race(rig: &mut dyn Rig, (light, heavy): (Load, Load), run: Duration) -> Result<Race, Failure> {
    let mut disturbed = 0;
    loop {
        match rig.race(light, heavy, run, SECOND).await {
            Err(Failure::Disturbed) if disturbed + 1 < REPEATS => disturbed += 1,
            race => return race,
        }
    }
}

/// What the heavy one got, in terms of the light one: in the disk's time, for that is what is divided.
fn ratio(race: &Race, model: Model, (light, heavy): (Load, Load)) -> f64 {
    model.time(race.heavy, heavy.block) / model.time(race.light, light.block).max(1e-9)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Holds,
    /// The disk is the narrower place: the model is too fast.
    Queues,
    /// Nothing queues, and the shares are not as they should be, or nothing was saturated.
    Uneven,
}

fn judge(race: &Race, model: Model, pair: (Load, Load)) -> Verdict {
    let (light, heavy) = pair;
    let depth = f64::from(light.depth + heavy.depth);
    let rate = race.light.all() + race.heavy.all();
    let ratio = ratio(race, model, pair);
    if race.queue > depth * MOST_QUEUED || race.growth > rate * MOST_GROWTH {
        Verdict::Queues
    } else if ratio < RATIO.0 || ratio > RATIO.1 || race.usage < LEAST_USAGE {
        Verdict::Uneven
    } else {
        Verdict::Holds
    }
}

fn describe(race: &Race, model: Model, pair: (Load, Load)) -> String {
    format!(
        "weights 1:4 came out as 1:{:.1}, with {:.0} operations in the disk's queue and {:.0} % of the time charged",
        ratio(race, model, pair),
        race.queue,
        race.usage * 100.0
    )
}

#[cfg(test)]
#[path = "procedure_tests.rs"]
mod tests;
