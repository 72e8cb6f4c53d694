//! One request as the sink saw it, and its JSON.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Uri};
use jiff::Timestamp;
use serde::Serialize;

/// One request.
#[derive(Debug, Clone)]
pub struct Hit {
    /// When it was complete.
    pub time: Timestamp,
    /// Its method.
    pub method: Method,
    /// Its target, unchanged.
    pub uri: Uri,
    /// Every header with every value.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// The status it was answered with.
    pub status: StatusCode,
}

/// The JSON of a hit. Names are part of what users rely on.
#[derive(Serialize)]
struct Json<'a> {
    time: String,
    method: &'a str,
    path: &'a str,
    query: Option<&'a str>,
    headers: BTreeMap<&'a str, Vec<std::borrow::Cow<'a, str>>>,
    body: Body<'a>,
    status: u16,
}

#[derive(Serialize)]
struct Body<'a> {
    base64: String,
    /// Absent unless the body is UTF-8.
    text: Option<&'a str>,
}

impl Hit {
    /// Bytes it holds, roughly.
    pub(super) fn weight(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        self.body.len() + headers
    }

    /// Appends the hit as JSON on one line, without the line's end.
    pub(super) fn write_json(&self, out: &mut Vec<u8>) {
        let mut headers: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for (name, value) in &self.headers {
            headers.entry(name.as_str()).or_default().push(String::from_utf8_lossy(value.as_bytes()));
        }
        let json = Json {
            time: format!("{:.3}", self.time),
            method: self.method.as_str(),
            path: self.uri.path(),
            query: self.uri.query(),
            headers,
            body: Body { base64: STANDARD.encode(&self.body), text: std::str::from_utf8(&self.body).ok() },
            status: self.status.as_u16(),
        };
        // Strings and numbers into memory: nothing here can fail.
        let _ = serde_json::to_writer(out, &json);
    }
}
