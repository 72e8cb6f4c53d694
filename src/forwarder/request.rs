//! One attempt's request: what of the message goes out, and what we add.
//!
//! Nothing that another client wrote passes for ours: `Stagepost-*` headers of a message are removed before ours
//! are set, and hop-by-hop headers end here.

use std::fmt::Write as _;
use std::sync::Arc;

use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::prepare::{Expressions, Failure};
use crate::core::message::{Death, Message};
use crate::expression::Content;
use crate::plan::{ForwarderPlan, TargetPlan};
use crate::store::Delivery;
use crate::target::Attempt;

const MESSAGE_ID: HeaderName = HeaderName::from_static("stagepost-message-id");
const ATTEMPT: HeaderName = HeaderName::from_static("stagepost-attempt");
const REDELIVERED: HeaderName = HeaderName::from_static("stagepost-redelivered");
const CORRELATION_ID: HeaderName = HeaderName::from_static("stagepost-correlation-id");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const RESPONSE_STATUS: HeaderName = HeaderName::from_static("stagepost-response-status");
const DEATH_REASON: HeaderName = HeaderName::from_static("stagepost-death-reason");
const DEATH_ATTEMPTS: HeaderName = HeaderName::from_static("stagepost-death-attempts");
const DEATH_LAST_STATUS: HeaderName = HeaderName::from_static("stagepost-death-last-status");
const DEATH_FIRST_AT: HeaderName = HeaderName::from_static("stagepost-death-first-at");
const DEATH_LAST_AT: HeaderName = HeaderName::from_static("stagepost-death-last-at");
const DEATH_LAST_ERROR: HeaderName = HeaderName::from_static("stagepost-death-last-error");
const DEATH_PROCESSOR: HeaderName = HeaderName::from_static("stagepost-death-processor");
const DEATH_SOURCE: HeaderName = HeaderName::from_static("stagepost-death-source");

/// Headers between two neighbours (RFC 9110, 7.6.1, and those that older software still sends), and those that
/// whoever sends the request computes anew.
const HOP_BY_HOP: [HeaderName; 11] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-authorization"),
    HeaderName::from_static("proxy-connection"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HOST,
    CONTENT_LENGTH,
    // We send the body at once; nobody here waits for 100 Continue.
    EXPECT,
];

/// How the requests of one plan are made.
#[derive(Debug)]
pub(super) struct RequestBuilder {
    /// Absent: the stored one.
    method: Option<Method>,
    append_path: bool,
    remove: Vec<HeaderName>,
    http: bool,
}

impl RequestBuilder {
    /// Fails, with the text, on a method or header name that is none.
    pub(super) fn of(plan: &ForwarderPlan) -> Result<Self, String> {
        let TargetPlan::Http(target) = &plan.target else {
            return Ok(Self { method: None, append_path: false, remove: Vec::new(), http: false });
        };
        let method = target.method.as_deref().map(Method::try_from).transpose();
        let remove = target
            .remove_headers
            .iter()
            .map(|name| name.parse().map_err(|_| format!("spec.target.headers.remove: `{name}` is not a header name")));
        Ok(Self {
            method: method.map_err(|_| "spec.target.method: not an HTTP method".to_owned())?,
            append_path: target.append_path,
            remove: remove.collect::<Result<_, _>>()?,
            http: true,
        })
    }

    /// The request of attempt number `attempt`. Fails when a template does.
    pub(super) fn build(
        &self,
        expressions: &Expressions,
        delivery: &Delivery,
        content: &Content,
        attempt: u32,
    ) -> Result<Attempt, Failure> {
        if !self.http {
            return Ok(store_attempt(delivery, content));
        }
        let message = &delivery.message;
        let mut headers = content.headers.clone();
        strip(&mut headers);
        if !headers.contains_key(IDEMPOTENCY_KEY) {
            headers.insert(IDEMPOTENCY_KEY, header_text(message.id.as_str()));
        }
        for name in &self.remove {
            headers.remove(name);
        }
        expressions.set_headers(&mut headers, message, content, attempt)?;
        mark(&mut headers, message, attempt, delivery.redelivered);
        let origin = message.origin.as_ref();
        let stored = origin.map_or(Method::POST, |origin| origin.method.clone());
        Ok(Attempt {
            message: Arc::clone(message),
            method: self.method.clone().unwrap_or(stored),
            append: origin.filter(|_| self.append_path).map(|origin| {
                let mut append = origin.path.clone();
                if let Some(query) = &origin.query {
                    // Writing to a String cannot fail.
                    let _ = write!(append, "?{query}");
                }
                append
            }),
            headers,
            body: content.body.clone(),
        })
    }
}

/// For a target store the message itself goes on: id, correlation and origin stay, the content is the transformed. Its
/// caller, if one waits, is answered from there.
fn store_attempt(delivery: &Delivery, content: &Content) -> Attempt {
    let mut message = delivery.message.again(&delivery.source);
    message.reply_to.clone_from(&delivery.message.reply_to);
    if *content != Content::of(&message) {
        content.clone().into_message(&mut message);
    }
    Attempt {
        message: Arc::new(message),
        method: Method::POST,
        append: None,
        headers: HeaderMap::new(),
        body: content.body.clone(),
    }
}

/// Removes what ends here: hop-by-hop headers, those that `Connection` names, and everything that looks like ours.
pub(super) fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
    let ours = |name: &HeaderName| name.as_str().starts_with("stagepost-") || name.as_str().starts_with("x-stagepost-");
    let ours: Vec<HeaderName> = headers.keys().filter(|name| ours(name)).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
}

/// Sets what a target may rely on, whatever the plan sets.
fn mark(headers: &mut HeaderMap, message: &Message, attempt: u32, redelivered: bool) {
    headers.insert(MESSAGE_ID, header_text(message.id.as_str()));
    headers.insert(ATTEMPT, HeaderValue::from(attempt));
    headers.remove(REDELIVERED);
    if redelivered {
        headers.insert(REDELIVERED, HeaderValue::from_static("true"));
    }
    if let Some(correlation) = &message.correlation_id {
        headers.insert(CORRELATION_ID, header_text(correlation));
    }
    if let Some(status) = message.status {
        headers.insert(RESPONSE_STATUS, HeaderValue::from(status.as_u16()));
    }
    if let Some(death) = &message.death {
        mark_death(headers, death);
    }
}

fn mark_death(headers: &mut HeaderMap, death: &Death) {
    headers.insert(DEATH_REASON, header_text(&death.reason));
    headers.insert(DEATH_ATTEMPTS, HeaderValue::from(death.attempts));
    if let Some(status) = death.last_status {
        headers.insert(DEATH_LAST_STATUS, HeaderValue::from(status));
    }
    if let Some(first_at) = death.first_at {
        headers.insert(DEATH_FIRST_AT, header_text(&first_at.to_string()));
    }
    if let Some(last_at) = death.last_at {
        headers.insert(DEATH_LAST_AT, header_text(&last_at.to_string()));
    }
    if let Some(error) = &death.last_error {
        headers.insert(DEATH_LAST_ERROR, header_text(error));
    }
    headers.insert(DEATH_PROCESSOR, header_text(&death.processor));
    headers.insert(DEATH_SOURCE, header_text(&death.source));
}

/// Any text as a header value: control characters, which no value may hold, become `?`.
fn header_text(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| {
        let cleaned: Vec<u8> = text.bytes().map(|byte| if byte < 0x20 || byte == 0x7f { b'?' } else { byte }).collect();
        HeaderValue::from_bytes(&cleaned).unwrap_or_else(|_| HeaderValue::from_static("?"))
    })
}
