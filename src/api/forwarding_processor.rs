//! `ForwardingProcessor`: out of the store, to the target.

use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use super::cel;
use super::delivery::{CircuitBreaker, OnFailure, Outcomes, RateLimit, ResponseHandling, Retry};
pub use super::delivery::{
    FailureAction, OutcomeEntry, ResponseLog, WhileUnreachable, default_retry_outcomes, default_success_outcomes,
};
pub use super::processor_status::{
    DeactivationStatus, DeadLetterStatus, ForwarderWorker, ForwardingProcessorStatus, LastDelivery, LastFailure,
    ProcessorState,
};
use super::shared::{DurationText, StoreRef, Workload};
pub use super::target::{Target, TargetAuth, TargetHeaders, TargetTls};
use super::transform::TransformStep;

/// Out of the store, to the target.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "stagepost.dev",
    version = "v1alpha1",
    kind = "ForwardingProcessor",
    namespaced,
    status = "ForwardingProcessorStatus",
    derive = "PartialEq",
    shortname = "fwp",
    category = "stagepost",
    doc = "Takes messages out of a store and delivers them to a target, with retries, order and dead letters.",
    validation = cel::NAME.rule(),
    scale(
        spec_replicas_path = ".spec.workload.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Store", type_ = "string", json_path = ".spec.storeRef.name"),
    printcolumn(name = "Target", type_ = "string", json_path = ".status.target"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Delivered", type_ = "integer", json_path = ".status.delivered"),
    printcolumn(name = "Backlog", type_ = "integer", json_path = ".status.backlog"),
    printcolumn(name = "DLC", type_ = "integer", json_path = ".status.deadLetter.messages"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason"),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.failedAttempts", priority = 1),
    printcolumn(name = "Dropped", type_ = "integer", json_path = ".status.dropped", priority = 1),
    printcolumn(name = "Last-Delivery", type_ = "date", json_path = ".status.lastDelivery.time", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    cel::SOURCE_IMMUTABLE,
    cel::STRICT_CONCURRENCY,
    cel::KEY_WITHOUT_PER_KEY,
    cel::PER_KEY_WITHOUT_KEY,
    cel::MESSAGE_INTERVAL_CONCURRENCY,
    cel::REPLICAS,
]))]
pub struct ForwardingProcessorSpec {
    /// The store it takes from. Immutable.
    pub store_ref: StoreRef,
    /// Stops delivery; messages stay in the store. (The annotation stagepost.dev/paused stops reconciling instead.)
    #[serde(default)]
    pub suspend: bool,
    /// Where it sends.
    pub target: Target,
    /// Which messages wait for which.
    #[serde(default)]
    pub ordering: Ordering,
    /// Attempts in flight in one pod. Strict: 1.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1024))]
    pub concurrency: u32,
    /// PerKey only, required there: an expression; messages with the same value stay in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub ordering_key: Option<String>,
    /// Absent: push, delivered as it arrives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll: Option<Poll>,
    /// Of attempts, retries included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// Applied once per message, before the first attempt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub transform: Vec<TransformStep>,
    /// The attempts after the first.
    #[serde(default)]
    pub retry: Retry,
    /// What a response means. An exact entry beats a class.
    #[serde(default)]
    pub outcomes: Outcomes,
    /// What is done with a message that has finally failed.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// What is done with the target's answer; it never changes the outcome.
    #[serde(default)]
    pub response: ResponseHandling,
    /// Pauses delivery after many failures in a row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<CircuitBreaker>,
    /// The pods.
    #[serde(default = "one_pod")]
    #[schemars(schema_with = "workload_schema")]
    pub workload: Workload,
}

impl ForwardingProcessorSpec {
    /// How many pods are wanted.
    pub fn replicas(&self) -> u32 {
        self.workload.replicas.unwrap_or(1)
    }
}

fn one_pod() -> Workload {
    Workload::of(1)
}

fn workload_schema(generator: &mut SchemaGenerator) -> Schema {
    Workload::schema(generator, 1)
}

fn one() -> u32 {
    1
}

/// Which messages wait for which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Ordering {
    /// Each waits for the one before it.
    #[default]
    Strict,
    /// Each waits for the one before it with the same key.
    PerKey,
    /// None waits.
    None,
}

/// When messages are taken (Polling Consumer).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [cel::POLL_ONE]))]
pub struct Poll {
    /// From start to start of a tick.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [cel::DURATION, cel::POSITIVE]))]
    pub interval: Option<DurationText>,
    /// Quartz, 6 or 7 fields with seconds; or 5 fields as in a CronJob.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub cron: Option<String>,
    /// Of the cron expression: an IANA name.
    #[serde(default = "utc")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: String,
    /// Messages a tick; -1: as many as were there at the tick.
    #[serde(default = "one_message")]
    #[schemars(range(max = 1_000_000), extend("x-kubernetes-validations" = [cel::BATCH_SIZE]))]
    pub batch_size: i32,
    /// Gap inside a batch, end to start, not after the last.
    #[serde(default = "no_gap")]
    pub message_interval: DurationText,
}

fn utc() -> String {
    "UTC".to_owned()
}

fn one_message() -> i32 {
    1
}

fn no_gap() -> DurationText {
    "0s".into()
}
