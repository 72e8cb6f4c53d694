//! The port to whatever takes the messages: `send` makes one attempt and says what came of it.
//!
//! A target never retries for the caller's sake and never decides: one call is one attempt, a failure is an
//! [`Outcome`]. The one exception is the stale keep-alive rule, see [`http`].

pub mod http;
pub mod store;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, Method};
use bytes::Bytes;

use crate::core::message::Message;
use crate::core::outcome::Outcome;
use crate::store::BoxFuture;

/// One attempt's request, complete: what stands here goes out.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The message, for targets that store it rather than call somebody.
    pub message: Arc<Message>,
    /// The request's method.
    pub method: Method,
    /// Appended to the target's path (`appendPath`): a path and query as they were stored, beginning with `/`.
    pub append: Option<String>,
    /// Every header but `Host`, `Content-Length` and what authentication adds.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// What an attempt came to, and the answer if there was one.
#[derive(Debug)]
pub struct Answer {
    /// What the decision is made from. Always complete before the body is read.
    pub outcome: Outcome,
    /// The answer's body.
    pub body: AnswerBody,
    /// The attempt was made a second time on a fresh connection, because a reused one was closed under it.
    pub repeated: bool,
    /// From the start of the attempt to the complete response head.
    pub elapsed: Duration,
}

/// The body of an answer, as far as somebody wanted it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnswerBody {
    /// Complete.
    Complete(Bytes),
    /// Longer than the limit, or cut off, or too slow; what was read was thrown away.
    Unusable(&'static str),
    /// There was no answer, or nobody wanted its body.
    None,
}

/// Somewhere messages go.
pub trait Target: Send + Sync + fmt::Debug {
    /// Makes one attempt. Bounded in time: connect time-out + time-out + time-out for the body.
    fn send(&self, attempt: Attempt) -> BoxFuture<'_, Answer>;
}
