//! N8: manifests that change under load lose nothing, and restart only what changed.

use std::time::Duration;

use serde_json::Value;

use crate::support::checker::{Checker, Saw};
use crate::support::http;
use crate::support::load::Load;
use crate::support::{Hit, Recorder, Reply, Setup, Stagepost, beside_others, eventually, manifest, millis, seconds};

const STEADY: &str = "ordering: None\nconcurrency: 4";

/// A line under load, and a second one beside it that nobody touches.
fn two_lines(first: &Recorder, second: &Recorder) -> Stagepost {
    let beside = [
        manifest::store("beside", ""),
        manifest::route("beside", "/beside", "beside"),
        manifest::processor("beside", "beside", &second.url(), ""),
    ];
    let run = Setup::manifests(beside.concat()).start();
    run.write("store.yaml", &manifest::store("box", ""));
    run.write("route.yaml", &manifest::route("in", "/in", "box"));
    run.write("processor.yaml", &manifest::processor("out", "box", &first.url(), STEADY));
    run.await_state("out", "Active", seconds(5));
    run
}

/// `accepted` of a route and `delivered` of a processor: they begin at zero again when an object is restarted anew.
fn counters(run: &Stagepost, name: &str) -> (Value, Value) {
    (run.status("IngressRoute", name)["accepted"].clone(), run.processor(name)["delivered"].clone())
}

#[track_caller]
fn all_came_once(checker: &Checker, targets: &[&Recorder]) {
    let hits: Vec<Hit> = targets.iter().flat_map(|target| target.hits()).collect();
    let verdict = checker.judge(hits.iter().map(|hit| hit.body.as_slice()));
    println!("{}", checker.summary(&verdict));
    assert!(verdict.lost.is_empty(), "lost: {:?}", verdict.lost);
    assert!(verdict.unexpected.is_empty() && verdict.duplicated.is_empty(), "{verdict:?}");
    assert_eq!(checker.count(Saw::Unknown), 0, "an edit closes no connection in the middle of a request");
    assert!(checker.count(Saw::Ok) > 20, "no load");
}

fn settled(run: &Stagepost) {
    eventually("the queue is drained", seconds(30), || (run.depth("box") == 0).then_some(()));
    run.await_status("ForwardingProcessor", "out", seconds(10), |status| status["backlog"] == 0);
}

#[test]
fn edits_of_a_processor_under_load_lose_nothing_and_leave_the_others_alone() {
    let _machine = beside_others();
    let (first, second, other) = (Recorder::start(), Recorder::start(), Recorder::start());
    let run = two_lines(&first, &second);
    run.post("/beside", &[], "before");
    second.await_hits(1, seconds(3));
    let mut load = Load::start(run.listen(), 8, 0, millis(2));
    for concurrency in [1, 8, 2] {
        std::thread::sleep(millis(700));
        let spec = format!("ordering: None\nconcurrency: {concurrency}");
        run.write("processor.yaml", &manifest::processor("out", "box", &first.url(), &spec));
    }
    std::thread::sleep(millis(700));
    run.write("processor.yaml", &manifest::processor("out", "box", &other.url(), STEADY));
    eventually("the new target is called", seconds(5), || (other.count() > 20).then_some(()));
    load.finish();
    settled(&run);
    all_came_once(load.checker(), &[&first, &other]);
    run.post("/beside", &[], "after");
    second.await_hits(2, seconds(3));
    eventually("both were counted", seconds(2), || (counters(&run, "beside") == (2.into(), 2.into())).then_some(()));
    assert_eq!(second.connections(), 1, "the neighbour kept its connection");
}

#[test]
fn edits_of_a_route_under_load_lose_nothing() {
    let _machine = beside_others();
    let (first, second) = (Recorder::start(), Recorder::start());
    let run = two_lines(&first, &second);
    let mut load = Load::start(run.listen(), 8, 0, millis(2));
    for status in [200, 201, 202] {
        std::thread::sleep(millis(700));
        let rule = |name: &str, path: &str, status: u16| {
            format!(
                "- name: {name}\n  path: {path}\n  storeRef: {{name: box}}\n  response: {{accepted: {{status: {status}}}}}\n"
            )
        };
        let rules = format!("rules:\n{}{}", rule("post", "/in", 202), rule("more", "/more", status));
        run.write("route.yaml", &manifest::object("IngressRoute", "in", &rules));
        eventually("the new rule answers", seconds(5), || (run.post("/more", &[], "x").status == status).then_some(()));
    }
    load.finish();
    settled(&run);
    let hits: Vec<Hit> = first.hits().into_iter().filter(|hit| hit.body != b"x").collect();
    let verdict = load.checker().judge(hits.iter().map(|hit| hit.body.as_slice()));
    println!("{}", load.checker().summary(&verdict));
    assert!(verdict.lost.is_empty() && verdict.duplicated.is_empty(), "{verdict:?}");
    assert_eq!((load.checker().count(Saw::Unknown), load.checker().count(Saw::Fail)), (0, 0));
}

