//! A broker that does not answer: at every point there is an end to the waiting, and a way back.

use std::sync::Arc;
use std::time::Duration;

use stagepost::core::message::{MAX_BODY_BYTES, Message, MessageId};
use stagepost::store::{Connection, Fault, StoreError};
use tokio::time::{Instant, timeout};

use super::broker::{FakeBroker, Manner};
use super::common::{PATIENCE, QUEUE, Told, open, rig, rig_that_waits, told};
use crate::support::{millis, seconds};

/// A connect is given up after 10 s; the next one is a quarter of a second later, and more on a busy machine.
const GIVEN_UP: Duration = seconds(25);

async fn stalls_in_the_handshake(manner: Manner) {
    let broker = FakeBroker::start();
    broker.manner(manner);
    let rig = open(broker, seconds(5));
    // Whoever asks meanwhile is told at once.
    for _ in 0..5 {
        let begun = Instant::now();
        assert_eq!(rig.publish(["early"]).await, [Told::NotConnected], "{manner:?}");
        assert!(begun.elapsed() < seconds(2), "{manner:?}: {:?}", begun.elapsed());
        tokio::time::sleep(millis(100)).await;
    }
    let begun = Instant::now();
    let mut connection = rig.store.connection();
    let down = connection.wait_for(|now| matches!(now, Connection::Down(_)));
    let down = timeout(GIVEN_UP, down).await.expect("it is given up").unwrap().clone();
    let timed_out = matches!(down, Connection::Down(StoreError::Unreachable { fault: Fault::TimedOut, .. }));
    assert!(timed_out, "{manner:?}: {down:?}");
    println!("{manner:?}: {down:?}, after {:?}", begun.elapsed());
    rig.broker.behave();
    rig.up(GIVEN_UP).await;
    rig.recovers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_accepts_and_stays_silent_or_stalls_in_the_handshake() {
    use Manner::{Silent, StallsAfterStart, StallsBeforeOpen, StallsInAFrame};
    // Side by side: each of them is a wait of ten seconds.
    let all = [Silent, StallsInAFrame, StallsAfterStart, StallsBeforeOpen].map(stalls_in_the_handshake);
    futures_util::future::join_all(all).await;
}

/// As RabbitMQ does it in an alarm: the notice, and then nothing more is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_blocks_while_a_publish_is_being_written() {
    let rig = rig_that_waits(PATIENCE).await;
    let (go_on, held) = std::sync::mpsc::channel::<()>();
    rig.broker.at_begin(move |line| {
        line.blocked(true);
        let _ = held.recv();
        line.blocked(false);
    });
    // More than the sockets of both sides hold.
    let large = Arc::new(Message::new(MessageId::new("large"), vec![b'x'; MAX_BODY_BYTES]));
    let begun = Instant::now();
    let store = rig.store.clone();
    let writing = tokio::spawn(async move { told(&store.publish(large, None).await) });
    let mut connection = rig.store.connection();
    let down = connection.wait_for(|now| matches!(now, Connection::Down(_)));
    timeout(seconds(10), down).await.expect("the alarm is noticed").unwrap();
    let at_once = Instant::now();
    assert_eq!(rig.publish(["1", "2", "3"]).await, [Told::Refused; 3]);
    assert!(at_once.elapsed() < seconds(2), "told at once, not when the time is out: {:?}", at_once.elapsed());
    assert_eq!(writing.await.unwrap(), Told::Unknown, "some of it was sent");
    assert!(begun.elapsed() < seconds(12), "{:?}", begun.elapsed());
    // The other connection is not blocked: what lies there can be looked at and taken.
    assert_eq!(rig.store.depth().await.unwrap().ready, 0);
    drop(go_on);
    rig.up(seconds(20)).await;
    rig.recovers().await;
    assert_eq!(rig.broker.connections(), 2, "an alarm is no reason to connect anew");
    let lengths: Vec<usize> = rig.broker.bodies(QUEUE).iter().map(Vec::len).collect();
    assert_eq!(lengths[0], MAX_BODY_BYTES, "what was under way came whole, and once: {lengths:?}");
}

/// Confirms what was under way so long after an alarm, and ends the alarm thereafter. Says what the callers were told.
async fn told_in_an_alarm(confirmed_after: Duration) -> [Told; 3] {
    let rig = rig().await;
    rig.after(3, move |came| {
        let came = came.to_vec();
        came[0].line.blocked(true);
        std::thread::spawn(move || {
            std::thread::sleep(confirmed_after);
            came[0].ack();
            came[1].nack();
            came[2].ack();
            std::thread::sleep(millis(300));
            came[0].line.blocked(false);
        });
    });
    let begun = Instant::now();
    let told = rig.publish(["1", "2", "3"]).await;
    assert!(begun.elapsed() < seconds(10), "nobody waits for the end of an alarm: {:?}", begun.elapsed());
    // Those that are told late, and whose confirms come later, leave nothing behind that could be another's.
    assert_eq!(rig.publish(["4"]).await, [Told::Refused], "the alarm lasts");
    tokio::time::sleep(confirmed_after).await;
    rig.up(seconds(20)).await;
    rig.recovers().await;
    assert_eq!(rig.broker.connections(), 2, "an alarm is no reason to connect anew");
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_under_way_when_the_alarm_came_is_told_by_its_confirm() {
    assert_eq!(told_in_an_alarm(Duration::ZERO).await, [Told::Ok, Told::Refused, Told::Ok]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_confirmed_soon_after_an_alarm_came_is_unknown() {
    assert_eq!(told_in_an_alarm(seconds(3)).await, [Told::Unknown; 3]);
}

/// Giving back closes a channel, and that has an answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_never_answers_close() {
    let rig = rig().await;
    assert_eq!(rig.publish(["first"]).await, [Told::Ok]);
    let mut consumer = rig.store.consume(10).await.unwrap();
    consumer.next().await.unwrap();
    rig.broker.ignore_close();
    let begun = Instant::now();
    let given_back = timeout(GIVEN_UP, consumer.give_back()).await.expect("it is given up");
    println!("given back: {given_back:?}, after {:?}", begun.elapsed());
    assert!(given_back.is_err(), "nobody knows whether it is back");
    // That connection is not trusted any more, and its close is not waited for long.
    rig.anew(2).await;
    rig.recovers().await;
}
