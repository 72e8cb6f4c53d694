//! `IngressRoute`: HTTP in, stored, answered.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use super::cel;
use super::condition::{Condition, Time};
use super::shared::{DurationText, Passthrough, Size, StoreRef, Workload};
use super::transform::TransformStep;

/// HTTP in, stored, answered.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "stagepost.dev",
    version = "v1alpha1",
    kind = "IngressRoute",
    namespaced,
    status = "IngressRouteStatus",
    derive = "PartialEq",
    shortname = "iroute",
    category = "stagepost",
    doc = "Takes HTTP requests, stores them durably, and answers at once.",
    validation = cel::NAME.rule(),
    scale(
        spec_replicas_path = ".spec.workload.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Address", type_ = "string", json_path = ".status.address"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.replicas"),
    printcolumn(name = "Accepted", type_ = "integer", json_path = ".status.accepted"),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.failed"),
    printcolumn(name = "Rejected", type_ = "integer", json_path = ".status.rejected", priority = 1),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IngressRouteSpec {
    /// In order; the first that matches takes the request.
    #[schemars(
        length(min = 1, max = 1000),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub rules: Vec<Rule>,
    /// Of the listener.
    #[serde(default)]
    pub limits: IngressLimits,
    /// The Service in front of the pods.
    #[serde(default)]
    pub service: IngressService,
    /// The pods.
    #[serde(default = "two_pods")]
    #[schemars(schema_with = "workload_schema")]
    pub workload: Workload,
}

impl IngressRouteSpec {
    /// How many pods are wanted.
    pub fn replicas(&self) -> u32 {
        self.workload.replicas.unwrap_or(2)
    }
}

fn two_pods() -> Workload {
    Workload::of(2)
}

fn workload_schema(generator: &mut SchemaGenerator) -> Schema {
    Workload::schema(generator, 2)
}

/// What one rule takes, where it stores it, how it answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [cel::NO_FILTER_IN_ROUTE]))]
pub struct Rule {
    /// Unique in the route.
    #[schemars(length(min = 1, max = 63), extend("x-kubernetes-validations" = [cel::RULE_NAME]))]
    pub name: String,
    /// `{x}` takes one segment, `{*rest}` the remainder.
    #[schemars(length(min = 1, max = 1024), extend("x-kubernetes-validations" = [cel::RULE_PATH]))]
    pub path: String,
    /// Methods it takes.
    #[serde(default = "post")]
    #[schemars(length(min = 1, max = 16), extend("items" = {"type": "string", "maxLength": 20, "x-kubernetes-validations": [cel::METHOD]}))]
    pub methods: Vec<String>,
    /// An expression that the request must meet; without it 404.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub when: Option<String>,
    /// Media types it takes; another: 415. Empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("items" = {"type": "string", "maxLength": 255, "x-kubernetes-validations": [cel::MEDIA_TYPE]}))]
    pub consumes: Vec<String>,
    /// Json: must be well-formed, else 400. Any: bytes pass through.
    #[serde(default)]
    pub body: BodyType,
    /// A JSON Schema (2020-12, without remote references); violations: 400 with the paths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Passthrough>,
    /// Forward: Authorization and Cookie of the caller are stored and sent on.
    #[serde(default)]
    pub caller_credentials: CallerCredentials,
    /// Where it is stored.
    pub store_ref: StoreRef,
    /// A template, for a store with an exchange. Default: the store's routing key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub routing_key: Option<String>,
    /// Applied before storing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub transform: Vec<TransformStep>,
    /// Present: request-reply; the caller waits for the reply of the target, which takes the place of
    /// `response.accepted`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Reply>,
    /// The answers to the caller.
    #[serde(default)]
    pub response: RuleResponse,
}

fn post() -> Vec<String> {
    vec!["POST".to_owned()]
}

/// What a rule asks of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum BodyType {
    /// Nothing: bytes pass through.
    #[default]
    Any,
    /// Well-formed JSON.
    Json,
}

/// What becomes of the caller's `Authorization` and `Cookie`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum CallerCredentials {
    /// They are not stored.
    #[default]
    Drop,
    /// They are stored and sent on.
    Forward,
}

/// Request-reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Reply {
    /// How long the caller waits; then 504. At most 10m.
    #[serde(default = "thirty_seconds")]
    #[schemars(extend("x-kubernetes-validations" = [cel::DURATION, cel::POSITIVE, cel::REPLY_TIMEOUT]))]
    pub timeout: DurationText,
}

fn thirty_seconds() -> DurationText {
    "30s".into()
}

/// The answers to the caller.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RuleResponse {
    /// When the message is stored.
    pub accepted: AcceptedResponse,
    /// When the body is malformed.
    pub invalid: InvalidResponse,
    /// When the message is not stored.
    pub store_failed: StoreFailedResponse,
}

