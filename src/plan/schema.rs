//! What the API server does with an object of ours: fills in defaults, and checks it against the schema of its kind.
//!
//! All problems are found, not only the first. What nobody knows is taken out of the value, so that the rest can
//! be judged further.

use serde_json::{Map, Number, Value};

use super::finding::Finding;
use super::rules::cel;
use super::suggest::nearest;

/// Fills in the defaults of the schema, as the API server does before it validates.
pub(super) fn apply_defaults(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(properties) = schema["properties"].as_object() {
                for (name, field) in properties {
                    if !fields.contains_key(name)
                        && let Some(default) = field.get("default")
                    {
                        fields.insert(name.clone(), default.clone());
                    }
                    if let Some(value) = fields.get_mut(name) {
                        apply_defaults(field, value);
                    }
                }
            }
            let additional = &schema["additionalProperties"];
            if additional.is_object() {
                fields.values_mut().for_each(|value| apply_defaults(additional, value));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| apply_defaults(&schema["items"], item)),
        _ => {}
    }
}

/// Checks a value against the schema and the CEL rules in it.
pub(super) fn check(schema: &Value, value: &mut Value, path: &str, findings: &mut Vec<Finding>) {
    if value.is_null() {
        findings.push(Finding::invalid(path, "empty; give it a value, or remove the field"));
        return;
    }
    if schema["x-kubernetes-int-or-string"] == Value::Bool(true) {
        check_int_or_string(schema, value, path, findings);
    } else {
        let expected = schema["type"].as_str().unwrap_or_default();
        if !has_type(expected, value) {
            findings.push(Finding::invalid(path, wrong_type(schema, expected, value)));
            return;
        }
    }
    let before = findings.len();
    match value {
        Value::Object(fields) => check_object(schema, fields, path, findings),
        Value::Array(items) => check_list(schema, items, path, findings),
        Value::String(text) => check_text(schema, text, path, findings),
        Value::Number(number) => check_number(schema, number, path, findings),
        _ => {}
    }
    // A rule over a value whose parts are wrong would say the same twice, or worse, something else.
    if value.is_object() || findings.len() == before {
        cel::check(schema, value, path, findings);
    }
}

fn has_type(expected: &str, value: &Value) -> bool {
    match expected {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|number| number.fract() == 0.0),
        _ => true,
    }
}

fn wrong_type(schema: &Value, expected: &str, value: &Value) -> String {
    let found = match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(flag) => format!("`{flag}`"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the text `{}`", shorten(text)),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a mapping".to_owned(),
    };
    match (expected, value) {
        ("string", Value::Number(_) | Value::Bool(_)) if schema.get("enum").is_none() => {
            format!("must be text, not {found}; put quotes around it")
        }
        ("string", _) if schema.get("enum").is_some() => {
            let choices: Vec<_> = schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            format!("must be one of {}, not {found}; choose one of them", choices.join(", "))
        }
        ("string", _) => format!("must be text, not {found}; write it as one value"),
        ("array", Value::String(_) | Value::Number(_) | Value::Object(_)) => {
            format!("must be a list, not {found}; write it as [ … ] or with a dash before each item")
        }
        ("array", _) => format!("must be a list, not {found}; write it as [ … ]"),
        ("object", _) => match known_fields(schema) {
            Some(fields) => format!("must be a mapping, not {found}; its fields are {fields}"),
            None => format!("must be a mapping, not {found}; write it as `name: value`"),
        },
        ("boolean", _) => format!("must be true or false, not {found}; write it without quotes"),
        ("integer", _) => format!("must be a whole number, not {found}; write it in digits without quotes"),
        (_, _) => format!("must be a number, not {found}; write it in digits without quotes"),
    }
}

fn check_int_or_string(schema: &Value, value: &Value, path: &str, findings: &mut Vec<Finding>) {
    let integer = value.is_i64() || value.is_u64();
    if !integer && !value.is_string() {
        let expected = if schema.get("pattern").is_some() {
            // The only such texts with a pattern are outcomes.
            "a status like 503, a class like 5xx, or the name of a failure"
        } else {
            "a whole number or a text like 64Ki"
        };
        findings.push(Finding::invalid(path, format!("not {expected}: {}; write it like that", json(value))));
    }
}

fn check_object(schema: &Value, fields: &mut Map<String, Value>, path: &str, findings: &mut Vec<Finding>) {
    let Some(properties) = schema["properties"].as_object() else {
        return check_map(schema, fields, path, findings);
    };
    let unknown: Vec<String> = fields.keys().filter(|name| !properties.contains_key(*name)).cloned().collect();
    for name in unknown {
        fields.remove(&name);
        findings.push(Finding::invalid(child(path, &name), unknown_field(&name, properties)));
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !fields.contains_key(name) {
            let what = properties.get(name).and_then(|field| field["description"].as_str()).unwrap_or_default();
            let what = what.lines().next().unwrap_or_default().trim_end_matches('.');
            let hint = if what.is_empty() { String::new() } else { format!(" ({})", lower_first(what)) };
            findings.push(Finding::invalid(child(path, name), format!("is missing and required{hint}; add it")));
        }
    }
    for (name, value) in fields.iter_mut() {
        if let Some(field) = properties.get(name) {
            check(field, value, &child(path, name), findings);
        }
    }
}

