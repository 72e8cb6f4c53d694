//! From manifests to what a worker runs.
//!
//! The only place that knows both the wire contract ([`crate::api`]) and the delivery rules ([`crate::core`]):
//! [`manifest`] reads YAML into kinds, [`validate`] checks them, [`compile`] makes plans of what is valid.
//!
//! A plan is complete in itself: a worker that has its plan and the Secrets it names needs nothing else. It is
//! serialisable, holds no secret value, and its hash changes exactly when its content does.

pub mod advice;
pub mod compile;
pub mod finding;
pub mod keys;
pub mod load;
pub mod manifest;
mod needs;
mod object;
pub mod overlap;
mod position;
pub mod rules;
mod schema;
mod suggest;
pub mod validate;
pub mod world;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::core::breaker::BreakerPolicy;
use crate::core::decision::Policy;
use crate::core::duration::{millis, optional_millis};
use crate::core::rate::RateLimit;
use crate::core::topology::Topology;
use crate::expression::Step;

/// Largest plan, as JSON: what fits into a `ConfigMap` with room for its metadata.
pub const MAX_PLAN_BYTES: usize = 900 * 1024;

/// What one worker runs.
// A process has few of them: their size does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Plan {
    /// An IngressRoute: HTTP into stores.
    Ingress(IngressPlan),
    /// A ForwardingProcessor: a store into a target.
    Forwarder(ForwarderPlan),
}

impl Plan {
    /// The first 10 hex digits of the SHA-256 of the plan's JSON: names its `ConfigMap`.
    pub fn hash(&self) -> String {
        let json = serde_json::to_vec(self).unwrap_or_default();
        Sha256::digest(&json).iter().take(5).fold(String::new(), |hash, byte| format!("{hash}{byte:02x}"))
    }
}

/// Names an object: namespace, name, and the uid that tells it from an earlier one of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The uid in a cluster; empty in local mode.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

impl ObjectName {
    /// `<namespace>.<name>`, as in queue names.
    pub fn dotted(&self) -> String {
        format!("{}.{}", self.namespace, self.name)
    }

    /// `<namespace>/<name>`, as users write it.
    pub fn slashed(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// One key of a Secret or `ConfigMap` in the object's namespace. Never a value.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyRef {
    /// Whether it is a Secret or a `ConfigMap`.
    pub source: KeySource,
    /// The object's name.
    pub name: String,
    /// The key in it.
    pub key: String,
}

impl fmt::Display for KeyRef {
    /// `Secret/name key`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{} key {}", self.source, self.name, self.key)
    }
}

/// What kind of object holds a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum KeySource {
    /// A Secret.
    Secret,
    /// A `ConfigMap`.
    ConfigMap,
}

/// Where the values behind [`KeyRef`]s come from: mounted files in a pod, manifests in local mode.
pub trait KeyValues: Send + Sync {
    /// The value now; `None` if the object or the key is missing.
    fn get(&self, key: &KeyRef) -> Option<Vec<u8>>;
}

/// One store and how to reach it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StorePlan {
    /// The MessageStore's name in the plan's namespace. The default dead letter queue has `<source store>.dlc`.
    pub name: String,
    /// Which broker.
    pub broker: BrokerPlan,
    /// What is declared on it.
    pub topology: Topology,
    /// The wait for the confirm of one publish.
    #[serde(with = "millis")]
    pub confirm_timeout: Duration,
    /// While not connected, see the delivery rules.
    pub retry: StoreRetry,
    /// Of the whole store operation, failover included.
    #[serde(with = "millis")]
    pub deadline: Duration,
    /// The store that takes over; it is in the same plan.
    pub failover: Option<String>,
}

/// Retries of a publish while there is no connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StoreRetry {
    /// Tries after the first.
    pub max_retries: u32,
    /// The first wait.
    #[serde(with = "millis")]
    pub interval: Duration,
    /// Each further wait is this many times longer.
    pub backoff_factor: f64,
    /// No wait is longer.
    #[serde(with = "millis")]
    pub max_interval: Duration,
}

/// Which broker a store is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BrokerPlan {
    /// What names the connection.
    pub connection: BrokerConnection,
    /// Overrides the Secret's virtual host.
    pub virtual_host: Option<String>,
    /// TLS beyond what the Secret says.
    pub tls: Option<TlsPlan>,
}

/// What names the connection to a broker.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum BrokerConnection {
    /// A Secret with `uri` or `host`, `username`, `password`.
    Secret(String),
    /// A `RabbitmqCluster` of the RabbitMQ cluster operator.
    Cluster(String),
}

/// How a TLS peer is verified.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsPlan {
    /// The CA certificates (PEM); absent: those of the system.
    pub ca: Option<KeyRef>,
    /// A Secret with `tls.crt` and `tls.key`.
    pub client_cert_secret: Option<String>,
    /// The name to verify instead of the host name.
    pub server_name: Option<String>,
}

/// What an ingress worker runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IngressPlan {
    /// The IngressRoute.
    pub object: ObjectName,
    /// In order; the first that matches takes the request.
    pub rules: Vec<RulePlan>,
    /// The listener's limits.
    pub limits: Limits,
    /// Every store that a rule names, failover stores included, by name.
    pub stores: BTreeMap<String, StorePlan>,
}

