//! What we write to the broker by ourselves: publishes, acknowledgements, cancels. Frames of the client library go
//! between them, whole.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use lapin::types::ShortString;

use super::incoming::{BODY, FRAME_END, FRAME_HEAD, FRAME_OVERHEAD, HEADER, METHOD};

/// A body up to this size is copied behind its head; of a larger one no copy is made.
const COPIED: usize = 16 << 10;

/// Bytes that are gathered in one piece.
const PIECE: usize = 64 << 10;

/// Memory that is kept for the next piece.
const REUSED: usize = 2 * PIECE;

/// Bytes to be written, in their order. No more than the windows of those who publish and consume on the connection
/// have under way.
#[derive(Debug)]
pub(super) struct Outgoing {
    queue: Mutex<Queue>,
    /// Of whoever writes them.
    pub(super) writer: AtomicWaker,
    /// The largest frame that was agreed on.
    max_frame: AtomicUsize,
}

#[derive(Debug, Default)]
struct Queue {
    pieces: VecDeque<Piece>,
    /// Behind them: where the next frame goes.
    made: Vec<u8>,
    /// A piece that was written, empty: its memory is used again.
    used: Vec<u8>,
}

/// A run of bytes.
#[derive(Debug)]
pub(super) enum Piece {
    /// Frames and parts of frames.
    Made(Vec<u8>),
    /// A part of a body.
    Body(Bytes),
}

/// Why nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::store::rabbitmq) enum Unsent {
    /// The properties do not fit into a frame.
    #[error("its headers have {size} bytes, and the broker takes at most {most} in a frame")]
    TooLarge { size: usize, most: usize },
    /// The channel has ended.
    #[error("not sent: the channel has ended")]
    Ended,
}

/// A message to be published.
#[derive(Debug, Clone, Copy)]
pub(in crate::store::rabbitmq) struct Publication<'a> {
    pub(in crate::store::rabbitmq) exchange: &'a ShortString,
    pub(in crate::store::rabbitmq) routing_key: &'a ShortString,
    /// Flags and values.
    pub(in crate::store::rabbitmq) properties: &'a [u8],
    pub(in crate::store::rabbitmq) body: &'a Bytes,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Made(bytes) => bytes,
            Self::Body(bytes) => bytes,
        }
    }
}

impl Outgoing {
    /// `max_frame`: until another one is agreed on.
    pub(super) fn new(max_frame: usize) -> Self {
        Self { queue: Mutex::default(), writer: AtomicWaker::new(), max_frame: AtomicUsize::new(max_frame) }
    }

    /// The broker and the client library agree on this.
    pub(super) fn agreed(&self, max_frame: usize) {
        self.max_frame.store(max_frame, Ordering::Relaxed);
    }

    fn most(&self) -> usize {
        self.max_frame.load(Ordering::Relaxed).saturating_sub(FRAME_OVERHEAD)
    }

    /// Whether properties fit into a frame.
    pub(super) fn fits(&self, properties: &[u8]) -> Result<(), Unsent> {
        // Class, weight, size of the body.
        let (size, most) = (properties.len() + 12, self.most());
        if size > most { Err(Unsent::TooLarge { size, most }) } else { Ok(()) }
    }

    /// Publishes, mandatory, what [fits](Self::fits).
    pub(super) fn publish(&self, channel: u16, publication: Publication<'_>) {
        let Publication { exchange, routing_key, properties, body } = publication;
        let most = self.most();
        let mut queue = self.lock();
        frame(&mut queue.made, METHOD, channel, |made| {
            made.extend([0, 60, 0, 40, 0, 0]);
            short(made, exchange);
            short(made, routing_key);
            made.push(MANDATORY);
        });
        frame(&mut queue.made, HEADER, channel, |made| {
            made.extend([0, 60, 0, 0]);
            made.extend((body.len() as u64).to_be_bytes());
            made.extend_from_slice(properties);
        });
        for from in (0..body.len()).step_by(most.max(1)) {
            let part = from..body.len().min(from + most);
            if body.len() <= COPIED {
                frame(&mut queue.made, BODY, channel, |made| made.extend_from_slice(&body[part]));
            } else {
                head(&mut queue.made, BODY, channel, part.len());
                queue.push(Piece::Body(body.slice(part)));
                queue.made.push(FRAME_END);
            }
        }
        queue.cut();
        drop(queue);
        self.writer.wake();
    }

    /// `multiple`: of all deliveries up to this one.
    pub(super) fn ack(&self, channel: u16, tag: u64, multiple: bool) {
        frame(&mut self.lock().made, METHOD, channel, |made| {
            made.extend([0, 60, 0, 80]);
            made.extend(tag.to_be_bytes());
            made.push(multiple.into());
        });
        self.writer.wake();
    }

    /// Ends a consumer; the broker does not answer.
    pub(super) fn cancel(&self, channel: u16, consumer: &ShortString) {
        frame(&mut self.lock().made, METHOD, channel, |made| {
            made.extend([0, 60, 0, 30]);
            short(made, consumer);
            made.push(NO_WAIT);
        });
        self.writer.wake();
    }

    /// Moves everything to the end of `to`.
    pub(super) fn take(&self, to: &mut VecDeque<Piece>) {
        let mut queue = self.lock();
        to.append(&mut queue.pieces);
        if !queue.made.is_empty() {
            let next = std::mem::take(&mut queue.used);
            to.push_back(Piece::Made(std::mem::replace(&mut queue.made, next)));
        }
    }

    /// Whether there is something to write.
    pub(super) fn is_waiting(&self) -> bool {
        let queue = self.lock();
        !queue.made.is_empty() || !queue.pieces.is_empty()
    }

    /// Takes the memory of a piece that is written.
    pub(super) fn reuse(&self, mut piece: Vec<u8>) {
        let mut queue = self.lock();
        if piece.capacity() <= REUSED && piece.capacity() > queue.used.capacity() {
            piece.clear();
            queue.used = piece;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn push(&mut self, piece: Piece) {
        let made = std::mem::take(&mut self.made);
        self.pieces.extend([Piece::Made(made), piece]);
    }

    /// A piece that is large enough is closed: to make it longer would be to copy it.
    fn cut(&mut self) {
        if self.made.len() >= PIECE {
            let made = std::mem::take(&mut self.made);
            self.pieces.push_back(Piece::Made(made));
        }
    }
}

const MANDATORY: u8 = 1;
const NO_WAIT: u8 = 1;

fn head(made: &mut Vec<u8>, kind: u8, channel: u16, size: usize) {
    made.push(kind);
    made.extend(channel.to_be_bytes());
    // A frame is never that large: its size was agreed on.
    made.extend(u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes());
}

fn frame(made: &mut Vec<u8>, kind: u8, channel: u16, payload: impl FnOnce(&mut Vec<u8>)) {
    let from = made.len();
    head(made, kind, channel, 0);
    payload(made);
    let size = made.len() - from - FRAME_HEAD;
    made[from + 3..from + FRAME_HEAD].copy_from_slice(&u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes());
    made.push(FRAME_END);
}

fn short(made: &mut Vec<u8>, text: &ShortString) {
    // A short string has at most 255 bytes.
    made.push(u8::try_from(text.as_str().len()).unwrap_or(u8::MAX));
    made.extend_from_slice(text.as_str().as_bytes());
}
