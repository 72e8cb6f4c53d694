//! Consuming: in order, at least once, at most `prefetch` at a time.

use std::collections::BTreeSet;

use stagepost::store::{Depth, StoreError, Tag};

use crate::subject::{
    A_MOMENT, Subject, competing, drain, next, nothing_comes, number, numbered, numbers, plain, publish_numbers, take,
    until,
};

pub(crate) async fn messages_come_in_the_order_in_which_they_were_stored(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    publish_numbers(&*store, 0..20).await;
    let mut consumer = store.consume(100).await.unwrap();
    let mut taken = take(&mut consumer, 10).await;
    publish_numbers(&*store, 20..40).await;
    taken.extend(take(&mut consumer, 30).await);
    assert_eq!(numbers(&taken), (0..40).collect::<Vec<_>>());
    assert!(taken.windows(2).all(|pair| pair[0].tag < pair[1].tag), "tags grow");
}

pub(crate) async fn what_a_dropped_consumer_held_comes_again_in_order_and_says_so(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    publish_numbers(&*store, 0..6).await;
    let mut consumer = store.consume(3).await.unwrap();
    let first = take(&mut consumer, 3).await;
    assert!(first.iter().all(|delivery| !delivery.redelivered));
    drop(consumer);
    let mut consumer = store.consume(10).await.unwrap();
    let again = take(&mut consumer, 6).await;
    assert_eq!(numbers(&again), [0, 1, 2, 3, 4, 5]);
    assert!(again[..3].iter().all(|delivery| delivery.redelivered));
}

pub(crate) async fn what_was_given_back_comes_before_what_was_behind_it(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    publish_numbers(&*store, 0..10).await;
    for _ in 0..5 {
        let mut consumer = store.consume(4).await.unwrap();
        assert_eq!(numbers(&take(&mut consumer, 4).await), [0, 1, 2, 3]);
        consumer.give_back().await.unwrap();
    }
    publish_numbers(&*store, 10..12).await;
    let ids = drain(&*store).await;
    assert_eq!(ids, (0..12).map(|number| format!("m{number:06}")).collect::<Vec<_>>());
}

pub(crate) async fn what_was_acknowledged_before_a_give_back_does_not_come_again(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    publish_numbers(&*store, 0..5).await;
    let mut consumer = store.consume(4).await.unwrap();
    let taken = take(&mut consumer, 4).await;
    consumer.ack(&[taken[0].tag, taken[2].tag]).unwrap();
    consumer.give_back().await.unwrap();
    assert_eq!(drain(&*store).await, ["m000001", "m000003", "m000004"]);
}

pub(crate) async fn many_that_were_acknowledged_one_by_one_before_a_give_back_do_not_come_again(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    for round in 0..5 {
        publish_numbers(&*store, 0..64).await;
        let mut consumer = store.consume(64).await.unwrap();
        let taken = take(&mut consumer, 64).await;
        for delivery in taken.iter().rev() {
            consumer.ack(&[delivery.tag]).unwrap();
        }
        consumer.give_back().await.unwrap();
        assert_eq!(drain(&*store).await, [""; 0], "in round {round}");
    }
}

pub(crate) async fn a_consumer_that_stopped_taking_settles_what_it_has_and_gets_no_more(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    publish_numbers(&*store, 0..6).await;
    let mut consumer = store.consume(3).await.unwrap();
    let taken = take(&mut consumer, 3).await;
    consumer.stop_taking();
    consumer.ack(&[taken[0].tag]).unwrap();
    nothing_comes(&mut consumer).await;
    consumer.ack(&[taken[1].tag]).unwrap();
    consumer.give_back().await.unwrap();
    assert_eq!(drain(&*store).await, ["m000002", "m000003", "m000004", "m000005"]);
}

pub(crate) async fn what_was_acknowledged_does_not_come_again_after_a_restart(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    publish_numbers(&*store, 0..5).await;
    let mut consumer = store.consume(4).await.unwrap();
    let taken = take(&mut consumer, 3).await;
    consumer.ack(&[taken[0].tag, taken[1].tag]).unwrap();
    consumer.give_back().await.unwrap();
    drop(store);
    let subject = subject.restart().await;
    let store = subject.store("s", &plain("q")).await.unwrap();
    assert_eq!(drain(&*store).await, ["m000002", "m000003", "m000004"]);
}

