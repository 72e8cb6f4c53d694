//! One attachment to the source: taking, attempting and settling until it ends, then returning the rest.
//!
//! One task owns the consumer, the lanes and every decision; attempts and publishes run beside it and report back.
//! A session ends in one way whatever the cause: nothing new starts, what is under way ends, and what is left goes
//! back all together (see [`End`]).

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::held::{Held, Memory, Phase};
use super::limits::MAX_HELD_BYTES;
use super::noise::Noise;
use super::orders::{Order, Orders};
use super::pacing::{Pacing, Start};
use super::processor::{Processor, bounded};
use super::report::Hindrance;
use super::work::{Done, Work};
use crate::core::deactivation::Deactivation;
use crate::core::message::Message;
use crate::core::ordering::{Lane, Lanes, Sequence};
use crate::plan::OrderingPlan;
use crate::store::{Consumer, Delivery, StoreError, Tag};

/// Between two tries to read the deactivation record for a redelivered message.
const CHECK_AGAIN: Duration = Duration::from_secs(1);

/// What outlives a session: returned messages find it again when they are taken again.
#[derive(Debug)]
pub(super) struct State {
    pub(super) pacing: Pacing,
    pub(super) memory: Memory,
    pub(super) noise: Noise,
    /// A deactivation that was decided and is not stored yet: nothing is consumed before it is.
    pub(super) unrecorded: Option<Deactivation>,
    /// Present while the window is small.
    pub(super) narrow: Option<Narrow>,
    taken: Sequence,
}

impl State {
    pub(super) fn new(pacing: Pacing) -> Self {
        let (memory, noise) = (Memory::default(), Noise::default());
        Self { pacing, memory, noise, unrecorded: None, narrow: None, taken: 0 }
    }

    /// How many messages are taken ahead in the next session.
    pub(super) fn window(&self, processor: &Processor) -> u16 {
        self.narrow.map_or_else(|| processor.window(), |narrow| narrow.most.min(processor.window()))
    }
}

/// A window that was made small, for messages too large for the usual one or too slow for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Narrow {
    /// Until when at least.
    pub(super) until: Duration,
    /// Messages that are taken ahead.
    pub(super) most: u16,
}

/// Why a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// Told to stop.
    Stop,
    /// The batch is done.
    BatchDone,
    /// Something was held for as long as the broker allows.
    HoldLimit,
    /// To begin anew at once: the window was too wide for messages this large, or can be wide again, or somebody
    /// reactivates.
    Renew,
    /// The consumer is gone; the store has what was not acknowledged.
    Lost(StoreError),
    /// The record is stored.
    Deactivated(Deactivation),
}

/// A session that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) why: End,
    /// Messages that left the source in it.
    pub(super) settled: u64,
    /// Attempts that were cut off because the grace period was over.
    pub(super) cut_off: usize,
}

pub(super) struct Session<'a> {
    pub(super) processor: Arc<Processor>,
    pub(super) state: &'a mut State,
    /// `None` once it is gone.
    pub(super) consumer: Option<Box<dyn Consumer>>,
    pub(super) window: usize,
    /// Of a batch: how many are still to be taken.
    pub(super) batch: Option<u64>,
    pub(super) last_taken: Duration,
    pub(super) lanes: Lanes,
    pub(super) held: BTreeMap<Sequence, Held>,
    pub(super) bytes: usize,
    work: FuturesUnordered<Work>,
    pub(super) attempts: usize,
    /// Settled since the last acknowledgement.
    to_ack: Vec<(Tag, Held)>,
    settled: u64,
    /// A message decided that the processor stops: no attempt starts any more.
    pub(super) deactivating: bool,
    pub(super) ending: Option<End>,
    /// Cancelled when the session begins to end: what is tried for as long as it takes gives up then.
    pub(super) over: CancellationToken,
    /// Until when pacing holds attempts back, and why.
    pub(super) gate: Option<(Duration, Option<Hindrance>)>,
    pub(super) next_check: Option<Duration>,
    shown: Option<Hindrance>,
}

impl<'a> Session<'a> {
    /// `batch`: how many messages to take at most; `None`: all that come.
    pub(super) fn new(
        processor: &Arc<Processor>,
        state: &'a mut State,
        consumer: Box<dyn Consumer>,
        window: u16,
        batch: Option<u64>,
    ) -> Self {
        let now = processor.clock.elapsed();
        Self {
            processor: Arc::clone(processor),
            state,
            consumer: Some(consumer),
            window: usize::from(window),
            batch,
            last_taken: now,
            lanes: Lanes::default(),
            held: BTreeMap::new(),
            bytes: 0,
            work: FuturesUnordered::new(),
            attempts: 0,
            to_ack: Vec::new(),
            settled: 0,
            deactivating: false,
            ending: None,
            over: CancellationToken::new(),
            gate: None,
            next_check: processor.check_record_every.map(|every| now + every),
            shown: None,
        }
    }

