//! What a forwarder waits for: attempts, and publishes that must be confirmed before a message leaves its source.
//!
//! Each piece of work owns what it needs and says at its end what came of it. None of them settles anything.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::processor::Processor;
use super::reply;
use super::report::Waiting;
use crate::core::deactivation::Deactivation;
use crate::core::message::{Message, ReplyTo};
use crate::core::ordering::Sequence;
use crate::core::outcome::Outcome;
use crate::core::retry::Backoff;
use crate::store::{BoxFuture, MessageStore, PublishError, StoreError};
use crate::target::{Answer, AnswerBody, Attempt};

/// Between tries to store what must be stored before anything else can go on.
const STORE_BACKOFF: Backoff =
    Backoff { interval: Duration::from_millis(250), factor: 2.0, max_interval: Duration::from_secs(15), jitter: 0.1 };
/// For what a store does besides publishing: attach, return, read or write the record. A store bounds itself by
/// less; this is the net below.
pub(super) const STORE_TIMEOUT: Duration = Duration::from_secs(30);

/// Something under way.
pub(super) type Work = BoxFuture<'static, Done>;

/// What came of it.
#[derive(Debug)]
pub(super) enum Done {
    /// An attempt ended.
    Attempted {
        delivery: Sequence,
        answer: Answer,
        probe: bool,
        /// When it ended.
        at: Timestamp,
    },
    /// The dead letter store has the message, or it has not and there is no time left to try.
    DeadLettered { delivery: Sequence, stored: bool },
    /// The answer was stored, or given up.
    Responded { delivery: Sequence },
    /// The caller that waits was told, or can't be.
    Replied { delivery: Sequence },
    /// The deactivation record was stored, or it was not and there is no time left to try.
    Recorded { record: Deactivation, stored: bool },
    /// The deactivation record was read; for one delivery, or because it was time.
    Checked { delivery: Option<Sequence>, found: Result<Option<Deactivation>, StoreError> },
}

/// The wait before try number `failures + 1` to reach a store.
pub(super) fn store_backoff(failures: u32, random: f64) -> Duration {
    STORE_BACKOFF.delay(failures, random)
}

/// Makes one attempt.
pub(super) fn attempt(processor: &Arc<Processor>, delivery: Sequence, attempt: Attempt, probe: bool) -> Work {
    let processor = Arc::clone(processor);
    Box::pin(async move {
        let _in_flight = InFlight::new(&processor);
        let ceiling = processor.attempt_ceiling;
        // A target bounds itself; this is the net below, so that one that does not cannot stop a processor for good.
        let answer = tokio::time::timeout(ceiling, processor.target.send(attempt)).await.unwrap_or_else(|_| Answer {
            outcome: Outcome::Timeout,
            body: AnswerBody::None,
            repeated: false,
            elapsed: ceiling,
        });
        Done::Attempted { delivery, answer, probe, at: processor.clock.wall() }
    })
}

/// Counts an attempt as under way until it ends, however it ends.
struct InFlight(Arc<Processor>);

impl InFlight {
    fn new(processor: &Arc<Processor>) -> Self {
        processor.shared.metrics.in_flight.inc();
        Self(Arc::clone(processor))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.shared.metrics.in_flight.dec();
    }
}

/// Stores a dead letter: tried at least once, and again until it is stored or `over` says that time is up.
pub(super) fn dead_letter(
    processor: &Arc<Processor>,
    delivery: Sequence,
    message: Message,
    over: CancellationToken,
) -> Work {
    let processor = Arc::clone(processor);
    Box::pin(async move {
        let Some(store) = &processor.dead_letters else {
            // Refused when the forwarder starts; if it comes to it, the message is held.
            return Done::DeadLettered { delivery, stored: false };
        };
        let message = Arc::new(message);
        let mut failures: u32 = 0;
        let mut waiting = None;
        loop {
            let Err(error) = publish(store.as_ref(), &message, processor.dead_letter_timeout).await else {
                return Done::DeadLettered { delivery, stored: true };
            };
            failures = failures.saturating_add(1);
            if error.may_be_stored() {
                // It is stored again, and may then be there twice.
                processor.shared.metrics.dead_letter_again.inc();
            }
            if waiting.is_none() {
                waiting = Some(processor.shared.waits(Waiting::DeadLetterStore));
                tracing::warn!(
                    processor = %processor.name,
                    message_id = %message.id,
                    store = store.name(),
                    %error,
                    "the dead letter store does not take the message; it stays in its place and is tried again"
                );
            }
            let wait = store_backoff(failures, processor.random.next());
            tokio::select! {
                biased;
                () = over.cancelled() => return Done::DeadLettered { delivery, stored: false },
                () = tokio::time::sleep(wait) => {}
            }
        }
    })
}

