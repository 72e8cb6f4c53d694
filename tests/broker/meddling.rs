//! A12 to A14, C12: what the people who run the broker do to it while we work: time-outs, deletions, rights.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use super::client::{Client, long};
use super::common::{
    QUORUM, Share, broker, condition, connected, drained, is, judge, judge_in_order, line, recovered, say, shared,
    start,
};
use super::proxy::{Proxy, Way, Which};
use super::traffic::Traffic;
use crate::rabbitmq::Rabbit;
use crate::support::{Hit, Recorder, Reply, Setup, Stagepost, eventually, millis, seconds};

const QUEUE: &str = "default.box";

/// A virtual host on a broker that takes a message back from a consumer that has had it for 3 s.
fn impatient() -> Option<Share> {
    static BROKER: OnceLock<Option<Rabbit>> = OnceLock::new();
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let rabbit = BROKER.get_or_init(|| broker("").inspect(lose_patience)).as_ref()?;
    let name = format!("impatient-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let uri = rabbit.virtual_host(&name);
    Some(Share { rabbit, name, uri, turn: crate::rabbitmq::Turn::wait() })
}

/// It looks once a minute; what it is asked for in its configuration is at least that.
fn lose_patience(rabbit: &Rabbit) {
    for (name, millis) in [("consumer_timeout", 3000), ("channel_tick_interval", 500)] {
        rabbit.eval(&format!("application:set_env(rabbit, {name}, {millis})."));
    }
}

/// How often the broker took a channel's messages back.
fn taken_back(run: &Stagepost) -> usize {
    run.log().iter().filter(|line| line.contains("can't consume")).count()
}

#[test]
fn a12_messages_that_the_broker_takes_back_from_a_slow_worker_are_delivered_in_order() {
    let Some(share) = impatient() else { return };
    let target = Recorder::answering(|hit| match hit.index {
        5 => Reply::status(200).after(seconds(6)),
        _ => Reply::status(200).after(millis(100)),
    });
    let run = start(&share.uri, &line(&target, QUORUM, ""));
    let pid = run.pid();
    for number in 0..60 {
        assert_eq!(run.post("/in", &[], format!("{number}")).status, 202);
    }
    let all: Vec<String> = (0..60).map(|number| number.to_string()).collect();
    let firsts = eventually("all are delivered", seconds(60), || {
        let mut firsts: Vec<String> = Vec::new();
        for hit in target.hits() {
            if !firsts.contains(&hit.text()) {
                firsts.push(hit.text());
            }
        }
        (firsts.len() == 60).then_some(firsts)
    });
    assert_eq!(firsts, all);
    run.await_depth("box", 0, seconds(10));
    let times = taken_back(&run);
    say(&format!("A12: taken back {times} times, {} attempts for 60 messages", target.count()));
    assert!(times > 0, "the broker never took anything back");
    assert_eq!(run.pid(), pid);
}

#[test]
fn c12_a_rate_and_many_retries_never_let_the_hold_limit_reach_the_consumer_time_out() {
    let Some(share) = impatient() else { return };
    // Each message fails at first; it is told apart by its header.
    let target = Recorder::answering(|hit| match hit.header("stagepost-attempt").as_deref() {
        Some("1") => Reply::status(503),
        _ => Reply::status(200),
    });
    let spec = "ordering: None\nconcurrency: 16\nrateLimit: {requests: 20, per: 1s, burst: 1}\n\
                retry: {maxRedeliveries: -1, interval: 2500ms, backoffFactor: 1}";
    let yaml = line(&target, QUORUM, spec);
    let run = Setup::manifests(yaml).arg("--amqp").arg(&share.uri).env("STAGEPOST_HOLD_LIMIT", "1s").start();
    connected(&run, "box");
    let before = run.memory("VmRSS");
    for number in 0..100 {
        assert_eq!(run.post("/in", &[], format!("{number}")).status, 202);
    }
    eventually("all are delivered", seconds(60), || {
        (run.processor("out")["delivered"].as_u64() >= Some(100)).then_some(())
    });
    run.await_depth("box", 0, seconds(5));
    let returned = run.metric("stagepost_settled_total", &["result=\"returned\""]);
    say(&format!("C12: {returned} returned; {} KiB, then {} KiB", before, run.memory("VmRSS")));
    assert!(returned > 50, "the hold limit was never reached");
    assert_eq!(taken_back(&run), 0);
    assert_eq!(target.hits().iter().filter(|hit| hit.header("stagepost-attempt").as_deref() == Some("2")).count(), 100);
    assert!(run.memory("VmRSS") < before + 30 * 1024);
}

/// What a strict processor takes ahead: it goes with its queue.
const WINDOW: u32 = 256;

/// What a user deleted is his loss: so many messages, and those in our hands. What was sent when that was over is not.
#[track_caller]
fn judge_since(what: &str, over: Instant, deleted: u32, traffic: &Traffic, hits: &[Hit]) {
    let checker = traffic.checker();
    let verdict = checker.judge(hits.iter().map(|hit| hit.body.as_slice()));
    say(&format!("{what}: {}", checker.summary(&verdict)));
    let later: Vec<_> = traffic.calls_since(over).into_iter().map(|call| call.id).collect();
    let lost: Vec<_> = verdict.lost.iter().filter(|id| later.contains(id)).collect();
    assert!(lost.is_empty(), "sent afterwards, answered 202 and lost: {lost:?}");
    let lost = verdict.lost.len();
    assert!(lost <= (deleted + WINDOW) as usize, "{lost} are lost, and {deleted} were deleted");
    assert!(verdict.unexpected.is_empty(), "{:?}", verdict.unexpected);
}

#[test]
fn a13_a_queue_that_is_deleted_under_us_is_declared_again_and_a_purged_one_is_worked_on() {
    let Some(share) = shared() else { return };
    let target = Recorder::start();
    let run = start(&share.uri, &line(&target, QUORUM, ""));
    let client = Client::connect(&share.uri);
    let mut traffic = Traffic::start(&run, 4, millis(5));
    std::thread::sleep(seconds(1));
    let mut deleted = client.purge(QUEUE);
    let purged = Instant::now();
    eventually("stored after the purge", seconds(5), || traffic.first_stored_since(purged));
    std::thread::sleep(seconds(1));
    let at = Instant::now();
    deleted += client.delete_queue(QUEUE);
    let over = Instant::now();
    recovered("A13, queue deleted", at, over, &traffic, &target);
    run.await_log(&["the queue was gone and is declared again", QUEUE], seconds(1));
    std::thread::sleep(millis(500));
    traffic.finish();
    let hits = super::common::drained(&run, &target, &traffic);
    judge_since("A13, queue purged and deleted", over, deleted, &traffic, &hits);
}

const KEYS: &str = "queue: {}\nexchange: {name: keys, type: Direct}\nroutingKey: bound\nbindings: [bound]";

/// Callers are told 503 and never 202 while nothing is bound, and it is bound again without a restart.
fn routes_again(what: &str, meddle: impl Fn(&Client)) {
    let Some(share) = shared() else { return };
    let target = Recorder::start();
    let run = start(&share.uri, &line(&target, KEYS, ""));
    let client = Client::connect(&share.uri);
    let mut traffic = Traffic::start(&run, 4, millis(5));
    std::thread::sleep(seconds(1));
    let at = Instant::now();
    meddle(&client);
    recovered(what, at, Instant::now(), &traffic, &target);
    std::thread::sleep(millis(500));
    traffic.finish();
    let hits = drained(&run, &target, &traffic);
    judge_in_order(what, &traffic, &hits);
    let gap = traffic.longest_gap_since(at);
    assert!(gap < seconds(15), "nothing was routed for {gap:.1?}");
}

#[test]
fn a13_an_exchange_that_is_deleted_under_us_is_declared_again_and_nothing_promised_is_lost() {
    routes_again("A13, exchange deleted", |client| client.delete_exchange("keys"));
}

#[test]
fn a13_a_binding_that_is_deleted_under_us_is_made_again_and_nothing_promised_is_lost() {
    routes_again("A13, binding deleted", |client| client.unbind(QUEUE, "keys", "bound"));
}

#[test]
fn a13_a_queue_that_was_made_anew_with_other_arguments_is_a_mismatch_until_it_is_gone() {
    let Some(share) = shared() else { return };
    let target = Recorder::start();
    let proxy = Proxy::start(share.rabbit.port);
    let run = start(&proxy.uri(&share.uri), &line(&target, "queue: {type: Classic}", ""));
    let client = Client::connect(&share.uri);
    assert_eq!(run.post("/in", &[], "before").status, 202);
    target.await_hits(1, seconds(5));
    // While we are away.
    for way in [Way::Up, Way::Down] {
        proxy.silence(Which::Both, way);
    }
    proxy.cut();
    client.delete_queue(QUEUE);
    client.declare(
        QUEUE,
        [("x-queue-type", long("classic")), ("x-message-ttl", lapin::types::AMQPValue::LongInt(60_000))],
    );
    proxy.speak();
    let mismatched = |status: &serde_json::Value| condition(status, "Ready")["reason"] == "QueueMismatch";
    let status = run.await_status("MessageStore", "box", seconds(30), mismatched);
    let message = condition(&status, "Ready")["message"].as_str().unwrap_or_default().to_owned();
    for word in [QUEUE, "target.storeRef"] {
        assert!(message.contains(word), "{message}");
    }
    let refused = run.post("/in", &[], "during");
    assert_eq!(refused.status, 503);
    assert_eq!(client.depth(QUEUE), 0, "nothing of ours lies in a queue that is not ours");
    client.delete_queue(QUEUE);
    run.await_status("MessageStore", "box", seconds(20), |status| is(status, "Ready", "True"));
    assert_eq!(run.post("/in", &[], "after").status, 202);
    target.await_hits(2, seconds(15));
    assert_eq!(target.texts(), ["before", "after"]);
}

/// A user of one test's own, whose password stands in a Secret among the manifests.
fn with_secret(share: &Share, user: &str, password: &str, yaml: &str) -> Stagepost {
    share.rabbit.ctl(&["add_user", user, password]);
    share.rabbit.ctl(&["set_permissions", "-p", &share.name, user, ".*", ".*", ".*"]);
    let secret = format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: rabbitmq}}\nstringData:\n  host: 127.0.0.1\n  port: \
         '{}'\n  vhost: {}\n  username: {user}\n  password: {password}\n",
        share.rabbit.port, share.name
    );
    let run = Setup::manifests(format!("{yaml}{secret}")).start();
    connected(&run, "box");
    run
}

