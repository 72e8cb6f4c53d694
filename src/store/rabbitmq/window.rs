//! One publishing channel, and what is under way on it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use jiff::Timestamp;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::publish::{Request, is_again};
use super::session::{Epoch, State};
use super::suspects::Suspects;
use super::wire::{self, Form, WireError};
use crate::core::message::{Message, MessageId};
use crate::store::PublishError;

/// Publishes under way on one channel. The client scans all of them at each `multiple` confirm, so not more; and
/// at 1 KiB and 25,000/s this many are 40 ms of work for the broker, so it never waits for us either.
const WINDOW: usize = 1000;

/// Bytes under way on one channel: what a broker that does not answer can make us hold. One message always goes.
const WINDOW_BYTES: usize = 64 * 1024 * 1024;

/// When the broker says that it takes no publishes, those whose bytes it has read are confirmed within this; the rest
/// stays in the socket until it takes publishes again, and their callers are not kept waiting for that.
const BLOCKED_GRACE: Duration = Duration::from_millis(500);

/// With publishes under way, not one confirm for so long, and callers who have given up on theirs, the channel is given
/// up: after a partition a broker may never confirm what it was sent before, and answers at once on a new channel. A queue
/// without a majority does not confirm either, and loses nothing by it.
const STALLED: Duration = Duration::from_secs(8);

/// How often the two above are looked at, while something is under way.
const TICK: Duration = Duration::from_millis(250);

/// When a channel ends, for how long at most the answers are gathered that say why.
const REASON: Duration = Duration::from_millis(200);

type Settled = (u64, lapin::Result<Confirmation>);
type Pending = FuturesUnordered<BoxFuture<'static, Settled>>;

/// One channel and what is under way on it.
pub(super) struct Window<'a> {
    channel: Channel,
    epoch: Arc<Epoch>,
    pending: Pending,
    waiters: HashMap<u64, Waiter>,
    next: u64,
    /// Of the bodies under way.
    bytes: usize,
    /// Ids of what was returned and is not confirmed yet.
    returned: Vec<String>,
    suspects: &'a mut Suspects,
    /// When a confirm came last, or since when something is under way.
    progress: Instant,
    blocked: Option<Blocked>,
    /// Nobody asks any more.
    closing: bool,
}

/// The broker takes no publishes.
struct Blocked {
    reason: String,
    since: Instant,
}

struct Waiter {
    id: MessageId,
    routing_key: ShortString,
    /// Several queues may have been meant.
    by_exchange: bool,
    /// Of its body.
    bytes: usize,
    /// `None` once the caller was told that nobody knows.
    done: Option<oneshot::Sender<Result<(), PublishError>>>,
}

/// Why a channel can't be used any more.
pub(super) struct Lost {
    pub(super) text: String,
    fault: Fault,
}

/// What the end of a channel is due to, as far as the broker said it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The connection, or nobody knows.
    Connection,
    /// Where it was published to: 403 and 404.
    Place,
    /// A message: 406 and 501.
    Message,
}

impl Lost {
    fn because(text: impl Into<String>) -> Self {
        Self { text: text.into(), fault: Fault::Connection }
    }

    /// As far as the broker said it: the client library answers a wrong confirm with a 406 of its own.
    fn by(error: &lapin::Error) -> Self {
        let fault = match error.kind() {
            lapin::ErrorKind::ProtocolError(error) => match error.get_message().as_str().split(' ').next() {
                Some("PRECONDITION_FAILED" | "FRAME_ERROR") => Fault::Message,
                Some("NOT_FOUND" | "ACCESS_REFUSED") => Fault::Place,
                _ => Fault::Connection,
            },
            _ => Fault::Connection,
        };
        Self { text: error.to_string(), fault }
    }

    /// The one of the two that says more.
    fn or(self, other: Self) -> Self {
        if self.fault == Fault::Connection { other } else { self }
    }
}

/// What became of a window.
pub(super) enum Ended {
    /// Nobody asks any more.
    Unused,
    /// The channel is gone, and all waiters have been told.
    Lost(Lost),
}

