//! A store on a fake broker, and what its callers are told.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use stagepost::core::message::{Message, MessageId};
use stagepost::core::topology::{Consumers, Management, Queue, QueueKind, Topology};
use stagepost::store::{Connection, MessageStore, PublishError, rabbitmq};
use tokio::time::timeout;

use super::broker::{FakeBroker, Published};
use crate::support::{millis, seconds};

/// The queue of every test.
pub(crate) const QUEUE: &str = "box";

/// A store, its broker as the product sees it, and the broker itself. Dropped in this order.
pub(crate) struct Rig {
    pub(crate) store: Arc<dyn MessageStore>,
    _client: rabbitmq::Broker,
    pub(crate) broker: FakeBroker,
}

/// What one caller is told, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    Ok,
    Refused,
    Unroutable,
    Unknown,
    NotConnected,
    Invalid,
}

/// Opens a store, without waiting until it is connected.
pub(crate) fn open(broker: FakeBroker, confirm_timeout: Duration) -> Rig {
    let address = rabbitmq::Address::parse(&broker.uri()).unwrap();
    let client = rabbitmq::Broker::start("test", Arc::new(move || Ok(address.clone())));
    let queue = Queue {
        name: QUEUE.to_owned(),
        kind: QueueKind::Classic,
        management: Management::Declare,
        consumers: Consumers::SingleActive,
        max_length: None,
        max_length_bytes: None,
    };
    let topology = Topology { routing_key: QUEUE.to_owned(), queue: Some(queue), exchange: None, bindings: vec![] };
    let store = client.store("default/box", &topology, confirm_timeout);
    Rig { store, _client: client, broker }
}

/// A store that is connected to a broker that behaves.
pub(crate) async fn rig() -> Rig {
    rig_that_waits(seconds(20)).await
}

/// For tests in which a confirm does not come: long enough for whatever does come, on a machine that has much to do.
pub(crate) const PATIENCE: Duration = seconds(3);

/// The same, with a time-out for confirms.
pub(crate) async fn rig_that_waits(confirm_timeout: Duration) -> Rig {
    let rig = open(FakeBroker::start(), confirm_timeout);
    rig.up(seconds(20)).await;
    // So that the publishing channel stands.
    assert_eq!(rig.publish_when_connected("first of all").await, Told::Ok);
    rig.broker.forget(QUEUE);
    rig
}

impl Rig {
    /// Waits until the store takes messages.
    #[track_caller]
    pub(crate) fn up(&self, within: Duration) -> impl Future<Output = ()> {
        let mut connection = self.store.connection();
        async move {
            let up = connection.wait_for(|now| *now == Connection::Up);
            timeout(within, up).await.expect("it connects").unwrap();
        }
    }

    /// Drops the store and its connections; leaves the broker.
    pub(crate) fn close(self) -> FakeBroker {
        self.broker
    }

    /// Publishes the messages of these ids in this order, all at once; says what each caller was told.
    pub(crate) async fn publish<const N: usize>(&self, ids: [&str; N]) -> [Told; N] {
        let all = join_all(ids.map(|id| self.store.publish(message(id), None)));
        let told: Vec<Told> = all.await.iter().map(told).collect();
        told.try_into().unwrap()
    }

    /// One message, for as long as the store says that it is not connected.
    pub(crate) async fn publish_when_connected(&self, id: &str) -> Told {
        let until = tokio::time::Instant::now() + seconds(20);
        loop {
            let [told] = self.publish([id]).await;
            if told != Told::NotConnected || tokio::time::Instant::now() > until {
                return told;
            }
            tokio::time::sleep(millis(20)).await;
        }
    }

    /// Waits until there are more connections than so many: whoever was told yes may be told before the end is noticed.
    pub(crate) async fn anew(&self, before: usize) {
        let anew = async {
            while self.broker.connections() <= before {
                tokio::time::sleep(millis(10)).await;
            }
        };
        timeout(seconds(20), anew).await.expect("it connects anew");
        self.up(seconds(20)).await;
    }

    /// The broker behaves again: the store takes messages and hands them out, with nothing restarted, and nobody is
    /// told what is not so.
    pub(crate) async fn recovers(&self) {
        self.broker.behave();
        assert_eq!(self.publish_when_connected("afterwards").await, Told::Ok);
        assert_eq!(self.publish(["afterwards-1", "afterwards-2", "afterwards-3"]).await, [Told::Ok; 3]);
        let bodies = self.broker.bodies(QUEUE);
        for id in ["afterwards", "afterwards-1", "afterwards-2", "afterwards-3"] {
            assert!(bodies.contains(&id.as_bytes().to_vec()), "{id} was confirmed and is not there");
        }
    }

    /// At the publish with the number `count`, counted from now on, the script gets all that came until then.
    pub(crate) fn after(&self, count: usize, script: impl Fn(&[Published]) + Send + 'static) {
        let mut came = Vec::new();
        self.broker.at_publish(move |published| {
            came.push(published.clone());
            if came.len() == count {
                script(&came);
            }
        });
    }
}

pub(crate) fn message(id: &str) -> Arc<Message> {
    Arc::new(Message::new(MessageId::new(id), id.as_bytes().to_vec()))
}

pub(crate) fn told(outcome: &Result<(), PublishError>) -> Told {
    if let Err(error) = outcome {
        // Shown if the test fails.
        println!("told: {error}");
    }
    match outcome {
        Ok(()) => Told::Ok,
        Err(PublishError::Refused(_)) => Told::Refused,
        Err(PublishError::Unroutable(_)) => Told::Unroutable,
        Err(PublishError::Unknown(_) | PublishError::PartlyRefused(_)) => Told::Unknown,
        Err(PublishError::NotConnected(_)) => Told::NotConnected,
        Err(PublishError::Invalid(_)) => Told::Invalid,
    }
}
