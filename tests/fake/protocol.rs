//! A17: what a broker must not send, in the middle of a delivery. The connection is given up and made anew, and the
//! message comes again, whole.

use std::time::Duration;

use stagepost::store::{Delivery, MessageStore, StoreError};
use tokio::time::timeout;

use super::broker::Handed;
use super::common::{QUEUE, Rig, Told, rig};
use super::line::{ack, bytes};
use crate::support::{millis, seconds};

/// Until a wrong frame is noticed, everything is rebuilt, and the message is there again.
const WITHIN: Duration = seconds(15);

/// Hands the first delivery out by `script`; the next one must be the message, whole, and what follows it too.
async fn comes_again_after(script: impl Fn(&Handed) + Send + 'static) -> Rig {
    let rig = rig().await;
    assert_eq!(rig.publish(["first", "second"]).await, [Told::Ok; 2]);
    let mut scripted = false;
    rig.broker.at_delivery(move |handed| {
        if !scripted {
            scripted = true;
            script(handed);
            return false;
        }
        true
    });
    let begun = tokio::time::Instant::now();
    let deliveries = timeout(WITHIN, two(&*rig.store)).await.expect("it comes again");
    for (delivery, body) in deliveries.iter().zip(["first", "second"]) {
        assert_eq!(delivery.message.body, body.as_bytes());
        assert_eq!(delivery.message.id.as_str(), body);
    }
    println!("it came again after {:?}", begun.elapsed());
    rig
}

/// Takes until two messages are in hand at once, as a worker would: what failed is tried again.
async fn two(store: &dyn MessageStore) -> [Delivery; 2] {
    loop {
        match take_two(store).await {
            Ok(deliveries) => return deliveries,
            Err(error) => println!("{error}"),
        }
        tokio::time::sleep(millis(50)).await;
    }
}

async fn take_two(store: &dyn MessageStore) -> Result<[Delivery; 2], StoreError> {
    let mut consumer = store.consume(10).await?;
    let deliveries = [consumer.next().await?, consumer.next().await?];
    consumer.ack(&[deliveries[0].tag, deliveries[1].tag])?;
    consumer.give_back().await?;
    Ok(deliveries)
}

/// The connection that got it was given up, and all goes on.
async fn rebuilt(rig: Rig) {
    assert!(rig.broker.connections() > 2, "the connection was given up");
    assert_eq!(rig.broker.bodies(QUEUE), [b""; 0], "acknowledged, both of them");
    rig.recovers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a17_garbage() {
    rebuilt(comes_again_after(|handed| handed.line.raw(b"GET / HTTP/1.1\r\nHost: broker\r\n\r\n")).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a17_garbage_in_a_frame_of_the_right_shape() {
    let frame = [1, 0, 1, 0, 0, 0, 6, 0, 60, 0, 60, 0xff, 0xff, 0xCE];
    rebuilt(comes_again_after(move |handed| handed.line.raw(&frame)).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a17_a_method_that_there_is_not() {
    let frame = [1, 0, 1, 0, 0, 0, 4, 0, 77, 0, 1, 0xCE];
    rebuilt(comes_again_after(move |handed| handed.line.raw(&frame)).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a17_a_frame_that_does_not_end_where_it_should() {
    let frame = [1, 0, 1, 0, 0, 0, 4, 0, 60, 0, 60, 0x00];
    rebuilt(comes_again_after(move |handed| handed.line.raw(&frame)).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a17_a_frame_larger_than_was_agreed_on() {
    for kind in [1, 2, 3] {
        let script = move |handed: &Handed| {
            handed.head();
            let mut head = vec![kind, 0, 1];
            head.extend(200_000_u32.to_be_bytes());
            // Only its head: nobody may wait for the rest.
            handed.line.raw(&head);
        };
        rebuilt(comes_again_after(script).await).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a17_a_frame_of_four_gigabytes() {
    let script = |handed: &Handed| handed.line.raw(&[3, 0, 1, 0xff, 0xff, 0xff, 0xff, 1, 2, 3]);
    rebuilt(comes_again_after(script).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a17_a_body_shorter_than_was_said_and_then_the_next_message() {
    let script = |handed: &Handed| {
        handed.head();
        handed.line.header(handed.channel, 5, &handed.message.properties);
        handed.line.body(handed.channel, b"fir");
        handed.head();
    };
    rebuilt(comes_again_after(script).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a17_a_body_longer_than_was_said() {
    let script = |handed: &Handed| {
        handed.head();
        handed.line.header(handed.channel, 5, &handed.message.properties);
        handed.line.body(handed.channel, b"first and more");
    };
    rebuilt(comes_again_after(script).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a17_a_body_without_a_header() {
    let script = |handed: &Handed| {
        handed.head();
        handed.line.body(handed.channel, b"first");
    };
    rebuilt(comes_again_after(script).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a17_a_content_header_for_another_channel() {
    let script = |handed: &Handed| {
        handed.head();
        handed.line.header(handed.channel + 5, 5, &handed.message.properties);
        handed.line.body(handed.channel + 5, b"first");
    };
    rebuilt(comes_again_after(script).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a17_a_delivery_on_a_channel_that_there_is_not() {
    let script = |handed: &Handed| {
        handed.head_on(99);
        handed.line.header(99, 5, &handed.message.properties);
        handed.line.body(99, b"first");
    };
    rebuilt(comes_again_after(script).await).await;
}

/// The rest of a message never comes: the worker waits, as it does for the next message, and a connection that is alive
/// is not given up. When it ends, the message comes again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a17_half_a_message_and_then_the_end() {
    let script = |handed: &Handed| {
        handed.head();
        handed.line.header(handed.channel, 5, &handed.message.properties);
        handed.line.body(handed.channel, b"fir");
        let line = handed.line.clone();
        std::thread::spawn(move || {
            std::thread::sleep(millis(300));
            line.end();
        });
    };
    rebuilt(comes_again_after(script).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a17_a_consumer_that_is_cancelled_takes_again() {
    let rig = comes_again_after(Handed::cancel).await;
    rig.recovers().await;
}

/// What comes in place of a confirm.
type Garbled = fn(&[u8]) -> Vec<u8>;

/// In the middle of publishes: what was under way is unknown, and nothing of it is taken for stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a17_garbage_between_confirms() {
    // Of a confirm of all three: one that ends too early, one that ends too late. And kinds of frames that there are not.
    let garbled: [Garbled; 5] = [
        |_| b"\xde\xad\xbe\xef\xde\xad\xbe\xef\xde\xad\xbe\xef".to_vec(),
        |confirm| [&confirm[..6], &[8], &confirm[7..15], &[0xCE]].concat(),
        |confirm| [&confirm[..6], &[14], &confirm[7..20], &[9, 0xCE]].concat(),
        |_| vec![4, 0, 1, 0, 0, 0, 0, 0xCE],
        |_| b"AMQP\x00\x00\x09\x01".to_vec(),
    ];
    let rig = rig().await;
    for (number, garbled) in garbled.into_iter().enumerate() {
        rig.after(3, move |came| {
            came[0].ack();
            came[0].line.raw(&garbled(&bytes(&ack(came[2].channel, came[2].tag, true))));
            came[2].ack_up_to();
        });
        let told = rig.publish(["1", "2", "3"]).await;
        assert!(matches!(told[0], Told::Ok | Told::Unknown), "{told:?}");
        assert_eq!(told[1..], [Told::Unknown; 2], "after number {number}");
        rig.recovers().await;
        rig.broker.forget(QUEUE);
    }
}
