//! The store on RabbitMQ, by AMQP 0-9-1 over lapin.
//!
//! Two connections a broker: one publishes, one consumes, declares and looks. An alarm blocks the first and never the
//! second, so what is delivered is acknowledged while nothing new is accepted. Who may do what with a channel, and
//! what each answer of the broker means, is written in the modules: [`session`] keeps a connection up, `publish` owns
//! the confirms, `consume` the deliveries, `topology` the declarations, `wire` the
//! format, `intake` what of a broker's bytes reaches the client library, over `transport`.

mod address;
mod consume;
mod deactivation;
mod intake;
mod publish;
mod session;
mod suspects;
mod tls;
mod topology;
mod transport;
mod window;
mod wire;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::types::ShortString;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use address::{Address, AddressError, Overrides, Tls};
pub use session::AddressSource;

use self::publish::Publisher;
use self::session::{Epoch, Session, State};
use crate::core::deactivation::Deactivation;
use crate::core::message::{Message, MessageId};
use crate::core::topology::{Consumers, Management, Queue, QueueKind, Topology};
use crate::store::{BoxFuture, Connection, Consumer, Depth, MessageStore, PublishError, StoreError};

/// A quorum queue that was just made is not yet safe on a single node: killed within a second, the broker comes back
/// with the queue empty, confirmed messages included. Measured: lost at 0.2 s, kept at 1.5 s.
const QUORUM_SETTLES: Duration = Duration::from_secs(2);

/// Between two tries to declare what the broker refused.
const REDECLARE: Duration = Duration::from_secs(5);

/// Which store asked for which binding keys.
type BindingsByStore = HashMap<String, BTreeSet<String>>;

/// One broker and virtual host, with its two connections. Cheap to clone.
#[derive(Clone)]
pub struct Broker(Arc<Shared>);

struct Shared {
    publishing: Session,
    consuming: Session,
    /// When this process first found or made each quorum queue; `None` for one that is known to be gone.
    settled: Mutex<HashMap<String, Option<Instant>>>,
    /// Which store of this process asked for which bindings, by queue and exchange.
    bound: Mutex<HashMap<(String, String), BindingsByStore>>,
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("rabbitmq::Broker")
    }
}

impl Broker {
    /// Starts to connect, and keeps connected until the last clone and the last store are dropped. `name` is shown by
    /// the broker's management.
    pub fn start(name: &str, address: AddressSource) -> Self {
        Self(Arc::new(Shared {
            publishing: Session::start(format!("stagepost {name} publish"), address.clone()),
            consuming: Session::start(format!("stagepost {name} consume"), address),
            settled: Mutex::default(),
            bound: Mutex::default(),
        }))
    }

    /// The Secret has changed: connect anew where there is no connection, without waiting.
    pub fn refresh(&self) {
        self.0.publishing.refresh();
        self.0.consuming.refresh();
    }

    /// A store on this broker. Its topology is declared at every connect. `store` names it among those of this
    /// process: bindings that it asked for before, and no other store asks for, are removed.
    pub fn store(&self, store: &str, topology: &Topology, confirm_timeout: Duration) -> Arc<dyn MessageStore> {
        let name = match (&topology.queue, &topology.exchange) {
            (Some(queue), _) => queue.name.clone(),
            (None, Some(exchange)) => exchange.name.clone(),
            (None, None) => String::new(),
        };
        let stop = CancellationToken::new();
        let (declared, declaration) = watch::channel(Err(StoreError::NotConnected("connecting".to_owned())));
        let (up, connection) = watch::channel(Connection::Connecting);
        let redeclare = Arc::new(Notify::new());
        let keeper = Keeper {
            broker: self.clone(),
            store: store.to_owned(),
            topology: topology.clone(),
            declared,
            up,
            redeclare: redeclare.clone(),
            stop: stop.clone(),
        };
        tokio::spawn(keeper.run());
        Arc::new(RabbitStore {
            broker: self.clone(),
            publisher: Publisher::start(self.0.publishing.state()),
            topology: topology.clone(),
            name,
            confirm_timeout,
            declaration,
            connection,
            redeclare,
            looking: Arc::default(),
            _stop: stop.drop_guard(),
        })
    }

