//! What a running forwarder is told: to stop, or to deliver again after a deactivation.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::store::StoreError;

/// Where the answer to a reactivation goes.
pub(super) type Reactivated = oneshot::Sender<Result<(), StoreError>>;

/// The receiving end, owned by the worker.
#[derive(Debug)]
pub(super) struct Orders {
    stop: watch::Receiver<Option<Instant>>,
    reactivations: mpsc::Receiver<Reactivated>,
    /// One that was taken and could not be carried out where it was taken.
    put_back: Option<Reactivated>,
    deadline: Option<Instant>,
}

/// The sending end, in the handle.
#[derive(Debug)]
pub(super) struct Sender {
    stop: watch::Sender<Option<Instant>>,
    reactivations: mpsc::Sender<Reactivated>,
}

/// One order.
#[derive(Debug)]
pub(super) enum Order {
    /// Stop; [`Orders::deadline`] says until when attempts under way may end.
    Stop,
    /// Remove the record and deliver again.
    Reactivate(Reactivated),
}

pub(super) fn channel() -> (Sender, Orders) {
    let (stop, stopped) = watch::channel(None);
    // A reactivation is a human's act: four wait, further ones wait in their own call.
    let (reactivations, received) = mpsc::channel(4);
    (Sender { stop, reactivations }, Orders { stop: stopped, reactivations: received, put_back: None, deadline: None })
}

impl Sender {
    pub(super) fn stop(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        // The first stop counts.
        self.stop.send_if_modified(|stop| stop.is_none() && stop.replace(deadline).is_none());
    }

    pub(super) async fn reactivate(&self) -> Result<(), StoreError> {
        let (answer, answered) = oneshot::channel();
        self.reactivations.send(answer).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }
}

impl Orders {
    /// Until when attempts under way may end; `None` while not stopping.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The next order. After a stop there is none any more. Cancel safe.
    pub(super) async fn next(&mut self) -> Order {
        self.next_of(true).await
    }

    /// The next order, or only the stop: reactivations then wait for whoever asks for all. Cancel safe.
    pub(super) async fn next_of(&mut self, all: bool) -> Order {
        if self.deadline.is_some() {
            return std::future::pending().await;
        }
        if all && let Some(answer) = self.put_back.take() {
            return Order::Reactivate(answer);
        }
        tokio::select! {
            biased;
            stop = self.stop.wait_for(Option::is_some) => {
                // A handle that was dropped leaves nobody to wait for what is under way.
                let deadline = stop.ok().and_then(|deadline| *deadline);
                self.deadline = Some(deadline.unwrap_or_else(Instant::now));
                Order::Stop
            }
            Some(answer) = self.reactivations.recv(), if all => Order::Reactivate(answer),
        }
    }

    /// Hands a reactivation to whoever asks for the next order.
    pub(super) fn put_back(&mut self, reactivation: Reactivated) {
        self.put_back = Some(reactivation);
    }

    /// The next order before `until`; `None` when that time has come, and after a stop.
    pub(super) async fn next_before(&mut self, until: Instant) -> Option<Order> {
        if self.deadline.is_some() {
            return None;
        }
        tokio::time::timeout_at(until, self.next()).await.ok()
    }
}
