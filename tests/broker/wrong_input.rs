//! Brokers that are not what the manifests say: each a clear condition, no crash loop, no 202, nothing lost.

use std::net::TcpListener;
use std::time::Instant;

use serde_json::Value;

use super::client::{Client, long};
use super::common::{Share, condition, connected, is, say, shared};
use crate::support::{Recorder, Setup, Stagepost, manifest, millis, quiet_port, seconds};

const QUEUE: &str = "default.box";

/// POST `/in` into `box`, from there to the target; the broker by a Secret with these keys.
fn with(target: &Recorder, store: &str, keys: &[(&str, &str)]) -> Stagepost {
    let keys: Vec<String> =
        keys.iter().map(|(key, value)| format!("  {key}: {}\n", serde_json::json!(value))).collect();
    let secret =
        format!("---\napiVersion: v1\nkind: Secret\nmetadata: {{name: rabbitmq}}\nstringData:\n{}", keys.concat());
    Setup::manifests(super::common::line(target, store, "") + &secret).start()
}

/// Not connected, and why; every caller is told so at once, and the log says it a few times and not for ever.
#[track_caller]
fn refused(what: &str, run: &Stagepost, words: &[&str]) {
    let down = |status: &Value| is(status, "BrokerConnected", "False") && is(status, "Ready", "False");
    let status = run.await_status("MessageStore", "box", seconds(20), down);
    let said = condition(&status, "BrokerConnected");
    say(&format!("{what}: {}: {}", said["reason"], said["message"]));
    let message = format!("{} {}", said["reason"], said["message"]);
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
    for kind in ["IngressRoute", "ForwardingProcessor"] {
        let name = if kind == "IngressRoute" { "in" } else { "out" };
        assert!(is(&run.status(kind, name), "BrokerConnected", "False"), "{kind}");
    }
    let asked = Instant::now();
    let answer = run.post("/in", &[], "not stored");
    assert_eq!((answer.status, answer.header("retry-after").is_some()), (503, true));
    assert!(asked.elapsed() < seconds(1), "known down, and the caller waited {:?}", asked.elapsed());
    std::thread::sleep(seconds(3));
    let told = run.log().iter().filter(|line| line.contains("WARN") || line.contains("ERROR")).count();
    assert!(told < 12, "{told} warnings:\n{}", run.log().join("\n"));
}

/// The Secret is put right, and that is all it takes.
#[track_caller]
fn repaired(run: &Stagepost, target: &Recorder, wrong: &str, right: &str) {
    let hits = target.count();
    run.edit("stagepost.yaml", wrong, right);
    connected(run, "box");
    assert_eq!(run.post("/in", &[], "stored").status, 202);
    target.await_hits(hits + 1, seconds(15));
    assert_eq!(target.texts().last().map(String::as_str), Some("stored"));
}

fn keys<'a>(share: &'a Share, port: &'a str, password: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![("host", "127.0.0.1"), ("port", port), ("username", "guest"), ("password", password), ("vhost", &share.name)]
}

#[test]
fn a_wrong_password_is_named_and_the_right_one_taken_up() {
    let Some(share) = shared() else { return };
    let target = Recorder::start();
    let run = with(&target, "queue: {}", &keys(&share, &share.rabbit.port.to_string(), "not-the-password"));
    refused("a wrong password", &run, &["AuthenticationFailed"]);
    let secret = run.log().into_iter().find(|line| line.contains("not-the-password"));
    assert_eq!(secret, None, "the password is in the log");
    repaired(&run, &target, "not-the-password", "guest");
}

#[test]
fn a_missing_virtual_host_is_named_and_taken_up_when_it_is_made() {
    let Some(share) = shared() else { return };
    let target = Recorder::start();
    let missing = format!("{}-missing", share.name);
    let uri = format!("{}-missing", share.uri);
    let run = with(&target, "queue: {}", &[("uri", &uri)]);
    refused("a missing virtual host", &run, &["NotFound", "virtual host"]);
    share.rabbit.virtual_host(&missing);
    connected(&run, "box");
    assert_eq!(run.post("/in", &[], "stored").status, 202);
    target.await_hits(1, seconds(15));
}

#[test]
fn a_broker_without_tls_is_never_spoken_to_in_plain_when_tls_was_asked_for() {
    let Some(share) = shared() else { return };
    let target = Recorder::start();
    let uri = share.uri.replace("amqp://", "amqps://");
    let run = with(&target, "queue: {}", &[("uri", &uri)]);
    refused("amqps to a plain broker", &run, &["TlsFailed"]);
    assert_eq!(Client::connect(&share.uri).look(QUEUE), None, "it went on in plain text");
    repaired(&run, &target, "amqps://", "amqp://");
}

#[test]
fn a_host_that_swallows_packets_is_given_up_in_time_and_nobody_waits_for_it() {
    let Some(share) = shared() else { return };
    let target = Recorder::start();
    // Takes connections, and never says a word.
    let silent = TcpListener::bind(("127.0.0.1", quiet_port())).unwrap();
    let port = silent.local_addr().unwrap().port().to_string();
    let begun = Instant::now();
    let run = with(&target, "queue: {}", &keys(&share, &port, "guest"));
    let first = run.post("/in", &[], "while the first connect is pending");
    say(&format!("a silent host: the first caller is told {} after {:.1?}", first.status, begun.elapsed()));
    assert_eq!(first.status, 503);
    assert!(begun.elapsed() < seconds(13));
    refused("a silent host", &run, &["TimedOut"]);
    let right = format!("port: \"{}\"", share.rabbit.port);
    repaired(&run, &target, &format!("port: \"{port}\""), &right);
}

