//! One processor of a local run: what is wished for it, and the task that makes it so.
//!
//! Inputs: wishes, the latest of which counts. Output: a forwarder that runs or not, and what it reports. One task
//! owns all changes of one processor, so an old forwarder has always ended before the next one starts: two of them on
//! one queue would reorder.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{OwnedMutexGuard, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::launch::Launch;
use crate::forwarder::{ForwarderHandle, Hindrance, ProcessorState};
use crate::status::standing::Standing;
use crate::status::verdict::Missing;
use crate::store::{Connection, MessageStore, StoreError};
use crate::telemetry::metrics::ProcessorMetrics;

/// Between tries to remove the record of a deactivation.
const PURGE_PAUSE: Duration = Duration::from_millis(500);

/// What a store does besides publishing is bounded by itself; this is the net below.
const STORE_TIMEOUT: Duration = Duration::from_secs(10);

/// Of an object that is gone: until its record is left where it is.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(60);

/// What is wished for a processor.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    /// What it should do.
    pub(super) what: What,
    /// The value of the annotation that ends a deactivation when it is new.
    pub(super) reactivate: Option<String>,
}

/// What a processor should do.
#[derive(Debug, Clone)]
pub(super) enum What {
    /// Deliver.
    Run(Arc<Launch>),
    /// Nothing, because the user says so. A deactivation ends with it.
    Suspend(Arc<dyn MessageStore>),
    /// Nothing, because something that it names is missing.
    Wait(Missing),
    /// Nothing yet.
    Nothing,
    /// End, at this moment at the latest.
    End(Instant),
    /// End likewise, for good: a deactivation ends with it.
    Remove(Arc<dyn MessageStore>, Instant),
}

impl What {
    fn ends(&self) -> bool {
        matches!(self, Self::End(_) | Self::Remove(..))
    }
}

/// What a processor is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    /// Starting, or waiting for its predecessor on the same queue.
    Starting,
    /// Delivering, or deactivated: the forwarder says which.
    Running,
    /// Suspended.
    Suspended,
    /// Something is missing.
    Waiting(Missing),
    /// The plan could not be started.
    Failed(String),
}

/// What others see of a processor.
#[derive(Debug)]
struct View {
    phase: Phase,
    handles: Vec<Arc<ForwarderHandle>>,
    /// What forwarders that have ended left behind.
    before: Standing,
    last_handled: Option<String>,
}

/// The owner of one processor's task.
#[derive(Debug)]
pub(super) struct Keeper {
    /// `<namespace>.<name>`.
    dotted: String,
    wish: watch::Sender<Wish>,
    view: Arc<Mutex<View>>,
    task: Mutex<Option<JoinHandle<usize>>>,
    ended: CancellationToken,
}

/// The names and handles that stay the same as long as the object lives.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    /// `<namespace>/<name>`.
    pub(super) slashed: String,
    /// `<namespace>.<name>`: names the record of the deactivation.
    pub(super) dotted: String,
    pub(super) metrics: ProcessorMetrics,
}

impl Keeper {
    /// Starts the task, which waits for the first wish, and for the end of those that were removed under the same name:
    /// their record is not this one's. An annotation that is already there counts as handled.
    pub(super) fn new(identity: Identity, reactivate: Option<String>, predecessors: Vec<CancellationToken>) -> Self {
        let view = Arc::new(Mutex::new(View {
            phase: Phase::Starting,
            handles: Vec::new(),
            before: Standing::default(),
            last_handled: reactivate.clone(),
        }));
        let (sender, wishes) = watch::channel(Wish { what: What::Nothing, reactivate });
        let ended = CancellationToken::new();
        let dotted = identity.dotted.clone();
        let worker = Worker {
            identity,
            view: view.clone(),
            wishes,
            predecessors,
            running: None,
            owes_purge: false,
            cut_off: 0,
            _ended: ended.clone().drop_guard(),
        };
        let task = tokio::spawn(worker.run());
        Self { dotted, wish: sender, view, task: Mutex::new(Some(task)), ended }
    }

    /// Cancelled when nothing of it is under way any more.
    pub(super) fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// Changes the wish. Takes effect at once; what is under way may end.
    pub(super) fn wish(&self, wish: Wish) {
        self.wish.send_replace(wish);
    }

    /// What is wished now.
    pub(super) fn wished(&self) -> Wish {
        self.wish.borrow().clone()
    }

