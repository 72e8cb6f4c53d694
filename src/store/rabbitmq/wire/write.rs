//! To the wire: the properties of a publish.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use lapin::types::parsing;

use super::table::{Property, Short, TableWriter, Value, Writer};
use super::{
    CONTENT_ENCODING_BYTES, CONTENT_TYPE_BYTES, DEADLINE, DEATH, HTTP, MAX_HEADER_BYTES, METHOD, ORIGINAL, PATH, QUERY,
    ROUTE, STATUS, WireError, append, entry, http_name,
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

/// The properties that carry everything but the body, as they are written.
pub(in crate::store::rabbitmq) fn properties(
    message: &Message,
    now: Timestamp,
    form: Form,
) -> Result<Vec<u8>, WireError> {
    let full = (form == Form::Full).then_some(message);
    let carried = full.map(Carried::of).unwrap_or_default();
    let mut writer = Writer::new();
    let content_type = Content::of(full.and_then(|message| message.content_type.as_ref()));
    let content_encoding = Content::of(full.and_then(|message| message.content_encoding.as_ref()));
    for (property, content, carried) in [
        (Property::ContentType, &content_type, &carried.content_type),
        (Property::ContentEncoding, &content_encoding, &carried.content_encoding),
    ] {
        if let Some(text) = content.short.or_else(|| Short::of(carried.as_deref()?)) {
            writer.short(property, text);
        }
    }
    let mut table = writer.headers();
    if let Some(message) = full {
        write_carried(&mut table, &carried, message)?;
        for (name, content) in [(CONTENT_TYPE_BYTES, &content_type), (CONTENT_ENCODING_BYTES, &content_encoding)] {
            if let Some(bytes) = content.long {
                table.text(["", name], bytes);
            }
        }
        if let Some(origin) = &message.origin {
            write_origin(&mut table, origin);
        }
        if let Some(status) = message.status {
            table.integer(["", STATUS], status.as_u16().into());
        }
        if let Some(reply_to) = &message.reply_to {
            table.text(["", DEADLINE], rfc3339(reply_to.deadline).as_bytes());
        }
    }
    if let Some(death) = &message.death {
        write_death(&mut table, death);
    }
    let size = table.end();
    if size > MAX_HEADER_BYTES {
        return Err(WireError::Headers(size));
    }
    writer.byte(Property::DeliveryMode, PERSISTENT);
    if let Some(message) = full {
        writer.short(Property::CorrelationId, short("the correlation id", message.correlation_id())?);
        if let Some(reply_to) = &message.reply_to {
            writer.short(Property::ReplyTo, short("the reply queue", &reply_to.queue)?);
            let left = reply_to.deadline.as_millisecond().saturating_sub(now.as_millisecond());
            let left = left.clamp(0, MAX_EXPIRATION_MILLIS).to_string();
            writer.short(Property::Expiration, short("the expiration", &left)?);
        } else if let Some(reply_to) = carried.reply_to.as_deref().and_then(Short::of) {
            writer.short(Property::ReplyTo, reply_to);
        }
    }
    writer.short(Property::MessageId, short("the message id", message.id.as_str())?);
    if let Some(at) = full.and_then(|message| message.timestamp).and_then(|at| u64::try_from(at.as_second()).ok()) {
        writer.long(Property::Timestamp, at);
    }
    if let Some(kind) = carried.kind.as_deref().and_then(Short::of) {
        writer.short(Property::Type, kind);
    }
    writer.short(Property::AppId, short("the app id", "stagepost")?);
    Ok(writer.finish())
}

/// What another client gave the message.
#[derive(Default)]
struct Carried<'a> {
    content_type: Option<Cow<'a, str>>,
    content_encoding: Option<Cow<'a, str>>,
    reply_to: Option<Cow<'a, str>>,
    kind: Option<Cow<'a, str>>,
    /// Headers that can't be HTTP headers.
    apart: Vec<(&'a str, Value<'a>)>,
    /// Where the message lay first.
    original: Vec<(&'a str, Value<'a>)>,
    /// Headers that pass for HTTP headers as well.
    headers: Vec<(&'a str, HeaderName, Value<'a>)>,
}

impl<'a> Carried<'a> {
    fn of(message: &'a Message) -> Self {
        let mut found = Self::default();
        for (name, value) in message.carried.iter() {
            // Damaged, or of a later version. The broker would close the connection over it.
            let Some(value) = Value::of(value).filter(|_| decoded(value)) else { continue };
            if let Some(name) = name.strip_prefix(entry::APART) {
                found.apart.push((name, value));
            } else if let Some(name) = name.strip_prefix(entry::ORIGINAL) {
                found.original.push((name, value));
            } else if let Some(name) = name.strip_prefix(entry::HEADER) {
                found.headers.extend(http_name(name).map(|http| (name, http, value)));
            } else {
                let property = match name {
                    entry::TYPE => &mut found.kind,
                    entry::REPLY_TO => &mut found.reply_to,
                    entry::CONTENT_TYPE => &mut found.content_type,
                    entry::CONTENT_ENCODING => &mut found.content_encoding,
                    // Of another kind of store, or of a later version.
                    _ => continue,
                };
                let text = value.bytes().and_then(|bytes| match bytes {
                    Cow::Borrowed(bytes) => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
                    Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
                });
                *property = text.filter(|text| Short::of(text).is_some()).or(property.take());
            }
        }
        // A name may be carried twice, and must not stand in the table twice. The last one counts.
        for entries in [&mut found.apart, &mut found.original] {
            last_of_each(entries, |(name, _)| name);
        }
        last_of_each(&mut found.headers, |(name, ..)| name);
        found
    }
}

