//! A1 to A6, R10: brokers that are killed, restarted, paused, or out of reach under load.

use std::time::Instant;

use serde_json::Value;

use super::common::{
    PER_SENDER, QUORUM, assert_explained, broker, condition, connected, drained, is, judge, judge_in_order, line,
    recovered, say, shared, start,
};
use super::proxy::{Proxy, Way, Which};
use super::traffic::Traffic;
use crate::support::{Random, Recorder, Reply, Setup, Stagepost, eventually, is_full, manifest, millis, seconds};

/// The confirm's 5 s, and what a busy machine adds.
const NO_CONFIRM: std::time::Duration = seconds(8);

#[test]
fn a1_a_broker_that_is_killed_again_and_again_at_load_loses_nothing_that_was_promised() {
    let Some(mut broker) = broker("") else { return };
    let mut random = Random::new();
    let target = Recorder::start();
    let run = start(&broker.uri(), &line(&target, QUORUM, PER_SENDER));
    let pid = run.pid();
    // As many as it takes, one after the other from each.
    let (senders, pace) = if is_full() { (64, millis(0)) } else { (8, millis(4)) };
    let mut traffic = Traffic::start(&run, senders, pace);
    let mut faults = Vec::new();
    for round in 1..=3 {
        std::thread::sleep(millis(random.between(500, 2500)));
        let at = Instant::now();
        broker.kill();
        faults.extend([at, Instant::now()]);
        broker.run();
        recovered(&format!("A1, kill {round}"), at, Instant::now(), &traffic, &target);
    }
    std::thread::sleep(millis(500));
    traffic.finish();
    let hits = drained(&run, &target, &traffic);
    let verdict = judge_in_order("A1", &traffic, &hits);
    let slowest = traffic.slowest();
    say(&format!("A1: {} came twice, the longest wait {slowest:.1?}", verdict.duplicated.len()));
    assert_explained(&hits, &faults);
    assert!(slowest < NO_CONFIRM, "{slowest:?}");
    assert_eq!(run.pid(), pid);
}

#[test]
fn a2_a_broker_that_is_stopped_and_started_in_good_order_loses_nothing_and_ends_no_worker() {
    let Some(broker) = broker("") else { return };
    let target = Recorder::start();
    let run = start(&broker.uri(), &line(&target, QUORUM, ""));
    let mut traffic = Traffic::start(&run, 4, millis(5));
    std::thread::sleep(seconds(1));
    let at = Instant::now();
    broker.ctl(&["stop_app"]);
    let stopped = Instant::now();
    eventually("callers are refused at once", seconds(10), || {
        let calls = traffic.calls_since(stopped);
        (calls.iter().filter(|call| call.status == Some(503) && call.took() < millis(500)).count() > 5).then_some(())
    });
    broker.ctl(&["start_app"]);
    recovered("A2", at, Instant::now(), &traffic, &target);
    std::thread::sleep(millis(500));
    traffic.finish();
    let hits = drained(&run, &target, &traffic);
    let verdict = judge_in_order("A2", &traffic, &hits);
    say(&format!("A2: {} came twice", verdict.duplicated.len()));
    assert_explained(&hits, &[at, stopped]);
    assert_eq!(run.processor("out")["state"], "Active");
}

#[test]
fn a3_a_broker_that_falls_asleep_credits_nobody_with_what_it_confirms_when_it_wakes() {
    let Some(broker) = broker("") else { return };
    let target = Recorder::start();
    let run = start(&broker.uri(), &line(&target, QUORUM, PER_SENDER));
    let mut traffic = Traffic::start(&run, 8, millis(20));
    let mut faults = Vec::new();
    let longest = if is_full() { 120 } else { 32 };
    for pause in [6, longest] {
        std::thread::sleep(seconds(1));
        let at = Instant::now();
        broker.pause(true);
        let asleep = Instant::now();
        // Longer than the confirm's time-out; then longer than two heartbeats and the broker's own patience.
        std::thread::sleep(seconds(pause));
        let awake = Instant::now();
        broker.pause(false);
        faults.extend([at, awake]);
        recovered(&format!("A3, {pause} s of sleep"), at, awake, &traffic, &target);
        let told: Vec<_> =
            traffic.calls().into_iter().filter(|call| call.ended > asleep && call.ended < awake).collect();
        assert!(told.iter().any(|call| call.status == Some(503)), "nobody was told");
        let wrong = told.iter().filter(|call| call.status == Some(202) && call.begun > asleep).count();
        assert_eq!(wrong, 0, "202 from a broker that is asleep");
    }
    std::thread::sleep(millis(500));
    traffic.finish();
    let hits = drained(&run, &target, &traffic);
    let verdict = judge("A3", &traffic, &hits);
    let slowest = traffic.slowest();
    say(&format!("A3: {} came twice, the longest wait {slowest:.1?}", verdict.duplicated.len()));
    assert!(slowest < NO_CONFIRM, "{slowest:?}");
    assert_explained(&hits, &faults);
}

