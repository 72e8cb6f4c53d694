//! `docs/kinds.md` is written from the committed CRDs; this holds it to them.
//!
//! `UPDATE=1 cargo test --test reference` writes it anew.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::format_push_string, clippy::format_collect)]

use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

const INTRODUCTION: &str = "# The kinds, field by field

Written from the custom resource definitions in `crds/`; `kubectl explain` shows the same. Group `stagepost.dev`, version
`v1alpha1`. A `*` marks a field that must be given. References are to objects in the same namespace.

";

#[test]
fn the_reference_is_what_the_crds_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut page = INTRODUCTION.to_owned();
    for kind in ["messagestores", "ingressroutes", "forwardingprocessors"] {
        let text = std::fs::read_to_string(root.join(format!("crds/{kind}.yaml"))).unwrap();
        let definition: Value = serde_yaml::from_str(&text).unwrap();
        write_kind(&mut page, &definition["spec"]);
    }
    let committed = root.join("docs/kinds.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&committed, &page).unwrap();
    }
    let found = std::fs::read_to_string(&committed).unwrap_or_default();
    assert!(
        found == page,
        "docs/kinds.md is not what the CRDs say; write it with: UPDATE=1 cargo test --test reference"
    );
}

fn write_kind(page: &mut String, spec: &Value) {
    let schema = &spec["versions"][0]["schema"]["openAPIV3Schema"];
    let names = &spec["names"];
    writeln!(page, "## {}\n", names["kind"].as_str().unwrap()).unwrap();
    writeln!(page, "Short name `{}`. {}\n", names["shortNames"][0].as_str().unwrap(), text(&schema["description"]))
        .unwrap();
    for part in ["spec", "status"] {
        writeln!(page, "### {part}\n\n| field | type | default | |\n|---|---|---|---|").unwrap();
        write_fields(page, "", &schema["properties"][part]);
        page.push('\n');
    }
}

fn write_fields(page: &mut String, prefix: &str, schema: &Value) {
    let Some(properties) = schema["properties"].as_object() else { return };
    let required = |name: &str| schema["required"].as_array().is_some_and(|all| all.iter().any(|one| one == name));
    for (name, field) in properties {
        let path = format!("{prefix}{name}");
        let star = if required(name) { "\\*" } else { "" };
        let default = match &field["default"] {
            Value::Null | Value::Object(_) => String::new(),
            value => format!("`{value}`"),
        };
        writeln!(page, "| `{path}`{star} | {} | {default} | {} |", kind(field), text(&field["description"])).unwrap();
        let opaque = field["x-kubernetes-preserve-unknown-fields"] == true;
        match field["type"].as_str() {
            Some("array") if !opaque => write_fields(page, &format!("{path}[]."), &field["items"]),
            Some("object") if !opaque => write_fields(page, &format!("{path}."), field),
            _ => {}
        }
    }
}

fn kind(field: &Value) -> String {
    if let Some(values) = field["enum"].as_array() {
        let names: Vec<&str> = values.iter().filter_map(Value::as_str).collect();
        return names.join(" \\| ");
    }
    if field["x-kubernetes-int-or-string"] == true {
        return "integer or string".to_owned();
    }
    match field["type"].as_str() {
        Some("array") => format!("list of {}", kind(&field["items"])),
        Some("object") if field["additionalProperties"].is_object() => "map".to_owned(),
        Some(name) => name.to_owned(),
        None => "any".to_owned(),
    }
}

/// A description as one cell of a table.
fn text(description: &Value) -> String {
    let text = description.as_str().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
