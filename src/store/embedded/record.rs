//! The bytes of a stored message.
//!
//! ```text
//! [length of head: u32, little endian] [head: postcard] [body: as it came]
//! ```
//!
//! The body is not part of the head, so that it is copied once into the file's page and once out of it, whatever its
//! size. The layout belongs to format 3 of the file; another layout needs another format number.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::core::message::{Carried, Death, Message, MessageId, Origin, ReplyTo};

/// Bytes that hold the head's length.
const PREFIX: usize = 4;

/// A record that cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a stored message cannot be read: {0}")]
pub(super) struct BadRecord(String);

#[derive(Serialize, Deserialize)]
struct Head<'a> {
    id: &'a str,
    correlation_id: Option<&'a str>,
    /// Nanoseconds since the epoch, as all times here.
    timestamp: Option<i128>,
    content_type: Option<&'a [u8]>,
    content_encoding: Option<&'a [u8]>,
    #[serde(borrow)]
    origin: Option<OriginHead<'a>>,
    #[serde(borrow)]
    headers: Vec<(&'a str, &'a [u8])>,
    status: Option<u16>,
    #[serde(borrow)]
    reply_to: Option<(&'a str, i128)>,
    #[serde(borrow)]
    death: Option<DeathHead<'a>>,
    #[serde(borrow)]
    carried: Vec<(&'a str, &'a [u8])>,
}

#[derive(Serialize, Deserialize)]
struct OriginHead<'a> {
    method: &'a str,
    path: &'a str,
    query: Option<&'a str>,
    route: &'a str,
}

#[derive(Serialize, Deserialize)]
struct DeathHead<'a> {
    reason: &'a str,
    attempts: u32,
    last_status: Option<u16>,
    first_at: Option<i128>,
    last_at: Option<i128>,
    last_error: Option<&'a str>,
    processor: &'a str,
    source: &'a str,
}

/// Everything of a message but its body.
pub(super) fn encode_head(message: &Message) -> Result<Vec<u8>, BadRecord> {
    let nanos = |time: &Timestamp| time.as_nanosecond();
    let head = Head {
        id: message.id.as_str(),
        correlation_id: message.correlation_id.as_deref(),
        timestamp: message.timestamp.as_ref().map(nanos),
        content_type: message.content_type.as_ref().map(HeaderValue::as_bytes),
        content_encoding: message.content_encoding.as_ref().map(HeaderValue::as_bytes),
        origin: message.origin.as_ref().map(|origin| OriginHead {
            method: origin.method.as_str(),
            path: &origin.path,
            query: origin.query.as_deref(),
            route: &origin.route,
        }),
        headers: message.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect(),
        status: message.status.map(|status| status.as_u16()),
        reply_to: message.reply_to.as_ref().map(|reply| (reply.queue.as_str(), nanos(&reply.deadline))),
        death: message.death.as_ref().map(|death| DeathHead {
            reason: &death.reason,
            attempts: death.attempts,
            last_status: death.last_status,
            first_at: death.first_at.as_ref().map(nanos),
            last_at: death.last_at.as_ref().map(nanos),
            last_error: death.last_error.as_deref(),
            processor: &death.processor,
            source: &death.source,
        }),
        carried: message.carried.iter().map(|(name, value)| (name, value.as_ref())).collect(),
    };
    postcard::to_allocvec(&head).map_err(|error| BadRecord(error.to_string()))
}

/// How many bytes [`write`] fills.
pub(super) fn length(head: &[u8], body: &[u8]) -> usize {
    PREFIX + head.len() + body.len()
}

/// Fills `target`, which has exactly the [`length`] of the two.
pub(super) fn write(target: &mut [u8], head: &[u8], body: &[u8]) -> Result<(), BadRecord> {
    let size = u32::try_from(head.len()).map_err(|_| BadRecord("its head is larger than 4 GiB".to_owned()))?;
    if target.len() != length(head, body) {
        return Err(BadRecord("the space for it has another size".to_owned()));
    }
    let (prefix, rest) = target.split_at_mut(PREFIX);
    prefix.copy_from_slice(&size.to_le_bytes());
    let (head_space, body_space) = rest.split_at_mut(head.len());
    head_space.copy_from_slice(head);
    body_space.copy_from_slice(body);
    Ok(())
}

/// Reads a message back.
pub(super) fn decode(bytes: &[u8]) -> Result<Message, BadRecord> {
    let cut = || BadRecord("it is cut off".to_owned());
    let (prefix, rest) = bytes.split_first_chunk::<PREFIX>().ok_or_else(cut)?;
    let size = usize::try_from(u32::from_le_bytes(*prefix)).map_err(|_| cut())?;
    let (head, body) = rest.split_at_checked(size).ok_or_else(cut)?;
    let head: Head<'_> = postcard::from_bytes(head).map_err(|error| BadRecord(error.to_string()))?;
    Ok(Message {
        id: MessageId::new(head.id),
        correlation_id: head.correlation_id.map(str::to_owned),
        timestamp: head.timestamp.map(time).transpose()?,
        content_type: head.content_type.map(value).transpose()?,
        content_encoding: head.content_encoding.map(value).transpose()?,
        origin: head.origin.as_ref().map(origin).transpose()?,
        headers: headers(&head.headers)?,
        body: Bytes::copy_from_slice(body),
        status: head.status.and_then(|status| StatusCode::from_u16(status).ok()),
        reply_to: head
            .reply_to
            .map(|(queue, deadline)| Ok(ReplyTo { queue: queue.to_owned(), deadline: time(deadline)? }))
            .transpose()?,
        death: head.death.as_ref().map(death).transpose()?,
        carried: carried(&head.carried),
    })
}

