//! The answers that a rule's author wrote.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use serde::de::IgnoredAny;

use super::problem::{Answer, Problem, with_retry_after};
use crate::plan::ResponsePlan;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// A compiled answer.
#[derive(Debug)]
pub(super) struct AnswerTemplate {
    status: StatusCode,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Option<Body>,
}

#[derive(Debug)]
enum Body {
    Static { text: Bytes, media_type: HeaderValue },
}

/// Why an answer cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// Not a final status.
    #[error("{0} is not the status of a final answer; use 200 to 599")]
    Status(u16),
    /// Not a header.
    #[error("header `{0}` is not valid; check its name, and its value for line breaks")]
    Header(String),
    /// A header that the connection needs for itself.
    #[error("header `{0}` is set by the server and cannot be given")]
    ReservedHeader(String),
    /// A template.
    #[error("{0}")]
    Template(String),
}

impl AnswerTemplate {
    pub(super) fn compile(plan: &ResponsePlan) -> Result<Self, AnswerError> {
        let status = StatusCode::from_u16(plan.status)
            .ok()
            .filter(|status| (200..600).contains(&status.as_u16()))
            .ok_or(AnswerError::Status(plan.status))?;
        Ok(Self {
            status,
            headers: compile_headers(&plan.headers)?,
            body: plan.body.as_deref().map(Body::compile).transpose()?,
        })
    }

    /// The answer of a success: an empty body unless one is given.
    pub(super) fn success(&self) -> Answer {
        self.with_body().unwrap_or_else(|| self.finish(Response::new(Full::default())))
    }

    /// The answer of a failure: the problem's details unless a body is given.
    pub(super) fn failure(&self, problem: &Problem) -> Answer {
        self.with_body().unwrap_or_else(|| self.finish(problem.answer_with(self.status)))
    }

    fn with_body(&self) -> Option<Answer> {
        let Body::Static { text, media_type } = self.body.as_ref()?;
        let mut answer = Response::new(Full::new(text.clone()));
        if !text.is_empty() {
            answer.headers_mut().insert(header::CONTENT_TYPE, media_type.clone());
        }
        Some(self.finish(answer))
    }

    fn finish(&self, mut answer: Answer) -> Answer {
        *answer.status_mut() = self.status;
        for (name, value) in &self.headers {
            answer.headers_mut().insert(name.clone(), value.clone());
        }
        with_retry_after(&mut answer);
        answer
    }
}

impl Body {
    fn compile(text: &str) -> Result<Self, AnswerError> {
        if text.contains("{{") || text.contains("{%") {
            return Err(AnswerError::Template("templates cannot be evaluated by this build".to_owned()));
        }
        let text = Bytes::copy_from_slice(text.as_bytes());
        let media_type = media_type(&text);
        Ok(Self::Static { text, media_type })
    }
}

fn compile_headers(headers: &BTreeMap<String, String>) -> Result<Vec<(HeaderName, HeaderValue)>, AnswerError> {
    headers
        .iter()
        .map(|(name, value)| {
            let invalid = || AnswerError::Header(name.clone());
            let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| invalid())?;
            if is_reserved(&parsed) {
                return Err(AnswerError::ReservedHeader(name.clone()));
            }
            Ok((parsed, HeaderValue::from_str(value).map_err(|_| invalid())?))
        })
        .collect()
}

/// Headers that frame the answer, and the one that is always ours.
fn is_reserved(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "content-length"
            | "transfer-encoding"
            | "upgrade"
            | "trailer"
            | "keep-alive"
            | "stagepost-message-id"
    )
}

/// `application/json` if it is JSON.
fn media_type(text: &[u8]) -> HeaderValue {
    if serde_json::from_slice::<IgnoredAny>(text).is_ok() { JSON } else { TEXT }
}
