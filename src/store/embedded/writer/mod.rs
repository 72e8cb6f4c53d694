//! The one thread that writes.
//!
//! It takes what waits, applies all of it in one transaction, commits it once, and answers everybody: while one commit
//! is on its way to the disk, the next group gathers. It sleeps without a time-out while there is nothing to do.
//!
//! **A commit that fails.** redb refuses everything after an I/O error until the file is opened again, so it is
//! (a fraction of a millisecond with quick repair). Each commit writes its number; the number found tells whether the
//! commit that failed is in the file after all, so the answer is never a guess.
//!
//! **A full disk.** Nothing that was committed is overwritten, so even a deletion needs room. The folder keeps a
//! spare file for that: it is deleted, acknowledgements go on in small groups, and publishes are refused until the
//! spare file fits again, or until enough was deleted to have room inside the file.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redb::Database;

use self::compaction::Compaction;
use super::file;
use super::folder::is_full;
use super::queue::{Queue, lock};
use super::shared::{Ack, Control, Inbox, Publish, Shared};
use super::topology::{self, Routes};
use super::transaction::{self, Prepared};
use crate::store::{Connection, PublishError, StoreError};

mod compaction;
mod controls;

/// How long acknowledgements and marks wait for company. The port promises 10 ms with the commit included.
const LINGER: Duration = Duration::from_millis(4);
/// Most publishes, and most bytes of bodies, in one transaction: what one waits for another.
const GROUP_PUBLISHES: usize = 1024;
const GROUP_BYTES: usize = 16 << 20;
/// Most acknowledgements in one transaction.
const GROUP_ACKS: usize = 4096;
/// The same while the disk is full: what they touch must fit into the spare room.
const GROUP_ACKS_FULL: usize = 128;
/// Bytes of bodies that must have been deleted on a full disk before a publish is tried without the spare file.
const ROOM_INSIDE: u64 = 8 << 20;
/// Between two tries of what failed.
const RETRY: Duration = Duration::from_millis(250);

/// What waited, taken together.
#[derive(Debug, Default)]
struct Group {
    controls: Vec<Control>,
    publishes: Vec<Publish>,
    acks: Vec<Ack>,
    marks: Vec<Arc<Queue>>,
    reopen: bool,
    last: bool,
}

/// The writer's own state.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    /// The number of the last commit.
    commits: u64,
    /// Acknowledged, but the commit failed.
    unsettled: Vec<Ack>,
    trouble: Trouble,
    retry_at: Option<Instant>,
    /// When the spare file was last tried on a full disk.
    probed: Option<Instant>,
    compaction: Compaction,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Trouble {
    None,
    /// No room. So many bytes were deleted since.
    Full {
        freed: u64,
        reason: String,
    },
    /// The file cannot be opened.
    Down(StoreError),
}

/// How a commit ended.
enum Commit {
    Done(Vec<Result<(), PublishError>>),
    Failed(redb::Error),
}

impl Writer {
    /// `commits` is the number of the last commit in the file.
    pub(super) fn new(shared: Arc<Shared>, commits: u64) -> Self {
        Self {
            shared,
            commits,
            unsettled: Vec::new(),
            trouble: Trouble::None,
            retry_at: None,
            probed: None,
            compaction: Compaction::default(),
        }
    }

    /// Works until it is told to stop and nothing waits any more.
    pub(super) fn run(mut self) {
        if self.shared.folder.keep_spare().is_err() {
            self.trouble = Trouble::Full { freed: 0, reason: "no room for the spare file".to_owned() };
        }
        loop {
            let group = self.wait();
            let last = group.last;
            self.work(group);
            if last {
                break;
            }
        }
        file::close(self.shared.database.write().unwrap_or_else(PoisonError::into_inner).take());
        self.shared.folder.unlock();
    }

    fn wait(&self) -> Group {
        let mut inbox = self.shared.inbox();
        loop {
            let now = Instant::now();
            let at_once = !inbox.publishes.is_empty() || !inbox.controls.is_empty() || inbox.reopen || inbox.stop;
            let lazy = inbox.lazy_since.map(|since| since + LINGER);
            let due = [lazy, self.retry_at, self.compaction.due].into_iter().flatten().min();
            if at_once || due.is_some_and(|due| due <= now) {
                return take(&mut inbox);
            }
            inbox = self.sleep(inbox, due.map(|due| due - now));
        }
    }

