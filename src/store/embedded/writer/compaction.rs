//! Giving space back.
//!
//! redb uses the room of deleted messages again, but keeps the file as long as it was. Moving what is left to its
//! front takes as long as what is left is large, and everything waits meanwhile; so it is done when little is left.

use std::fs;
use std::time::{Duration, Instant};

use super::{PoisonError, Trouble, Writer, file};

/// A smaller file is left as it is.
const WORTHWHILE_BYTES: u64 = 32 << 20;
/// The same when there is no message at all in it.
const WORTHWHILE_BYTES_EMPTY: u64 = 4 << 20;
/// No more than this is moved: some tens of milliseconds.
const LEFT_BYTES: u64 = 16 << 20;
/// And only if the file is so many times larger than what is left.
const SHRINKS_TO: u64 = 4;
/// What a message takes beside its body, roughly.
const OVERHEAD: u64 = 1024;
/// It waits for a moment in which nothing is committed, so that a drain ends first.
const QUIET: Duration = Duration::from_millis(100);
/// It waits no longer than this, and is done at most once in this time: a queue that fills and drains again and again
/// keeps its file.
const PAUSE: Duration = Duration::from_secs(10);

/// When the file was, and will be, made smaller.
#[derive(Debug, Default)]
pub(super) struct Compaction {
    /// When to look again.
    pub(super) due: Option<Instant>,
    wanted_since: Option<Instant>,
    /// The last commit when this was last looked at.
    seen: u64,
    /// When it was last done, and after which commit.
    done: Option<(Instant, u64)>,
}

impl Writer {
    /// Gives space back if the file is large and nearly empty, and nothing else is to be done.
    pub(super) fn compact_if_worthwhile(&mut self) {
        let worked = std::mem::replace(&mut self.compaction.seen, self.commits) != self.commits;
        self.compaction.due = None;
        if matches!(self.trouble, Trouble::Down(_)) || !self.is_worthwhile() {
            self.compaction.wanted_since = None;
            return;
        }
        let now = Instant::now();
        let wanted_since = *self.compaction.wanted_since.get_or_insert(now);
        let pause_ends = self.compaction.done.map_or(now, |(last, _)| last + PAUSE);
        if worked && now < wanted_since + PAUSE {
            self.compaction.due = Some(now + QUIET);
        } else if now < pause_ends {
            self.compaction.due = Some(pause_ends);
        } else {
            self.compaction.wanted_since = None;
            self.compaction.done = Some((now, self.commits));
            self.compact();
        }
    }

    fn is_worthwhile(&self) -> bool {
        // Nothing changed since: it would not become smaller.
        if self.compaction.done.is_some_and(|(_, commits)| commits == self.commits) {
            return false;
        }
        let file = fs::metadata(self.shared.folder.database()).map_or(0, |found| found.len());
        if file < WORTHWHILE_BYTES_EMPTY {
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
        left == 0 || (file >= WORTHWHILE_BYTES && left <= LEFT_BYTES && left.saturating_mul(SHRINKS_TO) <= file)
    }

    fn compact(&mut self) {
        let mut slot = self.shared.database.write().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = slot.as_mut() else { return };
        let result = file::guarded(|| Ok(database.compact()));
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
