//! Keeps a store's topology declared: on every connection, and again when it was deleted under us.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::lasting::Lasting;
use super::session::State;
use super::{Broker, lasting, topology};
use crate::core::retry::Backoff;
use crate::core::topology::{Management, QueueKind, Topology};
use crate::store::{Connection, StoreError};

/// Between two tries to declare what the broker refused. Each refusal takes a channel of the connection with it, and a
/// connection has some 2,000, so it is asked less often in the long run.
fn redeclare() -> Backoff {
    Backoff { interval: Duration::from_secs(3), factor: 1.5, max_interval: Duration::from_secs(10), jitter: 0.1 }
}

/// At least so long from one time that everything is declared again to the next.
const REDECLARE_PAUSE: Duration = Duration::from_secs(1);

/// Declares a store's topology on every connection, and says whether it stands.
pub(super) struct Keeper {
    /// Among all keepers of the broker.
    number: u64,
    broker: Broker,
    store: String,
    topology: Topology,
    declared: watch::Sender<Result<(), StoreError>>,
    up: watch::Sender<Connection>,
    made: watch::Sender<Option<Timestamp>>,
    /// It stood once: what is missing since was deleted, or the broker has lost it.
    stood: bool,
    /// When the queue was found missing, until everything stands again.
    missing: Option<Timestamp>,
    redeclare: Arc<Notify>,
    stop: CancellationToken,
}

/// What a store sees of its keeper, which ends with it.
pub(super) struct Kept {
    /// Whether the topology stands on the connection that is up.
    pub(super) declaration: watch::Receiver<Result<(), StoreError>>,
    /// The same with the state of both connections.
    pub(super) connection: watch::Receiver<Connection>,
    /// When the queue was found missing last, and declared.
    pub(super) made: watch::Receiver<Option<Timestamp>>,
    /// Has everything declared again.
    pub(super) redeclare: Arc<Notify>,
    _stop: DropGuard,
}

impl Keeper {
    /// Starts one. `store` names the store among those of this process.
    pub(super) fn start(broker: Broker, store: &str, topology: &Topology) -> Kept {
        let stop = CancellationToken::new();
        let (declared, declaration) = watch::channel(Err(StoreError::NotConnected("connecting".to_owned())));
        let (up, connection) = watch::channel(Connection::Connecting);
        let (made, made_at) = watch::channel(None);
        let redeclare = Arc::new(Notify::new());
        let number = broker.0.keepers.add(store, &redeclare);
        let keeper = Self {
            number,
            broker,
            store: store.to_owned(),
            topology: topology.clone(),
            declared,
            up,
            made,
            stood: false,
            missing: None,
            redeclare: redeclare.clone(),
            stop: stop.clone(),
        };
        lasting::start(keeper);
        Kept { declaration, connection, made: made_at, redeclare, _stop: stop.drop_guard() }
    }
}

impl Lasting for Keeper {
    async fn run(&mut self) {
        let mut consuming = self.broker.0.consuming.state();
        let mut publishing = self.broker.0.publishing.state();
        let mut failures = 0;
        let mut redeclared: Option<Instant> = None;
        loop {
            consuming.mark_unchanged();
            publishing.mark_unchanged();
            let result = self.declare().await;
            failures = if result.is_err() { failures + 1 } else { 0 };
            let _ = self.declared.send_replace(result.clone());
            let changed = |state: &watch::Receiver<State>| state.has_changed().unwrap_or(false);
            if result.is_err() && (changed(&consuming) || changed(&publishing)) {
                // What it says may be over already.
                continue;
            }
            let settling = if result.is_ok() { self.settling() } else { None };
            self.tell(&result, settling.is_some());
            let again = settling.unwrap_or_else(|| redeclare().delay(failures.max(1), fastrand::f64()));
            tokio::select! {
                // What is to be deleted is not declared again.
                biased;
                () = self.stop.cancelled() => return,
                changed = consuming.changed() => if changed.is_err() { return },
                changed = publishing.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(again), if failures > 0 || settling.is_some() => {}
                () = self.redeclare.notified() => {
                    let pause = redeclared.map_or(Duration::ZERO, |at| REDECLARE_PAUSE.saturating_sub(at.elapsed()));
                    tokio::select! {
                        () = self.stop.cancelled() => return,
                        () = tokio::time::sleep(pause) => {}
                    }
                    redeclared = Some(Instant::now());
                }
            }
        }
    }
}