    fn sleep<'a>(&self, inbox: MutexGuard<'a, Inbox>, time: Option<Duration>) -> MutexGuard<'a, Inbox> {
        let wake = &self.shared.wake;
        match time {
            None => wake.wait(inbox).unwrap_or_else(PoisonError::into_inner),
            Some(time) => wake.wait_timeout(inbox, time).unwrap_or_else(PoisonError::into_inner).0,
        }
    }

    fn work(&mut self, group: Group) {
        let Group { controls, publishes, mut acks, marks, reopen, .. } = group;
        if (reopen && self.is_poisoned()) || matches!(self.trouble, Trouble::Down(_)) {
            self.reopen();
        }
        for control in controls {
            self.control(control);
        }
        if !self.unsettled.is_empty() {
            acks.splice(0..0, std::mem::take(&mut self.unsettled));
        }
        self.retry_at = None;
        if self.trouble == Trouble::None {
            self.commit_group(acks, publishes, &marks);
        } else {
            self.work_in_trouble(acks, publishes, &marks);
        }
        self.compact_if_worthwhile();
    }

    /// The usual case: everything in one commit.
    fn commit_group(&mut self, mut acks: Vec<Ack>, publishes: Vec<Publish>, marks: &[Arc<Queue>]) {
        while acks.len() > GROUP_ACKS {
            let rest = acks.split_off(GROUP_ACKS);
            let first = std::mem::replace(&mut acks, rest);
            if let Commit::Failed(error) = self.commit(&first, &[], &[]) {
                self.unsettled = first;
                self.unsettled.append(&mut acks);
                return self.failed(&error, publishes, marks);
            }
        }
        if acks.is_empty() && publishes.is_empty() && marks.is_empty() {
            return;
        }
        match self.commit(&acks, &publishes, marks) {
            Commit::Done(answers) => answer(publishes, answers),
            Commit::Failed(error) => {
                self.unsettled = acks;
                self.failed(&error, publishes, marks);
            }
        }
    }

    /// The disk is full, or the file cannot be opened: settle what can be settled, refuse the rest.
    fn work_in_trouble(&mut self, mut acks: Vec<Ack>, publishes: Vec<Publish>, marks: &[Arc<Queue>]) {
        while !acks.is_empty() && matches!(self.trouble, Trouble::Full { .. }) {
            let rest = acks.split_off(acks.len().min(GROUP_ACKS_FULL));
            let first = std::mem::replace(&mut acks, rest);
            match self.commit(&first, &[], marks) {
                Commit::Done(_) => self.freed(first.iter().map(|ack| ack.bytes).sum()),
                Commit::Failed(error) => {
                    self.unsettled = first;
                    self.note(&error);
                    break;
                }
            }
        }
        self.unsettled.append(&mut acks);
        match self.trouble.clone() {
            Trouble::None => {}
            Trouble::Full { freed, reason } => {
                if self.spare_fits() || (freed >= ROOM_INSIDE && self.unsettled.is_empty()) {
                    self.trouble = Trouble::None;
                    let acks = std::mem::take(&mut self.unsettled);
                    return self.commit_group(acks, publishes, marks);
                }
                refuse(publishes, &PublishError::Refused(format!("the disk is full: {reason}")));
            }
            Trouble::Down(error) => refuse(publishes, &PublishError::NotConnected(error.to_string())),
        }
        if !self.unsettled.is_empty() || matches!(self.trouble, Trouble::Down(_)) {
            self.retry_at = Some(Instant::now() + RETRY);
        }
    }

    /// Whether there is room on the disk again. Tried now and then, for it is found out by writing.
    fn spare_fits(&mut self) -> bool {
        if self.probed.is_some_and(|probed| probed.elapsed() < RETRY) {
            return false;
        }
        let fits = self.shared.folder.keep_spare().is_ok();
        self.probed = Some(Instant::now());
        fits
    }

    fn freed(&mut self, bytes: u64) {
        if let Trouble::Full { freed, .. } = &mut self.trouble {
            *freed += bytes;
        }
    }

    /// A commit failed, and the file was opened again: nothing of it is stored.
    fn failed(&mut self, error: &redb::Error, publishes: Vec<Publish>, marks: &[Arc<Queue>]) {
        self.note(error);
        if matches!(self.trouble, Trouble::Full { .. }) {
            // The acknowledgements at once, with the room that the spare file left.
            let acks = std::mem::take(&mut self.unsettled);
            self.work_in_trouble(acks, Vec::new(), marks);
            refuse(publishes, &PublishError::Refused(format!("the disk is full: {error}")));
        } else if matches!(self.trouble, Trouble::Down(_)) {
            refuse(publishes, &PublishError::Unknown(error.to_string()));
        } else {
            refuse(publishes, &PublishError::Refused(format!("the disk failed: {error}")));
        }
        if !self.unsettled.is_empty() || matches!(self.trouble, Trouble::Down(_)) {
            self.retry_at = Some(Instant::now() + RETRY);
        }
    }

    /// Remembers what kind of trouble this is.
    fn note(&mut self, error: &redb::Error) {
        if matches!(self.trouble, Trouble::Down(_)) {
            return;
        }
        if let redb::Error::Io(source) = error
            && is_full(source)
        {
            self.shared.folder.give_up_spare();
            if self.trouble == Trouble::None {
                tracing::warn!(folder = %self.shared.folder.path().display(), "the disk is full: messages are refused until there is room");
            }
            self.probed = Some(Instant::now());
            self.trouble = Trouble::Full { freed: 0, reason: source.to_string() };
        } else {
            tracing::error!(folder = %self.shared.folder.path().display(), %error, "a commit failed");
        }
    }

    /// Commits one transaction. If that fails, opens the file again and looks whether it is there after all.
    fn commit(&mut self, acks: &[Ack], publishes: &[Publish], marks: &[Arc<Queue>]) -> Commit {
        let number = self.commits + 1;
        let mut effects = None;
        let result = self.with_database(|database| {
            let prepared = transaction::prepare(database, number, acks, publishes, marks)?;
            let Prepared { transaction, effects: prepared } = prepared;
            let refused = prepared.answers.iter().all(Result::is_err);
            if acks.is_empty() && marks.is_empty() && refused {
                transaction.abort()?;
                effects = Some(prepared);
                return Ok(false);
            }
            effects = Some(prepared);
            transaction.commit()?;
            Ok(true)
        });
        let stored = match result {
            Ok(written) => {
                self.commits += u64::from(written);
                Ok(())
            }
            Err(error) => {
                self.reopen();
                if self.commits == number { Ok(()) } else { Err(error) }
            }
        };
        match (stored, effects) {
            (Ok(()), Some(effects)) => Commit::Done(effects.apply()),
            (Ok(()), None) => Commit::Done(Vec::new()),
            (Err(error), _) => Commit::Failed(error),
        }
    }

    /// Runs something on the file.
    fn with_database<T>(&self, action: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, redb::Error> {
        let slot = self.shared.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = slot.as_ref() else { return Err(redb::Error::DatabaseClosed) };
        file::guarded(|| action(database))
    }

    fn is_poisoned(&self) -> bool {
        self.with_database(|database| Ok(database.begin_write()?.abort()?)).is_err()
    }

    /// Closes the file and opens it again.
    fn reopen(&mut self) {
        let mut slot = self.shared.database.write().unwrap_or_else(PoisonError::into_inner);
        file::close(slot.take());
        let opened = file::open_existing(&self.shared.folder.database())
            .map_err(|error| StoreError::Disk(error.to_string()))
            .and_then(|database| match file::guarded(|| file::read_commits(&database)) {
                Ok(commits) => Ok((database, commits)),
                Err(error) => {
                    file::close(Some(database));
                    Err(StoreError::Disk(error.to_string()))
                }
            });
        match opened {
            Ok((database, commits)) => {
                *slot = Some(database);
                drop(slot);
                self.commits = commits;
                if matches!(self.trouble, Trouble::Down(_)) {
                    self.trouble = Trouble::None;
                    self.shared.connection.send_replace(Connection::Up);
                }
            }
            Err(error) => {
                drop(slot);
                if self.trouble != Trouble::Down(error.clone()) {
                    tracing::error!(%error, "the file cannot be opened again; this is tried until it can");
                    self.shared.connection.send_replace(Connection::Down(error.clone()));
                }
                self.trouble = Trouble::Down(error);
                self.retry_at = Some(Instant::now() + RETRY);
            }
        }
    }
}

