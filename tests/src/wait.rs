//! Waiting for a condition, always with a bound: the only place of the test bed that sleeps.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Asks `ready` every `interval` until it gives a value.
///
/// # Errors
/// Whatever `ready` returns as an error, at once; or, after `limit`, an error that names `what`.
pub fn until<T>(
    what: &str,
    limit: Duration,
    interval: Duration,
    mut ready: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = ready()? {
            return Ok(value);
        }
        if start.elapsed() >= limit {
            bail!("{what}: not within {} s", limit.as_secs_f32());
        }
        pause(interval);
    }
}

/// Sleeps. For the inside of a bounded loop that [`until`] does not fit.
#[expect(clippy::disallowed_methods, reason = "the one place that sleeps; callers bound their loops")]
pub fn pause(interval: Duration) {
    std::thread::sleep(interval);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_never_comes_ends_with_its_name() {
        let error =
            until::<()>("the moon", Duration::from_millis(20), Duration::from_millis(5), || Ok(None)).unwrap_err();
        assert!(error.to_string().starts_with("the moon: not within"), "{error}");
    }

    #[test]
    fn an_error_ends_the_wait_at_once() {
        let mut asked = 0;
        let outcome = until::<()>("x", Duration::from_secs(60), Duration::from_secs(60), || {
            asked += 1;
            bail!("broken")
        });
        assert_eq!((asked, outcome.unwrap_err().to_string()), (1, "broken".to_owned()));
    }
}