/// Posts one message in a thread of its own.
fn post(run: &Stagepost, body: &'static str) -> std::thread::JoinHandle<(Option<u16>, Instant)> {
    let address = run.listen();
    std::thread::spawn(move || {
        let answer = crate::support::http::once(address, "POST", "/in", &[], body.as_bytes());
        (answer.ok().map(|answer| answer.status), Instant::now())
    })
}

#[test]
fn a4_a_connection_cut_before_the_publish_or_its_confirm_came_through_is_a_503_and_never_a_202() {
    let Some(share) = shared() else { return };
    let target = Recorder::start();
    let proxy = Proxy::start(share.rabbit.port);
    let run = start(&proxy.uri(&share.uri), &line(&target, QUORUM, ""));
    assert_eq!(run.post("/in", &[], "first").status, 202);
    // The publish never reaches the broker.
    proxy.silence(Which::Publishing, Way::Up);
    let caller = post(&run, "not stored");
    eventually("it is under way", seconds(5), || (run.metric("stagepost_ingress_in_flight", &[]) > 0).then_some(()));
    std::thread::sleep(millis(200));
    let cut = Instant::now();
    proxy.cut();
    let (status, told) = caller.join().unwrap();
    assert_eq!(status, Some(503));
    assert!(told - cut < seconds(2), "{:?}", told - cut);
    proxy.speak();
    connected(&run, "box");
    assert_eq!(run.post("/in", &[], "second").status, 202);
    target.await_hits(2, seconds(5));
    // The broker has stored it and said so, and we have not read that.
    proxy.silence(Which::Publishing, Way::Down);
    let caller = post(&run, "stored");
    target.await_hits(3, seconds(5));
    assert!(!caller.is_finished(), "answered before the confirm");
    let cut = Instant::now();
    proxy.cut();
    let (status, told) = caller.join().unwrap();
    assert_eq!(status, Some(503));
    assert!(told - cut < seconds(2), "{:?}", told - cut);
    proxy.speak();
    connected(&run, "box");
    assert_eq!(run.post("/in", &[], "last").status, 202);
    eventually("the last one is delivered", seconds(10), || target.texts().contains(&"last".to_owned()).then_some(()));
    // What was cut off just behind its delivery may come once more.
    let mut texts = target.texts();
    texts.dedup();
    assert_eq!(texts, ["first", "second", "stored", "last"]);
}

#[test]
fn a5_connections_cut_at_any_moment_under_load_never_make_a_false_promise() {
    let Some(share) = shared() else { return };
    let mut random = Random::new();
    let target = Recorder::start();
    let proxy = Proxy::start(share.rabbit.port);
    let run = start(&proxy.uri(&share.uri), &line(&target, QUORUM, PER_SENDER));
    let mut traffic = Traffic::start(&run, 8, millis(4));
    let mut faults = Vec::new();
    for round in 1..=8 {
        std::thread::sleep(millis(random.between(100, 1000)));
        if round % 2 == 0 {
            // Confirmed, and the confirms are held back for a moment before the end.
            proxy.silence(Which::Publishing, Way::Down);
            std::thread::sleep(millis(random.between(1, 100)));
        }
        faults.push(Instant::now());
        proxy.cut();
        proxy.speak();
        let at = Instant::now();
        faults.push(at);
        eventually("stored again", seconds(20), || traffic.first_stored_since(at));
    }
    recovered("A5, the last of 8 cuts", faults[14], faults[15], &traffic, &target);
    traffic.finish();
    let hits = drained(&run, &target, &traffic);
    let verdict = judge_in_order("A5", &traffic, &hits);
    let existed = hits.iter().filter_map(|hit| crate::support::checker::Id::read(&hit.body));
    let existed = existed.filter(|id| traffic.checker().what(*id) != Some(crate::support::checker::Saw::Ok)).count();
    say(&format!("A5: {} came twice; {existed} came though their callers were told 503", verdict.duplicated.len()));
    assert_explained(&hits, &faults);
}