    /// How long until a quorum queue may be published to.
    fn settling(&self, queue: &str) -> Option<Duration> {
        let since = *self.0.settled.lock().unwrap_or_else(PoisonError::into_inner).get(queue)?;
        let elapsed = since.map_or(Duration::ZERO, |since| since.elapsed());
        QUORUM_SETTLES.checked_sub(elapsed).filter(|left| !left.is_zero())
    }

    fn found(&self, queue: &str) {
        let mut settled = self.0.settled.lock().unwrap_or_else(PoisonError::into_inner);
        settled.entry(queue.to_owned()).or_default().get_or_insert_with(Instant::now);
    }

    /// Remembers what `store` binds now, and returns what nobody asks for any more.
    fn rebind(&self, store: &str, topology: &Topology) -> Vec<String> {
        let (Some(queue), Some(exchange)) = (&topology.queue, &topology.exchange) else { return Vec::new() };
        let mut bound = self.0.bound.lock().unwrap_or_else(PoisonError::into_inner);
        let stores = bound.entry((queue.name.clone(), exchange.name.clone())).or_default();
        let wanted: BTreeSet<String> = topology.bindings.iter().cloned().collect();
        let before = stores.insert(store.to_owned(), wanted).unwrap_or_default();
        before.into_iter().filter(|key| !stores.values().any(|keys| keys.contains(key))).collect()
    }

    /// A queue is gone. A quorum queue takes no publishes until it has been made again and has settled.
    fn lost(&self, queue: &Queue) {
        if queue.kind == QueueKind::Quorum {
            self.0.settled.lock().unwrap_or_else(PoisonError::into_inner).insert(queue.name.clone(), None);
        }
    }
}

/// Declares a store's topology on every connection, and says whether it stands.
struct Keeper {
    broker: Broker,
    store: String,
    topology: Topology,
    declared: watch::Sender<Result<(), StoreError>>,
    up: watch::Sender<Connection>,
    redeclare: Arc<Notify>,
    stop: CancellationToken,
}

impl Keeper {
    async fn run(self) {
        let mut consuming = self.broker.0.consuming.state();
        let mut publishing = self.broker.0.publishing.state();
        loop {
            consuming.mark_unchanged();
            publishing.mark_unchanged();
            let result = self.declare().await;
            let _ = self.declared.send_replace(result.clone());
            if let (Ok(()), Some(left)) = (&result, self.settling()) {
                self.tell(&Err(StoreError::NotConnected("the queue is being set up".to_owned())));
                tokio::time::sleep(left).await;
            }
            let failed = result.is_err();
            self.tell(&result);
            tokio::select! {
                () = self.stop.cancelled() => return,
                changed = consuming.changed() => if changed.is_err() { return },
                changed = publishing.changed() => if changed.is_err() { return },
                () = self.redeclare.notified() => self.tell_gone(),
                () = tokio::time::sleep(REDECLARE), if failed => {}
            }
        }
    }

    fn tell_gone(&self) {
        let Some(queue) = &self.topology.queue else { return };
        match queue.management {
            Management::Declare => tracing::warn!(queue = queue.name, "the queue was deleted; declaring it again"),
            Management::Existing => tracing::warn!(queue = queue.name, "the queue was deleted; waiting for it"),
        }
    }

    async fn declare(&self) -> Result<(), StoreError> {
        let epoch = self.broker.0.consuming.epoch()?;
        if let Some(queue) = &self.topology.queue
            && queue.kind == QueueKind::Quorum
            && matches!(topology::look(&epoch, &queue.name).await, Err(StoreError::NotFound(_)))
        {
            // The declaration does not say whether it made the queue, and a new one must settle.
            self.broker.lost(queue);
        }
        topology::declare(&epoch, &self.topology).await?;
        if let (Some(queue), Some(exchange)) = (&self.topology.queue, &self.topology.exchange) {
            let gone = self.broker.rebind(&self.store, &self.topology);
            topology::unbind(&epoch, &queue.name, &exchange.name, &gone).await?;
        }
        if let Some(queue) = &self.topology.queue
            && queue.kind == QueueKind::Quorum
        {
            self.broker.found(&queue.name);
        }
        Ok(())
    }

    fn settling(&self) -> Option<Duration> {
        self.broker.settling(&self.topology.queue.as_ref()?.name)
    }

