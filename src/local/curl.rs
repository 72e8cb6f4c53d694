//! One `curl` line for each rule: a request that the rule takes, as far as that can be told from its text.
//!
//! Inputs: a rule and the address of its listener. Output: a line for a shell. Nothing is evaluated: names that the
//! rule's expressions read from the body get a value in the example, and that is all.

use std::net::SocketAddr;

use serde_json::{Map, Value, json};

use crate::plan::{BodyKind, RulePlan};

/// Deepest example body that is made from a schema or from names.
const MAX_DEPTH: usize = 8;

/// A request that can be tried.
pub fn line(rule: &RulePlan, listener: SocketAddr) -> String {
    let method = rule.methods.first().map_or("POST", String::as_str);
    let url = format!("http://{}{}", reachable(listener), example_path(&rule.path));
    let headers = example_headers(rule);
    let mut words = vec!["curl".to_owned(), "-i".to_owned()];
    match method {
        "GET" => {}
        "HEAD" => words.push("-I".to_owned()),
        _ => words.extend(["-X".to_owned(), method.to_owned()]),
    }
    words.push(quoted(&url));
    for (name, value) in headers {
        words.extend(["-H".to_owned(), quoted(&format!("{name}: {value}"))]);
    }
    if !matches!(method, "GET" | "HEAD") {
        let (content_type, body) = example_body(rule);
        words.extend(["-H".to_owned(), quoted(&format!("Content-Type: {content_type}"))]);
        words.extend(["-d".to_owned(), quoted(&body)]);
    }
    words.join(" ")
}

