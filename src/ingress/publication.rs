//! A message on its way into its store, and the answer that depends on it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context as Wake, Poll};

use http::StatusCode;
use http::header::{HeaderName, HeaderValue};
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::admission::Permit;
use super::problem::{Answer, answer, bad_request};
use super::reply::Awaiting;
use super::routes::{Route, Rule};
use crate::core::message::{Message, MessageId};
use crate::core::problem::Problem;
use crate::expression::Context;
use crate::store::PublishError;
use crate::store::publisher::Question;
use crate::telemetry::metrics::RouteMetrics;

const MESSAGE_ID: HeaderName = HeaderName::from_static("stagepost-message-id");

/// A message to be stored, and everything that must be done when it is.
pub(super) struct Publication {
    pub(super) rule: Arc<Rule>,
    pub(super) message: Arc<Message>,
    pub(super) routing_key: Option<String>,
    /// The answer if it is stored. Made before, so that a template that fails stores nothing.
    pub(super) accepted: Answer,
    /// What the answer's template sees if it is not.
    pub(super) view: Option<Context>,
    pub(super) accounting: Accounting,
    /// Held until the message is stored: it is in memory as long.
    pub(super) permit: Permit,
}

impl Publication {
    /// Publishes and answers. If the caller leaves before the message is stored, that is carried through as a task of
    /// its own.
    pub(super) async fn carry_out(self, tasks: &TaskTracker) -> Answer {
        match (CarriedThrough { work: Some(Box::pin(self.publish())), tasks: tasks.clone() }).await {
            Published::Answered(answer) => answer,
            Published::Awaiting(awaiting) => awaiting.answer().await,
        }
    }

    async fn publish(self) -> Published {
        let Self { rule, message, routing_key, accepted, view, accounting, permit } = self;
        let (key, id) = (routing_key.as_deref(), message.id.clone());
        let result = match (&rule.publisher, rule.reply) {
            (None, _) => Err(PublishError::NotConnected("a preview stores nothing".to_owned())),
            (Some(publisher), None) => publisher.publish(message, key).await.map(|()| None),
            (Some(publisher), Some(timeout)) => {
                let until = Instant::now() + timeout;
                let deadline = Timestamp::now().saturating_add(timeout).unwrap_or(Timestamp::MAX);
                let question = Question { deadline, metrics: rule.route.metrics.clone() };
                let asked = publisher.request(message, key, &question).await;
                asked.map(|caller| Some((caller, timeout, until)))
            }
        };
        rule.route.note(&rule, result.as_ref().err());
        let answer = match result {
            Ok(Some((caller, timeout, until))) => {
                return Published::Awaiting(Awaiting::new(caller, timeout, until, id, accounting, permit));
            }
            Ok(None) => {
                accounting.accepted(accepted.status());
                accepted
            }
            Err(PublishError::Invalid(reason)) => {
                let problem = bad_request(format!("the message cannot be stored: {reason}"), "send less");
                let answer = answer(&problem);
                accounting.rejected(answer.status());
                answer
            }
            Err(error) => {
                let answer = rule.store_failed.failure(&not_stored(&error), view.as_ref());
                accounting.failed(answer.status());
                answer
            }
        };
        Published::Answered(answer)
    }
}

/// What came of a publish.
enum Published {
    Answered(Answer),
    /// Stored, and the answer is another's to give.
    Awaiting(Awaiting),
}

/// Tells the caller the id of what was stored.
pub(super) fn name_message(answer: &mut Answer, id: &MessageId) {
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        answer.headers_mut().insert(MESSAGE_ID, value);
    }
}

impl Route {
    /// Says in the log when publishes begin to fail and when they work again: once each, not once a request, also where
    /// some fail and others do not.
    fn note(&self, rule: &Rule, error: Option<&PublishError>) {
        // 0 stands for no failure.
        let now = || u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        match error {
            None => {
                let last = self.failed_at.load(Ordering::Relaxed);
                if last != 0
                    && now() >= last.saturating_add(CALM_MILLIS)
                    && self.failed_at.compare_exchange(last, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
                {
                    tracing::info!(route = self.name, "messages are stored again");
                }
            }
            Some(PublishError::Invalid(_)) => {}
            Some(error) => {
                if self.failed_at.swap(now(), Ordering::Relaxed) == 0 {
                    tracing::warn!(rule = rule.label, %error, "messages are not stored; callers are told so");
                }
            }
        }
    }
}

/// So long after the last failure a success says that it is over.
const CALM_MILLIS: u64 = 1000;

/// What a caller may know of a publish that failed: never the broker's own words.
fn not_stored(error: &PublishError) -> Problem {
    let (detail, remedy) = match error {
        PublishError::Unknown(_) | PublishError::PartlyRefused(_) => (
            "it is not known whether the message was stored",
            "send it again with the same Idempotency-Key; the target may get it twice",
        ),
        PublishError::Unroutable(_) => {
            ("the message was not stored: no queue takes it", "have the store of the route and its bindings checked")
        }
        _ => ("the message was not stored", "send it again after the time that Retry-After names"),
    };
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store-failed", "Not stored", detail, remedy)
}

/// A future that goes on as a task of its own if its owner is dropped: a connection that breaks while its message is
/// being stored must neither stop the publish nor lose its accounting.
struct CarriedThrough {
    work: Option<Pin<Box<dyn Future<Output = Published> + Send>>>,
    tasks: TaskTracker,
}

impl Future for CarriedThrough {
    type Output = Published;

    fn poll(mut self: Pin<&mut Self>, wake: &mut Wake<'_>) -> Poll<Published> {
        let Some(work) = &mut self.work else { return Poll::Pending };
        let result = work.as_mut().poll(wake);
        if result.is_ready() {
            self.work = None;
        }
        result
    }
}

impl Drop for CarriedThrough {
    fn drop(&mut self) {
        if let Some(work) = self.work.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            // A caller that has left awaits nothing.
            self.tasks.spawn_on(async move { drop(work.await) }, &runtime);
        }
    }
}

/// Counts one request, exactly once, and as in flight until then.
#[derive(Debug)]
pub(super) struct Accounting {
    route: Arc<Route>,
}

impl Accounting {
    pub(super) fn of(route: &Arc<Route>) -> Self {
        route.metrics.in_flight.inc();
        Self { route: route.clone() }
    }

    pub(super) fn metrics(&self) -> &RouteMetrics {
        &self.route.metrics
    }

    pub(super) fn accepted(self, status: StatusCode) {
        self.count(&self.route.counters.accepted, status);
    }

    pub(super) fn rejected(self, status: StatusCode) {
        self.count(&self.route.counters.rejected, status);
    }

    pub(super) fn failed(self, status: StatusCode) {
        self.count(&self.route.counters.failed, status);
    }

    fn count(&self, counter: &AtomicU64, status: StatusCode) {
        counter.fetch_add(1, Ordering::Relaxed);
        self.route.metrics.answered(status.as_u16());
    }
}

impl Drop for Accounting {
    fn drop(&mut self) {
        self.route.metrics.in_flight.dec();
    }
}
