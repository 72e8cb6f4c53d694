//! What the suite needs from a kind of store, and the words it is written in.

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use stagepost::core::message::{Message, MessageId};
use stagepost::core::topology::{Consumers, Exchange, ExchangeKind, Management, Queue, QueueKind, Topology};
use stagepost::store::embedded::Broker;
use stagepost::store::{Connection, Consumer, Delivery, MessageStore, StoreError, rabbitmq};
use tempfile::TempDir;

use crate::broker;

/// A broker with nothing in it, of one kind of store.
pub(crate) trait Subject: Sized + Send + Sync + 'static {
    /// What this machine lacks for it, if anything.
    fn missing() -> Option<&'static str> {
        None
    }

    /// Starts with a virtual host, or names, that no other test uses.
    fn start() -> impl Future<Output = Self> + Send;

    /// Declares a store.
    fn store(
        &self,
        name: &str,
        topology: &Topology,
    ) -> impl Future<Output = Result<Arc<dyn MessageStore>, StoreError>> + Send;

    /// Everything of ours ends and begins anew; what is stored stays.
    fn restart(self) -> impl Future<Output = Self> + Send;

    /// How many messages beyond its maximum length a queue may take.
    const LENGTH_SLACK: u64;

    /// Whether what a consumer holds counts towards the maximum length; RabbitMQ counts what is ready.
    const COUNTS_WHAT_IS_TAKEN: bool;

    /// Whether a publish that one queue of an exchange refuses is refused, and stored in the others all the same.
    const KEEPS_COPIES_BESIDE_A_FULL_QUEUE: bool;
}

/// The embedded store in a folder of its own.
pub(crate) struct Embedded {
    broker: Broker,
    folder: TempDir,
}

impl Subject for Embedded {
    const LENGTH_SLACK: u64 = 0;
    const COUNTS_WHAT_IS_TAKEN: bool = true;
    const KEEPS_COPIES_BESIDE_A_FULL_QUEUE: bool = false;

    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { broker: Broker::open(folder.path()).unwrap(), folder }
    }

    async fn store(&self, name: &str, topology: &Topology) -> Result<Arc<dyn MessageStore>, StoreError> {
        self.broker.store("/", name, topology)
    }

    async fn restart(self) -> Self {
        self.broker.close();
        Self { broker: Broker::open(self.folder.path()).unwrap(), folder: self.folder }
    }
}

/// RabbitMQ, with classic queues (`QUORUM` false) or quorum queues: a virtual host of its own for each test, on one
/// broker that the whole run shares.
pub(crate) struct Rabbit<const QUORUM: bool> {
    broker: rabbitmq::Broker,
    uri: String,
}

impl<const QUORUM: bool> Rabbit<QUORUM> {
    fn connect(uri: String) -> Self {
        let address = uri.clone();
        let source: rabbitmq::AddressSource = Arc::new(move || rabbitmq::Address::parse(&address));
        Self { broker: rabbitmq::Broker::start("contract", source), uri }
    }
}

impl<const QUORUM: bool> Subject for Rabbit<QUORUM> {
    const LENGTH_SLACK: u64 = if QUORUM { 1 } else { 0 };
    const COUNTS_WHAT_IS_TAKEN: bool = false;
    const KEEPS_COPIES_BESIDE_A_FULL_QUEUE: bool = true;

    fn missing() -> Option<&'static str> {
        broker::version().is_none().then_some("the store contract on RabbitMQ")
    }

    async fn start() -> Self {
        Self::connect(tokio::task::spawn_blocking(shared_rabbit_virtual_host).await.unwrap())
    }

    async fn store(&self, name: &str, topology: &Topology) -> Result<Arc<dyn MessageStore>, StoreError> {
        let mut topology = topology.clone();
        if let (true, Some(queue)) = (QUORUM, &mut topology.queue) {
            queue.kind = QueueKind::Quorum;
        }
        let store = self.broker.store(name, &topology, Duration::from_secs(5));
        let mut connection = store.connection();
        let settled = connection.wait_for(|now| match now {
            Connection::Up => true,
            Connection::Connecting => false,
            Connection::Down(error) => matches!(error, StoreError::Mismatch(_) | StoreError::NotFound(_)),
        });
        match tokio::time::timeout(SOON, settled).await.expect("the broker answers").unwrap().clone() {
            Connection::Down(error) => Err(error),
            Connection::Up | Connection::Connecting => Ok(store),
        }
    }

    async fn restart(self) -> Self {
        let uri = self.uri.clone();
        drop(self);
        Self::connect(uri)
    }
}

