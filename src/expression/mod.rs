//! Templates, conditions and transforms: one language (Jinja2 by minijinja), compiled when loaded, bounded when run.
//!
//! Inputs: text from a manifest, a message. Outputs: text, a yes or no, a changed message. No I/O, no clock, and
//! no way to run without end: fuel bounds the steps, a budget the bytes, 16 MiB every string.
//!
//! A text goes through `lower` (operators become filters of ours, what loads other templates is refused), then the
//! engine compiles it. `json` and `number` are how a message looks from inside: numbers, order and spacing of what
//! passes through stay as they came.

mod data;
mod error;
mod filters;
mod functions;
mod json;
mod limits;
mod lower;
mod number;
mod operators;
mod predicates;
mod scope;
mod template;
mod transform;

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use serde::{Deserialize, Serialize};

pub use self::error::{CompileError, EvalError, Position};
pub use self::scope::Context;
pub use self::template::{Condition, Key, MAX_EXPRESSION, MAX_TEMPLATE, Template};
pub use self::transform::{Applied, StepError, Transform, TransformError, settable_header};
use crate::core::message::Message;

/// One step of a transform, as a plan holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Step {
    /// Sets a header; the value is a template.
    SetHeader {
        /// The header's name.
        name: String,
        /// A template.
        value: String,
    },
    /// Removes a header with all its values.
    RemoveHeader {
        /// The header's name.
        name: String,
    },
    /// Replaces the body.
    SetBody {
        /// A template.
        template: String,
    },
    /// Lets through only what the expression is true for.
    Filter {
        /// An expression.
        when: String,
    },
    /// Writes a log line.
    Log {
        /// A template.
        template: String,
        /// The line's level.
        level: LogLevel,
    },
}

/// The level of a `log` step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogLevel {
    /// `DEBUG`.
    Debug,
    /// `INFO`.
    Info,
    /// `WARN`.
    Warn,
    /// `ERROR`.
    Error,
}

/// What a template sees: the parts of a request or of a message.
#[derive(Debug, Clone)]
pub struct Scope {
    /// `body`: parsed JSON if it is JSON, else the text; undefined if it is not UTF-8.
    pub body: Bytes,
    /// `headers`, `headers_all`, with `content-type` and `content-encoding` among them.
    pub headers: HeaderMap,
    /// `method`.
    pub method: String,
    /// `path`: the segments by name, in routes.
    pub segments: BTreeMap<String, String>,
    /// `query`, undecoded.
    pub query: Option<String>,
    /// `message`.
    pub message: MessageScope,
}

/// The names under `message`.
#[derive(Debug, Clone, Default)]
pub struct MessageScope {
    /// `message.id`.
    pub id: String,
    /// `message.timestamp`, RFC 3339.
    pub timestamp: Option<String>,
    /// `message.attempt`, at the processor.
    pub attempt: Option<u32>,
    /// `message.path`, the stored path, at the processor.
    pub path: Option<String>,
    /// `message.route`, at the processor.
    pub route: Option<String>,
}

/// What a transform makes of a message: headers (with content type and encoding among them) and body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Content {
    /// Splits content type and encoding off again and puts all into the message.
    pub fn into_message(mut self, message: &mut Message) {
        message.content_type = self.headers.remove(http::header::CONTENT_TYPE);
        message.content_encoding = self.headers.remove(http::header::CONTENT_ENCODING);
        message.headers = self.headers;
        message.body = self.body;
    }

    /// Bytes that it holds in memory besides those of the message that it was made of.
    pub fn weight_beside(&self, message: &Message) -> usize {
        // A body that no step changed is the message's own.
        let is_shared = self.body.as_ptr() == message.body.as_ptr();
        let headers: usize = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        headers + if is_shared { 0 } else { self.body.len() }
    }

    /// The content of a message, with content type and encoding among the headers.
    pub fn of(message: &Message) -> Self {
        let mut headers = message.headers.clone();
        let mut set = |name, value: &Option<HeaderValue>| {
            if let Some(value) = value {
                headers.insert(name, value.clone());
            }
        };
        set(http::header::CONTENT_TYPE, &message.content_type);
        set(http::header::CONTENT_ENCODING, &message.content_encoding);
        Self { headers, body: message.body.clone() }
    }
}

#[cfg(test)]
mod bounds;
#[cfg(test)]
mod examples;