/// A listener on every address is reached by the loopback one.
fn reachable(listener: SocketAddr) -> SocketAddr {
    let mut address = listener;
    if listener.ip().is_unspecified() {
        address.set_ip(if listener.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
    }
    address
}

/// `{category}` becomes `category`, `{*rest}` becomes `rest`.
fn example_path(pattern: &str) -> String {
    pattern
        .split('/')
        .map(|segment| match segment.strip_prefix('{').and_then(|inner| inner.strip_suffix('}')) {
            Some(name) => name.trim_start_matches('*'),
            None => segment,
        })
        .collect::<Vec<_>>()
        .join("/")
}

/// A value for each `headers['name']` that the rule reads: what it is compared with by `==`, else a word.
fn example_headers(rule: &RulePlan) -> Vec<(String, String)> {
    let mut headers: Vec<(String, String)> = Vec::new();
    for text in expressions(rule) {
        for (at, start) in text.match_indices("headers['").chain(text.match_indices("headers[\"")) {
            let quote = if start.ends_with('\'') { '\'' } else { '"' };
            let Some((name, after)) = text[at + start.len()..].split_once(quote) else { continue };
            let known = headers.iter().any(|(known, _)| known.eq_ignore_ascii_case(name));
            if known || name.eq_ignore_ascii_case("content-type") {
                continue;
            }
            let value = compared_with(after.strip_prefix(']').unwrap_or(after));
            let value = value.as_ref().and_then(Value::as_str).unwrap_or("example");
            headers.push((name.to_owned(), value.to_owned()));
        }
    }
    headers
}

/// The content type and a small body.
fn example_body(rule: &RulePlan) -> (&str, String) {
    let json_only = rule.body == BodyKind::Json || rule.schema.is_some();
    let content_type = match rule.consumes.iter().find(|kind| !json_only || is_json(kind)) {
        Some(kind) => kind.as_str(),
        None => "application/json",
    };
    if !is_json(content_type) {
        let body = if content_type.ends_with("xml") { "<hello/>" } else { "hello" };
        return (content_type, body.to_owned());
    }
    let mut body = rule.schema.as_ref().map_or_else(|| json!({}), |schema| of_schema(schema, 0));
    for text in expressions(rule) {
        add_names(&mut body, &text);
    }
    if body == json!({}) && rule.schema.is_none() {
        body = json!({"hello": "world"});
    }
    (content_type, body.to_string())
}

fn is_json(content_type: &str) -> bool {
    content_type == "application/json" || content_type.ends_with("+json")
}

/// Everything in the rule that may read the body.
fn expressions(rule: &RulePlan) -> Vec<String> {
    let steps = serde_json::to_string(&rule.transform).unwrap_or_default();
    rule.when.clone().into_iter().chain(rule.routing_key.clone()).chain([steps]).collect()
}

/// The smallest value that a simple schema takes.
fn of_schema(schema: &Value, depth: usize) -> Value {
    for given in ["const", "default"] {
        if let Some(value) = schema.get(given) {
            return value.clone();
        }
    }
    for list in ["enum", "examples"] {
        if let Some(value) = schema.get(list).and_then(|values| values.get(0)) {
            return value.clone();
        }
    }
    let kind = match schema.get("type") {
        Some(Value::Array(kinds)) => kinds.first().and_then(Value::as_str),
        Some(kind) => kind.as_str(),
        None if schema.get("properties").is_some() => Some("object"),
        None => None,
    };
    match kind {
        Some("string") => {
            let shortest = schema.get("minLength").and_then(Value::as_u64).unwrap_or(0).clamp(0, 64);
            json!(format!("{:x<1$}", "example", usize::try_from(shortest).unwrap_or(0)))
        }
        Some("integer" | "number") => match schema.get("minimum").or_else(|| schema.get("maximum")) {
            Some(bound) => bound.clone(),
            None => {
                json!(schema.get("exclusiveMinimum").and_then(Value::as_i64).map_or(1, |above| above.saturating_add(1)))
            }
        },
        Some("boolean") => json!(true),
        Some("null") => Value::Null,
        Some("array") => match schema.get("items") {
            Some(items) if depth < MAX_DEPTH => json!([of_schema(items, depth + 1)]),
            _ => json!([]),
        },
        _ => of_object(schema, depth),
    }
}

fn of_object(schema: &Value, depth: usize) -> Value {
    let required = schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let properties = schema.get("properties");
    let mut object = Map::new();
    for name in required.filter(|_| depth < MAX_DEPTH) {
        let value =
            properties.and_then(|all| all.get(name)).map_or_else(|| json!("example"), |of| of_schema(of, depth + 1));
        object.insert(name.to_owned(), value);
    }
    Value::Object(object)
}

/// Puts a value at each `body.a.b` that `text` names: what it is compared with by `==`, else a word.
fn add_names(body: &mut Value, text: &str) {
    for (at, _) in text.match_indices("body.") {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|letter| letter.is_alphanumeric() || letter == '_' || letter == '.') {
            continue;
        }
        let rest = &text[at + "body.".len()..];
        let end = rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_' && letter != '.');
        let (names, after) = rest.split_at(end.unwrap_or(rest.len()));
        let names: Vec<&str> = names.split('.').take(MAX_DEPTH).take_while(|name| !name.is_empty()).collect();
        insert(body, &names, compared_with(after).unwrap_or_else(|| json!("example")));
    }
}

/// The literal after `==`.
fn compared_with(after: &str) -> Option<Value> {
    let literal = after.trim_start().strip_prefix("==")?.trim_start();
    let quote = literal.chars().next()?;
    if matches!(quote, '\'' | '"') {
        return literal[1..].split_once(quote).map(|(text, _)| json!(text));
    }
    let end = literal.find(|letter: char| !letter.is_alphanumeric() && !matches!(letter, '.' | '-'));
    serde_json::from_str(&literal[..end.unwrap_or(literal.len())]).ok()
}

fn insert(body: &mut Value, names: &[&str], value: Value) {
    let (Some((first, rest)), Value::Object(object)) = (names.split_first(), body) else { return };
    if rest.is_empty() {
        object.entry((*first).to_owned()).or_insert(value);
        return;
    }
    let inner = object.entry((*first).to_owned()).or_insert_with(|| json!({}));
    insert(inner, rest, value);
}

