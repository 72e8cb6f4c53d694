//! A4, A5: connections that end between a publish and its confirm, to the byte.

use std::time::Duration;

use super::broker::Published;
use super::common::{PATIENCE, QUEUE, Told, rig, rig_that_waits};
use super::line::{ack, bytes};
use crate::support::{millis, seconds};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a4_reset_after_the_publish_and_before_its_confirm() {
    for stored in [false, true] {
        let rig = rig().await;
        rig.after(3, move |came| {
            if stored {
                assert!(came.iter().all(Published::store));
            }
            came[0].line.reset();
        });
        let begun = tokio::time::Instant::now();
        assert_eq!(rig.publish(["1", "2", "3"]).await, [Told::Unknown; 3], "stored: {stored}");
        assert!(begun.elapsed() < seconds(10), "told when it was known, not when the time was out");
        assert_eq!(rig.broker.bodies(QUEUE).len(), if stored { 3 } else { 0 });
        rig.recovers().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a4_reset_after_some_of_the_confirms() {
    let rig = rig().await;
    rig.after(5, |came| {
        came[1].ack_up_to();
        came[3].nack();
        // So that they have been read: a reset takes along what has not.
        std::thread::sleep(millis(100));
        came[0].line.reset();
    });
    let told = rig.publish(["1", "2", "3", "4", "5"]).await;
    assert_eq!(told, [Told::Ok, Told::Ok, Told::Unknown, Told::Refused, Told::Unknown]);
    rig.recovers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a4_reset_in_the_middle_of_a_publish() {
    let rig = rig().await;
    rig.broker.at_begin(|line| line.reset());
    let told = rig.publish(["1", "2"]).await;
    assert!(told.iter().all(|told| matches!(told, Told::Unknown | Told::NotConnected)), "{told:?}");
    assert!(rig.broker.bodies(QUEUE).is_empty());
    rig.recovers().await;
}

/// At each byte of the frame that confirms all three.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a5_the_end_comes_within_the_confirm() {
    let whole = bytes(&ack(1, 3, true)).len();
    let rig = rig().await;
    for cut in 0..=whole {
        // Turn and turn about, and both where all of it was sent.
        for reset in [false, true].into_iter().filter(|reset| cut == whole || *reset == cut.is_multiple_of(2)) {
            rig.after(3, move |came| {
                let confirm = bytes(&ack(came[0].channel, came[2].tag, true));
                came[0].line.raw(&confirm[..cut]);
                if reset {
                    came[0].line.reset();
                } else {
                    came[0].line.end();
                }
            });
            let before = rig.broker.connections();
            let told = rig.publish(["1", "2", "3"]).await;
            // The whole confirm may be lost with the connection that ends right behind it: then nobody is told yes, either.
            let lost = told == [Told::Unknown; 3];
            assert!(lost || cut == whole && told == [Told::Ok; 3], "{cut} of {whole} bytes, reset: {reset}: {told:?}");
            rig.anew(before).await;
            rig.recovers().await;
            rig.broker.forget(QUEUE);
        }
    }
}

/// Confirms in single bytes, with pauses: no confirm is taken for more than it says, and none is missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a5_confirms_come_byte_by_byte() {
    let rig = rig().await;
    rig.after(4, |came| {
        let channel = came[0].channel;
        let mut all = bytes(&ack(channel, came[1].tag, false));
        all.extend(bytes(&ack(channel, came[0].tag, false)));
        all.extend(bytes(&ack(channel, came[3].tag, true)));
        for byte in all {
            came[0].line.raw(&[byte]);
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    assert_eq!(rig.publish(["1", "2", "3", "4"]).await, [Told::Ok; 4]);
    assert_eq!(rig.broker.connections(), 2);
    rig.recovers().await;
}

/// An epoch's tags are counted from one again; what the old connection confirmed or not is of no matter to the new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_under_way_on_the_old_connection_is_not_confirmed_on_the_new_one() {
    let rig = rig_that_waits(PATIENCE).await;
    rig.after(3, |came| came[0].line.reset());
    assert_eq!(rig.publish(["1", "2", "3"]).await, [Told::Unknown; 3]);
    // The new connection's first publish gets no answer at all, its second one a confirm of its own.
    rig.broker.at_publish(|published| {
        if published.id() == "5" {
            published.ack();
        }
    });
    assert_eq!(rig.publish_when_connected("4").await, Told::Unknown);
    assert_eq!(rig.publish(["5"]).await, [Told::Ok]);
    rig.recovers().await;
}