    fn tell(&self, result: &Result<(), StoreError>) {
        let publishing = self.broker.0.publishing.state().borrow().clone();
        let consuming = self.broker.0.consuming.state().borrow().clone();
        let connection = match (result, publishing, consuming) {
            (_, State::Connecting, State::Connecting | State::Up(_) | State::Blocked(..))
            | (_, State::Up(_) | State::Blocked(..), State::Connecting) => Connection::Connecting,
            (_, State::Down(error), _) | (_, _, State::Down(error)) => Connection::Down(error),
            (Err(error), ..) => Connection::Down(error.clone()),
            (_, State::Blocked(_, reason), _) => {
                Connection::Down(StoreError::NotConnected(format!("blocked by the broker: {reason}")))
            }
            (Ok(()), State::Up(_), State::Up(_) | State::Blocked(..)) => Connection::Up,
        };
        self.up.send_if_modified(|now| {
            let changed = *now != connection;
            *now = connection;
            changed
        });
    }
}

/// A store on a [`Broker`].
struct RabbitStore {
    broker: Broker,
    publisher: Publisher,
    topology: Topology,
    name: String,
    confirm_timeout: Duration,
    declaration: watch::Receiver<Result<(), StoreError>>,
    connection: watch::Receiver<Connection>,
    redeclare: Arc<Notify>,
    /// Somebody is finding out whether the queue is still there.
    looking: Arc<AtomicBool>,
    _stop: DropGuard,
}

impl fmt::Debug for RabbitStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rabbitmq::RabbitStore({})", self.name)
    }
}

impl RabbitStore {
    fn epoch(&self) -> Result<Arc<Epoch>, StoreError> {
        self.broker.0.consuming.epoch()
    }

    fn queue(&self) -> Result<&str, StoreError> {
        self.topology
            .queue
            .as_ref()
            .map(|queue| queue.name.as_str())
            .ok_or_else(|| StoreError::NotFound("the store has no queue: it is publish-only".to_owned()))
    }

    fn kind(&self) -> QueueKind {
        self.topology.queue.as_ref().map_or(QueueKind::Quorum, |queue| queue.kind)
    }

    /// Whether a publish may be tried now; said at once, so that no caller waits for what is known.
    fn ready(&self) -> Result<(), PublishError> {
        match &*self.broker.0.publishing.state().borrow() {
            State::Up(_) => {}
            State::Blocked(_, reason) => {
                return Err(PublishError::Refused(format!("the broker takes no publishes: {reason}")));
            }
            State::Connecting => return Err(PublishError::NotConnected("connecting".to_owned())),
            State::Down(error) => return Err(PublishError::NotConnected(detail(error))),
        }
        if let Err(error) = &*self.declaration.borrow() {
            return Err(PublishError::NotConnected(detail(error)));
        }
        if let Some(queue) = &self.topology.queue
            && self.broker.settling(&queue.name).is_some()
        {
            return Err(PublishError::NotConnected(format!("queue `{}` is being set up", queue.name)));
        }
        Ok(())
    }

    async fn publish_message(&self, message: Arc<Message>, routing_key: Option<&str>) -> Result<(), PublishError> {
        self.ready()?;
        let exchange = self.topology.exchange.as_ref().map_or("", |exchange| exchange.name.as_str());
        let key = routing_key.unwrap_or(&self.topology.routing_key);
        let key = ShortString::try_new(key)
            .map_err(|_| PublishError::Invalid("its routing key is longer than 255 bytes".to_owned()))?;
        let exchange = ShortString::try_new(exchange).unwrap_or_default();
        let published = self.publisher.publish(message, exchange, key.clone(), self.confirm_timeout).await;
        match (&published, &self.topology.queue) {
            // The default exchange knows every queue by its name: this one was gone, and may be back by now, new.
            (Err(PublishError::Unroutable(_)), Some(queue))
                if self.topology.exchange.is_none() && queue.name == key.as_str() =>
            {
                self.again().gone(queue);
            }
            (Err(PublishError::Unroutable(_) | PublishError::Unknown(_)), _) => self.look_aside(),
            _ => {}
        }
        published
    }

