//! S3 and S4: several destinations, topics, full stores, bursts.

use std::time::Instant;

use crate::support::http::Answer;
use crate::support::{Hit, Recorder, Reply, Setup, Stagepost, manifest, millis, seconds};

fn texts(hits: &[Hit]) -> Vec<String> {
    hits.iter().map(Hit::text).collect()
}

#[test]
fn l1_the_caller_is_answered_before_the_listener_is_done() {
    let listener = Recorder::answering(|_| Reply::status(200).after(seconds(2)));
    let run = Setup::manifests(manifest::line(&listener.url(), "")).start();
    let begun = Instant::now();
    assert_eq!(run.post("/in", &[], "N8K5Baker#_activate").status, 202);
    assert!(begun.elapsed() < seconds(1), "answered after {:?}", begun.elapsed());
    run.await_status("ForwardingProcessor", "out", seconds(6), |status| status["delivered"] == 1);
    assert_eq!(texts(&listener.hits()), ["N8K5Baker#_activate"]);
}

#[test]
fn l2_an_answer_becomes_a_message_with_the_correlation_of_its_request() {
    let listener = Recorder::answering(|hit| Reply::full(200, &[], &[b"done: ", hit.body.as_slice()].concat()));
    let baker = Recorder::start();
    let yaml = [
        manifest::line(&listener.url(), "response: {storeRef: {name: n8k5-baker}}"),
        manifest::store("n8k5-baker", ""),
        manifest::processor("baker", "n8k5-baker", &baker.url(), ""),
    ];
    let run = Setup::manifests(yaml.concat()).start();
    let id = run.post("/in", &[], "bake").header("stagepost-message-id");
    let hit = baker.await_hits(1, seconds(4)).remove(0);
    assert_eq!(hit.text(), "done: bake");
    assert_eq!(hit.header("stagepost-correlation-id"), id);
}

#[test]
fn l3_strict_order_never_overlaps() {
    let listener = Recorder::answering(|_| Reply::status(200).after(seconds(1)));
    let run = Setup::manifests(manifest::line(&listener.url(), "ordering: Strict")).start();
    for number in 0..5 {
        run.post("/in", &[], number.to_string());
    }
    let hits = listener.await_hits(5, seconds(9));
    assert_eq!(texts(&hits), ["0", "1", "2", "3", "4"]);
    assert!(hits[4].at - hits[0].at >= seconds(4));
    assert!(hits.windows(2).all(|pair| pair[0].answered.is_some_and(|answered| answered <= pair[1].at)), "an overlap");
}

/// A publish-only store on a topic exchange, and stores bound to it, each with a processor to its own target.
fn topic(bound: &[(&str, &str, &Recorder)]) -> Stagepost {
    let exchange = |bindings: &str| format!("exchange: {{name: events, type: Topic}}\n{bindings}");
    let mut yaml = manifest::store("topic", &exchange("routingKey: nobody.asked"));
    let rules = "rules:\n- name: post\n  path: /events/{*key}\n  storeRef: {name: topic}\n  routingKey: \"{{ headers['x-key'] }}\"";
    yaml += &manifest::object("IngressRoute", "in", rules);
    for (name, binding, target) in bound {
        yaml += &manifest::store(name, &exchange(&format!("queue: {{}}\nbindings: [\"{binding}\"]")));
        let spec = "retry: {maxRedeliveries: 1, interval: 100ms}\nonFailure: {action: Drop}";
        yaml += &manifest::processor(name, name, &target.url(), spec);
    }
    Setup::manifests(yaml).start()
}

