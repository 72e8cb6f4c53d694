//! The message that is tried: a body from a file, the rest from flags.

use std::io::Read;
use std::path::Path;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use jiff::Timestamp;
use serde::de::IgnoredAny;
use uuid::Uuid;

use super::{Args, Problem};
use crate::core::message::{MAX_BODY_BYTES, Message, MessageId, Origin};
use crate::expression::Content;

/// What the user wants to send.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) method: Method,
    pub(super) path: Option<PathAndQuery>,
    headers: HeaderMap,
    body: Bytes,
}

/// `NAME: VALUE`, as curl takes it.
pub(super) fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("write it as `NAME: VALUE`")?;
    let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| "this is not a header name".to_owned())?;
    let value = HeaderValue::from_bytes(value.trim().as_bytes());
    Ok((name, value.map_err(|_| "the value holds a control character".to_owned())?))
}

/// A path and query.
pub(super) fn path(text: &str) -> Result<PathAndQuery, String> {
    if !text.starts_with('/') {
        return Err("it must begin with `/`".to_owned());
    }
    text.parse().map_err(|error| format!("{error}; percent-encode what a URL cannot hold"))
}

impl Draft {
    pub(super) fn read(args: &Args) -> Result<Self, Problem> {
        let body = args.message.as_deref().map(read).transpose()?.unwrap_or_default();
        let mut headers: HeaderMap = HeaderMap::new();
        for (name, value) in &args.headers {
            headers.append(name.clone(), value.clone());
        }
        if !body.is_empty() && !headers.contains_key(CONTENT_TYPE) {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(looks_like(&body)));
        }
        Ok(Self { method: args.method.clone(), path: args.path.clone(), headers, body: body.into() })
    }

    /// As a client sends it to a route.
    pub(super) fn into_request(self, path: PathAndQuery) -> Request<Bytes> {
        let Self { method, mut headers, body, .. } = self;
        if !headers.contains_key(HOST) {
            headers.insert(HOST, HeaderValue::from_static("localhost"));
        }
        if !body.is_empty() {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from(path);
        *request.headers_mut() = headers;
        request
    }

    /// As it lies in a store. Without a path it is one that did not come in over HTTP.
    pub(super) fn into_message(self) -> Message {
        let Self { method, path, headers, body } = self;
        let mut message = Message::new(MessageId::new(Uuid::now_v7().to_string()), Bytes::new());
        message.timestamp = Some(Timestamp::now());
        message.origin = path.map(|path| Origin {
            path: path.path().to_owned(),
            query: path.query().map(str::to_owned),
            method,
            route: String::new(),
        });
        Content { headers, body }.into_message(&mut message);
        message
    }
}

/// The content type of a body that came without one.
fn looks_like(body: &[u8]) -> &'static str {
    if serde_json::from_slice::<IgnoredAny>(body).is_ok() {
        "application/json"
    } else if std::str::from_utf8(body).is_ok() {
        "text/plain; charset=utf-8"
    } else {
        "application/octet-stream"
    }
}

/// A whole file, or stdin, unless it is larger than any message.
fn read(file: &Path) -> Result<Vec<u8>, Problem> {
    let name = || if file == Path::new("-") { "stdin".to_owned() } else { file.display().to_string() };
    let mut body = Vec::new();
    let most = MAX_BODY_BYTES as u64 + 1;
    let read = if file == Path::new("-") {
        std::io::stdin().lock().take(most).read_to_end(&mut body)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(most).read_to_end(&mut body))
    };
    read.map_err(|error| Problem::Message(name(), error))?;
    if body.len() > MAX_BODY_BYTES { Err(Problem::TooLarge(name())) } else { Ok(body) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_as_curl_reads_them() {
        assert_eq!(header("X-A:  b: c ").unwrap(), ("x-a".parse().unwrap(), HeaderValue::from_static("b: c")));
        assert!(header("x-a").is_err() && header("a b: c").is_err() && header("x-a: \n").is_ok());
        assert_eq!(path("/a?b=c").unwrap().query(), Some("b=c"));
        assert!(path("a").is_err() && path("/a b").is_err());
    }

    #[test]
    fn a_body_without_a_content_type_gets_the_one_it_looks_like() {
        assert_eq!(looks_like(b"{\"a\":1e400}"), "application/json");
        assert_eq!(looks_like(b"<a/>"), "text/plain; charset=utf-8");
        assert_eq!(looks_like(b"\xff"), "application/octet-stream");
    }
}
