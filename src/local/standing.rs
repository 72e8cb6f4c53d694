//! How a processor stands: the reports of its forwarders, those that have ended included, in one.

use std::time::Duration;

use jiff::Timestamp;

use crate::forwarder::{Hindrance, ProcessorReport, ProcessorState};

/// The sum of reports. Counters add up; of single facts the latest counts.
#[derive(Debug, Clone, Default)]
pub(super) struct Standing {
    pub(super) delivered: u64,
    pub(super) failed_attempts: u64,
    pub(super) dead_lettered: u64,
    pub(super) dropped: u64,
    pub(super) filtered: u64,
    pub(super) responses_lost: u64,
    pub(super) held: u64,
    pub(super) oldest_taken_age: Option<Duration>,
    pub(super) next_tick: Option<Timestamp>,
    pub(super) latest: Option<ProcessorReport>,
    pub(super) deactivated: Option<ProcessorReport>,
    pub(super) target_reachable: Option<bool>,
    pub(super) hindrance: Option<Hindrance>,
}

impl Standing {
    /// With one more report.
    #[must_use]
    pub(super) fn and(mut self, report: ProcessorReport) -> Self {
        self.delivered += report.delivered;
        self.failed_attempts += report.failed_attempts;
        self.dead_lettered += report.dead_lettered;
        self.dropped += report.dropped;
        self.filtered += report.filtered;
        self.responses_lost += report.responses_lost;
        self.held += report.held;
        self.oldest_taken_age = self.oldest_taken_age.max(report.oldest_taken_age);
        self.next_tick = match (self.next_tick, report.next_tick) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        // A target that one of them does not reach is not reached.
        self.target_reachable = match (self.target_reachable, report.target_reachable) {
            (Some(one), Some(other)) => Some(one && other),
            (one, other) => one.or(other),
        };
        self.hindrance = self.hindrance.or(report.hindrance);
        if report.state == ProcessorState::Deactivated {
            self.deactivated = Some(report.clone());
        }
        self.latest = Some(match self.latest.take() {
            None => report,
            Some(before) => ProcessorReport {
                last_delivery: later(before.last_delivery, report.last_delivery.clone(), |delivery| delivery.time),
                last_failure: later(before.last_failure, report.last_failure.clone(), |failure| failure.time),
                ..report
            },
        });
        self
    }

    /// What stays when the forwarders have ended: counters and the last facts.
    #[must_use]
    pub(super) fn after(self) -> Self {
        Self {
            held: 0,
            oldest_taken_age: None,
            next_tick: None,
            deactivated: None,
            target_reachable: None,
            hindrance: None,
            ..self
        }
    }
}

fn later<T>(one: Option<T>, other: Option<T>, time: impl Fn(&T) -> Timestamp) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(if time(&one) > time(&other) { one } else { other }),
        (one, other) => one.or(other),
    }
}