#[test]
fn a14_a_changed_password_is_taken_over_from_the_secret_without_a_restart_and_without_loss() {
    let Some(share) = shared() else { return };
    let target = Recorder::start();
    let run = with_secret(&share, "rotating", "old-p:@/%ss", &line(&target, QUORUM, ""));
    let pid = run.pid();
    let mut traffic = Traffic::start(&run, 4, millis(5));
    std::thread::sleep(seconds(1));
    let at = Instant::now();
    share.rabbit.ctl(&["change_password", "rotating", "new-&?#=ss"]);
    share.rabbit.ctl(&["close_all_user_connections", "rotating", "rotated"]);
    let status = run.await_status("MessageStore", "box", seconds(20), |status| is(status, "BrokerConnected", "False"));
    assert_eq!(condition(&status, "BrokerConnected")["reason"], "AuthenticationFailed", "{status:#}");
    assert!(!run.log().iter().any(|line| line.contains("old-p:@/%ss")), "a password is in the log");
    std::thread::sleep(seconds(3));
    let edited = Instant::now();
    run.edit("stagepost.yaml", "old-p:@/%ss", "'new-&?#=ss'");
    recovered("A14, password changed", at, edited, &traffic, &target);
    traffic.finish();
    let hits = drained(&run, &target, &traffic);
    judge_in_order("A14", &traffic, &hits);
    assert_eq!(run.pid(), pid);
}