pub(crate) async fn what_was_not_acknowledged_comes_again_after_a_restart(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    publish_numbers(&*store, 0..4).await;
    let mut consumer = store.consume(2).await.unwrap();
    take(&mut consumer, 2).await;
    drop(consumer);
    drop(store);
    let subject = subject.restart().await;
    let store = subject.store("s", &plain("q")).await.unwrap();
    let mut consumer = store.consume(10).await.unwrap();
    let again = take(&mut consumer, 4).await;
    assert_eq!(numbers(&again), [0, 1, 2, 3]);
    assert!(again[0].redelivered && again[1].redelivered, "they had been handed out");
}

pub(crate) async fn no_more_than_the_prefetch_is_handed_out(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    publish_numbers(&*store, 0..5).await;
    let mut consumer = store.consume(2).await.unwrap();
    let taken = take(&mut consumer, 2).await;
    nothing_comes(&mut consumer).await;
    consumer.ack(&[taken[0].tag]).unwrap();
    assert_eq!(number(&next(&mut consumer).await), 2);
    nothing_comes(&mut consumer).await;
}

pub(crate) async fn a_dropped_wait_loses_nothing(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    let mut consumer = store.consume(100).await.unwrap();
    let mut taken = Vec::new();
    let publisher = tokio::spawn({
        let store = store.clone();
        async move { publish_numbers(&*store, 0..50).await }
    });
    while taken.len() < 50 {
        // Almost every wait ends before its message comes.
        if let Ok(delivery) = tokio::time::timeout(std::time::Duration::from_micros(50), consumer.next()).await {
            taken.push(number(&delivery.unwrap()));
        }
    }
    publisher.await.unwrap();
    assert_eq!(taken, (0..50).collect::<Vec<_>>());
}

pub(crate) async fn a_waiting_consumer_is_woken_by_a_publish(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    let mut consumer = store.consume(1).await.unwrap();
    let waiting = tokio::spawn(async move { number(&next(&mut consumer).await) });
    tokio::time::sleep(A_MOMENT).await;
    store.publish(numbered(7), None).await.unwrap();
    assert_eq!(waiting.await.unwrap(), 7);
}

pub(crate) async fn an_unknown_tag_is_refused(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    publish_numbers(&*store, 0..2).await;
    let mut consumer = store.consume(2).await.unwrap();
    let taken = take(&mut consumer, 2).await;
    assert_eq!(consumer.ack(&[Tag(u64::MAX)]), Err(StoreError::Stale));
    consumer.ack(&[taken[0].tag]).unwrap();
    consumer.give_back().await.unwrap();
    assert_eq!(drain(&*store).await, ["m000001"]);
}

pub(crate) async fn gaps_between_acknowledged_messages_are_kept(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    publish_numbers(&*store, 0..30).await;
    let mut consumer = store.consume(30).await.unwrap();
    for delivery in take(&mut consumer, 30).await {
        if !number(&delivery).is_multiple_of(3) {
            consumer.ack(&[delivery.tag]).unwrap();
        }
    }
    consumer.give_back().await.unwrap();
    drop(store);
    let subject = subject.restart().await;
    let store = subject.store("s", &plain("q")).await.unwrap();
    let kept: Vec<String> = (0..30).step_by(3).map(|number| format!("m{number:06}")).collect();
    assert_eq!(drain(&*store).await, kept);
}

pub(crate) async fn messages_may_be_acknowledged_in_any_order(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    publish_numbers(&*store, 0..6).await;
    let mut consumer = store.consume(30).await.unwrap();
    let taken = take(&mut consumer, 6).await;
    for at in [1, 0, 5, 3, 4, 2] {
        consumer.ack(&[taken[at].tag]).unwrap();
    }
    // The consumer is still there, and nothing comes again.
    publish_numbers(&*store, 6..7).await;
    let last = next(&mut consumer).await;
    assert_eq!(number(&last), 6);
    consumer.ack(&[last.tag]).unwrap();
    nothing_comes(&mut consumer).await;
    consumer.give_back().await.unwrap();
    assert_eq!(store.depth().await.unwrap().ready, 0);
}

