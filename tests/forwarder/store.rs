//! A store in memory that does what a test says: the contract of `stagepost::store`, plus faults.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use stagepost::core::deactivation::Deactivation;
use stagepost::core::message::{Carried, Message};
use stagepost::store::{BoxFuture, Connection, Consumer, Delivery, Depth, MessageStore, PublishError, StoreError, Tag};
use tokio::sync::{Notify, watch};

#[derive(Debug, Clone)]
pub(crate) struct MemoryStore(Arc<Core>);

impl Deref for MemoryStore {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.0
    }
}

#[derive(Debug)]
pub(crate) struct Core {
    name: String,
    inner: Mutex<Inner>,
    stored: Notify,
    connection: watch::Sender<Connection>,
}

#[derive(Debug, Default)]
struct Inner {
    queue: BTreeMap<u64, Waiting>,
    next_place: u64,
    next_consumer: u64,
    /// Consumers of an earlier epoch are gone.
    epoch: u64,
    attached: u32,
    most_attached: u32,
    publish_error: Option<PublishError>,
    consume_error: Option<StoreError>,
    record_error: Option<StoreError>,
    reading_error: Option<StoreError>,
    record: Option<Deactivation>,
    log: Vec<(u64, Event)>,
    polls: u32,
    pretended_depth: Option<u64>,
}

#[derive(Debug)]
struct Waiting {
    message: Arc<Message>,
    redelivered: bool,
    holder: Option<u64>,
}

/// What happened, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Published(String),
    Taken(String),
    Acked(String),
    Returned(usize),
    Attached(u16),
    RecordStored,
    /// At the target.
    Succeeded(String),
}

/// Orders the events of stores and targets of one test.
pub(crate) fn moment() -> u64 {
    static MOMENT: AtomicU64 = AtomicU64::new(0);
    MOMENT.fetch_add(1, Ordering::Relaxed)
}

impl Inner {
    fn note(&mut self, event: Event) {
        self.log.push((moment(), event));
    }
}

impl MemoryStore {
    pub(crate) fn new(name: &str) -> Self {
        Self(Arc::new(Core {
            name: name.to_owned(),
            inner: Mutex::default(),
            stored: Notify::new(),
            connection: watch::Sender::new(Connection::Up),
        }))
    }
}

impl Core {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub(crate) fn put(&self, message: Message) {
        self.add(message, false);
    }

    fn add(&self, message: Message, redelivered: bool) {
        let mut inner = self.inner();
        let place = inner.next_place;
        inner.next_place += 1;
        inner.queue.insert(place, Waiting { message: Arc::new(message), redelivered, holder: None });
        drop(inner);
        self.stored.notify_waiters();
    }

    /// All messages that are still in the queue, held ones included, in order.
    pub(crate) fn messages(&self) -> Vec<Arc<Message>> {
        self.inner().queue.values().map(|waiting| Arc::clone(&waiting.message)).collect()
    }

    pub(crate) fn ids(&self) -> Vec<String> {
        self.messages().iter().map(|message| message.id.to_string()).collect()
    }

    pub(crate) fn log(&self) -> Vec<Event> {
        self.timeline().into_iter().map(|(_, event)| event).collect()
    }

    pub(crate) fn timeline(&self) -> Vec<(u64, Event)> {
        self.inner().log.clone()
    }

    /// How often a consumer was asked for a message.
    pub(crate) fn polls(&self) -> u32 {
        self.inner().polls
    }

    /// The depth says so many, whatever is there.
    pub(crate) fn pretend_depth(&self, depth: Option<u64>) {
        self.inner().pretended_depth = depth;
    }

    pub(crate) fn put_redelivered(&self, message: Message) {
        self.add(message, true);
    }

    pub(crate) fn acked(&self) -> Vec<String> {
        let acked = |event| if let Event::Acked(id) = event { Some(id) } else { None };
        self.log().into_iter().filter_map(acked).collect()
    }

    pub(crate) fn most_attached(&self) -> u32 {
        self.inner().most_attached
    }

    pub(crate) fn attached(&self) -> u32 {
        self.inner().attached
    }

    pub(crate) fn fail_publish(&self, error: Option<PublishError>) {
        self.inner().publish_error = error;
    }

    pub(crate) fn fail_consume(&self, error: Option<StoreError>) {
        self.inner().consume_error = error;
    }

    pub(crate) fn fail_record(&self, error: Option<StoreError>) {
        self.inner().record_error = error;
    }

    /// The record can't be read.
    pub(crate) fn fail_reading(&self, error: Option<StoreError>) {
        self.inner().reading_error = error;
    }

    pub(crate) fn record(&self) -> Option<Deactivation> {
        self.inner().record.clone()
    }

    pub(crate) fn set_record(&self, record: Option<Deactivation>) {
        self.inner().record = record;
    }

    /// The connection breaks: what is held goes back, acknowledgements of the time before are refused.
    pub(crate) fn break_connection(&self) {
        let mut inner = self.inner();
        inner.epoch += 1;
        inner.attached = 0;
        for waiting in inner.queue.values_mut() {
            if waiting.holder.take().is_some() {
                waiting.redelivered = true;
            }
        }
        drop(inner);
        self.stored.notify_waiters();
    }

