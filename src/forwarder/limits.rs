//! The limits of a session: what ends it though nobody asked, and when to look.

use std::time::Duration;

use tokio::time::Instant;

use super::orders::Orders;
use super::session::{End, Narrow, Session};
use super::work;

/// Most bytes of messages in our hands; above it what was not started goes back.
pub(super) const MAX_HELD_BYTES: usize = 64 * 1024 * 1024;
/// As many as are taken ahead at least where messages fit.
const FEW: u16 = 64;
/// How long a small window is kept after messages were too large for the usual one.
const NARROW_FOR: Duration = Duration::from_secs(60);
/// How long a tick waits for a message that was counted and is not there any more (a purge, another consumer).
const BATCH_WAIT: Duration = Duration::from_secs(1);

impl Session<'_> {
    /// Ends the session when one of its limits is reached.
    pub(super) fn watch_limits(&mut self) {
        if self.ending.is_some() {
            return;
        }
        let now = self.processor.clock.elapsed();
        let oldest = self.held.first_key_value().map(|(_, held)| held.taken);
        if oldest.is_some_and(|taken| now >= taken + self.processor.hold_limit) {
            // Too slow for many ahead, which only come back. It may stay so for ever.
            let few = Narrow { until: Duration::MAX, most: FEW };
            self.state.narrow = self.state.narrow.or(Some(few));
            return self.end(End::HoldLimit);
        }
        if self.bytes > MAX_HELD_BYTES && self.may_narrow() {
            self.state.narrow = Some(Narrow { until: now + NARROW_FOR, most: self.fitting() });
            return self.end(End::Renew);
        }
        // Under load something is always held where several attempts run side by side, and goes back this once. With
        // one at a time the window is empty after each message.
        let may_widen = self.held.is_empty() || self.processor.concurrency() > 1;
        if may_widen && self.state.narrow.is_some_and(|narrow| now >= narrow.until) {
            self.state.narrow = None;
            return self.end(End::Renew);
        }
        if let Some(left) = self.batch
            && left > 0
            && now >= self.last_taken + BATCH_WAIT
        {
            self.taken_enough();
        }
        if self.batch == Some(0) && self.held.is_empty() {
            return self.end(End::BatchDone);
        }
        if let Some(at) = self.next_check
            && now >= at
        {
            self.next_check = None;
            let check = work::check(&self.processor, None);
            self.work(check);
        }
    }

    /// How many messages as large as the largest that is held fit into half of what may be held.
    fn fitting(&self) -> u16 {
        let largest = self.held.values().map(|held| held.weight).max().unwrap_or(1).max(1);
        let most = self.processor.concurrency().max(FEW.into());
        u16::try_from((MAX_HELD_BYTES / 2 / largest).clamp(1, most)).unwrap_or(u16::MAX)
    }

    /// A window that was made small may still be too wide.
    fn may_narrow(&self) -> bool {
        self.state.narrow.is_none_or(|narrow| self.fitting() < narrow.most)
    }

    /// The batch is in our hands.
    pub(super) fn taken_enough(&mut self) {
        self.batch = Some(0);
        if let Some(consumer) = &mut self.consumer {
            consumer.stop_taking();
        }
    }

    /// When something is due that no event announces.
    pub(super) fn next_wake(&self, orders: &Orders) -> Option<Instant> {
        let at = |at: Duration| self.processor.clock.instant(at);
        let mut wake = orders.deadline();
        let mut also = |due: Option<Duration>| {
            if let Some(due) = due {
                wake = Some(wake.map_or(at(due), |wake| wake.min(at(due))));
            }
        };
        if self.ending.is_none() {
            if self.may_start() {
                also(self.gate.map(|(until, _)| until));
                also(self.lanes.next_due());
            }
            also(self.held.first_key_value().map(|(_, held)| held.taken + self.processor.hold_limit));
            also(self.batch.filter(|left| *left > 0).map(|_| self.last_taken + BATCH_WAIT));
            also(self.next_check);
        }
        wake
    }
}
