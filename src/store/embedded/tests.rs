//! What happens around a writer that dies, or hangs with its disk.

use std::time::Instant;

use super::*;
use crate::core::message::{MAX_HEAD_BYTES, Message, MessageId};
use crate::core::topology::{Consumers, Management, Queue, QueueKind};
use crate::store::{Connection, PublishError};

fn topology() -> Topology {
    Topology {
        queue: Some(Queue {
            name: "q".to_owned(),
            kind: QueueKind::Classic,
            management: Management::Declare,
            consumers: Consumers::Competing,
            max_length: None,
            max_length_bytes: None,
        }),
        exchange: None,
        bindings: Vec::new(),
        routing_key: "q".to_owned(),
    }
}

fn message() -> Arc<Message> {
    Arc::new(Message::new(MessageId::new("m"), "x"))
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_writer_that_died() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::open(folder.path()).unwrap();
    let store = broker.store("/", "s", &topology()).unwrap();
    let mut consumer = store.consume(1).await.unwrap();
    broker.inner.shared.control(Control::Hang(Duration::from_millis(200))).unwrap();
    // Until the writer hangs.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let started = Instant::now();
    broker.inner.shared.control(Control::Panic).unwrap();
    let (waiting, taken) = tokio::join!(store.publish(message(), None), consumer.next());
    assert!(matches!(waiting, Err(PublishError::Unknown(_))), "{waiting:?}");
    assert!(matches!(taken, Err(StoreError::Closed)), "{taken:?}");
    assert_eq!(*store.connection().borrow(), Connection::Down(StoreError::Closed));
    assert!(matches!(store.publish(message(), None).await, Err(PublishError::NotConnected(_))));
    assert!(matches!(broker.store("/", "t", &topology()), Err(StoreError::Closed)));
    broker.close();
    assert!(started.elapsed() < COMMIT_TIMEOUT, "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_waits_for_its_commit_no_longer_than_the_store_says() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::open(folder.path()).unwrap();
    let store = broker.store_within("/", "s", &topology(), Duration::from_millis(100)).unwrap();
    broker.inner.shared.control(Control::Hang(Duration::from_secs(1))).unwrap();
    let started = Instant::now();
    assert!(matches!(store.publish(message(), None).await, Err(PublishError::Unknown(_))));
    assert!(started.elapsed() < Duration::from_millis(900), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_no_frame_could_carry_are_refused_but_not_for_a_dead_letter() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::open(folder.path()).unwrap();
    let store = broker.store("/", "s", &topology()).unwrap();
    let mut large = Message::clone(&message());
    large.headers.insert("x-a", "v".repeat(MAX_HEAD_BYTES).parse().unwrap());
    let refused = store.publish(Arc::new(large.clone()), None).await;
    assert!(matches!(refused, Err(PublishError::Invalid(_))), "{refused:?}");
    large.death = Some(crate::core::message::Death {
        reason: "Rejected".into(),
        attempts: 1,
        last_status: None,
        first_at: None,
        last_at: None,
        last_error: None,
        processor: "p".into(),
        source: "s".into(),
    });
    store.publish(Arc::new(large), None).await.unwrap();
}
