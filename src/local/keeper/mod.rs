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

use super::launch::Launch;
use super::standing::Standing;
use super::verdict::Missing;
use crate::forwarder::{ForwarderHandle, ProcessorState};
use crate::store::{MessageStore, StoreError};
use crate::telemetry::metrics::ProcessorMetrics;

/// Between tries to remove the record of a deactivation.
const PURGE_PAUSE: Duration = Duration::from_millis(500);

/// What a store does besides publishing is bounded by itself; this is the net below.
const STORE_TIMEOUT: Duration = Duration::from_secs(10);

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
    wish: watch::Sender<Wish>,
    view: Arc<Mutex<View>>,
    task: Mutex<Option<JoinHandle<usize>>>,
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
    /// Starts the task, which waits for the first wish. An annotation that is already there counts as handled.
    pub(super) fn new(identity: Identity, reactivate: Option<String>) -> Self {
        let view = Arc::new(Mutex::new(View {
            phase: Phase::Starting,
            handles: Vec::new(),
            before: Standing::default(),
            last_handled: reactivate.clone(),
        }));
        let (sender, wishes) = watch::channel(Wish { what: What::Nothing, reactivate });
        let worker = Worker { identity, view: view.clone(), wishes, running: None, cut_off: 0 };
        let task = tokio::spawn(worker.run());
        Self { wish: sender, view, task: Mutex::new(Some(task)) }
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

    /// Ends a deactivation. Answers whether there was one.
    pub(super) async fn reactivate(&self) -> Result<bool, StoreError> {
        let handles = lock(&self.view).handles.clone();
        reactivate(&handles).await
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
    let deactivated = handles.iter().any(|handle| handle.report().state == ProcessorState::Deactivated);
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
    running: Option<Running>,
    cut_off: usize,
}

impl Worker {
    async fn run(mut self) -> usize {
        loop {
            let wish = self.wishes.borrow_and_update().clone();
            if let What::Run(launch) = &wish.what
                && self.running.as_ref().is_some_and(|running| running.launch.is_same(launch))
            {
                self.obey_annotation(wish.reactivate).await;
            } else {
                self.change(wish).await;
            }
            let ends = matches!(self.wishes.borrow().what, What::End(_));
            if ends && self.running.is_none() {
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
                if self.obeyed_annotation(wish.reactivate.clone(), &launch).await {
                    self.launch(launch).await;
                }
            }
            What::Suspend(source) => {
                self.shows(Phase::Suspended);
                if self.purge(&source).await {
                    lock(&self.view).last_handled = wish.reactivate;
                }
            }
            What::Wait(missing) => self.shows(Phase::Waiting(missing)),
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
            What::End(deadline) => deadline.saturating_duration_since(Instant::now()),
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
            tracing::warn!(processor = %self.identity.slashed, error, "can't remove the record of the deactivation; trying again");
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

    /// A new value of the annotation that came with another change: the record goes before the forwarder starts.
    /// False: something else is wished by now.
    async fn obeyed_annotation(&mut self, value: Option<String>, launch: &Launch) -> bool {
        if !self.is_new(value.as_ref()) {
            return true;
        }
        let purged = self.purge(launch.source()).await;
        if purged {
            lock(&self.view).last_handled = value;
        }
        purged
    }

    fn is_new(&self, value: Option<&String>) -> bool {
        value.is_some() && lock(&self.view).last_handled.as_ref() != value
    }
}
