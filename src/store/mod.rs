//! The port to durable queues, and what every store must keep.
//!
//! Inputs: messages to publish, tags to settle. Outputs: durable or not, deliveries. A store decides nothing about
//! retries, order between keys or dead letters: it keeps messages, hands them out in order, and takes them back.
//!
//! The contract, which the suite in `tests/contract.rs` runs against each implementation:
//!
//! - [`MessageStore::publish`] answers `Ok` only when the message is durable in every queue it was routed to.
//! - A consumer gets messages in the order in which they were stored; what is returned comes again at its old place.
//! - A message leaves the queue only by [`Consumer::ack`]. A consumer that is dropped, or a process that dies,
//!   returns what it had not acknowledged, marked `redelivered`.
//! - A full queue refuses; nothing is ever discarded to make room.

pub mod embedded;
pub mod mailbox;
pub mod publisher;
pub mod rabbitmq;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::watch;

use self::mailbox::Mailbox;
use crate::core::deactivation::Deactivation;
use crate::core::message::{Carried, Message};

/// A future that a trait object returns.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One named place where messages wait: a queue, an exchange with queues behind it, or both.
pub trait MessageStore: Send + Sync + fmt::Debug {
    /// Stores a message. `routing_key` defaults to the store's own.
    ///
    /// Bounded in time by the store itself (its confirm time-out). Once called, the publish is carried through even
    /// if the future is dropped: its outcome is then unknown to the caller, as after a lost connection.
    fn publish<'a>(
        &'a self,
        message: Arc<Message>,
        routing_key: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), PublishError>>;

    /// What waits in the queue now.
    fn depth(&self) -> BoxFuture<'_, Result<Depth, StoreError>>;

    /// Attaches a consumer that is handed at most `prefetch` unsettled messages.
    fn consume(&self, prefetch: u16) -> BoxFuture<'_, Result<Box<dyn Consumer>, StoreError>>;

    /// The record that keeps a processor stopped. `processor` is `<namespace>.<name>`.
    fn deactivation<'a>(&'a self, processor: &'a str) -> BoxFuture<'a, Result<Option<Deactivation>, StoreError>>;

    /// Stores the record, durably, before anything else is told of it. A record that is already there stays.
    fn deactivate<'a>(&'a self, processor: &'a str, record: &'a Deactivation) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Removes the record, if there is one.
    fn reactivate<'a>(&'a self, processor: &'a str) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Whether the broker can be reached; changes are seen by every receiver.
    fn connection(&self) -> watch::Receiver<Connection>;

    /// Where callers of this process wait for the answers to what they publish here. `None`: nothing published here
    /// can be answered.
    fn mailbox(&self) -> Option<Arc<Mailbox>> {
        None
    }

    /// Sends an answer to the mailbox at `place`. It need not outlive the broker: a caller waits, and asks again.
    /// Unroutable: nobody is there any more.
    fn reply<'a>(&'a self, place: &'a str, _answer: Arc<Message>) -> BoxFuture<'a, Result<(), PublishError>> {
        Box::pin(std::future::ready(Err(PublishError::Unroutable(place.to_owned()))))
    }

    /// Whether other processes may work on the same queue, and then write its deactivation records too.
    fn is_shared(&self) -> bool {
        false
    }

    /// When its queue was found missing last, and declared by this process. `None`: it has been there ever since it was
    /// looked for first.
    fn made(&self) -> Option<Timestamp> {
        None
    }

    /// The queue's name, or the exchange's if there is no queue: for logs and dead letters.
    fn name(&self) -> &str;
}

/// An attached consumer. One task owns it.
///
/// Dropping it returns everything that was not acknowledged.
pub trait Consumer: Send {
    /// The next message, in order. Waits while there is none or while `prefetch` messages are unsettled.
    /// Cancel safe: a dropped future loses nothing.
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery, StoreError>>;

    /// Takes messages out of the queue for good. Does not wait: the store makes it durable within 10 ms, and a
    /// crash before that delivers them once more. Tags of an earlier connection are refused and come again.
    fn ack(&mut self, tags: &[Tag]) -> Result<(), StoreError>;

    /// Takes nothing more; what was handed out stays to be acknowledged. Does not wait. From now on
    /// [`next`](Self::next) hands out nothing, and ends only with the error that ends the consumer.
    fn stop_taking(&mut self);

    /// Nobody asks for the next one any more; what still comes for us is neither kept nor anybody else's before all
    /// goes back. Does not wait.
    fn take_no_more(&mut self) {}

    /// Stops taking, and returns everything that is unsettled to its old place, all together. Acknowledgements
    /// given before are carried out first.
    fn give_back(self: Box<Self>) -> BoxFuture<'static, Result<(), StoreError>>;
}

/// Names a delivery within its consumer. Increasing in the order of delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(pub u64);