/// The broker of this run, started by the first test that needs it and ended with the process.
fn shared_rabbit_virtual_host() -> String {
    static BROKER: OnceLock<broker::Rabbit> = OnceLock::new();
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let broker = BROKER.get_or_init(|| {
        let version = broker::version().expect("STAGEPOST_TEST_RABBITMQ names a version");
        broker::Rabbit::start(&version, "")
    });
    broker.virtual_host(&format!("test-{}", NUMBER.fetch_add(1, Ordering::Relaxed)))
}

/// Long enough for anything that must happen.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// Long enough to notice what must not happen.
pub(crate) const A_MOMENT: Duration = Duration::from_millis(150);

pub(crate) fn queue(name: &str) -> Queue {
    Queue {
        name: name.to_owned(),
        kind: QueueKind::Classic,
        management: Management::Declare,
        consumers: Consumers::SingleActive,
        max_length: None,
        max_length_bytes: None,
    }
}

pub(crate) fn on_queue(queue: Queue) -> Topology {
    Topology { routing_key: queue.name.clone(), queue: Some(queue), exchange: None, bindings: Vec::new() }
}

pub(crate) fn plain(name: &str) -> Topology {
    on_queue(queue(name))
}

pub(crate) fn competing(name: &str) -> Topology {
    on_queue(Queue { consumers: Consumers::Competing, ..queue(name) })
}

pub(crate) fn exchange(name: &str, kind: ExchangeKind) -> Exchange {
    Exchange { name: name.to_owned(), kind, management: Management::Declare }
}

pub(crate) fn bound(name: &str, exchange: Exchange, bindings: &[&str]) -> Topology {
    Topology {
        queue: Some(queue(name)),
        exchange: Some(exchange),
        bindings: bindings.iter().map(|key| (*key).to_owned()).collect(),
        routing_key: bindings.first().copied().unwrap_or(name).to_owned(),
    }
}

/// A message that is known by its number.
pub(crate) fn numbered(number: u64) -> Arc<Message> {
    Arc::new(Message::new(MessageId::new(format!("m{number:06}")), format!("body of {number}").into_bytes()))
}

pub(crate) async fn publish_numbers(store: &dyn MessageStore, numbers: std::ops::Range<u64>) {
    for number in numbers {
        store.publish(numbered(number), None).await.unwrap();
    }
}

pub(crate) fn number(delivery: &Delivery) -> u64 {
    delivery.message.id.as_str()[1..].parse().unwrap()
}

/// The next message, which must come.
pub(crate) async fn next(consumer: &mut Box<dyn Consumer>) -> Delivery {
    tokio::time::timeout(SOON, consumer.next()).await.expect("a message comes").unwrap()
}

/// The next `count` messages, unsettled.
pub(crate) async fn take(consumer: &mut Box<dyn Consumer>, count: usize) -> Vec<Delivery> {
    let mut taken = Vec::new();
    for _ in 0..count {
        taken.push(next(consumer).await);
    }
    taken
}

pub(crate) fn numbers(deliveries: &[Delivery]) -> Vec<u64> {
    deliveries.iter().map(number).collect()
}

/// Nothing comes now.
pub(crate) async fn nothing_comes(consumer: &mut Box<dyn Consumer>) {
    if let Ok(delivery) = tokio::time::timeout(A_MOMENT, consumer.next()).await {
        panic!("unexpected: {:?}", delivery.map(|delivery| delivery.message.id.clone()));
    }
}

/// The ids of everything in the queue, in order, taken out of it.
pub(crate) async fn drain(store: &dyn MessageStore) -> Vec<String> {
    let mut consumer = store.consume(256).await.unwrap();
    let mut ids = Vec::new();
    while let Ok(delivery) = tokio::time::timeout(A_MOMENT * 2, consumer.next()).await {
        let delivery = delivery.unwrap();
        consumer.ack(&[delivery.tag]).unwrap();
        ids.push(delivery.message.id.as_str().to_owned());
    }
    consumer.give_back().await.unwrap();
    ids
}

/// Waits until a question is answered with yes.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut question: impl FnMut() -> F) {
    let all = async {
        while !question().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, all).await.unwrap_or_else(|_| panic!("never: {what}"));
}
