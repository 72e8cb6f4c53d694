//! JSON Schemas of rules: 2020-12, compiled once, without remote references.

use bytes::Bytes;
use jsonschema::{Draft, PatternOptions, Validator};
use serde_json::Value;

use crate::core::problem::Violation;

/// Violations that are listed at most: an answer is no log.
const LISTED: usize = 20;

/// A compiled schema.
#[derive(Debug)]
pub(super) struct Schema(Validator);

impl Schema {
    /// Compiles a schema. A `$ref` that leads out of it is an error. Patterns run in linear time.
    pub(super) fn compile(schema: &Value) -> Result<Self, String> {
        jsonschema::options()
            .with_draft(Draft::Draft202012)
            .with_pattern_options(PatternOptions::regex())
            .offline()
            .build(schema)
            .map(Self)
            .map_err(|error| error.to_string())
    }

    /// What in the body the schema does not allow, at most [`LISTED`] places; an error if the body is not JSON.
    pub(super) fn check(&self, body: &Bytes) -> Result<Vec<Violation>, serde_json::Error> {
        let value: Value = serde_json::from_slice(body)?;
        if self.0.is_valid(&value) {
            return Ok(Vec::new());
        }
        let errors = self.0.iter_errors(&value).take(LISTED);
        Ok(errors
            // The text names the rule that is broken; the caller's own value is not repeated.
            .map(|error| Violation {
                path: error.instance_path().as_str().to_owned(),
                message: error.masked_with("the value").to_string(),
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn violations_name_their_paths() {
        let schema = Schema::compile(&json!({
            "type": "object",
            "required": ["doctor"],
            "properties": {"patient": {"properties": {"age": {"type": "integer", "minimum": 0}}}}
        }))
        .unwrap();
        assert_eq!(schema.check(&Bytes::from(r#"{"doctor": 1}"#)).unwrap(), []);
        let found = schema.check(&Bytes::from(r#"{"patient": {"age": -1}}"#)).unwrap();
        let paths: Vec<_> = found.iter().map(|violation| violation.path.as_str()).collect();
        assert!(paths.contains(&"/patient/age") && paths.contains(&""), "{found:?}");
        assert!(schema.check(&Bytes::from("not json")).is_err());
    }

    #[test]
    fn a_reference_that_leads_out_is_refused() {
        assert!(Schema::compile(&json!({"$ref": "https://example.com/schema.json"})).is_err());
        assert!(Schema::compile(&json!({"$ref": "file:///etc/passwd"})).is_err());
        assert!(Schema::compile(&json!({"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}})).is_ok());
        assert!(Schema::compile(&json!({"type": "no such type"})).is_err());
    }
}
