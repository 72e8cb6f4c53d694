//! What is known of a queue in memory: a cursor, a little of its front, and who holds what.
//!
//! The messages are in the file. Here is only what is next: messages just published while a consumer waits, those
//! read ahead, those that were returned. Nothing is scanned when the file is opened, whatever it holds. A crash
//! forgets all of this, which is how what was held comes back.
//!
//! Must not: touch the file. `reader` fills it, `writer` tells it what was committed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::core::message::Message;
use crate::core::topology::{Consumers, Queue as Arguments};
use crate::store::{Depth, StoreError};

/// Bytes of messages that a queue keeps in memory ahead of its consumers. One larger message is always kept.
const AHEAD_BYTES: usize = 8 << 20;
/// Messages kept ahead: small ones cost more than their bytes.
const AHEAD_MESSAGES: usize = 4096;
/// Acknowledged messages that may wait for their commit. Reached only while the disk is full; then nothing more is
/// handed out, so that what a crash would deliver again, and the memory it takes, stay bounded.
const MAX_SETTLING: u64 = 65_536;

/// Locks, and goes on with what is there if a thread panicked while it held the lock.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A queue that all stores of this name in this virtual host share.
#[derive(Debug)]
pub(super) struct Queue {
    /// The first part of its messages' keys.
    pub(super) id: u32,
    pub(super) name: String,
    arguments: Mutex<Arguments>,
    state: Mutex<State>,
    /// Told whenever a consumer that waits may go on.
    changed: Notify,
}

/// The numbers that are in the file as well, as of the last commit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// The sequence number of the next message.
    pub(super) next: u64,
    /// Messages in the file.
    pub(super) messages: u64,
    /// Bytes of their bodies.
    pub(super) bytes: u64,
    /// Messages below this had been handed out at least once.
    pub(super) delivered: u64,
}

#[derive(Debug, Default)]
struct State {
    counts: Counts,
    /// Like `counts.delivered`, and ahead of it until the next commit.
    delivered: u64,
    /// Messages below this number are, or were, in memory or in `returned`.
    cursor: u64,
    ahead: BTreeMap<u64, Ahead>,
    ahead_bytes: usize,
    /// Returned, and not kept in memory.
    returned: BTreeSet<u64>,
    /// In consumers' hands.
    leased: u64,
    /// Acknowledged, not yet committed.
    settling: u64,
    loading: bool,
    failure: Option<StoreError>,
    consumers: VecDeque<u64>,
    next_consumer: u64,
    /// Consumers that found nothing when they asked last.
    idle: BTreeSet<u64>,
    /// Who got the last message.
    last: Option<u64>,
}

#[derive(Debug)]
struct Ahead {
    message: Arc<Message>,
    redelivered: bool,
}

/// A message that is handed out.
#[derive(Debug, Clone)]
pub(super) struct Lease {
    pub(super) seq: u64,
    pub(super) message: Arc<Message>,
    pub(super) redelivered: bool,
}

/// What a consumer does next.
#[derive(Debug)]
pub(super) enum Step {
    /// Here is a message. `first` means that the queue's mark moved, which is to be committed soon.
    Take { lease: Lease, first: bool },
    /// Read this from the file, then ask again.
    Load(Plan),
    /// Ask again after a change.
    Wait,
    /// The file could not be read.
    Failed(StoreError),
}

/// What to read from the file: single messages that were returned, then from the cursor on.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) returned: Vec<u64>,
    pub(super) from: u64,
    pub(super) to: u64,
}

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    /// Single messages that had been returned.
    pub(super) returned: Vec<(u64, Arc<Message>)>,
    /// Messages from `from` on.
    pub(super) run: Vec<(u64, Arc<Message>)>,
    /// Where the read began, and where the next one begins.
    pub(super) from: u64,
    pub(super) cursor: u64,
}

impl Queue {
    pub(super) fn new(id: u32, arguments: Arguments, counts: Counts) -> Self {
        let state = State { counts, delivered: counts.delivered, ..State::default() };
        Self {
            id,
            name: arguments.name.clone(),
            arguments: Mutex::new(arguments),
            state: Mutex::new(state),
            changed: Notify::new(),
        }
    }

    pub(super) fn arguments(&self) -> Arguments {
        lock(&self.arguments).clone()
    }

    pub(super) fn set_arguments(&self, arguments: Arguments) {
        *lock(&self.arguments) = arguments;
    }

    /// Most messages and most bytes of bodies.
    pub(super) fn limits(&self) -> (Option<u64>, Option<u64>) {
        let arguments = lock(&self.arguments);
        (arguments.max_length, arguments.max_length_bytes)
    }

    pub(super) fn changed(&self) -> &Notify {
        &self.changed
    }

    pub(super) fn depth(&self) -> Depth {
        let state = lock(&self.state);
        Depth {
            ready: state.counts.messages.saturating_sub(state.leased + state.settling),
            consumers: u32::try_from(state.consumers.len()).unwrap_or(u32::MAX),
        }
    }

    /// The numbers as a commit should write them: with the mark as it is now.
    pub(super) fn counts(&self) -> Counts {
        let state = lock(&self.state);
        Counts { delivered: state.delivered, ..state.counts }
    }

    /// Attaches a consumer and gives it a number.
    pub(super) fn attach(&self) -> u64 {
        let mut state = lock(&self.state);
        let consumer = state.next_consumer;
        state.next_consumer += 1;
        state.consumers.push_back(consumer);
        consumer
    }

