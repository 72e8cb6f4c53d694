//! The target of a ForwardingProcessor: a URL, a Service or another store.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cel;
use super::shared::{CaRef, DurationText, ObjectRef, SecretKeyRef, StoreRef};

/// Where a processor sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [cel::TARGET_ONE, cel::TARGET_STORE_ALONE]))]
pub struct Target {
    /// http or https, without user info.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), extend("x-kubernetes-validations" = [cel::TARGET_URL]))]
    pub url: Option<String>,
    /// A Service in this namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_ref: Option<ServiceRef>,
    /// Another store: drains a failover store, or moves messages to a new queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_ref: Option<StoreRef>,
    /// A method, or Preserve for the stored one.
    #[serde(default = "post")]
    #[schemars(length(max = 20), extend("x-kubernetes-validations" = [cel::TARGET_METHOD]))]
    pub method: String,
    /// Whether the stored path and query are appended.
    #[serde(default)]
    pub append_path: bool,
    /// For one connection, TLS handshake included.
    #[serde(default = "connect_timeout")]
    #[schemars(extend("x-kubernetes-validations" = [cel::DURATION, cel::POSITIVE, cel::TARGET_TIMEOUT]))]
    pub connect_timeout: DurationText,
    /// One attempt up to the complete response head; as much again for the body. At most 5m.
    #[serde(default = "timeout")]
    #[schemars(extend("x-kubernetes-validations" = [cel::DURATION, cel::POSITIVE, cel::TARGET_TIMEOUT]))]
    pub timeout: DurationText,
    /// Changes to the headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<TargetHeaders>,
    /// How the target's certificate is verified, and our own. Present with a serviceRef: https.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TargetTls>,
    /// Credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<TargetAuth>,
}

fn post() -> String {
    "POST".to_owned()
}

fn connect_timeout() -> DurationText {
    "5s".into()
}

fn timeout() -> DurationText {
    "30s".into()
}

/// A Service in the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceRef {
    /// The Service's name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Its port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// The path and query.
    #[serde(default = "root")]
    #[schemars(length(min = 1, max = 1024), extend("x-kubernetes-validations" = [cel::SERVICE_PATH]))]
    pub path: String,
}

fn root() -> String {
    "/".to_owned()
}

/// Changes to the headers of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetHeaders {
    /// Header names and templates of their values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64, "additionalProperties" = {"type": "string", "maxLength": 16384}))]
    pub set: BTreeMap<String, String>,
    /// Header names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    pub remove: Vec<String>,
}

/// TLS towards the target.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetTls {
    /// CA certificates. Default: those of the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_ref: Option<CaRef>,
    /// A Secret with `tls.crt` and `tls.key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_cert_secret_ref: Option<ObjectRef>,
    /// The name to verify instead of the host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub server_name: Option<String>,
}

/// Credentials for the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [cel::AUTH_ONE]))]
pub struct TargetAuth {
    /// A Secret with `username` and `password`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basic: Option<BasicAuth>,
    /// A token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bearer: Option<BearerAuth>,
}

/// Basic authentication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BasicAuth {
    /// A Secret with `username` and `password`.
    pub secret_ref: ObjectRef,
}

/// A bearer token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BearerAuth {
    /// The key of a Secret that holds the token.
    pub secret_ref: SecretKeyRef,
}
