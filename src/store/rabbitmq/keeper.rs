//! Keeps a store's topology declared: on every connection, and again when it was deleted under us.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::session::State;
use super::{Broker, topology};
use crate::core::topology::{Management, QueueKind, Topology};
use crate::store::{Connection, StoreError};

/// Between two tries to declare what the broker refused.
const REDECLARE: Duration = Duration::from_secs(5);

/// Declares a store's topology on every connection, and says whether it stands.
pub(super) struct Keeper {
    broker: Broker,
    store: String,
    topology: Topology,
    declared: watch::Sender<Result<(), StoreError>>,
    up: watch::Sender<Connection>,
    redeclare: Arc<Notify>,
    stop: CancellationToken,
}

/// What a store sees of its keeper, which ends with it.
pub(super) struct Kept {
    /// Whether the topology stands on the connection that is up.
    pub(super) declaration: watch::Receiver<Result<(), StoreError>>,
    /// The same with the state of both connections.
    pub(super) connection: watch::Receiver<Connection>,
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
        let redeclare = Arc::new(Notify::new());
        let keeper = Self {
            broker,
            store: store.to_owned(),
            topology: topology.clone(),
            declared,
            up,
            redeclare: redeclare.clone(),
            stop: stop.clone(),
        };
        tokio::spawn(keeper.run());
        Kept { declaration, connection, redeclare, _stop: stop.drop_guard() }
    }

    async fn run(self) {
        let mut consuming = self.broker.0.consuming.state();
        let mut publishing = self.broker.0.publishing.state();
        loop {
            consuming.mark_unchanged();
            publishing.mark_unchanged();
            let result = self.declare().await;
            let _ = self.declared.send_replace(result.clone());
            if let (Ok(()), Some(left)) = (&result, self.settling()) {
                self.tell(&Err(StoreError::NotConnected("the queue is being set up".to_owned())));
                tokio::time::sleep(left).await;
            }
            let failed = result.is_err();
            self.tell(&result);
            tokio::select! {
                () = self.stop.cancelled() => return,
                changed = consuming.changed() => if changed.is_err() { return },
                changed = publishing.changed() => if changed.is_err() { return },
                () = self.redeclare.notified() => self.tell_gone(),
                () = tokio::time::sleep(REDECLARE), if failed => {}
            }
        }
    }

    fn tell_gone(&self) {
        let Some(queue) = &self.topology.queue else { return };
        match queue.management {
            Management::Declare => tracing::warn!(queue = queue.name, "the queue was deleted; declaring it again"),
            Management::Existing => tracing::warn!(queue = queue.name, "the queue was deleted; waiting for it"),
        }
    }

    async fn declare(&self) -> Result<(), StoreError> {
        let epoch = self.broker.0.consuming.epoch()?;
        if let Some(queue) = &self.topology.queue
            && queue.kind == QueueKind::Quorum
            && matches!(topology::look(&epoch, &queue.name).await, Err(StoreError::NotFound(_)))
        {
            // The declaration does not say whether it made the queue, and a new one must settle.
            self.broker.lost(queue);
        }
        topology::declare(&epoch, &self.topology).await?;
        if let (Some(queue), Some(exchange)) = (&self.topology.queue, &self.topology.exchange) {
            let gone = self.broker.rebind(&self.store, &self.topology);
            topology::unbind(&epoch, &queue.name, &exchange.name, &gone).await?;
        }
        if let Some(queue) = &self.topology.queue
            && queue.kind == QueueKind::Quorum
        {
            self.broker.found(&queue.name);
        }
        Ok(())
    }

    fn settling(&self) -> Option<Duration> {
        self.broker.settling(&self.topology.queue.as_ref()?.name)
    }

    fn tell(&self, result: &Result<(), StoreError>) {
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
            (Ok(()), State::Up(_), State::Up(_) | State::Blocked(..)) => Connection::Up,
        };
        self.up.send_if_modified(|now| {
            let changed = *now != connection;
            *now = connection;
            changed
        });
    }
}
