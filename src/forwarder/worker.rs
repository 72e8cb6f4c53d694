//! The life of a forwarder: read the deactivation record, attach, work, return, and again, until told to stop.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Drained;
use super::orders::{Order, Orders};
use super::pacing::Pacing;
use super::poll::{Now, Ticks};
use super::processor::{Processor, bounded};
use super::report::Hindrance;
use super::session::{End, Ended, Session, State};
use super::work::store_backoff;
use crate::core::deactivation::Deactivation;
use crate::store::{Connection, StoreError};

/// Most messages of one attachment of a polling processor; larger batches come in rounds.
const ROUND: u64 = 256;
/// After a panic, before the worker goes on.
const AFTER_PANIC: Duration = Duration::from_secs(1);

pub(super) struct Worker {
    processor: Arc<Processor>,
    orders: Orders,
    ticks: Option<Ticks>,
    state: State,
    /// Tries in a row to reach the source that failed.
    failures: u32,
    /// The log says that it can't be reached.
    told: bool,
    cut_off: usize,
}

impl Worker {
    pub(super) fn new(processor: Arc<Processor>, ticks: Option<Ticks>, orders: Orders) -> Self {
        let state = State::new(Pacing::of(&processor.plan));
        Self { processor, orders, ticks, state, failures: 0, told: false, cut_off: 0 }
    }

    /// Runs until told to stop. A panic anywhere below returns what was held (the consumer is dropped), and the
    /// work goes on: one message must not stop a processor silently.
    pub(super) async fn run(mut self, drained: watch::Sender<Option<Drained>>) {
        while AssertUnwindSafe(self.work()).catch_unwind().await.is_err() {
            tracing::error!(processor = %self.processor.name, "a bug stopped the delivery; it starts again");
            self.processor.shared.holds(0, None);
            // A probe that went down with it must not keep the breaker waiting for ever.
            self.state.pacing.cancelled(true, self.processor.clock.elapsed());
            self.pause(Instant::now() + AFTER_PANIC).await;
        }
        self.processor.shared.hindered(None);
        drained.send_replace(Some(Drained { cut_off: self.cut_off }));
    }

    async fn work(&mut self) {
        while self.orders.deadline().is_none() {
            match self.standing().await {
                Ok(None) => {
                    self.poll_again();
                    self.deliver().await;
                }
                Ok(Some(record)) => {
                    self.stay_deactivated(record).await;
                    self.skip_missed_ticks();
                }
                Err(error) => self.source_failed(&error).await,
            }
        }
    }

    /// Whether the processor is deactivated. A deactivation that was decided and could not be stored comes first.
    async fn standing(&mut self) -> Result<Option<Deactivation>, StoreError> {
        if let Some(record) = &self.state.unrecorded {
            self.processor.store_record(record).await?;
            self.state.unrecorded = None;
            self.state.memory.forget_failures();
        }
        self.processor.read_record().await
    }

    /// The source answers. A poller that could not reach it does not wait for its next tick to say so.
    fn poll_again(&mut self) {
        if self.ticks.is_some() && self.failures > 0 {
            self.skip_missed_ticks();
            self.source_answers();
        }
    }

    fn skip_missed_ticks(&mut self) {
        if let Some(ticks) = &mut self.ticks {
            ticks.skip_missed(&self.processor.clock);
        }
    }

    async fn deliver(&mut self) {
        if self.ticks.is_some() {
            return self.poll().await;
        }
        let window = self.state.window(&self.processor);
        if let Some(ended) = self.session(window, None).await {
            self.after(ended.why).await;
        }
    }

    /// One attachment. `None`: it could not be made.
    async fn session(&mut self, window: u16, batch: Option<u64>) -> Option<Ended> {
        let consumer = match bounded(self.processor.source.consume(window)).await {
            Ok(consumer) => consumer,
            Err(error) => {
                self.source_failed(&error).await;
                return None;
            }
        };
        self.source_answers();
        let ended = Session::new(&self.processor, &mut self.state, consumer, window, batch).run(&mut self.orders).await;
        self.cut_off += ended.cut_off;
        Some(ended)
    }

    async fn after(&mut self, why: End) {
        match why {
            End::Lost(error) => self.source_failed(&error).await,
            End::Deactivated(record) => self.stay_deactivated(record).await,
            End::Stop | End::BatchDone | End::HoldLimit | End::Renew => {}
        }
    }

    /// Waits for the next tick and works it off.
    async fn poll(&mut self) {
        let Some(ticks) = &mut self.ticks else { return };
        let clock = self.processor.clock.clone();
        let now = ticks.ask(&clock);
        self.processor.shared.next_tick(ticks.next(&clock));
        match now {
            Now::Sleep(until) => {
                self.pause(clock.instant(until)).await;
            }
            Now::Never => {
                tracing::info!(processor = %self.processor.name, "the schedule has no further tick");
                self.pause(clock.instant(Duration::MAX)).await;
            }
            Now::Tick => {
                self.state.pacing.begin_batch();
                self.batch().await;
                if let Some(ticks) = &mut self.ticks {
                    ticks.made(&clock, self.state.pacing.batch_began());
                }
            }
        }
    }

