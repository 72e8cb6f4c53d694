//! One store of the broker: the port, for one topology.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::Inner;
use super::consumer::Attached;
use super::queue::{Queue, lock};
use super::record;
use super::shared::{Control, Publish};
use crate::core::deactivation::Deactivation;
use crate::core::message::{MAX_BODY_BYTES, MAX_HEAD_BYTES, Message};
use crate::core::topology::Topology;
use crate::store::mailbox::Mailbox;
use crate::store::{BoxFuture, Connection, Consumer, Depth, MessageStore, PublishError, StoreError};

/// How long a commit may take until its outcome counts as unknown: the default of a store's `confirmTimeout`, and of
/// what is not a publish. Reached only when the disk hangs.
pub(super) const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);

/// A store.
#[derive(Debug)]
pub(super) struct Handle {
    inner: Arc<Inner>,
    vhost: String,
    topology: Topology,
    queue: Option<Arc<Queue>>,
    confirm_timeout: Duration,
}

impl Handle {
    pub(super) fn new(
        inner: Arc<Inner>,
        vhost: &str,
        topology: &Topology,
        queue: Option<Arc<Queue>>,
        confirm_timeout: Duration,
    ) -> Self {
        Self { inner, vhost: vhost.to_owned(), topology: topology.clone(), queue, confirm_timeout }
    }

    /// Routes the message and hands it to the writer: from then on it is carried through.
    fn submit(
        &self,
        message: Arc<Message>,
        routing_key: Option<&str>,
    ) -> Result<oneshot::Receiver<Result<(), PublishError>>, PublishError> {
        if message.body.len() > MAX_BODY_BYTES {
            return Err(PublishError::Invalid(format!(
                "its body has {} bytes, and the most is {MAX_BODY_BYTES}",
                message.body.len()
            )));
        }
        let key = routing_key.unwrap_or(&self.topology.routing_key);
        let exchange = self.topology.exchange.as_ref().map(|exchange| exchange.name.as_str());
        let routes = self.inner.shared.routes.read().unwrap_or_else(PoisonError::into_inner);
        let queues = routes.route(&self.vhost, exchange, key);
        drop(routes);
        if queues.is_empty() {
            return Err(PublishError::Unroutable(key.to_owned()));
        }
        let head = record::encode_head(&message).map_err(|error| PublishError::Invalid(error.to_string()))?;
        // What a death adds is bounded, and a message that was stored must find its dead letter store.
        if head.len() > MAX_HEAD_BYTES && message.death.is_none() {
            return Err(PublishError::Invalid(format!(
                "its headers have {} bytes, and the most is {MAX_HEAD_BYTES}",
                head.len()
            )));
        }
        let (answer, answered) = oneshot::channel();
        self.inner.shared.publish(Publish { queues, head, message, answer })?;
        Ok(answered)
    }

    fn queue(&self) -> Result<&Arc<Queue>, StoreError> {
        self.queue.as_ref().ok_or_else(|| {
            StoreError::NotFound(format!("`{}` is only published to: it has no queue of its own", self.name()))
        })
    }

    fn ask(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<(), StoreError>>) -> Control,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        let (answer, answered) = oneshot::channel();
        let asked = self.inner.shared.control(request(answer));
        Box::pin(async move {
            asked?;
            match timeout(COMMIT_TIMEOUT, answered).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(StoreError::Closed),
                Err(_) => Err(StoreError::Disk(format!("no commit within {COMMIT_TIMEOUT:?}"))),
            }
        })
    }
}

impl MessageStore for Handle {
    fn publish<'a>(
        &'a self,
        message: Arc<Message>,
        routing_key: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), PublishError>> {
        let submitted = self.submit(message, routing_key);
        Box::pin(async move {
            match timeout(self.confirm_timeout, submitted?).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(PublishError::Unknown("the store was closed meanwhile".to_owned())),
                Err(_) => Err(PublishError::Unknown(format!("the disk took longer than {:?}", self.confirm_timeout))),
            }
        })
    }

    fn depth(&self) -> BoxFuture<'_, Result<Depth, StoreError>> {
        let depth = self.queue().map(|queue| queue.depth());
        Box::pin(std::future::ready(depth))
    }

    fn consume(&self, prefetch: u16) -> BoxFuture<'_, Result<Box<dyn Consumer>, StoreError>> {
        Box::pin(async move {
            if self.inner.shared.is_closed() {
                return Err(StoreError::Closed);
            }
            let queue = self.queue()?.clone();
            let consumer: Box<dyn Consumer> = Box::new(Attached::new(self.inner.clone(), queue, prefetch));
            Ok(consumer)
        })
    }

    fn deactivation<'a>(&'a self, processor: &'a str) -> BoxFuture<'a, Result<Option<Deactivation>, StoreError>> {
        let key = (self.vhost.clone(), processor.to_owned());
        let found = lock(&self.inner.shared.deactivations).get(&key).cloned();
        Box::pin(std::future::ready(Ok(found)))
    }

    fn deactivate<'a>(&'a self, processor: &'a str, record: &'a Deactivation) -> BoxFuture<'a, Result<(), StoreError>> {
        self.ask(|answer| Control::Deactivate {
            vhost: self.vhost.clone(),
            processor: processor.to_owned(),
            record: record.clone(),
            answer,
        })
    }

    fn reactivate<'a>(&'a self, processor: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        self.ask(|answer| Control::Reactivate { vhost: self.vhost.clone(), processor: processor.to_owned(), answer })
    }

    fn connection(&self) -> watch::Receiver<Connection> {
        self.inner.shared.connection.subscribe()
    }

    fn mailbox(&self) -> Option<Arc<Mailbox>> {
        Some(self.inner.shared.mailbox.clone())
    }

    /// The caller is in this process. One of an earlier process is gone with it.
    fn reply<'a>(&'a self, place: &'a str, answer: Arc<Message>) -> BoxFuture<'a, Result<(), PublishError>> {
        let mailbox = &self.inner.shared.mailbox;
        let is_here = mailbox.is_at(place);
        if is_here {
            mailbox.take_in(Arc::unwrap_or_clone(answer));
        }
        Box::pin(std::future::ready(if is_here { Ok(()) } else { Err(PublishError::Unroutable(place.to_owned())) }))
    }

    fn name(&self) -> &str {
        let queue = self.topology.queue.as_ref().map(|queue| queue.name.as_str());
        let exchange = self.topology.exchange.as_ref().map(|exchange| exchange.name.as_str());
        queue.or(exchange).unwrap_or(&self.topology.routing_key)
    }
}