/// Whether the client library can read a value, with all that is in it.
fn decoded(value: &[u8]) -> bool {
    parsing::parse_value(value).is_ok_and(|(rest, _)| rest.is_empty())
}

/// Sorted by name; of those with one name the last.
fn last_of_each<'a, T>(entries: &mut Vec<T>, name: impl Fn(&T) -> &'a str) {
    entries.reverse();
    entries.sort_by_key(|entry| name(entry));
    entries.dedup_by(|next, kept| name(next) == name(kept));
}

/// What another client gave the message, and the HTTP headers that do not stand in that already.
fn write_carried(table: &mut TableWriter<'_>, carried: &Carried<'_>, message: &Message) -> Result<(), WireError> {
    for (name, value) in &carried.apart {
        table.value(["", name], *value);
    }
    for (name, value) in &carried.original {
        table.value([ORIGINAL, name], *value);
    }
    let mut derived = HeaderMap::new();
    for (_, http, value) in &carried.headers {
        append(&mut derived, http, *value);
    }
    // Changed on the way (a transform): then the other client's header is not what the message says any more.
    let unchanged = |http: &HeaderName| message.headers.get_all(http) == derived.get_all(http);
    for (name, http, value) in &carried.headers {
        if unchanged(http) {
            table.value(["", name], *value);
        }
    }
    write_headers(table, &message.headers, |http| derived.contains_key(http) && unchanged(http))
}

/// Those that do not stand in the table already, under `http-`.
fn write_headers(
    table: &mut TableWriter<'_>,
    headers: &HeaderMap,
    stands: impl Fn(&HeaderName) -> bool,
) -> Result<(), WireError> {
    // All values of a name come one after the other.
    let mut all = headers.iter().peekable();
    while let Some((name, first)) = all.next() {
        let another = |next: &(&HeaderName, &HeaderValue)| next.0 == name;
        let key = [HTTP, name.as_str()];
        let fits = if stands(name) {
            while all.next_if(another).is_some() {}
            true
        } else if all.peek().is_some_and(another) {
            let others = std::iter::from_fn(|| all.next_if(another).map(|(_, value)| value));
            table.texts(key, std::iter::once(first).chain(others).map(HeaderValue::as_bytes))
        } else {
            table.text(key, first.as_bytes())
        };
        if !fits {
            return Err(WireError::TooLong { what: "a header name", length: name.as_str().len() + HTTP.len() });
        }
    }
    Ok(())
}

/// A short string is UTF-8 text of 255 bytes; a header value need not be.
struct Content<'a> {
    short: Option<Short<'a>>,
    long: Option<&'a [u8]>,
}

impl<'a> Content<'a> {
    fn of(value: Option<&'a HeaderValue>) -> Self {
        let bytes = value.map(HeaderValue::as_bytes);
        let short = bytes.and_then(|bytes| std::str::from_utf8(bytes).ok()).and_then(Short::of);
        Self { short, long: bytes.filter(|_| short.is_none()) }
    }
}

fn write_origin(table: &mut TableWriter<'_>, origin: &Origin) {
    table.text(["", METHOD], origin.method.as_str().as_bytes());
    table.text(["", PATH], origin.path.as_bytes());
    if let Some(query) = &origin.query {
        table.text(["", QUERY], query.as_bytes());
    }
    table.text(["", ROUTE], origin.route.as_bytes());
}

fn write_death(table: &mut TableWriter<'_>, death: &Death) {
    table.text([DEATH, "reason"], death.reason.as_bytes());
    table.integer([DEATH, "attempts"], death.attempts.into());
    if let Some(status) = death.last_status {
        table.integer([DEATH, "last-status"], status.into());
    }
    if let Some(at) = death.first_at {
        table.text([DEATH, "first-at"], rfc3339(at).as_bytes());
    }
    if let Some(at) = death.last_at {
        table.text([DEATH, "last-at"], rfc3339(at).as_bytes());
    }
    if let Some(error) = &death.last_error {
        table.text([DEATH, "last-error"], error.as_bytes());
    }
    table.text([DEATH, "processor"], death.processor.as_bytes());
    table.text([DEATH, "source"], death.source.as_bytes());
}

fn short<'a>(what: &'static str, value: &'a str) -> Result<Short<'a>, WireError> {
    Short::of(value).ok_or(WireError::TooLong { what, length: value.len() })
}

fn rfc3339(at: Timestamp) -> String {
    format!("{at:.3}")
}
