//! Scenarios of reliable delivery, in a cluster: R1, R2, R15, M2, M6, P1.

use serde_json::json;

use super::cluster::shared;
use super::space::{Space, condition, has, is, line};
use crate::support::{eventually, manifest, seconds};

/// Six attempts, a second apart.
const RETRY: &str = "retry: {maxRedeliveries: 5, interval: 1s, backoffFactor: 1, jitter: 0, whileUnreachable: Count}\noutcomes: {retry: [500, 400]}";

#[test]
fn r1_r2_a_message_is_delivered_or_is_a_dead_letter_after_six_attempts() {
    let Some(_shared) = shared() else { return };
    let space = Space::new("reliable");
    space.line(RETRY);
    let answer = space.post("in", "/in", "{    \"Status\":\"SUCCESS\"   }");
    assert_eq!((answer.status, answer.body.len()), (202, 0));
    let id = answer.header("stagepost-message-id").unwrap();
    let hits = space.await_hits(1, seconds(5));
    assert_eq!(hits[0].text(), "{    \"Status\":\"SUCCESS\"   }");
    assert_eq!(hits[0].header("stagepost-message-id"), Some(id));
    assert_eq!(hits[0].header("content-length").as_deref(), Some("27"));
    assert_eq!(hits[0].header("host"), Some(format!("sink.{}.svc:9090", space.name)));
    space.answers(&[500]);
    assert_eq!(space.post("in", "/in", "bad").status, 202);
    let hits = space.await_hits(7, seconds(15));
    for pair in hits[1..].windows(2) {
        let gap = pair[1].time.duration_since(pair[0].time).as_secs_f64();
        assert!((0.95..1.6).contains(&gap), "{gap} s between two attempts");
    }
    let dead = space.until("fwp", "out", seconds(15), |object| object["status"]["deadLetter"]["messages"] == 1);
    assert_eq!(dead["status"]["deadLettered"], 1);
    assert_eq!(dead["status"]["failedAttempts"], 6);
    assert_eq!(dead["status"]["lastFailure"]["status"], 500);
    assert_eq!(dead["status"]["deadLetter"]["queue"], format!("{}.box.dlc", space.name));
    assert_eq!(space.queue(&format!("{}.box.dlc", space.name)), Some(1));
    assert_eq!(space.hits().len(), 7);
    let events = space.kubectl(&["get", "events", "--field-selector", "reason=DeadLettered", "-o", "name"]);
    assert_eq!(events.lines().count(), 1, "{events}");
    // One that is not to be tried again goes at once.
    space.answers(&[404]);
    assert_eq!(space.post("in", "/in", "worse").status, 202);
    space.until("fwp", "out", seconds(15), |object| object["status"]["deadLetter"]["messages"] == 2);
    assert_eq!(space.hits().len(), 8);
}

#[test]
fn r15_a_worker_that_is_killed_while_it_waits_to_try_again_loses_nothing_and_keeps_the_order() {
    let Some(_shared) = shared() else { return };
    let space = Space::new("killed");
    space.line("retry: {interval: 5s, backoffFactor: 1, jitter: 0}");
    space.answers(&[500]);
    let first = space.post("in", "/in", "first").header("stagepost-message-id");
    assert_eq!(space.post("in", "/in", "second").status, 202);
    space.await_hits(1, seconds(5));
    let pod = space.pods("out")[0]["metadata"]["name"].as_str().unwrap().to_owned();
    space.kubectl(&["delete", "pod", &pod, "--grace-period=0", "--force"]);
    space.answers(&[200]);
    let hits = space.await_hits(3, seconds(60));
    assert_eq!(hits.iter().map(super::space::Hit::text).collect::<Vec<_>>(), ["first", "first", "second"]);
    assert_eq!(hits[1].header("stagepost-message-id"), first);
    assert_eq!(hits[1].header("stagepost-attempt").as_deref(), Some("1"));
    // What the killed pod had counted is counted once.
    let after = space.until("fwp", "out", seconds(20), |object| object["status"]["delivered"] == 2);
    assert!(after["status"]["failedAttempts"].as_u64().unwrap() <= 1, "{after:#}");
}

#[test]
fn m2_objects_that_come_before_their_broker_are_ready_when_it_comes() {
    let Some(_shared) = shared() else { return };
    let space = Space::empty("early");
    space.target();
    // The Secret and the Service are there, and nobody behind it.
    space.broker();
    space.kubectl(&["scale", "deployment/rabbitmq", "--replicas=0"]);
    space.apply(&line(""));
    for (kind, name) in [("mstore", "box"), ("iroute", "in"), ("fwp", "out")] {
        space.until(kind, name, seconds(60), |object| {
            is(object, "BrokerConnected", "False") && is(object, "Ready", "False")
        });
    }
    space.shows("fwp", "out", "REASON", "BrokerLost");
    let answer = space.post("in", "/in", "too early");
    assert_eq!(answer.status, 503, "{}", answer.text());
    let started = |pods: Vec<serde_json::Value>| pods[0]["status"]["startTime"].clone();
    let before = started(space.pods("out"));
    space.kubectl(&["scale", "deployment/rabbitmq", "--replicas=1"]);
    for (kind, name) in [("mstore", "box"), ("iroute", "in"), ("fwp", "out")] {
        space.ready(kind, name);
    }
    assert_eq!(started(space.pods("out")), before, "without a restart");
    assert_eq!(space.post("in", "/in", "in time").status, 202);
    assert_eq!(space.await_hits(1, seconds(5))[0].text(), "in time");
}

