//! The CEL rules of the custom resources, evaluated as an API server would, against the same rules in Rust.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::format_push_string, clippy::format_collect)]

use serde::Deserialize;
use serde_json::{Value, json};
use stagepost::api;
use stagepost::plan::load::{Options, load_text};
use stagepost::plan::rules::{self, By};

use std::collections::BTreeMap;
use std::sync::LazyLock;

use kube_cel::{CompiledSchema, ErrorKind, Validator, compile_schema};

/// Each rule is compiled once: that takes the time here.
static SCHEMAS: LazyLock<BTreeMap<&str, CompiledSchema>> = LazyLock::new(|| {
    let kinds = ["MessageStore", "IngressRoute", "ForwardingProcessor"];
    kinds.into_iter().map(|kind| (kind, compile_schema(&with_comparable_types(api::schema(kind).unwrap())))).collect()
});

/// This evaluator knows no `type()`. A value that equals its own text is a text.
fn with_comparable_types(mut schema: Value) -> Value {
    match &mut schema {
        Value::String(rule) => {
            for field in ["self", "self.maxInFlightBytes", "self.maxBodySize"] {
                *rule = rule.replace(&format!("type({field}) == string"), &format!("{field} == string({field})"));
            }
        }
        Value::Object(fields) => {
            for value in fields.values_mut() {
                *value = with_comparable_types(value.take());
            }
        }
        Value::Array(items) => {
            for value in items {
                *value = with_comparable_types(value.take());
            }
        }
        _ => {}
    }
    schema
}

fn objects(text: &str) -> Vec<Value> {
    serde_yaml::Deserializer::from_str(text)
        .filter_map(|document| Value::deserialize(document).ok())
        .filter(|object| object["apiVersion"] == api::API_VERSION)
        .collect()
}

/// What CEL says of an object: messages of broken rules, and what could not be evaluated.
fn said(object: &Value, old: Option<&Value>) -> Vec<(ErrorKind, String)> {
    let Some(schema) = object["kind"].as_str().and_then(|kind| SCHEMAS.get(kind)) else { return Vec::new() };
    match Validator::new().validate_compiled(schema, object, old) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.into_vec().into_iter().map(|error| (error.kind, error.message)).collect(),
    }
}

fn files(folder: &str) -> Vec<(String, String)> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        let path = if path.is_dir() { path.join("stagepost.yaml") } else { path };
        if let Ok(text) = std::fs::read_to_string(&path) {
            files.push((path.display().to_string(), text));
        }
    }
    files
}

