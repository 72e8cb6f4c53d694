//! The wire format: how a [`Message`] lies on the broker, for us and for any other AMQP client.
//!
//! The body is the request's bytes. HTTP headers stand under `http-<lower-case name>`, so that no caller can write a
//! header that means something to the broker; what we know about the request stands under `x-stagepost-`. Nothing
//! here fails on what another client wrote: what cannot be read is left out, the bytes of the body never are.

use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};

use crate::core::message::{Death, Message, MessageId, Origin, ReplyTo};

/// Of headers, on the wire. One frame is 128 KiB; more closes the connection with everybody's confirms.
pub(super) const MAX_HEADER_BYTES: usize = 100 * 1024;

/// AMQP's short strings: ids, routing keys, content types.
pub(super) const MAX_SHORT: usize = 255;

/// The broker refuses a longer expiration (406); nobody waits for weeks.
const MAX_EXPIRATION_MILLIS: i64 = u32::MAX as i64;

const PERSISTENT: u8 = 2;
const HTTP: &str = "http-";
const METHOD: &str = "x-stagepost-method";
const PATH: &str = "x-stagepost-path";
const QUERY: &str = "x-stagepost-query";
const ROUTE: &str = "x-stagepost-route";
const DEADLINE: &str = "x-stagepost-deadline";
const CONTENT_TYPE_BYTES: &str = "x-stagepost-content-type";
const CONTENT_ENCODING_BYTES: &str = "x-stagepost-content-encoding";
const DEATH: &str = "x-stagepost-death-";

/// Why a message cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    #[error("{what} has {length} bytes, and AMQP carries at most {MAX_SHORT}")]
    TooLong { what: &'static str, length: usize },
    #[error("its headers have {0} bytes, and one frame carries at most {MAX_HEADER_BYTES}")]
    Headers(usize),
}

/// The properties that carry everything but the body.
pub(super) fn properties(message: &Message, now: Timestamp) -> Result<BasicProperties, WireError> {
    let mut table = FieldTable::default();
    let mut properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_app_id("stagepost".into())
        .with_message_id(short("the message id", message.id.as_str())?)
        .with_correlation_id(short("the correlation id", message.correlation_id())?);
    if let Some(timestamp) = message.timestamp.and_then(|at| u64::try_from(at.as_second()).ok()) {
        properties = properties.with_timestamp(timestamp);
    }
    // A short string is UTF-8 text of 255 bytes; a header value need not be.
    match message.content_type.as_ref().map(short_value) {
        Some(Ok(text)) => properties = properties.with_content_type(text),
        Some(Err(bytes)) => insert(&mut table, CONTENT_TYPE_BYTES, long(bytes)),
        None => {}
    }
    match message.content_encoding.as_ref().map(short_value) {
        Some(Ok(text)) => properties = properties.with_content_encoding(text),
        Some(Err(bytes)) => insert(&mut table, CONTENT_ENCODING_BYTES, long(bytes)),
        None => {}
    }
    write_headers(&mut table, &message.headers)?;
    if let Some(origin) = &message.origin {
        write_origin(&mut table, origin);
    }
    if let Some(reply_to) = &message.reply_to {
        let left = reply_to.deadline.as_millisecond().saturating_sub(now.as_millisecond());
        let left = left.clamp(0, MAX_EXPIRATION_MILLIS);
        properties = properties
            .with_reply_to(short("the reply queue", &reply_to.queue)?)
            .with_expiration(ShortString::from(left.to_string()));
        insert(&mut table, DEADLINE, text(&rfc3339(reply_to.deadline)));
    }
    if let Some(death) = &message.death {
        write_death(&mut table, death);
    }
    let size = table_size(&table);
    if size > MAX_HEADER_BYTES {
        return Err(WireError::Headers(size));
    }
    Ok(properties.with_headers(table))
}

