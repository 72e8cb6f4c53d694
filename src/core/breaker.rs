//! The circuit breaker of a processor, as a value.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// When the breaker opens, and for how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BreakerPolicy {
    /// Consecutive attempts with a retryable outcome that open it.
    pub failures: u32,
    /// How long it stays open before one probe is let through.
    #[serde(with = "super::duration::millis")]
    pub open_for: Duration,
}

/// Whether attempts may start. Times are distances from any fixed start, on a monotonic clock.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Breaker {
    /// Attempts pass, and the last one did not fail.
    #[default]
    Closed,
    /// Attempts pass; so many have failed in a row.
    Failing(u32),
    /// No attempt until then.
    Open(Duration),
    /// One probe is under way; no other attempt.
    Probing,
}

/// What the breaker says to an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permit {
    /// Go.
    Go,
    /// Ask again after this long.
    Wait(Duration),
    /// Ask again when the probe under way has ended.
    AfterProbe,
}

impl Breaker {
    /// Asks for an attempt at `now`. After `openFor` the first to ask becomes the probe.
    pub fn permit(&mut self, now: Duration) -> Permit {
        match *self {
            Self::Closed | Self::Failing(_) => Permit::Go,
            Self::Open(until) if now < until => Permit::Wait(until.saturating_sub(now)),
            Self::Open(_) => {
                *self = Self::Probing;
                Permit::Go
            }
            Self::Probing => Permit::AfterProbe,
        }
    }

    /// An attempt ended with a retryable outcome.
    pub fn failed(&mut self, policy: &BreakerPolicy, now: Duration) {
        let failures = match *self {
            Self::Closed => 1,
            Self::Failing(failures) => failures.saturating_add(1),
            Self::Probing => policy.failures,
            // An attempt that had begun before it opened: the clock is not set anew.
            Self::Open(_) => return,
        };
        *self = if failures >= policy.failures {
            Self::Open(now.saturating_add(policy.open_for))
        } else {
            Self::Failing(failures)
        };
    }

    /// An attempt ended in any other way: the target is there.
    pub fn passed(&mut self) {
        // A success that began before it opened says less than the failures since.
        if !matches!(self, Self::Open(_)) {
            *self = Self::Closed;
        }
    }

    /// A probe was cut off by ourselves: the next to ask is the probe.
    pub fn cancelled(&mut self, now: Duration) {
        if *self == Self::Probing {
            *self = Self::Open(now);
        }
    }

    /// Whether attempts are held back.
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Open(_) | Self::Probing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: BreakerPolicy = BreakerPolicy { failures: 3, open_for: Duration::from_secs(30) };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn opens_after_consecutive_failures_only() {
        let mut breaker = Breaker::default();
        breaker.failed(&POLICY, at(0));
        breaker.failed(&POLICY, at(0));
        breaker.passed();
        breaker.failed(&POLICY, at(1));
        breaker.failed(&POLICY, at(1));
        assert_eq!(breaker.permit(at(1)), Permit::Go);
        breaker.failed(&POLICY, at(1));
        assert_eq!(breaker.permit(at(2)), Permit::Wait(at(29)));
    }

    #[test]
    fn one_probe_closes_or_reopens_it() {
        let mut breaker = Breaker::Open(at(30));
        assert_eq!(breaker.permit(at(30)), Permit::Go);
        assert_eq!(breaker.permit(at(30)), Permit::AfterProbe);
        breaker.failed(&POLICY, at(31));
        assert_eq!(breaker.permit(at(31)), Permit::Wait(at(30)));
        assert_eq!(breaker.permit(at(61)), Permit::Go);
        breaker.passed();
        assert_eq!(breaker, Breaker::Closed);
    }

    #[test]
    fn a_cancelled_probe_leaves_the_place_to_the_next() {
        let mut breaker = Breaker::Open(at(30));
        assert_eq!(breaker.permit(at(40)), Permit::Go);
        breaker.cancelled(at(41));
        assert_eq!(breaker.permit(at(41)), Permit::Go);
    }
}
