//! The rules that the API server enforces, once more in Rust: the same places, the same texts.
//!
//! The schema says where a rule applies; the table here says what it means. A test holds that neither has one that
//! the other lacks.

use serde_json::Value;

use crate::api::cel::{self, CelRule};
use crate::api::delivery::OUTCOME;
use crate::core::{duration, quantity};
use crate::plan::finding::Finding;
use crate::plan::schema::child;

/// One rule and its meaning.
pub(super) struct CelCheck {
    /// A stable name.
    pub(super) id: &'static str,
    /// What the custom resource carries.
    pub(super) rule: CelRule,
    /// The field that a broken rule is reported at, below the value it applies to.
    pub(super) field: &'static str,
    /// Whether a value keeps the rule. A value of another type keeps every rule: the schema has refused it.
    pub(super) holds: Holds,
}

/// How a rule is checked.
#[derive(Clone, Copy)]
pub(super) enum Holds {
    /// Of one object.
    Now(fn(&Value) -> bool),
    /// Of an object and what it was before.
    Across(fn(&Value, &Value) -> bool),
}

use Holds::{Across, Now};

const fn check_of(id: &'static str, rule: CelRule, field: &'static str, holds: Holds) -> CelCheck {
    CelCheck { id, rule, field, holds }
}

/// Every CEL rule.
pub(super) const CHECKS: &[CelCheck] = &[
    check_of("name", cel::NAME, "metadata.name", Now(|v| name(&v["metadata"]["name"]))),
    check_of("duration", cel::DURATION, "", Now(|v| text(v, |t| duration::parse(t).is_ok()))),
    check_of("positive-duration", cel::POSITIVE, "", Now(|v| milliseconds(v).is_none_or(|ms| ms > 0))),
    check_of("size", cel::SIZE, "", Now(|v| !(v.is_string() || v.is_number()) || bytes(v).is_some())),
    check_of("broker-one", cel::BROKER_ONE, "", Now(|v| one_of(v, &["secretRef", "clusterRef"]))),
    check_of("queue-or-exchange", cel::QUEUE_OR_EXCHANGE, "", Now(|v| has(v, "queue") || has(v, "exchange"))),
    check_of(
        "bindings-need-both",
        cel::BINDINGS_NEED_BOTH,
        "bindings",
        Now(|v| !filled(v, "bindings") || (has(v, "exchange") && has(v, "queue"))),
    ),
    check_of(
        "bindings-not-fanout",
        cel::BINDINGS_NOT_FANOUT,
        "bindings",
        Now(|v| !filled(v, "bindings") || v["exchange"]["type"] != "Fanout"),
    ),
    check_of(
        "topic-needs-bindings",
        cel::TOPIC_NEEDS_BINDINGS,
        "bindings",
        Now(|v| !has(v, "queue") || v["exchange"]["type"] != "Topic" || filled(v, "bindings")),
    ),
    check_of(
        "limits-with-existing",
        cel::LIMITS_WITH_EXISTING,
        "management",
        Now(|v| v["management"] != "Existing" || !(has(v, "maxLength") || has(v, "maxLengthBytes"))),
    ),
    check_of("queue-name-reserved", cel::QUEUE_NAME_RESERVED, "", Now(|v| text(v, |t| !t.starts_with("amq.")))),
    check_of(
        "exchange-name-reserved",
        cel::EXCHANGE_NAME_RESERVED,
        "name",
        Now(|v| text(&v["name"], |t| !t.starts_with("amq.")) || v["management"] == "Existing"),
    ),
    check_of("queue-immutable", cel::QUEUE_IMMUTABLE, "queue", Across(|old, new| old["queue"] == new["queue"])),
    check_of("exchange-immutable", cel::EXCHANGE_IMMUTABLE, "exchange", Across(same_exchange)),
    check_of("store-deadline", cel::STORE_DEADLINE, "", Now(|v| milliseconds(v).is_none_or(|ms| ms <= 60_000))),
    check_of("rule-name", cel::RULE_NAME, "", Now(|v| text(v, is_rule_name))),
    check_of("method", cel::METHOD, "", Now(|v| text(v, is_method))),
    check_of("media-type", cel::MEDIA_TYPE, "", Now(|v| text(v, is_media_type))),
    check_of("rule-path", cel::RULE_PATH, "", Now(|v| text(v, |t| t.starts_with('/')))),
    check_of("no-filter-in-route", cel::NO_FILTER_IN_ROUTE, "transform", Now(no_filter)),
    check_of("max-body-size", cel::MAX_BODY_SIZE, "", Now(|v| bytes(v).is_none_or(|b| b > 0 && b <= 15 << 20))),
    check_of(
        "max-header-size",
        cel::MAX_HEADER_SIZE,
        "",
        Now(|v| bytes(v).is_none_or(|b| (1 << 10..=64 << 10).contains(&b))),
    ),
    check_of("in-flight-holds-body", cel::IN_FLIGHT_HOLDS_BODY, "maxInFlightBytes", Now(in_flight_holds_body)),
    check_of(
        "step-one",
        cel::STEP_ONE,
        "",
        Now(|v| one_of(v, &["setHeader", "removeHeader", "setBody", "filter", "log"])),
    ),
    check_of(
        "source-immutable",
        cel::SOURCE_IMMUTABLE,
        "storeRef",
        Across(|old, new| old["storeRef"] == new["storeRef"]),
    ),
    check_of("target-one", cel::TARGET_ONE, "", Now(|v| one_of(v, &["url", "serviceRef", "storeRef"]))),
    check_of(
        "target-store-alone",
        cel::TARGET_STORE_ALONE,
        "storeRef",
        Now(|v| !has(v, "storeRef") || !["headers", "tls", "auth"].iter().any(|field| has(v, field))),
    ),
    check_of("target-method", cel::TARGET_METHOD, "", Now(|v| text(v, |t| t == "Preserve" || is_method(t)))),
    check_of("target-url", cel::TARGET_URL, "", Now(|v| text(v, is_target_url))),
    check_of("service-path", cel::SERVICE_PATH, "", Now(|v| text(v, is_service_path))),
    check_of("target-timeout", cel::TARGET_TIMEOUT, "", Now(|v| milliseconds(v).is_none_or(|ms| ms <= 300_000))),
    check_of("reply-timeout", cel::REPLY_TIMEOUT, "", Now(|v| milliseconds(v).is_none_or(|ms| ms <= 600_000))),
    check_of("auth-one", cel::AUTH_ONE, "", Now(|v| one_of(v, &["basic", "bearer"]))),
    check_of(
        "strict-concurrency",
        cel::STRICT_CONCURRENCY,
        "concurrency",
        Now(|v| v["ordering"] != "Strict" || number(&v["concurrency"]).is_none_or(|n| n <= 1)),
    ),
    check_of(
        "key-without-per-key",
        cel::KEY_WITHOUT_PER_KEY,
        "orderingKey",
        Now(|v| !has(v, "orderingKey") || v["ordering"] == "PerKey"),
    ),
    check_of(
        "per-key-without-key",
        cel::PER_KEY_WITHOUT_KEY,
        "ordering",
        Now(|v| v["ordering"] != "PerKey" || has(v, "orderingKey")),
    ),
    check_of("poll-one", cel::POLL_ONE, "", Now(|v| one_of(v, &["interval", "cron"]))),
    check_of("batch-size", cel::BATCH_SIZE, "", Now(|v| number(v).is_none_or(|n| n == -1 || n >= 1))),
    check_of(
        "message-interval-concurrency",
        cel::MESSAGE_INTERVAL_CONCURRENCY,
        "poll.messageInterval",
        Now(|v| {
            number(&v["concurrency"]).is_none_or(|n| n <= 1)
                || milliseconds(&v["poll"]["messageInterval"]).is_none_or(|ms| ms == 0)
        }),
    ),
    check_of("max-redeliveries", cel::MAX_REDELIVERIES, "", Now(|v| number(v).is_none_or(|n| n >= -1))),
    check_of(
        "dead-letter-store-unused",
        cel::DEAD_LETTER_STORE_UNUSED,
        "deadLetterStoreRef",
        Now(|v| !has(v, "deadLetterStoreRef") || v["action"] == "DeadLetter"),
    ),
    check_of("replicas", cel::REPLICAS, "workload.replicas", Now(replicas)),
    check_of(
        "response-body-size",
        cel::RESPONSE_BODY_SIZE,
        "",
        Now(|v| bytes(v).is_none_or(|bytes| bytes <= 15 << 20)),
    ),
];

