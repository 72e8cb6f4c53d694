//! R9: stores that take over for one another, from one broker to the next, and are drained back.

use std::time::Instant;

use super::client::Client;
use super::common::{connected, say, shared};
use super::proxy::{Proxy, Way, Which};
use crate::support::{Recorder, Setup, eventually, manifest, millis, quiet_port, seconds};

fn secret(name: &str, uri: &str) -> String {
    format!("---\napiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\nstringData: {{uri: '{uri}'}}\n")
}

fn store(name: &str, secret: &str, spec: &str) -> String {
    let queue = if spec.contains("queue:") { "" } else { "\nqueue: {}" };
    manifest::object("MessageStore", name, &format!("broker:\n  secretRef: {{name: {secret}}}\n{spec}{queue}"))
}

#[test]
fn r9_with_a_primary_out_of_reach_the_failover_takes_the_message_after_the_retries() {
    let Some(share) = shared() else { return };
    let primary = "failoverStoreRef: {name: second}\ndeadline: 60s\n\
                   retry: {maxRetries: 4, interval: 2s, backoffFactor: 1.5, maxInterval: 15s}";
    let nowhere = format!("amqp://guest:guest@127.0.0.1:{}/%2f", quiet_port());
    let yaml = [
        secret("primary", &nowhere),
        secret("elsewhere", &share.uri),
        store("box", "primary", primary),
        store("second", "elsewhere", "queue: {type: Classic, maxLength: 1}"),
        manifest::route("in", "/in", "box"),
    ];
    let run = Setup::manifests(yaml.concat()).start();
    connected(&run, "second");
    let begun = Instant::now();
    let answer = run.post("/in", &[], "first");
    say(&format!("R9: {} after {:.1?}", answer.status, begun.elapsed()));
    assert_eq!(answer.status, 202);
    // 2 + 3 + 4.5 + 6.75
    assert!((millis(15_700)..seconds(19)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert_eq!(run.metric("stagepost_stored_total", &["default/box", "result=\"failover\""]), 1);
    assert_eq!(run.metric("stagepost_stored_total", &["default/second", "result=\"ok\""]), 1);
    let client = Client::connect(&share.uri);
    assert_eq!(client.depth("default.second"), 1);
    // Now that one is full, and both refuse.
    let refused = run.post("/in", &[], "second");
    assert_eq!((refused.status, refused.header("retry-after").as_deref()), (503, Some("1")));
    assert_eq!(client.depth("default.second"), 1);
    let stored = client.take("default.second", 1);
    assert_eq!(stored[0].id(), answer.header("stagepost-message-id").unwrap());
    assert_eq!(stored[0].body, b"first");
}

#[test]
fn a_failover_store_takes_what_its_primary_can_not_and_is_drained_back_when_that_is_there_again() {
    let Some(share) = shared() else { return };
    let target = Recorder::start();
    let proxy = Proxy::start(share.rabbit.port);
    let yaml = [
        secret("primary", &proxy.uri(&share.uri)),
        secret("elsewhere", &share.uri),
        store("box", "primary", "failoverStoreRef: {name: second}\nretry: {maxRetries: 0}"),
        store("second", "elsewhere", ""),
        manifest::route("in", "/in", "box"),
        manifest::processor("out", "box", &target.url(), ""),
        manifest::object("ForwardingProcessor", "back", "storeRef: {name: second}\ntarget: {storeRef: {name: box}}"),
    ];
    let run = Setup::manifests(yaml.concat()).start();
    connected(&run, "box");
    connected(&run, "second");
    assert_eq!(run.post("/in", &[], "before").status, 202);
    target.await_hits(1, seconds(5));
    eventually("it is acknowledged", seconds(5), || {
        share.rabbit.queue(&share.name, "default.box").filter(|queue| *queue == (0, 0))
    });
    for way in [Way::Up, Way::Down] {
        proxy.silence(Which::Both, way);
    }
    proxy.cut();
    let away = Instant::now();
    let ids: Vec<_> = (0..10)
        .map(|number| {
            let answer = run.post("/in", &[], format!("{number}"));
            assert_eq!(answer.status, 202, "{number}");
            answer.header("stagepost-message-id").unwrap()
        })
        .collect();
    say(&format!("10 messages taken by the failover store in {:.1?}", away.elapsed()));
    target.stays_at(1, seconds(1));
    assert_eq!(run.processor("back")["state"], "Active");
    let back = Instant::now();
    proxy.cut();
    proxy.speak();
    let hits = target.await_hits(11, seconds(60));
    say(&format!("drained back {:.1?} after the primary was there again", back.elapsed()));
    let came: Vec<_> = hits[1..].iter().map(|hit| hit.header("stagepost-message-id").unwrap()).collect();
    assert_eq!(came, ids, "all of them, with their ids, in order");
    target.stays_at(11, millis(500));
    let client = Client::connect(&share.uri);
    eventually("nothing is left", seconds(10), || (client.depth("default.second") == 0).then_some(()));
    for dead in ["default.box.dlc", "default.second.dlc"] {
        assert_eq!(client.depth(dead), 0, "{dead}");
    }
}

#[test]
fn in_a_chain_of_three_the_first_store_that_can_takes_the_message() {
    let Some(share) = shared() else { return };
    let nowhere = format!("amqp://guest:guest@127.0.0.1:{}/%2f", quiet_port());
    let quick = "retry: {maxRetries: 1, interval: 200ms}";
    let yaml = [
        secret("primary", &nowhere),
        secret("elsewhere", &share.uri),
        store("box", "primary", &format!("failoverStoreRef: {{name: second}}\n{quick}")),
        store("second", "elsewhere", "failoverStoreRef: {name: third}\nqueue: {type: Classic, maxLength: 2}"),
        store("third", "elsewhere", "queue: {type: Classic, maxLength: 3}"),
        manifest::route("in", "/in", "box"),
    ];
    let run = Setup::manifests(yaml.concat()).start();
    connected(&run, "second");
    connected(&run, "third");
    let statuses: Vec<_> = (0..7).map(|number| run.post("/in", &[], format!("{number}")).status).collect();
    assert_eq!(statuses, [202, 202, 202, 202, 202, 503, 503]);
    let client = Client::connect(&share.uri);
    let bodies = |queue: &str, count| -> Vec<String> {
        let taken = client.take(queue, count);
        taken.iter().map(|taken| String::from_utf8_lossy(&taken.body).into_owned()).collect()
    };
    assert_eq!((client.depth("default.second"), client.depth("default.third")), (2, 3));
    assert_eq!(bodies("default.second", 2), ["0", "1"]);
    assert_eq!(bodies("default.third", 3), ["2", "3", "4"]);
    assert_eq!(run.metric("stagepost_possible_duplicates_total", &[]), 0);
}
