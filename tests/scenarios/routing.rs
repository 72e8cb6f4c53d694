//! Which store a message gets to: by rules, by routing keys, from store to store; and a store that listens in.

use crate::support::http::{self, Answer};
use crate::support::{Recorder, Setup, Stagepost, manifest, millis, rabbitmq, seconds};

/// A store, and a processor that takes from it to a target of its own.
fn sorted_into(stores: &[(&str, &Recorder)]) -> String {
    let line = |(name, target): &(&str, &Recorder)| {
        let spec = format!("storeRef: {{name: {name}}}\ntarget: {{url: \"{}\", method: Preserve}}", target.url());
        manifest::store(name, "") + &manifest::object("ForwardingProcessor", name, &spec)
    };
    stores.iter().map(line).collect::<String>()
}

fn send(run: &Stagepost, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let headers: Vec<(&str, &[u8])> = headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
    http::once(run.listen(), method, path, &headers, body.as_bytes()).unwrap()
}

#[test]
fn the_first_rule_that_fits_by_method_header_and_body_decides_and_the_last_takes_what_is_left() {
    let [cancelled, express, large, other] = [(); 4].map(|()| Recorder::start());
    let rules = "rules:
- {name: cancel, path: '/orders/{id}', methods: [DELETE], storeRef: {name: cancelled}}
- {name: express, path: '/orders/{id}', methods: [POST, PUT], when: \"headers['x-priority'] == 'express'\", storeRef: {name: express}}
- {name: large, path: '/orders/{id}', methods: [POST, PUT], when: body.total >= 1000, storeRef: {name: large}}
- {name: other, path: '/orders/{id}', methods: [POST], storeRef: {name: other}}";
    let stores = [("cancelled", &cancelled), ("express", &express), ("large", &large), ("other", &other)];
    let run = Setup::manifests(sorted_into(&stores) + &manifest::object("IngressRoute", "in", rules)).start();
    let express_header = [("X-Priority", "express")];
    for (method, headers, body, expected) in [
        ("DELETE", &[][..], "by its method", 202),
        ("POST", &express_header[..], r#"{"total": 5000, "why": "express comes before large"}"#, 202),
        ("PUT", &[], r#"{"total": 1000.0}"#, 202),
        ("POST", &[], r#"{"total": 999.99}"#, 202),
        ("POST", &[("X-Priority", "slow")], r#"{"no": "total"}"#, 202),
        ("POST", &[], "no JSON at all", 202),
        // A rule for its method is there, and its condition does not hold.
        ("PUT", &[], r#"{"total": 1}"#, 404),
        ("PATCH", &[], "no rule has that method", 405),
    ] {
        let answer = send(&run, method, "/orders/7", headers, body);
        assert_eq!(answer.status, expected, "{method} {body}: {}", answer.text());
    }
    let came = |target: &Recorder, count| {
        let hits = target.await_hits(count, seconds(5));
        hits.into_iter().map(|hit| format!("{} {}", hit.method, hit.text())).collect::<Vec<_>>()
    };
    assert_eq!(came(&cancelled, 1), ["DELETE by its method"]);
    assert_eq!(came(&express, 1), [r#"POST {"total": 5000, "why": "express comes before large"}"#]);
    assert_eq!(came(&large, 1), [r#"PUT {"total": 1000.0}"#]);
    let rest = [r#"POST {"total": 999.99}"#, r#"POST {"no": "total"}"#, "POST no JSON at all"];
    assert_eq!(came(&other, 3), rest);
    for (target, count) in [(&cancelled, 1), (&express, 1), (&large, 1), (&other, 3)] {
        target.stays_at(count, millis(100));
    }
}

/// A topic without a queue, and a rule that makes the routing key from the body.
fn by_key(more: &str) -> String {
    let rules =
        "rules:\n- {name: post, path: /events, storeRef: {name: topic}, routingKey: 'orders.{{ body.region }}'}";
    manifest::store("topic", &format!("exchange: {{name: events, type: Topic}}\n{more}"))
        + &manifest::object("IngressRoute", "in", rules)
}

#[test]
fn a_routing_key_that_cannot_be_made_is_the_callers_mistake_and_one_that_leads_nowhere_is_not() {
    let target = Recorder::start();
    let eu = manifest::store("eu", "exchange: {name: events, type: Topic}\nqueue: {}\nbindings: [orders.eu]");
    let yaml = [by_key(""), eu, manifest::processor("eu", "eu", &target.url(), "")].concat();
    let run = Setup::manifests(yaml).start();
    assert_eq!(run.post("/events", &[], r#"{"region": "eu"}"#).status, 202);
    let unknown = run.post("/events", &[], r#"{"name": "no region"}"#);
    assert_eq!(unknown.status, 400, "{}", unknown.text());
    let nobody = run.post("/events", &[], r#"{"region": "us"}"#);
    assert_eq!(nobody.status, 503, "{}", nobody.text());
    target.await_hits(1, seconds(5));
    target.stays_at(1, millis(300));
    assert_eq!(run.metric("stagepost_stored_total", &["result=\"unroutable\""]), 1);
}

#[test]
fn what_nobody_is_bound_for_goes_to_the_failover_store_if_there_is_one() {
    let target = Recorder::start();
    let yaml = [
        by_key("failoverStoreRef: {name: stray}"),
        manifest::store("stray", ""),
        manifest::processor("stray", "stray", &target.url(), ""),
    ];
    let run = Setup::manifests(yaml.concat()).start();
    assert_eq!(run.post("/events", &[], r#"{"region": "us"}"#).status, 202);
    assert_eq!(target.await_hits(1, seconds(5))[0].text(), r#"{"region": "us"}"#);
    assert_eq!(run.metric("stagepost_stored_total", &["store=\"default/topic\"", "result=\"failover\""]), 1);
}

#[test]
fn from_store_to_store_a_filter_lets_through_what_it_names_unchanged_and_counts_the_rest() {
    let target = Recorder::start();
    let move_on =
        "storeRef: {name: box}\ntarget: {storeRef: {name: large}}\ntransform:\n- filter: {when: body.total >= 1000}";
    let yaml = [
        manifest::store("box", ""),
        manifest::route("in", "/in", "box"),
        manifest::store("large", ""),
        manifest::object("ForwardingProcessor", "move", move_on),
        manifest::processor("out", "large", &target.url(), ""),
    ];
    let run = Setup::manifests(yaml.concat()).start();
    let bodies = [r#"{"total": 1}"#, r#"{"total": 1000,  "spaces": "kept"}"#, "no JSON", r#"{"total": 2e3}"#];
    let ids = bodies.map(|body| run.post("/in", &[("X-A", "1")], body).header("stagepost-message-id"));
    let hits = target.await_hits(2, seconds(5));
    run.await_status("ForwardingProcessor", "move", seconds(5), |status| status["filtered"] == 2);
    target.stays_at(2, millis(200));
    for (hit, index) in hits.iter().zip([1, 3]) {
        assert_eq!((hit.text().as_str(), hit.header("stagepost-message-id")), (bodies[index], ids[index].clone()));
        assert_eq!(hit.header("x-a").as_deref(), Some("1"));
    }
    let status = run.processor("move");
    assert_eq!((&status["delivered"], &status["failedAttempts"]), (&2.into(), &0.into()), "{status:#}");
    assert_eq!((run.depth("box"), run.depth("large")), (0, 0));
}

#[test]
fn from_store_to_store_a_transform_changes_what_moves_and_not_who_it_is() {
    let target = Recorder::start();
    let move_on = "storeRef: {name: box}\ntarget: {storeRef: {name: next}}\ntransform:\n\
                   - setBody: {template: \"<{{ body.a }}>\"}\n- setHeader: {name: X-Moved, value: \"yes\"}";
    let yaml = [
        manifest::store("box", ""),
        manifest::route("in", "/in", "box"),
        manifest::store("next", ""),
        manifest::object("ForwardingProcessor", "move", move_on),
        manifest::processor("out", "next", &target.url(), ""),
    ];
    let run = Setup::manifests(yaml.concat()).start();
    let id = run.post("/in", &[("X-A", "1")], r#"{"a": 7}"#).header("stagepost-message-id");
    let hit = target.await_hits(1, seconds(5)).remove(0);
    assert_eq!((hit.text().as_str(), hit.header("stagepost-message-id")), ("<7>", id));
    assert_eq!((hit.header("x-moved").as_deref(), hit.header("x-a").as_deref()), (Some("yes"), Some("1")));
}

/// A line whose store has an exchange, and a second store that is bound to it.
fn tapped(target: &Recorder, tap: &str) -> Stagepost {
    let exchange = "exchange: {name: orders, type: Fanout}";
    let yaml = [
        manifest::store("box", &format!("{exchange}\nqueue: {{type: Classic}}")),
        manifest::route("in", "/in", "box"),
        manifest::processor("out", "box", &target.url(), ""),
        manifest::store("tap", &format!("{exchange}\nqueue: {{type: Classic{tap}}}")),
    ];
    Setup::manifests(yaml.concat()).start()
}

#[test]
fn a_wire_tap_gets_a_copy_of_everything_and_holds_nobody_up() {
    let target = Recorder::start();
    let run = tapped(&target, "");
    for number in 0..20 {
        assert_eq!(run.post("/in", &[], number.to_string()).status, 202);
    }
    target.await_hits(20, seconds(10));
    run.await_depth("tap", 20, seconds(5));
    let listener = Recorder::start();
    run.write("listen.yaml", &manifest::processor("listen", "tap", &listener.url(), ""));
    listener.await_hits(20, seconds(10));
    let ids = |of: &Recorder| {
        of.hits().iter().map(|hit| (hit.header("stagepost-message-id"), hit.text())).collect::<Vec<_>>()
    };
    assert_eq!(ids(&listener), ids(&target), "the same messages, in the same order");
}

#[test]
fn a_wire_tap_that_is_full_refuses_what_it_taps() {
    let target = Recorder::start();
    let run = tapped(&target, ", maxLength: 2");
    let statuses = [0, 1, 2, 2].map(|number: u32| run.post("/in", &[], number.to_string()).status);
    assert_eq!(statuses, [202, 202, 503, 503]);
    run.await_depth("tap", 2, seconds(5));
    // RabbitMQ tells the publisher that one queue refused, and the other has its copy all the same: of each try.
    let came: &[&str] = if rabbitmq::is_everywhere() { &["0", "1", "2", "2"] } else { &["0", "1"] };
    target.await_hits(came.len(), seconds(5));
    target.stays_at(came.len(), millis(300));
    assert_eq!(target.texts(), came);
    // Somebody listens again: there is room.
    let listener = Recorder::start();
    run.write("listen.yaml", &manifest::processor("listen", "tap", &listener.url(), ""));
    listener.await_hits(2, seconds(10));
    run.await_depth("tap", 0, seconds(5));
    assert_eq!(run.post("/in", &[], "3").status, 202);
}