/// Checks the rules that a schema carries for this value.
pub(in crate::plan) fn check(schema: &Value, value: &Value, path: &str, findings: &mut Vec<Finding>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let Some(check) = CHECKS.iter().find(|check| rule["rule"] == check.rule.rule) else { continue };
        if let Now(holds) = check.holds
            && !holds(value)
        {
            findings.push(Finding::invalid(below(path, check.field), check.rule.message));
        }
    }
}

/// Checks what must not change between two versions of an object.
pub(in crate::plan) fn check_change(schema: &Value, old: &Value, new: &Value, path: &str, findings: &mut Vec<Finding>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let Some(check) = CHECKS.iter().find(|check| rule["rule"] == check.rule.rule) else { continue };
        if let Across(holds) = check.holds
            && !holds(old, new)
        {
            findings.push(Finding::invalid(below(path, check.field), check.rule.message));
        }
    }
    // Such rules stand on specs only, see the tests.
    if let Some(spec) = schema["properties"].get("spec") {
        check_change(spec, &old["spec"], &new["spec"], &child(path, "spec"), findings);
    }
}

fn below(path: &str, field: &str) -> String {
    match (path.is_empty(), field.is_empty()) {
        (_, true) => path.to_owned(),
        (true, false) => field.to_owned(),
        (false, false) => format!("{path}.{field}"),
    }
}