    /// The state, the counters since the start of the process, and the value of the annotation handled last.
    pub(super) fn read(&self) -> (Phase, Standing, Option<String>) {
        let view = lock(&self.view);
        let standing = view.handles.iter().fold(view.before.clone(), |sum, handle| sum.and(handle.report()));
        (view.phase.clone(), standing, view.last_handled.clone())
    }

    /// Ends a deactivation. Answers whether there was one. `source` is asked where nothing runs that could know.
    pub(super) async fn reactivate(&self, source: &dyn MessageStore) -> Result<bool, StoreError> {
        let handles = || lock(&self.view).handles.clone();
        let running = handles();
        if !running.is_empty() {
            return reactivate(&running).await;
        }
        let no_answer = |_| StoreError::NotConnected(format!("no answer in {STORE_TIMEOUT:?}"));
        let record = timeout(STORE_TIMEOUT, source.deactivation(&self.dotted)).await.map_err(no_answer)??;
        timeout(STORE_TIMEOUT, source.reactivate(&self.dotted)).await.map_err(no_answer)??;
        // One that started meanwhile may have read the record.
        reactivate(&handles()).await?;
        Ok(record.is_some())
    }

    /// Whether the task has ended without being told to.
    pub(super) fn has_ended(&self) -> bool {
        lock(&self.task).as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Ends the task, and answers how many attempts were cut off; `None` if it did not end in time, or panicked.
    pub(super) async fn end(&self, deadline: Instant) -> Option<usize> {
        self.wish(Wish { what: What::End(deadline), reactivate: None });
        let task = lock(&self.task).take()?;
        tokio::time::timeout_at(deadline, task).await.ok()?.ok()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind it is replaced whole: a panicking holder leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn reactivate(handles: &[Arc<ForwarderHandle>]) -> Result<bool, StoreError> {
    let deactivated = handles.iter().map(|handle| handle.report()).any(|report| {
        report.state == ProcessorState::Deactivated || report.hindrance == Some(Hindrance::DeactivationNotStored)
    });
    for handle in handles {
        handle.reactivate().await?;
    }
    Ok(deactivated)
}

/// A forwarder that runs, and what it runs with.
struct Running {
    launch: Arc<Launch>,
    handles: Vec<Arc<ForwarderHandle>>,
    /// Held while anything of it may still deliver.
    _turn: Option<OwnedMutexGuard<()>>,
}

struct Worker {
    identity: Identity,
    view: Arc<Mutex<View>>,
    wishes: watch::Receiver<Wish>,
    predecessors: Vec<CancellationToken>,
    running: Option<Running>,
    /// It was suspended, and the record of a deactivation may still be there: nothing starts before it is gone.
    owes_purge: bool,
    cut_off: usize,
    _ended: DropGuard,
}

impl Worker {
    async fn run(mut self) -> usize {
        for predecessor in std::mem::take(&mut self.predecessors) {
            tokio::select! {
                () = predecessor.cancelled() => {}
                // With an error if nobody can wish any more.
                _ = self.wishes.wait_for(|wish| wish.what.ends()) => break,
            }
        }
        loop {
            let wish = self.wishes.borrow_and_update().clone();
            let ends = wish.what.ends();
            if let What::Run(launch) = &wish.what
                && self.running.as_ref().is_some_and(|running| running.launch.is_same(launch))
            {
                self.obey_annotation(wish.reactivate).await;
            } else {
                self.change(wish).await;
            }
            if ends {
                return self.cut_off;
            }
            // Ends with an error only if the keeper is gone, and with it everybody who could wish.
            if self.wishes.changed().await.is_err() {
                return self.cut_off;
            }
        }
    }

    /// Stops what runs, and does what is wished.
    async fn change(&mut self, wish: Wish) {
        self.stop(&wish.what).await;
        match wish.what {
            What::Run(launch) => {
                if self.is_cleared(wish.reactivate.clone(), &launch).await {
                    self.launch(launch).await;
                }
            }
            What::Suspend(source) => {
                self.shows(Phase::Suspended);
                self.owes_purge = true;
                if self.purge(&source).await {
                    self.owes_purge = false;
                    lock(&self.view).last_handled = wish.reactivate;
                }
            }
            What::Wait(missing) => self.shows(Phase::Waiting(missing)),
            What::Remove(source, _) => {
                // If the store is out of reach, the record stays; a processor of this name then begins deactivated.
                let _ = timeout(REMOVAL_TIMEOUT, self.purge(&source)).await;
            }
            What::Nothing | What::End(_) => {}
        }
    }

    fn shows(&self, phase: Phase) {
        match &phase {
            Phase::Suspended => self.identity.metrics.state("Suspended"),
            Phase::Running => {}
            _ => self.identity.metrics.state("Pending"),
        }
        lock(&self.view).phase = phase;
    }

    /// Stops the forwarders. No attempt starts from here on; those under way may end in their own time.
    async fn stop(&mut self, next: &What) {
        let Some(running) = self.running.take() else { return };
        let grace = match next {
            What::End(deadline) | What::Remove(_, deadline) => deadline.saturating_duration_since(Instant::now()),
            _ => running.launch.patience(),
        };
        if matches!(next, What::Suspend(_)) {
            tracing::info!(processor = %self.identity.slashed, "suspended: no attempt starts any more");
            self.shows(Phase::Suspended);
        }
        let drained = join_all(running.handles.iter().map(|handle| handle.stop(grace))).await;
        let cut_off: usize = drained.iter().map(|drained| drained.cut_off).sum();
        if cut_off > 0 {
            tracing::warn!(processor = %self.identity.slashed, attempts = cut_off, "attempts were cut off and will be repeated");
        }
        self.cut_off += cut_off;
        let mut view = lock(&self.view);
        let reports = running.handles.iter().map(|handle| handle.report());
        view.before = reports.fold(view.before.clone(), Standing::and).after();
        view.handles.clear();
    }

    /// Starts the forwarders, when nobody else delivers in order from the same queue any more.
    async fn launch(&mut self, launch: Arc<Launch>) {
        self.shows(Phase::Starting);
        let turn = match launch.turn() {
            None => None,
            Some(turn) => tokio::select! {
                turn = turn.lock_owned() => Some(turn),
                // Another wish came first.
                _ = self.wishes.changed() => {
                    self.wishes.mark_changed();
                    return;
                }
            },
        };
        let started: Result<Vec<_>, _> = launch.forwarders(&self.identity.metrics).collect();
        match started {
            Ok(handles) => {
                let mut view = lock(&self.view);
                view.phase = Phase::Running;
                view.handles.clone_from(&handles);
                drop(view);
                self.running = Some(Running { launch, handles, _turn: turn });
            }
            Err(error) => {
                tracing::error!(processor = %self.identity.slashed, %error, "can't start");
                self.shows(Phase::Failed(error));
            }
        }
    }

    /// Removes the record of a deactivation; tries until it is gone (true) or something else is wished.
    async fn purge(&mut self, source: &Arc<dyn MessageStore>) -> bool {
        loop {
            let error = match timeout(STORE_TIMEOUT, source.reactivate(&self.identity.dotted)).await {
                Ok(Ok(())) => return true,
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer in {STORE_TIMEOUT:?}"),
            };
            // That the broker is away is said elsewhere, once.
            if *source.connection().borrow() == Connection::Up {
                tracing::warn!(processor = %self.identity.slashed, error, "can't remove the record of the deactivation; trying again");
            }
            tokio::select! {
                () = sleep(PURGE_PAUSE) => {}
                _ = self.wishes.changed() => {
                    self.wishes.mark_changed();
                    return false;
                }
            }
        }
    }

    /// A new value of the annotation, while it runs.
    async fn obey_annotation(&mut self, value: Option<String>) {
        let Some(running) = self.running.as_ref().filter(|_| self.is_new(value.as_ref())) else { return };
        let handles = running.handles.clone();
        let result = tokio::select! {
            result = reactivate(&handles) => result,
            // A suspension does not wait for it; a wish that still has the annotation tries again.
            _ = self.wishes.changed() => return self.wishes.mark_changed(),
        };
        match result {
            Ok(_) => lock(&self.view).last_handled = value,
            Err(error) => {
                tracing::warn!(processor = %self.identity.slashed, %error, "can't reactivate; change the annotation again");
            }
        }
    }

    /// After a suspension, and with a new value of the annotation that came with another change, the record goes before
    /// the forwarder starts. False: something else is wished by now.
    async fn is_cleared(&mut self, value: Option<String>, launch: &Launch) -> bool {
        let is_new = self.is_new(value.as_ref());
        if !is_new && !self.owes_purge {
            return true;
        }
        let purged = self.purge(launch.source()).await;
        if purged {
            self.owes_purge = false;
            if is_new {
                lock(&self.view).last_handled = value;
            }
        }
        purged
    }

    fn is_new(&self, value: Option<&String>) -> bool {
        value.is_some() && lock(&self.view).last_handled.as_ref() != value
    }
}

#[cfg(test)]
mod tests;
