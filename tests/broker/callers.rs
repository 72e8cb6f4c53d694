//! Request-reply over a broker: several ingress processes, callers whose process or connection dies, and RPC servers
//! that are not ours.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lapin::types::AMQPValue;

use super::client::{Client, headers};
use super::common::{broker, say, shared, start};
use crate::support::http::Connection;
use crate::support::{Recorder, Reply, Stagepost, eventually, manifest, millis, seconds};

const STORE: &str = "queue: {type: Quorum}";
/// Ends within the test, whatever happens.
const PATIENCE: &str = "20s";

fn ingress() -> String {
    let rule =
        format!("rules:\n- name: ask\n  path: /ask\n  storeRef: {{name: box}}\n  reply: {{timeout: {PATIENCE}}}");
    [manifest::store("box", STORE), manifest::object("IngressRoute", "in", &rule)].concat()
}

fn worker(target: &Recorder) -> String {
    let spec = "ordering: None\nconcurrency: 32";
    [manifest::store("box", STORE), manifest::processor("out", "box", &target.url(), spec)].concat()
}

fn echo() -> Recorder {
    Recorder::answering(|hit| Reply::full(200, &[], &hit.body))
}

fn replies(run: &Stagepost, result: &str) -> i64 {
    run.metric("stagepost_replies_total", &[&format!("result=\"{result}\"")])
}

/// What callers saw of one process.
#[derive(Default)]
struct Seen {
    answered: AtomicUsize,
    /// Without an answer.
    cut: AtomicUsize,
    other: Mutex<Vec<(u16, String)>>,
    longest: Mutex<Duration>,
}

impl Seen {
    /// One call. False: the connection ended without an answer.
    fn call(&self, connection: &mut Connection, body: &str) -> bool {
        let begun = Instant::now();
        let Ok(answer) = connection.request("POST", "/ask", &[], body.as_bytes()) else {
            self.cut.fetch_add(1, Ordering::Relaxed);
            return false;
        };
        if answer.status == 200 && answer.text() == body {
            self.answered.fetch_add(1, Ordering::Relaxed);
        } else {
            self.other.lock().unwrap().push((answer.status, format!("{body}: {}", answer.text())));
        }
        let mut longest = self.longest.lock().unwrap();
        *longest = longest.max(begun.elapsed());
        true
    }
}

#[test]
fn everyone_gets_their_own_answer_over_two_replicas_and_one_that_is_killed_troubles_only_its_own() {
    const CALLERS: usize = 200;
    const CALLS: usize = 50;
    let Some(share) = shared() else { return };
    let target = echo();
    let _worker = start(&share.uri, &worker(&target));
    let stays = start(&share.uri, &ingress());
    let mut killed = start(&share.uri, &ingress());
    let (of_one, of_other) = (Seen::default(), Seen::default());
    let (to_one, to_other) = (stays.listen(), killed.listen());
    std::thread::scope(|scope| {
        for caller in 0..CALLERS {
            let (one, other) = (&of_one, &of_other);
            scope.spawn(move || {
                // Half of them call the one that is killed, until it is gone.
                let mut at_other = caller % 2 == 1;
                let mut connection = Connection::open(if at_other { to_other } else { to_one }).unwrap();
                for call in 0..CALLS {
                    let body = format!("{caller}/{call}");
                    while !(if at_other { other } else { one }).call(&mut connection, &body) {
                        at_other = false;
                        connection = Connection::open(to_one).unwrap();
                    }
                }
            });
        }
        eventually("half of its calls are answered", seconds(60), || {
            (of_other.answered.load(Ordering::Relaxed) > CALLERS * CALLS / 4).then_some(())
        });
        killed.kill9();
    });
    let count = |seen: &Seen| (seen.answered.load(Ordering::Relaxed), seen.cut.load(Ordering::Relaxed));
    say(&format!(
        "callers: {:?} answered and cut at the one that stays, {:?} at the one that is killed; longest call {:?}",
        count(&of_one),
        count(&of_other),
        of_one.longest.lock().unwrap()
    ));
    assert_eq!(*of_one.other.lock().unwrap(), [], "at the one that stays");
    assert_eq!(*of_other.other.lock().unwrap(), [], "at the one that is killed");
    assert_eq!(count(&of_one).1, 0, "nobody at the one that stays was cut off");
    assert_eq!(count(&of_one).0 + count(&of_other).0, CALLERS * CALLS);
    assert!(count(&of_other).1 <= CALLERS / 2, "each of the others once at most");
    assert_eq!(replies(&stays, "answered"), i64::try_from(count(&of_one).0).unwrap());
    assert_eq!(replies(&stays, "late") + replies(&stays, "duplicate"), 0);
}

