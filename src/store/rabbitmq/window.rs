//! One publishing channel, and what is under way on it.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use jiff::Timestamp;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, PublisherConfirm};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::publish::{Request, is_again};
use super::session::{Epoch, RPC_TIMEOUT, State};
use super::suspects::Suspects;
use super::wire::{self, Form, WireError};
use crate::core::message::{Message, MessageId};
use crate::store::PublishError;

/// Publishes under way on one channel. The client scans all of them at each `multiple` confirm, so not more; and
/// at 1 KiB and 25,000/s this many are 40 ms of work for the broker, so it never waits for us either.
const WINDOW: usize = 1000;

type Pending = FuturesUnordered<futures_util::future::BoxFuture<'static, (u64, lapin::Result<Confirmation>)>>;

/// One channel and what is under way on it.
pub(super) struct Window<'a> {
    channel: Channel,
    epoch: Arc<Epoch>,
    pending: Pending,
    waiters: HashMap<u64, Waiter>,
    next: u64,
    /// Ids of what was returned and is not confirmed yet.
    returned: Vec<String>,
    suspects: &'a mut Suspects,
}

struct Waiter {
    id: MessageId,
    routing_key: ShortString,
    done: oneshot::Sender<Result<(), PublishError>>,
}

/// Why a channel can't be used any more.
struct Lost {
    text: String,
    /// The broker said that a message was at fault.
    refused: bool,
}

impl Lost {
    fn because(text: impl Into<String>) -> Self {
        Self { text: text.into(), refused: false }
    }

    /// 406 and 501, as far as the broker said them: the client library answers a wrong confirm with a 406 of its own.
    fn by(error: &lapin::Error) -> Self {
        let refused = match error.kind() {
            lapin::ErrorKind::ProtocolError(error) => {
                let text = error.get_message().as_str();
                text.starts_with("PRECONDITION_FAILED") || text.starts_with("FRAME_ERROR")
            }
            _ => false,
        };
        Self { text: error.to_string(), refused }
    }
}

impl<'a> Window<'a> {
    pub(super) fn new(channel: Channel, epoch: Arc<Epoch>, suspects: &'a mut Suspects) -> Self {
        epoch.ledger.open(channel.id());
        let (pending, waiters) = (FuturesUnordered::new(), HashMap::new());
        Self { channel, epoch, pending, waiters, next: 0, returned: Vec::new(), suspects }
    }

