//! Rules that look into the request.

use std::collections::BTreeMap;

use stagepost::expression::{LogLevel, Step};
use stagepost::ingress::RuleError;
use stagepost::plan::{BodyKind, ResponsePlan, RulePlan};
use stagepost::store::PublishError;

use crate::harness::{Ingress, limits, post, post_with, rule, rule_error};

fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> ResponsePlan {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    ResponsePlan { status, headers: headers.collect(), body: Some(body.to_owned()) }
}

fn named(name: &str, when: &str) -> RulePlan {
    RulePlan { name: name.into(), when: Some(when.into()), ..rule() }
}

fn routes_of(ingress: &Ingress) -> Vec<String> {
    let messages = ingress.store.messages();
    messages.iter().map(|message| message.origin.as_ref().unwrap().route.replace("shop/desk/", "")).collect()
}

#[tokio::test]
async fn the_first_rule_whose_condition_holds_takes_the_request_and_none_is_404() {
    let rules = vec![
        named("oak", "body.hospital == 'oak'"),
        named("header", "headers['x-kind'] == 'b' and query.q == '1'"),
        named("not-oak", "body.hospital != 'oak'"),
    ];
    let ingress = Ingress::start(rules, limits()).await;
    assert_eq!(ingress.post(r#"{"hospital": "oak"}"#).await.status, 202);
    assert_eq!(ingress.send(post_with("X-Kind: b\r\n", "").replace("/orders", "/orders?q=1")).await.status, 202);
    assert_eq!(ingress.post(r#"{"hospital": "pine"}"#).await.status, 202);
    // A name that is undefined makes the whole condition false, also with `!=`.
    assert_eq!(ingress.post("no json").await.status, 404);
    assert_eq!(routes_of(&ingress), ["oak", "header", "not-oak"]);
}

#[tokio::test]
async fn a_condition_is_asked_after_the_body_is_known_to_be_json_and_before_its_schema() {
    let of = |name: &str, kind: &str, field: &str| RulePlan {
        body: BodyKind::Json,
        schema: Some(serde_json::json!({"required": [field]})),
        ..named(name, &format!("body.kind == '{kind}'"))
    };
    let ingress = Ingress::start(vec![of("a", "a", "x"), of("b", "b", "y")], limits()).await;
    assert_eq!(ingress.post("no json").await.status, 400);
    assert_eq!(ingress.post(r#"{"kind": "b", "y": 1}"#).await.status, 202);
    assert_eq!(ingress.post(r#"{"kind": "b", "x": 1}"#).await.status, 400);
    assert_eq!(ingress.post(r#"{"kind": "c"}"#).await.status, 404);
    assert_eq!(routes_of(&ingress), ["b"]);
}

#[tokio::test]
async fn answers_and_routing_keys_are_rendered_from_the_request() {
    let given = RulePlan {
        path: "/categories/{category}/reserve".into(),
        routing_key: Some("orders.{{ path.category }}.created".into()),
        accepted: answer(201, &[("X-Id", "{{ message.id }}")], r#"{"for": {{ body.name | tojson }}}"#),
        ..rule()
    };
    let ingress = Ingress::start(vec![given], limits()).await;
    let reply = ingress.send(post(r#"{"name": "John"}"#).replace("/orders", "/categories/eu%20x/reserve")).await;
    assert_eq!((reply.status, reply.body.as_str()), (201, r#"{"for": "John"}"#));
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.header("x-id"), reply.header("stagepost-message-id"));
    assert_eq!(ingress.store.routing_keys(), [Some("orders.eu x.created".to_owned())]);
}

#[tokio::test]
async fn a_template_that_fails_is_400_and_nothing_is_stored() {
    let long = RulePlan { routing_key: Some("{{ body.key }}".into()), ..rule() };
    let ingress = Ingress::start(vec![long], limits()).await;
    assert_eq!(ingress.post(&format!(r#"{{"key": "{}"}}"#, "k".repeat(255))).await.status, 202);
    assert_eq!(ingress.post(&format!(r#"{{"key": "{}"}}"#, "k".repeat(300))).await.status, 400);
    assert_eq!(ingress.post("{}").await.status, 400);
    let accepted = RulePlan { accepted: answer(200, &[("X-A", "{{ body.a }}")], "{{ body.b }}"), ..rule() };
    ingress.reload(vec![accepted], limits());
    assert_eq!(ingress.post(r#"{"a": 1, "b": 2}"#).await.status, 200);
    assert_eq!(ingress.post(r#"{"a": 1}"#).await.status, 400);
    assert_eq!(ingress.post(r#"{"a": "1\r\nX-Injected: 1", "b": 2}"#).await.status, 400);
    assert_eq!(ingress.store.messages().len(), 2);
}

#[tokio::test]
async fn a_transform_makes_the_message_and_leaves_the_answer_to_the_request() {
    let transform = vec![
        Step::SetHeader { name: "Content-Type".into(), value: "application/json".into() },
        Step::SetHeader { name: "X-Id".into(), value: "{{ message.id }}".into() },
        Step::RemoveHeader { name: "X-Debug".into() },
        Step::SetBody { template: r#"{"card":{{ body.cardNo | tojson }},"fee":7000}"#.into() },
        Step::Log { template: "fee for {{ body.card }}".into(), level: LogLevel::Debug },
    ];
    let given = RulePlan { transform, accepted: answer(200, &[], "{{ body.cardNo }}"), ..rule() };
    let ingress = Ingress::start(vec![given], limits()).await;
    let lines = "Content-Type: text/json\r\nX-Debug: 1\r\nX-Kept: 1\r\nAuthorization: Basic eA==\r\n";
    let reply = ingress.send(post_with(lines, r#"{"cardNo": 12345678901234567890}"#)).await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "12345678901234567890"));
    let message = ingress.store.messages()[0].clone();
    assert_eq!(&message.body[..], br#"{"card":12345678901234567890,"fee":7000}"#);
    assert_eq!(message.content_type.as_ref().unwrap(), "application/json");
    assert_eq!(message.headers.get("x-id").unwrap(), message.id.as_str());
    assert_eq!(message.headers.get("x-kept").unwrap(), "1");
    assert_eq!(message.headers.len(), 2, "{:?}", message.headers);
}

#[tokio::test]
async fn a_transform_that_fails_is_the_rules_answer_to_what_is_invalid() {
    let given = RulePlan {
        transform: vec![Step::SetBody { template: "{{ body.cardNo }}".into() }],
        invalid: answer(422, &[], "cannot take {{ method }}"),
        ..rule()
    };
    let ingress = Ingress::start(vec![given], limits()).await;
    let reply = ingress.post("{}").await;
    assert_eq!((reply.status, reply.body.as_str()), (422, "cannot take POST"));
    assert_eq!((ingress.store.messages().len(), ingress.counters.rejected()), (0, 1));
}

#[tokio::test]
async fn the_answer_of_a_failed_store_may_be_a_template_and_its_own_failure_is_not_the_callers() {
    for (template, body) in [("sorry, {{ body.name }}", Some("sorry, John")), ("{{ body.missing }}", None)] {
        let given = RulePlan { store_failed: answer(503, &[], template), ..rule() };
        let ingress = Ingress::start(vec![given], limits()).await;
        ingress.store.refuse(PublishError::Refused("full".into()));
        let reply = ingress.post(r#"{"name": "John"}"#).await;
        assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")));
        match body {
            Some(body) => assert_eq!(reply.body, body),
            None => assert_eq!(reply.header("content-type"), Some("application/problem+json")),
        }
    }
}

#[test]
fn what_cannot_be_compiled_is_an_error_that_names_the_rule_and_the_field() {
    let error = |rule: RulePlan| rule_error(rule);
    let text = |rule: RulePlan| error(rule).to_string();
    assert!(matches!(error(named("a", "body.(")), RuleError::When(_)));
    assert!(matches!(error(RulePlan { path: "orders".into(), ..rule() }), RuleError::Path(_)));
    assert!(matches!(error(RulePlan { routing_key: Some("{{".into()), ..rule() }), RuleError::RoutingKey(_)));
    assert!(matches!(error(RulePlan { store: "none".into(), ..rule() }), RuleError::Store(_)));
    assert!(matches!(error(RulePlan { methods: vec!["P T".into()], ..rule() }), RuleError::Method(_)));
    let filter = RulePlan { transform: vec![Step::Filter { when: "true".into() }], ..rule() };
    assert_eq!(error(filter), RuleError::Filter);
    for (accepted, part) in [
        (answer(99, &[], ""), "99"),
        (answer(103, &[], ""), "103"),
        (answer(200, &[("Content-Length", "1")], ""), "Content-Length"),
        (answer(200, &[("X A", "1")], ""), "X A"),
        (answer(200, &[("X-A", "1\r\nB: 1")], ""), "X-A"),
        (answer(200, &[("X-A", "{{")], ""), "X-A"),
        (answer(200, &[], "{% if %}"), "body"),
    ] {
        let text = text(RulePlan { accepted, ..rule() });
        assert!(text.starts_with("response.accepted: ") && text.contains(part), "{text}");
    }
    let schema = serde_json::json!({"$ref": "http://example.com/"});
    assert!(matches!(error(RulePlan { schema: Some(schema), ..rule() }), RuleError::Schema(_)));
}

#[tokio::test]
async fn an_answer_without_a_body_of_its_own_but_with_headers_keeps_the_default_body() {
    let invalid =
        ResponsePlan { status: 422, headers: BTreeMap::from([("X-Shop".to_owned(), "1".to_owned())]), body: None };
    let ingress = Ingress::start(vec![RulePlan { body: BodyKind::Json, invalid, ..rule() }], limits()).await;
    let reply = ingress.post("no json").await;
    assert_eq!((reply.status, reply.header("x-shop")), (422, Some("1")));
    assert_eq!(reply.header("content-type"), Some("application/problem+json"));
    assert!(reply.body.contains(r#""status":422"#), "{}", reply.body);
}
