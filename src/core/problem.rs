//! What whoever called is told when what was asked cannot or will not be done: problem details (RFC 9457).
//!
//! Nothing of the inside is shown: no broker's text, no address. Each names a remedy.

use http::StatusCode;
use serde::Serialize;

/// The media type of problem details.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// A problem with a request.
#[derive(Debug, Clone, Serialize)]
pub struct Problem {
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
pub struct Violation {
    /// A JSON Pointer.
    pub path: String,
    /// What is wrong there.
    pub message: String,
}

impl Problem {
    /// A problem of this kind, in words.
    pub fn new(
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

    /// With the places that are wrong.
    #[must_use]
    pub fn with_violations(mut self, violations: Vec<Violation>) -> Self {
        self.violations = violations;
        self
    }

    /// What is wrong, in words.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The problem's own status.
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The body of an answer with a status that may be another.
    pub fn body(&self, status: StatusCode) -> Vec<u8> {
        serde_json::to_vec(&Self { status: status.as_u16(), ..self.clone() }).unwrap_or_default()
    }
}
