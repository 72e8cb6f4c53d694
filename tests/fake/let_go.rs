//! Connections that came to nothing, or that the broker does not want to end, are let go: no socket is left behind.

use std::time::Duration;

use tokio::time::timeout;

use super::broker::{FakeBroker, Manner};
use super::common::{Rig, Told, open, rig};
use crate::support::{millis, seconds};

/// Waits until a broker has no more than so many connections.
async fn connections(broker: &FakeBroker, most: usize, within: Duration, what: &str) {
    let closed = async {
        while broker.lines().len() > most {
            tokio::time::sleep(millis(50)).await;
        }
    };
    let closed = timeout(within, closed).await;
    assert!(closed.is_ok(), "{what}: {} connections of {}", broker.lines().len(), broker.connections());
}

async fn is_let_go_after(manner: Manner) {
    let broker = FakeBroker::start();
    broker.manner(manner);
    let rig = open(broker, seconds(5));
    // The first attempts are given up, after ten seconds; the next ones are under way by then.
    tokio::time::sleep(seconds(13)).await;
    assert!(rig.broker.connections() >= 4, "it is tried again");
    rig.broker.behave();
    rig.up(seconds(25)).await;
    connections(&rig.broker, 2, seconds(10), &format!("{manner:?}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_whose_handshake_stalls() {
    use Manner::{Silent, StallsAfterStart, StallsBeforeOpen, StallsInAFrame};
    let all = [Silent, StallsInAFrame, StallsAfterStart, StallsBeforeOpen].map(is_let_go_after);
    futures_util::future::join_all(all).await;
}

/// What it held comes again, although the broker does not answer when the connection is closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_whose_close_is_not_answered() {
    let rig = rig().await;
    assert_eq!(rig.publish(["first", "second"]).await, [Told::Ok; 2]);
    let mut consumer = rig.store.consume(10).await.unwrap();
    assert_eq!(consumer.next().await.unwrap().message.body, b"first"[..]);
    rig.broker.ignore_close();
    assert!(consumer.give_back().await.is_err(), "the channel's close is not answered either");
    let (body, redelivered) = timeout(seconds(20), first(&rig)).await.expect("it comes again");
    assert_eq!((&body[..], redelivered), (&b"first"[..], true));
    connections(&rig.broker, 2, seconds(10), "the old one").await;
}

async fn first(rig: &Rig) -> (Vec<u8>, bool) {
    loop {
        if let Ok(mut consumer) = rig.store.consume(10).await
            && let Ok(Ok(delivery)) = timeout(seconds(1), consumer.next()).await
        {
            return (delivery.message.body.to_vec(), delivery.redelivered);
        }
        tokio::time::sleep(millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_connections_of_a_store_that_is_dropped_while_the_broker_answers_nothing() {
    let rig = rig().await;
    rig.broker.ignore_close();
    let broker = rig.close();
    connections(&broker, 0, seconds(10), "after the store").await;
}
