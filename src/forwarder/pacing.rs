//! When an attempt may start: a pause that the target asked for, the circuit breaker, the gap inside a batch, and the
//! rate limit, in this order, so that no rate is used up by an attempt that another rule holds back.

use std::time::Duration;

use super::report::Hindrance;
use crate::core::breaker::{Breaker, BreakerPolicy, Permit};
use crate::core::ordering::Sequence;
use crate::core::rate::{Limiter, RateLimit};
use crate::plan::ForwarderPlan;

/// The rules of one processor and where each of them stands. Outlives an attachment to the store: a message that
/// was returned and taken again finds the same pause, breaker and rate.
#[derive(Debug)]
pub(super) struct Pacing {
    rate: Option<RateLimit>,
    limiter: Limiter,
    breaker_policy: Option<BreakerPolicy>,
    breaker: Breaker,
    paused_until: Duration,
    gap: Duration,
    last: Option<(Sequence, Duration)>,
    began: Option<Duration>,
}

/// What the rules say to an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// Go. A probe is the one attempt that tells whether the breaker closes.
    Now { probe: bool },
    /// Ask again then.
    At(Duration, Option<Hindrance>),
    /// Ask again when the probe under way has ended.
    AfterProbe,
}

impl Pacing {
    pub(super) fn of(plan: &ForwarderPlan) -> Self {
        Self {
            rate: plan.rate_limit.clone(),
            limiter: Limiter::default(),
            breaker_policy: plan.circuit_breaker.clone(),
            breaker: Breaker::default(),
            paused_until: Duration::ZERO,
            gap: plan.poll.as_ref().map_or(Duration::ZERO, |poll| poll.message_interval),
            last: None,
            began: None,
        }
    }

    /// Asks for an attempt on `delivery` now. `Now` is an attempt: it counts against the rate.
    pub(super) fn ask(&mut self, delivery: Sequence, now: Duration) -> Start {
        if now < self.paused_until {
            return Start::At(self.paused_until, Some(Hindrance::PausedByTarget));
        }
        match self.breaker {
            Breaker::Open(until) if now < until => return Start::At(until, Some(Hindrance::BreakerOpen)),
            Breaker::Probing => return Start::AfterProbe,
            _ => {}
        }
        // The gap lies between two messages; retries of one have their own waits.
        if let Some((other, ended)) = self.last
            && other != delivery
            && now < ended + self.gap
        {
            return Start::At(ended + self.gap, None);
        }
        if let Some(rate) = &self.rate
            && let Err(wait) = self.limiter.take(rate, now)
        {
            return Start::At(now + wait, None);
        }
        // Asked above: nothing but `Go` is left, and it makes an open breaker that is due a probing one.
        debug_assert!(!matches!(self.breaker, Breaker::Probing));
        let Permit::Go = self.breaker.permit(now) else { return Start::AfterProbe };
        self.began.get_or_insert(now);
        Start::Now { probe: self.breaker == Breaker::Probing }
    }

    /// An attempt ended. `failed`: its outcome is one that is worth another attempt.
    pub(super) fn ended(&mut self, delivery: Sequence, probe: bool, failed: bool, now: Duration) {
        self.last = Some((delivery, now));
        let Some(policy) = &self.breaker_policy else { return };
        // While a probe is under way only the probe speaks; others began before the breaker opened.
        if self.breaker == Breaker::Probing && !probe {
            return;
        }
        if failed {
            self.breaker.failed(policy, now);
        } else {
            self.breaker.passed();
        }
    }

    /// A message is done with: the gap to the next one begins.
    pub(super) fn message_ended(&mut self, delivery: Sequence, now: Duration) {
        if self.last.is_some_and(|(last, _)| last == delivery) {
            self.last = Some((delivery, now));
        }
    }

    /// An attempt that was permitted says nothing of the target: it did not take place, or was cut off by ourselves.
    pub(super) fn cancelled(&mut self, probe: bool, now: Duration) {
        if probe {
            self.breaker.cancelled(now);
        }
    }

    /// The target asked for a pause of the whole processor.
    pub(super) fn pause(&mut self, until: Duration) {
        self.paused_until = self.paused_until.max(until);
    }

    /// A tick begins: the gap does not reach over from the batch before.
    pub(super) fn begin_batch(&mut self) {
        self.last = None;
        self.began = None;
    }

    /// When the first attempt of the batch began.
    pub(super) fn batch_began(&self) -> Option<Duration> {
        self.began
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn pacing() -> Pacing {
        Pacing {
            rate: None,
            limiter: Limiter::default(),
            breaker_policy: Some(BreakerPolicy { failures: 2, open_for: at(30) }),
            breaker: Breaker::default(),
            paused_until: Duration::ZERO,
            gap: Duration::ZERO,
            last: None,
            began: None,
        }
    }

    #[test]
    fn an_attempt_held_back_by_an_open_breaker_uses_up_no_rate() {
        let mut pacing = Pacing { rate: Some(RateLimit { requests: 1, per: at(100), burst: 2 }), ..pacing() };
        assert_eq!(pacing.ask(1, at(0)), Start::Now { probe: false });
        pacing.ended(1, false, true, at(0));
        pacing.ended(1, false, true, at(0));
        for _ in 0..5 {
            assert_eq!(pacing.ask(1, at(1)), Start::At(at(30), Some(Hindrance::BreakerOpen)));
        }
        assert_eq!(pacing.ask(1, at(30)), Start::Now { probe: true });
    }

    #[test]
    fn only_the_probe_decides_about_an_open_breaker() {
        let mut pacing = pacing();
        pacing.ended(1, false, true, at(0));
        pacing.ended(2, false, true, at(0));
        assert_eq!(pacing.ask(3, at(31)), Start::Now { probe: true });
        pacing.ended(4, false, false, at(32));
        assert_eq!(pacing.ask(5, at(32)), Start::AfterProbe);
        pacing.ended(3, true, true, at(33));
        assert_eq!(pacing.ask(5, at(34)), Start::At(at(63), Some(Hindrance::BreakerOpen)));
    }

    #[test]
    fn an_attempt_that_says_nothing_leaves_the_breaker_to_the_probe() {
        let mut pacing = pacing();
        pacing.ended(1, false, true, at(0));
        pacing.ended(2, false, true, at(0));
        assert_eq!(pacing.ask(3, at(31)), Start::Now { probe: true });
        pacing.cancelled(false, at(32));
        assert_eq!(pacing.ask(4, at(32)), Start::AfterProbe);
        pacing.cancelled(true, at(33));
        assert_eq!(pacing.ask(4, at(33)), Start::Now { probe: true });
    }

    #[test]
    fn the_gap_lies_between_messages_and_not_between_the_retries_of_one() {
        let mut pacing = Pacing { gap: at(3), ..pacing() };
        assert_eq!(pacing.ask(1, at(0)), Start::Now { probe: false });
        pacing.ended(1, false, false, at(1));
        assert_eq!(pacing.ask(1, at(1)), Start::Now { probe: false });
        pacing.ended(1, false, false, at(2));
        assert_eq!(pacing.ask(2, at(2)), Start::At(at(5), None));
        assert_eq!(pacing.ask(2, at(5)), Start::Now { probe: false });
        pacing.begin_batch();
        assert_eq!(pacing.ask(3, at(5)), Start::Now { probe: false });
    }
}