    /// Publishes until the channel or the epoch ends (then all waiters have been told), or until nobody is left to
    /// ask: `false`.
    pub(super) async fn serve(
        mut self,
        incoming: &mut mpsc::Receiver<Request>,
        state: &mut watch::Receiver<State>,
    ) -> bool {
        loop {
            let room = self.pending.len() < WINDOW;
            tokio::select! {
                biased;
                Some(first) = self.pending.next() => {
                    if let Err(lost) = self.settle(first) {
                        self.fail_all(&lost);
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
                    if let Err(lost) = self.send(request).await {
                        self.fail_all(&lost);
                        return true;
                    }
                } else {
                    self.drain(state).await;
                    return false;
                },
            }
        }
    }

    async fn send(&mut self, request: Request) -> Result<(), Lost> {
        if self.suspects.has(&request.message.id) {
            // Alone, so that it is known whom the broker means, and nobody else is told "unknown" for its sake.
            let until = request.expires;
            self.settle_all(until).await?;
            self.send_now(request).await?;
            return self.settle_all(until).await;
        }
        self.send_now(request).await
    }

    async fn send_now(&mut self, request: Request) -> Result<(), Lost> {
        let Request { message, exchange, routing_key, expires, done } = request;
        if Instant::now() >= expires {
            let _ = done.send(Err(PublishError::NotConnected("not sent in time".to_owned())));
            return Ok(());
        }
        let properties = match self.properties(&message) {
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
        self.epoch.ledger.publishes(self.channel.id());
        let sent = self.channel.basic_publish(exchange, routing_key, options, &message.body, properties);
        match timeout(RPC_TIMEOUT, sent).await {
            Ok(Ok(confirm)) => {
                self.pending.push(wait(key, confirm).boxed());
                Ok(())
            }
            Ok(Err(error)) => Err(Lost::by(&error)),
            Err(_) => {
                self.epoch.fail();
                Err(Lost::because("the connection takes no more bytes"))
            }
        }
    }

    fn properties(&self, message: &Message) -> Result<BasicProperties, WireError> {
        let now = Timestamp::now();
        let bare = || {
            tracing::warn!(message_id = %message.id, "published with its body and id only: the broker takes no more of it");
            wire::properties(message, now, Form::Bare)
        };
        match wire::properties(message, now, Form::Full) {
            _ if is_again(message) && self.suspects.is_refused(&message.id) => bare(),
            Err(_) if is_again(message) => bare(),
            properties => properties,
        }
    }

    /// Waits until nothing is under way.
    async fn settle_all(&mut self, until: Instant) -> Result<(), Lost> {
        while !self.waiters.is_empty() {
            match tokio::time::timeout_at(until, self.pending.next()).await {
                Ok(Some(first)) => self.settle(first)?,
                Ok(None) | Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    /// Answers everything that is confirmed by now.
    ///
    /// The client library hands a returned message to any of the confirms that come next. Which message was returned
    /// is known from the ledger, where it stands before its confirm can be read. An id is ours and unique among what
    /// is under way; of two messages of another client with one id, both count as returned.
    fn settle(&mut self, first: (u64, lapin::Result<Confirmation>)) -> Result<(), Lost> {
        let mut ready = vec![first];
        while let Some(Some(next)) = self.pending.next().now_or_never() {
            ready.push(next);
        }
        for id in self.epoch.ledger.returned(self.channel.id()) {
            if !self.waiters.values().any(|waiter| waiter.id.as_str() == id) {
                self.epoch.fail();
                return Err(Lost::because("the broker returned a message that was not under way"));
            }
            self.returned.push(id);
        }
        let mut lost: Option<Lost> = None;
        for (key, confirmation) in ready {
            let confirmation = match confirmation {
                Ok(confirmation) => confirmation,
                // All that is under way has ended with this, and is told so together.
                Err(error) => {
                    lost = lost.filter(|lost| lost.refused).or_else(|| Some(Lost::by(&error)));
                    continue;
                }
            };
            let Some(waiter) = self.waiters.remove(&key) else { continue };
            let outcome = match confirmation {
                _ if self.returned.iter().any(|id| id == waiter.id.as_str()) => {
                    Err(PublishError::Unroutable(waiter.routing_key.as_str().to_owned()))
                }
                Confirmation::Ack(_) => Ok(()),
                Confirmation::Nack(_) => Err(PublishError::Refused("the queue is full".to_owned())),
                Confirmation::NotRequested => Err(PublishError::Unknown("the broker confirms nothing".to_owned())),
            };
            self.suspects.settled(&waiter.id);
            let _ = waiter.done.send(outcome);
        }
        if !self.returned.is_empty() {
            let waiters = &self.waiters;
            self.returned.retain(|id| waiters.values().any(|waiter| waiter.id.as_str() == id));
        }
        lost.map_or(Ok(()), Err)
    }

    /// Waits for what is under way, for as long as the connection lives.
    async fn drain(&mut self, state: &mut watch::Receiver<State>) {
        while !self.waiters.is_empty() {
            if self.epoch.is_over() {
                self.fail_all(&Lost::because("the connection was lost"));
                return;
            }
            tokio::select! {
                next = self.pending.next() => match next {
                    Some(first) => if let Err(lost) = self.settle(first) {
                        self.fail_all(&lost);
                        return;
                    },
                    None => return,
                },
                changed = state.changed() => {
                    let gone = changed.is_err() || matches!(&*state.borrow(), State::Connecting | State::Down(_));
                    if gone {
                        self.fail_all(&Lost::because("the connection was lost"));
                        return;
                    }
                }
            }
        }
    }

    fn fail_all(&mut self, lost: &Lost) {
        let alone = self.waiters.len() == 1;
        if lost.refused {
            self.suspects.note(self.waiters.values().map(|waiter| &waiter.id));
        }
        for (_, waiter) in self.waiters.drain() {
            let error = if lost.refused && alone {
                PublishError::Refused(format!("the broker refuses the message: {}", lost.text))
            } else {
                PublishError::Unknown(lost.text.clone())
            };
            let _ = waiter.done.send(Err(error));
        }
    }
}

async fn wait(key: u64, confirm: PublisherConfirm) -> (u64, lapin::Result<Confirmation>) {
    (key, confirm.await)
}
