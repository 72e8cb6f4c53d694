//! What a caller that waits for the answer is told (request-reply): every final outcome of its request.
//!
//! A reply goes before the acknowledgement, and before what `onFailure` asks for. It is sent again until the broker
//! has it or the caller waits no more, but for ten seconds at most; after that nothing of the message depends on it.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use http::StatusCode;
use http::header::HeaderValue;
use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::answer;
use super::processor::Processor;
use super::work::store_backoff;
use crate::core::message::{Message, MessageId, ReplyTo};
use crate::core::outcome::Outcome;
use crate::core::problem::{MEDIA_TYPE, Problem};
use crate::store::PublishError;
use crate::target::Answer;
/// A caller that waits no more still gets one try: its ingress counts what comes late.
const LAST_TRY: Duration = Duration::from_secs(1);
/// Nothing waits for longer until a broker takes a reply: other messages stand behind it.
const LONGEST: Duration = Duration::from_secs(10);

const SEND_AGAIN: &str = "send it again with the same Idempotency-Key; the target may get it twice";
const NOT_SENT: &str = "send it again later, or have the target and its ForwardingProcessor checked";

/// Whether the caller of this message waits no more.
pub(super) fn is_too_late(message: &Message, now: Timestamp) -> bool {
    message.reply_to.as_ref().is_some_and(|reply_to| reply_to.deadline <= now)
}

/// The reply that the target's last answer comes to. `None`: nobody waits for one, or it is another processor's to
/// give, because the target is a store.
pub(super) fn of_answer(request: &Message, answer: &Answer, now: Timestamp) -> Option<Message> {
    request.reply_to.as_ref()?;
    let problem = match &answer.outcome {
        Outcome::Stored | Outcome::Cancelled => return None,
        Outcome::Response { .. } => match answer::message(request, answer, now) {
            Ok(reply) => return reply,
            Err(problem) => unusable(problem),
        },
        Outcome::ConnectionError(_) | Outcome::Tls(_) => Problem::new(
            StatusCode::BAD_GATEWAY,
            "target-unreachable",
            "Target unreachable",
            "the target could not be reached; it has not got the request",
            NOT_SENT,
        ),
        Outcome::NoResponse(_) => Problem::new(
            StatusCode::BAD_GATEWAY,
            "target-no-response",
            "No response from the target",
            "the target ended the connection without a response; it may have got the request",
            SEND_AGAIN,
        ),
        Outcome::Timeout => Problem::new(
            StatusCode::GATEWAY_TIMEOUT,
            "target-timeout",
            "Target timeout",
            "the target did not answer in time; it may have got the request",
            SEND_AGAIN,
        ),
        Outcome::Unroutable => Problem::new(
            StatusCode::BAD_GATEWAY,
            "target-unroutable",
            "Target unroutable",
            "the store that the request goes on to has no queue for it",
            "have the target store and its bindings checked",
        ),
        Outcome::Invalid(_) => Problem::new(
            StatusCode::BAD_GATEWAY,
            "target-invalid",
            "Not a request for the target",
            "no request to the target can be made of this one",
            "check its path and size against what the target takes",
        ),
    };
    Some(of_problem(request, &problem, now))
}

/// The reply to a request that never reaches a target: a transform or a header's template has failed on it.
pub(super) fn of_failed_expression(request: &Message, now: Timestamp) -> Option<Message> {
    request.reply_to.as_ref()?;
    let problem = Problem::new(
        StatusCode::BAD_GATEWAY,
        "transform-failed",
        "Transform failed",
        "an expression of the ForwardingProcessor failed on the request; the target has not got it",
        "check the request against what the processor's expressions need, or have them handle its absence",
    );
    Some(of_problem(request, &problem, now))
}

/// The reply to a request that a filter has settled.
pub(super) fn of_filtered(request: &Message, now: Timestamp) -> Option<Message> {
    request.reply_to.as_ref()?;
    let problem = Problem::new(
        StatusCode::BAD_GATEWAY,
        "filtered",
        "Filtered",
        "a filter of the ForwardingProcessor took the request out; no target has got it",
        "check the request against the processor's filters",
    );
    Some(of_problem(request, &problem, now))
}

fn unusable(problem: &str) -> Problem {
    Problem::new(
        StatusCode::BAD_GATEWAY,
        "reply-unusable",
        "Reply unusable",
        format!("the target has got the request and answered, but its answer can't be passed on: {problem}"),
        "have the target answer with less, or raise response.maxBodySize of the ForwardingProcessor",
    )
}

fn of_problem(request: &Message, problem: &Problem, now: Timestamp) -> Message {
    let status = problem.status();
    let mut reply = Message::new(MessageId::new(uuid::Uuid::now_v7().to_string()), problem.body(status));
    reply.correlation_id = Some(request.correlation_id().to_owned());
    reply.timestamp = Some(now);
    reply.status = Some(status);
    reply.content_type = Some(HeaderValue::from_static(MEDIA_TYPE));
    reply
}

/// Sends a reply for as long as somebody waits for it, but not for long, and counts what came of it. `over`: the session
/// is about to end.
pub(super) async fn send(processor: &Processor, to: &ReplyTo, reply: Message, over: &CancellationToken) {
    let left = Duration::try_from(to.deadline.duration_since(processor.clock.wall())).unwrap_or_default();
    let until = Instant::now() + left.clamp(LAST_TRY, LONGEST);
    let correlation_id = reply.correlation_id().to_owned();
    let sending = tries(processor, to, reply);
    let ending = async {
        over.cancelled().await;
        tokio::time::sleep(LAST_TRY).await;
    };
    let result = tokio::select! {
        biased;
        sent = timeout_at(until, sending) => sent.unwrap_or("lost"),
        () = ending => "lost",
    };
    processor.shared.metrics.replied(result);
    if result == "lost" {
        let untold =
            processor.reply_noise.lock().unwrap_or_else(PoisonError::into_inner).due(processor.clock.elapsed());
        if let Some(untold) = untold {
            tracing::warn!(
                processor = %processor.name,
                correlation_id,
                untold,
                "the broker did not take a reply in time; its caller gets a time-out"
            );
        }
    }
    tracing::debug!(processor = %processor.name, correlation_id, result, "reply");
}

/// Until the broker has it, or says that nobody is there any more.
async fn tries(processor: &Processor, to: &ReplyTo, reply: Message) -> &'static str {
    let mut reply = Arc::new(reply);
    let (mut failures, mut replaced) = (0_u32, false);
    loop {
        let correlation_id = reply.correlation_id();
        match processor.source.reply(&to.queue, Arc::clone(&reply)).await {
            Ok(()) => return "sent",
            Err(PublishError::Unroutable(_)) => return "unroutable",
            // A problem is small enough for every broker.
            Err(PublishError::Invalid(reason)) if !replaced => {
                tracing::debug!(processor = %processor.name, correlation_id, reason, "a problem takes the reply's place");
                let problem = unusable("it is larger than the broker takes");
                reply = Arc::new(of_problem(&reply, &problem, processor.clock.wall()));
                replaced = true;
            }
            Err(error) => {
                tracing::debug!(processor = %processor.name, correlation_id, %error, "reply not sent yet");
                failures = failures.saturating_add(1);
                tokio::time::sleep(store_backoff(failures, processor.random.next())).await;
            }
        }
    }
}