#[test]
fn a14_rights_that_are_withdrawn_and_given_back_stop_delivery_and_start_it_again() {
    let Some(share) = shared() else { return };
    let target = Recorder::start();
    let run = with_secret(&share, "revoked", "secret", &line(&target, QUORUM, ""));
    let mut traffic = Traffic::start(&run, 4, millis(5));
    for (what, rights) in [("of all queues", Some("^$")), ("to the virtual host", None)] {
        std::thread::sleep(seconds(1));
        let at = Instant::now();
        match rights {
            Some(none) => share.rabbit.ctl(&["set_permissions", "-p", &share.name, "revoked", none, none, none]),
            None => share.rabbit.ctl(&["clear_permissions", "-p", &share.name, "revoked"]),
        };
        share.rabbit.ctl(&["close_all_user_connections", "revoked", "revoked"]);
        let closed = Instant::now();
        let down = |status: &serde_json::Value| is(status, "BrokerConnected", "False");
        let status = run.await_status("MessageStore", "box", seconds(20), down);
        say(&format!("A14: {}", condition(&status, "BrokerConnected")["message"]));
        let told = traffic.calls_since(closed);
        assert!(told.iter().all(|call| call.status == Some(503)), "{told:?}");
        share.rabbit.ctl(&["set_permissions", "-p", &share.name, "revoked", ".*", ".*", ".*"]);
        recovered(&format!("A14, the right {what}"), at, Instant::now(), &traffic, &target);
    }
    traffic.finish();
    let hits = drained(&run, &target, &traffic);
    judge("A14", &traffic, &hits);
}
