//! What a ForwardingProcessor says of its attempts: how often, at what pace, what an answer means, what is done with
//! a message that has finally failed.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::fmt;

use super::cel;
use super::shared::{DurationText, Size, StoreRef};

/// The attempts after the first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Retry {
    /// Attempts after the first: 8 means 9 in all. -1: for ever.
    #[schemars(range(max = 1_000_000), extend("x-kubernetes-validations" = [cel::MAX_REDELIVERIES]))]
    pub max_redeliveries: i32,
    /// The first wait.
    pub interval: DurationText,
    /// Each further wait is this many times longer; 1: fixed.
    #[schemars(range(min = 1.0, max = 100.0))]
    pub backoff_factor: f64,
    /// No wait is longer.
    pub max_interval: DurationText,
    /// Each wait is multiplied by 1 ± jitter x random.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub jitter: f64,
    /// Retry-After is honoured up to this; 0s: ignored.
    pub max_retry_after: DurationText,
    /// Wait: an unreachable target uses up no attempts. Count: it does.
    pub while_unreachable: WhileUnreachable,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            max_redeliveries: 8,
            interval: "1s".into(),
            backoff_factor: 2.0,
            max_interval: "1m".into(),
            jitter: 0.1,
            max_retry_after: "10m".into(),
            while_unreachable: WhileUnreachable::Wait,
        }
    }
}

/// Whether an unreachable target uses up attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum WhileUnreachable {
    /// No: an outage is not the message's fault.
    #[default]
    Wait,
    /// Yes.
    Count,
}

/// What a response means. Everything that is not listed is a failure without further attempts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Outcomes {
    /// Delivered.
    #[schemars(length(max = 64))]
    pub success: Vec<OutcomeEntry>,
    /// Tried again. ConnectionError, NoResponse, Timeout and Tls are, unless another list names them.
    #[schemars(length(max = 64))]
    pub retry: Vec<OutcomeEntry>,
    /// No further attempt: straight to onFailure.
    #[schemars(length(max = 64))]
    pub fail: Vec<OutcomeEntry>,
    /// The processor stops and keeps the message.
    #[schemars(length(max = 64))]
    pub deactivate: Vec<OutcomeEntry>,
}

impl Default for Outcomes {
    fn default() -> Self {
        Self {
            success: default_success_outcomes(),
            retry: default_retry_outcomes(),
            fail: Vec::new(),
            deactivate: Vec::new(),
        }
    }
}

/// The default of `outcomes.success`.
pub fn default_success_outcomes() -> Vec<OutcomeEntry> {
    vec![OutcomeEntry::Name("2xx".to_owned())]
}

/// The default of `outcomes.retry`.
pub fn default_retry_outcomes() -> Vec<OutcomeEntry> {
    let mut entries: Vec<_> = [408, 425, 429].map(OutcomeEntry::Status).into();
    entries.push(OutcomeEntry::Name("5xx".to_owned()));
    entries
}

/// A status (`503`), a class (`5xx`), or `ConnectionError`, `NoResponse`, `Timeout`, `Tls`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OutcomeEntry {
    /// A status.
    Status(u16),
    /// Anything else, and a status in quotes.
    Name(String),
}

/// The pattern of an entry of `outcomes` that is not a number.
pub const OUTCOME: &str = "^([1-5]([0-9][0-9]|xx)|ConnectionError|NoResponse|Timeout|Tls)$";

impl fmt::Display for OutcomeEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "{status}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl JsonSchema for OutcomeEntry {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Outcome".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // Not CEL: the rule would be estimated at the largest possible text for each of many items.
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "minimum": 100,
            "maximum": 599,
            "maxLength": 20,
            "pattern": OUTCOME,
        })
    }
}

/// What is done with a message that has finally failed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("x-kubernetes-validations" = [cel::DEAD_LETTER_STORE_UNUSED]))]
pub struct OnFailure {
    /// DeadLetter moves it, Deactivate keeps it and stops, Drop discards it.
    pub action: FailureAction,
    /// Default: a queue `<source queue>.dlc` beside the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter_store_ref: Option<StoreRef>,
}

/// What is done with a message that has finally failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum FailureAction {
    /// It moves to the dead letter store.
    #[default]
    DeadLetter,
    /// It stays at the head of the store, and the processor stops.
    Deactivate,
    /// It is discarded and counted.
    Drop,
}

/// What is done with the target's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ResponseHandling {
    /// What is logged of it.
    pub log: ResponseLog,
    /// The store that takes it as a message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store_ref: Option<StoreRef>,
    /// A larger body is neither stored nor returned to a waiting caller.
    #[schemars(extend("x-kubernetes-validations" = [cel::SIZE, cel::RESPONSE_BODY_SIZE]))]
    pub max_body_size: Size,
}

impl Default for ResponseHandling {
    fn default() -> Self {
        Self { log: ResponseLog::Status, store_ref: None, max_body_size: "64Ki".into() }
    }
}

/// What is logged of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum ResponseLog {
    /// Nothing.
    None,
    /// Its status.
    #[default]
    Status,
    /// Its status and body.
    Body,
}

/// A rate of attempts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RateLimit {
    /// Attempts in a period, retries included.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests: u32,
    /// The period.
    #[schemars(extend("x-kubernetes-validations" = [cel::DURATION, cel::POSITIVE]))]
    pub per: DurationText,
    /// Attempts at once after a quiet time.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: u32,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self { requests: 100, per: "1s".into(), burst: 1 }
    }
}

/// A pause after many failures in a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CircuitBreaker {
    /// Consecutive attempts with an outcome that `outcomes.retry` names.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub failures: u32,
    /// The pause before one probe is let through.
    #[schemars(extend("x-kubernetes-validations" = [cel::DURATION, cel::POSITIVE]))]
    pub open_for: DurationText,
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        Self { failures: 20, open_for: "30s".into() }
    }
}
