use super::*;

/// A disk with caps, iocost over it, and somebody who may use it, too.
struct Capped {
    read_iops: f64,
    write_iops: f64,
    bps: f64,
    /// By what the first measurements are wrong.
    error: f64,
    /// How many operations are to be disturbed.
    disturbed: u32,
    model: Option<Model>,
    races: u32,
}

impl Capped {
    fn new(read_iops: f64, write_iops: f64, bps: f64) -> Self {
        Self { read_iops, write_iops, bps, error: 1.0, disturbed: 0, model: None, races: 0 }
    }

    /// Seconds of the disk that a load's operation takes: the cap that binds, not their sum.
    fn time(&self, load: Load) -> f64 {
        let reads = f64::from(load.reads_percent) / 100.0;
        #[expect(clippy::cast_precision_loss, reason = "a block has few bytes")]
        let bytes = load.block as f64;
        (reads / self.read_iops + (1.0 - reads) / self.write_iops).max(bytes / self.bps)
    }

    fn disturb(&mut self) -> Result<(), Failure> {
        if self.disturbed == 0 {
            return Ok(());
        }
        self.disturbed -= 1;
        Err(Failure::Disturbed)
    }
}

fn split(load: Load, rate: f64) -> Rate {
    let reads = f64::from(load.reads_percent) / 100.0;
    Rate { reads: rate * reads, writes: rate * (1.0 - reads) }
}

#[tonic::async_trait]
impl Rig for Capped {
    async fn measure(&mut self, load: Load, _: Duration, _: Duration) -> Result<Rate, Failure> {
        self.disturb()?;
        Ok(split(load, self.error / self.time(load)))
    }

    async fn install(&mut self, model: CostModel) -> Result<(), Failure> {
        #[expect(clippy::cast_precision_loss, reason = "figures of a disk")]
        let speed = |iops: u64, bps: u64| Speed { iops: iops as f64, bps: bps as f64 };
        self.model = Some(Model {
            read: speed(model.read_random_iops, model.read_bps),
            write: speed(model.write_random_iops, model.write_bps),
        });
        Ok(())
    }

    async fn race(&mut self, light: Load, heavy: Load, _: Duration, _: Duration) -> Result<Race, Failure> {
        self.disturb()?;
        self.races += 1;
        let model = self.model.expect("a model is installed before a race");
        let charged = |load: Load| model.time(split(load, 1.0), load.block);
        // By iocost: a fifth and four fifths of the modelled time. By the disk: what it can do of that mix.
        let (slow, fast) = (0.2 / charged(light), 0.8 / charged(heavy));
        let needed = slow * self.time(light) + fast * self.time(heavy);
        if needed <= 1.0 {
            return Ok(Race {
                light: split(light, slow),
                heavy: split(heavy, fast),
                queue: 0.4,
                growth: 0.0,
                usage: 1.0,
            });
        }
        let each = 1.0 / (self.time(light) + self.time(heavy));
        let usage = each * (charged(light) + charged(heavy));
        Ok(Race { light: split(light, each), heavy: split(heavy, each), queue: 31.0, growth: 0.0, usage })
    }
}

fn close(is: u64, wanted: f64) -> bool {
    #[expect(clippy::cast_precision_loss, reason = "figures of a disk")]
    let is = is as f64;
    (is / wanted - 1.0).abs() < 0.03
}

#[tokio::test]
async fn the_model_is_a_little_below_the_caps_of_a_disk() {
    // Caps of operations, of both, of reads and writes apart, of bytes.
    for (read, write, bps) in [(600.0, 600.0, 1e12), (600.0, 600.0, 20e6), (1200.0, 400.0, 1e12), (1e5, 1e5, 6e6)] {
        let mut disk = Capped::new(read, write, bps);
        let found = calibrate(&mut disk).await.unwrap();
        let (read, write) = (read.min(bps / PAGE), write.min(bps / PAGE));
        assert!(close(found.model.read_random_iops, read * MARGIN), "{found:?}");
        assert!(close(found.model.write_random_iops, write * MARGIN), "{found:?}");
        assert_eq!(found.model.read_sequential_iops, found.model.read_random_iops);
        assert!((3.5..=4.5).contains(&found.ratio));
        assert_eq!(disk.races, 5, "the four checks and the last race");
    }
}

#[tokio::test]
async fn a_measurement_that_was_too_fast_is_corrected_from_above() {
    for error in [1.1, 1.5, 3.0] {
        let mut disk = Capped { error, ..Capped::new(600.0, 600.0, 1e12) };
        let found = calibrate(&mut disk).await.unwrap();
        let speed = found.model.read_random_iops;
        assert!((500..=560).contains(&speed), "{error}: {found:?}");
        assert!((500..=560).contains(&found.model.write_random_iops), "{error}: {found:?}");
    }
}

#[tokio::test]
async fn a_disk_that_no_model_divides_is_given_up() {
    struct Unruly(Capped);
    #[tonic::async_trait]
    impl Rig for Unruly {
        async fn measure(&mut self, load: Load, run: Duration, skip: Duration) -> Result<Rate, Failure> {
            self.0.measure(load, run, skip).await
        }
        async fn install(&mut self, model: CostModel) -> Result<(), Failure> {
            self.0.install(model).await
        }
        async fn race(&mut self, light: Load, heavy: Load, _: Duration, _: Duration) -> Result<Race, Failure> {
            self.0.races += 1;
            Ok(Race { light: split(light, 100.0), heavy: split(heavy, 130.0), queue: 0.5, growth: 0.0, usage: 0.7 })
        }
    }
    let mut disk = Unruly(Capped::new(600.0, 600.0, 1e12));
    let failure = calibrate(&mut disk).await.unwrap_err();
    assert!(
        matches!(&failure, Failure::NoModel { check: "4 KiB reads", detail } if detail.contains("1:1.3")),
        "{failure}"
    );
    assert_eq!(disk.0.races, 2 * TRIES);
}

#[tokio::test]
async fn what_was_disturbed_is_repeated_and_then_given_up() {
    let mut disk = Capped { disturbed: 2, ..Capped::new(600.0, 600.0, 1e12) };
    assert!(calibrate(&mut disk).await.is_ok());
    let mut disk = Capped { disturbed: 3, ..Capped::new(600.0, 600.0, 1e12) };
    assert_eq!(calibrate(&mut disk).await.unwrap_err(), Failure::Disturbed);
}

#[test]
fn a_growing_queue_is_a_model_that_is_too_fast_whatever_the_ratio_is() {
    let model = Model { read: Speed { iops: 600.0, bps: NO_LIMIT }, write: Speed { iops: 600.0, bps: NO_LIMIT } };
    let load = Load::random(100, 16);
    let race = |queue: f64, growth: f64, usage: f64, heavy: f64| Race {
        light: split(load, 100.0),
        heavy: split(load, heavy),
        queue,
        growth,
        usage,
    };
    let verdict = |race: Race| judge(&race, model, (load, load));
    assert_eq!(verdict(race(0.5, 0.0, 1.0, 400.0)), Verdict::Holds);
    assert_eq!(verdict(race(9.0, 0.0, 1.0, 400.0)), Verdict::Queues);
    assert_eq!(verdict(race(0.5, 18.0, 1.0, 400.0)), Verdict::Queues);
    assert_eq!(verdict(race(0.5, 0.0, 0.9, 400.0)), Verdict::Uneven);
    assert_eq!(verdict(race(0.5, 0.0, 1.0, 300.0)), Verdict::Uneven);
}
