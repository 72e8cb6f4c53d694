//! What comes on a channel that consumes, until somebody takes it, and how much of it there may be.
//!
//! A prefetch counts messages, and they may be of any size. So a line reads no further while too many bytes lie there
//! untaken: the broker then waits with the rest. That holds everything up on the line, and is for moments: whoever
//! consumes takes what comes at once, or says that he takes nothing any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use tokio::sync::mpsc;

use super::lanes::Came;

/// Bytes untaken, on all channels of a line, beyond which nothing is read.
pub(super) const MOST_UNTAKEN: usize = 16 << 20;

/// The bytes that lie on a line untaken.
#[derive(Debug, Default)]
pub(super) struct Untaken {
    bytes: AtomicUsize,
    /// Of whoever reads the line.
    reader: AtomicWaker,
}

impl Untaken {
    /// Ready when there may be more.
    pub(super) fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        if self.has_room() {
            return Poll::Ready(());
        }
        self.reader.register(cx.waker());
        if self.has_room() { Poll::Ready(()) } else { Poll::Pending }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Acquire)
    }

    fn has_room(&self) -> bool {
        self.bytes() < MOST_UNTAKEN
    }

    fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    fn remove(&self, bytes: usize) {
        let before = self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        if before >= MOST_UNTAKEN && before - bytes < MOST_UNTAKEN {
            self.reader.wake();
        }
    }
}

/// What to do with messages that come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Whoever takes them waits for something else that comes on this line, so it must be read. Keep them until there
    /// is no more room, and throw the rest away; the first one is always kept.
    First { bytes: usize },
    /// Keep all: no more are read than there is room for.
    All,
    /// Throw them away: they are not acknowledged, and go back.
    None,
}

/// The end that a line puts in.
#[derive(Debug)]
pub(super) struct Inlet {
    mode: Mode,
    untaken: Arc<Untaken>,
    came: mpsc::UnboundedSender<(Came, usize)>,
    thrown: Arc<AtomicBool>,
}

impl Inlet {
    pub(super) fn new(untaken: Arc<Untaken>) -> (Self, Arrivals) {
        let (sender, came) = mpsc::unbounded_channel();
        let thrown = Arc::<AtomicBool>::default();
        let arrivals = Arrivals { untaken: untaken.clone(), came, kept: None, thrown: thrown.clone() };
        (Self { mode: Mode::First { bytes: 0 }, untaken, came: sender, thrown }, arrivals)
    }

    pub(super) fn put(&mut self, came: Came) {
        let size = match &came {
            Came::Message(delivered) => delivered.properties.len() + delivered.body.len(),
            Came::Cancelled | Came::Closed(_) => 0,
        };
        if let Mode::First { bytes } = &mut self.mode {
            let is_first = *bytes == 0;
            *bytes += size;
            if !is_first && *bytes > MOST_UNTAKEN {
                // All that follow, too: nothing may be missing in between.
                self.mode = Mode::None;
            }
        }
        let bytes = match (self.mode, &came) {
            (Mode::None, Came::Message(_)) => return self.thrown.store(true, Ordering::Release),
            (Mode::All, _) => size,
            _ => 0,
        };
        self.untaken.add(bytes);
        if self.came.send((came, bytes)).is_err() {
            self.untaken.remove(bytes);
        }
    }

    /// From now on all is kept, and no more is read than there is room for. `false`: some were thrown away.
    pub(super) fn limit(&mut self) -> bool {
        if matches!(self.mode, Mode::First { .. }) {
            self.mode = Mode::All;
        }
        self.mode == Mode::All
    }

    /// From now on messages are thrown away.
    pub(super) fn discard(&mut self) {
        self.mode = Mode::None;
    }
}

/// The end that somebody takes from.
#[derive(Debug)]
pub(in crate::store::rabbitmq) struct Arrivals {
    untaken: Arc<Untaken>,
    came: mpsc::UnboundedReceiver<(Came, usize)>,
    /// Found among what was thrown away.
    kept: Option<Came>,
    thrown: Arc<AtomicBool>,
}

impl Arrivals {
    /// The next one; `None`: the line is over.
    pub(in crate::store::rabbitmq) async fn next(&mut self) -> Option<Came> {
        if let Some(kept) = self.kept.take() {
            return Some(kept);
        }
        let (came, bytes) = self.came.recv().await?;
        self.untaken.remove(bytes);
        Some(came)
    }

    /// The next one, if it is there.
    pub(in crate::store::rabbitmq) fn now(&mut self) -> Option<Came> {
        if let Some(kept) = self.kept.take() {
            return Some(kept);
        }
        let (came, bytes) = self.came.try_recv().ok()?;
        self.untaken.remove(bytes);
        Some(came)
    }

    /// Throws away the messages that are there.
    pub(super) fn clear(&mut self) {
        while let Some(came) = self.now() {
            if !matches!(came, Came::Message(_)) {
                // Nothing follows what ends a channel.
                self.kept = Some(came);
                return;
            }
            self.thrown.store(true, Ordering::Release);
        }
    }

    /// Whether a message was thrown away: it goes back to its queue when the channel ends.
    pub(in crate::store::rabbitmq) fn threw(&self) -> bool {
        self.thrown.load(Ordering::Acquire)
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.came.close();
        while self.now().is_some() {}
    }
}
