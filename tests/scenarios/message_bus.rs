//! S3 and S4: several destinations, topics, full stores, bursts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use crate::support::http::Answer;
use crate::support::process::signal;
use crate::support::{
    Connection, Hit, Recorder, Reply, Setup, Stagepost, eventually, manifest, millis, rabbitmq, seconds,
};

fn texts(hits: &[Hit]) -> Vec<String> {
    hits.iter().map(Hit::text).collect()
}

#[test]
fn l1_the_caller_is_answered_before_the_listener_is_done() {
    let listener = Recorder::answering(|_| Reply::status(200).after(seconds(2)));
    let run = Setup::manifests(manifest::line(&listener.url(), "")).start();
    let begun = Instant::now();
    assert_eq!(run.post("/in", &[], "N8K5Baker#_activate").status, 202);
    assert!(begun.elapsed() < seconds(1), "answered after {:?}", begun.elapsed());
    run.await_status("ForwardingProcessor", "out", seconds(6), |status| status["delivered"] == 1);
    assert_eq!(texts(&listener.hits()), ["N8K5Baker#_activate"]);
}

#[test]
fn l2_an_answer_becomes_a_message_with_the_correlation_of_its_request() {
    let listener = Recorder::answering(|hit| Reply::full(200, &[], &[b"done: ", hit.body.as_slice()].concat()));
    let baker = Recorder::start();
    let yaml = [
        manifest::line(&listener.url(), "response: {storeRef: {name: n8k5-baker}}"),
        manifest::store("n8k5-baker", ""),
        manifest::processor("baker", "n8k5-baker", &baker.url(), ""),
    ];
    let run = Setup::manifests(yaml.concat()).start();
    let id = run.post("/in", &[], "bake").header("stagepost-message-id");
    let hit = baker.await_hits(1, seconds(4)).remove(0);
    assert_eq!(hit.text(), "done: bake");
    assert_eq!(hit.header("stagepost-correlation-id"), id);
}

#[test]
fn l3_strict_order_never_overlaps() {
    let listener = Recorder::answering(|_| Reply::status(200).after(seconds(1)));
    let run = Setup::manifests(manifest::line(&listener.url(), "ordering: Strict")).start();
    for number in 0..5 {
        run.post("/in", &[], number.to_string());
    }
    let hits = listener.await_hits(5, seconds(9));
    assert_eq!(texts(&hits), ["0", "1", "2", "3", "4"]);
    assert!(hits[4].at - hits[0].at >= seconds(4));
    assert!(hits.windows(2).all(|pair| pair[0].answered.is_some_and(|answered| answered <= pair[1].at)), "an overlap");
}

/// A publish-only store on a topic exchange, and stores bound to it, each with a processor to its own target.
fn topic(bound: &[(&str, &str, &Recorder)]) -> Stagepost {
    let exchange = |bindings: &str| format!("exchange: {{name: events, type: Topic}}\n{bindings}");
    let mut yaml = manifest::store("topic", &exchange("routingKey: nobody.asked"));
    let rules = "rules:\n- name: post\n  path: /events/{*key}\n  storeRef: {name: topic}\n  routingKey: \"{{ headers['x-key'] }}\"";
    yaml += &manifest::object("IngressRoute", "in", rules);
    for (name, binding, target) in bound {
        yaml += &manifest::store(name, &exchange(&format!("queue: {{}}\nbindings: [\"{binding}\"]")));
        let spec = "retry: {maxRedeliveries: 1, interval: 100ms}\nonFailure: {action: Drop}";
        yaml += &manifest::processor(name, name, &target.url(), spec);
    }
    Setup::manifests(yaml).start()
}

#[test]
fn l4_each_destination_of_an_exchange_gets_a_copy_and_a_failing_one_touches_no_other() {
    let (good, slow, bad) = (
        Recorder::start(),
        Recorder::answering(|_| Reply::status(200).after(seconds(1))),
        Recorder::answering(|_| Reply::status(500).after(seconds(1))),
    );
    let run = topic(&[("good", "#", &good), ("slow", "#", &slow), ("bad", "#", &bad)]);
    assert_eq!(run.post("/events/x", &[("X-Key", "any.key")], "copy").status, 202);
    let starts = [&good, &slow, &bad].map(|target| target.await_hits(1, seconds(3)).remove(0));
    for start in &starts {
        assert_eq!(start.text(), "copy");
        assert!(start.at < starts[1].at + seconds(1) && start.at < starts[2].at + seconds(1), "starts overlap");
    }
    bad.await_hits(2, seconds(4));
    run.await_status("ForwardingProcessor", "bad", seconds(3), |status| status["dropped"] == 1);
    assert_eq!((good.count(), slow.count()), (1, 1));
}