    /// Detaches a consumer and takes back what it held, all together.
    pub(super) fn detach(&self, consumer: u64, held: Vec<Lease>) {
        let mut state = lock(&self.state);
        state.consumers.retain(|other| *other != consumer);
        state.idle.remove(&consumer);
        state.leased = state.leased.saturating_sub(held.len() as u64);
        for lease in held {
            state.put_back(lease);
        }
        if state.consumers.is_empty() {
            state.forget();
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// What `consumer` may do now.
    pub(super) fn step(&self, consumer: u64) -> Step {
        let exclusive = lock(&self.arguments).consumers == Consumers::SingleActive;
        let mut state = lock(&self.state);
        if exclusive && state.consumers.front() != Some(&consumer) {
            return Step::Wait;
        }
        if let Some(failure) = state.failure.take() {
            return Step::Failed(failure);
        }
        if state.settling >= MAX_SETTLING {
            return Step::Wait;
        }
        let step = state.step();
        match step {
            Step::Wait => {
                state.idle.insert(consumer);
            }
            Step::Take { .. } => {
                state.idle.remove(&consumer);
                state.last = Some(consumer);
            }
            Step::Load(_) | Step::Failed(_) => {}
        }
        step
    }

    /// Whether `consumer` got the last message and another one has nothing to do: then that one should have its turn
    /// first, as with a broker that deals them out.
    pub(super) fn is_anothers_turn(&self, consumer: u64) -> bool {
        let state = lock(&self.state);
        state.last == Some(consumer) && state.idle.iter().any(|other| *other != consumer)
    }

    /// A message was acknowledged; the writer has been or will be told.
    pub(super) fn settle(&self, messages: u64) {
        let mut state = lock(&self.state);
        state.leased = state.leased.saturating_sub(messages);
        state.settling += messages;
    }

    /// The end of a read, however it ended.
    pub(super) fn loaded(&self, result: Result<Loaded, StoreError>) {
        let mut state = lock(&self.state);
        state.loading = false;
        match result {
            Ok(loaded) => state.keep(loaded),
            Err(failure) => state.failure = Some(failure),
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// A commit is durable: `counts` are in the file, `settled` messages left it, `published` ones came.
    pub(super) fn committed(&self, counts: Counts, settled: u64, published: Vec<(u64, Arc<Message>)>) {
        let mut state = lock(&self.state);
        state.settling = state.settling.saturating_sub(settled);
        for (seq, message) in published {
            state.offer(seq, message);
        }
        state.counts = counts;
        drop(state);
        self.changed.notify_waiters();
    }
}

impl State {
    fn step(&mut self) -> Step {
        let in_memory = self.ahead.first_key_value().map(|(seq, _)| *seq);
        let returned = self.returned.first().copied();
        let unread = (self.cursor < self.counts.next).then_some(self.cursor);
        let in_file = [returned, unread].into_iter().flatten().min();
        match (in_memory, in_file) {
            (Some(seq), in_file) if in_file.is_none_or(|other| seq < other) => self.take(seq),
            (_, None) => Step::Wait,
            // Another consumer reads already.
            (_, Some(_)) if self.loading => Step::Wait,
            (_, Some(_)) => {
                self.loading = true;
                let returned = self.returned.iter().copied().take(AHEAD_MESSAGES / 16).collect();
                Step::Load(Plan { returned, from: self.cursor, to: self.counts.next })
            }
        }
    }

    fn take(&mut self, seq: u64) -> Step {
        let Some(Ahead { message, redelivered }) = self.ahead.remove(&seq) else { return Step::Wait };
        self.ahead_bytes = self.ahead_bytes.saturating_sub(message.weight());
        self.leased += 1;
        let first = seq >= self.delivered;
        if first {
            self.delivered = seq + 1;
        }
        Step::Take { lease: Lease { seq, message, redelivered }, first }
    }

    fn has_room(&self, weight: usize) -> bool {
        self.ahead.is_empty() || (self.ahead_bytes + weight <= AHEAD_BYTES && self.ahead.len() < AHEAD_MESSAGES)
    }

    fn put(&mut self, seq: u64, message: Arc<Message>, redelivered: bool) {
        self.ahead_bytes += message.weight();
        self.ahead.insert(seq, Ahead { message, redelivered });
    }

    fn put_back(&mut self, lease: Lease) {
        if self.has_room(lease.message.weight()) {
            self.put(lease.seq, lease.message, true);
        } else {
            self.returned.insert(lease.seq);
        }
    }

    /// Keeps a message that was just published, if it is the very next one and somebody is there to take it.
    fn offer(&mut self, seq: u64, message: Arc<Message>) {
        if seq == self.cursor && !self.consumers.is_empty() && !self.loading && self.has_room(message.weight()) {
            self.put(seq, message, false);
            self.cursor = seq + 1;
        }
    }

    fn keep(&mut self, loaded: Loaded) {
        if self.consumers.is_empty() {
            return;
        }
        for (seq, message) in loaded.returned {
            if self.returned.remove(&seq) {
                self.put(seq, message, true);
            }
        }
        // All consumers went and one came while this was read: then the cursor went back, and what was read is not
        // the next piece any more.
        if loaded.from == self.cursor {
            for (seq, message) in loaded.run {
                let redelivered = seq < self.delivered;
                self.put(seq, message, redelivered);
            }
            self.cursor = loaded.cursor;
        }
    }

    /// Nobody takes from the queue now: its messages are in the file, and need not be in memory too.
    ///
    /// Messages are handed out lowest first, so whatever was never handed out is above all that was: the cursor can
    /// go back over it without meeting a message twice.
    fn forget(&mut self) {
        for (seq, kept) in std::mem::take(&mut self.ahead) {
            if kept.redelivered {
                self.returned.insert(seq);
            } else {
                self.cursor = self.cursor.min(seq);
            }
        }
        self.ahead_bytes = 0;
    }
}
