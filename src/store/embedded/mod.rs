//! The embedded store: durable queues in one file, for runs without a broker.
//!
//! Inputs: a folder, topologies, messages. Outputs: what the port promises, on a local disk. Must not: know of
//! processors, retries or plans.
//!
//! # How it keeps its promises
//!
//! One redb file holds everything: messages under `(queue, sequence number)`, a few counters a queue, exchanges,
//! bindings, deactivation records. One thread writes ([`writer`]); whatever waits for it goes into one transaction and
//! one commit, which is durable before anybody is answered. So:
//!
//! - **A crash at any moment** leaves the last commit. What was answered is in it; a transaction is there whole or not
//!   at all, and so is a publish that was routed to several queues.
//! - **Leases are in memory only** ([`queue`]): what was held comes back by itself, at its old place, because the key
//!   says where that is. A mark a queue says up to where messages had been handed out, and is committed with what
//!   comes next, at the latest a few milliseconds later; a crash before that shows a message that had been handed out
//!   as fresh.
//! - **Acknowledgements are committed lazily**, within milliseconds; a crash before that delivers once more.
//! - **Opening reads no message**, and each commit records which pages are in use (redb's quick repair), so a file is
//!   open in milliseconds whatever it holds and however the last process ended.
//!
//! A message that goes to several queues is stored in each; if one of them is full, it is refused by all.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use redb::{Database, ReadableDatabase, ReadableTable};

use self::folder::Folder;
use self::handle::{COMMIT_TIMEOUT, Handle};
use self::queue::lock;
use self::shared::{Control, Shared};
use self::topology::Routes;
use self::writer::Writer;
use crate::core::deactivation::Deactivation;
use crate::core::topology::Topology;
use crate::store::{MessageStore, StoreError};

mod consumer;
mod file;
mod folder;
mod handle;
mod queue;
mod reader;
mod record;
mod shared;
mod topology;
mod transaction;
mod writer;

/// For the commit of a declaration, which may wait behind others.
const DECLARE_TIMEOUT: Duration = Duration::from_secs(10);

