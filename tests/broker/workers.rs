//! C1, C2, C17, E1, B5, B10, B12: processes of ours that are killed, stopped and restarted, and callers that leave.

use std::collections::BTreeSet;
use std::time::Instant;

use super::client::Client;
use super::common::{
    QUORUM, assert_explained, connected, drained, judge, judge_in_order, launch, line, say, shared, start,
};
use super::proxy::{Proxy, Way, Which};
use super::traffic::Traffic;
use crate::support::http::Connection;
use crate::support::process::signal;
use crate::support::{Recorder, Reply, Setup, eventually, manifest, millis, seconds};

const QUEUE: &str = "default.box";

#[test]
fn c1_a_worker_killed_between_the_answers_and_their_acks_delivers_each_of_those_once_more() {
    let Some(share) = shared() else { return };
    let target = Recorder::start();
    let proxy = Proxy::start(share.rabbit.port);
    let mut run = start(&proxy.uri(&share.uri), &line(&target, QUORUM, "ordering: None\nconcurrency: 4"));
    for number in 0..5 {
        assert_eq!(run.post("/in", &[], format!("acknowledged {number}")).status, 202);
    }
    target.await_hits(5, seconds(5));
    let client = Client::connect(&share.uri);
    eventually("all are acknowledged", seconds(5), || share.rabbit.queue(&share.name, QUEUE).filter(|q| *q == (0, 0)));
    // Nothing that the worker says about its deliveries reaches the broker any more.
    proxy.silence(Which::Consuming, Way::Up);
    for number in 0..5 {
        assert_eq!(run.post("/in", &[], format!("in flight {number}")).status, 202);
    }
    target.await_hits(10, seconds(5));
    run.kill9();
    proxy.cut();
    proxy.speak();
    launch(&mut run);
    let hits = target.await_hits(15, seconds(10));
    eventually("the queue is empty", seconds(5), || (client.depth(QUEUE) == 0).then_some(()));
    target.stays_at(15, millis(500));
    for hit in &hits[..10] {
        assert_eq!(hit.header("stagepost-redelivered"), None, "{hit:?}");
    }
    let before: BTreeSet<_> = hits[5..10].iter().map(|hit| (hit.header("stagepost-message-id"), hit.text())).collect();
    let again: BTreeSet<_> = hits[10..].iter().map(|hit| (hit.header("stagepost-message-id"), hit.text())).collect();
    assert_eq!(again, before, "each that was in flight once more, and no other");
    for hit in &hits[10..] {
        assert_eq!(hit.header("stagepost-redelivered").as_deref(), Some("true"));
        assert_eq!(hit.header("stagepost-attempt").as_deref(), Some("1"), "a crash forgets");
    }
}

#[test]
fn c2_a_worker_killed_between_a_dead_letters_confirm_and_the_ack_leaves_it_twice_with_one_id() {
    let Some(share) = shared() else { return };
    let target = Recorder::answering(|_| Reply::status(404));
    let proxy = Proxy::start(share.rabbit.port);
    let mut run = start(&proxy.uri(&share.uri), &line(&target, QUORUM, ""));
    let client = Client::connect(&share.uri);
    proxy.silence(Which::Consuming, Way::Up);
    let id = run.post("/in", &[], "dead").header("stagepost-message-id").unwrap();
    eventually("it is a dead letter", seconds(10), || (client.depth("default.box.dlc") == 1).then_some(()));
    run.kill9();
    proxy.cut();
    proxy.speak();
    launch(&mut run);
    eventually("it is one again", seconds(10), || (client.depth("default.box.dlc") == 2).then_some(()));
    eventually("it left its source", seconds(5), || share.rabbit.queue(&share.name, QUEUE).filter(|q| *q == (0, 0)));
    drop(run);
    let dead = client.take("default.box.dlc", 2);
    assert_eq!(dead.iter().map(|dead| (dead.id(), dead.body.clone())).collect::<BTreeSet<_>>().len(), 1);
    assert_eq!((dead.len(), dead[0].id()), (2, id));
}

