//! Publishing with confirms. Stored means: persistent, mandatory, acknowledged, not returned.
//!
//! One task owns each publishing channel. Sharing a channel between tasks lets delivery tags and publishes swap
//! places, and then a refused message is reported as stored; a single owner can't do that. Requests come in over a
//! bounded queue and are pipelined: many are under way, none is awaited one by one, and no pending confirm is dropped.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use jiff::Timestamp;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{Channel, Confirmation, PublisherConfirm};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::session::{Epoch, RPC_TIMEOUT, State};
use super::topology::rpc;
use super::wire;
use crate::core::message::{MAX_BODY_BYTES, Message, MessageId};
use crate::store::{PublishError, StoreError};

/// Publishes under way on one channel. The client scans all of them at each `multiple` confirm, so not more; and
/// at 1 KiB and 25,000/s this many are 40 ms of work for the broker, so it never waits for us either.
const WINDOW: usize = 1000;

/// Requests that wait for a place in the window. Callers beyond it wait in `publish`, bounded by their time-out.
const QUEUE: usize = 256;

/// Between two tries to open a publishing channel on a connection that is up.
const REOPEN: Duration = Duration::from_millis(250);

/// One publish, and where its outcome goes.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) message: Arc<Message>,
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    /// Not sent any more after this: the caller has been told that it was not stored.
    pub(super) expires: Instant,
    pub(super) done: oneshot::Sender<Result<(), PublishError>>,
}

/// The handle of one publishing task.
#[derive(Debug, Clone)]
pub(super) struct Publisher {
    requests: mpsc::Sender<Request>,
}

impl Publisher {
    /// Starts the task; it ends when the last handle is dropped.
    pub(super) fn start(state: watch::Receiver<State>) -> Self {
        let (requests, incoming) = mpsc::channel(QUEUE);
        tokio::spawn(Task { state, incoming }.run());
        Self { requests }
    }

    /// Publishes, and waits at most `patience` for the confirm.
    pub(super) async fn publish(
        &self,
        message: Arc<Message>,
        exchange: ShortString,
        routing_key: ShortString,
        patience: Duration,
    ) -> Result<(), PublishError> {
        if message.body.len() > MAX_BODY_BYTES {
            return Err(PublishError::Invalid(format!(
                "its body has {} bytes, and a broker takes at most {MAX_BODY_BYTES}",
                message.body.len()
            )));
        }
        let (done, outcome) = oneshot::channel();
        let expires = Instant::now() + patience;
        let request = Request { message, exchange, routing_key, expires, done };
        match tokio::time::timeout_at(expires, self.requests.send(request)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(PublishError::NotConnected("shut down".to_owned())),
            Err(_) => {
                return Err(PublishError::NotConnected("the broker is too slow: no place in the window".to_owned()));
            }
        }
        match tokio::time::timeout_at(expires, outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(PublishError::Unknown("the publishing task ended".to_owned())),
            Err(_) => Err(PublishError::Unknown(format!("no confirm within {} ms", patience.as_millis()))),
        }
    }
}

struct Task {
    state: watch::Receiver<State>,
    incoming: mpsc::Receiver<Request>,
}

impl Task {
    async fn run(mut self) {
        loop {
            let state = self.state.borrow_and_update().clone();
            match state {
                State::Up(epoch) => {
                    let open = match open(&epoch).await {
                        Ok(channel) => Window::new(channel, epoch).serve(&mut self.incoming, &mut self.state).await,
                        Err(error) => {
                            tracing::debug!(%error, "no publishing channel");
                            self.refuse_for(REOPEN, &PublishError::NotConnected(error.to_string())).await
                        }
                    };
                    if !open {
                        return;
                    }
                }
                State::Blocked(_, reason) => {
                    let error = PublishError::Refused(format!("the broker takes no publishes: {reason}"));
                    if !self.refuse_until_change(&error).await {
                        return;
                    }
                }
                State::Connecting => {
                    let error = PublishError::NotConnected("connecting".to_owned());
                    if !self.refuse_until_change(&error).await {
                        return;
                    }
                }
                State::Down(error) => {
                    if !self.refuse_until_change(&PublishError::NotConnected(text(&error))).await {
                        return;
                    }
                }
            }
        }
    }