/// The message that a delivery carries. `fallback` is its id if it came without one.
pub(super) fn message(properties: &BasicProperties, body: Vec<u8>, fallback: impl FnOnce() -> MessageId) -> Message {
    let empty = FieldTable::default();
    let table = properties.headers().as_ref().unwrap_or(&empty);
    let id = match properties.message_id() {
        Some(id) if !id.as_str().is_empty() => MessageId::new(id.as_str()),
        _ => fallback(),
    };
    let ours = table.inner().keys().any(|name| name.as_str().starts_with("x-stagepost-"));
    let mut headers = HeaderMap::new();
    for (name, value) in table.inner() {
        read_header(&mut headers, name.as_str(), value, ours);
    }
    let typed = |text: Option<&ShortString>, bytes: &str| {
        text.and_then(|text| HeaderValue::from_bytes(text.as_str().as_bytes()).ok())
            .or_else(|| get(table, bytes).and_then(value_bytes).and_then(|b| HeaderValue::from_bytes(&b).ok()))
    };
    Message {
        correlation_id: properties
            .correlation_id()
            .as_ref()
            .map(|text| text.as_str().to_owned())
            .filter(|text| !text.is_empty() && text != id.as_str()),
        timestamp: properties.timestamp().and_then(|at| Timestamp::from_second(i64::try_from(at).ok()?).ok()),
        content_type: typed(properties.content_type().as_ref(), CONTENT_TYPE_BYTES),
        content_encoding: typed(properties.content_encoding().as_ref(), CONTENT_ENCODING_BYTES),
        origin: read_origin(table),
        headers,
        body: body.into(),
        reply_to: read_reply_to(properties, table),
        death: read_death(table),
        id,
    }
}

fn write_headers(table: &mut FieldTable, headers: &HeaderMap) -> Result<(), WireError> {
    for name in headers.keys() {
        let key = ShortString::try_new(format!("{HTTP}{name}"))
            .map_err(|_| WireError::TooLong { what: "a header name", length: name.as_str().len() + HTTP.len() })?;
        let mut values = headers.get_all(name).iter().map(|value| long(value.as_bytes())).peekable();
        let Some(first) = values.next() else { continue };
        let value = if values.peek().is_none() {
            first
        } else {
            let mut array = FieldArray::default();
            array.push(first);
            values.for_each(|value| array.push(value));
            AMQPValue::FieldArray(array)
        };
        table.insert(key, value);
    }
    Ok(())
}

fn write_origin(table: &mut FieldTable, origin: &Origin) {
    insert(table, METHOD, text(origin.method.as_str()));
    insert(table, PATH, text(&origin.path));
    if let Some(query) = &origin.query {
        insert(table, QUERY, text(query));
    }
    insert(table, ROUTE, text(&origin.route));
}

fn write_death(table: &mut FieldTable, death: &Death) {
    let mut put = |name: &str, value| insert(table, &format!("{DEATH}{name}"), value);
    put("reason", text(&death.reason));
    put("attempts", AMQPValue::LongLongInt(i64::from(death.attempts)));
    if let Some(status) = death.last_status {
        put("last-status", AMQPValue::LongLongInt(i64::from(status)));
    }
    if let Some(at) = death.first_at {
        put("first-at", text(&rfc3339(at)));
    }
    if let Some(at) = death.last_at {
        put("last-at", text(&rfc3339(at)));
    }
    if let Some(error) = &death.last_error {
        put("last-error", text(error));
    }
    put("processor", text(&death.processor));
    put("source", text(&death.source));
}

/// Ours under `http-`. What another client wrote under its own names becomes an HTTP header where it can be one.
fn read_header(headers: &mut HeaderMap, name: &str, value: &AMQPValue, ours: bool) {
    let name = match name.strip_prefix(HTTP) {
        Some(name) => name,
        None if ours || name.starts_with("x-stagepost-") || is_the_brokers(name) => return,
        None => name,
    };
    let Ok(name) = HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()) else { return };
    if is_not_end_to_end(&name) {
        return;
    }
    let mut add = |value: &AMQPValue| {
        if let Some(value) = value_bytes(value).and_then(|bytes| HeaderValue::from_bytes(&bytes).ok()) {
            // More values than a header map holds: the rest is left out, never a panic.
            let _ = headers.try_append(name.clone(), value);
        }
    };
    match value {
        AMQPValue::FieldArray(values) => values.as_slice().iter().for_each(add),
        value => add(value),
    }
}

/// Headers that the broker itself reads or writes.
fn is_the_brokers(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    matches!(name.as_str(), "cc" | "bcc" | "x-death" | "x-delivery-count" | "x-acquired-count")
        || name.starts_with("x-first-death-")
        || name.starts_with("x-last-death-")
}

