//! A15, A16, E2 to E4, M7: messages that others put into our queues, that kill, or that are sent back again and again.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable};

use super::client::{Client, headers, long};
use super::common::{QUORUM, line, say, shared, start};
use crate::support::{Recorder, Reply, Setup, Stagepost, eventually, manifest, millis, seconds};

const QUEUE: &str = "default.box";
const DEAD: &str = "default.box.dlc";

/// How many processes said, of the only message in question, that they may die of it.
fn suspected(run: &Stagepost) -> usize {
    let told = run.log().into_iter().filter(|line| line.contains("came back again and again"));
    told.inspect(|line| assert!(line.contains("id-0"), "{line}")).count()
}

#[test]
fn a15_a_message_that_kills_the_worker_30_times_is_still_first_and_its_neighbours_are_kept() {
    let Some(share) = shared() else { return };
    let target = Recorder::answering(|hit| if hit.text() == "poison" { Reply::hang() } else { Reply::status(200) });
    let yaml = line(&target, QUORUM, "");
    let mut run = start(&share.uri, &yaml);
    let client = Client::connect(&share.uri);
    assert_eq!(run.post("/in", &[], "before").status, 202);
    target.await_hits(1, seconds(5));
    client.fill(QUEUE, ["poison", "second", "third"].map(str::to_owned));
    for round in 0..30 {
        let hits = target.await_hits(2 + round, seconds(20));
        let hit = hits.last().unwrap();
        assert_eq!(hit.text(), "poison");
        assert_eq!(hit.header("stagepost-redelivered").is_some(), round > 0, "round {round}: {hit:?}");
        eventually("it is suspected from the fifth time on that it came back", seconds(5), || {
            (suspected(&run) == round.saturating_sub(4)).then_some(())
        });
        run.restart();
    }
    target.await_hits(32, seconds(20));
    target.script(|_| Reply::status(200));
    run.restart();
    let hits = target.await_hits(35, seconds(20));
    let last: Vec<_> = hits[32..].iter().map(crate::support::Hit::text).collect();
    assert_eq!(last, ["poison", "second", "third"]);
    assert_eq!(hits[32].header("stagepost-redelivered").as_deref(), Some("true"));
    assert_eq!(hits[32].header("stagepost-message-id").as_deref(), Some("id-0"));
    run.await_depth("box", 0, seconds(5));
    target.stays_at(35, millis(300));
}

#[test]
fn e2_messages_that_are_returned_25_times_are_all_there_and_in_order() {
    let Some(share) = shared() else { return };
    let target = Recorder::statuses(&[503]);
    let spec = "retry: {maxRedeliveries: -1, interval: 500ms, backoffFactor: 1, jitter: 0}";
    let yaml = line(&target, QUORUM, spec);
    let run = Setup::manifests(yaml).arg("--amqp").arg(&share.uri).env("STAGEPOST_HOLD_LIMIT", "300ms").start();
    super::common::connected(&run, "box");
    let bodies: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    let client = Client::connect(&share.uri);
    client.fill(QUEUE, bodies.clone());
    eventually("all went back 30 times", seconds(60), || {
        (run.metric("stagepost_settled_total", &["result=\"returned\""]) >= 600).then_some(())
    });
    let before = target.count();
    target.script(|_| Reply::status(200));
    let hits = target.await_hits(before + 20, seconds(20));
    say(&format!("E2: {before} attempts at the first of them"));
    let delivered: Vec<_> = hits[before..].iter().map(crate::support::Hit::text).collect();
    assert_eq!(delivered, bodies);
    // The attempts were counted on.
    let attempt = hits[before].header("stagepost-attempt").unwrap().parse::<usize>().unwrap();
    assert_eq!(attempt, before + 1);
    assert_eq!(client.depth(DEAD), 0);
}