#[test]
fn cel_refuses_the_invalid_manifests_with_the_messages_that_check_gives() {
    let cel: Vec<_> = rules::all().into_iter().filter(|rule| rule.by == By::Cel).collect();
    let mut wrong = String::new();
    let mut broken = std::collections::BTreeSet::new();
    for (name, text) in files("tests/invalid") {
        // What the reader refuses is not for others to build: aliases that expand without measure are among it.
        if text.contains("# by: yaml") {
            continue;
        }
        let found = load_text("a.yaml", &text, &Options::default()).violations;
        let ours: Vec<&str> = cel
            .iter()
            .flat_map(|rule| found.iter().filter(|v| v.message == rule.message).map(|_| rule.message))
            .collect();
        let theirs: Vec<_> = objects(&text).iter().flat_map(|object| said(object, None)).collect();
        for message in &ours {
            broken.insert((*message).to_owned());
            if !theirs.iter().any(|(_, said)| said == message) {
                wrong.push_str(&format!("{name}: only check says: {message}; cel says {theirs:?}\n"));
            }
        }
        for (kind, message) in &theirs {
            // What the schema refuses already may break a rule as well.
            let refused = !found.is_empty() && !text.contains("# by: controller");
            if *kind == ErrorKind::ValidationFailure && !ours.contains(&message.as_str()) && !refused {
                wrong.push_str(&format!("{name}: only cel says: {message}\n"));
            }
            if matches!(kind, ErrorKind::CompilationFailure | ErrorKind::InvalidRule | ErrorKind::InvalidResult) {
                wrong.push_str(&format!("{name}: {kind:?}: {message}\n"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    let over_time = ["queue-immutable", "exchange-immutable", "source-immutable"];
    for rule in cel {
        assert!(broken.contains(rule.message) || over_time.contains(&rule.id), "{} is not tried", rule.id);
    }
}

#[test]
fn no_rule_has_a_cost_that_api_servers_cannot_estimate() {
    for rule in rules::all().into_iter().filter(|rule| rule.by == By::Cel) {
        for (kind, _) in SCHEMAS.iter() {
            let schema = api::schema(kind).unwrap().to_string();
            assert!(!schema.contains("string(self"), "{kind}: the size of a function's result is unknown");
        }
        assert!(rule.message.len() < 2048);
    }
}

#[test]
fn sizes_are_judged_alike_as_numbers_and_as_texts() {
    let route = |limits: Value| {
        json!({"apiVersion": api::API_VERSION, "kind": "IngressRoute", "metadata": {"name": "a"}, "spec": {
            "rules": [{"name": "a", "path": "/", "storeRef": {"name": "a"}}], "limits": limits}})
    };
    let size = |text: &str| [json!(text), text.parse::<i64>().map_or(json!(text), |bytes| json!(bytes))];
    for body in ["0", "1", "1Ki", "1.5Mi", "15Mi", "15728640", "15728641", "16M", "1e3", "-5", "100m", "1Gi", "x"] {
        for body in size(body) {
            for in_flight in ["1", "64Mi", "16777216", "-1", "1.5Mi"].into_iter().flat_map(size) {
                let object = route(json!({"maxBodySize": body, "maxInFlightBytes": in_flight, "maxHeaderSize": body}));
                let cel = said(&object, None);
                assert!(cel.iter().all(|(kind, _)| *kind == ErrorKind::ValidationFailure), "{object}: {cel:?}");
                let mut cel: Vec<_> = cel.into_iter().map(|(_, message)| message).collect();
                let found = load_text(
                    "a.json",
                    &object.to_string(),
                    &Options { allow_missing_refs: true, ..Options::default() },
                );
                let mut ours: Vec<_> = found.violations.into_iter().map(|violation| violation.message).collect();
                // Where the format is wrong already, the bounds may be judged or not.
                let format = rules::all().into_iter().find(|rule| rule.id == "size").unwrap().message;
                if cel.iter().any(|message| message == format) {
                    cel.retain(|message| message == format);
                    ours.retain(|message| message == format);
                }
                cel.sort();
                ours.sort();
                assert_eq!(cel, ours, "{object}");
            }
        }
    }
}

#[test]
fn cel_accepts_the_examples() {
    for (name, text) in files("examples") {
        for object in objects(&text) {
            assert_eq!(said(&object, None), [], "{name}");
        }
    }
}

#[test]
fn what_is_immutable_cannot_be_changed_added_or_removed() {
    let store = |queue: Value, exchange: Value| {
        let mut spec = json!({"broker": {"secretRef": {"name": "a"}}, "bindings": ["#"]});
        for (name, value) in [("queue", queue), ("exchange", exchange)] {
            if !value.is_null() {
                spec[name] = value;
            }
        }
        json!({"apiVersion": api::API_VERSION, "kind": "MessageStore", "metadata": {"name": "a"}, "spec": spec})
    };
    let queue = json!({"type": "Quorum"});
    let exchange = json!({"name": "x", "type": "Topic"});
    let none = Value::Null;
    let cases = [
        (
            store(queue.clone(), exchange.clone()),
            store(json!({"type": "Classic"}), exchange.clone()),
            "queue is immutable",
        ),
        (store(none.clone(), exchange.clone()), store(queue.clone(), exchange.clone()), "queue is immutable"),
        (store(queue.clone(), exchange.clone()), store(none.clone(), exchange.clone()), "queue is immutable"),
        (
            store(queue.clone(), exchange.clone()),
            store(queue.clone(), json!({"name": "y", "type": "Topic"})),
            "exchange.name and exchange.type",
        ),
        (store(queue.clone(), exchange.clone()), store(queue.clone(), none.clone()), "exchange.name and exchange.type"),
        (store(queue.clone(), none.clone()), store(queue.clone(), exchange.clone()), "exchange.name and exchange.type"),
    ];
    for (old, new, message) in cases {
        let cel = said(&new, Some(&old));
        assert!(cel.iter().any(|(_, said)| said.starts_with(message)), "{message}: {cel:?}");
        let load = |object: &Value| load_text("a.json", &object.to_string(), &Options::default());
        let ours = load(&new).immutable_changes_since(&load(&old));
        assert!(ours.iter().any(|violation| violation.message.starts_with(message)), "{message}: {ours:?}");
    }
    let same = store(queue, exchange);
    assert_eq!(said(&same, Some(&same)), []);
}
