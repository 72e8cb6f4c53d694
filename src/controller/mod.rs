//! The operator: makes workers of objects, and says how they stand.
//!
//! Inputs: objects of the three kinds, Secrets and Services by name, what worker pods say at their admin address.
//! Outputs: Deployments and what goes with them, status, Events. It is not needed for a message to be accepted or
//! delivered: workers run by their plans whether or not it is there.
//!
//! How it is built, from the outside in:
//!
//! - `run` (here): the life of the process. Lease, watches, controllers, drain.
//! - `message_store`, `ingress_route`, `forwarding_processor`: one reconcile each, a table of contents. `settle`,
//!   `workers`, `deletion`: what they have in common.
//! - `judge`, `phase`, `rollout`, `last_words`, `relations`, `counters`, `lease`: decisions, pure. [`resources`]: builders,
//!   pure.
//! - `watch`, `due`: what is known, and what is to be looked at. `references`, `brokers`: what is asked.
//! - `sampler`, `ask`, `samples`: what workers say, and the numbers in the status.
//! - `apply`, `report`, `events`: what is written. Every write asks first whether this controller still leads.

mod admin;
mod apply;
mod ask;
mod brokers;
mod cleanup;
mod context;
mod counters;
mod deletion;
mod due;
mod error;
mod events;
mod fingerprint;
mod forwarding_processor;
mod ingress_route;
mod judge;
mod last_words;
mod leader;
mod lease;
mod message_store;
mod phase;
mod references;
mod relations;
mod report;
pub mod resources;
mod rollout;
mod sampler;
mod samples;
mod settle;
mod watch;
mod workers;

use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, StreamExt as _};
use kube::runtime::controller::{self, Action, Config, Controller};
use kube::runtime::reflector::Store;
use kube::{Client, ResourceExt as _};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use cleanup::{CleanupOptions, cleanup};
use context::Context;
use due::Due;
use error::Error;
use leader::{Elector, Leadership};
use report::Ours;
use resources::WorkerSettings;
use watch::{Changes, Duties, Guarded, Scope};

use crate::api::{ForwardingProcessor, IngressRoute, MessageStore};
use crate::telemetry::controller::ControllerMetrics;

/// Changes that come together are reconciled together.
const DEBOUNCE: Duration = Duration::from_millis(200);

/// Reconciles at once, of each kind.
const CONCURRENCY: u16 = 8;

/// Reconciles that are under way at the end may take so long.
const DRAIN: Duration = Duration::from_secs(10);

/// What the command line says.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the objects are; empty: everywhere.
    pub namespaces: Vec<String>,
    /// Metrics and probes.
    pub listen: SocketAddr,
    /// Whether others may run beside this one.
    pub leader_elect: bool,
    /// What workers are started with.
    pub settings: WorkerSettings,
    /// Where this controller runs.
    pub namespace: String,
    /// What tells this controller from others.
    pub identity: String,
}

