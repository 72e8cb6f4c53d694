//! `MessageStore`: where messages wait. A queue, an exchange that leads to queues, or both.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cel;
use super::condition::Condition;
use super::shared::{CaRef, DurationText, ObjectRef, Size, StoreRef};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Where messages wait.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "stagepost.dev",
    version = "v1alpha1",
    kind = "MessageStore",
    namespaced,
    status = "MessageStoreStatus",
    derive = "PartialEq",
    shortname = "mstore",
    category = "stagepost",
    doc = "A place where messages wait: a queue, an exchange that leads to queues, or both.",
    validation = cel::NAME.rule(),
    printcolumn(name = "Queue", type_ = "string", json_path = ".status.queue.name"),
    printcolumn(name = "Type", type_ = "string", json_path = ".status.queue.type"),
    printcolumn(name = "Messages", type_ = "integer", json_path = ".status.messages"),
    printcolumn(name = "Consumers", type_ = "integer", json_path = ".status.consumers"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    cel::QUEUE_OR_EXCHANGE,
    cel::BINDINGS_NEED_BOTH,
    cel::BINDINGS_NOT_FANOUT,
    cel::TOPIC_NEEDS_BINDINGS,
    cel::QUEUE_IMMUTABLE,
    cel::EXCHANGE_IMMUTABLE,
]))]
pub struct MessageStoreSpec {
    /// Which broker.
    pub broker: Broker,
    /// Absent with an exchange present: a publish-only store (a topic). Immutable as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<Queue>,
    /// Absent: the broker's default exchange. Name and type are immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exchange: Option<Exchange>,
    /// Keys that bind the queue to the exchange. Default: the routing key, with Direct. Required with Topic and a queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 100), inner(length(max = 255)))]
    pub bindings: Option<Vec<String>>,
    /// Used when publishing through this store. Default: the queue's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    pub routing_key: Option<String>,
    /// The wait for the broker's confirm of one publish.
    #[serde(default = "confirm_timeout")]
    #[schemars(extend("x-kubernetes-validations" = [cel::DURATION, cel::POSITIVE]))]
    pub confirm_timeout: DurationText,
    /// Retries of a publish, only while the broker is not connected.
    #[serde(default)]
    pub retry: StoreRetry,
    /// Of the whole store operation, failover included. At most 60s: an HTTP caller is waiting.
    #[serde(default = "deadline")]
    #[schemars(extend("x-kubernetes-validations" = [cel::DURATION, cel::POSITIVE, cel::STORE_DEADLINE]))]
    pub deadline: DurationText,
    /// The store that takes what this one cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failover_store_ref: Option<StoreRef>,
    /// Delete removes the queue with the object, if it is empty and unused.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

fn confirm_timeout() -> DurationText {
    "5s".into()
}

fn deadline() -> DurationText {
    "10s".into()
}

/// How the broker is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [cel::BROKER_ONE]))]
pub struct Broker {
    /// A Secret with `uri`, or with `host`, `port`, `username`, `password` and `vhost`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<ObjectRef>,
    /// A RabbitmqCluster (rabbitmq.com/v1beta1) in this namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_ref: Option<ObjectRef>,
    /// Default: the Secret's, else `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub virtual_host: Option<String>,
    /// How the broker's certificate is verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<BrokerTls>,
}

/// How the broker's certificate is verified.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BrokerTls {
    /// CA certificates. Default: the Secret's `ca.crt`, else those of the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_ref: Option<CaRef>,
    /// The name to verify instead of the host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub server_name: Option<String>,
}

/// The queue of a store.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [cel::LIMITS_WITH_EXISTING]))]
pub struct Queue {
    /// The queue's name on the broker. Default: `<namespace>.<name>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), extend("x-kubernetes-validations" = [cel::QUEUE_NAME_RESERVED]))]
    pub name: Option<String>,
    /// Quorum is replicated, Classic is on one node.
    #[serde(rename = "type", default)]
    pub kind: QueueType,
    /// Existing is never declared; only its existence can be checked.
    #[serde(default)]
    pub management: Management,
    /// SingleActive fences off a pod that was thought dead; Competing is needed for replicas > 1.
    #[serde(default)]
    pub consumers: Consumers,
    /// Most messages (approximate); a full queue refuses, it never discards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_length: Option<u64>,
    /// Most bytes; a full queue refuses, it never discards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_length_bytes: Option<Size>,
}

/// The kind of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum QueueType {
    /// Replicated.
    #[default]
    Quorum,
    /// On one node.
    Classic,
}

/// Whether a queue or exchange is declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Management {
    /// Declared at every connect.
    #[default]
    Declare,
    /// Never declared.
    Existing,
}

/// How many consumers a queue serves at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Consumers {
    /// One.
    #[default]
    SingleActive,
    /// Several.
    Competing,
}

/// The exchange of a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [cel::EXCHANGE_NAME_RESERVED]))]
pub struct Exchange {
    /// The exchange's name on the broker.
    #[schemars(length(min = 1, max = 255))]
    pub name: String,
    /// How it routes.
    #[serde(rename = "type", default)]
    pub kind: ExchangeType,
    /// Existing is never declared.
    #[serde(default)]
    pub management: Management,
}

/// How an exchange routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum ExchangeType {
    /// By the exact key.
    Direct,
    /// By patterns of keys.
    #[default]
    Topic,
    /// To every queue.
    Fanout,
}

/// Retries of a publish while the broker is not connected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StoreRetry {
    /// Tries after the first.
    #[schemars(range(min = 0, max = 1000))]
    pub max_retries: u32,
    /// The first wait.
    pub interval: DurationText,
    /// Each further wait is this many times longer.
    #[schemars(range(min = 1.0, max = 100.0))]
    pub backoff_factor: f64,
    /// No wait is longer.
    pub max_interval: DurationText,
}

impl Default for StoreRetry {
    fn default() -> Self {
        Self { max_retries: 3, interval: "500ms".into(), backoff_factor: 1.5, max_interval: "5s".into() }
    }
}

/// What becomes of the queue when the object is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// It stays.
    #[default]
    Retain,
    /// It is deleted if it is empty and unused, else kept.
    Delete,
}

/// What is known of a store.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MessageStoreStatus {
    /// Accepted, ResolvedRefs, BrokerConnected, Degraded, Ready.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The queue, as resolved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueStatus>,
    /// What was bound; what left the spec is unbound.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 100), inner(length(max = 255)))]
    pub bindings: Option<Vec<String>>,
    /// Ready in the queue, sampled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<u64>,
    /// Consumers attached, sampled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumers: Option<u32>,
    /// When the numbers were taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampled_at: Option<Time>,
    /// The generation that the conditions speak of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// A queue, as resolved.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct QueueStatus {
    /// Its name on the broker.
    pub name: String,
    /// Its virtual host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_host: Option<String>,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: QueueType,
    /// Since when it has been there, as far as is known. When it was found missing and was declared again: since then,
    /// and what was in it before is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
}
