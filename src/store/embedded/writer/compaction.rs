//! Giving space back.
//!
//! redb uses the room of deleted messages again, but keeps the file as long as it was. Moving what is left to its
//! front takes as long as what is left is large, and everything waits meanwhile; so it is done when little is left.

use std::fs;
use std::time::{Duration, Instant};

use super::{PoisonError, Trouble, Writer};

/// A smaller file is left as it is.
const WORTHWHILE_BYTES: u64 = 32 << 20;
/// No more than this is moved: some tens of milliseconds.
const LEFT_BYTES: u64 = 16 << 20;
/// And only if the file is so many times larger than what is left.
const SHRINKS_TO: u64 = 4;
/// What a message takes beside its body, roughly.
const OVERHEAD: u64 = 1024;
/// At most once in this time: a queue that fills and drains again and again keeps its file.
const PAUSE: Duration = Duration::from_secs(10);

impl Writer {
    /// Gives space back if the file is large and nearly empty, and nothing else is to be done.
    pub(super) fn compact_if_worthwhile(&mut self) {
        self.compact_at = None;
        if matches!(self.trouble, Trouble::Down(_)) || !self.is_worthwhile() {
            return;
        }
        let now = Instant::now();
        let earliest = self.compacted.map_or(now, |last| last + PAUSE);
        let busy = !self.shared.inbox().publishes.is_empty();
        if earliest > now || busy {
            self.compact_at = Some(earliest.max(now + Duration::from_millis(20)));
            return;
        }
        self.compacted = Some(now);
        self.compact();
    }

    fn is_worthwhile(&self) -> bool {
        let file = fs::metadata(self.shared.folder.database()).map_or(0, |found| found.len());
        if file < WORTHWHILE_BYTES {
            return false;
        }
        let left: u64 = self
            .shared
            .routes
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .queues()
            .map(|queue| queue.counts())
            .map(|counts| counts.bytes + counts.messages * OVERHEAD)
            .sum();
        left <= LEFT_BYTES && left.saturating_mul(SHRINKS_TO) <= file
    }

    fn compact(&mut self) {
        let mut slot = self.shared.database.write().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = slot.as_mut() else { return };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| database.compact()));
        drop(slot);
        match result {
            Ok(Ok(_)) => {}
            Ok(Err(redb::CompactionError::Storage(error))) => self.after_failed_compaction(&redb::Error::from(error)),
            Ok(Err(error)) => tracing::debug!(%error, "the file was not made smaller"),
            Err(_) => self.reopen(),
        }
    }

    fn after_failed_compaction(&mut self, error: &redb::Error) {
        self.reopen();
        self.note(error);
    }
}