fn take(inbox: &mut Inbox) -> Group {
    let mut bytes = 0;
    let mut publishes = Vec::new();
    while let Some(next) = inbox.publishes.front() {
        let weight = next.message.weight();
        let size = weight.saturating_mul(next.queues.len());
        if !publishes.is_empty() && (publishes.len() >= GROUP_PUBLISHES || bytes + size > GROUP_BYTES) {
            break;
        }
        bytes += size;
        inbox.publish_bytes = inbox.publish_bytes.saturating_sub(weight);
        publishes.extend(inbox.publishes.pop_front());
    }
    inbox.lazy_since = None;
    Group {
        publishes,
        controls: inbox.controls.drain(..).collect(),
        acks: std::mem::take(&mut inbox.acks),
        marks: std::mem::take(&mut inbox.marks),
        reopen: std::mem::take(&mut inbox.reopen),
        last: inbox.stop && inbox.publishes.is_empty(),
    }
}

fn answer(publishes: Vec<Publish>, answers: Vec<Result<(), PublishError>>) {
    for (publish, result) in publishes.into_iter().zip(answers) {
        // A caller that has gone is told nothing; the message is stored all the same.
        let _ = publish.answer.send(result);
    }
}

fn refuse(publishes: Vec<Publish>, error: &PublishError) {
    for publish in publishes {
        let _ = publish.answer.send(Err(error.clone()));
    }
}