impl Keeper {
    async fn declare(&mut self) -> Result<(), StoreError> {
        let epoch = self.broker.0.consuming.epoch()?;
        // Whoever holds an older form of a store still publishes and consumes; its bindings are the newer one's affair.
        if !self.broker.0.keepers.is_newest(&self.store, self.number) {
            return Ok(());
        }
        if let Some(queue) = &self.topology.queue
            && (queue.kind == QueueKind::Quorum || queue.management == Management::Declare)
            && matches!(topology::look(&epoch, &queue.name).await, Err(StoreError::NotFound(_)))
        {
            // The declaration does not say whether it made the queue, and a new one must settle.
            self.broker.lost(&queue.name, queue.kind);
            if queue.management == Management::Declare {
                self.missing.get_or_insert_with(Timestamp::now);
            }
        }
        let gone = self.broker.bindings().make(&self.store, &self.topology);
        topology::declare(&epoch, &self.topology).await?;
        if let (Some(queue), Some(exchange)) = (&self.topology.queue, &self.topology.exchange) {
            topology::unbind(&epoch, &queue.name, &exchange.name, &gone).await?;
            self.broker.bindings().made(&self.store, &self.topology);
        }
        if let Some(queue) = &self.topology.queue {
            self.broker.found(&queue.name, queue.kind);
            if self.missing.is_some() && self.stood {
                tracing::warn!(queue = queue.name, "the queue was gone and is declared again; what was in it is lost");
            }
        }
        if let Some(missing) = self.missing.take() {
            self.made.send_replace(Some(missing));
        }
        self.stood = true;
        Ok(())
    }

    fn settling(&self) -> Option<Duration> {
        self.broker.settling(&self.topology.queue.as_ref()?.name)
    }

    fn tell(&self, result: &Result<(), StoreError>, settling: bool) {
        let publishing = self.broker.0.publishing.state().borrow().clone();
        let consuming = self.broker.0.consuming.state().borrow().clone();
        let connection = match (result, publishing, consuming) {
            (_, State::Connecting, State::Connecting | State::Up(_) | State::Blocked(..))
            | (_, State::Up(_) | State::Blocked(..), State::Connecting) => Connection::Connecting,
            (_, State::Down(error), _) | (_, _, State::Down(error)) => Connection::Down(error),
            (Err(error), ..) => Connection::Down(error.clone()),
            (_, State::Blocked(_, reason), _) => {
                Connection::Down(StoreError::NotConnected(format!("blocked by the broker: {reason}")))
            }
            // Nothing has failed: whoever publishes waits a moment.
            (Ok(()), ..) if settling => Connection::Connecting,
            (Ok(()), State::Up(_), State::Up(_) | State::Blocked(..)) => Connection::Up,
        };
        self.up.send_if_modified(|now| {
            let changed = *now != connection;
            *now = connection;
            changed
        });
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.broker.0.keepers.remove(&self.store, self.number);
    }
}

/// The keepers of one broker, by store: an edited store has a new one before the old one has gone.
#[derive(Debug, Default)]
pub(super) struct Keepers(Mutex<HashMap<String, BTreeMap<u64, Arc<Notify>>>>);

static NUMBERS: AtomicU64 = AtomicU64::new(0);

impl Keepers {
    fn add(&self, store: &str, redeclare: &Arc<Notify>) -> u64 {
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        self.lock().entry(store.to_owned()).or_default().insert(number, redeclare.clone());
        number
    }

    fn is_newest(&self, store: &str, number: u64) -> bool {
        self.lock().get(store).and_then(|keepers| keepers.last_key_value().map(|(last, _)| *last)) == Some(number)
    }

    /// If that was the newest, the one before it takes over.
    fn remove(&self, store: &str, number: u64) {
        let mut stores = self.lock();
        let Some(keepers) = stores.get_mut(store) else { return };
        let last = keepers.last_key_value().map(|(last, _)| *last);
        keepers.remove(&number);
        match keepers.last_key_value() {
            Some((_, before)) if last == Some(number) => before.notify_one(),
            Some(_) => {}
            None => {
                stores.remove(store);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, BTreeMap<u64, Arc<Notify>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