    /// Works until the session ends and everything is settled or returned.
    pub(super) async fn run(mut self, orders: &mut Orders) -> Ended {
        // One for all turns: most of them leave its time as it was.
        let mut timer = pin!(tokio::time::sleep_until(Instant::now()));
        loop {
            // First what was settled: if that fails, the consumer is gone, and nothing may start.
            self.acknowledge();
            self.watch_limits();
            self.dispatch();
            // What needed no attempt.
            self.acknowledge();
            self.show();
            if (self.ending.is_some() && self.work.is_empty()) || grace_is_over(orders) {
                return self.close().await;
            }
            let wake = self.next_wake(orders);
            if let Some(wake) = wake
                && timer.deadline() != wake
            {
                timer.as_mut().reset(wake);
            }
            tokio::select! {
                biased;
                // Who asks for a reactivation at the end of a session is answered by what comes after it.
                order = orders.next_of(self.ending.is_none()) => match order {
                    Order::Stop => self.end(End::Stop),
                    // The record is on its way to its store. Whether it got there is known at the end.
                    Order::Reactivate(answer) if self.deactivating => {
                        orders.put_back(answer);
                        self.end(End::Renew);
                    }
                    // Not deactivated: nothing to do. Nobody listens any more: nobody is told.
                    Order::Reactivate(answer) => drop(answer.send(Ok(()))),
                },
                Some(done) = self.work.next() => self.done_with(done),
                () = timer.as_mut(), if wake.is_some() => {}
                // The store bounds what it hands out. Asked also when nothing more may come: so a consumer that is
                // gone is seen at once, not at the next acknowledgement.
                taken = next_of(&mut self.consumer), if self.ending.is_none() => self.took_all(taken),
            }
        }
    }

    /// Takes what is handed out, and all else that is there: no more than a window, nor than may be held.
    fn took_all(&mut self, first: Result<Delivery, StoreError>) {
        let mut next = Some(first);
        while let Some(taken) = next {
            match taken {
                Ok(delivery) => self.took(delivery),
                Err(error) => return self.lost(error),
            }
            let enough = self.batch == Some(0) || self.held.len() >= self.window || self.bytes > MAX_HELD_BYTES;
            next = if enough { None } else { next_of(&mut self.consumer).now_or_never() };
        }
    }

    /// Takes note of what has ended, and of all that has ended meanwhile: so that one acknowledgement covers it.
    fn done_with(&mut self, first: Done) {
        self.done(first);
        while let Some(Some(done)) = self.work.next().now_or_never() {
            self.done(done);
        }
    }

    /// Begins the end. The first cause counts, but a stored deactivation is never forgotten over another.
    pub(super) fn end(&mut self, why: End) {
        if self.ending.is_none() || matches!(why, End::Deactivated(_)) {
            tracing::debug!(processor = %self.processor.name, ?why, held = self.held.len(), "ending an attachment");
            self.ending = Some(why);
        }
        if let Some(consumer) = &mut self.consumer {
            consumer.take_no_more();
        }
        self.over.cancel();
    }

    fn lost(&mut self, error: StoreError) {
        self.consumer = None;
        self.end(End::Lost(error));
    }

    fn took(&mut self, delivery: Delivery) {
        let now = self.processor.clock.elapsed();
        self.last_taken = now;
        match self.batch {
            Some(1) => self.taken_enough(),
            Some(left) => self.batch = Some(left.saturating_sub(1)),
            None => {}
        }
        self.state.taken += 1;
        let sequence = self.state.taken;
        let message = &delivery.message;
        let recalled = self.state.memory.recall(&message.id);
        let suspect = delivery.redelivered && recalled.is_none();
        let (history, not_before) = recalled.unwrap_or_default();
        // A message whose key can't be evaluated is given up when its turn comes.
        let (lane, content) = match self.processor.expressions.lane(message, sequence) {
            Ok(lane) => (lane, None),
            Err(failure) => (Lane::Keyless, Some(Err(failure.problem))),
        };
        tracing::debug!(processor = %self.processor.name, message_id = %message.id, redelivered = delivery.redelivered, "taken");
        let held = Held {
            weight: message.weight(),
            taken: now,
            unchecked: delivery.redelivered && self.processor.check_record_every.is_some(),
            suspect,
            suspicion: None,
            content,
            history,
            reply: None,
            delivery,
        };
        self.bytes += held.weight;
        self.held.insert(sequence, held);
        self.lanes.push(sequence, lane, not_before);
    }

    /// Starts what may start.
    fn dispatch(&mut self) {
        self.gate = None;
        while self.may_start() {
            let now = self.processor.clock.elapsed();
            let Some(delivery) = self.lanes.next(now) else { return };
            match self.begin(delivery, now) {
                Start::Now { .. } => {}
                Start::At(at, why) => {
                    self.gate = Some((at, why));
                    return;
                }
                Start::AfterProbe => {
                    self.gate = Some((Duration::MAX, Some(Hindrance::BreakerOpen)));
                    return;
                }
            }
        }
    }

    pub(super) fn may_start(&self) -> bool {
        self.ending.is_none() && !self.deactivating && self.attempts < self.processor.concurrency()
    }

