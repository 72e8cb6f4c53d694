//! What one attempt at the target came to.

use std::fmt;

use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};

/// The result of one attempt. A failure is a value here, never an `Err`: each has its rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A complete response head arrived. The head decides; the body never changes the outcome.
    Response {
        /// The response's status.
        status: StatusCode,
        /// The response's headers; `Retry-After` is read from here.
        headers: HeaderMap,
    },
    /// The answer of a target store: the message is durable there.
    Stored,
    /// Nothing was sent: the name did not resolve, nobody listened, the connect time ran out, or the address is refused.
    ConnectionError(String),
    /// Nothing was sent: the TLS handshake failed.
    Tls(String),
    /// Sending had begun, and no complete answer came: a reset, a close, a malformed or oversized head.
    NoResponse(String),
    /// No complete response head within the attempt's time-out.
    Timeout,
    /// A target store has no queue for the message: it can never arrive.
    Unroutable,
    /// No target of this kind can ever take this message (too large for any store, no URI for its path).
    Invalid(String),
    /// We stopped it ourselves (shutdown). Never counted as an attempt.
    Cancelled,
}

/// What an outcome list can name: a status, a class of statuses, or a failure without a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum OutcomeMatch {
    /// Exactly this status.
    Status(u16),
    /// `2xx` is `Class(2)`.
    Class(u8),
    /// [`Outcome::ConnectionError`].
    ConnectionError,
    /// [`Outcome::NoResponse`].
    NoResponse,
    /// [`Outcome::Timeout`].
    Timeout,
    /// [`Outcome::Tls`].
    Tls,
}

impl std::str::FromStr for OutcomeMatch {
    type Err = UnknownOutcome;

    fn from_str(text: &str) -> Result<Self, UnknownOutcome> {
        match text {
            "ConnectionError" => return Ok(Self::ConnectionError),
            "NoResponse" => return Ok(Self::NoResponse),
            "Timeout" => return Ok(Self::Timeout),
            "Tls" => return Ok(Self::Tls),
            _ => {}
        }
        let unknown = || UnknownOutcome(text.to_owned());
        let bytes = text.as_bytes();
        if bytes.len() != 3 || !(b'1'..=b'9').contains(&bytes[0]) {
            return Err(unknown());
        }
        if &bytes[1..] == b"xx" {
            return Ok(Self::Class(bytes[0] - b'0'));
        }
        text.parse().map(Self::Status).map_err(|_| unknown())
    }
}

/// A text that names no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an outcome; use a status (503), a class (5xx), or ConnectionError, NoResponse, Timeout, Tls")]
pub struct UnknownOutcome(String);

impl fmt::Display for OutcomeMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "{status}"),
            Self::Class(class) => write!(f, "{class}xx"),
            Self::ConnectionError => f.write_str("ConnectionError"),
            Self::NoResponse => f.write_str("NoResponse"),
            Self::Timeout => f.write_str("Timeout"),
            Self::Tls => f.write_str("Tls"),
        }
    }
}

impl Outcome {
    /// The status, if the target answered.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Response { status, .. } => Some(status.as_u16()),
            _ => None,
        }
    }

    /// The name used as a metric label and as a reason: a closed set, never free text.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Response { status, .. } => match status.as_u16() / 100 {
                1 => "1xx",
                2 => "2xx",
                3 => "3xx",
                4 => "4xx",
                5 => "5xx",
                _ => "other",
            },
            Self::Stored => "Stored",
            Self::ConnectionError(_) => "ConnectionError",
            Self::Tls(_) => "Tls",
            Self::NoResponse(_) => "NoResponse",
            Self::Timeout => "Timeout",
            Self::Unroutable => "Unroutable",
            Self::Invalid(_) => "Invalid",
            Self::Cancelled => "Cancelled",
        }
    }

    /// One line for a human: what is shown as the last error of a message.
    pub fn describe(&self) -> String {
        match self {
            Self::Response { status, .. } => format!("status {}", status.as_u16()),
            Self::Stored => "stored".to_owned(),
            Self::ConnectionError(detail) | Self::NoResponse(detail) | Self::Invalid(detail) => detail.clone(),
            Self::Tls(detail) => format!("tls: {detail}"),
            Self::Timeout => "timeout".to_owned(),
            Self::Unroutable => "unroutable: no queue is bound for this routing key".to_owned(),
            Self::Cancelled => "cancelled".to_owned(),
        }
    }
}