    /// Looks whether the queue is still there. The caller does not wait for it: a broker that did not confirm may not
    /// answer this either.
    fn look_aside(&self) {
        if self.looking.swap(true, Ordering::AcqRel) {
            return;
        }
        let (again, looking) = (self.again(), self.looking.clone());
        tokio::spawn(async move {
            again.look_again().await;
            looking.store(false, Ordering::Release);
        });
    }

    fn again(&self) -> Again {
        Again { broker: self.broker.clone(), topology: self.topology.clone(), redeclare: self.redeclare.clone() }
    }
}

/// What is needed to find out whether a queue was deleted under us, and to have it made again.
struct Again {
    broker: Broker,
    topology: Topology,
    redeclare: Arc<Notify>,
}

impl Again {
    /// A queue that was deleted under us is made again; until it has settled nothing is published to it.
    async fn look_again(&self) {
        let Some(queue) = &self.topology.queue else { return };
        let Ok(epoch) = self.broker.0.consuming.epoch() else { return };
        if matches!(topology::look(&epoch, &queue.name).await, Err(StoreError::NotFound(_))) {
            self.gone(queue);
        }
    }

    fn gone(&self, queue: &Queue) {
        self.broker.lost(queue);
        self.redeclare.notify_one();
    }
}

fn detail(error: &StoreError) -> String {
    match error {
        StoreError::NotConnected(text) => text.clone(),
        other => other.to_string(),
    }
}

impl MessageStore for RabbitStore {
    fn publish<'a>(
        &'a self,
        message: Arc<Message>,
        routing_key: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), PublishError>> {
        Box::pin(self.publish_message(message, routing_key))
    }

    fn depth(&self) -> BoxFuture<'_, Result<Depth, StoreError>> {
        Box::pin(async move {
            let found = topology::look(&*self.epoch()?, self.queue()?).await?;
            Ok(Depth { ready: found.message_count().into(), consumers: found.consumer_count() })
        })
    }

    fn consume(&self, prefetch: u16) -> BoxFuture<'_, Result<Box<dyn Consumer>, StoreError>> {
        Box::pin(async move {
            let epoch = self.epoch()?;
            self.declaration.borrow().clone()?;
            let alone = self.topology.queue.as_ref().is_some_and(|queue| queue.consumers == Consumers::SingleActive);
            match consume::attach(epoch, self.queue()?, prefetch, alone).await {
                Ok(consumer) => Ok(Box::new(consumer) as Box<dyn Consumer>),
                Err(error) => {
                    self.again().look_again().await;
                    Err(error)
                }
            }
        })
    }

    fn deactivation<'a>(&'a self, processor: &'a str) -> BoxFuture<'a, Result<Option<Deactivation>, StoreError>> {
        Box::pin(async move { deactivation::read(&self.epoch()?, processor).await })
    }

    fn deactivate<'a>(&'a self, processor: &'a str, record: &'a Deactivation) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let epoch = self.epoch()?;
            if deactivation::declare(&epoch, processor, self.kind()).await? > 0 {
                return Ok(());
            }
            let queue = deactivation::queue(processor);
            if self.kind() == QueueKind::Quorum {
                self.broker.found(&queue);
                if let Some(left) = self.broker.settling(&queue) {
                    tokio::time::sleep(left).await;
                }
            }
            let body = serde_json::to_vec(record).map_err(|error| StoreError::Corrupt(error.to_string()))?;
            let message = Message::new(MessageId::new(uuid::Uuid::now_v7().to_string()), body);
            let key = topology::name(&queue)?;
            let stored =
                self.publisher.publish(Arc::new(message), ShortString::default(), key, self.confirm_timeout).await;
            match stored {
                Ok(()) => Ok(()),
                // Full: another worker's record stands, and the first one counts.
                Err(PublishError::Refused(_)) if deactivation::read(&epoch, processor).await?.is_some() => Ok(()),
                Err(error) => Err(StoreError::NotConnected(error.to_string())),
            }
        })
    }

    fn reactivate<'a>(&'a self, processor: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            match topology::purge(&*self.epoch()?, &deactivation::queue(processor)).await {
                Ok(()) | Err(StoreError::NotFound(_)) => Ok(()),
                Err(error) => Err(error),
            }
        })
    }

    fn connection(&self) -> watch::Receiver<Connection> {
        self.connection.clone()
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn name(&self) -> &str {
        &self.name
    }
}