fn time(nanos: i128) -> Result<Timestamp, BadRecord> {
    Timestamp::from_nanosecond(nanos).map_err(|error| BadRecord(error.to_string()))
}

fn value(bytes: &[u8]) -> Result<HeaderValue, BadRecord> {
    HeaderValue::from_bytes(bytes).map_err(|error| BadRecord(error.to_string()))
}

fn headers(pairs: &[(&str, &[u8])]) -> Result<HeaderMap, BadRecord> {
    let mut map = HeaderMap::new();
    for (name, bytes) in pairs {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|error| BadRecord(error.to_string()))?;
        map.try_append(name, value(bytes)?).map_err(|error| BadRecord(error.to_string()))?;
    }
    Ok(map)
}

fn carried(entries: &[(&str, &[u8])]) -> Carried {
    let mut carried = Carried::default();
    for (name, value) in entries {
        carried.push((*name).to_owned(), value.to_vec());
    }
    carried
}

fn origin(head: &OriginHead<'_>) -> Result<Origin, BadRecord> {
    Ok(Origin {
        method: Method::from_bytes(head.method.as_bytes()).map_err(|error| BadRecord(error.to_string()))?,
        path: head.path.to_owned(),
        query: head.query.map(str::to_owned),
        route: head.route.to_owned(),
    })
}

fn death(head: &DeathHead<'_>) -> Result<Death, BadRecord> {
    Ok(Death {
        reason: head.reason.to_owned(),
        attempts: head.attempts,
        last_status: head.last_status,
        first_at: head.first_at.map(time).transpose()?,
        last_at: head.last_at.map(time).transpose()?,
        last_error: head.last_error.map(str::to_owned),
        processor: head.processor.to_owned(),
        source: head.source.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(message: &Message) -> Vec<u8> {
        let head = encode_head(message).unwrap();
        let mut bytes = vec![0; length(&head, &message.body)];
        write(&mut bytes, &head, &message.body).unwrap();
        bytes
    }

    fn header_value() -> impl Strategy<Value = HeaderValue> {
        let byte = prop_oneof![0x20u8..0x7f, 0x80u8..=0xff, Just(b'\t')];
        proptest::collection::vec(byte, 0..20).prop_map(|bytes| HeaderValue::from_bytes(&bytes).unwrap())
    }

    fn timestamp() -> impl Strategy<Value = Timestamp> {
        (-377_705_023_201i64..253_402_207_200, 0i32..1_000_000_000)
            .prop_map(|(second, nano)| Timestamp::new(second, nano).unwrap_or(Timestamp::UNIX_EPOCH))
    }

    prop_compose! {
        fn any_origin()(method in "[A-Z]{1,9}", path in ".*", query in proptest::option::of(".*"), route in ".*") -> Origin {
            Origin { method: method.parse().unwrap(), path, query, route }
        }
    }

    prop_compose! {
        fn any_death()(
            texts in (".*", ".*", ".*"), attempts: u32, last_status: Option<u16>,
            first_at in proptest::option::of(timestamp()), last_at in proptest::option::of(timestamp()),
            last_error in proptest::option::of(".*"),
        ) -> Death {
            let (reason, processor, source) = texts;
            Death { reason, attempts, last_status, first_at, last_at, last_error, processor, source }
        }
    }

    prop_compose! {
        fn any_message()(
            id in ".*", correlation_id in proptest::option::of(".*"), timestamp in proptest::option::of(timestamp()),
            content in (proptest::option::of(header_value()), proptest::option::of(header_value())),
            origin in proptest::option::of(any_origin()),
            pairs in proptest::collection::vec(("[a-z0-9-]{1,4}", header_value()), 0..12),
            body in proptest::collection::vec(any::<u8>(), 0..300),
            status in proptest::option::of(100_u16..1000),
            reply in proptest::option::of((".*", self::timestamp())), death in proptest::option::of(any_death()),
            entries in proptest::collection::vec((".{0,9}", proptest::collection::vec(any::<u8>(), 0..20)), 0..4),
        ) -> Message {
            let mut carried = Carried::default();
            for (name, value) in entries {
                carried.push(name, value);
            }
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(HeaderName::try_from(name).unwrap(), value);
            }
            Message {
                id: MessageId::new(id), correlation_id, timestamp, content_type: content.0, content_encoding: content.1,
                origin, headers, body: body.into(), death, carried,
                status: status.map(|status| StatusCode::from_u16(status).unwrap()),
                reply_to: reply.map(|(queue, deadline)| ReplyTo { queue, deadline }),
            }
        }
    }

    proptest! {
        /// Everything comes back, and headers in the order in which they came.
        #[test]
        fn a_message_is_read_back_as_it_was_written(message in any_message()) {
            let read = decode(&encode(&message)).unwrap();
            let order = |message: &Message| -> Vec<(String, Vec<u8>)> {
                message.headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect()
            };
            prop_assert_eq!(order(&read), order(&message));
            prop_assert_eq!(read, message);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn a_damaged_record_does_not_panic(message in any_message(), at: usize, to: u8) {
            let mut bytes = encode(&message);
            let at = at % bytes.len();
            bytes[at] = to;
            let _ = decode(&bytes);
        }
    }
}
