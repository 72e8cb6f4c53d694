//! What goes out, what comes back, what is kept of it.

use std::collections::BTreeMap;

use http::HeaderValue;
use stagepost::core::message::Death;
use stagepost::expression::Step;
use stagepost::plan::{ForwarderPlan, TargetPlan};
use stagepost::store::PublishError;
use stagepost::target::store::StoreTarget;

use super::bench::*;
use super::target::{ScriptedTarget, at_once, response_with};

fn with_target(edit: impl FnOnce(&mut stagepost::plan::HttpTargetPlan)) -> ForwarderPlan {
    let mut plan = plan();
    let TargetPlan::Http(http) = &mut plan.target else { unreachable!() };
    edit(http);
    plan
}

#[tokio::test(start_paused = true)]
async fn a_preserved_method_an_appended_path_and_headers_that_end_here() {
    let plan = with_target(|http| {
        http.method = None;
        http.append_path = true;
    });
    let bench = Bench::new(plan, ScriptedTarget::answering(202));
    let mut message = message(1);
    message.content_type = Some(HeaderValue::from_static("application/pdf"));
    message.correlation_id = Some("order-7".into());
    for (name, value) in [
        ("company", "WSO2"),
        ("x-a", "1"),
        ("x-a", "2"),
        ("idempotency-key", "mine"),
        ("connection", "x-hop, close"),
        ("x-hop", "1"),
        ("transfer-encoding", "chunked"),
        ("host", "evil.test"),
        ("stagepost-attempt", "99"),
        ("stagepost-death-reason", "forged"),
        ("x-stagepost-path", "/forged"),
    ] {
        message.headers.append(name, HeaderValue::from_static(value));
    }
    bench.source.put(message);
    let _forwarder = bench.start();
    bench.drained().await;
    let hit = &bench.target.hits()[0];
    assert_eq!((hit.method.as_str(), hit.append.as_deref()), ("PUT", Some("/healthcare/appointment?a=1&b")));
    let mut headers: Vec<String> =
        hit.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    headers.sort();
    assert_eq!(
        headers,
        [
            "company: WSO2",
            "content-type: application/pdf",
            "idempotency-key: mine",
            "stagepost-attempt: 1",
            "stagepost-correlation-id: order-7",
            "stagepost-message-id: 1",
            "x-a: 1",
            "x-a: 2",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn headers_are_removed_then_set_by_templates_that_see_the_attempt() {
    let plan = with_target(|http| {
        http.remove_headers = vec!["X-Debug".into(), "X-Source".into()];
        http.set_headers = BTreeMap::from([
            ("X-Source".into(), "shop".into()),
            ("X-Try".into(), "{{ message.attempt }} of {{ message.id }}".into()),
        ]);
    });
    let bench = Bench::new(plan, ScriptedTarget::new(|hit| at_once(if hit.attempt == 1 { 500 } else { 202 })));
    let mut message = message(1);
    message.headers.append("x-debug", HeaderValue::from_static("1"));
    message.headers.append("x-source", HeaderValue::from_static("theirs"));
    bench.source.put(message);
    let _forwarder = bench.start();
    bench.drained().await;
    let hits = bench.target.hits();
    assert!(!hits[0].headers.contains_key("x-debug"));
    assert_eq!(hits[0].headers["x-source"], "shop");
    assert_eq!(
        (&hits[0].headers["x-try"], &hits[1].headers["x-try"]),
        (&"1 of 1".parse().unwrap(), &"2 of 1".parse().unwrap())
    );
}

#[tokio::test(start_paused = true)]
async fn a_header_template_that_fails_sends_nothing_and_makes_a_dead_letter() {
    let plan = with_target(|http| {
        http.set_headers = BTreeMap::from([("X-Card".into(), "{{ body.card }}".into())]);
    });
    let bench = Bench::new(plan, ScriptedTarget::answering(202));
    bench.put([1]);
    let _forwarder = bench.start();
    bench.drained().await;
    assert!(bench.target.hits().is_empty());
    assert_eq!(bench.dlc.messages()[0].death.as_ref().unwrap().reason, "TransformFailed");
}

#[tokio::test(start_paused = true)]
async fn the_transformed_message_is_sent_and_the_original_dies() {
    let transform = vec![
        Step::SetHeader { name: "X-Card".into(), value: "{{ body.card }}".into() },
        Step::SetBody { template: r#"{"fee":{{ body.fee * 2 }}}"#.into() },
    ];
    let bench = Bench::new(ForwarderPlan { transform, ..plan() }, ScriptedTarget::answering(404));
    let mut message = message(1);
    message.body = r#"{"card":"7","fee":3}"#.into();
    bench.source.put(message);
    let _forwarder = bench.start();
    bench.drained().await;
    let hit = &bench.target.hits()[0];
    assert_eq!((hit.body.as_ref(), &hit.headers["x-card"]), (&br#"{"fee":6}"#[..], &HeaderValue::from_static("7")));
    let dead = &bench.dlc.messages()[0];
    assert_eq!(dead.body, r#"{"card":"7","fee":3}"#);
    assert!(!dead.headers.contains_key("x-card"));
}

#[tokio::test(start_paused = true)]
async fn a_filter_settles_without_delivery_and_a_failing_step_kills_only_its_message() {
    let transform =
        vec![Step::Filter { when: "body.amount > 0".into() }, Step::SetBody { template: "{{ body.x }}".into() }];
    let bench = Bench::new(ForwarderPlan { transform, ..plan() }, ScriptedTarget::answering(202));
    for (id, body) in
        [("filtered", r#"{"amount":0}"#), ("broken", r#"{"amount":1}"#), ("good", r#"{"amount":1,"x":5}"#)]
    {
        let mut message = message(id);
        message.body = body.into();
        bench.source.put(message);
    }
    let forwarder = bench.start();
    bench.drained().await;
    let report = forwarder.report();
    assert_eq!((report.filtered, report.dead_lettered, report.delivered, report.failed_attempts), (1, 1, 1, 0));
    assert_eq!((bench.dlc.ids(), bench.target.asked()), (vec!["broken".to_owned()], vec!["good:1".to_owned()]));
    assert_eq!(report.last_failure.unwrap().reason, "TransformFailed");
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_is_delivered_says_why_it_died() {
    let bench = Bench::new(plan(), ScriptedTarget::answering(202));
    let mut message = message(1);
    message.death = Some(Death {
        reason: "Rejected".into(),
        attempts: 3,
        last_status: Some(404),
        first_at: Some("2026-11-21T08:00:00Z".parse().unwrap()),
        last_at: None,
        last_error: Some("two\nlines".into()),
        processor: "shop/pay".into(),
        source: "orders".into(),
    });
    bench.source.put(message);
    let _forwarder = bench.start();
    bench.drained().await;
    let headers = &bench.target.hits()[0].headers;
    let death = |name: &str| headers.get(format!("stagepost-death-{name}")).map(|value| value.to_str().unwrap());
    assert_eq!((death("reason"), death("attempts"), death("last-status")), (Some("Rejected"), Some("3"), Some("404")));
    assert_eq!((death("first-at"), death("last-at")), (Some("2026-11-21T08:00:00Z"), None));
    assert_eq!(
        (death("last-error"), death("processor"), death("source")),
        (Some("two?lines"), Some("shop/pay"), Some("orders"))
    );
}

#[tokio::test(start_paused = true)]
async fn l2_the_answer_becomes_a_message_before_the_request_is_acknowledged() {
    let mut plan = plan();
    plan.response.store = Some("answers".into());
    let target = ScriptedTarget::new(|_| (std::time::Duration::ZERO, response_with(200, "x-appointment", "7")));
    let bench = Bench::new(plan, target);
    let mut request = message(1);
    request.correlation_id = Some("order-7".into());
    bench.source.put(request);
    bench.put([2]);
    let _forwarder = bench.start();
    bench.drained().await;
    let answers = bench.answers.messages();
    assert_eq!((answers[0].correlation_id(), answers[1].correlation_id()), ("order-7", "2"));
    assert_eq!(
        (answers[0].body.as_ref(), &answers[0].headers["x-appointment"]),
        (&b"settled"[..], &HeaderValue::from_static("7"))
    );
    assert_eq!(answers[0].content_type, Some(HeaderValue::from_static("text/plain")));
    assert!(answers[0].origin.is_none() && answers[0].id != answers[1].id);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_cannot_be_stored_is_given_up_and_the_target_not_asked_again() {
    let mut plan = plan();
    plan.response.store = Some("answers".into());
    let bench = Bench::new(plan, ScriptedTarget::answering(200));
    bench.answers.fail_publish(Some(PublishError::Refused("full".into())));
    bench.put([1]);
    let forwarder = bench.start();
    pass(seconds(50)).await;
    assert_eq!(bench.source.ids(), ["1"]);
    bench.drained().await;
    let report = forwarder.report();
    assert_eq!((report.responses_lost, report.delivered, bench.target.hits().len()), (1, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn store_to_store_keeps_id_correlation_and_origin() {
    let bench = Bench::new(
        ForwarderPlan { target: TargetPlan::Store("answers".into()), ..plan() },
        ScriptedTarget::answering(500),
    );
    bench.put(1..=3);
    let originals = bench.source.messages();
    bench.answers.fail_publish(Some(PublishError::NotConnected("down".into())));
    let target = StoreTarget::new(std::sync::Arc::new(bench.answers.clone()), None);
    let _forwarder = bench.start_with(std::sync::Arc::new(target));
    pass(seconds(7)).await;
    assert_eq!(bench.source.ids().len(), 3);
    bench.answers.fail_publish(None);
    bench.drained().await;
    assert_eq!(bench.answers.messages(), originals);
}
