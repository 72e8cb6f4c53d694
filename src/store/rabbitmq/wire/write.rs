//! To the wire: the properties of a publish.

use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};

use super::{
    CONTENT_ENCODING_BYTES, CONTENT_TYPE_BYTES, DEADLINE, DEATH, HTTP, MAX_HEADER_BYTES, METHOD, ORIGINAL, PATH, QUERY,
    ROUTE, STATUS, WireError, append, decoded, encoded, entry, http_name, http_values, insert, long, text, value_bytes,
};
use crate::core::message::{Death, Message, Origin};

/// The broker refuses a longer expiration (406); nobody waits for weeks.
const MAX_EXPIRATION_MILLIS: i64 = u32::MAX as i64;

const PERSISTENT: u8 = 2;

/// How much of a message is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store::rabbitmq) enum Form {
    /// All of it.
    Full,
    /// Body, id and why it is dead: for a message that the broker refuses with all that it carries.
    Bare,
}

/// The properties that carry everything but the body.
pub(in crate::store::rabbitmq) fn properties(
    message: &Message,
    now: Timestamp,
    form: Form,
) -> Result<BasicProperties, WireError> {
    let mut table = FieldTable::default();
    let mut properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_app_id("stagepost".into())
        .with_message_id(short("the message id", message.id.as_str())?);
    if form == Form::Full {
        properties = properties.with_correlation_id(short("the correlation id", message.correlation_id())?);
        if let Some(timestamp) = message.timestamp.and_then(|at| u64::try_from(at.as_second()).ok()) {
            properties = properties.with_timestamp(timestamp);
        }
        properties = write_carried(properties, &mut table, message)?;
        properties = write_content(properties, &mut table, message);
        if let Some(origin) = &message.origin {
            write_origin(&mut table, origin);
        }
        if let Some(status) = message.status {
            insert(&mut table, STATUS, AMQPValue::LongLongInt(i64::from(status.as_u16())));
        }
        properties = write_reply_to(properties, &mut table, message, now)?;
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

/// What another client gave the message, and the HTTP headers that do not stand in that already.
fn write_carried(
    mut properties: BasicProperties,
    table: &mut FieldTable,
    message: &Message,
) -> Result<BasicProperties, WireError> {
    let carried = || message.carried.iter().filter_map(|(name, value)| Some((name, decoded(value)?)));
    let mut others: Vec<(&str, HeaderName, AMQPValue)> = Vec::new();
    for (name, value) in carried() {
        if let Some(name) = name.strip_prefix(entry::APART) {
            insert(table, name, value);
        } else if let Some(name) = name.strip_prefix(entry::ORIGINAL) {
            insert(table, &format!("{ORIGINAL}{name}"), value);
        } else if let Some(name) = name.strip_prefix(entry::HEADER) {
            if let Some(http) = http_name(name) {
                others.push((name, http, value));
            }
        } else if let Some(text) = property(&value) {
            match name {
                entry::TYPE => properties = properties.with_type(text),
                entry::REPLY_TO => properties = properties.with_reply_to(text),
                entry::CONTENT_TYPE => properties = properties.with_content_type(text),
                entry::CONTENT_ENCODING => properties = properties.with_content_encoding(text),
                // Of another kind of store, or of a later version.
                _ => {}
            }
        }
    }
    let mut derived = HeaderMap::new();
    for (_, http, value) in &others {
        append(&mut derived, http, http_values(value));
    }
    // Changed on the way (a transform): then the other client's header is not what the message says any more.
    let unchanged = |http: &HeaderName| message.headers.get_all(http) == derived.get_all(http);
    for (name, http, value) in others {
        if unchanged(&http) {
            insert(table, name, value);
        }
    }
    write_headers(table, &message.headers, |http| derived.contains_key(http) && unchanged(http))?;
    Ok(properties)
}

fn property(value: &AMQPValue) -> Option<ShortString> {
    ShortString::try_new(String::from_utf8(value_bytes(value)?).ok()?).ok()
}

/// Those that do not stand in the table already, under `http-`.
fn write_headers(
    table: &mut FieldTable,
    headers: &HeaderMap,
    stands: impl Fn(&HeaderName) -> bool,
) -> Result<(), WireError> {
    for name in headers.keys().filter(|name| !stands(name)) {
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

/// A short string is UTF-8 text of 255 bytes; a header value need not be.
fn write_content(mut properties: BasicProperties, table: &mut FieldTable, message: &Message) -> BasicProperties {
    match message.content_type.as_ref().map(short_value) {
        Some(Ok(text)) => properties = properties.with_content_type(text),
        Some(Err(bytes)) => insert(table, CONTENT_TYPE_BYTES, long(bytes)),
        None => {}
    }
    match message.content_encoding.as_ref().map(short_value) {
        Some(Ok(text)) => properties = properties.with_content_encoding(text),
        Some(Err(bytes)) => insert(table, CONTENT_ENCODING_BYTES, long(bytes)),
        None => {}
    }
    properties
}

fn write_origin(table: &mut FieldTable, origin: &Origin) {
    insert(table, METHOD, text(origin.method.as_str()));
    insert(table, PATH, text(&origin.path));
    if let Some(query) = &origin.query {
        insert(table, QUERY, text(query));
    }
    insert(table, ROUTE, text(&origin.route));
}

fn write_reply_to(
    properties: BasicProperties,
    table: &mut FieldTable,
    message: &Message,
    now: Timestamp,
) -> Result<BasicProperties, WireError> {
    let Some(reply_to) = &message.reply_to else { return Ok(properties) };
    let left = reply_to.deadline.as_millisecond().saturating_sub(now.as_millisecond());
    let left = left.clamp(0, MAX_EXPIRATION_MILLIS);
    insert(table, DEADLINE, text(&rfc3339(reply_to.deadline)));
    Ok(properties
        .with_reply_to(short("the reply queue", &reply_to.queue)?)
        .with_expiration(ShortString::from(left.to_string())))
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

fn short(what: &'static str, value: &str) -> Result<ShortString, WireError> {
    ShortString::try_new(value).map_err(|_| WireError::TooLong { what, length: value.len() })
}

fn short_value(value: &HeaderValue) -> Result<ShortString, &[u8]> {
    std::str::from_utf8(value.as_bytes())
        .ok()
        .and_then(|text| ShortString::try_new(text).ok())
        .ok_or_else(|| value.as_bytes())
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
        AMQPValue::LongLongInt(_) => 9,
        other => encoded(other).len(),
    }
}
