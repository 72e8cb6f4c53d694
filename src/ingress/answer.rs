//! The texts that a rule's author wrote: answers, and single values.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use serde::de::IgnoredAny;

use super::problem::{Answer, answer_with, with_retry_after};
use crate::core::problem::Problem;
use crate::expression::{CompileError, Context, Template};
use crate::plan::ResponsePlan;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// A template, or a text that needs no rendering.
#[derive(Debug)]
pub(super) enum Text {
    Static(String),
    Dynamic(Box<Template>),
}

/// A compiled answer.
#[derive(Debug)]
pub(super) struct AnswerTemplate {
    status: StatusCode,
    headers: Vec<(HeaderName, HeaderText)>,
    body: Option<BodyText>,
}

#[derive(Debug)]
enum HeaderText {
    Static(HeaderValue),
    Dynamic(Text),
}

#[derive(Debug)]
enum BodyText {
    Static { text: Bytes, media_type: HeaderValue },
    Dynamic(Text),
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
    /// The template of a header's value.
    #[error("header `{0}`: {1}")]
    HeaderTemplate(String, CompileError),
    /// The template of the body.
    #[error("body: {0}")]
    Body(CompileError),
}

impl Text {
    /// Only what has something to render is given to the template engine.
    pub(super) fn compile(text: &str) -> Result<Self, CompileError> {
        if ["{{", "{%", "{#"].iter().any(|opening| text.contains(opening)) {
            Template::compile(text).map(|template| Self::Dynamic(Box::new(template)))
        } else {
            Ok(Self::Static(text.to_owned()))
        }
    }

    pub(super) fn is_dynamic(&self) -> bool {
        matches!(self, Self::Dynamic(_))
    }

    /// The text for one request. A dynamic text needs its view.
    pub(super) fn render(&self, view: Option<&Context>) -> Result<Cow<'_, str>, String> {
        match (self, view) {
            (Self::Static(text), _) => Ok(Cow::Borrowed(text)),
            (Self::Dynamic(template), Some(view)) => {
                template.render_in(view).map(Cow::Owned).map_err(|error| error.to_string())
            }
            (Self::Dynamic(_), None) => Err("there is nothing to render it with".to_owned()),
        }
    }
}

impl AnswerTemplate {
    pub(super) fn compile(plan: &ResponsePlan) -> Result<Self, AnswerError> {
        let status = StatusCode::from_u16(plan.status)
            .ok()
            .filter(|status| (200..600).contains(&status.as_u16()))
            .ok_or(AnswerError::Status(plan.status))?;
        let headers = plan.headers.iter().map(|(name, value)| compile_header(name, value));
        Ok(Self {
            status,
            headers: headers.collect::<Result<_, _>>()?,
            body: plan.body.as_deref().map(BodyText::compile).transpose().map_err(AnswerError::Body)?,
        })
    }

    /// Whether it needs a view of the request.
    pub(super) fn is_dynamic(&self) -> bool {
        self.headers.iter().any(|(_, value)| matches!(value, HeaderText::Dynamic(_)))
            || matches!(self.body, Some(BodyText::Dynamic(_)))
    }

    /// The answer of a success: an empty body unless one is given.
    pub(super) fn success(&self, view: Option<&Context>) -> Result<Answer, String> {
        self.finish(Response::new(Full::default()), view)
    }

    /// The answer of a failure: the problem's details unless a body is given. A template that fails here is left out:
    /// the caller must get an answer.
    pub(super) fn failure(&self, problem: &Problem, view: Option<&Context>) -> Answer {
        self.finish(answer_with(problem, self.status), view).unwrap_or_else(|error| {
            tracing::debug!(error, "the template of an answer failed; the caller gets the default answer");
            answer_with(problem, self.status)
        })
    }

    fn finish(&self, mut answer: Answer, view: Option<&Context>) -> Result<Answer, String> {
        *answer.status_mut() = self.status;
        if let Some(body) = &self.body {
            let (text, media_type) = body.render(view)?;
            if text.is_empty() {
                answer.headers_mut().remove(header::CONTENT_TYPE);
            } else {
                answer.headers_mut().insert(header::CONTENT_TYPE, media_type);
            }
            *answer.body_mut() = Full::new(text);
        }
        for (name, value) in &self.headers {
            let value = match value {
                HeaderText::Static(value) => value.clone(),
                HeaderText::Dynamic(text) => HeaderValue::from_bytes(text.render(view)?.as_bytes()).map_err(|_| {
                    format!("the value of header `{name}` has a line break or another control character")
                })?,
            };
            answer.headers_mut().insert(name.clone(), value);
        }
        with_retry_after(&mut answer);
        Ok(answer)
    }
}

impl BodyText {
    fn compile(text: &str) -> Result<Self, CompileError> {
        let text = match Text::compile(text)? {
            Text::Static(text) => Bytes::from(text),
            dynamic @ Text::Dynamic(_) => return Ok(Self::Dynamic(dynamic)),
        };
        Ok(Self::Static { media_type: media_type(&text), text })
    }

    fn render(&self, view: Option<&Context>) -> Result<(Bytes, HeaderValue), String> {
        match self {
            Self::Static { text, media_type } => Ok((text.clone(), media_type.clone())),
            Self::Dynamic(text) => {
                let text = Bytes::from(text.render(view)?.into_owned());
                let media_type = media_type(&text);
                Ok((text, media_type))
            }
        }
    }
}

fn compile_header(name: &str, value: &str) -> Result<(HeaderName, HeaderText), AnswerError> {
    let invalid = || AnswerError::Header(name.to_owned());
    let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| invalid())?;
    if is_reserved(&parsed) {
        return Err(AnswerError::ReservedHeader(name.to_owned()));
    }
    let text = Text::compile(value).map_err(|error| AnswerError::HeaderTemplate(name.to_owned(), error))?;
    let value = match text {
        Text::Static(value) => HeaderText::Static(HeaderValue::from_bytes(value.as_bytes()).map_err(|_| invalid())?),
        dynamic @ Text::Dynamic(_) => HeaderText::Dynamic(dynamic),
    };
    Ok((parsed, value))
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
