//! What a transform may use up, and what it must leave as it is.

use std::fmt::Write;

use crate::support::{Recorder, Setup, manifest, seconds};

/// A processor with these transform steps, and one that delivers its dead letters to a second target.
fn line(target: &Recorder, dead: &Recorder, steps: &str) -> Setup {
    let spec = format!("transform:\n{steps}\nonFailure: {{deadLetterStoreRef: {{name: dead}}}}");
    let yaml = [
        manifest::line(&target.url(), &spec),
        manifest::store("dead", ""),
        manifest::processor("buried", "dead", &dead.url(), ""),
    ];
    Setup::manifests(yaml.concat())
}

/// Without end in time, in memory, in depth, or in its result.
const ATTACKS: [(&str, &str); 10] = [
    ("loops", "{% for a in range(1000000) %}{% for b in range(1000000) %}{% endfor %}{% endfor %}"),
    ("prints", "{% for a in range(1000000) %}{{ body.text }}{% endfor %}"),
    ("doubles", "{% set ns = namespace(x='xx') %}{% for a in range(100) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"),
    ("repeats", "{{ 'x' * 10000000000 }}"),
    ("ranges", "{{ range(1000000000000) | list }}"),
    (
        "grows",
        "{% set ns = namespace(l=[]) %}{% for a in range(1000000) %}{% set ns.l = ns.l + [body.text] %}{% endfor %}",
    ),
    (
        "nests",
        "{% set ns = namespace(x=[]) %}{% for a in range(1000000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}",
    ),
    ("recurses", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
    ("descends", "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}"),
    ("replaces", "{{ body.text | replace('x', body.text) }}"),
];

#[test]
fn a_template_without_end_becomes_transform_failed_and_the_next_message_is_delivered() {
    let (target, dead) = (Recorder::start(), Recorder::start());
    let mut branches = String::new();
    for (name, template) in ATTACKS {
        let word = if branches.is_empty() { "if" } else { "elif" };
        let _ = writeln!(branches, "      {{% {word} body.kind == '{name}' %}}{template}");
    }
    let steps = format!(
        "- setHeader: {{name: X-Kind, value: \"{{{{ body.kind }}}}\"}}\n- setBody:\n    template: |-\n{branches}      {{% else %}}fine{{% endif %}}"
    );
    let run = line(&target, &dead, &steps).start();
    let text = "x".repeat(64 * 1024);
    for (name, _) in ATTACKS {
        run.post("/in", &[], format!(r#"{{"kind":"{name}","text":"{text}"}}"#));
        run.post("/in", &[], r#"{"kind":"none"}"#);
    }
    // Strict order: each of these waited for the one before it.
    let hits = target.await_hits(ATTACKS.len(), seconds(20));
    assert!(hits.iter().all(|hit| hit.text() == "fine"));
    let dead = dead.await_hits(ATTACKS.len(), seconds(20));
    for ((name, _), (at, hit)) in ATTACKS.iter().zip(dead.iter().enumerate()) {
        assert!(hit.text().starts_with(&format!(r#"{{"kind":"{name}""#)), "{name}");
        assert_eq!(hit.header("stagepost-death-reason").as_deref(), Some("TransformFailed"), "{name}");
        assert_eq!(hit.header("stagepost-death-attempts").as_deref(), Some("0"), "{name}");
        let error = hit.header("stagepost-death-last-error").unwrap();
        let place = format!("transform step 2 (setBody): line {}, column ", at + 1);
        assert!(error.starts_with(&place), "{name}: {error}");
    }
    // The target records a request before its answer is back at the forwarder and counted.
    let counted = |status: &serde_json::Value| status["deadLettered"] == 10 && status["delivered"] == 10;
    let status = run.await_status("ForwardingProcessor", "out", seconds(5), counted);
    assert_eq!(status["failedAttempts"], 0, "{status:#}");
    assert_eq!(status["lastFailure"]["reason"], "TransformFailed");
}

#[test]
fn json_that_is_not_touched_keeps_its_numbers_and_its_order() {
    let (target, dead) = (Recorder::start(), Recorder::start());
    let run = line(&target, &dead, "- setBody: {template: \"{{ body | combine({'fee': 7000}) | tojson }}\"}").start();
    let body = r#"{"z":1.10,"max":9223372036854775807,"unsigned":18446744073709551615,"big":123456789012345678901234567890,"fee":1,"odd":9007199254740993,"precise":0.1000000000000000055511151231257827,"huge":1e400,"zero":-0,"a":{"y":[1.0,-0.0,1E5],"b":"\u00e9\ud83d\ude00 \" \\"}}"#;
    run.post("/in", &[("Content-Type", "application/json; charset=utf-8")], body);
    let hit = target.await_hits(1, seconds(10)).remove(0);
    assert_eq!(hit.text(), body.replace("\"fee\":1,", "\"fee\":7000,"));
    assert_eq!(hit.header("content-type").as_deref(), Some("application/json; charset=utf-8"));
}

#[test]
fn xml_and_other_text_is_text_and_what_is_no_text_fails_clearly() {
    let (target, dead) = (Recorder::start(), Recorder::start());
    let run = line(&target, &dead, "- setBody: {template: \"<in>{{ body }}</in>\"}").start();
    let xml = "<?xml version=\"1.0\"?>\r\n<a b=\"1.10\">\u{e4} &amp; <!-- 1 --></a>\n";
    for body in [xml.as_bytes(), b"a,b\n1,2", b"\xff\xfe", b"after"] {
        run.post("/in", &[("Content-Type", "text/plain")], body);
    }
    let hits = target.await_hits(3, seconds(10));
    let texts: Vec<String> = hits.iter().map(crate::support::Hit::text).collect();
    assert_eq!(texts, [format!("<in>{xml}</in>").as_str(), "<in>a,b\n1,2</in>", "<in>after</in>"]);
    let dead = dead.await_hits(1, seconds(10)).remove(0);
    assert_eq!(dead.body, b"\xff\xfe");
    let error = dead.header("stagepost-death-last-error").unwrap();
    assert!(
        error.starts_with(
            "transform step 1 (setBody): line 1, column 8: `body` is undefined (the message's body is not UTF-8 text); "
        ),
        "{error}"
    );
}

#[test]
fn at_a_route_a_template_without_end_is_a_400_that_stores_nothing_and_the_next_request_is_answered() {
    let endless = "{% if body.bad %}{% for a in range(1000000) %}{% for b in range(1000000) %}{% endfor %}{% endfor %}{% endif %}fine";
    let fields = [
        ("transform", "transform", format!("transform: [{{setBody: {{template: '{endless}'}}}}]")),
        ("key", "the routing key", format!("routingKey: '{endless}'")),
        ("answer", "the answer's template", format!("response: {{accepted: {{body: '{endless}'}}}}")),
    ];
    let mut rules = "rules:".to_owned();
    for (name, _, field) in &fields {
        let _ = write!(rules, "\n- name: {name}\n  path: /{name}\n  storeRef: {{name: box}}\n  {field}");
    }
    let exchange = "queue: {}\nexchange: {name: all, type: Topic}\nbindings: [\"#\"]";
    let run =
        Setup::manifests([manifest::store("box", exchange), manifest::object("IngressRoute", "in", &rules)].concat());
    let run = run.start();
    for (name, what, _) in &fields {
        let path = format!("/{name}");
        let answer = run.post(&path, &[], r#"{"bad":true}"#);
        assert_eq!(answer.status, 400, "{path}: {}", answer.text());
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.starts_with(what) && detail.contains("line 1, column "), "{path}: {detail}");
        assert_eq!(run.post(&path, &[], r#"{"bad":false}"#).status, 202, "{path}");
    }
    run.await_depth("box", 3, seconds(5));
}