impl<'a> Window<'a> {
    pub(super) fn new(channel: Channel, epoch: Arc<Epoch>, suspects: &'a mut Suspects) -> Self {
        epoch.ledger.open(channel.id());
        Self {
            channel,
            epoch,
            pending: FuturesUnordered::new(),
            waiters: HashMap::new(),
            next: 0,
            bytes: 0,
            returned: Vec::new(),
            suspects,
            progress: Instant::now(),
            blocked: None,
            closing: false,
        }
    }

    /// Publishes until the channel or the epoch ends, or until nobody is left to ask.
    pub(super) async fn serve(
        mut self,
        incoming: &mut mpsc::Receiver<Request>,
        state: &mut watch::Receiver<State>,
    ) -> Ended {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.closing && self.waiters.is_empty() {
                return Ended::Unused;
            }
            // While the broker is blocked everybody is answered at once, and nothing is sent.
            let room = !self.closing && (self.blocked.is_some() || self.has_room());
            let step = tokio::select! {
                biased;
                Some(first) = self.pending.next() => self.settle(first).await,
                changed = state.changed() => match changed {
                    Ok(()) => self.take_state(&state.borrow()),
                    Err(_) => return Ended::Unused,
                },
                _ = tick.tick(), if !self.waiters.is_empty() => self.check_times(),
                request = incoming.recv(), if room => if let Some(request) = request {
                    self.send(request).await
                } else {
                    self.closing = true;
                    Ok(())
                },
            };
            if let Err(lost) = step {
                self.fail_all(&lost);
                return Ended::Lost(lost);
            }
        }
    }

    fn has_room(&self) -> bool {
        self.pending.len() < WINDOW && self.bytes < WINDOW_BYTES
    }

    fn take_state(&mut self, state: &State) -> Result<(), Lost> {
        match state {
            State::Up(epoch) if epoch.number == self.epoch.number => {
                self.blocked = None;
                self.progress = Instant::now();
                Ok(())
            }
            State::Blocked(epoch, reason) if epoch.number == self.epoch.number => {
                self.blocked = Some(Blocked { reason: reason.clone(), since: Instant::now() });
                Ok(())
            }
            _ => Err(Lost::because("the connection was lost")),
        }
    }

    fn check_times(&mut self) -> Result<(), Lost> {
        let Some(blocked) = &self.blocked else {
            let given_up = |waiter: &Waiter| waiter.done.as_ref().is_none_or(oneshot::Sender::is_closed);
            let stalled = self.progress.elapsed() >= STALLED && self.waiters.values().any(given_up);
            return if stalled { Err(Lost::because("the broker has stopped to confirm")) } else { Ok(()) };
        };
        if blocked.since.elapsed() >= BLOCKED_GRACE {
            let error = PublishError::Unknown(taking_none(&blocked.reason));
            for done in self.waiters.values_mut().filter_map(|waiter| waiter.done.take()) {
                let _ = done.send(Err(error.clone()));
            }
        }
        Ok(())
    }

    async fn send(&mut self, request: Request) -> Result<(), Lost> {
        if let Some(blocked) = &self.blocked {
            let _ = request.done.send(Err(PublishError::Refused(taking_none(&blocked.reason))));
            return Ok(());
        }
        if self.suspects.has(&request.message.id) {
            // Alone, so that it is known whom the broker means, and nobody else is told "unknown" for its sake.
            let until = request.expires;
            self.settle_all(until).await?;
            self.start(request);
            return self.settle_all(until).await;
        }
        self.start(request);
        Ok(())
    }

    /// Hands a message to the client library, and does not wait until it is written: what can't be written now is
    /// under way all the same. The client gives it its delivery tag when its future is polled first, which is here, so
    /// that tags are in our order.
    fn start(&mut self, request: Request) {
        let Request { message, exchange, routing_key, expires, claim, done } = request;
        // Whoever has given up already was told that it is not sent.
        if Instant::now() >= expires || !claim.take() {
            let _ = done.send(Err(PublishError::NotConnected("not sent in time".to_owned())));
            return;
        }
        let properties = match self.properties(&message) {
            Ok(properties) => properties,
            Err(error) => {
                let _ = done.send(Err(PublishError::Invalid(error.to_string())));
                return;
            }
        };
        if self.waiters.is_empty() {
            self.progress = Instant::now();
        }
        let key = self.next;
        self.next += 1;
        let (id, bytes, done) = (message.id.clone(), message.body.len(), Some(done));
        self.bytes += bytes;
        self.waiters.insert(
            key,
            Waiter { id, routing_key: routing_key.clone(), by_exchange: !exchange.as_str().is_empty(), bytes, done },
        );
        self.epoch.ledger.publishes(self.channel.id());
        let channel = self.channel.clone();
        let mut confirmed = async move {
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let sent = channel.basic_publish(exchange, routing_key, options, &message.body, properties).await;
            // Whoever waits for the confirm holds the body no longer: its caller may have given up.
            drop(message);
            match sent {
                Ok(confirm) => (key, confirm.await),
                Err(error) => (key, Err(error)),
            }
        }
        .boxed();
        match (&mut confirmed).now_or_never() {
            Some(settled) => self.pending.push(std::future::ready(settled).boxed()),
            None => self.pending.push(confirmed),
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
                Ok(Some(first)) => self.settle(first).await?,
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
    async fn settle(&mut self, first: Settled) -> Result<(), Lost> {
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
        self.progress = Instant::now();
        let mut lost: Option<Lost> = None;
        for (key, confirmation) in ready {
            match confirmation {
                Ok(confirmation) => self.answer(key, &confirmation),
                // All that is under way has ended with this, and is told so together.
                Err(error) => {
                    let by = Lost::by(&error);
                    lost = Some(match lost {
                        Some(lost) => lost.or(by),
                        None => by,
                    });
                }
            }
        }
        if !self.returned.is_empty() {
            let waiters = &self.waiters;
            self.returned.retain(|id| waiters.values().any(|waiter| waiter.id.as_str() == id));
        }
        match lost {
            Some(lost) => Err(self.reason(lost).await),
            None => Ok(()),
        }
    }

    fn answer(&mut self, key: u64, confirmation: &Confirmation) {
        let Some(waiter) = self.waiters.remove(&key) else { return };
        self.bytes -= waiter.bytes;
        let outcome = match confirmation {
            _ if self.returned.iter().any(|id| id == waiter.id.as_str()) => {
                Err(PublishError::Unroutable(waiter.routing_key.as_str().to_owned()))
            }
            Confirmation::Ack(_) => Ok(()),
            // One word for all queues: those with room may have it.
            Confirmation::Nack(_) if waiter.by_exchange => {
                Err(PublishError::PartlyRefused("it is full; others may have the message".to_owned()))
            }
            Confirmation::Nack(_) => Err(PublishError::Refused("the queue is full".to_owned())),
            Confirmation::NotRequested => Err(PublishError::Unknown("the broker confirms nothing".to_owned())),
        };
        self.suspects.settled(&waiter.id);
        if let Some(done) = waiter.done {
            let _ = done.send(outcome);
        }
    }

    /// A publish that met a channel on its way out knows less than those that were under way: why it goes.
    async fn reason(&mut self, mut lost: Lost) -> Lost {
        let until = Instant::now() + REASON;
        while lost.fault == Fault::Connection && !self.epoch.is_over() {
            match tokio::time::timeout_at(until, self.pending.next()).await {
                Ok(Some((_, Err(error)))) => lost = lost.or(Lost::by(&error)),
                // Confirmed, and read after the end of its channel: nothing is promised of it.
                Ok(Some((_, Ok(_)))) => {}
                Ok(None) | Err(_) => break,
            }
        }
        lost
    }

    fn fail_all(&mut self, lost: &Lost) {
        let alone = self.waiters.len() == 1;
        if lost.fault == Fault::Message {
            self.suspects.note(self.waiters.values().map(|waiter| &waiter.id));
        }
        self.bytes = 0;
        for (_, waiter) in self.waiters.drain() {
            let error = match lost.fault {
                Fault::Message if alone => {
                    PublishError::Refused(format!("the broker refuses the message: {}", lost.text))
                }
                // Only one was under way, and where it was sent to is not there: it is nowhere.
                Fault::Place if alone => PublishError::NotConnected(lost.text.clone()),
                _ => PublishError::Unknown(lost.text.clone()),
            };
            if let Some(done) = waiter.done {
                let _ = done.send(Err(error));
            }
        }
    }
}

/// What a caller is told while the broker has an alarm.
pub(super) fn taking_none(reason: &str) -> String {
    format!("the broker takes no publishes: {reason}")
}
