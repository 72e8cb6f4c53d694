//! What a caller is told when we cannot or will not do what it asked: problem details (RFC 9457).
//!
//! Nothing of the inside is shown: no broker's text, no address. Each names a remedy.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;

/// An answer, complete.
pub(super) type Answer = Response<Full<Bytes>>;

/// The media type of problem details.
const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");

/// When to come again after a 503 that ends by itself, in seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// A problem with a request.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Problem {
    /// `urn:stagepost:problem:<kind>`.
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    detail: String,
    /// What the caller can do.
    remedy: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    violations: Vec<Violation>,
}

/// One place in a body that its schema does not allow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Violation {
    /// A JSON Pointer.
    pub(super) path: String,
    pub(super) message: String,
}

impl Problem {
    pub(super) fn new(
        status: StatusCode,
        kind: &'static str,
        title: &'static str,
        detail: impl Into<String>,
        remedy: &'static str,
    ) -> Self {
        Self {
            kind: format!("urn:stagepost:problem:{kind}"),
            title,
            status: status.as_u16(),
            detail: detail.into(),
            remedy,
            violations: Vec::new(),
        }
    }

    pub(super) fn with_violations(mut self, violations: Vec<Violation>) -> Self {
        self.violations = violations;
        self
    }

    /// What is wrong, in words.
    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    /// The answer with the problem's own status.
    pub(super) fn answer(&self) -> Answer {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        self.answer_with(status)
    }

    /// The answer with a status that the user chose.
    pub(super) fn answer_with(&self, status: StatusCode) -> Answer {
        let body = serde_json::to_vec(&Self { status: status.as_u16(), ..self.clone() }).unwrap_or_default();
        let mut answer = Response::new(Full::new(Bytes::from(body)));
        *answer.status_mut() = status;
        answer.headers_mut().insert(header::CONTENT_TYPE, MEDIA_TYPE);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            answer.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        answer
    }
}

/// Makes sure that a 503 says when to come again.
pub(super) fn with_retry_after(answer: &mut Answer) {
    if answer.status() == StatusCode::SERVICE_UNAVAILABLE && !answer.headers().contains_key(header::RETRY_AFTER) {
        answer.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
    }
}

/// The 400 of a request that is wrong whatever the rules say.
pub(super) fn bad_request(detail: impl Into<String>, remedy: &'static str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad-request", "Bad request", detail, remedy)
}
