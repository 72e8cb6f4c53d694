//! What a processor tells about itself: counters, its state, and why it is not delivering when it is not.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::suspects::Suspects;
use crate::core::deactivation::Deactivation;
use crate::telemetry::metrics::ProcessorMetrics;

/// A processor as it stands now. Counters count from the start of the process.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessorReport {
    /// Whether it works, or waits for a human.
    pub state: ProcessorState,
    /// Messages whose target answered with success.
    pub delivered: u64,
    /// Attempts without success.
    pub failed_attempts: u64,
    /// Messages moved to the dead letter store.
    pub dead_lettered: u64,
    /// Messages discarded after failure.
    pub dropped: u64,
    /// Messages settled by a filter, without delivery.
    pub filtered: u64,
    /// Answers that could not be stored.
    pub responses_lost: u64,
    /// Messages in our hands.
    pub held: u64,
    /// Age of the oldest message in our hands, by its own timestamp.
    pub oldest_taken_age: Option<Duration>,
    /// The next tick of a polling processor.
    pub next_tick: Option<Timestamp>,
    /// The last success.
    pub last_delivery: Option<LastDelivery>,
    /// The last attempt without success.
    pub last_failure: Option<LastFailure>,
    /// Present while deactivated.
    pub deactivation: Option<Deactivation>,
    /// Whether the last attempt reached the target; `None` before the first.
    pub target_reachable: Option<bool>,
    /// Why nothing is delivered now; `None` while delivering or idle.
    pub hindrance: Option<Hindrance>,
    /// Messages that were suspected to kill the process and had an outcome all the same, the last ones.
    pub cleared: Vec<String>,
    /// Whether the source's broker is connected.
    pub broker_connected: bool,
}

/// Whether a processor works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessorState {
    /// It works.
    Active,
    /// It stopped itself, and waits to be reactivated.
    Deactivated,
}

/// The last success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastDelivery {
    /// When.
    pub time: Timestamp,
    /// The target's status; absent for a target store.
    pub status: Option<u16>,
}

/// The last attempt without success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastFailure {
    /// When.
    pub time: Timestamp,
    /// Of which message.
    pub message_id: String,
    /// Why it was given up, else the kind of outcome.
    pub reason: &'static str,
    /// The target's status, if it answered.
    pub status: Option<u16>,
    /// In words.
    pub message: String,
}

/// Why nothing is delivered now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hindrance {
    /// Deactivated.
    Deactivated,
    /// The source's broker is not connected, or its queue can't be consumed.
    SourceUnavailable,
    /// The dead letter store does not take what must go there.
    DeadLetterStoreUnavailable,
    /// The processor must stop, and the record that keeps it stopped can't be stored.
    DeactivationNotStored,
    /// The target asked for a pause (`Retry-After`).
    PausedByTarget,
    /// The circuit breaker is open.
    BreakerOpen,
    /// The next attempt waits for its time.
    WaitingForRetry,
    /// `PerKey`: the window holds only messages of keys that wait.
    WindowFull,
}

impl Hindrance {
    /// The reason of the condition `Delivering`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deactivated => "Deactivated",
            Self::SourceUnavailable => "SourceUnavailable",
            Self::DeadLetterStoreUnavailable => "DeadLetterStoreUnavailable",
            Self::DeactivationNotStored => "DeactivationNotStored",
            Self::PausedByTarget => "PausedByTarget",
            Self::BreakerOpen => "BreakerOpen",
            Self::WaitingForRetry => "WaitingForRetry",
            Self::WindowFull => "WindowFull",
        }
    }
}

/// How a message left the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaving {
    Delivered,
    DeadLettered,
    Dropped,
    Filtered,
    /// Its caller waits no more.
    Expired,
}

/// Something that must be stored before a message can go on, and can't be yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiting {
    DeadLetterStore,
    DeactivationRecord,
}

/// Shows that something waits until it is dropped.
#[derive(Debug)]
pub(super) struct WaitingGuard {
    shared: Arc<Shared>,
    what: Waiting,
}

impl Drop for WaitingGuard {
    fn drop(&mut self) {
        self.shared.waiting(self.what).fetch_sub(1, Ordering::Relaxed);
        self.shared.changed.send_replace(());
    }
}

/// No message is held, or the oldest has no timestamp.
const NO_TIMESTAMP: i64 = i64::MIN;

/// What the worker writes and reports read. Counters are atomic; the rest changes rarely.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) metrics: ProcessorMetrics,
    pub(super) suspects: Arc<Suspects>,
    delivered: AtomicU64,
    failed_attempts: AtomicU64,
    dead_lettered: AtomicU64,
    dropped: AtomicU64,
    filtered: AtomicU64,
    responses_lost: AtomicU64,
    dead_letters_waiting: AtomicU64,
    records_waiting: AtomicU64,
    held: AtomicU64,
    /// Milliseconds of the oldest held message's timestamp.
    oldest: AtomicI64,
    facts: Mutex<Facts>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Facts {
    deactivation: Option<Deactivation>,
    last_delivery: Option<LastDelivery>,
    last_failure: Option<LastFailure>,
    reachable: Option<bool>,
    hindrance: Option<Hindrance>,
    next_tick: Option<Timestamp>,
}