pub(crate) async fn a_large_backlog_comes_in_order_and_once(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    publish_numbers(&*store, 0..3000).await;
    let mut consumer = store.consume(64).await.unwrap();
    // Returned in the middle, with most of it not yet taken.
    take(&mut consumer, 40).await;
    consumer.give_back().await.unwrap();
    let drained = drain(&*store).await;
    for (at, id) in drained.iter().enumerate() {
        assert_eq!(*id, format!("m{at:06}"), "at {at} of {}", drained.len());
    }
    assert_eq!(drained.len(), 3000);
}

pub(crate) async fn competing_consumers_get_each_message_once(subject: impl Subject) {
    let store = subject.store("s", &competing("q")).await.unwrap();
    publish_numbers(&*store, 0..100).await;
    let (found, mut all) = tokio::sync::mpsc::channel(1000);
    let consumers: Vec<_> = (0..4)
        .map(|_| {
            let (store, found) = (store.clone(), found.clone());
            tokio::spawn(async move {
                let mut consumer = store.consume(5).await.unwrap();
                loop {
                    let delivery = consumer.next().await.unwrap();
                    found.send(number(&delivery)).await.unwrap();
                    consumer.ack(&[delivery.tag]).unwrap();
                }
            })
        })
        .collect();
    publish_numbers(&*store, 100..200).await;
    let mut seen = BTreeSet::new();
    while seen.len() < 200 {
        assert!(seen.insert(all.recv().await.unwrap()), "each once");
    }
    tokio::time::sleep(A_MOMENT).await;
    assert!(all.try_recv().is_err(), "no more than those");
    consumers.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Each has room for all of it; that is no reason to leave the other without.
pub(crate) async fn consumers_that_wait_side_by_side_share_what_comes(subject: impl Subject) {
    let store = subject.store("s", &competing("q")).await.unwrap();
    let (found, mut all) = tokio::sync::mpsc::channel(1000);
    for consumer in 0..2 {
        let (store, found) = (store.clone(), found.clone());
        tokio::spawn(async move {
            let mut attached = store.consume(64).await.unwrap();
            found.send(consumer).await.unwrap();
            while let Ok(delivery) = attached.next().await {
                attached.ack(&[delivery.tag]).unwrap();
                found.send(consumer).await.unwrap();
            }
        });
    }
    let both = [all.recv().await.unwrap(), all.recv().await.unwrap()];
    assert_ne!(both[0], both[1], "both are attached");
    tokio::time::sleep(A_MOMENT).await;
    let mut got = [0, 0];
    for number in 0..40 {
        publish_numbers(&*store, number..number + 1).await;
        got[all.recv().await.unwrap()] += 1;
    }
    assert!(got[0] >= 10 && got[1] >= 10, "{got:?} of 40");
}

pub(crate) async fn the_second_of_single_active_consumers_waits_for_the_first(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    let mut first = store.consume(2).await.unwrap();
    let other = store.clone();
    // It is attached and waits, or is refused until it may be; never is it handed anything beside the first.
    let second = tokio::spawn(async move {
        loop {
            match other.consume(10).await {
                Ok(mut second) => return numbers(&take(&mut second, 4).await),
                Err(StoreError::InUse(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    publish_numbers(&*store, 0..4).await;
    assert_eq!(numbers(&take(&mut first, 2).await), [0, 1]);
    tokio::time::sleep(A_MOMENT).await;
    assert!(!second.is_finished());
    drop(first);
    assert_eq!(second.await.unwrap(), [0, 1, 2, 3]);
}

pub(crate) async fn the_depth_counts_what_is_ready_and_who_consumes(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    assert_eq!(store.depth().await.unwrap(), Depth { ready: 0, consumers: 0 });
    publish_numbers(&*store, 0..5).await;
    until("five are ready", || async { store.depth().await.unwrap() == Depth { ready: 5, consumers: 0 } }).await;
    let mut consumer = store.consume(2).await.unwrap();
    let taken = take(&mut consumer, 2).await;
    until("three are left", || async { store.depth().await.unwrap() == Depth { ready: 3, consumers: 1 } }).await;
    consumer.ack(&[taken[0].tag]).unwrap();
    drop(consumer);
    until("four are left", || async { store.depth().await.unwrap() == Depth { ready: 4, consumers: 0 } }).await;
}
