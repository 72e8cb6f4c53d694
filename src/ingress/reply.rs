//! Request-reply: the caller's connection stays open until the answer has come, or the time is over.

use std::time::Duration;

use bytes::Bytes;
use http::header;
use http::{Response, StatusCode};
use http_body_util::Full;
use tokio::time::{Instant, timeout_at};

use super::admission::Permit;
use super::headers::end_to_end;
use super::problem::{Answer, answer};
use super::publication::{Accounting, name_message};
use crate::core::message::{Message, MessageId};
use crate::core::problem::Problem;
use crate::store::mailbox::Caller;

/// In the metrics: the caller has left before the answer came. Never sent; the number is that of other servers.
const CALLER_LEFT: u16 = 499;

/// A caller whose request is stored.
pub(super) struct Awaiting {
    caller: Caller,
    timeout: Duration,
    until: Instant,
    id: MessageId,
    /// `None` once the request is counted.
    accounting: Option<Accounting>,
    /// The caller takes a place as long as it waits. The message's bytes are given back: the store has them.
    permit: Option<Permit>,
}

impl Awaiting {
    pub(super) fn new(
        caller: Caller,
        timeout: Duration,
        until: Instant,
        id: MessageId,
        accounting: Accounting,
        mut permit: Permit,
    ) -> Self {
        permit.shrink(0);
        Self { caller, timeout, until, id, accounting: Some(accounting), permit: Some(permit) }
    }

    /// Waits, and answers the caller.
    pub(super) async fn answer(mut self) -> Answer {
        let mut answer = match timeout_at(self.until, self.caller.answer()).await {
            Ok(Ok(reply)) => {
                if let Some(accounting) = &self.accounting {
                    accounting.metrics().reply("answered");
                }
                passed_on(reply, self.permit.take())
            }
            Ok(Err(_)) => self.without("lost", &lost()),
            Err(_) => self.without("timed_out", &timed_out(self.timeout)),
        };
        name_message(&mut answer, &self.id);
        if let Some(accounting) = self.accounting.take() {
            accounting.accepted(answer.status());
        }
        answer
    }

    /// No reply has come.
    fn without(&self, result: &'static str, problem: &Problem) -> Answer {
        if let Some(accounting) = &self.accounting {
            accounting.metrics().reply(result);
        }
        answer(problem)
    }
}

impl Drop for Awaiting {
    fn drop(&mut self) {
        if let (Some(accounting), Ok(left)) = (self.accounting.take(), StatusCode::from_u16(CALLER_LEFT)) {
            accounting.metrics().reply("abandoned");
            accounting.accepted(left);
        }
    }
}

/// The reply as it came, without what belongs to another connection. One that says no status (of another client that
/// serves the queue) is a success.
fn passed_on(reply: Message, permit: Option<Permit>) -> Answer {
    let status = reply.status.filter(|status| !status.is_informational()).unwrap_or(StatusCode::OK);
    let body = match permit {
        // They have none, whoever says so.
        _ if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) => Bytes::new(),
        Some(permit) => permit.charge(reply.body),
        None => reply.body,
    };
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    *headers = end_to_end(reply.headers);
    if let Some(content_type) = reply.content_type {
        headers.insert(header::CONTENT_TYPE, content_type);
    }
    if let Some(content_encoding) = reply.content_encoding {
        headers.insert(header::CONTENT_ENCODING, content_encoding);
    }
    answer
}

fn timed_out(timeout: Duration) -> Problem {
    Problem::new(
        StatusCode::GATEWAY_TIMEOUT,
        "reply-timeout",
        "No reply in time",
        format!("no reply came within {timeout:?}; the target may have got the request"),
        "send it again with the same Idempotency-Key; the target may get it twice",
    )
}

fn lost() -> Problem {
    Problem::new(
        StatusCode::BAD_GATEWAY,
        "reply-lost",
        "Reply lost",
        "the connection over which the reply would have come was lost; the target may have got the request",
        "send it again with the same Idempotency-Key; the target may get it twice",
    )
}
