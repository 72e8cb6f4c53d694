//! The rate limit of attempts, as a value: the generic cell rate algorithm (GCRA).

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// At most `requests` attempts `per` period, with up to `burst` at once after a quiet time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimit {
    /// Attempts in a period.
    pub requests: u32,
    /// The period.
    #[serde(with = "super::duration::millis")]
    pub per: Duration,
    /// Attempts that may be made at once.
    pub burst: u32,
}

/// The state of one limiter. Times are distances from any fixed start, on a monotonic clock.
#[derive(Debug, Clone, Default)]
pub struct Limiter {
    /// When the next attempt would conform if there were no burst.
    arrival: Duration,
}

impl RateLimit {
    fn gap(&self) -> Duration {
        self.per / self.requests.max(1)
    }
}

impl Limiter {
    /// Takes one attempt at `now`, or says how long to wait for one.
    pub fn take(&mut self, limit: &RateLimit, now: Duration) -> Result<(), Duration> {
        let tolerance = limit.gap().saturating_mul(limit.burst.saturating_sub(1));
        let earliest = self.arrival.saturating_sub(tolerance);
        if now < earliest {
            return Err(earliest.saturating_sub(now));
        }
        self.arrival = self.arrival.max(now).saturating_add(limit.gap());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burst_then_the_steady_rate() {
        let limit = RateLimit { requests: 10, per: Duration::from_secs(1), burst: 3 };
        let mut limiter = Limiter::default();
        let start = Duration::from_secs(5);
        for _ in 0..3 {
            assert_eq!(limiter.take(&limit, start), Ok(()));
        }
        assert_eq!(limiter.take(&limit, start), Err(Duration::from_millis(100)));
        assert_eq!(limiter.take(&limit, start + Duration::from_millis(100)), Ok(()));
    }

    proptest! {
        /// In any window of one period at most `requests + burst` attempts pass.
        #[test]
        fn the_rate_is_kept(requests in 1u32..50, burst in 1u32..10, steps in proptest::collection::vec(0u64..50, 1..300)) {
            let limit = RateLimit { requests, per: Duration::from_secs(1), burst };
            let mut limiter = Limiter::default();
            let mut now = Duration::ZERO;
            let mut passed: Vec<Duration> = Vec::new();
            for step in steps {
                now += Duration::from_millis(step);
                if limiter.take(&limit, now).is_ok() {
                    passed.push(now);
                }
            }
            for (index, from) in passed.iter().enumerate() {
                let within = passed[index..].iter().filter(|at| (**at).checked_sub(*from).unwrap() < Duration::from_secs(1)).count();
                prop_assert!(within <= (requests + burst) as usize);
            }
        }
    }
}
