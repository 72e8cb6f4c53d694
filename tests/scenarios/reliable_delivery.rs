//! S1: reliable delivery, with `examples/reliable-delivery`: six attempts, three seconds apart, then what the user
//! chose.

use std::time::Instant;

use crate::support::{Hit, Recorder, Reply, Setup, Stagepost, eventually, manifest, millis, process, seconds};

const PATH: &str = "/healthcare/appointment";
/// 27 bytes.
const BODY: &str = r#"{    "Status":"SUCCESS"   }"#;
const HEADERS: [(&str, &str); 3] = [("Content-Type", "application/json"), ("Company", "WSO2"), ("Accept", "*/*")];
const PROCESSOR: &str = "forward-appointments";

fn with(backend: &Recorder) -> Setup {
    Setup::example("reliable-delivery").service("backend", &backend.url())
}

/// The example with another `onFailure.action`.
fn with_action(backend: &Recorder, action: &str) -> Setup {
    let yaml = include_str!("../../examples/reliable-delivery/stagepost.yaml");
    let (head, _) = yaml.split_once("    action: DeadLetter").expect("the example dead-letters");
    Setup::manifests(format!("{head}    action: {action}\n")).service("backend", &backend.url())
}

/// Each attempt begins three seconds after the one before it ended.
#[track_caller]
fn assert_three_seconds_apart(hits: &[Hit]) {
    for pair in hits.windows(2) {
        let gap = pair[1].at - pair[0].at;
        assert!(gap >= millis(2950) && gap <= millis(3400), "a gap of {gap:?}");
    }
}

/// What a target sees of an attempt, but for its number.
fn shape(hit: &Hit) -> impl PartialEq + std::fmt::Debug + use<> {
    let mut headers = hit.headers.clone();
    headers.retain(|(name, _)| !name.eq_ignore_ascii_case("stagepost-attempt"));
    (hit.method.clone(), hit.path.clone(), headers, hit.body.clone())
}

/// Takes what lies in the dead letter store out, over a processor that is added to the running process.
#[track_caller]
fn drain_dead_letters(process: &Stagepost, count: usize) -> Vec<Hit> {
    let shelf = Recorder::start();
    process.write("drain.yaml", &manifest::processor("drain", "my-dlc-store", &shelf.url(), ""));
    shelf.await_hits(count, seconds(10))
}

#[test]
fn r1_a_message_is_delivered_at_the_next_tick_with_its_bytes_and_headers() {
    let backend = Recorder::answering(|_| Reply::status(202));
    let run = with(&backend).start();
    let posted = Instant::now();
    let answer = run.post(PATH, &HEADERS, BODY);
    assert_eq!((answer.status, answer.header("content-length").as_deref()), (202, Some("0")));
    let hit = backend.await_hits(1, seconds(5)).remove(0);
    assert!(hit.at - posted <= seconds(3), "after {:?}", hit.at - posted);
    assert_eq!((hit.method.as_str(), hit.path.as_str()), ("POST", "/testservice/test"));
    assert_eq!((hit.body.len(), hit.text().as_str()), (27, BODY));
    for (name, value) in [("content-length", "27"), ("company", "WSO2"), ("accept", "*/*"), ("host", &backend.host())] {
        assert_eq!(hit.all(name), [value.as_bytes()], "{name}");
    }
    run.await_status("ForwardingProcessor", PROCESSOR, seconds(2), |status| status["delivered"] == 1);
    assert_eq!((run.depth("my-store"), run.depth("my-dlc-store")), (0, 0));
    run.await_log(&[PROCESSOR, "202"], seconds(2));
    assert_eq!(run.processor(PROCESSOR)["lastDelivery"]["status"], 202);
}

fn six_attempts_then_dead_letter(status: u16) {
    let backend = Recorder::statuses(&[status]);
    let run = with(&backend).start();
    let id = run.post(PATH, &HEADERS, BODY).header("stagepost-message-id").unwrap();
    let hits = backend.await_hits(6, seconds(20));
    run.await_depth("my-dlc-store", 1, seconds(1));
    run.await_depth("my-store", 0, millis(200));
    assert_three_seconds_apart(&hits);
    for (index, hit) in hits.iter().enumerate() {
        assert_eq!(shape(hit), shape(&hits[0]), "attempt {index}");
        assert_eq!(hit.header("stagepost-attempt"), Some((index + 1).to_string()));
    }
    backend.stays_at(6, seconds(5));
    let seen = run.processor(PROCESSOR);
    assert_eq!((&seen["deadLettered"], &seen["state"]), (&1.into(), &"Active".into()));
    assert_eq!(seen["failedAttempts"], 6);

    let dead = drain_dead_letters(&run, 1).remove(0);
    assert_eq!(dead.text(), BODY);
    for (name, value) in [
        ("company", "WSO2"),
        ("content-type", "application/json"),
        ("stagepost-message-id", &id),
        ("stagepost-death-reason", "MaxRedeliveries"),
        ("stagepost-death-attempts", "6"),
        ("stagepost-death-last-status", &status.to_string()),
        ("stagepost-death-source", "myStore"),
    ] {
        assert_eq!(dead.header(name).as_deref(), Some(value), "{name} in {:?}", dead.headers);
    }
    assert!(dead.header("stagepost-death-processor").is_some_and(|name| name.contains(PROCESSOR)));
}

