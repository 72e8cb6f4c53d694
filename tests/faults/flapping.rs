//! C10: a target that comes and goes.

use std::time::Instant;

use crate::support::{Recorder, Reply, Setup, beside_others, manifest, millis, seconds};

const SPEC: &str = "ordering: None
concurrency: 8
rateLimit: {requests: 20, per: 1s, burst: 1}
retry: {maxRedeliveries: -1, interval: 50ms, backoffFactor: 1}
circuitBreaker: {failures: 3, openFor: 1s}";

#[test]
fn c10_an_open_breaker_lets_probes_through_and_the_backlog_drains_at_the_limited_rate() {
    let _machine = beside_others();
    let target = Recorder::down(|_| Reply::status(200));
    let run = Setup::manifests(manifest::line(&target.url(), SPEC)).start();
    for number in 0..60 {
        assert_eq!(run.post("/in", &[], number.to_string()).status, 202);
    }
    std::thread::sleep(seconds(6));
    let tried = run.metric("stagepost_attempts_total", &["processor=\"default/out\""]);
    // Three failures open it (attempts already in flight may add up to seven); then one probe a second.
    assert!((4..=18).contains(&tried), "{tried} attempts in 6 s at an open breaker");
    target.up();
    let up = Instant::now();
    let hits = target.await_hits(60, seconds(15));
    assert!(hits[0].at - up <= millis(1500), "the next probe closes it, after {:?}", hits[0].at - up);
    for window in hits.windows(21) {
        let span = window[20].at - window[0].at;
        assert!(span >= millis(950), "21 attempts in {span:?} at 20 a second");
    }
    run.await_depth("box", 0, seconds(2));
    let mut texts = target.texts();
    texts.sort();
    texts.dedup();
    assert_eq!(texts.len(), 60);
}

#[test]
fn c10_a_target_that_flaps_gets_everything_in_the_end_and_no_herd() {
    let _machine = beside_others();
    let target = Recorder::answering(|hit| Reply::status(if hit.index % 2 == 0 { 503 } else { 200 }));
    let run = Setup::manifests(manifest::line(&target.url(), SPEC)).start();
    for number in 0..40 {
        assert_eq!(run.post("/in", &[], number.to_string()).status, 202);
    }
    for _ in 0..4 {
        std::thread::sleep(millis(800));
        target.refuse();
        std::thread::sleep(millis(400));
        target.up();
    }
    run.await_status("ForwardingProcessor", "out", seconds(30), |status| status["backlog"] == 0);
    let hits = target.hits();
    for window in hits.windows(21) {
        let span = window[20].at - window[0].at;
        assert!(span >= millis(950), "21 attempts in {span:?} at 20 a second");
    }
    let mut texts = target.texts();
    texts.sort();
    texts.dedup();
    assert_eq!(texts.len(), 40);
    assert_eq!(run.processor("out")["deadLettered"], 0);
}
