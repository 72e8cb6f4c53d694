//! Taking messages from a queue, acknowledging them, and giving them back all together.
//!
//! A consumer has a channel of its own, and its deliveries go back together, by closing that channel: the queue sees
//! the channel's process end, after every acknowledgement that it was sent, and takes back all that was handed out, in
//! order, also what was still on its way to us. A cancel followed by a nack does not do: what a quorum queue handed out
//! while the cancel was under way comes back before the rest, and then stands first (measured on 4.0).

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use lapin::Channel;
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use tokio::time::{Instant, sleep, timeout};

use super::claim::Claim;
use super::line::{Arrivals, Came, Closed, Delivered};
use super::session::{Epoch, RPC_TIMEOUT, noticed};
use super::topology::{self, name, rpc};
use super::wire;
use crate::core::message::MessageId;
use crate::store::{BoxFuture, Consumer, Delivery, StoreError, Tag};

/// A consumer whose channel was closed leaves its queue within milliseconds. One that stays longer is somebody else's,
/// and whoever wants the queue tries again later.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);
/// What a closed channel held is back in its queue within that.
const RETURNS_WITHIN: Duration = Duration::from_millis(50);
/// So many acknowledgements a channel of the broker has under way to a quorum queue. It keeps the rest until the queue
/// has answered those, and loses it when it ends: what was acknowledged comes again (measured on 4.0).
const UNDER_WAY: usize = 32;
/// By then the queue has answered them; nothing shows it.
const ANSWERED_WITHIN: Duration = Duration::from_millis(50);
/// The queue cannot say when it has left.
const LEAVE_POLL: Duration = Duration::from_millis(5);

/// An attached consumer.
pub(super) struct RabbitConsumer {
    epoch: Arc<Epoch>,
    channel: Channel,
    /// Cancels when it is dropped.
    consuming: lapin::Consumer,
    came: Arrivals,
    unsettled: BTreeSet<u64>,
    /// The highest tag that was delivered to us.
    highest: u64,
    /// When the last acknowledgements were made, as many as can be under way.
    acks: VecDeque<Instant>,
    /// After [`Consumer::stop_taking`]: what still comes is not handed out, and goes back with the rest.
    stopped: bool,
    given_back: bool,
    /// What came while the consumer was being attached.
    first: Option<Came>,
    /// Why the broker has closed the channel.
    closed: Option<Closed>,
    /// No other consumer may be attached, nor anybody else hold messages of the queue.
    alone: bool,
    claim: Option<Claim>,
    queue: String,
}

/// Attaches a consumer to a queue.
///
/// `alone` waits until no other consumer is attached. A second one that is there when the first goes is handed
/// messages from the middle of what the first gives back, so with order there must never be two.
pub(super) async fn attach(
    epoch: Arc<Epoch>,
    queue: &str,
    prefetch: u16,
    alone: bool,
) -> Result<RabbitConsumer, StoreError> {
    let mut claim = None;
    if alone {
        // Looked at first: what shows to everybody needs no refusal by the broker, which costs a channel.
        await_no_consumer(&epoch, queue).await?;
        claim = Claim::take(&epoch, queue).await?;
    }
    let mut prefetch = prefetch;
    loop {
        let mut consumer = consume(epoch.clone(), queue, prefetch).await?;
        if alone {
            consumer.claim = claim;
            consumer.alone = true;
            consumer = only(consumer).await?;
        }
        if epoch.line.limit(consumer.channel.id()) {
            return Ok(consumer);
        }
        // They are larger than what can be kept while it is looked who else is there: anew with fewer at a time, of which
        // one can always be kept.
        claim = consumer.claim.take();
        prefetch = (prefetch / 8).max(1);
        Box::new(consumer).give_back().await?;
    }
}

async fn consume(epoch: Arc<Epoch>, queue: &str, prefetch: u16) -> Result<RabbitConsumer, StoreError> {
    let channel = epoch.channel().await?;
    let came = epoch.line.consuming(channel.id());
    rpc(&epoch, channel.basic_qos(prefetch.max(1), BasicQosOptions::default())).await?;
    let consuming = channel.basic_consume(
        name(queue)?,
        ShortString::default(),
        BasicConsumeOptions::default(),
        FieldTable::default(),
    );
    let consuming = rpc(&epoch, consuming).await?;
    Ok(RabbitConsumer {
        epoch,
        channel,
        consuming,
        came,
        unsettled: BTreeSet::new(),
        highest: 0,
        acks: VecDeque::with_capacity(UNDER_WAY),
        stopped: false,
        first: None,
        closed: None,
        alone: false,
        claim: None,
        given_back: false,
        queue: queue.to_owned(),
    })
}