/// The answer when the message is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AcceptedResponse {
    /// The status.
    #[schemars(range(min = 200, max = 599))]
    pub status: u16,
    /// Header names and templates of their values.
    #[schemars(extend("maxProperties" = 64, "additionalProperties" = {"type": "string", "maxLength": 16384}))]
    pub headers: BTreeMap<String, String>,
    /// A template.
    #[schemars(length(max = 16384))]
    pub body: String,
}

impl Default for AcceptedResponse {
    fn default() -> Self {
        Self { status: 202, headers: BTreeMap::new(), body: String::new() }
    }
}

/// The answer to a malformed body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct InvalidResponse {
    /// The status.
    #[schemars(range(min = 200, max = 599))]
    pub status: u16,
    /// Header names and templates of their values.
    #[schemars(extend("maxProperties" = 64, "additionalProperties" = {"type": "string", "maxLength": 16384}))]
    pub headers: BTreeMap<String, String>,
    /// A template. Default: problem JSON (RFC 9457).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16384))]
    pub body: Option<String>,
}

impl Default for InvalidResponse {
    fn default() -> Self {
        Self { status: 400, headers: BTreeMap::new(), body: None }
    }
}

/// The answer when the message is not stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StoreFailedResponse {
    /// The status.
    #[schemars(range(min = 200, max = 599))]
    pub status: u16,
    /// Header names and templates of their values.
    #[schemars(extend("maxProperties" = 64, "additionalProperties" = {"type": "string", "maxLength": 16384}))]
    pub headers: BTreeMap<String, String>,
    /// A template. Default: problem JSON (RFC 9457).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16384))]
    pub body: Option<String>,
}

impl Default for StoreFailedResponse {
    fn default() -> Self {
        let headers = BTreeMap::from([("Retry-After".to_owned(), "1".to_owned())]);
        Self { status: 503, headers, body: None }
    }
}

/// The limits of the listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("x-kubernetes-validations" = [cel::IN_FLIGHT_HOLDS_BODY]))]
pub struct IngressLimits {
    /// A larger body: 413. At most 15Mi.
    #[schemars(extend("x-kubernetes-validations" = [cel::SIZE, cel::MAX_BODY_SIZE]))]
    pub max_body_size: Size,
    /// A larger head: 431. At most 64Ki.
    #[schemars(extend("x-kubernetes-validations" = [cel::SIZE, cel::MAX_HEADER_SIZE]))]
    pub max_header_size: Size,
    /// For the head, and again for the body.
    #[schemars(extend("x-kubernetes-validations" = [cel::DURATION, cel::POSITIVE]))]
    pub read_timeout: DurationText,
    /// Requests under way in one pod; more: 503 at once.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_in_flight: u32,
    /// Bytes of the requests under way in one pod; more: 503 at once.
    pub max_in_flight_bytes: Size,
    /// Open connections in one pod.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_connections: u32,
}

impl Default for IngressLimits {
    fn default() -> Self {
        Self {
            max_body_size: "1Mi".into(),
            max_header_size: "32Ki".into(),
            read_timeout: "30s".into(),
            max_in_flight: 1024,
            max_in_flight_bytes: "64Mi".into(),
            max_connections: 10_000,
        }
    }
}

/// The Service in front of the pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct IngressService {
    /// As in a Service.
    #[serde(rename = "type")]
    pub kind: ServiceType,
    /// The Service's port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// The Service's annotations.
    #[schemars(extend("maxProperties" = 64))]
    pub annotations: BTreeMap<String, String>,
}

impl Default for IngressService {
    fn default() -> Self {
        Self { kind: ServiceType::ClusterIp, port: 80, annotations: BTreeMap::new() }
    }
}

/// The type of a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum ServiceType {
    /// Inside the cluster.
    #[default]
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// On a port of every node.
    NodePort,
    /// Behind a load balancer.
    LoadBalancer,
}

/// What is known of a route.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressRouteStatus {
    /// Where callers in the cluster reach it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Accepted, ResolvedRefs, BrokerConnected, Degraded, Paused, Ready.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
    /// Pods that are ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<u32>,
    /// Selects the pods, for the scale subresource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Requests stored, since creation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted: Option<u64>,
    /// Requests refused for what they were (4xx), since creation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<u64>,
    /// Requests that could not be stored, since creation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<u64>,
    /// The counters of each pod: the base of the sums.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub workers: Vec<IngressWorker>,
    /// The generation that the conditions speak of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// The counters of one ingress pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressWorker {
    /// The pod's name.
    pub pod: String,
    /// When its process started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<Time>,
    /// Requests stored.
    pub accepted: u64,
    /// Requests refused for what they were.
    pub rejected: u64,
    /// Requests that could not be stored.
    pub failed: u64,
}
