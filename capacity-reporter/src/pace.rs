//! How fast requests follow one another: a bound on their rate, and pauses after errors.

use std::time::Duration;

use tokio::time::Instant;

/// A bound on a rate: so many at once after a pause, so many a second in the long run.
#[derive(Debug)]
pub struct Pace {
    per_second: f64,
    burst: f64,
    left: f64,
    seen: Instant,
}

impl Pace {
    /// Full at the beginning.
    #[must_use]
    pub fn new(per_second: f64, burst: u32) -> Self {
        let burst = f64::from(burst).max(1.0);
        Self { per_second, burst, left: burst, seen: Instant::now() }
    }

    fn refill(&mut self) {
        let now = Instant::now();
        self.left = (self.left + now.duration_since(self.seen).as_secs_f64() * self.per_second).min(self.burst);
        self.seen = now;
    }

    /// Takes one, if there is one.
    pub fn take(&mut self) -> bool {
        self.refill();
        let there = self.left >= 1.0;
        if there {
            self.left -= 1.0;
        }
        there
    }

    /// Ends when there is one to take.
    pub async fn ready(&mut self) {
        self.refill();
        if self.left < 1.0 {
            tokio::time::sleep(Duration::from_secs_f64((1.0 - self.left) / self.per_second)).await;
        }
    }
}

/// Pauses that double with every error in a row, each of a random length between half and whole, so that a thousand
/// reporters do not come back in step.
#[derive(Debug, Clone)]
pub struct Pause {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Pause {
    /// From the first to the longest.
    #[must_use]
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// The next one.
    pub fn step(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.longest);
        whole.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// After a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_and_then_so_many_a_second() {
        let mut pace = Pace::new(5.0, 3);
        assert_eq!((0..5).filter(|_| pace.take()).count(), 3);
        let begin = Instant::now();
        for _ in 0..50 {
            pace.ready().await;
            assert!(pace.take());
        }
        let took = begin.elapsed();
        assert!(took >= Duration::from_millis(9_990) && took < Duration::from_millis(10_200), "{took:?}");
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!((0..9).filter(|_| pace.take()).count(), 3, "a long pause saves no more than a burst");
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew() {
        let mut pause = Pause::new(Duration::from_millis(100), Duration::from_secs(1));
        for whole in [100, 200, 400, 800, 1000, 1000] {
            let step = pause.step().as_millis();
            assert!(step * 2 >= whole && step <= whole, "{step} of {whole}");
        }
        pause.reset();
        assert!(pause.step() <= Duration::from_millis(100));
    }
}