/// For the last commits and closing the file. Both take milliseconds unless the disk hangs.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error(
        "the data folder {} is in use by {}; stop that, or give this run another folder with --data",
        folder.display(),
        pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
    )]
    Locked {
        /// The folder.
        folder: PathBuf,
        /// The holder's process id, if it could be read.
        pid: Option<u32>,
    },
    /// The file is not ours, or is of a version that this program does not read.
    #[error("{} is not a file of this program: {detail}; move it away, or give this run another folder with --data", file.display())]
    Foreign {
        /// The file, untouched.
        file: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The file is ours, and damaged.
    #[error("{} is damaged: {detail}; restore it from a copy, or move it away to begin with an empty store", file.display())]
    Corrupt {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The folder or file cannot be read or written.
    #[error("{}: {source}; make it readable and writable for this user, or give this run another folder with --data", path.display())]
    Io {
        /// What could not be read or written.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// An open data folder. Cheap to clone; the folder is closed when the last clone, store and consumer are gone, or by
/// [`Broker::close`].
#[derive(Debug, Clone)]
pub struct Broker {
    inner: Arc<Inner>,
}

/// Ends the writer when the last handle goes.
#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    writer: Mutex<Option<Running>>,
}

/// The writer's thread.
#[derive(Debug)]
struct Running {
    thread: JoinHandle<()>,
    /// Gets nothing; its other end goes with the thread.
    ended: mpsc::Receiver<()>,
}

impl Broker {
    /// Opens the folder, and makes it if it is missing. Blocks for some milliseconds.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let folder = Folder::lock(dir)?;
        let path = folder.database();
        let database = file::open(&folder)?;
        let read = file::guarded(|| {
            Ok((Routes::read(&database)?, read_deactivations(&database)?, file::read_commits(&database)?))
        });
        let (routes, deactivations, commits) = match read {
            Ok(read) => read,
            Err(error) => {
                file::close(Some(database));
                return Err(OpenError::Corrupt { file: path, detail: error.to_string() });
            }
        };
        let shared = Arc::new(Shared::new(folder, database, routes, deactivations));
        let writer = Writer::new(shared.clone(), commits);
        let (ends, ended) = mpsc::sync_channel(0);
        let watched = shared.clone();
        let thread = thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || {
                let _ends: mpsc::SyncSender<()> = ends;
                // However it ends: nobody may wait for a writer that is gone.
                let _abandon = Abandon(watched);
                writer.run();
            })
            .map_err(|source| OpenError::Io { path: dir.to_owned(), source })?;
        Ok(Self { inner: Arc::new(Inner { shared, writer: Mutex::new(Some(Running { thread, ended })) }) })
    }

    /// As [`Broker::store_within`], with the default of `confirmTimeout`.
    pub fn store(&self, vhost: &str, name: &str, topology: &Topology) -> Result<Arc<dyn MessageStore>, StoreError> {
        self.store_within(vhost, name, topology, COMMIT_TIMEOUT)
    }

    /// Declares what is missing of the topology, unbinds what `name` had bound before and does not name any more, and
    /// returns the store. Blocks for one commit. Stores of one `vhost` share queues and exchanges by their names.
    /// A publish whose commit takes longer than `confirm_timeout` has an unknown outcome.
    pub fn store_within(
        &self,
        vhost: &str,
        name: &str,
        topology: &Topology,
        confirm_timeout: Duration,
    ) -> Result<Arc<dyn MessageStore>, StoreError> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.inner.shared.control(Control::Declare {
            vhost: vhost.to_owned(),
            store: name.to_owned(),
            topology: topology.clone(),
            answer,
        })?;
        answered.recv_timeout(DECLARE_TIMEOUT).map_err(|error| match error {
            mpsc::RecvTimeoutError::Timeout => StoreError::Disk(format!("no commit within {DECLARE_TIMEOUT:?}")),
            mpsc::RecvTimeoutError::Disconnected => StoreError::Closed,
        })??;
        let routes = self.inner.shared.routes.read().unwrap_or_else(PoisonError::into_inner);
        let queue = topology.queue.as_ref().and_then(|queue| routes.queue(vhost, &queue.name));
        Ok(Arc::new(Handle::new(self.inner.clone(), vhost, topology, queue, confirm_timeout)))
    }

    /// Bytes that the file takes, with the room in it that is free.
    pub fn used_bytes(&self) -> u64 {
        fs::metadata(self.inner.shared.folder.database()).map_or(0, |found| found.len())
    }

    /// Finishes what waits, closes the file and frees the folder. Stores of it answer `Closed` afterwards.
    pub fn close(&self) {
        self.inner.close();
    }
}

impl Inner {
    fn close(&self) {
        self.shared.stop();
        let Some(Running { thread, ended }) = lock(&self.writer).take() else { return };
        if ended.recv_timeout(CLOSE_TIMEOUT) == Err(mpsc::RecvTimeoutError::Timeout) {
            // What was confirmed is on the disk; the lock of the folder ends with the process.
            let folder = self.shared.folder.path().display();
            tracing::error!(%folder, "the disk did not take the last writes within {CLOSE_TIMEOUT:?}; not waiting for it");
            return;
        }
        // The writer catches what can panic in it; if it ended that way all the same, there is nothing left to do.
        let _ = thread.join();
    }
}

/// Tells everybody that the writer has ended.
struct Abandon(Arc<Shared>);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

fn read_deactivations(database: &Database) -> Result<HashMap<(String, String), Deactivation>, redb::Error> {
    let mut found = HashMap::new();
    for row in database.begin_read()?.open_table(file::DEACTIVATIONS)?.iter()? {
        let (key, value) = row?;
        let (vhost, processor) = key.value();
        found.insert((vhost.to_owned(), processor.to_owned()), topology::parse(value.value())?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
