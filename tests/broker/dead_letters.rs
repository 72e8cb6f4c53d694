//! C15, C16, R14: dead letter stores that take nothing, and moves from store to store that are cut off.

use std::collections::BTreeMap;
use std::time::Instant;

use super::client::Client;
use super::common::{QUORUM, Share, condition, connected, launch, say, shared, start};
use super::proxy::{Proxy, Way, Which};
use crate::support::{Random, Recorder, Reply, Setup, Stagepost, eventually, is_full, manifest, millis, seconds};

const SOURCE: &str = "default.box";

/// POST `/in` into `box`; what the target refuses goes to the store `dead`.
fn line(target: &Recorder, dead: &str) -> String {
    let spec = "onFailure: {action: DeadLetter, deadLetterStoreRef: {name: dead}}";
    [
        manifest::store("box", QUORUM),
        dead.to_owned(),
        manifest::route("in", "/in", "box"),
        manifest::processor("out", "box", &target.url(), spec),
    ]
    .concat()
}

fn refusing() -> Recorder {
    Recorder::answering(|hit| Reply::status(if hit.text() == "good" { 200 } else { 404 }))
}

/// The message stays at the head and is not tried at the target again, whatever happens meanwhile.
#[track_caller]
fn assert_held(share: &Share, run: &Stagepost, target: &Recorder, hits: usize, waiting: u64) {
    let held = |status: &serde_json::Value| condition(status, "Delivering")["reason"] == "DeadLetterStoreUnavailable";
    run.await_status("ForwardingProcessor", "out", seconds(15), held);
    target.stays_at(hits, seconds(1));
    // A quorum queue counts what it holds every few seconds only.
    eventually("none is acknowledged without a dead letter", seconds(15), || {
        share.rabbit.queue(&share.name, SOURCE).filter(|(ready, held)| ready + held == waiting)
    });
}

#[test]
fn c15_r14_a_dead_letter_store_that_is_full_gets_the_message_when_there_is_room() {
    let Some(share) = shared() else { return };
    let target = refusing();
    let dead = manifest::store("dead", "queue: {type: Classic, maxLength: 1}");
    let mut run = start(&share.uri, &line(&target, &dead));
    connected(&run, "dead");
    let client = Client::connect(&share.uri);
    client.fill("default.dead", ["in the way".to_owned()]);
    for body in ["first", "good"] {
        assert_eq!(run.post("/in", &[], body).status, 202);
    }
    target.await_hits(1, seconds(5));
    assert_held(&share, &run, &target, 1, 2);
    // A crash forgets the attempt, and no more.
    run.kill9();
    launch(&mut run);
    target.await_hits(2, seconds(10));
    assert_held(&share, &run, &target, 2, 2);
    assert_eq!(client.take("default.dead", 1)[0].body, b"in the way");
    target.await_hits(3, seconds(30));
    assert_eq!(target.texts(), ["first", "first", "good"]);
    let moved = client.take("default.dead", 1);
    assert_eq!(moved[0].body, b"first");
    assert_eq!(moved[0].header("x-stagepost-death-reason").as_deref(), Some("Rejected"));
    run.await_depth("box", 0, seconds(5));
}

#[test]
fn c15_r14_a_dead_letter_queue_that_was_deleted_gets_the_message_when_it_is_back() {
    let Some(share) = shared() else { return };
    let target = refusing();
    let client = Client::connect(&share.uri);
    // Declared by us, and by somebody else.
    for (dead, ours) in [("queue: {name: ours}", true), ("queue: {name: theirs, management: Existing}", false)] {
        let name = if ours { "ours" } else { "theirs" };
        if !ours {
            client.declare(name, []);
        }
        let hits = target.count();
        let run = start(&share.uri, &line(&target, &manifest::store("dead", dead)));
        connected(&run, "dead");
        client.delete_queue(name);
        let deleted = Instant::now();
        for body in ["bad", "good"] {
            assert_eq!(run.post("/in", &[], body).status, 202);
        }
        target.await_hits(hits + 1, seconds(5));
        if !ours {
            assert_held(&share, &run, &target, hits + 1, 2);
            client.declare(name, []);
        }
        target.await_hits(hits + 2, seconds(40));
        say(&format!("C15: `{name}` deleted: moved and gone on after {:.1?}", deleted.elapsed()));
        assert_eq!(client.take(name, 1)[0].body, b"bad");
        run.await_depth("box", 0, seconds(5));
    }
    assert_eq!(target.texts(), ["bad", "good", "bad", "good"]);
}