/// Waits until the queue has no consumer, but not for ever.
async fn await_no_consumer(epoch: &Arc<Epoch>, queue: &str) -> Result<(), StoreError> {
    let deadline = Instant::now() + LEAVE_TIMEOUT;
    while topology::look(epoch, queue).await?.consumer_count() > 0 {
        if Instant::now() >= deadline {
            return Err(in_use(queue));
        }
        sleep(LEAVE_POLL).await;
    }
    Ok(())
}

/// Makes sure that no other consumer has come at the same time: both saw none before. The one that is handed messages
/// stays; one that is handed nothing leaves, and returns nothing by that. (A count of 0 is what the broker says when the
/// queue's leader does not answer it in time.)
async fn only(mut consumer: RabbitConsumer) -> Result<RabbitConsumer, StoreError> {
    let deadline = Instant::now() + LEAVE_TIMEOUT;
    while topology::look(&consumer.epoch, &consumer.queue).await?.consumer_count() != 1 {
        if consumer.first.is_none() {
            consumer.first = consumer.came.now();
        }
        if Instant::now() >= deadline {
            if let Some(Came::Message(_)) = consumer.first {
                return Ok(consumer);
            }
            let queue = consumer.queue.clone();
            consumer.take_no_more();
            rpc(&consumer.epoch, consumer.channel.close(200, "not alone".into())).await?;
            consumer.given_back = true;
            return Err(in_use(&queue));
        }
        sleep(LEAVE_POLL).await;
    }
    Ok(consumer)
}

fn in_use(queue: &str) -> StoreError {
    StoreError::InUse(format!(
        "queue `{queue}` has another consumer; its messages stay in order only with one at a time"
    ))
}

fn lost() -> StoreError {
    StoreError::NotConnected("the connection was lost".to_owned())
}

impl RabbitConsumer {
    async fn came_next(&mut self) -> Option<Came> {
        match self.first.take() {
            Some(first) => Some(first),
            None => self.came.next().await,
        }
    }

    fn hand_out(&mut self, delivered: Delivered) -> Delivery {
        let Delivered { tag, redelivered, exchange, routing_key, properties: written, body } = delivered;
        self.unsettled.insert(tag);
        self.highest = self.highest.max(tag);
        // What a stranger published without an id gets one for as long as we hold it.
        let unnamed = || MessageId::new(uuid::Uuid::now_v7().to_string());
        let properties = wire::Properties::read(&written).unwrap_or_else(|| {
            // They were looked through, so this does not happen. If it does, the message must not stop its queue.
            tracing::warn!(queue = self.queue, tag, "a message's properties can't be read; it has none");
            wire::Properties::default()
        });
        let source = wire::source(&properties, &exchange, &routing_key);
        let returned = wire::returned(&properties);
        let message = Arc::new(wire::message(&properties, body, unnamed));
        Delivery { tag: Tag(tag), message, redelivered, returned, source }
    }

    fn acknowledge(&mut self, tag: u64, multiple: bool) -> Result<(), StoreError> {
        if !self.epoch.line.ack(self.channel.id(), tag, multiple) {
            return Err(StoreError::Stale);
        }
        if self.acks.len() == UNDER_WAY {
            self.acks.pop_front();
        }
        self.acks.push_back(Instant::now());
        Ok(())
    }

    /// Until when some of our acknowledgements may not be on their way to the queue.
    fn acknowledging(&self) -> Option<Instant> {
        let (first, last) = (self.acks.front()?, self.acks.back()?);
        (self.acks.len() == UNDER_WAY && first.elapsed() < ANSWERED_WITHIN).then(|| *last + ANSWERED_WITHIN)
    }

    /// Whether messages go back when the channel ends. A leader on another node learns of that end a moment later than
    /// we do.
    fn holds(&self) -> bool {
        !self.unsettled.is_empty() || self.first.is_some() || self.came.threw()
    }

