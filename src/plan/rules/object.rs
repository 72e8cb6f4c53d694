//! Rules over one object that need a computation: what must compile, and what CEL would find too costly.

use std::collections::BTreeMap;

use crate::api::delivery::{OutcomeEntry, default_retry_outcomes, default_success_outcomes};
use crate::api::ingress_route::Rule;
use crate::api::transform::TransformStep;
use crate::api::{ForwardingProcessor, IngressRoute, MessageStore};
use crate::plan::finding::Finding;
use crate::plan::schema::{child, shorten};
use crate::plan::world::queue_name;

use super::{Controlled, compiles};

const fn rule(id: &'static str, field: &'static str, remedy: &'static str) -> Controlled {
    Controlled { id, field, remedy }
}

const PATH_PATTERN: Controlled =
    rule("path-pattern", "spec.rules[].path", "write segments like /orders/{id}, and {*rest} at the end");
const TEMPLATE: Controlled = rule("template", "spec", "templates are Jinja2, like {{ body.name }}");
const EXPRESSION: Controlled = rule("expression", "spec", "expressions are Jinja2, like body.amount > 0");
const JSON_SCHEMA: Controlled =
    rule("json-schema", "spec.rules[].schema", "it follows JSON Schema 2020-12 and refers to no other document");
const CRON: Controlled =
    rule("cron", "spec.poll.cron", "write it like `0/2 * * * * ?` (with seconds) or `*/5 * * * *`");
const HEADER_NAME: Controlled = rule("header-name", "spec", "header names hold letters, digits and `-`, like X-Source");
const HEADER_RESERVED: Controlled = rule("header-reserved", "spec", "remove it here");
const HEADER_VALUE: Controlled =
    rule("header-value", "spec", "it is one line without control characters; write it as such");
const HEADER_TWICE: Controlled = rule("header-twice", "spec", "header names ignore case; keep one of them");
const OUTCOME_TWICE: Controlled = rule("outcome-twice", "spec.outcomes", "keep it in one list");
const BROKER_NAME_LENGTH: Controlled = rule(
    "broker-name-length",
    "spec",
    "names and keys on a broker have at most 255 bytes, a queue's 4 less for the dead letter queue beside it; shorten it",
);

/// For the list of all rules.
pub(super) const RULES: &[Controlled] = &[
    PATH_PATTERN,
    TEMPLATE,
    EXPRESSION,
    JSON_SCHEMA,
    CRON,
    HEADER_NAME,
    HEADER_RESERVED,
    HEADER_VALUE,
    HEADER_TWICE,
    OUTCOME_TWICE,
    BROKER_NAME_LENGTH,
];

/// Collects what is found.
struct Report<'f>(&'f mut Vec<Finding>);

impl Report<'_> {
    fn broken(&mut self, rule: &Controlled, path: impl Into<String>, what: impl AsRef<str>) {
        self.0.push(Finding::invalid(path, format!("{}; {}", one_line(what.as_ref()), rule.remedy)));
    }

    fn compiled(&mut self, rule: &Controlled, path: &str, result: Result<(), String>) {
        if let Err(error) = result {
            // Most errors of ours bring their own remedy.
            if error.contains("; ") {
                self.0.push(Finding::invalid(path, one_line(&error)));
            } else {
                self.broken(rule, path, error);
            }
        }
    }

    fn template(&mut self, path: &str, text: &str) {
        self.compiled(&TEMPLATE, path, compiles::template(text));
    }

    fn condition(&mut self, path: &str, text: &str) {
        self.compiled(&EXPRESSION, path, compiles::condition(text));
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Checks a MessageStore alone.
pub(in crate::plan) fn check_store(object: &MessageStore, findings: &mut Vec<Finding>) {
    let mut report = Report(findings);
    let spec = &object.spec;
    let mut bounded = |path: String, text: &str, most: usize| {
        if text.len() > most {
            report.broken(&BROKER_NAME_LENGTH, path, format!("`{}` has {} bytes", shorten(text), text.len()));
        }
    };
    if let Some(queue) = &spec.queue {
        bounded("spec.queue.name".to_owned(), &queue_name(object, queue), 251);
    }
    if let Some(exchange) = &spec.exchange {
        bounded("spec.exchange.name".to_owned(), &exchange.name, 255);
    }
    if let Some(key) = &spec.routing_key {
        bounded("spec.routingKey".to_owned(), key, 255);
    }
    for (at, key) in spec.bindings.iter().flatten().enumerate() {
        bounded(format!("spec.bindings[{at}]"), key, 255);
    }
}

/// Checks an IngressRoute alone.
pub(in crate::plan) fn check_route(object: &IngressRoute, findings: &mut Vec<Finding>) {
    let mut report = Report(findings);
    for (at, rule) in object.spec.rules.iter().enumerate() {
        check_rule(rule, &format!("spec.rules[{at}]"), &mut report);
    }
}

fn check_rule(rule: &Rule, path: &str, report: &mut Report<'_>) {
    // One without a leading slash is the schema's matter.
    if rule.path.starts_with('/') {
        report.compiled(&PATH_PATTERN, &format!("{path}.path"), compiles::path_pattern(&rule.path));
    }
    if let Some(when) = &rule.when {
        report.condition(&format!("{path}.when"), when);
    }
    if let Some(key) = &rule.routing_key {
        report.template(&format!("{path}.routingKey"), key);
    }
    if let Some(schema) = &rule.schema {
        let schema = serde_json::Value::Object(schema.0.clone());
        report.compiled(&JSON_SCHEMA, &format!("{path}.schema"), compiles::json_schema(&schema));
    }
    check_steps(&rule.transform, &format!("{path}.transform"), report);
    let response = &rule.response;
    for (name, headers, body) in [
        ("accepted", &response.accepted.headers, Some(&response.accepted.body)),
        ("invalid", &response.invalid.headers, response.invalid.body.as_ref()),
        ("storeFailed", &response.store_failed.headers, response.store_failed.body.as_ref()),
    ] {
        let path = format!("{path}.response.{name}");
        check_headers(headers, &format!("{path}.headers"), Towards::Caller, report);
        if let Some(body) = body {
            report.template(&format!("{path}.body"), body);
        }
    }
}

/// Checks a ForwardingProcessor alone.
pub(in crate::plan) fn check_processor(object: &ForwardingProcessor, findings: &mut Vec<Finding>) {
    let mut report = Report(findings);
    let spec = &object.spec;
    if let Some(key) = &spec.ordering_key {
        report.compiled(&EXPRESSION, "spec.orderingKey", compiles::key(key));
    }
    if let Some(poll) = &spec.poll
        && let Some(cron) = &poll.cron
    {
        let path = if crate::core::schedule::Schedule::parse_cron(cron, "UTC").is_ok() { "timeZone" } else { "cron" };
        report.compiled(&CRON, &format!("spec.poll.{path}"), compiles::cron(cron, &poll.time_zone));
    }
    check_steps(&spec.transform, "spec.transform", &mut report);
    if let Some(headers) = &spec.target.headers {
        check_headers(&headers.set, "spec.target.headers.set", Towards::Target, &mut report);
        for (at, name) in headers.remove.iter().enumerate() {
            check_header_name(name, &format!("spec.target.headers.remove[{at}]"), &mut report);
        }
    }
    check_outcomes(object, &mut report);
}

fn check_steps(steps: &[TransformStep], path: &str, report: &mut Report<'_>) {
    for (at, step) in steps.iter().enumerate() {
        let path = format!("{path}[{at}]");
        if let Some(set) = &step.set_header {
            check_set_header(&set.name, &format!("{path}.setHeader.name"), Towards::Target, report);
            check_header_value(&set.value, &format!("{path}.setHeader.value"), report);
        }
        if let Some(remove) = &step.remove_header {
            check_header_name(&remove.name, &format!("{path}.removeHeader.name"), report);
        }
        if let Some(set) = &step.set_body {
            report.template(&format!("{path}.setBody.template"), &set.template);
        }
        if let Some(filter) = &step.filter {
            report.condition(&format!("{path}.filter.when"), &filter.when);
        }
        if let Some(log) = &step.log {
            report.template(&format!("{path}.log.template"), &log.template);
        }
    }
}

/// Headers of an answer that the server sets: no template can know them.
const OF_THE_SERVER: [&str; 6] =
    ["connection", "content-length", "keep-alive", "trailer", "transfer-encoding", "upgrade"];

/// Which header names may be set.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Towards {
    Caller,
    Target,
}