#[test]
fn c15_r14_a_dead_letter_store_on_a_broker_that_is_away_gets_the_message_when_it_is_back() {
    let Some(share) = shared() else { return };
    let target = refusing();
    let proxy = Proxy::start(share.rabbit.port);
    let secret = |name: &str, uri: &str| {
        format!("---\napiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\nstringData: {{uri: '{uri}'}}\n")
    };
    let dead = manifest::object("MessageStore", "dead", "broker:\n  secretRef: {name: elsewhere}\nqueue: {}");
    let yaml = line(&target, &dead) + &secret("rabbitmq", &share.uri) + &secret("elsewhere", &proxy.uri(&share.uri));
    let run = Setup::manifests(yaml).start();
    connected(&run, "box");
    connected(&run, "dead");
    for way in [Way::Up, Way::Down] {
        proxy.silence(Which::Both, way);
    }
    proxy.cut();
    for body in ["bad", "good"] {
        assert_eq!(run.post("/in", &[], body).status, 202);
    }
    target.await_hits(1, seconds(5));
    assert_held(&share, &run, &target, 1, 2);
    let back = Instant::now();
    proxy.cut();
    proxy.speak();
    target.await_hits(2, seconds(60));
    say(&format!("C15: broker of the dead letters away: moved and gone on {:.1?} after it was back", back.elapsed()));
    assert_eq!(target.texts(), ["bad", "good"]);
    assert_eq!(Client::connect(&share.uri).take("default.dead", 1)[0].body, b"bad");
    run.await_depth("box", 0, seconds(5));
}

#[test]
fn c15_a_message_of_16_mib_of_another_client_is_a_dead_letter_with_its_headers() {
    let Some(share) = shared() else { return };
    let target = refusing();
    let run = start(&share.uri, &line(&target, &manifest::store("dead", "")));
    connected(&run, "dead");
    let client = Client::connect(&share.uri);
    let large = vec![b'l'; 16 << 20];
    let properties = super::client::headers([("large", super::client::long(vec![b'h'; 60 << 10]))]);
    client.publish("", SOURCE, properties, &large);
    assert_eq!(run.post("/in", &[], "good").status, 202);
    target.await_hits(2, seconds(20));
    let dead = client.take("default.dead", 1);
    assert!(dead[0].body == large);
    assert_eq!(dead[0].header("x-stagepost-death-reason").as_deref(), Some("Rejected"));
    assert_eq!(dead[0].header("large").map(|value| value.len()), Some(60 << 10));
    run.await_depth("box", 0, seconds(5));
}

#[test]
fn c16_a_move_from_store_to_store_that_is_killed_again_and_again_loses_nothing_and_goes_on() {
    let Some(share) = shared() else { return };
    let moved: usize = if is_full() { 100_000 } else { 20_000 };
    let mut random = Random::new();
    let client = Client::connect(&share.uri);
    let yaml = [
        manifest::store("box", "queue: {type: Quorum, consumers: Competing}"),
        manifest::store("other", ""),
        manifest::object(
            "ForwardingProcessor",
            "out",
            "storeRef: {name: box}\ntarget: {storeRef: {name: other}}\nordering: None\nconcurrency: 64",
        ),
    ];
    let yaml = yaml.concat();
    // Two at once; the queue is there when one of them is.
    let mut runs = vec![start(&share.uri, &yaml)];
    connected(&runs[0], "other");
    runs[0].kill9();
    client.fill(SOURCE, (0..moved).map(|number| number.to_string()));
    runs[0].launch();
    runs.push(start(&share.uri, &yaml));
    let begun = Instant::now();
    let mut kills = 0;
    while client.depth(SOURCE) > 2000 {
        let before = client.depth("default.other");
        eventually("it goes on", seconds(30), || (client.depth("default.other") > before + 500).then_some(()));
        std::thread::sleep(millis(random.between(1, 300)));
        if kills < 6 {
            runs[kills % 2].restart();
            kills += 1;
        }
    }
    for run in &runs {
        run.await_depth("box", 0, seconds(60));
    }
    eventually("nothing is under way", seconds(20), || {
        share.rabbit.queue(&share.name, SOURCE).filter(|q| *q == (0, 0))
    });
    say(&format!("C16: {moved} moved in {:.1?} over {kills} kills", begun.elapsed()));
    drop(runs);
    let count = usize::try_from(client.depth("default.other")).unwrap();
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for taken in client.take("default.other", count) {
        assert_eq!(taken.id(), format!("id-{}", String::from_utf8_lossy(&taken.body)));
        *times.entry(taken.id()).or_default() += 1;
    }
    say(&format!("C16: {} arrived, {} of them twice", times.len(), count - times.len()));
    assert_eq!(times.len(), moved, "lost");
    assert!(kills >= 3, "too few kills: {kills}");
    // What was in flight, and what was settled and not yet acknowledged: a window at most.
    assert!(count - times.len() <= kills * 128, "{} came twice", count - times.len());
}
