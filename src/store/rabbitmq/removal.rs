//! Queues that go with the objects that they were made for.

use super::session::State;
use super::topology::{self, look};
use super::{Broker, deactivation};
use crate::store::{Depth, StoreError};

/// What became of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// It is gone, or never was.
    Gone,
    /// It holds messages, or is consumed from: it was not touched.
    Kept(Depth),
}

impl Broker {
    /// Waits until there is a connection. The caller bounds the time.
    pub async fn connected(&self) -> Result<(), StoreError> {
        let mut state = self.0.consuming.state();
        match state.wait_for(|state| matches!(state, State::Up(_) | State::Blocked(..))).await {
            Ok(_) => Ok(()),
            Err(_) => Err(StoreError::Closed),
        }
    }

    /// Deletes a queue, if a look shows that it is empty and unused. Not by `if-empty`, which closes the whole connection
    /// on a quorum queue.
    pub async fn remove_queue(&self, queue: &str) -> Result<Removed, StoreError> {
        let epoch = self.0.consuming.epoch()?;
        let found = match look(&epoch, queue).await {
            Ok(found) => found,
            Err(StoreError::NotFound(_)) => return Ok(Removed::Gone),
            Err(error) => return Err(error),
        };
        let depth = Depth { ready: u64::from(found.message_count()), consumers: found.consumer_count() };
        if depth != Depth::default() {
            return Ok(Removed::Kept(depth));
        }
        topology::delete(&epoch, queue).await.map(|()| Removed::Gone)
    }

    /// Deletes the queue of a processor's deactivation record, and the record with it. `processor` is
    /// `<namespace>.<name>`.
    pub async fn remove_record(&self, processor: &str) -> Result<(), StoreError> {
        topology::delete(&*self.0.consuming.epoch()?, &deactivation::queue(processor)).await
    }
}
