//! Limits: a full queue refuses, and nothing that was accepted is discarded.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use stagepost::core::message::{Message, MessageId};
use stagepost::core::topology::{ExchangeKind, Queue};
use stagepost::store::PublishError;

use crate::subject::{
    Subject, bound, drain, exchange, next, number, numbered, on_queue, publish_numbers, queue, take, until,
};

pub(crate) async fn a_queue_at_its_maximum_length_refuses_and_has_room_again_after_an_ack<S: Subject>(subject: S) {
    let topology = on_queue(Queue { max_length: Some(3), ..queue("q") });
    let store = subject.store("s", &topology).await.unwrap();
    let taken = 3 + S::LENGTH_SLACK;
    publish_numbers(&*store, 0..taken).await;
    for number in taken..taken + 3 {
        assert!(matches!(store.publish(numbered(number), None).await, Err(PublishError::Refused(_))));
    }
    let mut consumer = store.consume(10).await.unwrap();
    let first = next(&mut consumer).await;
    consumer.ack(&[first.tag]).unwrap();
    until("there is room again", || async { store.publish(numbered(100), None).await.is_ok() }).await;
}

pub(crate) async fn what_is_in_a_consumers_hands_counts_towards_the_length_or_not<S: Subject>(subject: S) {
    let topology = on_queue(Queue { max_length: Some(3), ..queue("q") });
    let store = subject.store("s", &topology).await.unwrap();
    let taken = 3 + S::LENGTH_SLACK;
    publish_numbers(&*store, 0..taken).await;
    let mut consumer = store.consume(10).await.unwrap();
    take(&mut consumer, usize::try_from(taken).unwrap()).await;
    let refused = matches!(store.publish(numbered(9), None).await, Err(PublishError::Refused(_)));
    assert_eq!(refused, S::COUNTS_WHAT_IS_TAKEN);
}

pub(crate) async fn a_queue_at_its_maximum_bytes_refuses_and_has_room_again_after_an_ack(subject: impl Subject) {
    let topology = on_queue(Queue { max_length_bytes: Some(10_000), ..queue("q") });
    let store = subject.store("s", &topology).await.unwrap();
    let publish = async |id: u32| {
        let message = Message::new(MessageId::new(format!("b{id}")), vec![b'x'; 4000]);
        store.publish(Arc::new(message), None).await
    };
    let mut accepted = 0;
    while publish(accepted).await.is_ok() {
        accepted += 1;
        assert!(accepted <= 4, "at most what is in flight beyond 10,000 bytes");
    }
    assert!(accepted >= 2);
    let mut consumer = store.consume(1).await.unwrap();
    let first = next(&mut consumer).await;
    consumer.ack(&[first.tag]).unwrap();
    drop(consumer);
    until("there is room again", || async { publish(100).await.is_ok() }).await;
}

pub(crate) async fn one_full_queue_of_an_exchange_refuses_for_all_of_them<S: Subject>(subject: S) {
    let fanout = |name: &str| bound(name, exchange("x", ExchangeKind::Fanout), &[]);
    let main = subject.store("main", &fanout("main")).await.unwrap();
    let mut full = fanout("full");
    full.queue.as_mut().unwrap().max_length = Some(3);
    let full = subject.store("full", &full).await.unwrap();
    let room = 3 + S::LENGTH_SLACK;
    publish_numbers(&*main, 0..room).await;
    // A store that keeps copies beside the full queue can't say that it has none.
    let refuses = |result| match result {
        Err(PublishError::PartlyRefused(_)) => S::KEEPS_COPIES_BESIDE_A_FULL_QUEUE,
        Err(PublishError::Refused(_)) => !S::KEEPS_COPIES_BESIDE_A_FULL_QUEUE,
        _ => false,
    };
    assert!(refuses(main.publish(numbered(room), None).await));
    assert!(refuses(full.publish(numbered(room), None).await));
    assert_eq!(full.depth().await.unwrap().ready, room);
    let copies = if S::KEEPS_COPIES_BESIDE_A_FULL_QUEUE { 2 } else { 0 };
    until("the other queue is as said", || async { main.depth().await.unwrap().ready == room + copies }).await;
    // All of it: a quorum queue that was full takes again only when it is well below its limit.
    let mut consumer = full.consume(8).await.unwrap();
    for expected in 0..room {
        let taken = next(&mut consumer).await;
        assert_eq!(number(&taken), expected);
        consumer.ack(&[taken.tag]).unwrap();
    }
    // In good order: a consumer that is dropped may take acknowledgements that are not written yet with it.
    consumer.give_back().await.unwrap();
    until("there is room again", || async { main.publish(numbered(100), None).await.is_ok() }).await;
}

/// 64 publishers, a queue that flips between full and not, a fast consumer: the set of accepted messages is the set of
/// delivered ones. A store that mixes up whose confirm is whose fails this.
pub(crate) async fn what_was_accepted_is_exactly_what_is_stored(subject: impl Subject) {
    let topology = on_queue(Queue { max_length: Some(20), ..queue("q") });
    let store = subject.store("s", &topology).await.unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let consuming = tokio::spawn({
        let (store, done) = (store.clone(), done.clone());
        async move {
            let mut seen = BTreeSet::new();
            let mut consumer = store.consume(16).await.unwrap();
            while !done.load(Ordering::Acquire) {
                let wait = std::time::Duration::from_millis(20);
                if let Ok(delivery) = tokio::time::timeout(wait, consumer.next()).await {
                    let delivery = delivery.unwrap();
                    assert!(seen.insert(delivery.message.id.as_str().to_owned()), "each once");
                    consumer.ack(&[delivery.tag]).unwrap();
                }
            }
            consumer.give_back().await.unwrap();
            seen
        }
    });
    let publishers = (0..64u64).map(|publisher| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut accepted = Vec::new();
            let mut refused = 0;
            for at in 0..60 {
                let message = numbered(publisher * 1000 + at);
                match store.publish(message.clone(), None).await {
                    Ok(()) => accepted.push(message.id.as_str().to_owned()),
                    Err(PublishError::Refused(_)) => refused += 1,
                    Err(other) => panic!("{other}"),
                }
            }
            (accepted, refused)
        })
    });
    let (mut accepted, mut refused) = (BTreeSet::new(), 0);
    for publisher in futures_util::future::join_all(publishers).await {
        let (ids, count) = publisher.unwrap();
        accepted.extend(ids);
        refused += count;
    }
    done.store(true, Ordering::Release);
    let mut stored = consuming.await.unwrap();
    stored.extend(drain(&*store).await);
    assert!(refused > 0 && !accepted.is_empty(), "it flips: {refused} refused, {} accepted", accepted.len());
    assert_eq!(accepted, stored);
}
