//! What is said of an object's state, from facts to conditions: the same words in a local run and in a cluster.
//!
//! Inputs: facts, from a store or a forwarder of this process, or as a worker pod reported them. Outputs: conditions,
//! and the sums of several workers. Pure: nothing here asks anybody.

pub mod link;
pub mod queue;
pub mod report;
pub mod standing;
pub mod verdict;
pub mod why;

use std::time::Duration;

use standing::Standing;

use crate::api::ForwardingProcessorStatus;
use crate::api::message_store::{QueueStatus, QueueType};
use crate::api::processor_status::DeactivationStatus;
use crate::core::deactivation::Deactivation;
use crate::core::duration;
use crate::core::topology::QueueKind;
use crate::plan::StorePlan;

/// The queue of a store, as resolved.
pub fn queue_status(plan: &StorePlan) -> Option<QueueStatus> {
    plan.topology.queue.as_ref().map(|queue| QueueStatus {
        name: queue.name.clone(),
        virtual_host: Some(plan.broker.virtual_host.clone().unwrap_or_else(|| "/".to_owned())),
        kind: match queue.kind {
            QueueKind::Quorum => QueueType::Quorum,
            QueueKind::Classic => QueueType::Classic,
        },
        since: None,
    })
}

/// What a processor's status says in numbers and single facts; the rest is absent.
pub fn numbers(standing: &Standing) -> ForwardingProcessorStatus {
    let whole_seconds = |age: Duration| duration::format(Duration::from_secs(age.as_secs())).as_str().to_owned();
    ForwardingProcessorStatus {
        delivered: Some(standing.delivered),
        failed_attempts: Some(standing.failed_attempts),
        dead_lettered: Some(standing.dead_lettered),
        dropped: Some(standing.dropped),
        filtered: Some(standing.filtered),
        held: Some(standing.held),
        oldest_taken_age: standing.oldest_taken_age.map(whole_seconds),
        next_tick: standing.next_tick.clone(),
        last_delivery: standing.last_delivery.clone(),
        last_failure: standing.last_failure.clone(),
        ..ForwardingProcessorStatus::default()
    }
}

impl From<&Deactivation> for DeactivationStatus {
    fn from(record: &Deactivation) -> Self {
        Self {
            time: crate::api::condition::Time(record.time),
            message_id: record.message_id.clone(),
            reason: record.reason.clone(),
            message: record.message.clone(),
            attempts: record.attempts,
        }
    }
}