#[test]
fn objects_of_each_kind_come_and_go_under_load_and_a_removed_store_keeps_its_queue() {
    let _machine = beside_others();
    let (first, second, third) = (Recorder::start(), Recorder::start(), Recorder::start());
    let run = two_lines(&first, &second);
    let mut load = Load::start(run.listen(), 4, 0, millis(2));
    let store = manifest::store("extra", "");
    let route = manifest::route("extra", "/extra", "extra");
    let processor = manifest::processor("extra", "extra", &third.url(), "");
    for round in 0..2 {
        run.write("extra.yaml", &[store.as_str(), &route].concat());
        eventually("the new route answers", seconds(5), || {
            let answer = http::once(run.listen(), "GET", "/extra", &[], b"").ok()?;
            (answer.status == 405).then_some(())
        });
        assert_eq!(run.post("/extra", &[], format!("round {round}")).status, 202);
        run.await_depth("extra", round + 1, seconds(2));
        run.remove("extra.yaml");
        // Asked by a method that stores nothing: 405 while the route is there.
        eventually("the route is gone", seconds(5), || {
            let answer = http::once(run.listen(), "GET", "/extra", &[], b"").ok()?;
            (answer.status == 404).then_some(())
        });
        run.await_status("MessageStore", "extra", seconds(2), Value::is_null);
    }
    run.write("extra.yaml", &[store.as_str(), &processor].concat());
    third.await_hits(2, seconds(5));
    assert_eq!(third.texts(), ["round 0", "round 1"]);
    load.finish();
    settled(&run);
    all_came_once(load.checker(), &[&first]);
}

#[test]
fn edits_of_a_store_under_load_lose_nothing() {
    let _machine = beside_others();
    let (first, second) = (Recorder::start(), Recorder::start());
    let run = two_lines(&first, &second);
    let mut load = Load::start(run.listen(), 8, 0, millis(2));
    for (generation, deadline) in [(2, "20s"), (3, "5s"), (4, "10s")] {
        std::thread::sleep(millis(700));
        let spec = format!("queue: {{}}\ndeadline: {deadline}\nretry: {{maxRetries: {generation}}}");
        run.write("store.yaml", &manifest::store("box", &spec));
        run.await_status("MessageStore", "box", seconds(5), |status| status["observedGeneration"] == generation);
        let before = first.count();
        eventually("delivery goes on", seconds(5), || (first.count() > before + 5).then_some(()));
    }
    load.finish();
    settled(&run);
    all_came_once(load.checker(), &[&first]);
}

#[test]
fn a_processor_that_is_removed_under_load_leaves_its_messages_to_the_next() {
    let _machine = beside_others();
    let first = Recorder::answering(|_| Reply::status(200).after(millis(5)));
    let (second, other) = (Recorder::start(), Recorder::start());
    let run = two_lines(&first, &second);
    let mut load = Load::start(run.listen(), 4, 0, millis(2));
    for target in [&first, &other] {
        std::thread::sleep(millis(700));
        run.remove("processor.yaml");
        run.await_status("ForwardingProcessor", "out", seconds(5), Value::is_null);
        // The attempts in flight have ended by then; the status shows a removed one no more.
        std::thread::sleep(millis(300));
        let (before, waiting) = (first.count() + other.count(), run.depth("box"));
        eventually("what is accepted waits", seconds(5), || (run.depth("box") > waiting).then_some(()));
        assert_eq!(first.count() + other.count(), before, "an attempt of a removed processor");
        run.write("processor.yaml", &manifest::processor("out", "box", &target.url(), STEADY));
        let before = target.count();
        eventually("delivery goes on", seconds(5), || (target.count() > before + 20).then_some(()));
    }
    load.finish();
    settled(&run);
    all_came_once(load.checker(), &[&first, &other]);
}

#[test]
fn an_invalid_edit_is_reported_and_the_old_manifests_stay_in_force() {
    let _machine = beside_others();
    let (first, second) = (Recorder::start(), Recorder::start());
    let run = two_lines(&first, &second);
    let mut load = Load::start(run.listen(), 4, 0, millis(2));
    let good = manifest::processor("out", "box", &first.url(), STEADY);
    let bad = [
        ("concurency", good.replace("concurrency", "concurency")),
        ("storeRef", good.replace("storeRef: {name: box}", "storeRef: {name: beside}")),
        ("processor.yaml", good.replace("target:", "target: [")),
    ];
    for (word, yaml) in bad {
        run.write("processor.yaml", &yaml);
        run.await_log(&[word], seconds(5));
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(run.processor("out")["state"], "Active");
        run.write("processor.yaml", &good);
        std::thread::sleep(Duration::from_millis(500));
    }
    load.finish();
    settled(&run);
    all_came_once(load.checker(), &[&first]);
}

#[test]
fn an_edit_in_the_middle_of_a_retry_wait_keeps_the_message_and_the_order() {
    let _machine = beside_others();
    let (first, second) = (Recorder::answering(|_| Reply::status(500)), Recorder::start());
    let run = two_lines(&first, &second);
    let failing = "retry: {maxRedeliveries: -1, interval: 60s}";
    run.write("processor.yaml", &manifest::processor("out", "box", &first.url(), failing));
    std::thread::sleep(seconds(1));
    for text in ["one", "two", "three"] {
        run.post("/in", &[], text);
    }
    first.await_hits(1, seconds(3));
    run.write("processor.yaml", &manifest::processor("out", "box", &second.url(), failing));
    second.await_hits(3, seconds(5));
    assert_eq!(second.texts(), ["one", "two", "three"]);
    assert_eq!(first.count(), 1);
}