    pub(super) fn work(&mut self, work: Work) {
        self.work.push(work);
    }

    /// Takes a message out of our hands; the next acknowledgement takes it out of the source.
    pub(super) fn settle(&mut self, delivery: Sequence) {
        self.lanes.finish(delivery);
        if let Some(held) = self.held.remove(&delivery) {
            self.state.pacing.message_ended(delivery, self.processor.clock.elapsed());
            self.bytes = self.bytes.saturating_sub(held.weight);
            self.to_ack.push((held.delivery.tag, held));
        }
    }

    /// Acknowledges what was settled in this turn, all at once: under load that is a batch, else a single message.
    fn acknowledge(&mut self) {
        if self.to_ack.is_empty() {
            return;
        }
        let settled = std::mem::take(&mut self.to_ack);
        let tags: Vec<Tag> = settled.iter().map(|(tag, _)| *tag).collect();
        let acknowledged = self.consumer.as_mut().map_or(Err(StoreError::Stale), |consumer| consumer.ack(&tags));
        match acknowledged {
            Ok(()) => self.settled += settled.len() as u64,
            Err(error) => {
                // They come again, and are then acknowledged without another attempt.
                for (_, held) in settled {
                    let mut history = held.history;
                    history.phase = Phase::Settled;
                    self.state.memory.remember(&held.delivery.message, history, Duration::ZERO);
                }
                self.lost(error);
            }
        }
    }

    pub(super) fn checked(&mut self, delivery: Option<Sequence>, found: Result<Option<Deactivation>, StoreError>) {
        let now = self.processor.clock.elapsed();
        match (found, delivery) {
            (Ok(Some(record)), _) => self.end(End::Deactivated(record)),
            (Ok(None), Some(delivery)) => {
                if let Some(held) = self.held.get_mut(&delivery) {
                    held.unchecked = false;
                }
                self.lanes.retry(delivery, now);
            }
            (Err(_), Some(delivery)) => self.lanes.retry(delivery, now + CHECK_AGAIN),
            (Ok(None) | Err(_), None) => {}
        }
        if delivery.is_none() {
            self.next_check = self.processor.check_record_every.map(|every| now + every);
        }
    }

    /// Tells the report what is held, and why nothing is delivered when nothing is.
    fn show(&mut self) {
        let oldest = self.held.first_key_value().and_then(|(_, held)| held.delivery.message.timestamp);
        self.processor.shared.holds(self.held.len(), oldest);
        let idle = self.work.is_empty() && !self.held.is_empty() && self.ending.is_none();
        let full = self.held.len() >= self.window;
        let per_key = matches!(self.processor.plan.ordering, OrderingPlan::PerKey(_));
        let hindrance = match self.gate {
            Some((_, why)) => why,
            None if idle && full && per_key => Some(Hindrance::WindowFull),
            None if idle => Some(Hindrance::WaitingForRetry),
            None => None,
        };
        if hindrance != self.shown {
            self.shown = hindrance;
            self.processor.shared.hindered(hindrance);
            tracing::debug!(processor = %self.processor.name, reason = hindrance.map(Hindrance::as_str), "delivering");
        }
    }

    /// Returns what is left, and remembers what has happened to it.
    async fn close(mut self) -> Ended {
        let cut_off = self.attempts;
        if cut_off > 0 {
            // If there is a probe, it is one of them.
            self.state.pacing.cancelled(true, self.processor.clock.elapsed());
        }
        // Attempts that the grace period cut off end here, uncounted.
        self.work.clear();
        let why = self.ending.take().unwrap_or(End::Stop);
        let left = std::mem::take(&mut self.held);
        if let Some(consumer) = self.consumer.take() {
            if let Err(error) = bounded(consumer.give_back()).await {
                // Not returned is not lost: the store takes back what a consumer that is gone had.
                tracing::debug!(processor = %self.processor.name, %error, "returning failed");
            }
            self.processor.shared.metrics.returned.inc_by(left.len() as u64);
        }
        for (sequence, held) in left {
            self.remember(sequence, held);
        }
        if matches!(why, End::Deactivated(_)) {
            self.state.memory.forget_failures();
        }
        self.processor.shared.holds(0, None);
        self.processor.shared.hindered(None);
        Ended { why, settled: self.settled, cut_off }
    }

    fn remember(&mut self, sequence: Sequence, held: Held) {
        // Also of what was not attempted yet: so it is known, when it comes again, that nobody had delivered it. What
        // was in doubt stays so.
        let Held { history, delivery, suspect, .. } = held;
        if suspect {
            return;
        }
        let not_before = self.lanes.not_before(sequence).unwrap_or_default();
        let message: &Message = &delivery.message;
        self.state.memory.remember(message, history, not_before);
    }
}

fn grace_is_over(orders: &Orders) -> bool {
    orders.deadline().is_some_and(|deadline| Instant::now() >= deadline)
}

async fn next_of(consumer: &mut Option<Box<dyn Consumer>>) -> Result<Delivery, StoreError> {
    match consumer {
        Some(consumer) => consumer.next().await,
        None => std::future::pending().await,
    }
}
