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
        PublishError::NotConnected(_) | PublishError::Refused(_) | PublishError::PartlyRefused(_) => {
            Outcome::ConnectionError(error.to_string())
        }
        PublishError::Unroutable(_) => Outcome::Unroutable,
        // It may be stored: as after a request whose answer never came.
        PublishError::Unknown(_) => Outcome::Timeout,
        // Too large for every store: it can never arrive, and a retry would only block those behind it.
        PublishError::Invalid(_) => Outcome::Invalid(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use ::http::{HeaderMap, Method};
    use bytes::Bytes;
    use tokio::sync::watch;

    use super::*;
    use crate::core::deactivation::Deactivation;
    use crate::core::message::{Message, MessageId};
    use crate::store::{Connection, Consumer, Depth, StoreError};

    /// Answers every publish with this, and keeps what it was given.
    #[derive(Debug)]
    struct Fake {
        answer: Result<(), PublishError>,
        published: Mutex<Vec<(Arc<Message>, Option<String>)>>,
    }

    impl MessageStore for Fake {
        fn publish<'a>(
            &'a self,
            message: Arc<Message>,
            routing_key: Option<&'a str>,
        ) -> BoxFuture<'a, Result<(), PublishError>> {
            self.published.lock().unwrap().push((message, routing_key.map(str::to_owned)));
            Box::pin(std::future::ready(self.answer.clone()))
        }
        fn depth(&self) -> BoxFuture<'_, Result<Depth, StoreError>> {
            Box::pin(std::future::ready(Err(StoreError::Closed)))
        }
        fn consume(&self, _: u16) -> BoxFuture<'_, Result<Box<dyn Consumer>, StoreError>> {
            Box::pin(std::future::ready(Err(StoreError::Closed)))
        }
        fn deactivation<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<Deactivation>, StoreError>> {
            Box::pin(std::future::ready(Err(StoreError::Closed)))
        }
        fn deactivate<'a>(&'a self, _: &'a str, _: &'a Deactivation) -> BoxFuture<'a, Result<(), StoreError>> {
            Box::pin(std::future::ready(Err(StoreError::Closed)))
        }
        fn reactivate<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
            Box::pin(std::future::ready(Err(StoreError::Closed)))
        }
        fn connection(&self) -> watch::Receiver<Connection> {
            watch::channel(Connection::Up).1
        }
        fn name(&self) -> &'static str {
            "fake"
        }
    }

    async fn send(
        answer: Result<(), PublishError>,
        key: Option<&str>,
    ) -> (Answer, Vec<(Arc<Message>, Option<String>)>) {
        let store = Arc::new(Fake { answer, published: Mutex::default() });
        let target = StoreTarget::new(Arc::clone(&store) as Arc<dyn MessageStore>, key.map(str::to_owned));
        let attempt = Attempt {
            message: Arc::new(Message::new(MessageId::new("7"), "original")),
            method: Method::POST,
            append: None,
            headers: HeaderMap::new(),
            body: Bytes::from_static(b"for HTTP only"),
        };
        let answer = target.send(attempt).await;
        let published = store.published.lock().unwrap().clone();
        (answer, published)
    }

    #[tokio::test]
    async fn the_message_is_stored_as_it_is_under_the_given_key() {
        for key in [None, Some("orders.eu")] {
            let (answer, published) = send(Ok(()), key).await;
            assert_eq!((answer.outcome, answer.body, answer.repeated), (Outcome::Stored, AnswerBody::None, false));
            assert!(answer.elapsed < Duration::from_secs(5));
            assert_eq!(published.len(), 1);
            assert_eq!((published[0].0.body.as_ref(), published[0].1.as_deref()), (b"original".as_slice(), key));
        }
    }

    #[tokio::test]
    async fn each_way_of_not_being_stored_has_its_outcome() {
        let outcome = async |error: PublishError| send(Err(error), None).await.0.outcome;
        let text = || "why".to_owned();
        assert!(
            matches!(outcome(PublishError::NotConnected(text())).await, Outcome::ConnectionError(t) if t.contains("why"))
        );
        assert!(
            matches!(outcome(PublishError::Refused(text())).await, Outcome::ConnectionError(t) if t.contains("why"))
        );
        assert_eq!(outcome(PublishError::Unroutable(text())).await, Outcome::Unroutable);
        assert_eq!(outcome(PublishError::Unknown(text())).await, Outcome::Timeout);
        assert!(matches!(outcome(PublishError::Invalid(text())).await, Outcome::Invalid(t) if t.contains("why")));
    }
}
