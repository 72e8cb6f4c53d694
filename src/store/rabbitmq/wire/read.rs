//! From the wire: the message that a delivery carries, and where it lay.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use jiff::Timestamp;

use super::table::{Properties, Table, Value, long_string};
use super::{
    CONTENT_ENCODING_BYTES, CONTENT_TYPE_BYTES, DEADLINE, DEATH, HTTP, METHOD, ORIGINAL, OURS, PATH, QUERY, ROUTE,
    STATUS, append, entry, http_name, is_the_brokers,
};
use crate::core::message::{Carried, Death, Message, MessageId, Origin, ReplyTo};

/// The message that a delivery carries. `fallback` is its id if it came without one.
pub(in crate::store::rabbitmq) fn message(
    properties: &Properties<'_>,
    body: impl Into<Bytes>,
    fallback: impl FnOnce() -> MessageId,
) -> Message {
    let table = &properties.headers;
    let id = match properties.message_id {
        Some(id) if !id.is_empty() => MessageId::new(id),
        _ => fallback(),
    };
    let mut carried = Carried::default();
    let headers = headers(table, &mut carried);
    let mut typed = |text: Option<&str>, bytes: &str, kept: &'static str| {
        let value = text.and_then(|text| HeaderValue::from_bytes(text.as_bytes()).ok());
        if let (Some(text), None) = (text, &value) {
            carried.push(kept, encoded(text));
        }
        value.or_else(|| table.get(bytes).and_then(Value::bytes).and_then(|bytes| HeaderValue::from_bytes(&bytes).ok()))
    };
    let content_type = typed(properties.content_type, CONTENT_TYPE_BYTES, entry::CONTENT_TYPE);
    let content_encoding = typed(properties.content_encoding, CONTENT_ENCODING_BYTES, entry::CONTENT_ENCODING);
    if let Some(kind) = properties.kind {
        carried.push(entry::TYPE, encoded(kind));
    }
    let reply_to = reply_to(properties);
    if let (None, Some(queue)) = (&reply_to, properties.reply_to) {
        carried.push(entry::REPLY_TO, encoded(queue));
    }
    Message {
        correlation_id: properties
            .correlation_id
            .filter(|text| !text.is_empty() && *text != id.as_str())
            .map(str::to_owned),
        timestamp: properties.timestamp.and_then(|at| Timestamp::from_second(i64::try_from(at).ok()?).ok()),
        content_type,
        content_encoding,
        origin: origin(table),
        headers,
        body: body.into(),
        status: status(table),
        reply_to,
        death: death(table),
        carried,
        id,
    }
}

/// Where a delivery lay, and what must not go on as it was: kept under names of ours when it is published again.
pub(in crate::store::rabbitmq) fn source(properties: &Properties<'_>, exchange: &str, routing_key: &str) -> Carried {
    let mut source = Carried::default();
    source.push(entry::EXCHANGE, encoded(exchange));
    source.push(entry::ROUTING_KEY, encoded(routing_key));
    if let Some(user) = properties.user_id {
        source.push(entry::USER_ID, encoded(user));
    }
    if let Some(expiration) = properties.expiration {
        source.push(entry::EXPIRATION, encoded(expiration));
    }
    if let Some(at) = properties.timestamp {
        source.push(entry::TIMESTAMP, [&b"T"[..], &at.to_be_bytes()].concat());
    }
    // One that is carried already is the same.
    if let Some(queue) = properties.reply_to {
        source.push(entry::REPLY_TO, encoded(queue));
    }
    source
}

/// How often a delivery came back before: quorum queues count that, classic ones do not.
pub(in crate::store::rabbitmq) fn returned(properties: &Properties<'_>) -> u32 {
    let count = properties.headers.get("x-delivery-count").and_then(Value::integer);
    count.and_then(|count| u32::try_from(count).ok()).unwrap_or(0)
}

/// A text as a value with its type.
fn encoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() + 5);
    long_string(&mut bytes, text.as_bytes());
    bytes
}

fn keep(carried: &mut Carried, kind: &str, name: &str, value: Value<'_>) {
    carried.push([kind, name].concat(), value.as_bytes().to_vec());
}

/// The HTTP headers: ours under `http-`, and of a message that came in by no route those of the other client's own
/// names that can be HTTP headers. The other client's go on under their own names in any case.
fn headers(table: &Table<'_>, carried: &mut Carried) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut others: Vec<(&str, Value<'_>)> = Vec::new();
    for (name, value) in table.iter() {
        if let Some(http) = name.strip_prefix(HTTP) {
            if let Some(http) = http_name(http) {
                append(&mut headers, &http, value);
            }
        } else if let Some(original) = name.strip_prefix(ORIGINAL) {
            keep(carried, entry::ORIGINAL, original, value);
        } else if !is_ours(name) && !is_the_brokers(name) {
            others.push((name, value));
        }
    }
    if others.is_empty() {
        return headers;
    }
    let came_by_a_route = table.get(ROUTE).is_some();
    let mut derived = HeaderMap::new();
    for (name, value) in others {
        let http = http_name(name).filter(|http| !came_by_a_route && !headers.contains_key(http));
        if http.is_some_and(|http| append(&mut derived, &http, value)) {
            keep(carried, entry::HEADER, name, value);
        } else {
            keep(carried, entry::APART, name, value);
        }
    }
    for (name, value) in &derived {
        // As many as a header map holds, and those are few more.
        let _ = headers.try_append(name.clone(), value.clone());
    }
    headers
}

fn is_ours(name: &str) -> bool {
    name.as_bytes().get(..OURS.len()).is_some_and(|start| start.eq_ignore_ascii_case(OURS.as_bytes()))
}

fn origin(table: &Table<'_>) -> Option<Origin> {
    Some(Origin {
        method: Method::from_bytes(&table.get(METHOD)?.bytes()?).ok()?,
        path: table.text(PATH)?,
        query: table.text(QUERY),
        route: table.text(ROUTE)?,
    })
}

fn status(table: &Table<'_>) -> Option<StatusCode> {
    StatusCode::from_u16(u16::try_from(table.get(STATUS)?.integer()?).ok()?).ok()
}

fn reply_to(properties: &Properties<'_>) -> Option<ReplyTo> {
    let queue = properties.reply_to?;
    // Only ours: a reply to any queue that a stranger names would let him write into other people's queues.
    properties.headers.text(ROUTE)?;
    if !queue.starts_with("amq.gen-") {
        return None;
    }
    Some(ReplyTo { queue: queue.to_owned(), deadline: properties.headers.text(DEADLINE)?.parse().ok()? })
}

fn death(table: &Table<'_>) -> Option<Death> {
    let field = |name: &str| table.starting(DEATH).find(|(rest, _)| *rest == name).map(|(_, value)| value);
    let text = |name: &str| String::from_utf8(field(name)?.bytes()?.into_owned()).ok();
    let number = |name: &str| field(name).and_then(Value::integer);
    Some(Death {
        reason: text("reason")?,
        attempts: number("attempts").and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
        last_status: number("last-status").and_then(|n| u16::try_from(n).ok()),
        first_at: text("first-at").and_then(|at| at.parse().ok()),
        last_at: text("last-at").and_then(|at| at.parse().ok()),
        last_error: text("last-error"),
        processor: text("processor").unwrap_or_default(),
        source: text("source").unwrap_or_default(),
    })
}
