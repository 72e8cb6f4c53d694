//! A9: who is told that his message is stored, when the broker accepts, refuses and sends back by turns.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use stagepost::core::message::{Message, MessageId};
use stagepost::core::topology::{Consumers, Exchange, ExchangeKind, Management, Queue, QueueKind, Topology};
use stagepost::store::{Connection, MessageStore, PublishError, rabbitmq};

use super::common::{connected, judge, line, say, shared, start};
use super::traffic::Traffic;
use crate::support::checker::Saw;
use crate::support::{Recorder, Reply, Setup, eventually, manifest, millis, seconds};

const PUBLISHERS: u64 = 64;
const REFUSED_AT_ONCE: u64 = 40;

fn queue(name: &str, kind: QueueKind, max_length: Option<u64>) -> Queue {
    Queue {
        name: name.to_owned(),
        kind,
        management: Management::Declare,
        consumers: Consumers::SingleActive,
        max_length,
        max_length_bytes: None,
    }
}

/// The broker must be dropped inside the runtime, after its store.
async fn store(uri: &str, topology: &Topology) -> (Arc<dyn MessageStore>, rabbitmq::Broker) {
    let address = rabbitmq::Address::parse(uri).unwrap();
    let broker = rabbitmq::Broker::start("test", Arc::new(move || Ok(address.clone())));
    let store = broker.store("default/box", topology, seconds(10));
    let mut connection = store.connection();
    let up = connection.wait_for(|now| *now == Connection::Up);
    tokio::time::timeout(seconds(30), up).await.expect("it connects").unwrap();
    (store, broker)
}

pub(crate) fn message(publisher: u64, number: u64) -> Arc<Message> {
    Arc::new(Message::new(
        MessageId::new(format!("{publisher}-{number}")),
        format!("{publisher}-{number}").into_bytes(),
    ))
}

/// Takes everything until told that no more will come and the queue is empty. `falls_behind` after each that many
/// messages, until so many publishes more were refused: the queue is full by turns, however fast the machine is.
async fn consume(
    store: Arc<dyn MessageStore>,
    done: Arc<AtomicBool>,
    falls_behind: Option<(usize, Arc<AtomicU64>)>,
) -> HashSet<String> {
    let mut seen = HashSet::new();
    let mut consumer = store.consume(50).await.unwrap();
    loop {
        match tokio::time::timeout(millis(500), consumer.next()).await {
            Ok(delivery) => {
                let delivery = delivery.unwrap();
                assert!(seen.insert(delivery.message.id.as_str().to_owned()), "each once");
                consumer.ack(&[delivery.tag]).unwrap();
                if let Some((each, refused)) = &falls_behind
                    && seen.len().is_multiple_of(*each)
                {
                    let enough = refused.load(Ordering::Relaxed) + REFUSED_AT_ONCE;
                    while refused.load(Ordering::Relaxed) < enough && !done.load(Ordering::Acquire) {
                        tokio::time::sleep(millis(1)).await;
                    }
                }
            }
            Err(_) if done.load(Ordering::Acquire) && store.depth().await.unwrap().ready == 0 => return seen,
            Err(_) => {}
        }
    }
}

