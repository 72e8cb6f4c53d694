//! How a processor stands: the reports of its forwarders, those that have ended included, in one.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::api::condition::Time;
use crate::api::processor_status::{LastDelivery, LastFailure};
use crate::core::deactivation::Deactivation;
use crate::core::duration::optional_millis;
use crate::forwarder::{Hindrance, ProcessorReport, ProcessorState};

/// The sum of reports. Counters add up; of single facts the latest counts. Counters count from the start of a process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Standing {
    /// Messages delivered.
    pub delivered: u64,
    /// Attempts without success.
    pub failed_attempts: u64,
    /// Messages moved to the dead letter store.
    pub dead_lettered: u64,
    /// Messages discarded after failure.
    pub dropped: u64,
    /// Messages settled by a filter.
    pub filtered: u64,
    /// Answers that could not be stored.
    pub responses_lost: u64,
    /// Messages in our hands.
    pub held: u64,
    /// Age of the oldest message in our hands.
    #[serde(with = "optional_millis")]
    pub oldest_taken_age: Option<Duration>,
    /// The next tick of a polling processor.
    pub next_tick: Option<Time>,
    /// The last success.
    pub last_delivery: Option<LastDelivery>,
    /// The last attempt without success.
    pub last_failure: Option<LastFailure>,
    /// The record that keeps it stopped; present while it is deactivated.
    pub deactivation: Option<Deactivation>,
    /// Whether the last attempt reached the target; `None` before the first.
    pub target_reachable: Option<bool>,
    /// Messages that were suspected to kill a worker and had an outcome all the same.
    pub cleared: Vec<String>,
    /// Why nothing is delivered now.
    pub hindrance: Option<Hindrance>,
}

impl From<ProcessorReport> for Standing {
    fn from(report: ProcessorReport) -> Self {
        Self {
            delivered: report.delivered,
            failed_attempts: report.failed_attempts,
            dead_lettered: report.dead_lettered,
            dropped: report.dropped,
            filtered: report.filtered,
            responses_lost: report.responses_lost,
            held: report.held,
            oldest_taken_age: report.oldest_taken_age,
            next_tick: report.next_tick.map(Time),
            last_delivery: report
                .last_delivery
                .map(|delivery| LastDelivery { time: Time(delivery.time), status: delivery.status }),
            last_failure: report.last_failure.map(|failure| LastFailure {
                time: Time(failure.time),
                message_id: Some(failure.message_id),
                reason: failure.reason.to_owned(),
                status: failure.status,
                message: failure.message,
            }),
            deactivation: report.deactivation.filter(|_| report.state == ProcessorState::Deactivated),
            target_reachable: report.target_reachable,
            cleared: report.cleared,
            hindrance: report.hindrance,
        }
    }
}

impl Standing {
    /// With one more report.
    #[must_use]
    pub fn and(self, report: impl Into<Self>) -> Self {
        let report = report.into();
        Self {
            delivered: self.delivered + report.delivered,
            failed_attempts: self.failed_attempts + report.failed_attempts,
            dead_lettered: self.dead_lettered + report.dead_lettered,
            dropped: self.dropped + report.dropped,
            filtered: self.filtered + report.filtered,
            responses_lost: self.responses_lost + report.responses_lost,
            held: self.held + report.held,
            oldest_taken_age: self.oldest_taken_age.max(report.oldest_taken_age),
            next_tick: match (self.next_tick, report.next_tick) {
                (Some(one), Some(other)) => Some(if one.0 < other.0 { one } else { other }),
                (one, other) => one.or(other),
            },
            last_delivery: later(self.last_delivery, report.last_delivery, |delivery| &delivery.time),
            last_failure: later(self.last_failure, report.last_failure, |failure| &failure.time),
            deactivation: report.deactivation.or(self.deactivation),
            // A target that one of them does not reach is not reached.
            target_reachable: match (self.target_reachable, report.target_reachable) {
                (Some(one), Some(other)) => Some(one && other),
                (one, other) => one.or(other),
            },
            cleared: self.cleared.into_iter().chain(report.cleared).collect(),
            hindrance: self.hindrance.or(report.hindrance),
        }
    }

    /// What stays when the forwarders have ended: counters and the last facts.
    #[must_use]
    pub fn after(self) -> Self {
        Self {
            held: 0,
            oldest_taken_age: None,
            next_tick: None,
            deactivation: None,
            target_reachable: None,
            hindrance: None,
            ..self
        }
    }
}

fn later<T>(one: Option<T>, other: Option<T>, time: impl Fn(&T) -> &Time) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(if time(&one).0 > time(&other).0 { one } else { other }),
        (one, other) => one.or(other),
    }
}
