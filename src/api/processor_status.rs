//! The status of a ForwardingProcessor.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::condition::{Condition, Time};

/// What is known of a processor.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ForwardingProcessorStatus {
    /// Whether it delivers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<ProcessorState>,
    /// In one word, what one must know of it first: `Delivering`, or what stands in the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The target as resolved, without query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Messages delivered, since creation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivered: Option<u64>,
    /// Attempts that failed, since creation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_attempts: Option<u64>,
    /// Messages moved to the dead letter store, since creation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_lettered: Option<u64>,
    /// Messages discarded, since creation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped: Option<u64>,
    /// Messages settled by a filter, since creation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filtered: Option<u64>,
    /// The counters of each pod: the base of the sums.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub workers: Vec<ForwarderWorker>,
    /// Ready in the source and held by our workers, sampled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backlog: Option<u64>,
    /// Held by our workers, sampled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<u64>,
    /// Age of the oldest message that is held, like `3s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_taken_age: Option<String>,
    /// What waits in the dead letter store now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<DeadLetterStatus>,
    /// The next tick, with a schedule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_tick: Option<Time>,
    /// The last delivery.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_delivery: Option<LastDelivery>,
    /// The last failed attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<LastFailure>,
    /// Why it is deactivated; absent if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deactivation: Option<DeactivationStatus>,
    /// The value of the annotation stagepost.dev/reactivate that was carried out last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_handled_reactivate: Option<String>,
    /// Pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
    /// Pods that are ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<u32>,
    /// Selects the pods, for the scale subresource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Accepted, ResolvedRefs, BrokerConnected, TargetReachable, Delivering, Degraded, Paused, Ready.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The generation that the conditions speak of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Whether a processor delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ProcessorState {
    /// It does.
    Active,
    /// The user stopped it by `spec.suspend`.
    Suspended,
    /// It stopped itself at a message that failed.
    Deactivated,
    /// It does not run (yet).
    Pending,
}

/// The counters of one forwarder pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ForwarderWorker {
    /// The pod's name.
    pub pod: String,
    /// When its process started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<Time>,
    /// Messages delivered.
    pub delivered: u64,
    /// Attempts that failed.
    pub failed_attempts: u64,
    /// Messages moved to the dead letter store.
    pub dead_lettered: u64,
    /// Messages discarded.
    pub dropped: u64,
    /// Messages settled by a filter.
    pub filtered: u64,
}

/// What waits in the dead letter store.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DeadLetterStatus {
    /// The queue.
    pub queue: String,
    /// Messages in it, sampled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<u64>,
}

/// The last delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastDelivery {
    /// When.
    pub time: Time,
    /// The target's status; absent for a store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
}

/// The last failed attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastFailure {
    /// When.
    pub time: Time,
    /// The message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// In CamelCase.
    pub reason: String,
    /// The target's status, if it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// One line for a human.
    pub message: String,
}

/// Why a processor is deactivated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeactivationStatus {
    /// When.
    pub time: Time,
    /// The message it stopped at.
    pub message_id: String,
    /// In CamelCase.
    pub reason: String,
    /// One line for a human.
    pub message: String,
    /// Attempts made.
    pub attempts: u32,
}
