//! A stored message: the request as it was accepted, and what was learnt about it since.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use jiff::Timestamp;

/// Largest body that any store takes, in bytes. RabbitMQ 4 closes the channel above 16 MiB; the rest is room for
/// what a dead letter adds.
pub const MAX_BODY_BYTES: usize = 15 * 1024 * 1024;

/// Most bytes of everything but the body that any store takes. RabbitMQ closes the connection above one frame of
/// 128 KiB; the rest is room for what a dead letter adds, and for how it is written there.
pub const MAX_HEAD_BYTES: usize = 100 * 1024;

/// The identity of a message from the moment it is accepted to the moment it is settled.
///
/// Ours are `UUIDv7` text. A message that another client put on the queue keeps the id it came with.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(Arc<str>);

impl MessageId {
    /// Takes any text as an id.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The id as it stands in headers, logs and properties.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How the request came in. Absent on a message that another client published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The request's method, unchanged.
    pub method: Method,
    /// The request's path, unchanged (still percent-encoded).
    pub path: String,
    /// The request's query without the `?`, unchanged.
    pub query: Option<String>,
    /// `<namespace>/<IngressRoute>/<rule>`.
    pub route: String,
}

/// Where an answer is awaited (request-reply).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyTo {
    /// The mailbox of the ingress process that holds the caller's connection: on RabbitMQ, a queue.
    pub queue: String,
    /// After this moment nobody waits any more.
    pub deadline: Timestamp,
}

/// Why a message lies in a dead letter store. Written once, when it is put there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Death {
    /// The reason in `CamelCase`, for example `MaxRedeliveries`.
    pub reason: String,
    /// Attempts that were made, the last one included.
    pub attempts: u32,
    /// The last HTTP status, if the target answered at all.
    pub last_status: Option<u16>,
    /// The first attempt's start.
    pub first_at: Option<Timestamp>,
    /// The last attempt's end.
    pub last_at: Option<Timestamp>,
    /// The last error in words, at most 1 KiB.
    pub last_error: Option<String>,
    /// `<namespace>/<ForwardingProcessor>`.
    pub processor: String,
    /// The queue it came from.
    pub source: String,
}

/// What a store's protocol says of a message and nobody else here reads: properties that another client gave it,
/// and where it lay before.
///
/// Names and bytes mean something only to the kind of store that wrote them; every kind keeps them, so that they
/// survive a detour over another one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Carried(Vec<(Cow<'static, str>, Bytes)>);

impl Carried {
    /// Adds an entry. A name that is there already gets a second one.
    pub fn push(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Bytes>) {
        self.0.push((name.into(), value.into()));
    }

    /// The first entry of this name.
    pub fn get(&self, name: &str) -> Option<&Bytes> {
        self.iter().find(|(other, _)| *other == name).map(|(_, value)| value)
    }

    /// All entries, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.0.iter().map(|(name, value)| (&**name, value))
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These entries, and those of `other` whose names are not among them: what is known from earlier stays.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        let missing = other.0.iter().filter(|(name, _)| self.get(name).is_none());
        Self(self.0.iter().chain(missing).cloned().collect())
    }

    fn weight(&self) -> usize {
        self.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

/// A message as a store keeps it.
///
/// `headers` never holds hop-by-hop headers, `Host`, `Content-Length`, `Content-Type`, `Content-Encoding`, nor
/// any header of ours: the first three are not ours to keep, the next two have fields of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// See [`MessageId`].
    pub id: MessageId,
    /// Ties an answer to its request. `None` means: the same as `id`.
    pub correlation_id: Option<String>,
    /// When it was accepted.
    pub timestamp: Option<Timestamp>,
    /// `Content-Type`, unchanged.
    pub content_type: Option<HeaderValue>,
    /// `Content-Encoding`, unchanged.
    pub content_encoding: Option<HeaderValue>,
    /// How it came in over HTTP, if it did.
    pub origin: Option<Origin>,
    /// End-to-end headers with all their values, in the order of the request.
    pub headers: HeaderMap,
    /// The body's bytes, unchanged.
    pub body: Bytes,
    /// Of an answer: the status that it came with.
    pub status: Option<StatusCode>,
    /// Present when a caller waits for the answer.
    pub reply_to: Option<ReplyTo>,
    /// Present in a dead letter store.
    pub death: Option<Death>,
    /// See [`Carried`]. Empty for what came in over HTTP.
    pub carried: Carried,
}

impl Message {
    /// A message with a body and nothing else.
    pub fn new(id: MessageId, body: impl Into<Bytes>) -> Self {
        Self {
            id,
            correlation_id: None,
            timestamp: None,
            content_type: None,
            content_encoding: None,
            origin: None,
            headers: HeaderMap::new(),
            body: body.into(),
            status: None,
            reply_to: None,
            death: None,
            carried: Carried::default(),
        }
    }

    /// The same message, to be published a second time: into a dead letter store, or from store to store. `source` is
    /// what the store that it was taken from adds. Whoever waited for an answer waits no more, so nothing may end it
    /// any more when that time is over.
    #[must_use]
    pub fn again(&self, source: &Carried) -> Self {
        Self { carried: self.carried.or(source), reply_to: None, ..self.clone() }
    }

    /// The correlation identifier: its own, else the message id.
    pub fn correlation_id(&self) -> &str {
        self.correlation_id.as_deref().unwrap_or(self.id.as_str())
    }

    /// Bytes this message holds in memory: body, names and values. Used for every bound on memory.
    pub fn weight(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        self.body.len() + headers + self.carried.weight()
    }
}
