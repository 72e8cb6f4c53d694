//! One store: publishing, consuming and looking by way of the two sessions of its [`Broker`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use lapin::types::ShortString;
use tokio::sync::{Notify, watch};

use super::deactivation::Records;
use super::keeper::{Keeper, Kept};
use super::publish::Publisher;
use super::session::{Epoch, State};
use super::window::taking_none;
use super::{Broker, consume, deactivation, topology};
use crate::core::deactivation::Deactivation;
use crate::core::message::{Message, MessageId};
use crate::core::topology::{Consumers, Management, Queue, QueueKind, Topology};
use crate::store::mailbox::Mailbox;
use crate::store::{BoxFuture, Connection, Consumer, Depth, MessageStore, PublishError, StoreError};

/// Between two looks at what publishes fail on.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// A store on a [`Broker`].
pub(super) struct RabbitStore {
    broker: Broker,
    publisher: Publisher,
    topology: Topology,
    name: String,
    confirm_timeout: Duration,
    kept: Kept,
    records: Records,
    /// Somebody is finding out whether everything is still there.
    looking: Arc<AtomicBool>,
}

impl fmt::Debug for RabbitStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rabbitmq::RabbitStore({})", self.name)
    }
}

impl RabbitStore {
    /// Starts its keeper and its publishing task, which end with it.
    pub(super) fn start(broker: Broker, store: &str, topology: &Topology, confirm_timeout: Duration) -> Self {
        let name = match (&topology.queue, &topology.exchange) {
            (Some(queue), _) => queue.name.clone(),
            (None, Some(exchange)) => exchange.name.clone(),
            (None, None) => String::new(),
        };
        Self {
            kept: Keeper::start(broker.clone(), store, topology),
            publisher: Publisher::start(broker.0.publishing.state()),
            broker,
            topology: topology.clone(),
            name,
            confirm_timeout,
            records: Records::default(),
            looking: Arc::default(),
        }
    }

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
                return Err(PublishError::Refused(taking_none(reason)));
            }
            State::Connecting => return Err(PublishError::NotConnected("connecting".to_owned())),
            State::Down(error) => return Err(PublishError::NotConnected(error.detail())),
        }
        if let Err(error) = &*self.kept.declaration.borrow() {
            return Err(PublishError::NotConnected(error.detail()));
        }
        match self.broker.settling_behind(&self.topology) {
            Some(queue) => Err(PublishError::NotConnected(format!("queue `{queue}` is being set up"))),
            None => Ok(()),
        }
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
            (Ok(()) | Err(PublishError::Refused(_) | PublishError::PartlyRefused(_) | PublishError::Invalid(_)), _) => {
            }
            (Err(_), _) => self.look_aside(),
        }
        published
    }

    /// Looks whether everything is still there. The caller does not wait for it: a broker that did not confirm may not
    /// answer this either.
    fn look_aside(&self) {
        if self.looking.swap(true, Ordering::AcqRel) {
            return;
        }
        let (again, looking) = (self.again(), self.looking.clone());
        tokio::spawn(async move {
            again.look_again().await;
            // What goes on failing is not looked at with every publish.
            tokio::time::sleep(LOOK_AGAIN).await;
            looking.store(false, Ordering::Release);
        });
    }

    fn again(&self) -> Again {
        Again { broker: self.broker.clone(), topology: self.topology.clone(), redeclare: self.kept.redeclare.clone() }
    }
}

/// What is needed to find out whether something was deleted under us, and to have it made again.
struct Again {
    broker: Broker,
    topology: Topology,
    redeclare: Arc<Notify>,
}

impl Again {
    /// A queue that was deleted under us is made again; until it has settled nothing is published to it. An exchange or
    /// a binding can't be looked for without making it.
    async fn look_again(&self) {
        if let Some(queue) = &self.topology.queue
            && let Ok(epoch) = self.broker.0.consuming.epoch()
            && matches!(topology::look(&epoch, &queue.name).await, Err(StoreError::NotFound(_)))
        {
            self.gone(queue);
        }
        if self.topology.exchange.is_some() {
            self.redeclare.notify_one();
        }
    }