#[test]
fn r2_a_target_that_answers_500_is_tried_six_times_then_the_message_is_a_dead_letter() {
    six_attempts_then_dead_letter(500);
}

#[test]
fn r2_a_target_that_answers_400_is_tried_six_times_if_the_user_says_so() {
    six_attempts_then_dead_letter(400);
}

#[test]
fn r2_a_target_that_answers_404_is_tried_once() {
    let backend = Recorder::statuses(&[404]);
    let run = with(&backend).start();
    run.post(PATH, &HEADERS, BODY);
    backend.await_hits(1, seconds(4));
    run.await_depth("my-dlc-store", 1, seconds(1));
    backend.stays_at(1, seconds(4));
    let dead = drain_dead_letters(&run, 1).remove(0);
    assert_eq!(dead.header("stagepost-death-reason").as_deref(), Some("Rejected"));
    assert_eq!(dead.header("stagepost-death-attempts").as_deref(), Some("1"));
    assert_eq!(dead.header("stagepost-death-last-status").as_deref(), Some("404"));
}

#[test]
fn r3_a_target_that_refuses_connections_uses_up_the_attempts_when_they_count() {
    let backend = Recorder::down(|_| Reply::status(200));
    let run = with(&backend).start();
    run.post(PATH, &HEADERS, BODY);
    let attempts = || run.metric("stagepost_attempts_total", &["outcome=\"ConnectionError\""]);
    eventually("the first attempt", seconds(4), || (attempts() >= 1).then_some(()));
    let first = Instant::now();
    run.await_depth("my-dlc-store", 1, seconds(20));
    let took = first.elapsed();
    assert!(took >= millis(14_900) && took <= seconds(19), "dead after {took:?}");
    assert_eq!(attempts(), 6);
    let dead = drain_dead_letters(&run, 1).remove(0);
    assert_eq!(dead.header("stagepost-death-reason").as_deref(), Some("MaxRedeliveries"));
    assert_eq!(dead.header("stagepost-death-attempts").as_deref(), Some("6"));
    assert_eq!(dead.header("stagepost-death-last-status"), None);
    let error = dead.header("stagepost-death-last-error").unwrap_or_default();
    assert!(error.to_lowercase().contains("connection refused"), "{error}");
}

#[test]
fn r4_a_target_that_recovers_gets_the_message_on_the_third_attempt() {
    let backend = Recorder::statuses(&[500, 500, 202]);
    let run = with(&backend).start();
    run.post(PATH, &HEADERS, BODY);
    let hits = backend.await_hits(3, seconds(12));
    assert_three_seconds_apart(&hits);
    run.await_status("ForwardingProcessor", PROCESSOR, seconds(1), |status| status["delivered"] == 1);
    backend.stays_at(3, seconds(5));
    assert_eq!((run.depth("my-store"), run.depth("my-dlc-store")), (0, 0));
}

#[test]
fn r5_deactivate_keeps_the_message_first_in_line_until_somebody_reactivates() {
    let backend = Recorder::statuses(&[500]);
    let mut run = with_action(&backend, "Deactivate").start();
    run.post(PATH, &HEADERS, "first");
    let hits = backend.await_hits(6, seconds(20));
    assert_three_seconds_apart(&hits);
    let status = run.await_state(PROCESSOR, "Deactivated", seconds(1));
    assert_eq!(
        (&status["deactivation"]["reason"], &status["deactivation"]["attempts"]),
        (&"MaxRedeliveries".into(), &6.into())
    );
    run.await_depth("my-store", 1, seconds(1));
    backend.stays_at(6, seconds(10));
    assert_eq!(run.post(PATH, &HEADERS, "second").status, 202);
    run.await_depth("my-store", 2, seconds(1));

    run.restart();
    run.await_state(PROCESSOR, "Deactivated", seconds(2));
    backend.stays_at(6, seconds(5));
    assert_eq!(run.depth("my-store"), 2);

    backend.script(|_| Reply::status(200));
    run.reactivate(PROCESSOR);
    let hits = backend.await_hits(8, seconds(8));
    let after: Vec<_> = hits[6..].iter().map(|hit| (hit.text(), hit.header("stagepost-attempt").unwrap())).collect();
    assert_eq!(after, [("first".to_owned(), "1".to_owned()), ("second".to_owned(), "1".to_owned())]);
    run.await_depth("my-store", 0, seconds(2));
    run.await_state(PROCESSOR, "Active", seconds(1));
}