#[test]
fn c17_what_a_worker_acknowledges_after_a_long_sleep_counts_for_nothing() {
    let Some(share) = shared() else { return };
    let target = Recorder::answering(|_| Reply::status(200).after(millis(20)));
    let ingress = [manifest::store("box", QUORUM), manifest::route("in", "/in", "box")].concat();
    let worker =
        [manifest::store("box", QUORUM), manifest::processor("out", "box", &target.url(), "ordering: Strict")].concat();
    let ingress = start(&share.uri, &ingress);
    let first = start(&share.uri, &worker);
    let mut traffic = Traffic::start(&ingress, 2, millis(60));
    eventually("the first one delivers", seconds(10), || (target.count() > 20).then_some(()));
    let asleep = Instant::now();
    signal(first.pid(), "STOP");
    // The broker gives it up after two heartbeats, and then the second one's turn comes.
    let second = start(&share.uri, &worker);
    let took_over = eventually("the second one delivers", seconds(50), || {
        (second.processor("out")["delivered"].as_u64() > Some(20)).then(Instant::now)
    });
    say(&format!("C17: the second worker delivers after {:.1?}", took_over - asleep));
    let woken = Instant::now();
    signal(first.pid(), "CONT");
    std::thread::sleep(seconds(2));
    traffic.finish();
    let hits = drained(&second, &target, &traffic);
    let verdict = judge("C17", &traffic, &hits);
    say(&format!("C17: {} came twice", verdict.duplicated.len()));
    assert_explained(&hits, &[asleep, woken]);
    // The window that the first one held, at most.
    assert!(verdict.duplicated.len() <= 64, "{:?}", verdict.duplicated);
}

#[test]
fn e1_over_20_restarts_of_the_worker_under_load_the_order_is_kept() {
    let Some(share) = shared() else { return };
    let target = Recorder::answering(|_| Reply::status(200).after(millis(1)));
    let ingress = [manifest::store("box", QUORUM), manifest::route("in", "/in", "box")].concat();
    let worker = [manifest::store("box", QUORUM), manifest::processor("out", "box", &target.url(), "")].concat();
    let ingress = start(&share.uri, &ingress);
    let mut worker = start(&share.uri, &worker);
    let mut traffic = Traffic::start(&ingress, 2, millis(20));
    let mut kills = Vec::new();
    for round in 0..20 {
        let count = target.count();
        eventually("it delivers", seconds(20), || (target.count() > count + 20).then_some(()));
        // In good order and not, by turns.
        if round % 4 == 3 {
            kills.push(Instant::now());
            worker.kill9();
        } else {
            worker.terminate(seconds(10));
        }
        worker.launch();
    }
    traffic.finish();
    let hits = drained(&worker, &target, &traffic);
    let verdict = judge_in_order("E1", &traffic, &hits);
    say(&format!("E1: {} came twice over {} kills", verdict.duplicated.len(), kills.len()));
    assert!(verdict.reordered.is_empty(), "{:?}", verdict.reordered);
    assert!(verdict.duplicated.len() <= kills.len() * 8, "{:?}", verdict.duplicated);
    assert_explained(&hits, &kills);
}