impl Shared {
    pub(super) fn new(metrics: ProcessorMetrics, suspects: Suspects) -> Self {
        metrics.state("Active");
        Self {
            metrics,
            suspects: Arc::new(suspects),
            delivered: AtomicU64::new(0),
            failed_attempts: AtomicU64::new(0),
            dead_lettered: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            filtered: AtomicU64::new(0),
            responses_lost: AtomicU64::new(0),
            dead_letters_waiting: AtomicU64::new(0),
            records_waiting: AtomicU64::new(0),
            held: AtomicU64::new(0),
            oldest: AtomicI64::new(NO_TIMESTAMP),
            facts: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        // Facts are plain values: one that a panicking thread left behind is as good as any.
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(super) fn left(&self, how: Leaving) {
        let (counter, metric) = match how {
            Leaving::Delivered => (&self.delivered, &self.metrics.delivered),
            Leaving::DeadLettered => (&self.dead_lettered, &self.metrics.dead_lettered),
            Leaving::Dropped => (&self.dropped, &self.metrics.dropped),
            Leaving::Filtered => (&self.filtered, &self.metrics.filtered),
            Leaving::Expired => (&self.dropped, &self.metrics.expired),
        };
        counter.fetch_add(1, Ordering::Relaxed);
        metric.inc();
    }

    pub(super) fn response_lost(&self) {
        self.responses_lost.fetch_add(1, Ordering::Relaxed);
        self.metrics.responses_lost.inc();
        self.changed.send_replace(());
    }

    pub(super) fn succeeded(&self, delivery: LastDelivery) {
        self.facts().last_delivery = Some(delivery);
    }

    pub(super) fn attempt_failed(&self, failure: LastFailure) {
        self.failed_attempts.fetch_add(1, Ordering::Relaxed);
        self.failed(failure);
    }

    /// A failure that was not an attempt, or a better reason for one that was counted.
    pub(super) fn failed(&self, failure: LastFailure) {
        self.facts().last_failure = Some(failure);
        self.changed.send_replace(());
    }

    /// Answers what was known before.
    pub(super) fn reached(&self, reachable: bool) -> Option<bool> {
        let before = self.facts().reachable.replace(reachable);
        if before != Some(reachable) {
            self.changed.send_replace(());
        }
        before
    }

    pub(super) fn hindered(&self, hindrance: Option<Hindrance>) {
        let changed = {
            let mut facts = self.facts();
            std::mem::replace(&mut facts.hindrance, hindrance) != hindrance
        };
        if changed {
            self.changed.send_replace(());
        }
    }

    fn waiting(&self, what: Waiting) -> &AtomicU64 {
        match what {
            Waiting::DeadLetterStore => &self.dead_letters_waiting,
            Waiting::DeactivationRecord => &self.records_waiting,
        }
    }

    /// Something waits to be stored, for as long as the guard lives.
    pub(super) fn waits(self: &Arc<Self>, what: Waiting) -> WaitingGuard {
        self.waiting(what).fetch_add(1, Ordering::Relaxed);
        self.changed.send_replace(());
        WaitingGuard { shared: Arc::clone(self), what }
    }

    fn hindrance(&self, facts: &Facts) -> Option<Hindrance> {
        if facts.deactivation.is_some() {
            Some(Hindrance::Deactivated)
        } else if self.records_waiting.load(Ordering::Relaxed) > 0 {
            Some(Hindrance::DeactivationNotStored)
        } else if self.dead_letters_waiting.load(Ordering::Relaxed) > 0 {
            Some(Hindrance::DeadLetterStoreUnavailable)
        } else {
            facts.hindrance
        }
    }

    pub(super) fn next_tick(&self, tick: Option<Timestamp>) {
        self.facts().next_tick = tick;
    }

    pub(super) fn holds(&self, count: usize, oldest: Option<Timestamp>) {
        self.held.store(count as u64, Ordering::Relaxed);
        self.oldest.store(oldest.map_or(NO_TIMESTAMP, Timestamp::as_millisecond), Ordering::Relaxed);
    }

    pub(super) fn deactivated(&self, record: Deactivation) {
        self.facts().deactivation = Some(record);
        self.metrics.state("Deactivated");
        self.changed.send_replace(());
    }

    pub(super) fn reactivated(&self) {
        self.facts().deactivation = None;
        self.metrics.state("Active");
        self.changed.send_replace(());
    }

    pub(super) fn report(&self, now: Timestamp, broker_connected: bool) -> ProcessorReport {
        let oldest = Timestamp::from_millisecond(self.oldest.load(Ordering::Relaxed)).ok();
        let oldest_taken_age =
            oldest.map(|oldest| Duration::try_from(now.duration_since(oldest)).unwrap_or(Duration::ZERO));
        let seconds = oldest_taken_age.map_or(0, |age| i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
        self.metrics.oldest_taken_age.set(seconds);
        let facts = self.facts();
        let deactivated = facts.deactivation.is_some();
        ProcessorReport {
            state: if deactivated { ProcessorState::Deactivated } else { ProcessorState::Active },
            delivered: self.delivered.load(Ordering::Relaxed),
            failed_attempts: self.failed_attempts.load(Ordering::Relaxed),
            dead_lettered: self.dead_lettered.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
            filtered: self.filtered.load(Ordering::Relaxed),
            responses_lost: self.responses_lost.load(Ordering::Relaxed),
            held: self.held.load(Ordering::Relaxed),
            oldest_taken_age,
            next_tick: facts.next_tick,
            last_delivery: facts.last_delivery.clone(),
            last_failure: facts.last_failure.clone(),
            deactivation: facts.deactivation.clone(),
            target_reachable: facts.reachable,
            hindrance: self.hindrance(&facts),
            cleared: self.suspects.cleared(),
            broker_connected,
        }
    }
}