/// In single quotes where the shell would read something into it.
fn quoted(text: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./:=@%+,".contains(letter);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::ResponsePlan;

    fn rule(path: &str) -> RulePlan {
        let answer = ResponsePlan { status: 202, headers: std::collections::BTreeMap::default(), body: None };
        RulePlan {
            name: "a".into(),
            path: path.into(),
            methods: vec!["POST".into()],
            when: None,
            consumes: Vec::new(),
            body: BodyKind::Any,
            schema: None,
            forward_credentials: false,
            store: "s".into(),
            routing_key: None,
            transform: Vec::new(),
            reply_timeout: None,
            accepted: answer.clone(),
            invalid: answer.clone(),
            store_failed: answer,
        }
    }

    fn tried(rule: &RulePlan) -> String {
        line(rule, "127.0.0.1:8080".parse().unwrap())
    }

    #[test]
    fn a_rule_without_wishes_gets_a_small_json_document() {
        assert_eq!(
            tried(&rule("/orders")),
            r#"curl -i -X POST http://127.0.0.1:8080/orders -H 'Content-Type: application/json' -d '{"hello":"world"}'"#
        );
    }

    #[test]
    fn segments_get_their_own_name_and_get_has_no_body() {
        let mut rule = rule("/categories/{category}/{*rest}");
        rule.methods = vec!["GET".into(), "POST".into()];
        assert_eq!(tried(&rule), "curl -i http://127.0.0.1:8080/categories/category/rest");
    }

    #[test]
    fn the_content_type_is_one_that_the_rule_takes() {
        let mut rule = rule("/x");
        rule.consumes = vec!["text/xml".into()];
        assert!(tried(&rule).ends_with("-H 'Content-Type: text/xml' -d '<hello/>'"));
        rule.consumes = vec!["text/xml".into(), "application/problem+json".into()];
        rule.body = BodyKind::Json;
        assert!(tried(&rule).contains("application/problem+json"));
    }

    #[test]
    fn names_that_a_condition_reads_are_in_the_body() {
        let mut rule = rule("/x");
        rule.when = Some("body.hospital == 'st. mary''s' and body.patient.age == 7 and anybody.x".into());
        assert!(tried(&rule).ends_with(r#"-d '{"hospital":"st. mary","patient":{"age":7}}'"#), "{}", tried(&rule));
    }

    #[test]
    fn headers_that_a_condition_or_a_routing_key_reads_are_sent() {
        let mut rule = rule("/x");
        rule.when = Some("headers['x-priority'] == 'express' and headers['X-Priority'] != 'low'".into());
        rule.routing_key = Some("orders.{{ headers[\"x-region\"] }}".into());
        let line = tried(&rule);
        assert!(line.contains("http://127.0.0.1:8080/x -H 'x-priority: express' -H 'x-region: example' -H"), "{line}");
    }

    #[test]
    fn a_schema_s_required_properties_are_in_the_body() {
        let mut rule = rule("/x");
        rule.schema = Some(json!({"type": "object", "required": ["id", "n", "kind", "list"], "properties": {
            "id": {"type": "string"}, "n": {"type": "integer", "minimum": 3}, "kind": {"enum": ["A", "B"]},
            "list": {"type": "array", "items": {"type": "boolean"}}, "other": {"type": "string"}}}));
        assert!(tried(&rule).ends_with(r#"-d '{"id":"example","kind":"A","list":[true],"n":3}'"#), "{}", tried(&rule));
    }

    #[test]
    fn quotes_survive_the_shell() {
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn a_listener_on_all_addresses_is_reached_by_loopback() {
        let line = line(&rule("/x"), "0.0.0.0:8080".parse().unwrap());
        assert!(line.contains("http://127.0.0.1:8080/x"));
    }
}
