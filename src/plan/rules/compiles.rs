//! Whether texts of a manifest compile, each by the module that runs them later.

use serde_json::Value;

use crate::core::matching::PathPattern;
use crate::core::schedule::Schedule;
use crate::expression::{Condition, Key, Template, settable_header as settable};

/// A template.
pub(super) fn template(text: &str) -> Result<(), String> {
    Template::compile(text).map(drop).map_err(|error| error.to_string())
}

/// An expression that is true or false.
pub(super) fn condition(text: &str) -> Result<(), String> {
    Condition::compile(text).map(drop).map_err(|error| error.to_string())
}

/// An expression that gives an ordering key.
pub(super) fn key(text: &str) -> Result<(), String> {
    Key::compile(text).map(drop).map_err(|error| error.to_string())
}

/// The name of a header that goes to a target.
pub(super) fn settable_header(name: &str) -> Result<(), String> {
    settable(name).map(drop).map_err(|error| error.to_string())
}

/// A cron expression.
pub(super) fn cron(expression: &str, time_zone: &str) -> Result<(), String> {
    Schedule::parse_cron(expression, time_zone).map(drop).map_err(|error| error.to_string())
}

/// A path pattern.
pub(super) fn path_pattern(text: &str) -> Result<(), String> {
    PathPattern::parse(text).map(drop).map_err(|error| error.to_string())
}

/// A JSON Schema, without references to other documents.
pub(super) fn json_schema(schema: &Value) -> Result<(), String> {
    match jsonschema::draft202012::options().offline().build(schema) {
        Ok(_) => Ok(()),
        Err(error) if error.to_string().contains("Retrieval is disabled") => {
            Err("it refers to another document, which is never fetched; bring that in under $defs".to_owned())
        }
        Err(error) => {
            let at = error.instance_path().to_string();
            let place = if at.is_empty() { String::new() } else { format!("at {at}: ") };
            Err(format!("not a JSON Schema: {place}{error}"))
        }
    }
}