/// What no well-behaved client would send.
fn malformed() -> Vec<(&'static str, BasicProperties)> {
    let nested = (0..30).fold(AMQPValue::LongInt(1), |inner, _| {
        let mut table = FieldTable::default();
        table.insert("deeper".into(), inner);
        AMQPValue::FieldTable(table)
    });
    let mut list = FieldArray::default();
    for value in [AMQPValue::Void, AMQPValue::Boolean(true), AMQPValue::Double(-0.5), long([0xff, 0xfe])] {
        list.push(value);
    }
    let list = AMQPValue::FieldArray(list);
    let of_ours = [
        ("x-stagepost-method", AMQPValue::LongInt(-1)),
        ("x-stagepost-path", nested.clone()),
        ("x-stagepost-query", long([0xc3, 0x28])),
        ("x-stagepost-route", list.clone()),
        ("x-stagepost-deadline", long("yesterday")),
        ("x-stagepost-death-attempts", long("many")),
    ];
    let framing = [
        ("content-length", long("7")),
        ("transfer-encoding", long("chunked")),
        ("host", long("elsewhere")),
        ("connection", long("close")),
        ("http-content-length", AMQPValue::LongInt(3)),
        ("http-transfer-encoding", long("chunked")),
        ("http-host", long("elsewhere")),
        ("stagepost-attempt", long("77")),
    ];
    let text = BasicProperties::default();
    vec![
        ("no properties", text.clone()),
        ("nested tables", headers([("nested", nested)])),
        ("a list", headers([("list", list)])),
        ("a header of 64 KiB", headers([("large", long(vec![b'x'; 64 << 10]))])),
        ("no UTF-8", headers([("bytes", long([0xff, 0xfe, 0x00, 0x80])), ("http-bytes", long([0xff]))])),
        ("line ends", headers([("lines", long("a\r\nInjected: yes")), ("http-x", long("b\r\nInjected: yes"))])),
        ("names", headers([("sp ace", long("1")), ("co:lon", long("2")), ("", long("3")), ("naïve", long("4"))])),
        ("a negative timestamp", text.clone().with_timestamp(u64::MAX)),
        ("a timestamp in the far future", text.clone().with_timestamp(u64::MAX / 4)),
        ("ours, of wrong types", headers(of_ours)),
        ("framing", headers(framing)),
        ("a content type that is none", text.clone().with_content_type("\r\nInjected: yes".into())),
        ("an id with line ends", text.clone().with_message_id("id\r\nInjected: yes".into())),
        ("an empty id", text.clone().with_message_id("".into()).with_correlation_id("\u{0}".into())),
        ("a reply to nowhere", text.with_reply_to("amq.gen-nobody".into()).with_type("odd".into())),
    ]
}

#[test]
fn a16_malformed_headers_of_others_are_delivered_or_dead_with_a_reason_and_block_nobody() {
    let Some(share) = shared() else { return };
    let target =
        Recorder::answering(|hit| if hit.text().starts_with("dead") { Reply::status(404) } else { Reply::status(200) });
    let run = start(&share.uri, &line(&target, QUORUM, ""));
    let client = Client::connect(&share.uri);
    let cases = malformed();
    let count = cases.len();
    // Each of them is delivered, and each is a dead letter.
    for fate in ["live", "dead"] {
        for (what, properties) in cases.clone() {
            client.publish("", QUEUE, properties, format!("{fate}: {what}").as_bytes());
        }
    }
    assert_eq!(run.post("/in", &[], "behind them").status, 202);
    eventually("the last one is delivered", seconds(20), || {
        target.texts().contains(&"behind them".to_owned()).then_some(())
    });
    run.await_depth("box", 0, seconds(5));
    let delivered = target.texts().iter().filter(|text| text.starts_with("live")).count();
    let dead = client.take(DEAD, count * 2 - delivered);
    for dead in &dead {
        let body = String::from_utf8_lossy(&dead.body).into_owned();
        let reason = dead.header("x-stagepost-death-reason");
        assert!(reason.is_some(), "{body}: {:?}", dead.properties);
        if body.starts_with("live") {
            say(&format!(
                "A16: {body}: dead, {} {}",
                reason.unwrap(),
                dead.header("x-stagepost-death-last-error").unwrap_or_default()
            ));
        }
    }
    assert_eq!(delivered + dead.len(), 2 * count);
    assert_eq!(client.depth(DEAD), 0);
    for hit in target.hits() {
        assert_eq!(hit.header("injected"), None, "{hit:?}");
        assert_eq!(hit.header("host"), Some(target.host()), "{hit:?}");
        assert_eq!(hit.header("stagepost-attempt").as_deref(), Some("1"), "{hit:?}");
        assert_eq!(hit.header("content-length"), Some(hit.body.len().to_string()), "{hit:?}");
    }
    let bugs: Vec<_> = run.log().into_iter().filter(|line| line.contains("a bug")).collect();
    assert!(bugs.is_empty(), "{bugs:?}");
}