    fn gone(&self, queue: &Queue) {
        match queue.management {
            // Told when it is there again.
            Management::Declare => tracing::debug!(queue = queue.name, "the queue was deleted; declaring it again"),
            Management::Existing => tracing::warn!(queue = queue.name, "the queue was deleted; waiting for it"),
        }
        self.broker.lost(&queue.name, queue.kind);
        self.redeclare.notify_one();
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
            let found = topology::look(&*self.epoch()?, self.queue()?).await;
            if let (Err(StoreError::NotFound(_)), Some(queue)) = (&found, &self.topology.queue)
                && queue.management == Management::Declare
            {
                self.again().gone(queue);
            }
            let found = found?;
            Ok(Depth { ready: found.message_count().into(), consumers: found.consumer_count() })
        })
    }

    fn consume(&self, prefetch: u16) -> BoxFuture<'_, Result<Box<dyn Consumer>, StoreError>> {
        Box::pin(async move {
            let epoch = self.epoch()?;
            self.kept.declaration.borrow().clone()?;
            let alone = self.topology.queue.as_ref().is_some_and(|queue| queue.consumers == Consumers::SingleActive);
            match consume::attach(epoch, self.queue()?, prefetch, alone).await {
                // What is in use is there.
                Err(error @ StoreError::InUse(_)) => Err(error),
                Ok(consumer) => Ok(Box::new(consumer) as Box<dyn Consumer>),
                Err(error) => {
                    self.again().look_again().await;
                    Err(error)
                }
            }
        })
    }

    fn deactivation<'a>(&'a self, processor: &'a str) -> BoxFuture<'a, Result<Option<Deactivation>, StoreError>> {
        Box::pin(async move { self.records.read(&self.broker, &self.epoch()?, processor, self.kind()).await })
    }

    fn deactivate<'a>(&'a self, processor: &'a str, record: &'a Deactivation) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let epoch = self.epoch()?;
            if deactivation::length(&self.broker, &epoch, processor, self.kind()).await? > 0 {
                return Ok(());
            }
            let queue = deactivation::queue(processor);
            if let Some(left) = self.broker.settling(&queue) {
                tokio::time::sleep(left).await;
            }
            let body = serde_json::to_vec(record).map_err(|error| StoreError::Corrupt(error.to_string()))?;
            let message = Message::new(MessageId::new(uuid::Uuid::now_v7().to_string()), body);
            let key = topology::name(&queue)?;
            let stored =
                self.publisher.publish(Arc::new(message), ShortString::default(), key, self.confirm_timeout).await;
            // Whatever it says: what was known of it is not known any more.
            self.records.forget(processor);
            match stored {
                Ok(()) => Ok(()),
                // Full: another worker's record stands, and the first one counts.
                Err(PublishError::Refused(_)) if self.deactivation(processor).await?.is_some() => Ok(()),
                Err(error) => Err(StoreError::NotConnected(error.to_string())),
            }
        })
    }

    fn reactivate<'a>(&'a self, processor: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move { self.records.remove(&self.epoch()?, processor).await })
    }

    fn connection(&self) -> watch::Receiver<Connection> {
        self.kept.connection.clone()
    }

    fn mailbox(&self) -> Option<Arc<Mailbox>> {
        Some(self.broker.mailbox())
    }

    fn reply<'a>(&'a self, place: &'a str, answer: Arc<Message>) -> BoxFuture<'a, Result<(), PublishError>> {
        Box::pin(async move {
            let place = ShortString::try_new(place).map_err(|_| PublishError::Unroutable(place.to_owned()))?;
            self.publisher.publish(answer, ShortString::default(), place, self.confirm_timeout).await
        })
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn made(&self) -> Option<Timestamp> {
        *self.kept.made.borrow()
    }

    fn name(&self) -> &str {
        &self.name
    }
}