    async fn batch(&mut self) {
        let ready = match bounded(self.processor.source.depth()).await {
            Ok(depth) => depth.ready,
            Err(error) => return self.source_failed(&error).await,
        };
        self.source_answers();
        let size = self.processor.plan.poll.as_ref().and_then(|poll| poll.batch_size);
        let mut left = size.map_or(ready, |size| ready.min(u64::from(size)));
        while left > 0 && self.orders.deadline().is_none() {
            let round = left.min(ROUND).min(u64::from(self.state.window(&self.processor)));
            let window = u16::try_from(round).unwrap_or(u16::MAX);
            let Some(ended) = self.session(window, Some(round)).await else {
                if self.is_back().await {
                    continue;
                }
                return;
            };
            left = left.saturating_sub(ended.settled);
            match ended.why {
                // Fewer than were counted: someone else took them.
                End::BatchDone if ended.settled < round => return,
                End::BatchDone => {}
                // What was returned in the middle of a batch is taken again in the same.
                End::HoldLimit | End::Renew => {
                    if !self.is_back().await {
                        return;
                    }
                }
                End::Lost(error) => {
                    self.source_failed(&error).await;
                    if !self.is_back().await {
                        return;
                    }
                }
                why @ (End::Stop | End::Deactivated(_)) => return self.after(why).await,
            }
        }
    }

    /// Waits in the middle of a batch until the source answers, and the batch can go on. False: it is over, because
    /// the processor was deactivated meanwhile or shall stop.
    async fn is_back(&mut self) -> bool {
        while self.orders.deadline().is_none() {
            match self.standing().await {
                Ok(None) => return true,
                Ok(Some(record)) => {
                    self.stay_deactivated(record).await;
                    return false;
                }
                Err(error) => self.source_failed(&error).await,
            }
        }
        false
    }

    /// Stays here until the record is removed, by a reactivation or by somebody else, or until told to stop.
    async fn stay_deactivated(&mut self, record: Deactivation) {
        let name = &self.processor.name;
        tracing::error!(
            processor = %name,
            message_id = record.message_id,
            reason = record.reason,
            attempts = record.attempts,
            error = record.message,
            "deactivated: nothing is delivered until the processor is reactivated; the message is kept"
        );
        self.processor.shared.deactivated(record);
        while self.orders.deadline().is_none() {
            tokio::select! {
                biased;
                order = self.orders.next() => if let Order::Reactivate(answer) = order {
                    let removed = self.processor.remove_record().await;
                    let gone = removed.is_ok();
                    // Nobody listens any more: nobody is told.
                    let _ = answer.send(removed);
                    if gone {
                        return self.reactivated();
                    }
                },
                gone = record_is_gone(&self.processor) => if gone {
                    return self.reactivated();
                },
            }
        }
    }

    fn reactivated(&mut self) {
        self.state.memory.forget_failures();
        self.processor.shared.reactivated();
        tracing::info!(processor = %self.processor.name, "reactivated: delivery starts again at attempt 1");
    }

    fn source_answers(&mut self) {
        if std::mem::take(&mut self.failures) > 0 {
            self.processor.shared.hindered(None);
        }
        if std::mem::take(&mut self.told) {
            tracing::info!(processor = %self.processor.name, source = self.processor.source.name(), "consuming again");
        }
    }

    /// The source can't be used: waits a while, shorter if its connection comes back.
    async fn source_failed(&mut self, error: &StoreError) {
        self.failures = self.failures.saturating_add(1);
        self.processor.shared.hindered(Some(Hindrance::SourceUnavailable));
        let mut connection = self.processor.source.connection();
        let state = connection.borrow_and_update().clone();
        // The first moments after a start are no news.
        if !self.told && state != Connection::Connecting {
            self.told = true;
            let source = self.processor.source.name();
            tracing::warn!(processor = %self.processor.name, source, %error, "can't consume; trying again");
        }
        let was_down = state != Connection::Up;
        let wait = store_backoff(self.failures, self.processor.random.next());
        let until = Instant::now() + wait;
        tokio::select! {
            biased;
            () = self.pause(until) => {}
            _ = connection.wait_for(|state| *state == Connection::Up), if was_down => {}
        }
    }

    /// Waits until `until`, unless told to stop before. Nothing is attached meanwhile.
    async fn pause(&mut self, until: Instant) {
        while let Some(order) = self.orders.next_before(until).await {
            let Order::Reactivate(answer) = order else { return };
            // Whether there is a record is not known here: the source may be out of reach.
            let removed = self.processor.remove_record().await;
            if removed.is_ok() && self.state.unrecorded.take().is_some() {
                self.state.memory.forget_failures();
            }
            // Nobody listens any more: nobody is told.
            let _ = answer.send(removed);
        }
    }
}

/// Looks again after a while, where others may remove the record.
async fn record_is_gone(processor: &Processor) -> bool {
    let Some(every) = processor.check_record_every else { return std::future::pending().await };
    tokio::time::sleep(every).await;
    matches!(processor.read_record().await, Ok(None))
}
