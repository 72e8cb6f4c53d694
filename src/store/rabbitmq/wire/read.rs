//! From the wire: the message that a delivery carries, and where it lay.

use http::{HeaderMap, HeaderValue, Method, StatusCode};
use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::{
    CONTENT_ENCODING_BYTES, CONTENT_TYPE_BYTES, DEADLINE, DEATH, HTTP, METHOD, ORIGINAL, OURS, PATH, QUERY, ROUTE,
    STATUS, append, encoded, entry, get, get_text, http_name, http_values, integer, is_the_brokers, long, text,
    value_bytes,
};
use crate::core::message::{Carried, Death, Message, MessageId, Origin, ReplyTo};

/// The message that a delivery carries. `fallback` is its id if it came without one.
pub(in crate::store::rabbitmq) fn message(
    properties: &BasicProperties,
    body: Vec<u8>,
    fallback: impl FnOnce() -> MessageId,
) -> Message {
    let empty = FieldTable::default();
    let table = properties.headers().as_ref().unwrap_or(&empty);
    let id = match properties.message_id() {
        Some(id) if !id.as_str().is_empty() => MessageId::new(id.as_str()),
        _ => fallback(),
    };
    let mut carried = Carried::default();
    let headers = headers(table, &mut carried);
    let mut typed = |text: Option<&ShortString>, bytes: &str, kept: &'static str| {
        let value = text.and_then(|text| HeaderValue::from_bytes(text.as_str().as_bytes()).ok());
        if let (Some(text), None) = (text, &value) {
            keep(&mut carried, kept, &super::text(text.as_str()));
        }
        value.or_else(|| get(table, bytes).and_then(value_bytes).and_then(|b| HeaderValue::from_bytes(&b).ok()))
    };
    let content_type = typed(properties.content_type().as_ref(), CONTENT_TYPE_BYTES, entry::CONTENT_TYPE);
    let content_encoding =
        typed(properties.content_encoding().as_ref(), CONTENT_ENCODING_BYTES, entry::CONTENT_ENCODING);
    if let Some(kind) = properties.kind() {
        keep(&mut carried, entry::TYPE, &text(kind.as_str()));
    }
    let reply_to = reply_to(properties, table);
    if let (None, Some(queue)) = (&reply_to, properties.reply_to()) {
        keep(&mut carried, entry::REPLY_TO, &text(queue.as_str()));
    }
    Message {
        correlation_id: properties
            .correlation_id()
            .as_ref()
            .map(|text| text.as_str().to_owned())
            .filter(|text| !text.is_empty() && text != id.as_str()),
        timestamp: properties.timestamp().and_then(|at| Timestamp::from_second(i64::try_from(at).ok()?).ok()),
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
pub(in crate::store::rabbitmq) fn source(properties: &BasicProperties, exchange: &str, routing_key: &str) -> Carried {
    let mut source = Carried::default();
    source.push(entry::EXCHANGE, encoded(&text(exchange)));
    source.push(entry::ROUTING_KEY, encoded(&text(routing_key)));
    if let Some(user) = properties.user_id() {
        source.push(entry::USER_ID, encoded(&text(user.as_str())));
    }
    if let Some(expiration) = properties.expiration() {
        source.push(entry::EXPIRATION, encoded(&text(expiration.as_str())));
    }
    if let Some(at) = properties.timestamp() {
        source.push(entry::TIMESTAMP, encoded(&AMQPValue::Timestamp(*at)));
    }
    // One that is carried already is the same.
    if let Some(queue) = properties.reply_to() {
        source.push(entry::REPLY_TO, encoded(&long(queue.as_str().as_bytes())));
    }
    source
}

/// How often a delivery came back before: quorum queues count that, classic ones do not.
pub(in crate::store::rabbitmq) fn returned(properties: &BasicProperties) -> u32 {
    let count = properties.headers().as_ref().and_then(|table| get(table, "x-delivery-count")).and_then(integer);
    count.and_then(|count| u32::try_from(count).ok()).unwrap_or(0)
}

fn keep(carried: &mut Carried, name: impl Into<std::borrow::Cow<'static, str>>, value: &AMQPValue) {
    let bytes = encoded(value);
    if !bytes.is_empty() {
        carried.push(name, bytes);
    }
}

/// The HTTP headers: ours under `http-`, and of a message that came in by no route those of the other client's own
/// names that can be HTTP headers. The other client's go on under their own names in any case.
fn headers(table: &FieldTable, carried: &mut Carried) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut others: Vec<(&str, &AMQPValue)> = Vec::new();
    for (name, value) in table.inner() {
        let name = name.as_str();
        if let Some(http) = name.strip_prefix(HTTP) {
            if let Some(http) = http_name(http) {
                append(&mut headers, &http, http_values(value));
            }
        } else if let Some(original) = name.strip_prefix(ORIGINAL) {
            keep(carried, format!("{}{original}", entry::ORIGINAL), value);
        } else if !name.to_ascii_lowercase().starts_with(OURS) && !is_the_brokers(name) {
            others.push((name, value));
        }
    }
    if others.is_empty() {
        return headers;
    }
    let came_by_a_route = get(table, ROUTE).is_some();
    let mut derived = HeaderMap::new();
    for (name, value) in others {
        let http = http_name(name).filter(|http| !came_by_a_route && !headers.contains_key(http));
        let values = if http.is_some() { http_values(value) } else { Vec::new() };
        match http {
            Some(http) if !values.is_empty() => {
                append(&mut derived, &http, values);
                keep(carried, format!("{}{name}", entry::HEADER), value);
            }
            _ => keep(carried, format!("{}{name}", entry::APART), value),
        }
    }
    for name in derived.keys() {
        append(&mut headers, name, derived.get_all(name).iter().cloned().collect());
    }
    headers
}

fn origin(table: &FieldTable) -> Option<Origin> {
    Some(Origin {
        method: Method::from_bytes(get_text(table, METHOD)?.as_bytes()).ok()?,
        path: get_text(table, PATH)?,
        query: get_text(table, QUERY),
        route: get_text(table, ROUTE)?,
    })
}

fn status(table: &FieldTable) -> Option<StatusCode> {
    StatusCode::from_u16(u16::try_from(integer(get(table, STATUS)?)?).ok()?).ok()
}

fn reply_to(properties: &BasicProperties, table: &FieldTable) -> Option<ReplyTo> {
    let queue = properties.reply_to().as_ref()?.as_str();
    // Only ours: a reply to any queue that a stranger names would let him write into other people's queues.
    get_text(table, ROUTE)?;
    if !queue.starts_with("amq.gen-") {
        return None;
    }
    Some(ReplyTo { queue: queue.to_owned(), deadline: get_text(table, DEADLINE)?.parse().ok()? })
}

fn death(table: &FieldTable) -> Option<Death> {
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
