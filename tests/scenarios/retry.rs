//! S1: order and patience while something is being retried.

use crate::support::{Hit, Random, Recorder, Reply, Setup, eventually, manifest, millis, seconds};

#[test]
fn r13_first_successes_are_in_order_however_the_target_fails() {
    let random = std::sync::Mutex::new(Random::new());
    let target =
        Recorder::answering(move |_| Reply::status(if random.lock().unwrap().between(0, 3) == 0 { 500 } else { 200 }));
    let spec = "retry: {maxRedeliveries: -1, interval: 20ms, backoffFactor: 1}";
    let run = Setup::manifests(manifest::line(&target.url(), spec)).start();
    let sent: Vec<String> = (1..=100).map(|number: u32| number.to_string()).collect();
    for number in &sent {
        assert_eq!(run.post("/in", &[], number).status, 202);
    }
    run.await_status("ForwardingProcessor", "out", seconds(30), |status| status["delivered"] == 100);
    let mut firsts = target.texts();
    firsts.dedup();
    assert_eq!(firsts, sent, "each message is tried until it succeeds, then the next");
    run.await_depth("box", 0, seconds(1));
}

#[test]
fn r14_a_full_dead_letter_store_holds_the_message_and_takes_it_when_there_is_room() {
    let target = Recorder::statuses(&[404]);
    let shelf = Recorder::start();
    let yaml = [
        manifest::store("box", ""),
        manifest::store("dead", "queue: {type: Classic, maxLength: 1}"),
        manifest::route("in", "/in", "box"),
        manifest::processor("out", "box", &target.url(), "onFailure: {deadLetterStoreRef: {name: dead}}"),
    ];
    let run = Setup::manifests(yaml.concat()).start();
    run.post("/in", &[], "one");
    run.await_depth("dead", 1, seconds(3));
    run.post("/in", &[], "two");
    run.post("/in", &[], "three");
    target.await_hits(2, seconds(3));
    // The second is decided, but stays: nothing else is tried, and nothing is acknowledged.
    target.stays_at(2, seconds(3));
    assert_eq!(run.depth("dead"), 1);
    let status = run.processor("out");
    assert_eq!((&status["deadLettered"], &status["backlog"]), (&1.into(), &2.into()), "{status:#}");

    run.write("drain.yaml", &manifest::processor("drain", "dead", &shelf.url(), ""));
    shelf.await_hits(3, seconds(30));
    assert_eq!(shelf.texts(), ["one", "two", "three"]);
    assert_eq!(target.texts(), ["one", "two", "three"], "a decided message is not tried again");
    run.await_depth("box", 0, seconds(2));
}

#[test]
fn r17_an_unreachable_target_uses_up_no_attempt_when_the_user_waits_for_it() {
    let target = Recorder::down(|_| Reply::status(200));
    let spec = "retry: {maxRedeliveries: 0, interval: 250ms, backoffFactor: 1, jitter: 0, whileUnreachable: Wait}";
    let run = Setup::manifests(manifest::line(&target.url(), spec)).start();
    let sent: Vec<String> = (0..20).map(|number: u32| number.to_string()).collect();
    for number in &sent {
        assert_eq!(run.post("/in", &[], number).status, 202);
    }
    std::thread::sleep(seconds(30));
    let tried = run.metric("stagepost_attempts_total", &["outcome=\"ConnectionError\""]);
    assert!((100..=125).contains(&tried), "{tried} tries in 30 s at one each 250 ms");
    let reachable = |run: &crate::support::Stagepost| {
        let conditions = run.processor("out")["conditions"].clone();
        let found = conditions.as_array().into_iter().flatten().find(|one| one["type"] == "TargetReachable").cloned();
        found.map(|one| one["status"].clone()).unwrap_or_default()
    };
    assert_eq!(reachable(&run), "False");
    target.up();
    target.await_hits(20, seconds(5));
    assert_eq!(target.texts(), sent);
    run.await_depth("box", 0, seconds(2));
    assert_eq!(run.processor("out")["deadLettered"], 0);
    eventually("the target is reachable again", seconds(2), || (reachable(&run) == "True").then_some(()));
}

#[test]
fn r18_a_retry_plan_longer_than_the_hold_limit_goes_on_counting_and_keeps_the_order() {
    let target = Recorder::answering(|hit| Reply::status(if hit.index < 3 { 500 } else { 200 }));
    let spec = "retry: {maxRedeliveries: 3, interval: 2s, backoffFactor: 1, jitter: 0}";
    let run = Setup::manifests(manifest::line(&target.url(), spec)).env("STAGEPOST_HOLD_LIMIT", "1s").start();
    for text in ["one", "two", "three"] {
        run.post("/in", &[], text);
    }
    let hits = target.await_hits(6, seconds(15));
    let seen: Vec<_> = hits.iter().map(|hit| (hit.text(), hit.header("stagepost-attempt").unwrap())).collect();
    let seen: Vec<_> = seen.iter().map(|(text, attempt)| (text.as_str(), attempt.as_str())).collect();
    assert_eq!(seen, [("one", "1"), ("one", "2"), ("one", "3"), ("one", "4"), ("two", "1"), ("three", "1")]);
    for pair in hits[..4].windows(2) {
        let gap = pair[1].at - pair[0].at;
        assert!(gap >= millis(1950) && gap <= millis(2600), "a gap of {gap:?}");
    }
    assert!(run.metric("stagepost_settled_total", &["processor=\"default/out\"", "result=\"returned\""]) >= 1);
    run.await_depth("box", 0, seconds(2));
    assert_eq!(run.processor("out")["deadLettered"], 0);
}

#[test]
fn r18_messages_over_the_hold_limit_use_up_their_attempts_like_any_other() {
    let target = Recorder::statuses(&[500]);
    let spec = "retry: {maxRedeliveries: 2, interval: 1500ms, backoffFactor: 1, jitter: 0}\nonFailure: {action: Drop}";
    let run = Setup::manifests(manifest::line(&target.url(), spec)).env("STAGEPOST_HOLD_LIMIT", "1s").start();
    run.post("/in", &[], "one");
    run.post("/in", &[], "two");
    run.await_status("ForwardingProcessor", "out", seconds(15), |status| status["dropped"] == 2);
    assert_eq!(target.hits().iter().map(Hit::text).collect::<Vec<_>>(), ["one", "one", "one", "two", "two", "two"]);
}

#[test]
fn a_retry_after_pauses_the_whole_processor_up_to_its_cap() {
    let target = Recorder::answering(|hit| match hit.index {
        0 => Reply::full(503, &[("Retry-After", "3600")], b""),
        1 => Reply::full(429, &[("Retry-After", "soon")], b""),
        _ => Reply::status(200),
    });
    let spec =
        "retry: {interval: 100ms, backoffFactor: 1, jitter: 0, maxRetryAfter: 3s}\nordering: None\nconcurrency: 4";
    let run = Setup::manifests(manifest::line(&target.url(), spec)).start();
    run.post("/in", &[], "one");
    target.await_hits(1, seconds(2));
    std::thread::sleep(millis(200));
    run.post("/in", &[], "two");
    let hits = target.await_hits(3, seconds(6));
    let pause = hits[1].at - hits[0].at;
    assert!(pause >= millis(2950) && pause <= millis(3400), "paused for {pause:?}");
    target.await_hits(3, seconds(2));
}