#[test]
fn l7_of_two_replies_the_first_wins_and_another_clients_rpc_server_can_give_them() {
    let Some(share) = shared() else { return };
    let run = start(&share.uri, &ingress());
    let client = Client::connect(&share.uri);
    let to = run.listen();
    let caller =
        std::thread::spawn(move || Connection::open(to).unwrap().request("POST", "/ask", &[], b"2+2").unwrap());
    let request = client.take("default.box", 1).remove(0);
    assert_eq!(request.body, b"2+2");
    assert!(request.header("x-stagepost-deadline").is_some());
    let left: u64 = request.properties.expiration().as_ref().unwrap().as_str().parse().unwrap();
    assert!((15_000..=20_000).contains(&left), "{left} ms of {PATIENCE}");
    let queue = request.properties.reply_to().clone().unwrap();
    assert!(queue.as_str().starts_with("amq.gen-"), "{queue}");
    let id = request.properties.correlation_id().clone().unwrap();
    let reply = |status: Option<i64>, body: &[u8]| {
        let status = status.map(|status| ("x-stagepost-status", AMQPValue::LongLongInt(status)));
        let properties = headers(status).with_correlation_id(id.clone()).with_content_type("text/plain".into());
        client.publish("", queue.as_str(), properties, body);
    };
    reply(Some(203), b"4");
    reply(None, b"5");
    let answer = caller.join().unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (203, "4"));
    assert_eq!(answer.header("content-type").as_deref(), Some("text/plain"));
    eventually("the second is counted", seconds(5), || (replies(&run, "duplicate") == 1).then_some(()));
    assert_eq!(replies(&run, "answered"), 1);
    // One that says no status is a success.
    let caller =
        std::thread::spawn(move || Connection::open(to).unwrap().request("POST", "/ask", &[], b"3+3").unwrap());
    let request = client.take("default.box", 1).remove(0);
    let properties = headers([]).with_correlation_id(request.properties.correlation_id().clone().unwrap());
    client.publish("", request.properties.reply_to().as_ref().unwrap().as_str(), properties, b"6");
    let answer = caller.join().unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "6"));
}

#[test]
fn a_worker_killed_under_a_call_leaves_it_to_the_next_and_the_caller_gets_one_answer() {
    let Some(share) = shared() else { return };
    let target = Recorder::answering(|hit| Reply::full(200, &[], &hit.body).after(seconds(1)));
    let run = start(&share.uri, &ingress());
    let mut first = start(&share.uri, &worker(&target));
    let to = run.listen();
    let caller = std::thread::spawn(move || Connection::open(to).unwrap().request("POST", "/ask", &[], b"x").unwrap());
    target.await_hits(1, seconds(10));
    first.kill9();
    first.launch();
    let answer = caller.join().unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "x"));
    let hits = target.await_hits(2, seconds(10));
    assert_eq!(hits[0].header("stagepost-message-id"), hits[1].header("stagepost-message-id"));
    assert_eq!(hits[1].header("stagepost-redelivered").as_deref(), Some("true"));
}

#[test]
fn a_reply_whose_caller_is_gone_with_its_process_holds_up_nobody() {
    let Some(share) = shared() else { return };
    let target = Recorder::answering(|hit| Reply::full(200, &[], &hit.body).after(seconds(1)));
    let worker = start(&share.uri, &worker(&target));
    let mut gone = start(&share.uri, &ingress());
    let to = gone.listen();
    let caller = std::thread::spawn(move || Connection::open(to).unwrap().request("POST", "/ask", &[], b"x").is_err());
    target.await_hits(1, seconds(10));
    gone.kill9();
    assert!(caller.join().unwrap());
    worker.await_status("ForwardingProcessor", "out", seconds(10), |status| status["delivered"] == 1);
    assert_eq!(worker.metric("stagepost_replies_sent_total", &["result=\"unroutable\""]), 1);
    assert_eq!(Client::connect(&share.uri).depth("default.box"), 0);
}

#[test]
fn a_lost_connection_is_told_to_who_waits_and_the_next_callers_are_served() {
    let Some(mut rabbit) = broker("") else { return };
    let target = Recorder::answering(|_| Reply::hang());
    let yaml = [ingress(), manifest::processor("out", "box", &target.url(), "ordering: None\nconcurrency: 4")].concat();
    let run = start(&rabbit.uri(), &yaml);
    let to = run.listen();
    let caller = std::thread::spawn(move || Connection::open(to).unwrap().request("POST", "/ask", &[], b"x").unwrap());
    target.await_hits(1, seconds(10));
    target.script(|hit| Reply::full(200, &[], &hit.body));
    let begun = Instant::now();
    rabbit.kill();
    let answer = caller.join().unwrap();
    say(&format!("a caller is told of the lost connection after {:?}", begun.elapsed()));
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert_eq!(answer.json()["type"], "urn:stagepost:problem:reply-lost");
    assert!(begun.elapsed() < seconds(5));
    assert_eq!(replies(&run, "lost"), 1);
    assert_eq!(run.post("/ask", &[], "while it is down").status, 503);
    rabbit.run();
    eventually("a caller is served again", seconds(60), || {
        let answer = run.post("/ask", &[], "again");
        if answer.status != 200 {
            std::thread::sleep(millis(100));
        }
        (answer.status == 200 && answer.text() == "again").then_some(())
    });
}
