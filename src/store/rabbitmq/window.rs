//! One publishing channel, and what is under way on it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use lapin::Channel;
use lapin::types::ShortString;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::line::{Closed, Publication, Said, Unsent};
use super::publish::{Request, is_again};
use super::session::{Epoch, State, noticed};
use super::suspects::Suspects;
use super::wire::{self, Form};
use crate::core::message::{Message, MessageId};
use crate::store::PublishError;

/// Publishes under way on one channel. At 1 KiB and 25,000/s this many are 40 ms of work for the broker, so it never
/// waits for us.
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

/// One channel and what is under way on it.
pub(super) struct Window<'a> {
    channel: Channel,
    epoch: Arc<Epoch>,
    said: mpsc::UnboundedReceiver<Said>,
    /// By their tags.
    waiters: BTreeMap<u64, Waiter>,
    /// Of the bodies under way.
    bytes: usize,
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
    /// No queue wants it. Its confirm comes later.
    returned: bool,
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

    fn by(closed: Closed) -> Self {
        let fault = match closed.code {
            // Precondition failed, frame error.
            406 | 501 => Fault::Message,
            // Access refused, not found.
            403 | 404 => Fault::Place,
            _ => Fault::Connection,
        };
        Self { text: closed.text, fault }
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
        Self {
            said: epoch.line.publishing(channel.id()),
            channel,
            epoch,
            waiters: BTreeMap::new(),
            bytes: 0,
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
                said = self.said.recv() => self.hear(said).await,
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
        self.waiters.len() < WINDOW && self.bytes < WINDOW_BYTES
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

    /// Sends a message, and does not wait until it is written: what can't be written now is under way all the same.
    fn start(&mut self, request: Request) {
        let Request { message, exchange, routing_key, expires, claim, done } = request;
        // Whoever has given up already was told that it is not sent.
        if Instant::now() >= expires || !claim.take() {
            let _ = done.send(Err(PublishError::NotConnected("not sent in time".to_owned())));
            return;
        }
        let tag = match self.publish(&message, &exchange, &routing_key) {
            Ok(tag) => tag,
            Err(error) => {
                let _ = done.send(Err(error));
                return;
            }
        };
        if self.waiters.is_empty() {
            self.progress = Instant::now();
        }
        let (id, bytes) = (message.id.clone(), message.body.len());
        self.bytes += bytes;
        let by_exchange = !exchange.as_str().is_empty();
        let waiter = Waiter { id, routing_key, by_exchange, bytes, returned: false, done: Some(done) };
        self.waiters.insert(tag, waiter);
    }

    /// Returns its tag.
    fn publish(
        &self,
        message: &Message,
        exchange: &ShortString,
        routing_key: &ShortString,
    ) -> Result<u64, PublishError> {
        let now = Timestamp::now();
        let publish = |form: Form| {
            let invalid = |error: &dyn std::fmt::Display| PublishError::Invalid(error.to_string());
            let properties = &wire::properties(message, now, form).map_err(|error| invalid(&error))?;
            let publication = Publication { exchange, routing_key, properties, body: &message.body };
            self.epoch.line.publish(self.channel.id(), publication).map_err(|unsent| match unsent {
                Unsent::TooLarge { .. } => invalid(&unsent),
                Unsent::Ended => PublishError::NotConnected(unsent.to_string()),
            })
        };
        let bare = || {
            tracing::warn!(message_id = %message.id, "published with its body and id only: the broker takes no more of it");
            publish(Form::Bare)
        };
        if is_again(message) && self.suspects.is_refused(&message.id) {
            return bare();
        }
        match publish(Form::Full) {
            Err(PublishError::Invalid(_)) if is_again(message) => bare(),
            published => published,
        }
    }

    /// Waits until nothing is under way.
    async fn settle_all(&mut self, until: Instant) -> Result<(), Lost> {
        while !self.waiters.is_empty() {
            match tokio::time::timeout_at(until, self.said.recv()).await {
                Ok(said) => self.hear(said).await?,
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    /// Takes in what the broker says, and all that it has said meanwhile.
    async fn hear(&mut self, first: Option<Said>) -> Result<(), Lost> {
        self.progress = Instant::now();
        let mut said = first;
        loop {
            match said {
                Some(Said::Confirmed { tag, multiple, stored }) => self.confirmed(tag, multiple, stored)?,
                Some(Said::Returned(id)) => self.returned(&id)?,
                Some(Said::Closed(closed)) => {
                    noticed(&self.channel).await;
                    return Err(Lost::by(closed));
                }
                None => return Err(Lost::because("the connection was lost")),
            }
            said = match self.said.try_recv() {
                Ok(said) => Some(said),
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => None,
            };
        }
    }

    fn confirmed(&mut self, tag: u64, multiple: bool, stored: bool) -> Result<(), Lost> {
        let mut any = false;
        if multiple {
            while let Some(first) = self.waiters.first_entry().filter(|first| *first.key() <= tag) {
                any = true;
                let waiter = first.remove();
                self.answer(waiter, stored);
            }
        } else if let Some(waiter) = self.waiters.remove(&tag) {
            any = true;
            self.answer(waiter, stored);
        }
        if any { Ok(()) } else { Err(self.broken("the broker confirmed a message for the second time")) }
    }

    /// An id is ours and unique among what is under way; of two messages of another client with one id, both count as
    /// returned.
    fn returned(&mut self, id: &str) -> Result<(), Lost> {
        let mut any = false;
        for waiter in self.waiters.values_mut().filter(|waiter| waiter.id.as_str() == id) {
            waiter.returned = true;
            any = true;
        }
        if any { Ok(()) } else { Err(self.broken("the broker returned a message that was not under way")) }
    }

    /// Nothing that is said on this connection can be believed.
    fn broken(&self, what: &str) -> Lost {
        self.epoch.fail();
        Lost::because(what)
    }

    fn answer(&mut self, waiter: Waiter, stored: bool) {
        self.bytes -= waiter.bytes;
        let outcome = match stored {
            _ if waiter.returned => Err(PublishError::Unroutable(waiter.routing_key.as_str().to_owned())),
            true => Ok(()),
            // One word for all queues: those with room may have it.
            false if waiter.by_exchange => {
                Err(PublishError::PartlyRefused("it is full; others may have the message".to_owned()))
            }
            false => Err(PublishError::Refused("the queue is full".to_owned())),
        };
        self.suspects.settled(&waiter.id);
        if let Some(done) = waiter.done {
            let _ = done.send(outcome);
        }
    }

    fn fail_all(&mut self, lost: &Lost) {
        let alone = self.waiters.len() == 1;
        if lost.fault == Fault::Message {
            self.suspects.note(self.waiters.values().map(|waiter| &waiter.id));
        }
        self.bytes = 0;
        for waiter in std::mem::take(&mut self.waiters).into_values() {
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