    fn try_take(&self, consumer: u64, epoch: u64, prefetch: usize) -> Option<Result<Delivery, StoreError>> {
        let mut inner = self.inner();
        if inner.epoch != epoch {
            return Some(Err(StoreError::NotConnected("connection lost".into())));
        }
        if inner.queue.values().filter(|waiting| waiting.holder == Some(consumer)).count() >= prefetch {
            return None;
        }
        let (place, waiting) = inner.queue.iter_mut().find(|(_, waiting)| waiting.holder.is_none())?;
        waiting.holder = Some(consumer);
        let delivery = Delivery {
            tag: Tag(*place),
            message: Arc::clone(&waiting.message),
            redelivered: waiting.redelivered,
            returned: 0,
            source: Carried::default(),
        };
        let event = Event::Taken(delivery.message.id.to_string());
        inner.note(event);
        Some(Ok(delivery))
    }
}

impl MessageStore for MemoryStore {
    fn publish<'a>(&'a self, message: Arc<Message>, _: Option<&'a str>) -> BoxFuture<'a, Result<(), PublishError>> {
        Box::pin(async move {
            if let Some(error) = self.inner().publish_error.clone() {
                return Err(error);
            }
            self.inner().note(Event::Published(message.id.to_string()));
            self.put(Message::clone(&message));
            Ok(())
        })
    }

    fn depth(&self) -> BoxFuture<'_, Result<Depth, StoreError>> {
        Box::pin(async move {
            let inner = self.inner();
            let ready = inner.queue.values().filter(|waiting| waiting.holder.is_none()).count() as u64;
            let ready = inner.pretended_depth.unwrap_or(ready);
            Ok(Depth { ready, consumers: inner.attached })
        })
    }

    fn consume(&self, prefetch: u16) -> BoxFuture<'_, Result<Box<dyn Consumer>, StoreError>> {
        Box::pin(async move {
            let mut inner = self.inner();
            if let Some(error) = inner.consume_error.clone() {
                return Err(error);
            }
            inner.attached += 1;
            inner.most_attached = inner.most_attached.max(inner.attached);
            inner.note(Event::Attached(prefetch));
            inner.next_consumer += 1;
            let consumer = MemoryConsumer {
                store: self.clone(),
                id: inner.next_consumer,
                epoch: inner.epoch,
                prefetch: usize::from(prefetch),
            };
            Ok(Box::new(consumer) as Box<dyn Consumer>)
        })
    }

    fn deactivation<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<Deactivation>, StoreError>> {
        Box::pin(async move {
            let inner = self.inner();
            inner.reading_error.clone().map_or_else(|| Ok(inner.record.clone()), Err)
        })
    }

    fn deactivate<'a>(&'a self, _: &'a str, record: &'a Deactivation) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let mut inner = self.inner();
            if let Some(error) = inner.record_error.clone() {
                return Err(error);
            }
            inner.record.get_or_insert_with(|| record.clone());
            inner.note(Event::RecordStored);
            Ok(())
        })
    }

    fn reactivate<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            self.inner().record = None;
            Ok(())
        })
    }

    fn connection(&self) -> watch::Receiver<Connection> {
        self.connection.subscribe()
    }

    fn name(&self) -> &str {
        &self.name
    }
}

#[derive(Debug)]
struct MemoryConsumer {
    store: MemoryStore,
    id: u64,
    epoch: u64,
    prefetch: usize,
}

impl Consumer for MemoryConsumer {
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery, StoreError>> {
        self.store.inner().polls += 1;
        Box::pin(async move {
            loop {
                let store = self.store.clone();
                let stored = store.stored.notified();
                if let Some(taken) = self.store.try_take(self.id, self.epoch, self.prefetch) {
                    return taken;
                }
                stored.await;
            }
        })
    }

    fn ack(&mut self, tags: &[Tag]) -> Result<(), StoreError> {
        let mut inner = self.store.inner();
        if inner.epoch != self.epoch {
            return Err(StoreError::Stale);
        }
        for tag in tags {
            let waiting = inner.queue.remove(&tag.0).expect("acknowledged twice");
            assert_eq!(waiting.holder, Some(self.id), "acknowledged what another holds");
            inner.note(Event::Acked(waiting.message.id.to_string()));
        }
        Ok(())
    }

    fn stop_taking(&mut self) {
        self.prefetch = 0;
    }

    fn give_back(self: Box<Self>) -> BoxFuture<'static, Result<(), StoreError>> {
        Box::pin(async move {
            drop(self);
            Ok(())
        })
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        let mut inner = self.store.inner();
        if inner.epoch != self.epoch {
            return;
        }
        let mut returned = 0;
        for waiting in inner.queue.values_mut().filter(|waiting| waiting.holder == Some(self.id)) {
            waiting.holder = None;
            waiting.redelivered = true;
            returned += 1;
        }
        inner.attached -= 1;
        inner.note(Event::Returned(returned));
        drop(inner);
        self.store.stored.notify_waiters();
    }
}
