//! The wire format: how a [`Message`] lies on the broker, for us and for any other AMQP client.
//!
//! The body is the request's bytes. HTTP headers stand under `http-<lower-case name>`, so that no caller can write a
//! header that means something to the broker; what we know about the request stands under `x-stagepost-`. Nothing
//! here fails on what another client wrote: what cannot be read is left out, the bytes of the body never are.
//!
//! What another client wrote is carried on when its message is published again, under its own names and types. Its
//! headers pass for HTTP headers as well, where they can be ones; they stand there once, under their own names, unless
//! a transform has changed them on the way. `docs/wire-format.md` tells all of it to users.

use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use lapin::types::{AMQPValue, FieldTable, ShortString, generation, parsing};

mod read;
mod write;

#[cfg(test)]
mod tests;

pub(super) use self::read::{message, returned, source};
pub(super) use self::write::{Form, properties};

/// Of headers, on the wire. One frame is 128 KiB; more closes the connection with everybody's confirms.
pub(super) const MAX_HEADER_BYTES: usize = 100 * 1024;

/// AMQP's short strings: ids, routing keys, content types.
pub(super) const MAX_SHORT: usize = 255;

const HTTP: &str = "http-";
const OURS: &str = "x-stagepost-";
const METHOD: &str = "x-stagepost-method";
const PATH: &str = "x-stagepost-path";
const QUERY: &str = "x-stagepost-query";
const ROUTE: &str = "x-stagepost-route";
const STATUS: &str = "x-stagepost-status";
const DEADLINE: &str = "x-stagepost-deadline";
const CONTENT_TYPE_BYTES: &str = "x-stagepost-content-type";
const CONTENT_ENCODING_BYTES: &str = "x-stagepost-content-encoding";
const DEATH: &str = "x-stagepost-death-";
const ORIGINAL: &str = "x-stagepost-original-";

/// Entries of a message's [`Carried`](crate::core::message::Carried): a header of another client that passes for an
/// HTTP header, one that does not, a property, and where the message lay first. The rest of an entry's name is the
/// header's or property's name; its value is an AMQP value with its type.
mod entry {
    pub(super) const HEADER: &str = "amqp.header:";
    pub(super) const APART: &str = "amqp.apart:";
    pub(super) const TYPE: &str = "amqp.type";
    pub(super) const REPLY_TO: &str = "amqp.reply-to";
    pub(super) const CONTENT_TYPE: &str = "amqp.content-type";
    pub(super) const CONTENT_ENCODING: &str = "amqp.content-encoding";
    pub(super) const ORIGINAL: &str = "amqp.original:";
    pub(super) const EXCHANGE: &str = "amqp.original:exchange";
    pub(super) const ROUTING_KEY: &str = "amqp.original:routing-key";
    pub(super) const USER_ID: &str = "amqp.original:user-id";
    pub(super) const EXPIRATION: &str = "amqp.original:expiration";
    pub(super) const TIMESTAMP: &str = "amqp.original:timestamp";
}

/// Why a message cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    #[error("{what} has {length} bytes, and AMQP carries at most {MAX_SHORT}")]
    TooLong { what: &'static str, length: usize },
    #[error("its headers have {0} bytes, and one frame carries at most {MAX_HEADER_BYTES}")]
    Headers(usize),
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
        || name.as_str().starts_with(OURS)
}

/// The HTTP header that a header of this name can be.
fn http_name(name: &str) -> Option<HeaderName> {
    HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()).ok().filter(|name| !is_not_end_to_end(name))
}

/// The HTTP header values that an AMQP value can be: one, several, or none.
fn http_values(value: &AMQPValue) -> Vec<HeaderValue> {
    let one = |value: &AMQPValue| value_bytes(value).and_then(|bytes| HeaderValue::from_bytes(&bytes).ok());
    match value {
        AMQPValue::FieldArray(values) => values.as_slice().iter().filter_map(one).collect(),
        value => one(value).into_iter().collect(),
    }
}

/// More values than a header map holds are left out, never a panic.
fn append(headers: &mut HeaderMap, name: &HeaderName, values: Vec<HeaderValue>) {
    for value in values {
        let _ = headers.try_append(name.clone(), value);
    }
}

/// An AMQP value with its type, as bytes.
fn encoded(value: &AMQPValue) -> Vec<u8> {
    if let AMQPValue::LongString(text) = value
        && let Ok(length) = u32::try_from(text.len())
    {
        // The most of them by far.
        return [&b"S"[..], &length.to_be_bytes(), text.as_bytes()].concat();
    }
    // Writing to memory does not fail; what could not be written is left out.
    generation::gen_value(value)(Vec::new().into()).map(|written| written.into_inner().0).unwrap_or_default()
}

fn decoded(bytes: &[u8]) -> Option<AMQPValue> {
    parsing::parse_value(bytes).ok().filter(|(rest, _)| rest.is_empty()).map(|(_, value)| value)
}

fn long(bytes: &[u8]) -> AMQPValue {
    AMQPValue::LongString(bytes.to_vec().into())
}

fn text(value: &str) -> AMQPValue {
    long(value.as_bytes())
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

/// Names of ours are shorter than a short string by far.
fn insert(table: &mut FieldTable, name: &str, value: AMQPValue) {
    if let Ok(name) = ShortString::try_new(name) {
        table.insert(name, value);
    }
}
