//! B11: SIGTERM with requests in flight.

use std::time::Duration;

use crate::support::checker::Saw;
use crate::support::http::{self, Connection};
use crate::support::load::Load;
use crate::support::{Recorder, Reply, Setup, beside_others, eventually, manifest, millis, seconds};

#[test]
fn b11_requests_in_flight_at_sigterm_are_answered_and_what_was_answered_202_is_stored() {
    let _machine = beside_others();
    let target = Recorder::down(|_| Reply::status(200));
    let mut run = Setup::manifests(manifest::line(&target.url(), "")).start();
    let mut half_sent: Vec<Connection> = (0..16)
        .map(|number| {
            let mut connection = Connection::open(run.listen()).unwrap();
            let head = "POST /in HTTP/1.1\r\nHost: stagepost\r\nContent-Length: 20\r\n\r\n";
            connection.send_raw(format!("{head}body {number:02} ").as_bytes()).unwrap();
            connection
        })
        .collect();
    eventually("all are in flight", seconds(5), || {
        (run.metric("stagepost_ingress_in_flight", &[]) == 16).then_some(())
    });
    run.signal_term();
    eventually("it is not ready any more", seconds(5), || {
        let ready = http::once(run.admin(), "GET", "/readyz", &[], b"");
        (!ready.is_ok_and(|answer| answer.status == 200)).then_some(())
    });
    let mut stored = 0;
    for connection in &mut half_sent {
        connection.send_raw(b"0123456789ab").unwrap();
        let answer = connection.answer().expect("a request in flight is answered");
        assert!(answer.status == 202 || answer.status == 503, "{}", answer.status);
        stored += u64::from(answer.status == 202);
    }
    let status = run.await_exit(seconds(30));
    assert_eq!(status.code(), Some(0), "a clean drain");
    assert!(stored > 0, "a drain finishes what is in flight");
    run.launch();
    assert_eq!(run.processor("out")["backlog"], stored);
}

#[test]
fn no_attempt_starts_after_sigterm_while_a_slow_caller_is_still_sending() {
    let _machine = beside_others();
    let target = Recorder::answering(|_| Reply::status(200).after(millis(300)));
    let mut run = Setup::manifests(manifest::line(&target.url(), "")).start();
    for number in 0..20 {
        assert_eq!(run.post("/in", &[], format!("message {number}")).status, 202);
    }
    let mut caller = Connection::open(run.listen()).unwrap();
    caller.send_raw(b"POST /in HTTP/1.1\r\nHost: stagepost\r\nContent-Length: 4\r\n\r\nhe").unwrap();
    target.await_hits(2, seconds(5));
    run.signal_term();
    eventually("it has seen the signal", seconds(5), || (run.get("/readyz").status != 200).then_some(()));
    let started = target.count();
    std::thread::sleep(seconds(2));
    assert_eq!(target.count(), started, "an attempt started after the signal");
    caller.send_raw(b"re").unwrap();
    assert_eq!(caller.answer().expect("a request in flight is answered").status, 202);
    assert_eq!(run.await_exit(seconds(10)).code(), Some(0), "a clean drain");
    run.launch();
    target.await_hits(21, seconds(20));
    let once: std::collections::BTreeSet<String> = target.texts().into_iter().collect();
    assert_eq!((once.len(), target.count()), (21, 21), "everything came, and once");
}

#[test]
fn b11_keep_alive_callers_see_answers_until_the_end_and_then_a_closed_door() {
    let _machine = beside_others();
    let target = Recorder::start();
    let mut run = Setup::manifests(manifest::line(&target.url(), "ordering: None\nconcurrency: 8")).start();
    let mut load = Load::start(run.listen(), 16, 0, millis(1));
    std::thread::sleep(millis(700));
    let status = run.terminate(seconds(30));
    assert_eq!(status.code(), Some(0), "a clean drain");
    run.launch();
    load.moved(run.listen());
    std::thread::sleep(millis(300));
    load.finish();
    eventually("all is delivered", seconds(20), || (run.processor("out")["backlog"] == 0).then_some(()));
    let hits = target.hits();
    let verdict = load.checker().judge(hits.iter().map(|hit| hit.body.as_slice()));
    println!("{}", load.checker().summary(&verdict));
    assert!(verdict.lost.is_empty() && verdict.duplicated.is_empty(), "{verdict:?}");
    assert!(load.checker().count(Saw::Ok) > 20, "no load");
}

#[test]
fn a_shutdown_in_a_retry_wait_is_quick_and_counts_nothing() {
    let _machine = beside_others();
    let target = Recorder::statuses(&[500]);
    let spec = "retry: {maxRedeliveries: 1, interval: 20s, backoffFactor: 1}";
    let mut run = Setup::manifests(manifest::line(&target.url(), spec)).start();
    run.post("/in", &[], "one");
    target.await_hits(1, seconds(3));
    let status = run.terminate(Duration::from_secs(15));
    assert_eq!(status.code(), Some(0));
    run.launch();
    let hits = target.await_hits(2, seconds(3));
    assert_eq!(hits[1].header("stagepost-attempt").as_deref(), Some("1"));
    assert_eq!(run.processor("out")["deadLettered"], 0);
}

#[test]
fn a_drain_that_the_target_holds_up_is_cut_off_by_the_grace_period_and_loses_nothing() {
    let _machine = beside_others();
    let target = Recorder::answering(|hit| if hit.index == 0 { Reply::hang() } else { Reply::status(200) });
    let mut run = Setup::manifests(manifest::line(&target.url(), "")).arg("--grace").arg("2s").start();
    run.post("/in", &[], "one");
    target.await_hits(1, seconds(3));
    let status = run.terminate(seconds(10));
    assert_eq!(status.code(), Some(4), "cut off");
    run.launch();
    let hits = target.await_hits(2, seconds(5));
    assert_eq!(hits[1].text(), "one");
    run.await_depth("box", 0, seconds(2));
}
