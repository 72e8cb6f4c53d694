//! What is done with the target's answer: a log line, a message for another store. Neither changes an outcome.

use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use jiff::Timestamp;
use uuid::Uuid;

use super::processor::Processor;
use super::request::strip;
use crate::core::message::{Message, MessageId};
use crate::core::outcome::Outcome;
use crate::plan::AnswerLog;
use crate::target::{Answer, AnswerBody};

/// Most bytes of a body in a log line.
const MAX_LOGGED_BYTES: usize = 4096;

/// Writes the line that `response.log` asks for.
pub(super) fn log(processor: &Processor, message: &Message, answer: &Answer) {
    let (name, message_id) = (&processor.name, &message.id);
    let status = answer.outcome.status();
    let milliseconds = u64::try_from(answer.elapsed.as_millis()).unwrap_or(u64::MAX);
    match (processor.plan.response.log, &answer.body) {
        (AnswerLog::None, _) => tracing::debug!(processor = %name, %message_id, status, milliseconds, "delivered"),
        (AnswerLog::Body, AnswerBody::Complete(bytes)) => {
            let shown = &bytes[..bytes.len().min(MAX_LOGGED_BYTES)];
            let body = String::from_utf8_lossy(shown);
            tracing::info!(processor = %name, %message_id, status, milliseconds, %body, "delivered");
        }
        _ => tracing::info!(processor = %name, %message_id, status, milliseconds, "delivered"),
    }
}

/// The answer as a message of its own, tied to the request by the correlation id. `None`: there was none to store.
/// Fails, with the text, on an answer that can't be one.
pub(super) fn message(request: &Message, answer: &Answer, now: Timestamp) -> Result<Option<Message>, &'static str> {
    let Outcome::Response { status, headers } = &answer.outcome else { return Ok(None) };
    let body = match &answer.body {
        AnswerBody::Complete(body) => body.clone(),
        AnswerBody::Unusable(problem) => return Err(problem),
        AnswerBody::None => return Err("the answer's body was not read"),
    };
    let mut headers = headers.clone();
    strip(&mut headers);
    let mut message = Message::new(MessageId::new(Uuid::now_v7().to_string()), body);
    message.correlation_id = Some(request.correlation_id().to_owned());
    message.status = Some(*status);
    message.timestamp = Some(now);
    message.content_type = headers.remove(CONTENT_TYPE);
    message.content_encoding = headers.remove(CONTENT_ENCODING);
    message.headers = headers;
    Ok(Some(message))
}