    /// Answers at once, so that nobody waits for a broker that is known not to answer.
    async fn refuse_until_change(&mut self, error: &PublishError) -> bool {
        loop {
            tokio::select! {
                changed = self.state.changed() => return changed.is_ok(),
                request = self.incoming.recv() => match request {
                    Some(request) => { let _ = request.done.send(Err(error.clone())); }
                    None => return false,
                },
            }
        }
    }

    async fn refuse_for(&mut self, wait: Duration, error: &PublishError) -> bool {
        timeout(wait, self.refuse_until_change(error)).await.unwrap_or(true)
    }
}

async fn open(epoch: &Epoch) -> Result<Channel, StoreError> {
    let channel = epoch.channel().await?;
    rpc(epoch, channel.confirm_select(ConfirmSelectOptions::default())).await?;
    Ok(channel)
}

fn text(error: &StoreError) -> String {
    match error {
        StoreError::NotConnected(text) => text.clone(),
        other => other.to_string(),
    }
}

type Pending = FuturesUnordered<futures_util::future::BoxFuture<'static, (u64, lapin::Result<Confirmation>)>>;

/// One channel and what is under way on it.
///
/// An unroutable message is sent back and then acknowledged like any other. The client keeps what was sent back in a
/// queue and hands the oldest to whichever publish is confirmed next, so a confirm says little about its own message:
/// it may carry another's return, and its own may have gone, or still go, to another confirm. What is certain: the
/// broker sends messages back in the order of their publishing, each before its own confirm. From that follow the
/// rules of [`settle`](Self::settle) and [`clear`](Self::clear).
struct Window {
    channel: Channel,
    epoch: Arc<Epoch>,
    pending: Pending,
    /// Not confirmed yet, by the order of publishing.
    waiters: BTreeMap<u64, Waiter>,
    /// Acknowledged by a confirm that carried another's return: its own return may still be in the client's queue.
    doubtful: BTreeMap<u64, Waiter>,
    /// The ids of what was sent back and is not told yet.
    returned: HashSet<String>,
    next: u64,
}

#[derive(Debug)]
struct Waiter {
    id: MessageId,
    routing_key: ShortString,
    done: oneshot::Sender<Result<(), PublishError>>,
}

impl Waiter {
    /// The broker has acknowledged it, after sending it back or not.
    fn acknowledged(self, returned: bool) {
        let outcome =
            if returned { Err(PublishError::Unroutable(self.routing_key.as_str().to_owned())) } else { Ok(()) };
        // Nobody waits any more: nobody is told.
        let _ = self.done.send(outcome);
    }

    fn tell(self, error: PublishError) {
        let _ = self.done.send(Err(error));
    }
}

impl Window {
    fn new(channel: Channel, epoch: Arc<Epoch>) -> Self {
        Self {
            channel,
            epoch,
            pending: FuturesUnordered::new(),
            waiters: BTreeMap::new(),
            doubtful: BTreeMap::new(),
            returned: HashSet::new(),
            next: 0,
        }
    }

    /// Publishes until the channel or the epoch ends (then all waiters have been told), or until nobody is left to
    /// ask: `false`.
    async fn serve(mut self, incoming: &mut mpsc::Receiver<Request>, state: &mut watch::Receiver<State>) -> bool {
        loop {
            let room = self.pending.len() < WINDOW;
            tokio::select! {
                biased;
                Some(first) = self.pending.next() => {
                    if let Err(error) = self.settle(first) {
                        self.fail_all(&error);
                        return true;
                    }
                }
                changed = state.changed() => {
                    if changed.is_err() {
                        return false;
                    }
                    // Blocked: what is under way keeps its waiters; they time out or are confirmed when it ends.
                    let same = matches!(&*state.borrow(), State::Up(epoch) if epoch.number == self.epoch.number);
                    if !same {
                        self.drain(state).await;
                        return true;
                    }
                }
                request = incoming.recv(), if room => if let Some(request) = request {
                    if let Err(error) = self.send(request).await {
                        self.fail_all(&error);
                        return true;
                    }
                } else {
                    self.drain(state).await;
                    return false;
                },
            }
        }
    }

