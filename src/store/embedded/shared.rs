//! What the writer, the readers and the handles of one open folder share.
//!
//! Locks are held briefly and never two at once, but for the file's: whoever reads or writes holds it shared, and the
//! writer holds it alone to open the file again after an I/O error, or to give space back.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::time::Instant;

use redb::Database;
use tokio::sync::{oneshot, watch};

use super::folder::Folder;
use super::queue::{Queue, lock};
use super::topology::Routes;
use crate::core::deactivation::Deactivation;
use crate::core::message::Message;
use crate::core::topology::Topology;
use crate::store::mailbox::Mailbox;
use crate::store::{Connection, PublishError, StoreError};

/// Publishes that may wait for the writer, and their bytes. Beyond it a publish is refused at once rather than later:
/// at 8,000 a second the first is two seconds of work.
const WAITING_PUBLISHES: usize = 16_384;
const WAITING_BYTES: usize = 128 << 20;

/// The state of one open folder.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) folder: Folder,
    /// `None` while the file cannot be opened, and after the end.
    pub(super) database: RwLock<Option<Database>>,
    pub(super) routes: RwLock<Routes>,
    /// By virtual host and processor; all of them, for there is one a processor at most.
    pub(super) deactivations: Mutex<HashMap<(String, String), Deactivation>>,
    pub(super) connection: watch::Sender<Connection>,
    pub(super) mailbox: Arc<Mailbox>,
    inbox: Mutex<Inbox>,
    pub(super) wake: Condvar,
    closed: AtomicBool,
}

/// What waits for the writer.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    pub(super) controls: VecDeque<Control>,
    pub(super) publishes: VecDeque<Publish>,
    pub(super) publish_bytes: usize,
    pub(super) acks: Vec<Ack>,
    /// Queues whose mark of what was delivered has moved.
    pub(super) marks: Vec<Arc<Queue>>,
    /// Since when `acks` or `marks` wait.
    pub(super) lazy_since: Option<Instant>,
    /// A reader met an I/O error.
    pub(super) reopen: bool,
    pub(super) stop: bool,
}

/// A message on its way to its queues.
#[derive(Debug)]
pub(super) struct Publish {
    pub(super) queues: Vec<Arc<Queue>>,
    pub(super) head: Vec<u8>,
    pub(super) message: Arc<Message>,
    pub(super) answer: oneshot::Sender<Result<(), PublishError>>,
}

/// A message that is to leave its queue.
#[derive(Debug, Clone)]
pub(super) struct Ack {
    pub(super) queue: Arc<Queue>,
    pub(super) seq: u64,
    pub(super) bytes: u64,
}

/// The rare requests.
#[derive(Debug)]
pub(super) enum Control {
    Declare {
        vhost: String,
        store: String,
        topology: Topology,
        answer: std::sync::mpsc::SyncSender<Result<(), StoreError>>,
    },
    Deactivate {
        vhost: String,
        processor: String,
        record: Deactivation,
        answer: oneshot::Sender<Result<(), StoreError>>,
    },
    Reactivate {
        vhost: String,
        processor: String,
        answer: oneshot::Sender<Result<(), StoreError>>,
    },
    /// What a bug would do.
    #[cfg(test)]
    Panic,
    /// What a disk does that hangs.
    #[cfg(test)]
    Hang(std::time::Duration),
}

impl Shared {
    pub(super) fn new(
        folder: Folder,
        database: Database,
        routes: Routes,
        deactivations: HashMap<(String, String), Deactivation>,
    ) -> Self {
        // Never the same twice: a request that an earlier process left has a caller that is gone.
        let mailbox = Mailbox::closed("");
        mailbox.open(&format!("amq.gen-{}", uuid::Uuid::now_v7()));
        Self {
            folder,
            database: RwLock::new(Some(database)),
            routes: RwLock::new(routes),
            deactivations: Mutex::new(deactivations),
            connection: watch::Sender::new(Connection::Up),
            mailbox: Arc::new(mailbox),
            inbox: Mutex::default(),
            wake: Condvar::new(),
            closed: AtomicBool::new(false),
        }
    }

    pub(super) fn inbox(&self) -> std::sync::MutexGuard<'_, Inbox> {
        lock(&self.inbox)
    }

    /// Hands a message to the writer, or refuses it because too much waits already.
    pub(super) fn publish(&self, publish: Publish) -> Result<(), PublishError> {
        let weight = publish.message.weight();
        let mut inbox = self.inbox();
        if inbox.stop {
            return Err(PublishError::NotConnected("the store is closed".to_owned()));
        }
        let full = inbox.publishes.len() >= WAITING_PUBLISHES || inbox.publish_bytes + weight > WAITING_BYTES;
        if full && !inbox.publishes.is_empty() {
            return Err(PublishError::Refused("the disk is too slow for what arrives; repeat later".to_owned()));
        }
        inbox.publish_bytes += weight;
        inbox.publishes.push_back(publish);
        drop(inbox);
        self.wake.notify_one();
        Ok(())
    }

    /// Hands acknowledgements to the writer, which commits them soon.
    pub(super) fn acknowledge(&self, acks: impl IntoIterator<Item = Ack>) {
        let mut inbox = self.inbox();
        inbox.acks.extend(acks);
        self.wake_lazily(inbox);
    }

    /// Tells the writer that a queue's mark moved.
    pub(super) fn mark(&self, queue: &Arc<Queue>) {
        let mut inbox = self.inbox();
        if !inbox.marks.iter().any(|other| other.id == queue.id) {
            inbox.marks.push(queue.clone());
        }
        self.wake_lazily(inbox);
    }

    fn wake_lazily(&self, mut inbox: std::sync::MutexGuard<'_, Inbox>) {
        let first = inbox.lazy_since.is_none();
        inbox.lazy_since.get_or_insert_with(Instant::now);
        drop(inbox);
        // The writer knows from the first one when to act; waking it for each would cost as much as the commit.
        if first {
            self.wake.notify_one();
        }
    }

    /// Hands a rare request to the writer.
    pub(super) fn control(&self, control: Control) -> Result<(), StoreError> {
        let mut inbox = self.inbox();
        if inbox.stop {
            return Err(StoreError::Closed);
        }
        inbox.controls.push_back(control);
        drop(inbox);
        self.wake.notify_one();
        Ok(())
    }

    /// A reader met an I/O error, after which redb answers nothing until the file is opened again.
    pub(super) fn request_reopen(&self) {
        self.inbox().reopen = true;
        self.wake.notify_one();
    }

    /// Lets the writer finish what waits, and end.
    pub(super) fn stop(&self) {
        self.inbox().stop = true;
        self.closed.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// The writer has ended, as it was told to or by a bug: nothing is taken any more, and whoever waits is told.
    pub(super) fn abandon(&self) {
        self.stop();
        let stopped = Inbox { stop: true, ..Inbox::default() };
        let Inbox { controls, publishes, .. } = std::mem::replace(&mut *self.inbox(), stopped);
        // Their callers wait for an answer that now can't come.
        drop((controls, publishes));
        self.connection.send_replace(Connection::Down(StoreError::Closed));
        self.mailbox.close("the store is closed");
        let queues: Vec<_> = self.routes.read().unwrap_or_else(PoisonError::into_inner).queues().cloned().collect();
        for queue in queues {
            queue.changed().notify_waiters();
        }
    }

    /// Whether [`Self::stop`] was called.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}