fn check_headers(headers: &BTreeMap<String, String>, path: &str, towards: Towards, report: &mut Report<'_>) {
    let mut seen: BTreeMap<String, &String> = BTreeMap::new();
    for (name, value) in headers {
        let path = child(path, name);
        check_set_header(name, &path, towards, report);
        check_header_value(value, &path, report);
        if let Some(first) = seen.insert(name.to_ascii_lowercase(), name) {
            report.broken(&HEADER_TWICE, path, format!("`{first}` and `{name}` are the same header"));
        }
    }
}

fn check_header_name(name: &str, path: &str, report: &mut Report<'_>) -> bool {
    let valid = http::HeaderName::from_bytes(name.as_bytes()).is_ok();
    if !valid {
        report.broken(&HEADER_NAME, path, format!("`{}` is not a header name", shorten(name)));
    }
    valid
}

fn check_set_header(name: &str, path: &str, towards: Towards, report: &mut Report<'_>) {
    if !check_header_name(name, path, report) {
        return;
    }
    let refused = match towards {
        Towards::Target => compiles::settable_header(name),
        Towards::Caller if OF_THE_SERVER.contains(&name.to_ascii_lowercase().as_str()) => {
            Err(format!("header `{}`: the server sets it", shorten(name)))
        }
        Towards::Caller => Ok(()),
    };
    report.compiled(&HEADER_RESERVED, path, refused);
}

fn check_header_value(value: &str, path: &str, report: &mut Report<'_>) {
    report.template(path, value);
    // What a template makes of a message is known only then. The last line break is not part of its result.
    let constant = !value.contains("{{") && !value.contains("{%") && !value.contains("{#");
    let text = value.strip_suffix('\n').unwrap_or(value);
    if constant && http::HeaderValue::from_str(text).is_err() {
        report.broken(&HEADER_VALUE, path, format!("`{}` cannot be a header's value", shorten(text)));
    }
}

/// An entry may stand in one list only. A list with its default gives way to the others, so it is not looked at.
fn check_outcomes(object: &ForwardingProcessor, report: &mut Report<'_>) {
    let lists = &object.spec.outcomes;
    let written = [
        ("success", &lists.success, lists.success != default_success_outcomes()),
        ("retry", &lists.retry, lists.retry != default_retry_outcomes()),
        ("fail", &lists.fail, true),
        ("deactivate", &lists.deactivate, true),
    ];
    let mut seen: BTreeMap<String, &str> = BTreeMap::new();
    for (name, list, is_written) in written {
        if !is_written {
            continue;
        }
        for (at, entry) in list.iter().enumerate() {
            let text = OutcomeEntry::to_string(entry);
            if let Some(first) = seen.insert(text.clone(), name)
                && first != name
            {
                let path = format!("spec.outcomes.{name}[{at}]");
                report.broken(&OUTCOME_TWICE, path, format!("`{}` stands in outcomes.{first} too", shorten(&text)));
            }
        }
    }
}