/// On the port of the store and not through the binary: what mixes confirms up is several threads on one channel, and
/// there four of them do nothing else.
async fn the_acknowledged_set_is_the_stored_set(kind: QueueKind, through: Duration) {
    let Some(share) = tokio::task::spawn_blocking(shared).await.unwrap() else { return };
    let queue = queue("default.box", kind, Some(200));
    let topology = Topology { routing_key: queue.name.clone(), queue: Some(queue), exchange: None, bindings: vec![] };
    let (store, _broker) = store(&share.uri, &topology).await;
    let done = Arc::new(AtomicBool::new(false));
    let refused = Arc::new(AtomicU64::new(0));
    let consuming = tokio::spawn(consume(store.clone(), done.clone(), Some((300, refused.clone()))));
    let end = Instant::now() + through;
    let publishers = (0..PUBLISHERS).map(|publisher| {
        let (store, refused) = (store.clone(), refused.clone());
        tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            for number in 0.. {
                if Instant::now() > end {
                    break;
                }
                let message = message(publisher, number);
                match store.publish(message.clone(), None).await {
                    Ok(()) => acknowledged.push(message.id.as_str().to_owned()),
                    Err(PublishError::Refused(_)) => {
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            acknowledged
        })
    });
    let publishers: Vec<_> = publishers.collect();
    let mut acknowledged = HashSet::new();
    for publisher in publishers {
        acknowledged.extend(publisher.await.unwrap());
    }
    done.store(true, Ordering::Release);
    let stored = consuming.await.unwrap();
    let refused = refused.load(Ordering::Relaxed);
    say(&format!(
        "A9 {kind:?}: {} acknowledged, {refused} refused, {} stored; {} acknowledged only, {} stored only",
        acknowledged.len(),
        stored.len(),
        acknowledged.difference(&stored).count(),
        stored.difference(&acknowledged).count()
    ));
    assert!(refused > 200 && acknowledged.len() > 2000, "it flips");
    assert!(acknowledged == stored);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a9_what_is_acknowledged_is_what_is_stored_on_a_classic_queue() {
    the_acknowledged_set_is_the_stored_set(QueueKind::Classic, seconds(12)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a9_what_is_acknowledged_is_what_is_stored_on_a_quorum_queue() {
    the_acknowledged_set_is_the_stored_set(QueueKind::Quorum, seconds(20)).await;
}

/// The same with an exchange: a third of all publishes has no queue.
async fn the_unroutable_are_told_and_only_they(kind: QueueKind) {
    let Some(share) = tokio::task::spawn_blocking(shared).await.unwrap() else { return };
    let topology = Topology {
        queue: Some(queue("default.box", kind, None)),
        exchange: Some(Exchange {
            name: "keys".to_owned(),
            kind: ExchangeKind::Direct,
            management: Management::Declare,
        }),
        bindings: vec!["bound".to_owned()],
        routing_key: "bound".to_owned(),
    };
    let (store, _broker) = store(&share.uri, &topology).await;
    let done = Arc::new(AtomicBool::new(false));
    let consuming = tokio::spawn(consume(store.clone(), done.clone(), None));
    let end = Instant::now() + seconds(10);
    let publishers = (0..PUBLISHERS).map(|publisher| {
        let store = store.clone();
        tokio::spawn(async move {
            let (mut acknowledged, mut unroutable, mut swapped) = (Vec::new(), 0, Vec::new());
            for number in 0.. {
                if Instant::now() > end {
                    break;
                }
                let message = message(publisher, number);
                let bound = number % 3 != 0;
                let published = store.publish(message.clone(), Some(if bound { "bound" } else { "nobody" })).await;
                match (published, bound) {
                    (Ok(()), true) => acknowledged.push(message.id.as_str().to_owned()),
                    (Err(PublishError::Unroutable(_)), false) => unroutable += 1,
                    (other, _) => swapped.push((bound, other)),
                }
            }
            (acknowledged, unroutable, swapped)
        })
    });
    let publishers: Vec<_> = publishers.collect();
    let (mut acknowledged, mut unroutable, mut swapped) = (HashSet::new(), 0, Vec::new());
    for publisher in publishers {
        let (more, count, wrong) = publisher.await.unwrap();
        acknowledged.extend(more);
        unroutable += count;
        swapped.extend(wrong);
    }
    done.store(true, Ordering::Release);
    let stored = consuming.await.unwrap();
    say(&format!(
        "mixed {kind:?}: {} acknowledged, {} stored, {unroutable} unroutable, {} answered wrongly",
        acknowledged.len(),
        stored.len(),
        swapped.len()
    ));
    assert!(unroutable > 1000 && acknowledged.len() > 2000, "a mixture");
    assert!(swapped.is_empty(), "{} of them: {:?}", swapped.len(), swapped.first());
    assert!(acknowledged == stored);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn unroutable_and_routable_publishes_are_told_apart_on_a_classic_queue() {
    the_unroutable_are_told_and_only_they(QueueKind::Classic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn unroutable_and_routable_publishes_are_told_apart_on_a_quorum_queue() {
    the_unroutable_are_told_and_only_they(QueueKind::Quorum).await;
}

#[test]
fn callers_with_unroutable_and_routable_requests_get_the_answers_that_are_theirs() {
    let Some(share) = shared() else { return };
    let target = Recorder::start();
    let rules = "rules:\n- name: post\n  path: /in\n  storeRef: {name: box}\n  routingKey: \"{{ headers['x-key'] }}\"";
    let yaml = [
        manifest::store("box", "queue: {}\nexchange: {name: keys, type: Direct}\nroutingKey: bound\nbindings: [bound]"),
        manifest::object("IngressRoute", "in", rules),
        manifest::processor("out", "box", &target.url(), "ordering: None\nconcurrency: 16"),
    ];
    let run = start(&share.uri, &yaml.concat());
    let bound = |number: u32| !number.is_multiple_of(3);
    let mut traffic = Traffic::with_headers(&run, 32, Duration::ZERO, move |id| {
        vec![("x-key", if bound(id.number) { "bound" } else { "nobody" }.to_owned())]
    });
    std::thread::sleep(seconds(8));
    traffic.finish();
    let hits = super::common::drained(&run, &target, &traffic);
    let verdict = judge("mixed requests", &traffic, &hits);
    assert!(verdict.duplicated.is_empty());
    let calls = traffic.calls();
    let wrong: Vec<_> =
        calls.iter().filter(|call| call.status != Some(if bound(call.id.number) { 202 } else { 503 })).collect();
    assert!(wrong.is_empty(), "{} of {} answered wrongly: {:?}", wrong.len(), calls.len(), wrong.first());
    assert_eq!(traffic.checker().count(Saw::Ok), hits.len());
    let secret = run.log().into_iter().find(|line| line.contains("\"sender\"") || line.contains("sender\\\""));
    assert_eq!(secret, None, "a body is in the log");
}

#[test]
fn a9_callers_of_a_full_queue_are_told_when_to_come_again_and_what_was_taken_is_delivered() {
    let Some(share) = shared() else { return };
    let target = Recorder::answering(|_| Reply::status(200).after(millis(2)));
    let store = "queue: {type: Classic, maxLength: 20}";
    let run = start(&share.uri, &line(&target, store, "ordering: None\nconcurrency: 2"));
    let mut traffic = Traffic::start(&run, 32, Duration::ZERO);
    eventually("the queue is full by turns", seconds(30), || {
        let (stored, refused) = (traffic.checker().count(Saw::Ok), traffic.checker().count(Saw::Fail));
        (stored > 500 && refused > 100).then_some(())
    });
    traffic.finish();
    let hits = super::common::drained(&run, &target, &traffic);
    let verdict = judge("a full queue", &traffic, &hits);
    assert!(verdict.duplicated.is_empty());
    assert_eq!(hits.len(), traffic.checker().count(Saw::Ok), "what was refused is not stored");
    // Nobody takes anything any more: it fills up, and says so.
    let paused = Setup::manifests([manifest::store("box", store), manifest::route("in", "/in", "box")].concat());
    drop(run);
    let run = paused.arg("--amqp").arg(&share.uri).start();
    connected(&run, "box");
    let refusal = eventually("it is full", seconds(10), || Some(run.post("/in", &[], "1")).filter(|a| a.status != 202));
    assert_eq!(refusal.status, 503);
    assert!(refusal.header("retry-after").is_some());
}