#[test]
fn l4_each_destination_of_an_exchange_gets_a_copy_and_a_failing_one_touches_no_other() {
    let (good, slow, bad) = (
        Recorder::start(),
        Recorder::answering(|_| Reply::status(200).after(seconds(1))),
        Recorder::answering(|_| Reply::status(500).after(seconds(1))),
    );
    let run = topic(&[("good", "#", &good), ("slow", "#", &slow), ("bad", "#", &bad)]);
    assert_eq!(run.post("/events/x", &[("X-Key", "any.key")], "copy").status, 202);
    let starts = [&good, &slow, &bad].map(|target| target.await_hits(1, seconds(3)).remove(0));
    for start in &starts {
        assert_eq!(start.text(), "copy");
        assert!(start.at < starts[1].at + seconds(1) && start.at < starts[2].at + seconds(1), "starts overlap");
    }
    bad.await_hits(2, seconds(4));
    run.await_status("ForwardingProcessor", "bad", seconds(3), |status| status["dropped"] == 1);
    assert_eq!((good.count(), slow.count()), (1, 1));
}

#[test]
fn p2_a_topic_routes_by_pattern_and_what_nobody_is_bound_for_is_not_accepted() {
    let (created, orders, audit) = (Recorder::start(), Recorder::start(), Recorder::start());
    let run = topic(&[
        ("created", "orders.*.created", &created),
        ("orders", "orders.#", &orders),
        ("audit", "audit.#", &audit),
    ]);
    for (key, expected) in [("orders.eu.created", 202), ("orders.eu.x.created", 202), ("audit", 202), ("users.x", 503)]
    {
        let answer = run.post("/events/x", &[("X-Key", key)], key);
        assert_eq!(answer.status, expected, "{key}: {}", answer.text());
    }
    created.await_hits(1, seconds(3));
    orders.await_hits(2, seconds(3));
    audit.await_hits(1, seconds(3));
    std::thread::sleep(millis(300));
    assert_eq!(texts(&created.hits()), ["orders.eu.created"]);
    assert_eq!(texts(&orders.hits()), ["orders.eu.created", "orders.eu.x.created"]);
    assert_eq!(texts(&audit.hits()), ["audit"]);
    assert_eq!(run.metric("stagepost_stored_total", &["result=\"unroutable\""]), 1);
}

#[test]
fn l5_a_full_store_refuses_and_holds_exactly_what_was_acknowledged() {
    let target = Recorder::start();
    let yaml = [manifest::store("box", "queue: {maxLength: 3, type: Classic}"), manifest::route("in", "/in", "box")];
    let run = Setup::manifests(yaml.concat()).start();
    let answers: Vec<Answer> = (0..6).map(|number: u32| run.post("/in", &[], number.to_string())).collect();
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [202, 202, 202, 503, 503, 503]);
    assert_eq!(answers[3].header("retry-after").as_deref(), Some("1"));
    assert_eq!(answers[3].header("content-type").as_deref(), Some("application/problem+json"));
    run.await_depth("box", 3, seconds(1));
    run.write("out.yaml", &manifest::processor("out", "box", &target.url(), ""));
    target.await_hits(3, seconds(5));
    run.await_depth("box", 0, seconds(2));
    target.stays_at(3, millis(300));
    assert_eq!(target.texts(), ["0", "1", "2"]);
    assert_eq!(run.post("/in", &[], "again").status, 202);
}

#[test]
fn p4_a_burst_faster_than_the_target_is_kept_and_drained() {
    let target = Recorder::start();
    let run = Setup::manifests(manifest::line(&target.url(), "rateLimit: {requests: 50, per: 1s}")).start();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for sender in 0..8 {
            let run = &run;
            scope.spawn(move || {
                for number in 0..60 {
                    assert_eq!(run.post("/in", &[], format!("{sender}-{number}")).status, 202);
                }
            });
        }
    });
    let backlog = run.processor("out")["backlog"].as_u64().unwrap();
    println!("480 in {:?}, then {backlog} waited", begun.elapsed());
    assert!(backlog > 100, "{backlog}");
    run.await_status("ForwardingProcessor", "out", seconds(20), |status| status["backlog"] == 0);
    let hits = target.hits();
    assert_eq!(hits.len(), 480);
    let span = hits[479].at - hits[0].at;
    assert!(span >= millis(9_400), "480 in {span:?} at 50 a second");
}
