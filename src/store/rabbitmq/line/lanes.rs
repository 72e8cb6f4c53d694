//! The channels whose hot frames are ours: what the broker says of their publishes, and the messages that it hands out.
//!
//! Everything else on these channels, and all other channels, are the client library's. Who watches a channel is told
//! in the order of the broker's frames, so a return stands before its confirm, and the reason of an end behind what
//! was said before it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use super::arrivals::{Arrivals, Inlet, Untaken};
use super::broken;
use super::payload::{Head, Method};

/// Most bytes that are asked for before they have come: the largest body that brokers take by default.
const RESERVE: u64 = 16 << 20;

/// Why the broker closed a channel, or the connection with all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store::rabbitmq) struct Closed {
    pub(in crate::store::rabbitmq) code: u16,
    pub(in crate::store::rabbitmq) text: String,
}

/// What the broker says on a channel that publishes.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::store::rabbitmq) enum Said {
    /// Of publish `tag`, or of all up to it that have no confirm yet.
    Confirmed { tag: u64, multiple: bool, stored: bool },
    /// The id of a message that no queue wants. Its confirm comes later.
    Returned(String),
    /// The channel has ended.
    Closed(Closed),
}

/// What comes on a channel that consumes.
#[derive(Debug)]
pub(in crate::store::rabbitmq) enum Came {
    /// A message, complete.
    Message(Box<Delivered>),
    /// The queue is gone.
    Cancelled,
    /// The channel has ended.
    Closed(Closed),
}

/// A message as the broker hands it out.
#[derive(Debug)]
pub(in crate::store::rabbitmq) struct Delivered {
    pub(in crate::store::rabbitmq) tag: u64,
    pub(in crate::store::rabbitmq) redelivered: bool,
    pub(in crate::store::rabbitmq) exchange: String,
    pub(in crate::store::rabbitmq) routing_key: String,
    /// Flags and values.
    pub(in crate::store::rabbitmq) properties: Vec<u8>,
    pub(in crate::store::rabbitmq) body: Vec<u8>,
}

/// Who gets a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    Ours,
    Theirs,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    table: Mutex<Table>,
    pub(super) untaken: Arc<Untaken>,
}

/// The lanes by their channels, while somebody looks at them.
#[derive(Debug, Default)]
pub(super) struct Table {
    lanes: HashMap<u16, Lane>,
    /// Nobody is told anything any more.
    over: bool,
}

#[derive(Debug)]
enum Lane {
    Publishing(Publishing),
    Consuming(Consuming),
}

// The queue to who publishes has no bound of its own: of confirms there are no more than publishes under way.

#[derive(Debug)]
struct Publishing {
    /// The highest tag that can be confirmed.
    published: u64,
    returning: Option<Returning>,
    watcher: mpsc::UnboundedSender<Said>,
}

/// A message on its way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Returning {
    Begun,
    /// So much of its body is still to come.
    Body(u64),
}

#[derive(Debug)]
struct Consuming {
    coming: Option<Coming>,
    inlet: Inlet,
}

/// A message on its way to us.
#[derive(Debug)]
struct Coming {
    delivered: Box<Delivered>,
    /// Of its body; `None` before the header.
    size: Option<u64>,
}

impl Lanes {
    /// A channel publishes from now on.
    pub(super) fn publishing(&self, channel: u16) -> mpsc::UnboundedReceiver<Said> {
        let (watcher, said) = mpsc::unbounded_channel();
        self.lock().add(channel, Lane::Publishing(Publishing { published: 0, returning: None, watcher }));
        said
    }

    /// A channel consumes from now on.
    pub(super) fn consuming(&self, channel: u16) -> Arrivals {
        let (inlet, arrivals) = Inlet::new(self.untaken.clone());
        self.lock().add(channel, Lane::Consuming(Consuming { coming: None, inlet }));
        arrivals
    }

    /// Whoever consumes on a channel takes what comes from now on, as it comes. `false`: some were thrown away.
    pub(super) fn limit(&self, channel: u16) -> bool {
        match self.lock().lanes.get_mut(&channel) {
            Some(Lane::Consuming(lane)) => lane.inlet.limit(),
            // It has ended, as whoever consumes is told.
            _ => true,
        }
    }

    /// Nobody takes messages of a channel any more; what ends it is still said.
    pub(super) fn discard(&self, channel: u16, arrivals: &mut Arrivals) {
        // With the lock, so that none comes in between.
        let mut table = self.lock();
        if let Some(Lane::Consuming(lane)) = table.lanes.get_mut(&channel) {
            lane.inlet.discard();
        }
        arrivals.clear();
    }

