//! The real binary on a broker that misbehaves: what callers over HTTP are told, and that it goes on by itself.

use std::sync::atomic::{AtomicU64, Ordering};

use super::broker::{FakeBroker, Handed};
use crate::support::http::once;
use crate::support::{Recorder, Setup, Stagepost, eventually, manifest, millis, seconds};

const STORE: &str = "queue: {type: Classic, name: box}\nconfirmTimeout: 1s\ndeadline: 2s";

fn start(broker: &FakeBroker, target: Option<&Recorder>) -> Stagepost {
    let mut yaml = [manifest::store("box", STORE), manifest::route("in", "/in", "box")].concat();
    if let Some(target) = target {
        yaml.push_str(&manifest::processor("out", "box", &target.url(), "retry: {interval: 100ms}"));
    }
    let run = Setup::manifests(yaml).arg("--amqp").arg(&broker.uri()).start();
    stored_again(&run);
    run
}

/// Waits until a request is answered 202, with nothing restarted.
fn stored_again(run: &Stagepost) {
    eventually("it stores again", seconds(20), || (run.post("/in", &[], "warm-up").status == 202).then_some(()));
}

/// Posts these bodies side by side; the answers in the same order.
fn post_all(run: &Stagepost, bodies: &[&str]) -> Vec<u16> {
    std::thread::scope(|scope| {
        let calls: Vec<_> = bodies
            .iter()
            .map(|body| {
                let listen = run.listen();
                scope.spawn(move || once(listen, "POST", "/in", &[], body.as_bytes()).unwrap().status)
            })
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    })
}

#[test]
fn a18_callers_get_the_answers_that_are_theirs() {
    let broker = FakeBroker::start();
    let run = start(&broker, None);
    // By what the body says: confirmed or not, in an order of the broker's.
    let mut came = Vec::new();
    broker.at_publish(move |published| {
        came.push(published.clone());
        if came.len() == 6 {
            came.sort_by_key(|published| std::cmp::Reverse(published.body().to_vec()));
            for published in came.drain(..) {
                match published.body() {
                    b"returned" => {
                        published.give_back();
                        published.ack();
                    }
                    b"full" => published.nack(),
                    b"silence" => {}
                    _ => published.take(),
                }
            }
        }
    });
    let answers = post_all(&run, &["a", "returned", "full", "b", "silence", "c"]);
    assert_eq!(answers, [202, 503, 503, 202, 503, 202]);
    let stored = broker.bodies("box");
    for body in ["a", "b", "c"] {
        assert!(stored.contains(&body.as_bytes().to_vec()), "{body} was answered 202");
    }
    broker.behave();
    stored_again(&run);
}

#[test]
fn a4_a17_a18_nobody_is_told_202_for_what_was_not_confirmed_and_it_goes_on_without_a_restart() {
    let broker = FakeBroker::start();
    let mut run = start(&broker, None);
    let pid = run.pid();
    // Each third publish is stored and confirmed, each third has this done instead of a confirm, each third waits.
    let count = AtomicU64::new(0);
    broker.at_publish(move |published| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        let (line, channel, tag) = (&published.line, published.channel, published.tag);
        match (number % 3, number / 3 % 8) {
            (0, _) => published.take(),
            (1, _) => {}
            (_, 0) => line.reset(),
            (_, 1) => line.ack(channel, tag + 1000, true),
            (_, 2) => line.raw(b"garbage, garbage, garbage"),
            (_, 3) => line.raw(&[1, 0, 1, 0, 0, 0, 13, 0, 60, 0, 80, 0, 0]),
            (_, 4) => line.close_channel(channel, 404, "NOT_FOUND - no exchange"),
            (_, 5) => line.close_connection(320, "CONNECTION_FORCED - bye"),
            (_, 6) => line.nack(channel, tag, true),
            _ => line.end(),
        }
    });
    let (mut stored, mut not) = (Vec::new(), 0);
    let mut number = 0;
    while not < 60 {
        let bodies: Vec<String> = (0..3).map(|n| format!("message {}", number + n)).collect();
        number += 3;
        let answers = post_all(&run, &bodies.iter().map(String::as_str).collect::<Vec<_>>());
        for (body, status) in bodies.into_iter().zip(answers) {
            match status {
                202 => stored.push(body),
                503 => not += 1,
                other => panic!("{body}: {other}"),
            }
        }
        std::thread::sleep(millis(100));
    }
    broker.behave();
    stored_again(&run);
    assert_eq!(run.pid(), pid);
    assert!(stored.len() > 5, "some were confirmed: {}", stored.len());
    let there = broker.bodies("box");
    for body in stored {
        assert!(there.contains(&body.clone().into_bytes()), "{body} was answered 202 and is not there");
    }
    assert!(run.terminate(seconds(30)).success());
}

#[test]
fn a17_a_message_that_the_broker_mangles_is_delivered_when_it_stops_doing_so() {
    let broker = FakeBroker::start();
    let target = Recorder::start();
    let run = start(&broker, Some(&target));
    target.await_hits(1, seconds(10));
    let mut mangled = 0;
    broker.at_delivery(move |handed: &Handed| {
        mangled += 1;
        match mangled {
            1 => handed.line.raw(b"\xff\xff\xff\xff\xff\xff\xff\xff"),
            2 => {
                handed.head();
                handed.line.header(handed.channel, 100, &handed.message.properties);
                handed.line.body(handed.channel, b"cut");
                handed.head();
            }
            3 => handed.head_on(77),
            4 => handed.cancel(),
            _ => return true,
        }
        false
    });
    let hits = target.hits().len();
    for body in ["1", "2", "3"] {
        eventually("it is stored", seconds(20), || (run.post("/in", &[], body).status == 202).then_some(()));
    }
    eventually("all three are delivered", seconds(30), || (target.hits().len() >= hits + 3).then_some(()));
    let bodies: Vec<Vec<u8>> = target.hits().into_iter().skip(hits).map(|hit| hit.body).collect();
    assert_eq!(bodies, [b"1", b"2", b"3"], "in order, none twice");
    run.await_log(&["connection to the broker lost"], seconds(5));
}