#[test]
fn r6_drop_discards_the_message_counts_it_and_goes_on_with_the_next() {
    let backend = Recorder::answering(|hit| Reply::status(if hit.body == b"bad" { 500 } else { 200 }));
    let run = with_action(&backend, "Drop").start();
    run.post(PATH, &HEADERS, "bad");
    run.post(PATH, &HEADERS, "good");
    let hits = backend.await_hits(7, seconds(22));
    assert_three_seconds_apart(&hits[..6]);
    assert_eq!(hits.iter().map(Hit::text).collect::<Vec<_>>(), ["bad", "bad", "bad", "bad", "bad", "bad", "good"]);
    let status = run.await_status("ForwardingProcessor", PROCESSOR, seconds(2), |status| status["delivered"] == 1);
    assert_eq!((&status["dropped"], &status["deadLettered"]), (&1.into(), &0.into()));
    assert_eq!((run.depth("my-store"), run.depth("my-dlc-store")), (0, 0));
}

#[test]
fn r7_deactivate_together_with_a_dead_letter_store_is_refused_with_the_reason() {
    let dir = tempfile::TempDir::new().unwrap();
    let yaml = include_str!("../../examples/reliable-delivery/stagepost.yaml");
    let file = dir.path().join("stagepost.yaml");
    std::fs::write(&file, yaml.replace("action: DeadLetter", "action: Deactivate")).unwrap();
    for command in [vec!["check"], vec!["run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]] {
        let args = [command, vec![file.to_str().unwrap()]].concat();
        let done = process::run(&args);
        assert_eq!(done.code, 1, "{args:?}: {}{}", done.stdout, done.stderr);
        let text = format!("{}{}", done.stdout, done.stderr);
        for word in ["ForwardingProcessor/forward-appointments", "deadLetterStoreRef", "DeadLetter"] {
            assert!(text.contains(word), "`{word}` is not in {text}");
        }
    }
}

#[test]
fn r8_a_message_that_fails_holds_the_next_one_back_until_its_fate_is_decided() {
    let backend =
        Recorder::answering(|hit| Reply::status(if hit.body == b"m1" { 500 } else { 200 }).after(millis(100)));
    let run = with(&backend).start();
    run.post(PATH, &HEADERS, "m1");
    run.post(PATH, &HEADERS, "m2");
    let hits = backend.await_hits(7, seconds(22));
    assert_eq!(hits.iter().map(Hit::text).collect::<Vec<_>>(), ["m1", "m1", "m1", "m1", "m1", "m1", "m2"]);
    for pair in hits.windows(2) {
        assert!(pair[0].answered.is_some_and(|answered| answered <= pair[1].at), "two attempts overlap");
    }
    run.await_status("ForwardingProcessor", PROCESSOR, seconds(2), |status| status["delivered"] == 1);
    assert_eq!(run.depth("my-dlc-store"), 1);
}

#[test]
fn r15_a_kill_in_a_retry_wait_loses_nothing_and_starts_at_attempt_one_again() {
    let backend = Recorder::answering(|hit| Reply::status(if hit.index < 2 { 500 } else { 200 }));
    let mut run = with(&backend).start();
    let id = run.post(PATH, &HEADERS, "first").header("stagepost-message-id").unwrap();
    run.post(PATH, &HEADERS, "second");
    backend.await_hits(2, seconds(8));
    std::thread::sleep(seconds(1));
    run.restart();
    let hits = backend.await_hits(4, seconds(12));
    assert_eq!(hits.iter().map(Hit::text).collect::<Vec<_>>(), ["first", "first", "first", "second"]);
    let attempts: Vec<_> = hits.iter().filter_map(|hit| hit.header("stagepost-attempt")).collect();
    assert_eq!(attempts, ["1", "2", "1", "1"]);
    assert!(hits[..3].iter().all(|hit| hit.header("stagepost-message-id").as_ref() == Some(&id)));
    assert_eq!(hits[2].header("stagepost-redelivered").as_deref(), Some("true"));
    run.await_depth("my-store", 0, seconds(2));
    backend.stays_at(4, seconds(3));
}

#[test]
fn r16_a_target_that_never_answers_costs_its_time_out_each_time() {
    let backend = Recorder::answering(|_| Reply::hang());
    let yaml = include_str!("../../examples/reliable-delivery/stagepost.yaml");
    let yaml = yaml.replace("path: /testservice/test}\n", "path: /testservice/test}\n    timeout: 2s\n");
    let run = Setup::manifests(yaml).service("backend", &backend.url()).start();
    run.post(PATH, &HEADERS, BODY);
    let hits = backend.await_hits(6, seconds(32));
    for pair in hits.windows(2) {
        let gap = pair[1].at - pair[0].at;
        assert!(gap >= millis(4950) && gap <= millis(5400), "a gap of {gap:?}");
    }
    run.await_depth("my-dlc-store", 1, seconds(3));
    let dead = drain_dead_letters(&run, 1).remove(0);
    assert_eq!(dead.header("stagepost-death-last-error").as_deref(), Some("timeout"));
    assert_eq!(dead.header("stagepost-death-attempts").as_deref(), Some("6"));
    assert_eq!(backend.count(), 6);
}