    /// From now on nobody is told anything.
    pub(super) fn end(&self) {
        let mut table = self.lock();
        table.over = true;
        table.lanes.clear();
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn add(&mut self, channel: u16, lane: Lane) {
        if !self.over {
            self.lanes.insert(channel, lane);
        }
    }

    /// Whether a channel's content frames may be ours.
    pub(super) fn has(&self, channel: u16) -> bool {
        self.lanes.contains_key(&channel)
    }

    /// How many were published on a channel; to be counted on with each one that goes out.
    pub(super) fn published(&mut self, channel: u16) -> Option<&mut u64> {
        match self.lanes.get_mut(&channel) {
            Some(Lane::Publishing(lane)) => Some(&mut lane.published),
            _ => None,
        }
    }

    pub(super) fn method(&mut self, channel: u16, method: &Method<'_>) -> io::Result<Whose> {
        if let Method::ConnectionClose { code, text } = *method {
            for lane in self.lanes.values_mut() {
                lane.closed(code, text);
            }
            return Ok(Whose::Theirs);
        }
        let Entry::Occupied(mut entry) = self.lanes.entry(channel) else { return Ok(Whose::Theirs) };
        match *method {
            Method::ChannelClose { code, text } => {
                entry.get_mut().closed(code, text);
                entry.remove();
                Ok(Whose::Theirs)
            }
            Method::ChannelCloseOk => {
                entry.remove();
                Ok(Whose::Theirs)
            }
            _ => match entry.get_mut() {
                Lane::Publishing(lane) => lane.method(method),
                Lane::Consuming(lane) => lane.method(method),
            },
        }
    }

    pub(super) fn header(&mut self, channel: u16, head: &Head<'_>) -> io::Result<Whose> {
        match self.lanes.get_mut(&channel) {
            None => Ok(Whose::Theirs),
            Some(Lane::Publishing(lane)) => lane.header(head),
            Some(Lane::Consuming(lane)) => lane.header(head),
        }
    }

    /// A piece of a body on a channel that is ours.
    pub(super) fn body(&mut self, channel: u16, bytes: &[u8]) -> io::Result<()> {
        match self.lanes.get_mut(&channel) {
            None => Ok(()),
            Some(Lane::Publishing(lane)) => lane.body(bytes),
            Some(Lane::Consuming(lane)) => lane.body(bytes),
        }
    }
}

impl Lane {
    fn closed(&mut self, code: u16, text: &str) {
        let closed = Closed { code, text: text.to_owned() };
        // Whoever does not watch any more needs not know.
        match self {
            Self::Publishing(lane) => drop(lane.watcher.send(Said::Closed(closed))),
            Self::Consuming(lane) => lane.inlet.put(Came::Closed(closed)),
        }
    }
}

impl Publishing {
    fn method(&mut self, method: &Method<'_>) -> io::Result<Whose> {
        if self.returning.is_some() {
            // Its confirm will come, and must not pass for one of a message that was stored.
            return Err(broken("a returned message that can't be read"));
        }
        match *method {
            Method::Return => {
                self.returning = Some(Returning::Begun);
                Ok(Whose::Ours)
            }
            // Tag 0 would confirm all that is under way, also what the broker has not read yet.
            Method::Confirm { tag, .. } if !(1..=self.published).contains(&tag) => {
                Err(broken(format!("a confirm for publish {tag}, which was never made")))
            }
            Method::Confirm { tag, multiple, stored } => {
                let _ = self.watcher.send(Said::Confirmed { tag, multiple, stored });
                Ok(Whose::Ours)
            }
            _ => Ok(Whose::Theirs),
        }
    }

    fn header(&mut self, head: &Head<'_>) -> io::Result<Whose> {
        if self.returning != Some(Returning::Begun) {
            return Err(broken("the properties of a message that it does not send"));
        }
        let _ = self.watcher.send(Said::Returned(head.message_id.to_owned()));
        self.returning = (head.size > 0).then_some(Returning::Body(head.size));
        Ok(Whose::Ours)
    }

    fn body(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(Returning::Body(left)) = self.returning else {
            return Err(broken("a body of a message that it does not send"));
        };
        let left = left.checked_sub(bytes.len() as u64).ok_or_else(|| broken("a body longer than it said"))?;
        self.returning = (left > 0).then_some(Returning::Body(left));
        Ok(())
    }
}

impl Consuming {
    fn method(&mut self, method: &Method<'_>) -> io::Result<Whose> {
        if self.coming.is_some() {
            return Err(broken("a body shorter than it said"));
        }
        match *method {
            Method::Deliver { tag, redelivered, exchange, routing_key } => {
                let delivered = Box::new(Delivered {
                    tag,
                    redelivered,
                    exchange: exchange.to_owned(),
                    routing_key: routing_key.to_owned(),
                    properties: Vec::new(),
                    body: Vec::new(),
                });
                self.coming = Some(Coming { delivered, size: None });
                Ok(Whose::Ours)
            }
            Method::Cancel => {
                self.inlet.put(Came::Cancelled);
                Ok(Whose::Theirs)
            }
            _ => Ok(Whose::Theirs),
        }
    }

    fn header(&mut self, head: &Head<'_>) -> io::Result<Whose> {
        let Some(coming @ Coming { size: None, .. }) = &mut self.coming else {
            return Err(broken("the properties of a message that it does not send"));
        };
        coming.size = Some(head.size);
        coming.delivered.properties = head.properties.to_vec();
        coming.delivered.body = Vec::with_capacity(usize::try_from(head.size.min(RESERVE)).unwrap_or_default());
        self.complete();
        Ok(Whose::Ours)
    }

    fn body(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(Coming { delivered, size: Some(size) }) = &mut self.coming else {
            return Err(broken("a body of a message that it does not send"));
        };
        delivered.body.extend_from_slice(bytes);
        if delivered.body.len() as u64 > *size {
            return Err(broken("a body longer than it said"));
        }
        self.complete();
        Ok(())
    }

    /// Hands the message over if all of it is there.
    fn complete(&mut self) {
        let all = |coming: &mut Coming| coming.size == Some(coming.delivered.body.len() as u64);
        if let Some(Coming { delivered, .. }) = self.coming.take_if(all) {
            self.inlet.put(Came::Message(delivered));
        }
    }
}