/// Stores the record that keeps the processor stopped; tried like a dead letter.
pub(super) fn record(processor: &Arc<Processor>, record: Deactivation, over: CancellationToken) -> Work {
    let processor = Arc::clone(processor);
    Box::pin(async move {
        let mut failures: u32 = 0;
        let mut waiting = None;
        loop {
            let Err(error) = processor.store_record(&record).await else {
                return Done::Recorded { record, stored: true };
            };
            failures = failures.saturating_add(1);
            if waiting.is_none() {
                waiting = Some(processor.shared.waits(Waiting::DeactivationRecord));
                tracing::warn!(
                    processor = %processor.name,
                    %error,
                    "the deactivation can't be stored yet; nothing is delivered, and it is tried again"
                );
            }
            let wait = store_backoff(failures, processor.random.next());
            tokio::select! {
                biased;
                () = over.cancelled() => return Done::Recorded { record, stored: false },
                () = tokio::time::sleep(wait) => {}
            }
        }
    })
}

/// Stores the target's answer: tried until the store's deadline, then given up and counted. The target is never
/// asked again for it.
pub(super) fn respond(processor: &Arc<Processor>, delivery: Sequence, message: Message) -> Work {
    let processor = Arc::clone(processor);
    Box::pin(async move {
        if let Some(store) = &processor.responses {
            let deadline = tokio::time::Instant::now() + processor.response_deadline;
            let message = Arc::new(message);
            let tries = async {
                let mut failures: u32 = 0;
                while let Err(error) = publish(store.as_ref(), &message, processor.response_deadline).await {
                    failures = failures.saturating_add(1);
                    tracing::debug!(processor = %processor.name, store = store.name(), %error, "answer not stored yet");
                    tokio::time::sleep(store_backoff(failures, processor.random.next())).await;
                }
            };
            if tokio::time::timeout_at(deadline, tries).await.is_err() {
                processor.shared.response_lost();
                tracing::warn!(
                    processor = %processor.name,
                    store = store.name(),
                    correlation_id = message.correlation_id(),
                    "an answer could not be stored and is lost; its message counts as delivered"
                );
            }
        }
        Done::Responded { delivery }
    })
}

/// Tells the caller that waits for the answer.
pub(super) fn tell(
    processor: &Arc<Processor>,
    delivery: Sequence,
    to: ReplyTo,
    message: Message,
    over: CancellationToken,
) -> Work {
    let processor = Arc::clone(processor);
    Box::pin(async move {
        reply::send(&processor, &to, message, &over).await;
        Done::Replied { delivery }
    })
}

/// Two pieces of work, one after the other: what the first came to is of no interest.
pub(super) fn after(first: Option<Work>, then: Work) -> Work {
    let Some(first) = first else { return then };
    Box::pin(async move {
        first.await;
        then.await
    })
}

/// Reads the deactivation record.
pub(super) fn check(processor: &Arc<Processor>, delivery: Option<Sequence>) -> Work {
    let processor = Arc::clone(processor);
    Box::pin(async move { Done::Checked { delivery, found: processor.read_record().await } })
}

async fn publish(store: &dyn MessageStore, message: &Arc<Message>, limit: Duration) -> Result<(), PublishError> {
    match tokio::time::timeout(limit, store.publish(Arc::clone(message), None)).await {
        Ok(result) => result,
        Err(_) => Err(PublishError::Unknown("no answer from the store in time".to_owned())),
    }
}
