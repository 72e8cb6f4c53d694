//! `stagepost ingress`: HTTP into stores, in a pod.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::admin::{self, Asked, Told};
use super::mounts::Mounts;
use super::stores::Stores;
use super::{Ended, Options, WorkerError, read};
use crate::api::condition::Time;
use crate::ingress::{Drain, Drained, RouteCounters, RouteInput, RouteTable, Server, publishers};
use crate::plan::{ObjectName, Plan};
use crate::shutdown;
use crate::status::report::{IngressCounts, WorkerReport};
use crate::store::BoxFuture;
use crate::telemetry::metrics::Metrics;

/// After SIGTERM, connections are still accepted for this long: load balancers and kube-proxy learn only then that the
/// pod is going.
const LINGER: Duration = Duration::from_secs(5);

/// How long a new pod waits for its brokers before callers are sent to it.
const SETTLE: Duration = Duration::from_secs(10);

/// How often mounted files are looked at. The kubelet itself takes up to a minute to change them.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What is asked of an ingress worker.
#[derive(Debug)]
struct Worker {
    object: ObjectName,
    plan: String,
    started: Timestamp,
    stores: Stores,
    counters: Arc<RouteCounters>,
    metrics: Metrics,
    ready: AtomicBool,
    live: AtomicBool,
    told: Told,
}

impl Asked for Worker {
    fn report(&self) -> BoxFuture<'_, WorkerReport> {
        Box::pin(async {
            WorkerReport {
                object: self.object.clone(),
                plan: self.plan.clone(),
                started: Time(self.started),
                stores: self.stores.report().await,
                ingress: Some(IngressCounts {
                    accepted: self.counters.accepted(),
                    rejected: self.counters.rejected(),
                    failed: self.counters.failed(),
                }),
                forwarder: None,
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
        self.live.load(Ordering::Acquire)
    }

    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }
}

/// Runs until a signal, then drains.
pub async fn ingress(options: Options, listen: SocketAddr) -> Result<Ended, WorkerError> {
    let shutdown = shutdown::on_signal().map_err(WorkerError::Signals)?;
    let plan = read(&options.plan)?;
    let Plan::Ingress(route) = &plan else { return Err(WorkerError::WrongKind(options.plan, "forward")) };
    let server = Server::bind(listen).map_err(|error| WorkerError::Listen(listen, "--listen", error))?;
    let mounts = Mounts::new(options.secrets.clone());
    let metrics = Metrics::default();
    let stores = Stores::start(&plan, &route.object.namespace, &mounts, &metrics);
    let counters = Arc::new(RouteCounters::default());
    let table = RouteTable::compile(vec![RouteInput {
        publishers: publishers(route, stores.all(), &metrics),
        metrics: metrics.route(&route.object.slashed()),
        counters: counters.clone(),
        plan: route.clone(),
    }])?;
    let worker = Arc::new(Worker {
        object: route.object.clone(),
        plan: plan.hash(),
        started: Timestamp::now(),
        stores,
        counters,
        metrics,
        ready: AtomicBool::new(false),
        live: AtomicBool::new(true),
        told: Told::default(),
    });
    let stop_admin = CancellationToken::new();
    let drain = Drain { linger: LINGER.min(options.grace), grace: options.grace };
    let mut serving = tokio::spawn(server.serve(Arc::new(ArcSwap::from_pointee(table)), shutdown.clone(), drain));
    admin::start(options.admin, worker.clone(), stop_admin.clone()).await?;
    tracing::info!(route = %route.object.slashed(), plan = worker.plan, "listening on {listen} (admin {})", options.admin);
    // Callers come when what they bring can be stored. A broker that is down is no reason to keep them away: they are told.
    let settled = timeout(SETTLE, worker.stores.settled());
    let mut settled = pin!(settled);
    let mut look = interval(LOOK_EVERY);
    let sources = plan.sources();
    let mut fingerprint = mounts.fingerprint(&sources);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            _ = &mut serving => {
                worker.live.store(false, Ordering::Release);
                return Err(WorkerError::Bug);
            }
            _ = &mut settled, if !worker.is_ready() => worker.ready.store(true, Ordering::Release),
            _ = look.tick() => {
                let now = mounts.fingerprint(&sources);
                if now != fingerprint {
                    tracing::info!("a Secret or config map has changed; it is used from the next connect on");
                    fingerprint = now;
                    worker.stores.refresh();
                }
            }
        }
    }
    worker.ready.store(false, Ordering::Release);
    let ended = ended(serving, options.grace).await;
    admin::last_word(&*worker).await;
    stop_admin.cancel();
    Ok(ended)
}

/// The server bounds its own drain; the net below it is a little later.
async fn ended(serving: JoinHandle<Drained>, grace: Duration) -> Ended {
    let deadline = tokio::time::Instant::now() + grace + Duration::from_secs(2);
    match timeout_at(deadline, serving).await {
        Ok(Ok(Drained::Complete)) => Ended::Drained,
        Ok(Ok(Drained::CutOff(_)) | Err(_)) | Err(_) => Ended::CutOff,
    }
}