    /// Whether the broker has closed the channel. Then the client library must not close it, too: each would take the
    /// other's for an answer.
    fn is_closed(&mut self) -> bool {
        // To close it is to wait for the broker, which may have much to say before its answer.
        self.take_no_more();
        while let (None, Some(came)) = (&self.closed, self.came.now()) {
            if let Came::Closed(closed) = came {
                self.closed = Some(closed);
            }
        }
        self.closed.is_some()
    }
}

impl Consumer for RabbitConsumer {
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery, StoreError>> {
        Box::pin(async move {
            if self.stopped {
                self.epoch.ended().await;
                return Err(lost());
            }
            // What an epoch that is over handed out can't be acknowledged any more.
            if self.epoch.is_over() {
                return Err(lost());
            }
            let closed = match self.closed.take() {
                Some(closed) => closed,
                None => match self.came_next().await {
                    Some(Came::Message(delivered)) => return Ok(self.hand_out(*delivered)),
                    Some(Came::Cancelled) => {
                        return Err(StoreError::NotFound(
                            "the broker cancelled the consumer: the queue is gone".to_owned(),
                        ));
                    }
                    Some(Came::Closed(closed)) => closed,
                    None => return Err(lost()),
                },
            };
            let error = StoreError::NotConnected(closed.text.clone());
            // Kept: whoever asks may give up while it is waited for what follows from it.
            self.closed = Some(closed);
            noticed(&self.channel).await;
            Err(error)
        })
    }

    fn ack(&mut self, tags: &[Tag]) -> Result<(), StoreError> {
        if self.epoch.is_over() {
            return Err(StoreError::Stale);
        }
        if tags.iter().any(|Tag(tag)| !self.unsettled.contains(tag)) {
            return Err(StoreError::Stale);
        }
        for Tag(tag) in tags {
            self.unsettled.remove(tag);
        }
        // A settled prefix is one frame for the broker, however many messages it covers. It ends at one of these tags:
        // the broker takes a tag that was acknowledged before for a protocol error.
        let prefix = self.unsettled.first().map_or(self.highest, |first| first - 1);
        if let Some(Tag(last)) = tags.iter().filter(|Tag(tag)| *tag <= prefix).max() {
            self.acknowledge(*last, true)?;
        }
        tags.iter().filter(|Tag(tag)| *tag > prefix).try_for_each(|Tag(tag)| self.acknowledge(*tag, false))
    }

    fn take_no_more(&mut self) {
        self.epoch.line.discard(self.channel.id(), &mut self.came);
    }

    fn stop_taking(&mut self) {
        if !self.stopped {
            self.stopped = true;
            // In order with the acknowledgements: one that came first would make room for more.
            self.epoch.line.cancel(self.channel.id(), &self.consuming.tag());
            self.take_no_more();
        }
    }

    fn give_back(mut self: Box<Self>) -> BoxFuture<'static, Result<(), StoreError>> {
        Box::pin(async move {
            self.given_back = true;
            if let Some(until) = self.acknowledging() {
                tokio::time::sleep_until(until).await;
            }
            let closed = if self.is_closed() {
                noticed(&self.channel).await;
                Err(lost())
            } else {
                // Behind all acknowledgements: the line writes them first.
                rpc(&self.epoch, self.channel.close(200, "given back".into())).await
            };
            let left = match closed {
                Ok(()) if self.alone => await_no_consumer(&self.epoch, &self.queue).await,
                closed => closed,
            };
            if let Some(claim) = self.claim.take() {
                if self.holds() {
                    sleep(RETURNS_WITHIN).await;
                }
                claim.release().await;
            }
            left
        })
    }
}

impl Drop for RabbitConsumer {
    /// Closing the channel returns what is unsettled.
    fn drop(&mut self) {
        if self.given_back || self.epoch.is_over() {
            return;
        }
        let (channel, claim) = (self.channel.clone(), self.claim.take());
        let (acknowledging, is_closed, holds) = (self.acknowledging(), self.is_closed(), self.holds());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Some(until) = acknowledging {
                    tokio::time::sleep_until(until).await;
                }
                if is_closed {
                    noticed(&channel).await;
                } else {
                    let _ = timeout(RPC_TIMEOUT, channel.close(200, "dropped".into())).await;
                }
                if claim.is_some() && holds {
                    sleep(RETURNS_WITHIN).await;
                }
                // After the messages are back.
                drop(claim);
            });
        }
    }
}