#[test]
fn p2_a_topic_routes_by_pattern_and_what_nobody_is_bound_for_is_not_accepted() {
    let (created, orders, audit) = (Recorder::start(), Recorder::start(), Recorder::start());
    let run = topic(&[
        ("created", "orders.*.created", &created),
        ("orders", "orders.#", &orders),
        ("audit", "audit.#", &audit),
    ]);
    for (key, expected) in [("orders.eu.created", 202), ("orders.eu.x.created", 202), ("audit", 202), ("users.x", 503)]
    {
        let answer = run.post("/events/x", &[("X-Key", key)], key);
        assert_eq!(answer.status, expected, "{key}: {}", answer.text());
    }
    created.await_hits(1, seconds(3));
    orders.await_hits(2, seconds(3));
    audit.await_hits(1, seconds(3));
    std::thread::sleep(millis(300));
    assert_eq!(texts(&created.hits()), ["orders.eu.created"]);
    assert_eq!(texts(&orders.hits()), ["orders.eu.created", "orders.eu.x.created"]);
    assert_eq!(texts(&audit.hits()), ["audit"]);
    assert_eq!(run.metric("stagepost_stored_total", &["result=\"unroutable\""]), 1);
}

/// Nobody takes from the store until it is full; `room` is what it takes.
fn full_store(kind: &str, room: u64) {
    let target = Recorder::start();
    let store = manifest::store("box", &format!("queue: {{maxLength: 3, type: {kind}}}"));
    let run = Setup::manifests([store, manifest::route("in", "/in", "box")].concat()).start();
    let answers: Vec<Answer> = (0..room + 3).map(|number| run.post("/in", &[], number.to_string())).collect();
    for (number, answer) in (0..).zip(&answers) {
        assert_eq!(answer.status, if number < room { 202 } else { 503 }, "{kind}, message {number}");
    }
    let refused = answers.last().unwrap();
    assert_eq!(refused.header("retry-after").as_deref(), Some("1"));
    assert_eq!(refused.header("content-type").as_deref(), Some("application/problem+json"));
    run.await_depth("box", room, seconds(5));
    run.write("out.yaml", &manifest::processor("out", "box", &target.url(), ""));
    let count = usize::try_from(room).unwrap();
    target.await_hits(count, seconds(10));
    run.await_depth("box", 0, seconds(5));
    target.stays_at(count, millis(300));
    assert_eq!(target.texts(), (0..room).map(|number| number.to_string()).collect::<Vec<_>>());
    assert_eq!(run.post("/in", &[], "again").status, 202);
}

#[test]
fn l5_a_full_store_refuses_and_holds_exactly_what_was_acknowledged() {
    full_store("Classic", 3);
}

#[test]
fn l5_a_quorum_queue_takes_one_message_beyond_its_length_and_refuses_the_next() {
    full_store("Quorum", if rabbitmq::is_everywhere() { 4 } else { 3 });
}

#[test]
fn l6_what_is_published_to_a_topic_that_no_store_is_bound_to_is_not_accepted() {
    let late = Recorder::start();
    let run = topic(&[]);
    let answer = run.post("/events/x", &[("X-Key", "orders.eu.created")], "too early");
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.text().contains("no queue takes it"), "{}", answer.text());
    assert_eq!(answer.header("retry-after").as_deref(), Some("1"));
    // A store that is bound later gets what is published from then on.
    let bound = manifest::store("late", "exchange: {name: events, type: Topic}\nqueue: {}\nbindings: [\"orders.#\"]");
    run.write("late.yaml", &[bound, manifest::processor("late", "late", &late.url(), "")].concat());
    eventually("it is bound", seconds(15), || {
        (run.post("/events/x", &[("X-Key", "orders.eu.created")], "in time").status == 202).then_some(())
    });
    late.await_hits(1, seconds(5));
    late.stays_at(1, millis(300));
    assert_eq!(late.texts(), ["in time"]);
}

#[test]
fn p1_of_two_processors_on_one_store_each_message_reaches_exactly_one() {
    // Slow enough that one alone would not be through before the other has its share.
    let targets = [(); 2].map(|()| Recorder::answering(|_| Reply::status(200).after(millis(20))));
    let mut yaml = manifest::store("box", "queue: {consumers: Competing}") + &manifest::route("in", "/in", "box");
    for (name, target) in ["one", "other"].iter().zip(&targets) {
        yaml += &manifest::processor(name, "box", &target.url(), "ordering: None\nconcurrency: 4");
    }
    let run = Setup::manifests(yaml).start();
    let sent: BTreeSet<String> = (0..100).map(|number| number.to_string()).collect();
    for number in &sent {
        assert_eq!(run.post("/in", &[], number).status, 202);
    }
    eventually("all have come", seconds(15), || {
        (targets.iter().map(Recorder::count).sum::<usize>() >= 100).then_some(())
    });
    run.await_depth("box", 0, seconds(5));
    let shares = targets.each_ref().map(Recorder::texts);
    println!("{} and {}", shares[0].len(), shares[1].len());
    assert!(shares.iter().all(|share| share.len() >= 10), "both work: {shares:?}");
    let came: Vec<&String> = shares.iter().flatten().collect();
    assert_eq!(came.len(), 100, "each once");
    assert_eq!(came.into_iter().cloned().collect::<BTreeSet<_>>(), sent);
}