/// Hop-by-hop, or owned by a field or by the connection of the next hop.
fn is_not_end_to_end(name: &HeaderName) -> bool {
    const NAMES: [&str; 11] = [
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    NAMES.contains(&name.as_str())
        || *name == CONTENT_TYPE
        || *name == CONTENT_ENCODING
        || name.as_str().starts_with("stagepost-")
        || name.as_str().starts_with("x-stagepost-")
}

fn read_origin(table: &FieldTable) -> Option<Origin> {
    Some(Origin {
        method: Method::from_bytes(get_text(table, METHOD)?.as_bytes()).ok()?,
        path: get_text(table, PATH)?,
        query: get_text(table, QUERY),
        route: get_text(table, ROUTE)?,
    })
}

fn read_reply_to(properties: &BasicProperties, table: &FieldTable) -> Option<ReplyTo> {
    let queue = properties.reply_to().as_ref()?.as_str();
    // Only ours: a reply to any queue that a stranger names would let him write into other people's queues.
    get_text(table, ROUTE)?;
    if !queue.starts_with("amq.gen-") {
        return None;
    }
    Some(ReplyTo { queue: queue.to_owned(), deadline: get_text(table, DEADLINE)?.parse().ok()? })
}

fn read_death(table: &FieldTable) -> Option<Death> {
    let field = |name: &str| get_text(table, &format!("{DEATH}{name}"));
    let number = |name: &str| get(table, &format!("{DEATH}{name}")).and_then(integer);
    Some(Death {
        reason: field("reason")?,
        attempts: number("attempts").and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
        last_status: number("last-status").and_then(|n| u16::try_from(n).ok()),
        first_at: field("first-at").and_then(|at| at.parse().ok()),
        last_at: field("last-at").and_then(|at| at.parse().ok()),
        last_error: field("last-error"),
        processor: field("processor").unwrap_or_default(),
        source: field("source").unwrap_or_default(),
    })
}

fn short(what: &'static str, value: &str) -> Result<ShortString, WireError> {
    ShortString::try_new(value).map_err(|_| WireError::TooLong { what, length: value.len() })
}

fn short_value(value: &HeaderValue) -> Result<ShortString, &[u8]> {
    std::str::from_utf8(value.as_bytes())
        .ok()
        .and_then(|text| ShortString::try_new(text).ok())
        .ok_or_else(|| value.as_bytes())
}

fn long(bytes: &[u8]) -> AMQPValue {
    AMQPValue::LongString(bytes.to_vec().into())
}

fn text(value: &str) -> AMQPValue {
    long(value.as_bytes())
}

/// Names of ours are shorter than a short string by far.
fn insert(table: &mut FieldTable, name: &str, value: AMQPValue) {
    if let Ok(name) = ShortString::try_new(name) {
        table.insert(name, value);
    }
}

fn get<'a>(table: &'a FieldTable, name: &str) -> Option<&'a AMQPValue> {
    table.inner().get(name)
}

fn get_text(table: &FieldTable, name: &str) -> Option<String> {
    String::from_utf8(value_bytes(get(table, name)?)?).ok()
}

/// The text of a value that can be an HTTP header value; others have none.
fn value_bytes(value: &AMQPValue) -> Option<Vec<u8>> {
    match value {
        AMQPValue::LongString(text) => Some(text.as_bytes().to_vec()),
        AMQPValue::ShortString(text) => Some(text.as_str().as_bytes().to_vec()),
        AMQPValue::ByteArray(bytes) => Some(bytes.as_slice().to_vec()),
        AMQPValue::Boolean(value) => Some(value.to_string().into_bytes()),
        AMQPValue::Float(value) => Some(value.to_string().into_bytes()),
        AMQPValue::Double(value) => Some(value.to_string().into_bytes()),
        AMQPValue::Timestamp(at) => {
            let at = Timestamp::from_second(i64::try_from(*at).ok()?).ok()?;
            Some(at.to_string().into_bytes())
        }
        other => integer(other).map(|number| number.to_string().into_bytes()),
    }
}

fn integer(value: &AMQPValue) -> Option<i64> {
    match *value {
        AMQPValue::ShortShortInt(n) => Some(n.into()),
        AMQPValue::ShortShortUInt(n) => Some(n.into()),
        AMQPValue::ShortInt(n) => Some(n.into()),
        AMQPValue::ShortUInt(n) => Some(n.into()),
        AMQPValue::LongInt(n) => Some(n.into()),
        AMQPValue::LongUInt(n) => Some(n.into()),
        AMQPValue::LongLongInt(n) => Some(n),
        _ => None,
    }
}

fn rfc3339(at: Timestamp) -> String {
    format!("{at:.3}")
}

/// The bytes of a table on the wire, to bound it before it is sent.
fn table_size(table: &FieldTable) -> usize {
    table.inner().iter().map(|(name, value)| 1 + name.as_str().len() + value_size(value)).sum::<usize>() + 4
}