/// A message in our hands, to be acknowledged or returned.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// What [`Consumer::ack`] needs.
    pub tag: Tag,
    /// The message.
    pub message: Arc<Message>,
    /// It had been handed out before and was not acknowledged.
    pub redelivered: bool,
    /// How often it came back before without being acknowledged, if the store counts that; else 0.
    pub returned: u32,
    /// Where it lay, for whoever publishes it again; see [`Message::again`].
    pub source: Carried,
}

/// How much waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Depth {
    /// Messages ready to be delivered; those in a consumer's hands are not among them.
    pub ready: u64,
    /// Consumers attached.
    pub consumers: u32,
}

/// The state of the connection to the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Connection {
    /// Publishing and consuming work.
    Up,
    /// Started, or lost a moment ago: the first connect since then has neither succeeded nor failed.
    Connecting,
    /// A connect has failed since, because of this; it is tried again for ever.
    Down(StoreError),
}

/// Why a message was not stored. The caller must not be told that it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The broker is not connected; nothing was sent.
    #[error("the broker is not connected: {0}")]
    NotConnected(String),
    /// The queue is full, or the disk is, or the broker raised an alarm; nothing was stored.
    #[error("refused: {0}")]
    Refused(String),
    /// One of several queues has refused it, and the broker does not say which; others may have it.
    #[error("refused by a queue behind the exchange: {0}")]
    PartlyRefused(String),
    /// No queue is bound for the routing key; nothing was stored.
    #[error("unroutable: no queue is bound for routing key `{0}`")]
    Unroutable(String),
    /// Sent, and no confirm came: it may be stored.
    #[error("unknown outcome: {0}")]
    Unknown(String),
    /// The message itself cannot be stored: larger than any store takes.
    #[error("the message cannot be stored: {0}")]
    Invalid(String),
}

impl PublishError {
    /// The label of `stored_total{result}`.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NotConnected(_) | Self::Refused(_) | Self::Invalid(_) => "refused",
            Self::Unroutable(_) => "unroutable",
            Self::Unknown(_) | Self::PartlyRefused(_) => "unknown",
        }
    }

    /// Whether the message may be stored somewhere all the same.
    pub fn may_be_stored(&self) -> bool {
        matches!(self, Self::Unknown(_) | Self::PartlyRefused(_))
    }
}

/// Why the store could not do something else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The broker cannot be reached now.
    #[error("the broker is not connected: {0}")]
    NotConnected(String),
    /// A connect failed, because of this.
    #[error("the broker can't be reached: {fault}: {detail}")]
    Unreachable {
        /// The class, which a status shows.
        fault: Fault,
        /// The rest, for logs.
        detail: String,
    },
    /// The queue has another consumer, and may have only one.
    #[error("in use: {0}")]
    InUse(String),
    /// The queue or exchange exists with other arguments.
    #[error("queue mismatch: {0}")]
    Mismatch(String),
    /// The queue or exchange does not exist, or the store has no queue to consume.
    #[error("not found: {0}")]
    NotFound(String),
    /// A tag of a connection that is gone: the message comes again.
    #[error("the delivery belongs to an earlier connection")]
    Stale,
    /// The disk failed or is full.
    #[error("disk: {0}")]
    Disk(String),
    /// The data on disk is not what this program wrote.
    #[error("{0}")]
    Corrupt(String),
    /// Shut down.
    #[error("the store is closed")]
    Closed,
}

/// Why a broker can't be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nobody listens there, or the other side ended the connection.
    Refused,
    /// No answer in time.
    TimedOut,
    /// Wrong user name, password or client certificate.
    AuthenticationFailed,
    /// TLS could not be agreed on, or the certificate is not to be trusted.
    TlsFailed,
    /// No such virtual host, or no right to it; no such host name.
    NotFound,
    /// The Secret names no broker.
    InvalidSecret,
}

impl fmt::Display for Fault {
    /// As a reason in a status.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl Fault {
    /// As a reason in a status.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Refused => "Refused",
            Self::TimedOut => "TimedOut",
            Self::AuthenticationFailed => "AuthenticationFailed",
            Self::TlsFailed => "TlsFailed",
            Self::NotFound => "NotFound",
            Self::InvalidSecret => "InvalidSecret",
        }
    }
}

/// What kind of remedy an error needs; the label of error metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// Tried again by itself.
    Transient,
    /// Something else must come back first.
    Dependency,
    /// A human must change the input.
    Invalid,
    /// Someone else changed the same thing.
    Conflict,
    /// The process cannot go on.
    Fatal,
}

impl StoreError {
    /// The error without what "not connected" adds, for a sentence that says so already.
    pub fn detail(&self) -> String {
        match self {
            Self::NotConnected(text) => text.clone(),
            other => other.to_string(),
        }
    }

    /// See [`ErrorClass`].
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::NotConnected(_) | Self::Unreachable { .. } | Self::NotFound(_) | Self::Disk(_) => {
                ErrorClass::Dependency
            }
            Self::InUse(_) => ErrorClass::Conflict,
            Self::Mismatch(_) => ErrorClass::Invalid,
            Self::Stale => ErrorClass::Transient,
            Self::Corrupt(_) | Self::Closed => ErrorClass::Fatal,
        }
    }
}
