//! The wire contract: the three kinds as users write them, one kind a file.
//!
//! A leaf: nothing of the delivery rules is known here. Durations and sizes are texts, as they stand in a manifest;
//! `plan` reads them. What the schema and its rules ([`cel`]) can refuse, the API server refuses.

// Descriptions in the CRDs are these comments: `kubectl explain` shows them as plain text.
#![allow(clippy::doc_markdown)]

pub mod cel;
pub mod condition;
pub mod delivery;
pub mod forwarding_processor;
pub mod ingress_route;
pub mod message_store;
pub mod processor_status;
pub mod shared;
pub mod target;
pub mod transform;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

pub use forwarding_processor::{ForwardingProcessor, ForwardingProcessorSpec};
pub use ingress_route::{IngressRoute, IngressRouteSpec, IngressRouteStatus};
pub use message_store::{MessageStore, MessageStoreSpec, MessageStoreStatus};
pub use processor_status::ForwardingProcessorStatus;

/// The API group of all kinds.
pub const GROUP: &str = "stagepost.dev";
/// The version of all kinds.
pub const VERSION: &str = "v1alpha1";
/// `apiVersion` of all kinds.
pub const API_VERSION: &str = "stagepost.dev/v1alpha1";

/// Annotation, set by users: `"true"` stops reconciling one object (`spec.suspend` stops delivery).
pub const PAUSED_ANNOTATION: &str = "stagepost.dev/paused";
/// Annotation, set by users: a new value ends the Deactivated state of a processor.
pub const REACTIVATE_ANNOTATION: &str = "stagepost.dev/reactivate";
/// Label of children: the kind of their owner, in lower case.
pub const KIND_LABEL: &str = "stagepost.dev/kind";
/// Label of children: the name of their owner.
pub const NAME_LABEL: &str = "stagepost.dev/name";
/// Label of children: the uid of their owner.
pub const UID_LABEL: &str = "stagepost.dev/uid";
/// Finalizer of every ForwardingProcessor: its deactivation queue is deleted.
pub const PROCESSOR_FINALIZER: &str = "stagepost.dev/processor";
/// Finalizer of a MessageStore with `deletionPolicy: Delete`.
pub const QUEUE_FINALIZER: &str = "stagepost.dev/queue";

/// The custom resource definitions of all kinds, in order of their names.
pub fn all_crds() -> Vec<CustomResourceDefinition> {
    [ForwardingProcessor::crd(), IngressRoute::crd(), MessageStore::crd()].into_iter().map(tidy).collect()
}

/// The files of `crds/`: name and content, the same for the same program.
pub fn crds_yaml() -> Vec<(String, String)> {
    all_crds()
        .iter()
        .map(|crd| {
            let name = format!("{}.yaml", crd.spec.names.plural);
            // Through a value, whose keys are sorted.
            let mut value = serde_json::to_value(crd).unwrap_or_default();
            write_whole_numbers(&mut value);
            (name, serde_yaml::to_string(&value).unwrap_or_default())
        })
        .collect()
}

/// The schema of a kind, as the API server holds it: the value of `openAPIV3Schema`.
pub fn schema(kind: &str) -> Option<Value> {
    let crd = all_crds().into_iter().find(|crd| crd.spec.names.kind == kind)?;
    let version = crd.spec.versions.into_iter().next()?;
    serde_json::to_value(version.schema?.open_api_v3_schema?).ok()
}

/// Takes out of a derived definition what API servers do not know or users do not want.
fn tidy(crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let Ok(mut value) = serde_json::to_value(&crd) else { return crd };
    if let Some(versions) = value.pointer_mut("/spec/versions").and_then(Value::as_array_mut) {
        for version in versions {
            if let Some(schema) = version.pointer_mut("/schema/openAPIV3Schema") {
                tidy_schema(schema);
                // A default in the status would be written by nobody and owned by nobody.
                if let Some(status) = schema.pointer_mut("/properties/status") {
                    remove_defaults(status);
                }
            }
        }
    }
    serde_json::from_value(value).unwrap_or(crd)
}

