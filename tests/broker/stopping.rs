//! R5, R5b, E5, C14: processors that stop themselves, by a record that lies on the broker.

use std::time::Instant;

use super::client::Client;
use super::common::{QUORUM, broker, connected, launch, line, say, shared, start};
use crate::support::{Recorder, Reply, Stagepost, eventually, millis, seconds};

const STOPS: &str =
    "retry: {maxRedeliveries: 5, interval: 300ms, backoffFactor: 1, jitter: 0}\nonFailure: {action: Deactivate}";
const RECORD: &str = "stagepost.default.out.deactivated";

#[test]
fn r5_deactivate_keeps_the_message_first_in_line_over_restarts_of_ours_and_of_the_broker() {
    let Some(mut broker) = broker("") else { return };
    let target = Recorder::statuses(&[500]);
    let mut run = start(&broker.uri(), &line(&target, QUORUM, STOPS));
    run.post("/in", &[], "first");
    target.await_hits(6, seconds(10));
    let status = run.await_state("out", "Deactivated", seconds(4));
    let reason = &status["deactivation"]["reason"];
    assert_eq!((reason, &status["deactivation"]["attempts"]), (&"MaxRedeliveries".into(), &6.into()));
    run.await_depth("box", 1, seconds(2));
    target.stays_at(6, seconds(2));
    assert_eq!(run.post("/in", &[], "second").status, 202);
    run.await_depth("box", 2, seconds(2));
    run.kill9();
    launch(&mut run);
    run.await_state("out", "Deactivated", seconds(5));
    broker.kill();
    broker.run();
    connected(&run, "box");
    run.await_state("out", "Deactivated", seconds(5));
    target.stays_at(6, seconds(2));
    assert_eq!(run.depth("box"), 2);
    target.script(|_| Reply::status(200));
    run.reactivate("out");
    let hits = target.await_hits(8, seconds(8));
    let after: Vec<_> = hits[6..].iter().map(|hit| (hit.text(), hit.header("stagepost-attempt").unwrap())).collect();
    assert_eq!(after, [("first".to_owned(), "1".to_owned()), ("second".to_owned(), "1".to_owned())]);
    run.await_depth("box", 0, seconds(2));
    run.await_state("out", "Active", seconds(2));
}

#[test]
fn e5_r5b_killed_the_moment_the_record_is_stored_it_is_still_deactivated_and_the_message_kept() {
    let Some(share) = shared() else { return };
    let target = Recorder::statuses(&[500]);
    let stops = "retry: {maxRedeliveries: 1, interval: 100ms}\nonFailure: {action: Deactivate}";
    let mut run = start(&share.uri, &line(&target, QUORUM, stops));
    let client = Client::connect(&share.uri);
    assert_eq!(run.post("/in", &[], "stays").status, 202);
    eventually("the record is stored", seconds(10), || (client.depth(RECORD) == 1).then_some(()));
    run.kill9();
    assert_eq!(target.count(), 2);
    launch(&mut run);
    let status = run.await_state("out", "Deactivated", seconds(5));
    assert_eq!(status["deactivation"]["reason"], "MaxRedeliveries", "{status:#}");
    target.stays_at(2, seconds(2));
    run.await_depth("box", 1, seconds(2));
    target.script(|_| Reply::status(200));
    run.reactivate("out");
    target.await_hits(3, seconds(5));
    assert_eq!(client.depth(RECORD), 0);
    run.await_depth("box", 0, seconds(2));
}

#[test]
fn c14_several_processes_that_come_to_the_same_end_at_once_deactivate_once_and_return_what_they_hold() {
    let Some(share) = shared() else { return };
    let target = Recorder::answering(|_| Reply::status(500).after(millis(50)));
    let competing = "queue: {type: Quorum, consumers: Competing}";
    let spec = format!("ordering: None\nconcurrency: 8\n{STOPS}");
    let yaml = line(&target, competing, &spec);
    let runs: Vec<Stagepost> = (0..3).map(|_| start(&share.uri, &yaml)).collect();
    let client = Client::connect(&share.uri);
    let begun = Instant::now();
    for number in 0..60 {
        assert_eq!(runs[number % 3].post("/in", &[], format!("{number}")).status, 202);
    }
    for run in &runs {
        run.await_state("out", "Deactivated", seconds(20));
    }
    say(&format!("C14: three processes deactivated after {:.1?}", begun.elapsed()));
    let records: Vec<_> = runs.iter().map(|run| run.processor("out")["deactivation"].clone()).collect();
    assert!(records.iter().all(|record| record["reason"] == "MaxRedeliveries"), "{records:?}");
    say(&format!("C14: {} records on the broker", client.depth(RECORD)));
    eventually("all are back in the queue", seconds(10), || {
        share.rabbit.queue(&share.name, "default.box").filter(|queue| *queue == (60, 0))
    });
    let hits = target.count();
    target.stays_at(hits, seconds(2));
    target.script(|_| Reply::status(200));
    runs[0].reactivate("out");
    eventually("all are delivered", seconds(20), || {
        let came = target.hits();
        let delivered: std::collections::BTreeSet<_> = came[hits..].iter().map(crate::support::Hit::text).collect();
        (delivered.len() == 60).then_some(())
    });
    for run in &runs {
        run.await_state("out", "Active", seconds(10));
    }
    assert_eq!(target.count(), hits + 60, "each once");
}
