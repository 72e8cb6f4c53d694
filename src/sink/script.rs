//! What a sink answers.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use jiff::SignedDuration;
use serde::Deserialize;
use serde_json::Value;

use super::Hit;

/// What is answered: the same but for the status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// One a hit; the last repeats. Never empty.
    statuses: Vec<StatusCode>,
    /// Before each answer.
    pub(super) delay: Duration,
    body: Body,
    headers: HeaderMap,
}

/// What an answer holds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Body {
    /// Always the same.
    Fixed(Bytes),
    /// What was sent.
    Echo,
}

/// Why something cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    /// A status that ends no exchange.
    #[error("statuses: {0} is not a final status; use 200 to 999")]
    Status(u16),
    /// No status at all.
    #[error("statuses: the list is empty; give at least one, like [200]")]
    NoStatus,
    /// A delay that is no duration.
    #[error("delay: `{0}` is not a duration; write it like 250ms, 3s or 1m30s")]
    Delay(String),
    /// A header that cannot be sent.
    #[error("headers: `{0}` cannot be sent; write it like X-Name: value")]
    Header(String),
    /// Not the JSON that `PUT /__script` takes.
    #[error("{0}; give a list of statuses, or an object of `statuses`, `delay`, `body` or `echo`, and `headers`")]
    Json(String),
}

/// The object that `PUT /__script` takes; what is absent stays as it is.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    statuses: Option<Vec<u16>>,
    delay: Option<String>,
    /// Text, or JSON that is sent as its text.
    body: Option<Value>,
    /// The request's body comes back.
    echo: Option<bool>,
    headers: Option<BTreeMap<String, Values>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    One(String),
    Many(Vec<String>),
}

/// A wait as people write it.
pub(super) fn parse_delay(text: &str) -> Result<Duration, ScriptError> {
    let wrong = || ScriptError::Delay(text.to_owned());
    let delay: SignedDuration = text.parse().map_err(|_| wrong())?;
    Duration::try_from(delay).map_err(|_| wrong())
}

impl Default for Script {
    fn default() -> Self {
        Self {
            statuses: vec![StatusCode::OK],
            delay: Duration::ZERO,
            body: Body::Fixed(Bytes::new()),
            headers: HeaderMap::new(),
        }
    }
}

impl Script {
    /// The status of each hit in turn; the last repeats.
    pub fn with_statuses(mut self, statuses: &[u16]) -> Result<Self, ScriptError> {
        if statuses.is_empty() {
            return Err(ScriptError::NoStatus);
        }
        let status = |code: &u16| match StatusCode::from_u16(*code) {
            Ok(status) if *code >= 200 => Ok(status),
            _ => Err(ScriptError::Status(*code)),
        };
        self.statuses = statuses.iter().map(status).collect::<Result<_, _>>()?;
        Ok(self)
    }

    /// A wait before each answer.
    #[must_use]
    pub fn with_delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// The body of each answer. Its content type is JSON or plain text, unless a header says otherwise.
    #[must_use]
    pub fn with_body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = Body::Fixed(body.into());
        self
    }

    /// Each answer holds what was sent, with its content type.
    #[must_use]
    pub fn echoing(mut self) -> Self {
        self.body = Body::Echo;
        self
    }

    /// One more header of each answer.
    pub fn with_header(mut self, name: &str, value: &str) -> Result<Self, ScriptError> {
        let wrong = || ScriptError::Header(format!("{name}: {value}"));
        let parsed = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| wrong())?;
        self.headers.append(parsed, HeaderValue::from_str(value.trim()).map_err(|_| wrong())?);
        Ok(self)
    }

    /// This script with what a `PUT /__script` says.
    pub(super) fn changed(&self, json: &[u8]) -> Result<Self, ScriptError> {
        let wrong = |error: serde_json::Error| ScriptError::Json(error.to_string());
        let value: Value = serde_json::from_slice(json).map_err(wrong)?;
        if value.is_array() {
            let statuses: Vec<u16> = serde_json::from_value(value).map_err(wrong)?;
            return self.clone().with_statuses(&statuses);
        }
        let change: Change = serde_json::from_value(value).map_err(wrong)?;
        let mut script = self.clone();
        if let Some(statuses) = &change.statuses {
            script = script.with_statuses(statuses)?;
        }
        if let Some(delay) = &change.delay {
            script.delay = parse_delay(delay)?;
        }
        match change.body {
            None => {}
            Some(Value::String(text)) => script = script.with_body(text),
            Some(json) => script = script.with_body(json.to_string()),
        }
        match change.echo {
            Some(true) => script = script.echoing(),
            Some(false) if script.body == Body::Echo => script = script.with_body(""),
            Some(false) | None => {}
        }
        if let Some(headers) = change.headers {
            script.headers.clear();
            for (name, values) in headers {
                let values = match values {
                    Values::One(value) => vec![value],
                    Values::Many(values) => values,
                };
                for value in values {
                    script = script.with_header(&name, &value)?;
                }
            }
        }
        Ok(script)
    }

    /// The status of the hit after `answered` others.
    pub(super) fn status(&self, answered: usize) -> StatusCode {
        let last = self.statuses.last().copied().unwrap_or(StatusCode::OK);
        self.statuses.get(answered).copied().unwrap_or(last)
    }

    /// The answer to a hit.
    pub(super) fn reply(&self, hit: &Hit) -> Response<Full<Bytes>> {
        let (body, sent_type) = match &self.body {
            Body::Fixed(body) => (body.clone(), None),
            Body::Echo => (hit.body.clone(), hit.headers.get(CONTENT_TYPE).cloned()),
        };
        let guessed = || {
            let json = serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_ok();
            HeaderValue::from_static(if json { "application/json" } else { "text/plain; charset=utf-8" })
        };
        let mut headers = self.headers.clone();
        if !body.is_empty() && !headers.contains_key(CONTENT_TYPE) {
            headers.insert(CONTENT_TYPE, sent_type.unwrap_or_else(guessed));
        }
        let mut reply = Response::new(Full::new(body));
        *reply.status_mut() = hit.status;
        *reply.headers_mut() = headers;
        reply
    }
}