fn tidy_schema(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else { return };
    // An absent field is left out, never null: `field:` with nothing behind it is an error that users want to see.
    fields.remove("nullable");
    let signed = match fields.get("format").and_then(Value::as_str) {
        // API servers know no unsigned formats; what must stay small has a maximum of its own.
        Some("uint8" | "uint16" | "uint32") => Some("int32"),
        Some("uint64") => Some("int64"),
        _ => None,
    };
    if let Some(signed) = signed {
        fields.insert("format".to_owned(), json!(signed));
        fields.entry("minimum").or_insert(json!(0));
    }
    for_each_child(fields, tidy_schema);
}

fn remove_defaults(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else { return };
    fields.remove("default");
    for_each_child(fields, remove_defaults);
}

fn for_each_child(fields: &mut Map<String, Value>, change: fn(&mut Value)) {
    if let Some(Value::Object(children)) = fields.get_mut("properties") {
        children.values_mut().for_each(change);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(child) = fields.get_mut(key) {
            change(child);
        }
    }
}

/// `1000` instead of `1000.0`, as users write it.
fn write_whole_numbers(value: &mut Value) {
    match value {
        Value::Number(number) => {
            if let Some(float) = number.as_f64()
                && number.is_f64()
                && float.fract() == 0.0
                && let Ok(whole) = format!("{float:.0}").parse::<i64>()
            {
                *value = whole.into();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(write_whole_numbers),
        Value::Object(fields) => fields.values_mut().for_each(write_whole_numbers),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crds_are_committed_as_generated() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
        if std::env::var_os("STAGEPOST_WRITE_CRDS").is_some() {
            for (name, yaml) in crds_yaml() {
                std::fs::write(folder.join(name), yaml).unwrap();
            }
        }
        for (name, yaml) in crds_yaml() {
            let committed = std::fs::read_to_string(folder.join(&name)).unwrap_or_default();
            assert!(
                committed == yaml,
                "crds/{name} is not as generated; run `cargo run -- crds --dir crds` and commit it"
            );
        }
    }

    #[test]
    fn crds_fit_into_a_client_side_apply() {
        for (name, yaml) in crds_yaml() {
            assert!(yaml.len() < 200 * 1024, "{name} has {} bytes", yaml.len());
        }
    }

    #[test]
    fn schemas_have_bounds_and_no_unsigned_formats() {
        fn walk(path: &str, schema: &Value) {
            assert!(!schema["format"].as_str().is_some_and(|format| format.starts_with("uint")), "{path}");
            assert!(schema.get("nullable").is_none(), "{path} is nullable");
            let free = schema["x-kubernetes-preserve-unknown-fields"] == json!(true);
            match schema["type"].as_str() {
                Some("array") => assert!(schema["maxItems"].is_number(), "{path} has no maxItems"),
                Some("object") if schema.get("properties").is_none() && !free => {
                    assert!(schema["maxProperties"].is_number(), "{path} has no maxProperties");
                }
                Some("string") if !path.contains(".status") && schema.get("enum").is_none() => {
                    // Values of maps are bounded where a rule or a plan reads them.
                    assert!(schema["maxLength"].is_number() || path.ends_with("{}"), "{path} has no maxLength");
                }
                _ => {}
            }
            if let Some(fields) = schema["properties"].as_object() {
                for (name, field) in fields {
                    walk(&format!("{path}.{name}"), field);
                }
            }
            if schema["items"].is_object() {
                walk(&format!("{path}[]"), &schema["items"]);
            }
            if schema["additionalProperties"].is_object() {
                walk(&format!("{path}{{}}"), &schema["additionalProperties"]);
            }
        }
        for kind in ["MessageStore", "IngressRoute", "ForwardingProcessor"] {
            let schema = schema(kind).unwrap();
            walk(&format!("{kind}.spec"), &schema["properties"]["spec"]);
            walk(&format!("{kind}.status"), &schema["properties"]["status"]);
        }
    }

    #[test]
    fn generated_yaml_is_read_alike_by_yaml_1_1() {
        // kubectl reads a bare yes, no, on or off as a boolean.
        for (name, yaml) in crds_yaml() {
            for line in yaml.lines() {
                let value = line.rsplit([' ', ':']).next().unwrap_or_default().to_ascii_lowercase();
                assert!(!["yes", "no", "on", "off", "y", "n"].contains(&value.as_str()), "{name}: {line}");
            }
        }
    }
}