#[test]
fn m7_random_bytes_of_another_client_are_forwarded_as_they_are_and_the_next_message_too() {
    let Some(share) = shared() else { return };
    let target = Recorder::start();
    let run = start(&share.uri, &line(&target, QUORUM, ""));
    let client = Client::connect(&share.uri);
    let mut random = crate::support::Random::new();
    let bytes: Vec<u8> = (0..10_000).map(|_| u8::try_from(random.between(0, 256)).unwrap()).collect();
    client.publish("", QUEUE, BasicProperties::default(), &bytes);
    client.publish("", QUEUE, BasicProperties::default().with_content_type("application/json".into()), &bytes);
    client.publish("", QUEUE, BasicProperties::default(), b"");
    assert_eq!(run.post("/in", &[], "next").status, 202);
    let hits = target.await_hits(4, seconds(10));
    let bodies: Vec<_> = hits.iter().map(|hit| hit.body.clone()).collect();
    assert!(bodies == [bytes.clone(), bytes, Vec::new(), b"next".to_vec()]);
    run.await_depth("box", 0, seconds(5));
}

#[test]
fn e4_what_another_user_sent_with_an_expiration_and_copies_is_a_dead_letter_once_and_stays_one() {
    let Some(share) = shared() else { return };
    let target = Recorder::answering(|_| Reply::status(404));
    let run = start(&share.uri, &line(&target, QUORUM, ""));
    share.rabbit.ctl(&["add_user", "another", "secret"]);
    share.rabbit.ctl(&["set_permissions", "-p", &share.name, "another", ".*", ".*", ".*"]);
    let client = Client::connect(&share.uri.replace("guest:guest", "another:secret"));
    client.declare("copies", []);
    let mut copies = FieldArray::default();
    copies.push(long("copies"));
    let properties = headers([("CC", AMQPValue::FieldArray(copies)), ("http-x-kept", long("kept"))]);
    let properties = properties.with_user_id("another".into()).with_expiration("1000".into());
    client.publish("", QUEUE, properties.with_message_id("once".into()).with_type("order".into()), b"foreign");
    eventually("it is a dead letter", seconds(5), || (client.depth(DEAD) == 1).then_some(()));
    assert_eq!(run.post("/in", &[], "next").status, 202);
    target.await_hits(2, seconds(5));
    eventually("the next one is one too", seconds(5), || (client.depth(DEAD) == 2).then_some(()));
    // Longer than the foreign expiration; the first copy was the sender's wish, and expires.
    std::thread::sleep(millis(1500));
    assert_eq!(client.depth(DEAD), 2, "a dead letter does not expire");
    assert_eq!(client.depth("copies"), 0, "and is not copied");
    let dead = client.take(DEAD, 2);
    let properties = &dead[0].properties;
    assert_eq!((dead[0].id(), dead[0].body.as_slice()), ("once".to_owned(), &b"foreign"[..]));
    assert_eq!((properties.user_id(), properties.expiration()), (&None, &None));
    assert_eq!(properties.kind().as_ref().map(ToString::to_string).as_deref(), Some("order"));
    let header = |name: &str| dead[0].header(name).unwrap_or_default();
    assert_eq!(header("x-stagepost-original-user-id"), "another");
    assert_eq!(header("x-stagepost-original-expiration"), "1000");
    assert_eq!(header("x-stagepost-original-routing-key"), QUEUE);
    assert_eq!((header("http-x-kept"), header("CC")), ("kept".to_owned(), String::new()));
    run.await_depth("box", 0, seconds(5));
}