#[test]
fn b5_a_caller_that_leaves_before_the_answer_has_his_message_stored_and_counted() {
    let Some(share) = shared() else { return };
    let target = Recorder::start();
    let proxy = Proxy::start(share.rabbit.port);
    let run = start(&proxy.uri(&share.uri), &line(&target, QUORUM, ""));
    proxy.silence(Which::Publishing, Way::Down);
    for number in 0..10 {
        let mut caller = Connection::open(run.listen()).unwrap();
        let body = format!("left {number}");
        let head = format!("POST /in HTTP/1.1\r\nHost: box\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        caller.send_raw(head.as_bytes()).unwrap();
        target.await_hits(number + 1, seconds(5));
    }
    proxy.speak();
    eventually("all are accounted for", seconds(8), || {
        let stored = run.metric("stagepost_stored_total", &["result=\"ok\""]);
        (stored == 10 && run.metric("stagepost_ingress_in_flight", &[]) == 0).then_some(())
    });
    assert_eq!(run.post("/in", &[], "stays").status, 202);
    target.await_hits(11, seconds(5));
    target.stays_at(11, millis(300));
}

#[test]
fn b10_one_idempotency_key_used_twice_at_once_and_after_a_crash_makes_messages_with_ids_of_their_own() {
    let Some(share) = shared() else { return };
    let target = Recorder::start();
    let mut run = start(&share.uri, &line(&target, QUORUM, ""));
    let key = [("Idempotency-Key", "order-17")];
    let answers: Vec<_> = std::thread::scope(|scope| {
        let posts: Vec<_> = (0..2).map(|_| scope.spawn(|| run.post("/in", &key, "same"))).collect();
        posts.into_iter().map(|post| post.join().unwrap()).collect()
    });
    target.await_hits(2, seconds(5));
    run.kill9();
    launch(&mut run);
    let third = run.post("/in", &key, "same");
    let ids: BTreeSet<_> =
        answers.iter().chain([&third]).map(|answer| answer.header("stagepost-message-id").unwrap()).collect();
    assert_eq!(ids.len(), 3);
    // What was in flight when it was killed may come twice.
    eventually("all three have come", seconds(10), || {
        let came: BTreeSet<_> = target.hits().iter().filter_map(|hit| hit.header("stagepost-message-id")).collect();
        (came == ids).then_some(())
    });
    let hits = target.hits();
    assert!(hits.iter().all(|hit| hit.header("idempotency-key").as_deref() == Some("order-17")));
}

#[test]
fn b12_killed_between_the_confirm_and_the_answer_the_caller_sees_a_reset_and_the_message_exists() {
    let Some(share) = shared() else { return };
    let target = Recorder::start();
    let proxy = Proxy::start(share.rabbit.port);
    // No processor: what exists is seen on the broker.
    let yaml = [manifest::store("box", QUORUM), manifest::route("in", "/in", "box")].concat();
    let mut run = Setup::manifests(&yaml).arg("--amqp").arg(&proxy.uri(&share.uri)).start();
    connected(&run, "box");
    let client = Client::connect(&share.uri);
    proxy.silence(Which::Publishing, Way::Down);
    let address = run.listen();
    let caller = std::thread::spawn(move || crate::support::http::once(address, "POST", "/in", &[], b"stored"));
    eventually("it is stored", seconds(5), || (client.depth(QUEUE) == 1).then_some(()));
    assert!(!caller.is_finished());
    run.kill9();
    assert!(caller.join().unwrap().is_err(), "an answer from the dead");
    proxy.cut();
    proxy.speak();
    run.write("stagepost.yaml", &line(&target, QUORUM, ""));
    launch(&mut run);
    target.await_hits(1, seconds(10));
    target.stays_at(1, millis(300));
    assert_eq!(target.texts(), ["stored"]);
}

#[test]
fn a_worker_that_comes_while_another_still_delivers_its_batch_waits_for_it() {
    let Some(share) = shared() else { return };
    let target = Recorder::answering(|_| Reply::status(200).after(millis(150)));
    let ingress = [manifest::store("box", QUORUM), manifest::route("in", "/in", "box")].concat();
    let spec = "ordering: Strict\npoll: {interval: 300ms, batchSize: 10}";
    let worker = [manifest::store("box", QUORUM), manifest::processor("out", "box", &target.url(), spec)].concat();
    let ingress = start(&share.uri, &ingress);
    for number in 0..60 {
        assert_eq!(ingress.post("/in", &[], number.to_string()).status, 202);
    }
    let first = start(&share.uri, &worker);
    target.await_hits(3, seconds(10));
    // Both want every batch from now on.
    let second = start(&share.uri, &worker);
    let hits = target.await_hits(60, seconds(60));
    let numbers: Vec<u32> = hits.iter().map(|hit| hit.text().parse().unwrap()).collect();
    assert!(numbers.is_sorted() && numbers.len() == 60, "{numbers:?}");
    for pair in hits.windows(2) {
        assert!(pair[0].answered.is_some_and(|answered| answered <= pair[1].at), "an overlap: {pair:?}");
    }
    say(&format!(
        "polling in turns: {} and {} of 60 delivered",
        first.processor("out")["delivered"],
        second.processor("out")["delivered"]
    ));
}