/// Checks a text against a pattern of the schemas, with words for humans.
pub(in crate::plan) fn check_pattern(pattern: &str, text: &str) -> Result<(), &'static str> {
    if pattern == OUTCOME && !is_outcome(text) {
        return Err("not an outcome; use a status (503), a class (5xx), or ConnectionError, NoResponse, Timeout, Tls");
    }
    Ok(())
}

/// The patterns that [`check_pattern`] knows.
#[cfg(test)]
pub(super) const PATTERNS: &[&str] = &[OUTCOME];

fn is_rule_name(text: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inside = text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    inside && ends(text.chars().next()) && ends(text.chars().next_back())
}

fn is_media_type(text: &str) -> bool {
    text.split_once('/').is_some_and(|(kind, subtype)| is_media_token(kind) && is_media_token(subtype))
}

fn is_method(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_uppercase())
}

fn is_media_token(text: &str) -> bool {
    !text.is_empty() && !text.contains(['/', ';', ',', ' ', '*'])
}

fn is_outcome(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!(text, "ConnectionError" | "NoResponse" | "Timeout" | "Tls")
        || (bytes.len() == 3
            && (b'1'..=b'5').contains(&bytes[0])
            && (&bytes[1..] == b"xx" || bytes[1..].iter().all(u8::is_ascii_digit)))
}

fn name(value: &Value) -> bool {
    text(value, |name| {
        let inside = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        let ends = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase()) && !name.ends_with('-');
        // One that is missing is told so.
        name.is_empty() || (name.len() <= 50 && inside && ends)
    })
}

fn has(value: &Value, field: &str) -> bool {
    value.get(field).is_some()
}

fn filled(value: &Value, field: &str) -> bool {
    value[field].as_array().is_some_and(|items| !items.is_empty())
}

fn one_of(value: &Value, fields: &[&str]) -> bool {
    fields.iter().filter(|field| has(value, field)).count() == 1
}

fn text(value: &Value, holds: impl Fn(&str) -> bool) -> bool {
    value.as_str().is_none_or(holds)
}

fn number(value: &Value) -> Option<i64> {
    value.as_i64()
}

fn milliseconds(value: &Value) -> Option<u128> {
    value.as_str().and_then(|text| duration::parse(text).ok()).map(|duration| duration.as_millis())
}

fn bytes(value: &Value) -> Option<u64> {
    match value {
        Value::String(text) => quantity::parse(text).ok(),
        other => other.as_u64().and_then(|bytes| quantity::parse(&bytes.to_string()).ok()),
    }
}

fn same_exchange(old: &Value, new: &Value) -> bool {
    let part = |value: &Value| value.get("exchange").map(|e| (e["name"].clone(), e["type"].clone()));
    part(old) == part(new)
}

fn no_filter(rule: &Value) -> bool {
    !rule["transform"].as_array().is_some_and(|steps| steps.iter().any(|step| has(step, "filter")))
}

fn in_flight_holds_body(limits: &Value) -> bool {
    match (bytes(&limits["maxInFlightBytes"]), bytes(&limits["maxBodySize"])) {
        (Some(in_flight), Some(body)) => in_flight >= body,
        _ => true,
    }
}

fn replicas(spec: &Value) -> bool {
    number(&spec["workload"]["replicas"]).is_none_or(|replicas| replicas <= 1)
        || (spec["ordering"] == "None" && !has(spec, "poll") && !has(spec, "rateLimit"))
}

/// `http://host[:port][/path][?query]`, as the CEL rule has it.
fn is_target_url(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")) else { return false };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let after_host = if let Some(literal) = authority.strip_prefix('[') {
        match literal.split_once(']') {
            Some((address, after))
                if !address.is_empty()
                    && address.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':' || byte == b'.') =>
            {
                after
            }
            _ => return false,
        }
    } else {
        let host = authority.find(':').unwrap_or(authority.len());
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte);
        if host == 0 || !authority[..host].bytes().all(allowed) {
            return false;
        }
        &authority[host..]
    };
    let port = match after_host.strip_prefix(':') {
        Some(port) => (1..=5).contains(&port.len()) && port.bytes().all(|byte| byte.is_ascii_digit()),
        None => after_host.is_empty(),
    };
    // In RE2 a dot or a negated class takes a line break unless told otherwise; `[^# ]` does.
    port && !path.contains(['#', ' ']) && !holds_template(url)
}

fn is_service_path(path: &str) -> bool {
    path.starts_with('/') && !path.contains('#') && !holds_template(path)
}

fn holds_template(text: &str) -> bool {
    text.contains("{{") || text.contains("{%")
}
