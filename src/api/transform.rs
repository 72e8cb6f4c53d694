//! The steps of a transform (Message Translator), as users write them in routes and processors.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cel;

/// One step: exactly one of its fields is present.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [cel::STEP_ONE]))]
pub struct TransformStep {
    /// Sets a header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_header: Option<SetHeader>,
    /// Removes a header with all its values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remove_header: Option<RemoveHeader>,
    /// Replaces the body (the payload factory).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_body: Option<SetBody>,
    /// Processors only: what the expression is false for is settled without delivery, and counted as filtered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,
    /// Writes a log line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogStep>,
}

/// Sets a header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SetHeader {
    /// The header's name.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// A template.
    #[schemars(length(max = 16384))]
    pub value: String,
}

/// Removes a header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RemoveHeader {
    /// The header's name.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
}

/// Replaces the body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SetBody {
    /// A template.
    #[schemars(length(max = 16384))]
    pub template: String,
}

/// Lets through what the expression is true for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Filter {
    /// An expression.
    #[schemars(length(min = 1, max = 1024))]
    pub when: String,
}

/// Writes a log line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LogStep {
    /// A template.
    #[schemars(length(max = 16384))]
    pub template: String,
    /// The level of the line.
    #[serde(default)]
    pub level: LogLevel,
}

/// The level of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum LogLevel {
    /// `DEBUG`.
    Debug,
    /// `INFO`.
    #[default]
    Info,
    /// `WARN`.
    Warn,
    /// `ERROR`.
    Error,
}
