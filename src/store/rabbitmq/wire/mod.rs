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
use lapin::BasicProperties;
use lapin::protocol::basic::gen_properties;

use self::table::Value;

mod read;
mod table;
mod write;

#[cfg(test)]
mod tests;

pub(super) use self::read::{message, returned, source};
pub(super) use self::table::Properties;
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

/// Properties that the client library has read, as they lay on the wire.
pub(super) fn written(properties: &BasicProperties) -> Vec<u8> {
    // Writing to memory does not fail.
    gen_properties(properties)(Vec::new().into()).map(|written| written.into_inner().0).unwrap_or_default()
}

/// Headers that the broker itself reads or writes.
fn is_the_brokers(name: &str) -> bool {
    const NAMES: [&str; 5] = ["cc", "bcc", "x-death", "x-delivery-count", "x-acquired-count"];
    const STARTS: [&str; 2] = ["x-first-death-", "x-last-death-"];
    let starts = |start: &str| name.get(..start.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(start));
    NAMES.iter().any(|one| one.eq_ignore_ascii_case(name)) || STARTS.into_iter().any(starts)
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

/// The HTTP header that a header of this name can be, in lower case.
fn http_name(name: &str) -> Option<HeaderName> {
    HeaderName::from_bytes(name.as_bytes()).ok().filter(|name| !is_not_end_to_end(name))
}

/// Adds the HTTP header values that an AMQP value can be: one, several, or none. More than a header map holds are left
/// out, never a panic. `false`: it can be none.
fn append(headers: &mut HeaderMap, name: &HeaderName, value: Value<'_>) -> bool {
    let mut any = false;
    for value in value.elements() {
        if let Some(value) = value.bytes().and_then(|bytes| HeaderValue::from_bytes(&bytes).ok()) {
            let _ = headers.try_append(name.clone(), value);
            any = true;
        }
    }
    any
}