    async fn send(&mut self, request: Request) -> Result<(), String> {
        let Request { message, exchange, routing_key, expires, done } = request;
        if Instant::now() >= expires {
            let _ = done.send(Err(PublishError::NotConnected("not sent in time".to_owned())));
            return Ok(());
        }
        let properties = match wire::properties(&message, Timestamp::now()) {
            Ok(properties) => properties,
            Err(error) => {
                let _ = done.send(Err(PublishError::Invalid(error.to_string())));
                return Ok(());
            }
        };
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let key = self.next;
        self.next += 1;
        self.waiters.insert(key, Waiter { id: message.id.clone(), routing_key: routing_key.clone(), done });
        let sent = self.channel.basic_publish(exchange, routing_key, options, &message.body, properties);
        match timeout(RPC_TIMEOUT, sent).await {
            Ok(Ok(confirm)) => {
                self.pending.push(wait(key, confirm).boxed());
                Ok(())
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => {
                self.epoch.fail();
                Err("the connection takes no more bytes".to_owned())
            }
        }
    }

    /// Answers everything that is confirmed by now.
    ///
    /// All that is ready is read first: whatever was confirmed before any confirm read here is then read as well, and
    /// with it every return that was handed out before.
    fn settle(&mut self, first: (u64, lapin::Result<Confirmation>)) -> Result<(), String> {
        let mut ready = vec![first];
        while let Some(Some(next)) = self.pending.next().now_or_never() {
            ready.push(next);
        }
        // A confirm without a return found the client's queue empty. It came after everything that was read before.
        let earlier_are_clear = ready
            .iter()
            .any(|(_, confirmation)| matches!(confirmation, Ok(Confirmation::Ack(None) | Confirmation::Nack(None))));
        for (_, confirmation) in &ready {
            if let Ok(Confirmation::Ack(Some(message)) | Confirmation::Nack(Some(message))) = confirmation {
                let id = message.delivery.properties.message_id();
                self.returned.extend(id.as_ref().map(|id| id.as_str().to_owned()));
            }
        }
        if earlier_are_clear {
            self.clear(u64::MAX);
        }
        let mut failed = None;
        for (key, confirmation) in ready {
            let Some(waiter) = self.waiters.remove(&key) else { continue };
            match confirmation {
                Ok(Confirmation::Ack(_)) if self.returned.remove(waiter.id.as_str()) => waiter.acknowledged(true),
                Ok(Confirmation::Ack(None)) => waiter.acknowledged(false),
                Ok(Confirmation::Ack(Some(_))) => {
                    self.doubtful.insert(key, waiter);
                }
                Ok(Confirmation::Nack(_)) => waiter.tell(PublishError::Refused("the queue is full".to_owned())),
                Ok(Confirmation::NotRequested) => {
                    waiter.tell(PublishError::Unknown("the broker confirms nothing".to_owned()));
                }
                Err(error) => {
                    failed = Some(error.to_string());
                    waiter.tell(PublishError::Unknown(error.to_string()));
                }
            }
        }
        // Confirms of all that was published up to here have been read. Each return up to here had a confirm of its
        // own to be handed to, and the older ones are handed out first: none of them is left.
        let confirmed = self.waiters.first_key_value().map_or(u64::MAX, |(key, _)| *key);
        self.clear(confirmed);
        failed.map_or(Ok(()), Err)
    }

    /// Nothing that was published before `end` has its return still to come.
    fn clear(&mut self, end: u64) {
        while let Some(entry) = self.doubtful.first_entry().filter(|entry| *entry.key() < end) {
            let waiter = entry.remove();
            let returned = self.returned.remove(waiter.id.as_str());
            waiter.acknowledged(returned);
        }
    }

    /// Waits for what is under way, for as long as the connection lives.
    async fn drain(&mut self, state: &mut watch::Receiver<State>) {
        while !self.waiters.is_empty() || !self.doubtful.is_empty() {
            if self.epoch.is_over() {
                self.fail_all("the connection was lost");
                return;
            }
            tokio::select! {
                next = self.pending.next() => match next {
                    Some(first) => if let Err(error) = self.settle(first) {
                        self.fail_all(&error);
                        return;
                    },
                    None => return,
                },
                changed = state.changed() => {
                    let gone = changed.is_err() || matches!(&*state.borrow(), State::Connecting | State::Down(_));
                    if gone {
                        self.fail_all("the connection was lost");
                        return;
                    }
                }
            }
        }
    }

    fn fail_all(&mut self, error: &str) {
        for (_, waiter) in std::mem::take(&mut self.waiters).into_iter().chain(std::mem::take(&mut self.doubtful)) {
            waiter.tell(PublishError::Unknown(error.to_owned()));
        }
    }
}

async fn wait(key: u64, confirm: PublisherConfirm) -> (u64, lapin::Result<Confirmation>) {
    (key, confirm.await)
}