/// One rule of an IngressRoute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RulePlan {
    /// The rule's name.
    pub name: String,
    /// The path pattern, as written; see [`crate::core::matching`].
    pub path: String,
    /// Upper-case method names.
    pub methods: Vec<String>,
    /// An expression.
    pub when: Option<String>,
    /// Media types without parameters, lower case; empty: any.
    pub consumes: Vec<String>,
    /// Whether the body must be JSON.
    pub body: BodyKind,
    /// A JSON Schema.
    pub schema: Option<serde_json::Value>,
    /// Whether `Authorization` and `Cookie` are stored.
    pub forward_credentials: bool,
    /// Where it is stored.
    pub store: String,
    /// A template.
    pub routing_key: Option<String>,
    /// Applied before storing.
    pub transform: Vec<Step>,
    /// Request-reply: how long the caller waits.
    #[serde(with = "optional_millis")]
    pub reply_timeout: Option<Duration>,
    /// The answer when the message is stored.
    pub accepted: ResponsePlan,
    /// The answer to a malformed body.
    pub invalid: ResponsePlan,
    /// The answer when the message is not stored.
    pub store_failed: ResponsePlan,
}

/// What a rule asks of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BodyKind {
    /// Any bytes.
    Any,
    /// Well-formed JSON.
    Json,
}

/// An answer to the caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResponsePlan {
    /// The status.
    pub status: u16,
    /// Header names and templates of their values.
    pub headers: BTreeMap<String, String>,
    /// A template; absent: problem JSON for a failure, nothing for a success.
    pub body: Option<String>,
}

/// The limits of an ingress listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// Bytes.
    pub max_body_size: u64,
    /// Bytes of the request head.
    pub max_header_size: u64,
    /// For the head, and again for the body.
    #[serde(with = "millis")]
    pub read_timeout: Duration,
    /// Requests.
    pub max_in_flight: u32,
    /// Bytes, by Content-Length, else `max_body_size`.
    pub max_in_flight_bytes: u64,
    /// Connections.
    pub max_connections: u32,
}

/// What a forwarding worker runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ForwarderPlan {
    /// The ForwardingProcessor.
    pub object: ObjectName,
    /// The store it takes from.
    pub source: String,
    /// Where it sends.
    pub target: TargetPlan,
    /// Which messages wait for which.
    pub ordering: OrderingPlan,
    /// Attempts in flight in one process.
    pub concurrency: u32,
    /// Consumers in one process in local mode; pods in a cluster.
    pub replicas: u32,
    /// Absent: push.
    pub poll: Option<PollPlan>,
    /// Of attempts.
    pub rate_limit: Option<RateLimit>,
    /// Applied once per message, before its first attempt.
    pub transform: Vec<Step>,
    /// The rules of the decision.
    pub policy: Policy,
    /// The dead letter store; present with `DeadLetter`.
    pub dead_letters: Option<String>,
    /// What is done with the answer.
    pub response: AnswerPlan,
    /// Absent: none.
    pub circuit_breaker: Option<BreakerPolicy>,
    /// Every store that is named above, by name.
    pub stores: BTreeMap<String, StorePlan>,
}

/// Which messages wait for which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum OrderingPlan {
    /// Each waits for the one before it.
    Strict,
    /// Each waits for the one before it with the same key; the text is the key's expression.
    PerKey(String),
    /// None waits.
    None,
}

/// Where a processor sends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum TargetPlan {
    /// HTTP.
    Http(Box<HttpTargetPlan>),
    /// Another store, by name.
    Store(String),
}

/// An HTTP target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpTargetPlan {
    /// Where.
    pub address: TargetAddress,
    /// A method, or none to preserve the stored one (POST for a message that has none).
    pub method: Option<String>,
    /// Whether the stored path and query are appended.
    pub append_path: bool,
    /// For one connection, TLS handshake included.
    #[serde(with = "millis")]
    pub connect_timeout: Duration,
    /// For one attempt up to the complete response head, and again for its body.
    #[serde(with = "millis")]
    pub timeout: Duration,
    /// Header names and templates of their values.
    pub set_headers: BTreeMap<String, String>,
    /// Header names.
    pub remove_headers: Vec<String>,
    /// TLS beyond the defaults.
    pub tls: Option<TlsPlan>,
    /// Credentials.
    pub auth: Option<AuthPlan>,
    /// Whether loopback addresses are refused (in a cluster).
    pub refuse_loopback: bool,
}

/// Where an HTTP target is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum TargetAddress {
    /// A URL.
    Url(String),
    /// A Service; local mode finds its URL by `--service` or `--sink`.
    #[serde(rename_all = "camelCase")]
    Service {
        /// The Service's name.
        name: String,
        /// Its port.
        port: u16,
        /// The path and query.
        path: String,
        /// Whether it is called by https.
        tls: bool,
    },
}

/// Credentials for a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum AuthPlan {
    /// A Secret with `username` and `password`.
    Basic(String),
    /// A key with the token.
    Bearer(KeyRef),
}

/// When a polling processor takes messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PollPlan {
    /// The ticks.
    pub schedule: SchedulePlan,
    /// Messages a tick; `None`: as many as were there at the tick.
    pub batch_size: Option<u32>,
    /// Gap inside a batch, end to start.
    #[serde(with = "millis")]
    pub message_interval: Duration,
}

/// The ticks of a polling processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum SchedulePlan {
    /// From start to start.
    #[serde(with = "millis")]
    Interval(Duration),
    /// A cron expression, see [`crate::core::schedule`].
    #[serde(rename_all = "camelCase")]
    Cron {
        /// Quartz with 6 or 7 fields, or a `CronJob`'s 5.
        expression: String,
        /// An IANA name.
        time_zone: String,
    },
}

/// What is done with a target's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AnswerPlan {
    /// What is logged.
    pub log: AnswerLog,
    /// The store that takes the answer as a message.
    pub store: Option<String>,
    /// Bytes.
    pub max_body_size: u64,
}

/// What is logged of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AnswerLog {
    /// Nothing.
    None,
    /// Its status.
    Status,
    /// Its status and body.
    Body,
}