fn check_map(schema: &Value, fields: &mut Map<String, Value>, path: &str, findings: &mut Vec<Finding>) {
    if let Some(most) = schema["maxProperties"].as_u64()
        && fields.len() as u64 > most
    {
        findings.push(Finding::invalid(path, format!("has {} entries; {most} are allowed at most", fields.len())));
    }
    let values = &schema["additionalProperties"];
    if values.is_object() {
        for (name, value) in fields.iter_mut() {
            check(values, value, &child(path, name), findings);
        }
    }
}

fn check_list(schema: &Value, items: &mut [Value], path: &str, findings: &mut Vec<Finding>) {
    if let Some(most) = schema["maxItems"].as_u64()
        && items.len() as u64 > most
    {
        findings.push(Finding::invalid(path, format!("has {} items; at most {most} are allowed", items.len())));
        return;
    }
    if let Some(least) = schema["minItems"].as_u64()
        && (items.len() as u64) < least
    {
        findings.push(Finding::invalid(path, format!("has {} items; give at least {least}", items.len())));
    }
    for (at, item) in items.iter_mut().enumerate() {
        check(&schema["items"], item, &format!("{path}[{at}]"), findings);
    }
    for key in schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let mut seen = std::collections::HashMap::new();
        for (at, item) in items.iter().enumerate() {
            let Some(name) = item[key].as_str() else { continue };
            if let Some(first) = seen.insert(name, at) {
                let message =
                    format!("`{}` is already the {key} of {path}[{first}]; rename one of them", shorten(name));
                findings.push(Finding::invalid(format!("{path}[{at}].{key}"), message));
            }
        }
    }
}

fn check_text(schema: &Value, text: &str, path: &str, findings: &mut Vec<Finding>) {
    let length = text.chars().count() as u64;
    if let Some(least) = schema["minLength"].as_u64()
        && length < least
    {
        findings.push(Finding::invalid(path, "must not be empty; give it a value, or remove the field"));
        return;
    }
    if let Some(most) = schema["maxLength"].as_u64()
        && length > most
    {
        findings.push(Finding::invalid(path, format!("has {length} characters; at most {most} are allowed")));
        return;
    }
    if let Some(choices) = schema["enum"].as_array() {
        let choices: Vec<&str> = choices.iter().filter_map(Value::as_str).collect();
        if !choices.contains(&text) {
            let text = shorten(text);
            let message = match nearest(&text, choices.iter().copied()) {
                Some(near) => format!("`{text}` is none of {}; did you mean `{near}`?", choices.join(", ")),
                None => format!("`{text}` is none of {}; choose one of them", choices.join(", ")),
            };
            findings.push(Finding::invalid(path, message));
        }
    }
    if let Some(pattern) = schema["pattern"].as_str()
        && let Err(message) = cel::check_pattern(pattern, text)
    {
        findings.push(Finding::invalid(path, format!("`{}` is {message}", shorten(text))));
    }
}

fn check_number(schema: &Value, number: &Number, path: &str, findings: &mut Vec<Finding>) {
    let Some(value) = number.as_f64() else { return };
    if let Some(least) = schema["minimum"].as_f64()
        && value < least
    {
        findings.push(Finding::invalid(path, format!("{number} is too small; the least is {least}")));
    }
    if let Some(most) = schema["maximum"].as_f64()
        && value > most
    {
        findings.push(Finding::invalid(path, format!("{number} is too large; the most is {most}")));
    }
}

fn unknown_field(name: &str, properties: &Map<String, Value>) -> String {
    if name == "<<" {
        return "merge keys are not supported; write the fields out".to_owned();
    }
    if let Some(near) = nearest(name, properties.keys().map(String::as_str)) {
        return format!("unknown field; did you mean `{near}`?");
    }
    match list(properties) {
        Some(fields) => format!("unknown field; the fields here are {fields}"),
        None => "unknown field; remove it".to_owned(),
    }
}

fn known_fields(schema: &Value) -> Option<String> {
    list(schema["properties"].as_object()?)
}

fn list(properties: &Map<String, Value>) -> Option<String> {
    let names: Vec<&str> = properties.keys().map(String::as_str).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// `path.name`, as positions are kept.
pub(super) fn child(path: &str, name: &str) -> String {
    if name.contains(['.', '[', ']']) {
        format!("{path}[{name:?}]")
    } else if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

fn json(value: &Value) -> String {
    shorten(&value.to_string())
}

/// Long texts are cut: a message is one line.
pub(super) fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(60).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(60).is_some() {
        short.push('…');
    }
    short
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        // `HTTP` and the like stay as they are.
        Some(first) if !chars.clone().next().is_some_and(char::is_uppercase) => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => text.to_owned(),
    }
}