/// Stops a process, and waits until each of its threads is stopped: one of them has to run to tell the others.
fn put_to_sleep(pid: u32) {
    signal(pid, "STOP");
    let sleeps = |task: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
    };
    eventually("all of its threads are stopped", seconds(5), || {
        std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().all(sleeps).then_some(())
    });
}

#[test]
fn p3_a_worker_that_dies_between_the_answer_and_its_acknowledgement_delivers_that_message_once_more() {
    let pid = Arc::new(AtomicU32::new(0));
    let sleeper = pid.clone();
    // It sleeps from before the answer on, so it cannot have acknowledged anything when it dies. Until then the target
    // works a while, and the store knows whom it gave the message.
    let target = Recorder::answering(move |hit| {
        if hit.index == 0 {
            std::thread::sleep(millis(300));
            put_to_sleep(sleeper.load(Ordering::SeqCst));
        }
        Reply::status(200)
    });
    let mut run = Setup::manifests(manifest::line(&target.url(), "")).start();
    pid.store(run.pid(), Ordering::SeqCst);
    let id = run.post("/in", &[], "paid").header("stagepost-message-id").unwrap();
    eventually("the target has answered", seconds(10), || target.hits().first().and_then(|hit| hit.answered));
    run.restart();
    let hits = target.await_hits(2, seconds(20));
    run.await_depth("box", 0, seconds(5));
    target.stays_at(2, millis(500));
    for (hit, redelivered) in hits.iter().zip([None, Some("true")]) {
        assert_eq!((hit.text().as_str(), hit.header("stagepost-message-id").as_deref()), ("paid", Some(id.as_str())));
        assert_eq!(hit.header("stagepost-redelivered").as_deref(), redelivered);
        assert_eq!(hit.header("stagepost-attempt").as_deref(), Some("1"));
        assert_eq!(hit.header("idempotency-key").as_deref(), Some(id.as_str()), "by which the target can tell");
    }
}

/// 500 a second come in for ten seconds, 50 a second go out; then the target bears more.
#[test]
fn p4_a_burst_faster_than_the_target_is_kept_and_drained() {
    const SENDERS: usize = 10;
    const EACH: usize = 500;
    let target = Recorder::start();
    let slow = "rateLimit: {requests: 50, per: 1s}";
    let run = Setup::manifests(manifest::line(&target.url(), slow)).start();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for sender in 0..SENDERS {
            let address = run.listen();
            scope.spawn(move || {
                let mut connection = Connection::open(address).unwrap();
                for (number, due) in (0..EACH).zip((0..).map(|number| millis(20) * number)) {
                    std::thread::sleep((begun + due).saturating_duration_since(Instant::now()));
                    let answer = connection.request("POST", "/in", &[], format!("{sender}-{number}").as_bytes());
                    assert_eq!(answer.unwrap().status, 202);
                }
            });
        }
    });
    let took = begun.elapsed();
    let status = run.await_status("ForwardingProcessor", "out", seconds(5), |status| {
        status["backlog"].as_u64() > Some(1000) && status["oldestTakenAge"].as_str().is_some_and(|age| age != "0s")
    });
    println!(
        "{} in {took:?}, then {} waited, the oldest for {}",
        SENDERS * EACH,
        status["backlog"],
        status["oldestTakenAge"]
    );
    let slow_hits = target.hits();
    let span = slow_hits.last().unwrap().at - slow_hits[0].at;
    assert!(span >= millis(19) * u32::try_from(slow_hits.len() - 1).unwrap(), "{} in {span:?}", slow_hits.len());
    run.edit("stagepost.yaml", slow, "rateLimit: {requests: 5000, per: 1s}");
    run.await_status("ForwardingProcessor", "out", seconds(60), |status| status["backlog"] == 0);
    let came: BTreeSet<String> = target.texts().into_iter().collect();
    assert_eq!((came.len(), target.count()), (SENDERS * EACH, SENDERS * EACH), "each once");
    run.await_depth("box", 0, seconds(2));
}