#[test]
fn a6_a_connection_that_is_dead_without_an_end_is_noticed_within_two_heartbeats() {
    let Some(share) = shared() else { return };
    let target = Recorder::start();
    let proxy = Proxy::start(share.rabbit.port);
    let run = start(&proxy.uri(&share.uri), &line(&target, QUORUM, ""));
    // Nobody publishes: only heartbeats can tell.
    let silent = Instant::now();
    proxy.silence(Which::Both, Way::Up);
    proxy.silence(Which::Both, Way::Down);
    for connection in ["publish", "consume"] {
        run.await_log(&["connection to the broker lost", connection], seconds(24));
        say(&format!("A6: the connection that would {connection}, idle: noticed after {:.1?}", silent.elapsed()));
    }
    run.await_status("MessageStore", "box", seconds(15), |status| is(status, "BrokerConnected", "False"));
    proxy.cut();
    proxy.speak();
    connected(&run, "box");
    // The same under load.
    let mut traffic = Traffic::start(&run, 4, millis(5));
    std::thread::sleep(seconds(1));
    let silent = Instant::now();
    proxy.silence(Which::Both, Way::Up);
    proxy.silence(Which::Both, Way::Down);
    run.await_status("MessageStore", "box", seconds(24), |status| !is(status, "BrokerConnected", "True"));
    say(&format!("A6: under load: noticed after {:.1?}", silent.elapsed()));
    proxy.cut();
    proxy.speak();
    recovered("A6", silent, Instant::now(), &traffic, &target);
    let spoke = Instant::now();
    traffic.finish();
    let hits = drained(&run, &target, &traffic);
    judge_in_order("A6", &traffic, &hits);
    assert!(traffic.slowest() < NO_CONFIRM, "{:?}", traffic.slowest());
    assert_explained(&hits, &[silent, spoke]);
}

#[test]
fn m2_started_while_the_broker_is_down_everything_is_ready_when_it_comes() {
    let Some(mut broker) = broker("") else { return };
    broker.kill();
    let target = Recorder::answering(|_| Reply::status(200));
    let run = Setup::manifests(line(&target, QUORUM, "")).arg("--amqp").arg(&broker.uri()).start();
    let down = |status: &Value| is(status, "BrokerConnected", "False") && is(status, "Ready", "False");
    for (kind, name) in [("MessageStore", "box"), ("IngressRoute", "in"), ("ForwardingProcessor", "out")] {
        let status = run.await_status(kind, name, seconds(20), down);
        assert_eq!(condition(&status, "BrokerConnected")["reason"], "Refused", "{status:#}");
    }
    assert_eq!(run.post("/in", &[], "early").status, 503);
    broker.run();
    for (kind, name) in [("MessageStore", "box"), ("IngressRoute", "in"), ("ForwardingProcessor", "out")] {
        run.await_status(kind, name, seconds(30), |status| is(status, "Ready", "True"));
    }
    assert_eq!(run.post("/in", &[], "late").status, 202);
    target.await_hits(1, seconds(10));
    assert_eq!(target.texts(), ["late"]);
}

#[test]
fn r10_a_broker_that_is_down_for_a_minute_while_polling_is_reached_again_without_a_restart() {
    let Some(mut broker) = broker("") else { return };
    let target = Recorder::answering(|_| Reply::status(200));
    let yaml = [
        manifest::store("box", QUORUM),
        manifest::route("in", "/in", "box"),
        manifest::processor("out", "box", &target.url(), "poll: {interval: 2s, batchSize: -1}"),
    ];
    let run = start(&broker.uri(), &yaml.concat());
    assert_eq!(run.post("/in", &[], "before").status, 202);
    target.await_hits(1, seconds(10));
    eventually("it is acknowledged", seconds(5), || broker.queue("/", "default.box").filter(|queue| *queue == (0, 0)));
    broker.kill();
    let down = |status: &Value| is(status, "BrokerConnected", "False");
    let status = run.await_status("MessageStore", "box", seconds(20), down);
    assert_eq!(condition(&status, "Ready")["status"], "False");
    run.await_status("ForwardingProcessor", "out", seconds(20), down);
    let end = Instant::now() + seconds(60);
    while Instant::now() < end {
        let asked = Instant::now();
        assert_eq!(run.post("/in", &[], "during").status, 503);
        assert!(asked.elapsed() < seconds(2), "known down, and the caller waited {:?}", asked.elapsed());
        assert_ne!(run.processor("out")["state"], "Deactivated");
        std::thread::sleep(seconds(5));
    }
    broker.run();
    let up = Instant::now();
    connected(&run, "box");
    say(&format!("R10: connected {:.1?} after the broker was up again", up.elapsed()));
    assert!(up.elapsed() < seconds(25), "{:?}", up.elapsed());
    assert_eq!(run.post("/in", &[], "after").status, 202);
    target.await_hits(2, seconds(10));
    assert_eq!(target.texts(), ["before", "after"]);
    let status = run.await_state("out", "Active", seconds(5));
    assert!(is(&status, "BrokerConnected", "True"), "{status:#}");
}