fn value_size(value: &AMQPValue) -> usize {
    match value {
        AMQPValue::LongString(text) => 5 + text.len(),
        AMQPValue::FieldArray(values) => 5 + values.as_slice().iter().map(value_size).sum::<usize>(),
        _ => 9,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn read_back(message: &Message) -> Message {
        let written = properties(message, Timestamp::UNIX_EPOCH).unwrap();
        super::message(&written, message.body.to_vec(), || MessageId::new("fallback"))
    }

    #[test]
    fn everything_a_request_was_comes_back() {
        let mut message = Message::new(MessageId::new("0190-1"), &b"\x00\xff body"[..]);
        message.timestamp = Some("2026-11-21T08:00:00Z".parse().unwrap());
        message.content_type = Some(HeaderValue::from_static("application/pdf"));
        message.content_encoding = Some(HeaderValue::from_static("gzip"));
        message.origin = Some(Origin {
            method: Method::PUT,
            path: "/a/%20b".into(),
            query: Some("x=1&y".into()),
            route: "shop/orders/place".into(),
        });
        message.headers.append("x-a", HeaderValue::from_static("1"));
        message.headers.append("x-a", HeaderValue::from_bytes(b"\xe4\xf6; = ,").unwrap());
        message.headers.append("x-death", HeaderValue::from_static("mine"));
        message.death = Some(Death {
            reason: "MaxRedeliveries".into(),
            attempts: 6,
            last_status: Some(500),
            first_at: Some("2026-11-21T08:00:00.5Z".parse().unwrap()),
            last_at: None,
            last_error: Some("status 500".into()),
            processor: "shop/settle".into(),
            source: "orders".into(),
        });
        assert_eq!(read_back(&message), message);
    }

    #[test]
    fn no_caller_writes_a_header_that_means_something_to_the_broker() {
        let mut message = Message::new(MessageId::new("1"), "");
        for name in ["x-death", "cc", "bcc", "x-delay", "x-stagepost-path"] {
            message.headers.append(name, HeaderValue::from_static("evil"));
        }
        let written = properties(&message, Timestamp::UNIX_EPOCH).unwrap();
        for name in written.headers().as_ref().unwrap().inner().keys() {
            assert!(name.as_str().starts_with("http-"), "{name}");
        }
    }

    #[test]
    fn a_strangers_headers_become_http_headers_where_they_can() {
        let mut table = FieldTable::default();
        insert(&mut table, "Company", text("WSO2"));
        insert(&mut table, "retries", AMQPValue::LongInt(3));
        insert(&mut table, "not a name", text("x"));
        insert(&mut table, "Connection", text("close"));
        insert(&mut table, "x-death", text("x"));
        insert(&mut table, "bad", text("a\r\nb"));
        insert(&mut table, "nested", AMQPValue::FieldTable(FieldTable::default()));
        let message = super::message(&BasicProperties::default().with_headers(table), vec![1], || MessageId::new("f"));
        assert_eq!(message.id.as_str(), "f");
        assert_eq!(message.headers.len(), 2);
        assert_eq!(message.headers["company"], "WSO2");
        assert_eq!(message.headers["retries"], "3");
        assert_eq!(message.origin, None);
    }

    #[test]
    fn what_does_not_fit_a_frame_is_refused_before_it_is_sent() {
        let mut message = Message::new(MessageId::new("1"), "");
        message.headers.append("x-a", HeaderValue::from_str(&"v".repeat(MAX_HEADER_BYTES)).unwrap());
        assert!(matches!(properties(&message, Timestamp::UNIX_EPOCH), Err(WireError::Headers(_))));
        let long_id = Message::new(MessageId::new("i".repeat(256)), "");
        assert!(matches!(properties(&long_id, Timestamp::UNIX_EPOCH), Err(WireError::TooLong { .. })));
    }

    proptest! {
        #[test]
        fn any_headers_and_body_come_back(
            pairs in proptest::collection::vec(("[a-z][a-z0-9-]{0,20}", proptest::collection::vec(32u8..=255, 0..40)), 0..20),
            body in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut message = Message::new(MessageId::new("1"), Bytes::from(body));
            for (name, value) in pairs {
                let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                if is_not_end_to_end(&name) { continue; }
                if let Ok(value) = HeaderValue::from_bytes(&value) {
                    message.headers.append(name, value);
                }
            }
            prop_assert_eq!(read_back(&message), message);
        }
    }
}
