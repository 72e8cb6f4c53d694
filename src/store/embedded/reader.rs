//! Reads messages ahead of the consumers, off the async threads, beside the writer's fsync.

use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::Duration;

use redb::{Database, ReadableDatabase};

use super::file::{self, MESSAGES};
use super::queue::{Loaded, Plan, Queue};
use super::record;
use super::shared::Shared;
use crate::core::message::Message;
use crate::store::StoreError;

/// Most bytes of records, and most messages, of one read. One message is always read, whatever its size.
const READ_BYTES: usize = 4 << 20;
const READ_MESSAGES: usize = 512;
/// After an I/O error, how long the writer has to open the file again before consumers are told.
const REOPEN_TRIES: u32 = 100;
const REOPEN_WAIT: Duration = Duration::from_millis(10);

/// One read under way. When it ends in any way, also by being thrown away unrun, the queue is told.
#[derive(Debug)]
pub(super) struct Read {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    plan: Option<Plan>,
}

impl Read {
    pub(super) fn new(shared: Arc<Shared>, queue: Arc<Queue>, plan: Plan) -> Self {
        Self { shared, queue, plan: Some(plan) }
    }

    /// Reads, and puts the result into the queue. Blocks.
    pub(super) fn run(mut self) {
        if let Some(plan) = self.plan.take() {
            let result = load(&self.shared, self.queue.id, &plan);
            self.queue.loaded(result);
        }
    }
}

impl Drop for Read {
    fn drop(&mut self) {
        if self.plan.is_some() {
            self.queue.loaded(Ok(Loaded { cursor: u64::MAX, from: u64::MAX, ..Loaded::default() }));
        }
    }
}

fn load(shared: &Shared, queue: u32, plan: &Plan) -> Result<Loaded, StoreError> {
    let mut last = String::new();
    for _ in 0..REOPEN_TRIES {
        let slot = shared.database.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(database) = slot.as_ref() {
            match file::guarded(|| read(database, queue, plan)) {
                Ok(loaded) => return Ok(loaded),
                Err(error @ (redb::Error::Io(_) | redb::Error::PreviousIo)) => last = error.to_string(),
                Err(error) => {
                    return Err(StoreError::Corrupt(format!(
                        "{} is damaged: {error}; restore it from a copy, or move it away to begin anew",
                        shared.folder.database().display()
                    )));
                }
            }
        } else if shared.inbox().stop {
            return Err(StoreError::Closed);
        }
        drop(slot);
        shared.request_reopen();
        thread::sleep(REOPEN_WAIT);
    }
    Err(StoreError::Disk(format!("{} cannot be read: {last}", shared.folder.database().display())))
}

fn read(database: &Database, queue: u32, plan: &Plan) -> Result<Loaded, redb::Error> {
    let transaction = database.begin_read()?;
    let messages = transaction.open_table(MESSAGES)?;
    let mut loaded = Loaded { from: plan.from, cursor: plan.from, ..Loaded::default() };
    let mut bytes = 0;
    for seq in &plan.returned {
        let found = messages.get((queue, *seq))?;
        let Some(record) = found else {
            return Err(redb::Error::Corrupted(format!("message {seq} of queue {queue} is missing")));
        };
        bytes += record.value().len();
        loaded.returned.push((*seq, decode(record.value())?));
        if bytes >= READ_BYTES {
            return Ok(loaded);
        }
    }
    for entry in messages.range((queue, plan.from)..(queue, plan.to))? {
        let (key, record) = entry?;
        let seq = key.value().1;
        bytes += record.value().len();
        let full = bytes > READ_BYTES || loaded.run.len() >= READ_MESSAGES;
        if full && !(loaded.run.is_empty() && loaded.returned.is_empty()) {
            return Ok(loaded);
        }
        loaded.run.push((seq, decode(record.value())?));
        loaded.cursor = seq + 1;
    }
    loaded.cursor = plan.to;
    Ok(loaded)
}

fn decode(bytes: &[u8]) -> Result<Arc<Message>, redb::Error> {
    record::decode(bytes).map(Arc::new).map_err(|error| redb::Error::Corrupted(error.to_string()))
}