/// Why a controller did not start, or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// No cluster is configured.
    #[error("no cluster: neither a service account nor a kubeconfig is there; set KUBECONFIG")]
    NoCluster(#[source] Box<kube::Error>),
    /// The address is taken.
    #[error("can't listen on {0} (--listen); choose another address")]
    Listen(SocketAddr, #[source] io::Error),
    /// The kinds are not known.
    #[error(
        "the API server does not know {0} of stagepost.dev/v1alpha1; apply the files in crds/, or install the chart with crds.enabled"
    )]
    NoCrd(&'static str),
    /// The kinds can't be listed.
    #[error("can't list {0}: {1}; grant the controller's account what docs/install.md names")]
    Forbidden(&'static str, String),
    /// The system gives no signals.
    #[error("the system refuses what every process needs")]
    Signals(#[source] io::Error),
    /// The HTTP client.
    #[error("can't prepare requests to workers")]
    Client(#[source] reqwest::Error),
    /// The API server says no.
    #[error("{0}")]
    Refused(String),
    /// Somebody else acts now.
    #[error("the lease was lost to another controller; this one ends, and starts again as a candidate")]
    LostLease,
    /// A part ended that must not.
    #[error("a bug ended a part of this process; workers are not touched by it")]
    Bug,
}

/// Runs until a signal.
pub async fn run(options: Options) -> Result<(), ControllerError> {
    let shutdown = crate::shutdown::on_signal().map_err(ControllerError::Signals)?;
    let client = Client::try_default().await.map_err(|error| ControllerError::NoCluster(Box::new(error)))?;
    let metrics = ControllerMetrics::default();
    let stop_admin = CancellationToken::new();
    admin::start(options.listen, metrics.clone(), stop_admin.clone()).await?;
    tracing::info!("listening on {}", options.listen);
    let scopes: Vec<Scope> = if options.namespaces.is_empty() {
        vec![Scope::All]
    } else {
        options.namespaces.iter().cloned().map(Scope::Namespace).collect()
    };
    check_kinds(&client, &scopes, &shutdown).await?;
    let mut elector =
        options.leader_elect.then(|| Elector::new(client.clone(), &options.namespace, options.identity.clone()));
    if let Some(elector) = &mut elector
        && !elector.acquire(&shutdown).await
    {
        return Ok(());
    }
    metrics.leads(true);
    tracing::info!(identity = options.identity, "this controller acts now");
    let leadership = elector.as_ref().map_or_else(Leadership::sole, Elector::leadership);
    let mut tasks = JoinSet::new();
    let stop = shutdown.child_token();
    for scope in &scopes {
        start(&client, scope, &options, &leadership, &metrics, &stop, &mut tasks)?;
    }
    let held = async {
        let Some(elector) = elector else {
            shutdown.cancelled().await;
            return true;
        };
        elector.hold(&shutdown).await
    };
    let mut held = pin!(held);
    let ended = tokio::select! {
        held = &mut held => if held { Ok(()) } else { Err(ControllerError::LostLease) },
        _ = tasks.join_next() => if shutdown.is_cancelled() {
            // The lease is given back, so that the next one need not wait for its end. It bounds itself.
            held.await;
            Ok(())
        } else {
            Err(ControllerError::Bug)
        },
    };
    metrics.leads(false);
    stop.cancel();
    let _ = tokio::time::timeout(DRAIN, async { while tasks.join_next().await.is_some() {} }).await;
    stop_admin.cancel();
    ended
}

/// Waits until the kinds can be listed: a chart may install them at the same time.
async fn check_kinds(client: &Client, scopes: &[Scope], shutdown: &CancellationToken) -> Result<(), ControllerError> {
    async fn can_list<K: Ours>(client: &Client, scope: &Scope) -> Result<(), ControllerError> {
        let few = kube::api::ListParams::default().limit(1);
        match error::api("list", scope.api::<K>(client).list_metadata(&few)).await {
            Ok(_) => Ok(()),
            Err(Error::Api { source, .. }) => match *source {
                kube::Error::Api(status) if status.code == 404 => Err(ControllerError::NoCrd(K::KIND)),
                kube::Error::Api(status) if [401, 403].contains(&status.code) => {
                    Err(ControllerError::Forbidden(K::KIND, status.message))
                }
                other => Err(ControllerError::Refused(other.to_string())),
            },
            Err(other) => Err(ControllerError::Refused(other.to_string())),
        }
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    for scope in scopes {
        loop {
            let all = async {
                can_list::<MessageStore>(client, scope).await?;
                can_list::<IngressRoute>(client, scope).await?;
                can_list::<ForwardingProcessor>(client, scope).await
            };
            match all.await {
                Ok(()) => break,
                // One namespace that is gone must not stop the others.
                Err(ControllerError::Forbidden(_, why)) if scopes.len() > 1 => {
                    tracing::warn!(?scope, "can't list our kinds here: {why}");
                    break;
                }
                // An API server that is away comes back, and then nobody should have to wait for us.
                Err(error @ (ControllerError::NoCrd(_) | ControllerError::Forbidden(..)))
                    if Instant::now() > deadline =>
                {
                    return Err(error);
                }
                Err(error) => tracing::warn!(%error, "trying again"),
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(Duration::from_secs(2)) => {}
            }
        }
    }
    Ok(())
}

/// Starts what one scope needs.
fn start(
    client: &Client,
    scope: &Scope,
    options: &Options,
    leadership: &Leadership,
    metrics: &ControllerMetrics,
    stop: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> Result<(), ControllerError> {
    let duties = Duties::default();
    let with_policies = options.settings.admin_peers.is_some();
    let (caches, streams) = watch::start(client, scope, &duties, with_policies, stop, tasks);
    let (stores, routes, processors) = (caches.stores.clone(), caches.routes.clone(), caches.processors.clone());
    let context = Arc::new(Context::new(
        client.clone(),
        options.settings.clone(),
        caches,
        duties.clone(),
        references::References::new(client.clone()),
        events::Events::new(client.clone(), Some(options.identity.clone())),
        leadership.clone(),
        metrics.clone(),
    ));
    tasks.spawn(control(streams.stores, stores, duties.stores, context.clone(), stop.clone()));
    tasks.spawn(control(streams.routes, routes, duties.routes, context.clone(), stop.clone()));
    tasks.spawn(control(streams.processors, processors, duties.processors, context.clone(), stop.clone()));
    let sampler = sampler::Sampler::new(context).map_err(ControllerError::Client)?;
    tasks.spawn(sampler.run(stop.clone()));
    Ok(())
}

/// A kind that is reconciled.
trait Reconciled: Ours {
    /// Makes everything as the object wants it; answers when to look again.
    fn reconcile(ctx: &Context, object: &Self) -> impl Future<Output = Result<Duration, Error>> + Send;
}

impl Reconciled for MessageStore {
    async fn reconcile(ctx: &Context, object: &Self) -> Result<Duration, Error> {
        message_store::reconcile(ctx, object).await
    }
}

impl Reconciled for IngressRoute {
    async fn reconcile(ctx: &Context, object: &Self) -> Result<Duration, Error> {
        ingress_route::reconcile(ctx, object).await
    }
}

impl Reconciled for ForwardingProcessor {
    async fn reconcile(ctx: &Context, object: &Self) -> Result<Duration, Error> {
        forwarding_processor::reconcile(ctx, object).await
    }
}

/// Runs the controller of one kind.
async fn control<K: Reconciled>(
    changes: Changes<K>,
    objects: Store<Guarded<K>>,
    due: Due,
    ctx: Arc<Context>,
    stop: CancellationToken,
) {
    Controller::for_stream(changes, objects)
        .with_config(Config::default().debounce(DEBOUNCE).concurrency(CONCURRENCY))
        .reconcile_on(due.stream())
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(once::<K>, try_again::<K>, ctx)
        .for_each(|reconciled| async move {
            match reconciled {
                // What failed in a reconcile is said there; an object that is gone is no failure.
                Ok(_) | Err(controller::Error::ReconcilerFailed(..) | controller::Error::ObjectNotFound(_)) => {}
                Err(error) => tracing::warn!(%error, kind = K::KIND, "the watch was interrupted; it begins again"),
            }
        })
        .await;
}

async fn once<K: Reconciled>(object: Arc<Guarded<K>>, ctx: Arc<Context>) -> Result<Action, Error> {
    let object = match &object.0 {
        Ok(object) => object,
        Err(unreadable) => {
            report::unreadable::<K>(&ctx, &unreadable.metadata, &unreadable.error).await?;
            return Ok(Action::await_change());
        }
    };
    ctx.caches.synced().await;
    let begun = Instant::now();
    // One object that meets a bug must not stop the others.
    let reconciled = AssertUnwindSafe(K::reconcile(&ctx, object)).catch_unwind().await;
    let reconciled = reconciled.unwrap_or(Err(Error::Panicked));
    ctx.metrics.reconciled(K::KIND, begun.elapsed());
    let again = reconciled?;
    ctx.succeeded(object);
    Ok(Action::requeue(again))
}

#[expect(clippy::needless_pass_by_value, reason = "the controller gives them so")]
fn try_again<K: Reconciled>(object: Arc<Guarded<K>>, error: &Error, ctx: Arc<Context>) -> Action {
    let class = error.class();
    let failures = ctx.failed(&*object);
    let name = format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any());
    ctx.metrics.failed(K::KIND, class.as_str());
    if error.to_string().contains("because it is being terminated") {
        tracing::debug!(%error, kind = K::KIND, name, "its namespace is going");
    } else if class == error::Class::Conflict {
        tracing::info!(%error, kind = K::KIND, name, "somebody else wrote at the same time; trying again");
    } else {
        tracing::warn!(%error, kind = K::KIND, name, failures, "could not be reconciled; trying again");
    }
    Action::requeue(class.pause(failures))
}