#[test]
fn m6_a_suspended_processor_delivers_nothing_and_goes_on_when_it_is_resumed() {
    let Some(_shared) = shared() else { return };
    let space = Space::new("suspended");
    space.line("retry: {maxRedeliveries: -1, interval: 250ms, backoffFactor: 1}");
    space.answers(&[503]);
    assert_eq!(space.post("in", "/in", "one").status, 202);
    space.await_hits(2, seconds(5));
    space.patch("fwp", "out", &json!({"spec": {"suspend": true}}));
    std::thread::sleep(seconds(2));
    let hits = space.hits().len();
    assert_eq!(space.post("in", "/in", "two").status, 202);
    let suspended = space.until("fwp", "out", seconds(15), |object| {
        object["status"]["state"] == "Suspended" && object["status"]["backlog"] == 2
    });
    assert!(has(&suspended, "Ready", "True", "Suspended"), "{suspended:#}");
    assert!(has(&suspended, "Delivering", "False", "Suspended"), "{suspended:#}");
    assert_eq!(space.column("fwp", "out", "REASON"), "Suspended");
    assert_eq!(suspended["spec"]["workload"]["replicas"], 1, "the user's number is not touched");
    assert_eq!(space.hits().len(), hits, "an attempt started more than 2 s after the suspension");
    space.answers(&[200]);
    space.patch("fwp", "out", &json!({"spec": {"suspend": false}}));
    let delivered = space.await_hits(hits + 2, seconds(60));
    assert_eq!(delivered[hits..].iter().map(super::space::Hit::text).collect::<Vec<_>>(), ["one", "two"]);
    space.ready("fwp", "out");
}

#[test]
fn a_target_that_is_down_is_seen_at_a_glance_and_so_is_that_it_is_back() {
    let Some(_shared) = shared() else { return };
    let space = Space::new("glance");
    space.line("retry: {maxRedeliveries: -1, maxInterval: 2s}");
    space.kubectl(&["scale", "deployment/sink", "--replicas=0"]);
    eventually("the target is gone", seconds(60), || {
        super::cluster::list(&space.name, "pods", "app=sink").is_empty().then_some(())
    });
    assert_eq!(space.post("in", "/in", "waits").status, 202);
    space.shows("fwp", "out", "REASON", "TargetUnreachable");
    // Nothing is wrong with the processor.
    assert_eq!(
        (space.column("fwp", "out", "READY"), space.column("fwp", "out", "STATE")),
        ("True".into(), "Active".into())
    );
    space.shows("fwp", "out", "BACKLOG", "1");
    space.kubectl(&["scale", "deployment/sink", "--replicas=1"]);
    space.shows("fwp", "out", "REASON", "Delivering");
    space.shows("fwp", "out", "BACKLOG", "0");
    // One that answers with errors is reached, and the message waits.
    space.answers(&[500]);
    assert_eq!(space.post("in", "/in", "fails").status, 202);
    space.shows("fwp", "out", "REASON", "WaitingForRetry");
    // A rule that only the controller can check, a store that is not there.
    space.patch("fwp", "out", &json!({"spec": {"ordering": "PerKey", "orderingKey": "headers['x"}}));
    space.shows("fwp", "out", "REASON", "Invalid");
    space.patch("fwp", "out", &json!({"spec": {"ordering": "Strict", "orderingKey": null}}));
    space.kubectl(&["delete", "mstore", "box"]);
    space.shows("fwp", "out", "REASON", "ReferenceMissing");
}

#[test]
fn p1_of_two_replicas_that_compete_each_message_reaches_one() {
    let Some(_shared) = shared() else { return };
    let space = Space::new("competing");
    let spec = "storeRef: {name: box}\ntarget: {serviceRef: {name: sink, port: 9090}}\nordering: None\nconcurrency: 4\nworkload: {replicas: 2}";
    space.apply(
        &[
            manifest::store("box", "queue: {consumers: Competing}"),
            manifest::route("in", "/in", "box"),
            manifest::object("ForwardingProcessor", "out", spec),
        ]
        .concat(),
    );
    space.ready("iroute", "in");
    space.ready("fwp", "out");
    for number in 0..100 {
        assert_eq!(space.post("in", "/in", &number.to_string()).status, 202);
    }
    let hits = space.await_hits(100, seconds(30));
    let bodies: std::collections::BTreeSet<String> = hits.iter().map(super::space::Hit::text).collect();
    assert_eq!((hits.len(), bodies.len()), (100, 100));
    let counted = space.until("fwp", "out", seconds(15), |object| object["status"]["delivered"] == 100);
    let workers = counted["status"]["workers"].as_array().unwrap();
    assert!(
        workers.len() == 2 && workers.iter().all(|worker| worker["delivered"].as_u64().unwrap() > 0),
        "{workers:#?}"
    );
    // An HPA scales by this subresource.
    space.kubectl(&["scale", "fwp/out", "--replicas=3"]);
    eventually("three pods", seconds(30), || (space.pods("out").len() == 3).then_some(()));
    assert_eq!(condition(&space.ready("fwp", "out"), "Ready")["reason"], "Ready");
}
