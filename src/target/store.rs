//! A store as a target: drains a failover store, moves messages to a new queue.
//!
//! Inputs: the [`Attempt`]'s message, and nothing else of it. Whoever makes the attempt puts the message there that is
//! to be stored: the original, or with a transform one with its body and headers. Outputs: an [`Answer`] without a
//! body. This module never tries another store: a failover belongs to publishers with a caller who waits.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::{Answer, AnswerBody, Attempt, Target};
use crate::core::outcome::Outcome;
use crate::store::{BoxFuture, MessageStore, PublishError};

/// A target that stores.
pub struct StoreTarget {
    store: Arc<dyn MessageStore>,
    routing_key: Option<String>,
}

impl StoreTarget {
    /// `routing_key` defaults to the store's own.
    pub fn new(store: Arc<dyn MessageStore>, routing_key: Option<String>) -> Self {
        Self { store, routing_key }
    }
}

impl fmt::Debug for StoreTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreTarget").field("store", &self.store.name()).finish_non_exhaustive()
    }
}

impl Target for StoreTarget {
    fn send(&self, attempt: Attempt) -> BoxFuture<'_, Answer> {
        Box::pin(async move {
            let started = Instant::now();
            let published = self.store.publish(attempt.message, self.routing_key.as_deref()).await;
            let outcome = match published {
                Ok(()) => Outcome::Stored,
                Err(error) => outcome_of(&error),
            };
            Answer { outcome, body: AnswerBody::None, repeated: false, elapsed: started.elapsed() }
        })
    }
}

/// What a publish that failed means for the message.
fn outcome_of(error: &PublishError) -> Outcome {
    match error {
        // Nothing was stored, and it is not the message's fault: with `whileUnreachable: Wait` it waits.
        PublishError::NotConnected(_) | PublishError::Refused(_) => Outcome::ConnectionError(error.to_string()),
        PublishError::Unroutable(_) => Outcome::Unroutable,
        // It may be stored: as after a request whose answer never came.
        PublishError::Unknown(_) => Outcome::Timeout,
        // Too large for every store: it can never arrive, and a retry would only block those behind it.
        PublishError::Invalid(_) => Outcome::Invalid(error.to_string()),
    }
}
