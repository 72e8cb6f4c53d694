//! `stagepost forward`: out of a store, to a target, in a pod.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use super::admin::{self, Asked, Told};
use super::ingress::LOOK_EVERY;
use super::mounts::Mounts;
use super::stores::Stores;
use super::{Ended, Options, WorkerError, read};
use crate::api::condition::Time;
use crate::forwarder::{self, Forwarder, ForwarderHandle, ForwarderInput, HOLD_LIMIT, target_for};
use crate::plan::{ForwarderPlan, KeyValues as _, Plan, TargetPlan};
use crate::shutdown;
use crate::status::report::WorkerReport;
use crate::status::standing::Standing;
use crate::store::BoxFuture;
use crate::target::Target;
use crate::telemetry::metrics::{Metrics, ProcessorMetrics};

/// The record of a deactivation may be removed by the controller, and written by another pod of this processor.
const CHECK_RECORD_EVERY: Duration = Duration::from_secs(1);

/// What is asked of a forwarding worker.
#[derive(Debug)]
struct Worker {
    plan: ForwarderPlan,
    hash: String,
    started: Timestamp,
    stores: Stores,
    metrics: Metrics,
    processor: ProcessorMetrics,
    hold_limit: Duration,
    last_words: Option<PathBuf>,
    running: Mutex<Running>,
    ready: AtomicBool,
    told: Told,
}

/// The forwarder, and what those before it in this process have done.
#[derive(Debug, Default)]
struct Running {
    handle: Option<Arc<ForwarderHandle>>,
    before: Standing,
}

impl Asked for Worker {
    fn report(&self) -> BoxFuture<'_, WorkerReport> {
        Box::pin(async {
            WorkerReport {
                object: self.plan.object.clone(),
                plan: self.hash.clone(),
                started: Time(self.started),
                stores: self.stores.report().await,
                ingress: None,
                forwarder: Some(self.standing()),
            }
        })
    }

    fn told(&self) -> &Told {
        &self.told
    }

    fn metrics(&self) -> String {
        self.metrics.encode()
    }

    fn is_live(&self) -> bool {
        true
    }

    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }
}

impl Worker {
    fn running(&self) -> std::sync::MutexGuard<'_, Running> {
        // What is behind it is replaced whole: a panicking holder leaves nothing half done.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn standing(&self) -> Standing {
        let running = self.running();
        let before = running.before.clone();
        running.handle.as_ref().map_or(before.clone(), |handle| before.and(handle.report()))
    }

    /// The target, with the values that are mounted now.
    fn target(&self, mounts: &Mounts) -> Result<Arc<dyn Target>, WorkerError> {
        let url = match &self.plan.target {
            TargetPlan::Http(http) => Some(http.address.in_cluster(&self.plan.object.namespace)),
            TargetPlan::Store(_) => None,
        };
        target_for(&self.plan, url.as_deref(), mounts, self.stores.all())
            .map_err(|error| WorkerError::Processor(error.to_string()))
    }

    /// Starts a forwarder.
    fn start(&self, target: Arc<dyn Target>) -> Result<(), WorkerError> {
        let input = ForwarderInput {
            plan: self.plan.clone(),
            stores: self.stores.all().clone(),
            target,
            metrics: self.processor.clone(),
            options: forwarder::Options {
                hold_limit: self.hold_limit,
                check_record_every: Some(CHECK_RECORD_EVERY),
                last_words: self.last_words.clone(),
                ..forwarder::Options::default()
            },
        };
        let handle = Forwarder::start(input).map_err(|error| WorkerError::Processor(error.to_string()))?;
        self.running().handle = Some(Arc::new(handle));
        Ok(())
    }

    /// Stops the forwarder: no attempt starts any more, those under way may end. Answers how many were cut off.
    async fn stop(&self, grace: Duration) -> usize {
        let Some(handle) = self.running().handle.clone() else { return 0 };
        let drained = handle.stop(grace).await;
        let mut running = self.running();
        running.before = running.before.clone().and(handle.report()).after();
        running.handle = None;
        drained.cut_off
    }
}

/// Runs until a signal, then drains. `last_words`: where others look for what this process was about to do when it ended.
pub async fn forward(options: Options, last_words: Option<PathBuf>) -> Result<Ended, WorkerError> {
    let shutdown = shutdown::on_signal().map_err(WorkerError::Signals)?;
    let plan = read(&options.plan)?;
    let Plan::Forwarder(processor) = &plan else { return Err(WorkerError::WrongKind(options.plan, "ingress")) };
    let mounts = Mounts::new(options.secrets.clone());
    let metrics = Metrics::default();
    let worker = Arc::new(Worker {
        hash: plan.hash(),
        started: Timestamp::now(),
        stores: Stores::start(&plan, &processor.object.namespace, &mounts, &metrics),
        processor: metrics.processor(&processor.object.slashed()),
        metrics,
        hold_limit: options.hold_limit.unwrap_or(HOLD_LIMIT),
        last_words,
        running: Mutex::default(),
        ready: AtomicBool::new(false),
        told: Told::default(),
        plan: processor.clone(),
    });
    let stop_admin = CancellationToken::new();
    worker.start(worker.target(&mounts)?)?;
    worker.ready.store(true, Ordering::Release);
    admin::start(options.admin, worker.clone(), stop_admin.clone()).await?;
    tracing::info!(processor = %processor.object.slashed(), plan = worker.hash, "delivering (admin {})", options.admin);
    let sources = plan.sources();
    let values = || processor.target_keys().iter().map(|key| mounts.get(key)).collect::<Vec<_>>();
    let (mut fingerprint, mut known) = (mounts.fingerprint(&sources), values());
    let mut look = interval(LOOK_EVERY);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            _ = look.tick() => {}
        }
        let now = mounts.fingerprint(&sources);
        if now == fingerprint {
            continue;
        }
        fingerprint = now;
        worker.stores.refresh();
        let values = values();
        if values == known {
            continue;
        }
        match worker.target(&mounts) {
            Ok(target) => {
                tracing::info!("the target's credentials have changed; they are used from the next attempt on");
                known = values;
                tokio::select! {
                    () = shutdown.cancelled() => break,
                    _ = worker.stop(processor.patience()) => worker.start(target)?,
                }
            }
            // What works is not given up for what can't.
            Err(error) => tracing::error!(%error, "the target's changed credentials are not usable; the old ones stay"),
        }
    }
    worker.ready.store(false, Ordering::Release);
    let cut_off = worker.stop(options.grace).await;
    admin::last_word(&*worker).await;
    stop_admin.cancel();
    Ok(if cut_off == 0 { Ended::Drained } else { Ended::CutOff })
}