#[test]
fn e3_headers_that_a_broker_or_we_would_obey_reach_neither() {
    let Some(share) = shared() else { return };
    let target = Recorder::answering(|_| Reply::status(404));
    let routes = [manifest::store("box", QUORUM), manifest::route("in", "/in", "box")].concat();
    let run = start(&share.uri, &routes);
    let sent = [
        ("X-Death", "one"),
        ("X-Death", "two"),
        ("CC", "copies"),
        ("BCC", "copies"),
        ("x-delay", "1000"),
        ("X-Stagepost-Path", "/elsewhere"),
        ("X-Stagepost-Method", "DELETE"),
        ("Stagepost-Attempt", "77"),
        ("x-match", "any"),
    ];
    let client = Client::connect(&share.uri);
    client.declare("copies", []);
    assert_eq!(run.post("/in", &sent, "first").status, 202);
    let stored = client.take(QUEUE, 1);
    let names = stored[0].names();
    say(&format!("E3: on the broker: {names:?}"));
    for name in &names {
        assert!(name.starts_with("http-") || name.starts_with("x-stagepost-"), "{name} means something elsewhere");
    }
    assert_eq!(stored[0].header("x-stagepost-path").as_deref(), Some("/in"));
    assert_eq!(stored[0].header("x-stagepost-method").as_deref(), Some("POST"));
    assert!(!names.iter().any(|name| name.contains("stagepost-attempt")));
    assert_eq!(client.depth("copies"), 0);
    drop(run);
    // And on to the target, and as a dead letter.
    let run = start(&share.uri, &line(&target, QUORUM, ""));
    assert_eq!(run.post("/in", &sent, "second").status, 202);
    let hits = target.await_hits(1, seconds(5));
    assert_eq!((hits[0].method.as_str(), hits[0].path.as_str()), ("POST", "/"));
    assert_eq!(hits[0].all("x-death"), [b"one".to_vec(), b"two".to_vec()]);
    assert_eq!(hits[0].header("stagepost-attempt").as_deref(), Some("1"));
    let dead = client.take(DEAD, 1);
    assert_eq!(dead[0].body, b"second");
    assert_eq!(client.depth("copies"), 0);
    run.await_depth("box", 0, seconds(5));
}

#[test]
fn e8_large_bodies_headers_and_keys_are_taken_or_clearly_refused_and_harm_nobody_on_the_channel() {
    let Some(share) = shared() else { return };
    let target = Recorder::start();
    let rules = "rules:\n- name: post\n  path: /in\n  storeRef: {name: box}\n  routingKey: \"{{ headers['x-key'] | default('bound') }}\"\n\
                 limits: {maxBodySize: 15Mi, maxHeaderSize: 64Ki}";
    let store = "queue: {}\nexchange: {name: keys, type: Topic}\nroutingKey: bound\nbindings: ['#']";
    let yaml = [
        manifest::store("box", store),
        manifest::object("IngressRoute", "in", rules),
        manifest::processor("out", "box", &target.url(), "ordering: None\nconcurrency: 4"),
    ];
    let run = start(&share.uri, &yaml.concat());
    let mut traffic = super::traffic::Traffic::start(&run, 4, millis(10));
    let large = vec![b'b'; 15 << 20];
    assert_eq!(run.post("/in", &[], &large).status, 202);
    for (size, what) in [((15 << 20) + 1, "one byte too many"), (20 << 20, "20 MiB")] {
        let mut caller = crate::support::Connection::open(run.listen()).unwrap();
        let head = format!("POST /in HTTP/1.1\r\nHost: box\r\nContent-Length: {size}\r\n\r\n");
        caller.send_raw(head.as_bytes()).unwrap();
        assert_eq!(caller.answer().unwrap().status, 413, "{what}");
    }
    let value = "h".repeat(1000);
    let many: Vec<String> = (0..60).map(|number| format!("x-large-{number}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), value.as_str())).collect();
    assert_eq!(run.post("/in", &many, "headers").status, 202);
    let more: Vec<(&str, &str)> = many.iter().chain(&many[..10]).copied().collect();
    assert_eq!(run.post("/in", &more, "too many headers").status, 431);
    let key = "k".repeat(255);
    assert_eq!(run.post("/in", &[("x-key", &key)], "key").status, 202);
    let key = "k".repeat(300);
    let refused = run.post("/in", &[("x-key", &key)], "too long a key");
    say(&format!("E8: a key of 300 bytes: {} {}", refused.status, refused.text()));
    assert!((400..500).contains(&refused.status), "{refused:?}");
    std::thread::sleep(seconds(1));
    traffic.finish();
    assert!(traffic.calls().iter().all(|call| call.status == Some(202)), "others were harmed");
    let sent = traffic.checker().sent();
    let hits = target.await_hits(sent + 3, seconds(20));
    assert!(hits.iter().any(|hit| hit.body == large));
    let headers = hits.iter().find(|hit| hit.text() == "headers").unwrap();
    assert!(many.iter().all(|(name, value)| headers.header(name).as_deref() == Some(value)));
    target.stays_at(sent + 3, millis(300));
    run.await_depth("box", 0, seconds(5));
}