#[test]
fn a_port_where_nobody_listens_is_named_with_what_refused_it() {
    let Some(share) = shared() else { return };
    let target = Recorder::start();
    let port = quiet_port().to_string();
    let run = with(&target, "queue: {}", &keys(&share, &port, "guest"));
    refused("a closed port", &run, &["Refused"]);
    let right = format!("port: \"{}\"", share.rabbit.port);
    repaired(&run, &target, &format!("port: \"{port}\""), &right);
}

#[test]
fn a_queue_with_other_arguments_is_a_mismatch_that_names_the_argument_and_the_remedy() {
    let Some(share) = shared() else { return };
    let target = Recorder::start();
    let client = Client::connect(&share.uri);
    let cases = [
        ("x-max-length", vec![("x-queue-type", long("quorum")), ("x-max-length", lapin::types::AMQPValue::LongInt(9))]),
        ("x-queue-type", vec![("x-queue-type", long("classic"))]),
    ];
    for (argument, arguments) in cases {
        let mut arguments = arguments;
        if argument == "x-max-length" {
            arguments.push(("x-delivery-limit", lapin::types::AMQPValue::LongInt(1_000_000)));
            arguments.push(("x-single-active-consumer", lapin::types::AMQPValue::Boolean(true)));
        }
        client.declare(QUEUE, arguments);
        let run = with(&target, "queue: {}", &[("uri", &share.uri)]);
        let mismatch = |status: &Value| condition(status, "Ready")["reason"] == "QueueMismatch";
        let status = run.await_status("MessageStore", "box", seconds(20), mismatch);
        let message = condition(&status, "Ready")["message"].as_str().unwrap_or_default().to_owned();
        say(&format!("a mismatch: {message}"));
        let kind = if argument == "x-queue-type" { "type" } else { argument };
        for word in [QUEUE, kind, "create a new store and drain this one with"] {
            assert!(message.contains(word), "`{word}` is not in: {message}");
        }
        assert_eq!(message.matches("drain this one").count(), 1, "{message}");
        assert_eq!(run.post("/in", &[], "not stored").status, 503);
        assert_eq!(client.depth(QUEUE), 0);
        client.delete_queue(QUEUE);
        run.await_status("MessageStore", "box", seconds(20), |status| is(status, "Ready", "True"));
        assert_eq!(run.post("/in", &[], "stored").status, 202);
        let hits = target.count();
        target.await_hits(hits.max(1), seconds(15));
        drop(run);
        client.delete_queue(QUEUE);
    }
}

#[test]
fn an_existing_queue_that_is_missing_is_waited_for() {
    let Some(share) = shared() else { return };
    let target = Recorder::start();
    let run = with(&target, "queue: {name: theirs, management: Existing}", &[("uri", &share.uri)]);
    let missing = |status: &Value| is(status, "Ready", "False") && condition(status, "Ready")["reason"] == "NotFound";
    let status = run.await_status("MessageStore", "box", seconds(20), missing);
    let message = condition(&status, "Ready")["message"].to_string();
    say(&format!("an existing queue that is missing: {message}"));
    assert!(message.contains("theirs"), "{message}");
    assert_eq!(run.post("/in", &[], "not stored").status, 503);
    let client = Client::connect(&share.uri);
    assert_eq!(client.look("theirs"), None, "it was declared");
    client.declare("theirs", [("x-max-priority", lapin::types::AMQPValue::LongInt(3))]);
    run.await_status("MessageStore", "box", seconds(20), |status| is(status, "Ready", "True"));
    assert_eq!(run.post("/in", &[], "stored").status, 202);
    target.await_hits(1, seconds(15));
}

#[test]
fn an_exchange_that_routes_nowhere_is_a_503_for_each_and_they_go_through_when_somebody_binds() {
    let Some(share) = shared() else { return };
    let target = Recorder::start();
    let topic = "exchange: {name: topic, type: Topic}\nroutingKey: nobody.listens";
    let yaml = [manifest::store("box", topic), manifest::route("in", "/in", "box")].concat();
    let run = Setup::manifests(&yaml).arg("--amqp").arg(&share.uri).start();
    connected(&run, "box");
    for _ in 0..20 {
        let answer = run.post("/in", &[], "not stored");
        assert_eq!((answer.status, answer.header("retry-after").is_some()), (503, true));
    }
    assert_eq!(run.metric("stagepost_stored_total", &["result=\"unroutable\""]), 20);
    let bound = [
        manifest::store(
            "bound",
            "queue: {}\nexchange: {name: topic, type: Topic}\nbindings: ['nobody.#']\nroutingKey: x",
        ),
        manifest::processor("out", "bound", &target.url(), ""),
    ];
    run.write("bound.yaml", &bound.concat());
    connected(&run, "bound");
    assert_eq!(run.post("/in", &[], "stored").status, 202);
    target.await_hits(1, seconds(15));
    target.stays_at(1, millis(300));
}
