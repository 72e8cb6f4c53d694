//! `stagepost run`: everything in one process, without a cluster.
//!
//! Inputs: manifests and flags. Outputs: the same plans that a cluster would run, running here; the admin address; a
//! table on a terminal. What the manifests mean is decided in [`crate::plan`]; this module only makes it so, and keeps
//! it so while the files are edited.
//!
//! How it is built, from the outside in:
//!
//! - `run` (here): the life of the process. Start, announce, reload on edits, drain.
//! - [`supervisor`]: the objects, and the one place where a change is taken over.
//! - `desired`, `launch`: from manifests and flags to what shall run. Pure.
//! - `stores`, `listeners`, `keeper`: the running parts.
//! - `items`: the status, read live.
//! - `admin`, `screen`, [`table`], [`curl`]: what people see. [`names`], [`watch`]: flags, edits.

mod admin;
mod brokers;
pub mod curl;
mod desired;
mod failure;
mod items;
mod keeper;
mod launch;
mod listeners;
pub mod names;
mod objects;
mod screen;
mod stores;
pub mod supervisor;
pub mod table;
mod unusable;
pub mod watch;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use failure::RunError;

use crate::core::duration;
use crate::plan::compile::Environment;
use crate::plan::load::{self, Manifests};
use crate::plan::world::Named;
use crate::shutdown;
pub use crate::shutdown::Ended;
use crate::sink::{RecordTo, RunningSink, Script, Sink, SinkOptions};
use crate::store::embedded::Broker;
pub use crate::store::rabbitmq::Address;
use crate::telemetry::console;
use brokers::{Brokers, Place};
use desired::Desired;
use launch::Services;
use listeners::Bound;
use names::Assignment;
use stores::{Key, Stores};
use supervisor::Supervisor;
use watch::Watcher;

/// What the command line says.
#[derive(Debug, Clone)]
pub struct Options {
    /// Files and folders of manifests.
    pub paths: Vec<PathBuf>,
    /// For all routes but those of `routes`.
    pub listen: SocketAddr,
    /// The admin address.
    pub admin: SocketAddr,
    /// The folder of the embedded store.
    pub data: PathBuf,
    /// The RabbitMQ of every store whose Secret is not among the manifests.
    pub amqp: Option<Address>,
    /// The embedded store for every MessageStore, whatever its broker says.
    pub embedded: bool,
    /// Of objects that name none.
    pub namespace: String,
    /// Listeners of single routes.
    pub routes: Vec<Assignment<SocketAddr>>,
    /// Where Services are.
    pub services: Vec<Assignment<Uri>>,
    /// A sink for what no service names.
    pub sink: Option<SocketAddr>,
    /// Whether edited manifests are taken over.
    pub reload: bool,
    /// Time to drain.
    pub grace: Duration,
    /// Shortens the hold limit.
    pub hold_limit: Option<Duration>,
}

/// Runs until a signal.
pub async fn run(options: Options) -> Result<Ended, RunError> {
    let shutdown = shutdown::on_signal().map_err(RunError::Signals)?;
    // Before the first reading, so that no edit falls between.
    let watcher = options.reload.then(|| Watcher::new(&options.paths));
    let mut run = Run::start(options).await?;
    let mut watcher = watcher.and_then(|watcher| {
        watcher
            .inspect_err(
                |error| tracing::warn!(%error, "edits of the manifests are not seen; restart to take them over"),
            )
            .ok()
    });
    run.announce();
    let screen = console::is_interactive().then(|| tokio::spawn(screen::keep(run.supervisor.clone())));
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = edited(watcher.as_mut()) => run.reload(),
            () = failure::panicked() => if run.has_lost_a_part() {
                run.supervisor.close();
                return Err(RunError::Bug);
            },
        }
    }
    let complete = run.supervisor.drain(run.options.grace).await;
    if let Some(screen) = screen {
        screen.abort();
        screen::clear();
    }
    run.stop_admin.cancel();
    if let Some(sink) = run.sink {
        sink.stop().await;
    }
    Ok(if complete { Ended::Drained } else { Ended::CutOff })
}

async fn edited(watcher: Option<&mut Watcher>) {
    match watcher {
        Some(watcher) => watcher.edited().await,
        None => std::future::pending().await,
    }
}

/// A run that has started.
struct Run {
    options: Options,
    supervisor: Arc<Supervisor>,
    /// What runs now.
    manifests: Manifests,
    /// The routes with a listener of their own.
    apart: Vec<Key>,
    listen: SocketAddr,
    admin: SocketAddr,
    admin_task: tokio::task::JoinHandle<()>,
    stop_admin: CancellationToken,
    sink: Option<RunningSink>,
}

impl Run {
    async fn start(options: Options) -> Result<Self, RunError> {
        let manifests = read(&options);
        let own = own_listeners(&options.routes, &manifests)?;
        let apart: Vec<Key> = own.keys().cloned().collect();
        let desired = Desired::of(&manifests, &apart).map_err(RunError::Manifests)?;
        let broker = Broker::open(&options.data).map_err(RunError::Data)?;
        let bound = Bound::new(options.listen, &own).map_err(|error| RunError::listen(&error))?;
        let listen = bound.address();
        let listener = TcpListener::bind(options.admin).await;
        let listener =
            listeners::bind(options.admin, "--admin", |_| listener).map_err(|error| RunError::listen(&error))?;
        let admin = listener.local_addr().map_err(RunError::Signals)?;
        let sink = start_sink(options.sink).await?;
        let sink_address = sink.as_ref().map(RunningSink::address);
        let services = Services { named: options.services.clone(), sink: sink_address };
        services.check(&desired.processors.values().map(|wanted| &wanted.plan)).map_err(RunError::Usage)?;
        let brokers = Brokers::new(broker, options.amqp.clone(), options.embedded);
        let supervisor = Arc::new(Supervisor::new(Stores::new(brokers), services, options.hold_limit));
        supervisor.start(desired, bound, options.grace).map_err(RunError::NotStarted)?;
        let stop_admin = CancellationToken::new();
        let admin_task = tokio::spawn(admin::serve(listener, supervisor.clone(), listen, stop_admin.clone()));
        Ok(Self { options, supervisor, manifests, apart, listen, admin, admin_task, stop_admin, sink })
    }

    /// Where it listens, what it does with what, and how to try it.
    fn announce(&self) {
        console::print(&format!("listening on http://{} (admin http://{})", self.listen, self.admin));
        for key in &self.apart {
            if let Some(address) = self.supervisor.address(key) {
                console::print(&format!("IngressRoute {}/{} listens on http://{address}", key.0, key.1));
            }
        }
        if let Some(sink) = &self.sink {
            console::print(&format!("the sink listens on http://{} (hits: GET /__hits)", sink.address()));
        }
        for (place, stores) in self.supervisor.places() {
            let place = match place {
                Place::Embedded => format!("embedded store in {}", self.options.data.display()),
                Place::Secret(secret) => format!("RabbitMQ of Secret {secret}"),
                Place::Amqp => {
                    self.options.amqp.as_ref().map_or_else(String::new, |address| format!("RabbitMQ at {address:?}"))
                }
            };
            console::print(&format!("{place} for MessageStore {}", stores.join(", ")));
        }
        if !self.manifests.skipped.is_empty() {
            console::print(&format!("skipped, not ours: {}", self.manifests.skipped.join(", ")));
        }
        if let Some(limit) = self.options.hold_limit {
            console::print(&format!("hold limit {} (STAGEPOST_HOLD_LIMIT)", duration::format(limit)));
        }
        for warning in &self.manifests.warnings {
            tracing::warn!("{warning}");
        }
        for (key, plan) in self.supervisor.routes() {
            let address = self.supervisor.address(&key).unwrap_or(self.listen);
            for rule in &plan.rules {
                console::print(&format!("try: {}", curl::line(rule, address)));
            }
        }
    }

    /// Takes edits over, or says what is wrong with them and goes on as before.
    fn reload(&mut self) {
        let edited = read(&self.options);
        let changed = edited.immutable_changes_since(&self.manifests);
        let result = Desired::of(&edited, &self.apart).and_then(|desired| {
            if !changed.is_empty() {
                return Err(changed.iter().map(ToString::to_string).collect());
            }
            // Declaring a store waits for the disk.
            tokio::task::block_in_place(|| self.supervisor.reload(desired))
        });
        match result {
            Ok(()) => {
                for warning in &edited.warnings {
                    tracing::warn!("{warning}");
                }
                self.manifests = edited;
            }
            Err(lines) => {
                for line in lines {
                    tracing::error!("not taken over: {line}");
                }
                tracing::error!("the edited manifests are not taken over; everything goes on as before");
            }
        }
    }

    fn has_lost_a_part(&self) -> bool {
        self.admin_task.is_finished() || self.supervisor.has_lost_a_part()
    }
}

fn read(options: &Options) -> Manifests {
    let how = load::Options {
        default_namespace: options.namespace.clone(),
        allow_missing_refs: false,
        environment: Environment::Local,
    };
    load::load(&options.paths, &how)
}

/// The routes that `--route` means.
fn own_listeners(
    flags: &[Assignment<SocketAddr>],
    manifests: &Manifests,
) -> Result<BTreeMap<Key, SocketAddr>, RunError> {
    let mut own = BTreeMap::new();
    for flag in flags.iter().filter(|_| manifests.is_valid()) {
        let routes = manifests.routes.iter();
        let names = routes.map(|loaded| (Named::namespace(&loaded.object), Named::name(&loaded.object)));
        let found = flag
            .name
            .find(names)
            .map_err(|which| RunError::Usage(format!("--route: IngressRoute {which}; correct the name")))?;
        own.insert((found.0.to_owned(), found.1.to_owned()), flag.value);
    }
    Ok(own)
}

async fn start_sink(address: Option<SocketAddr>) -> Result<Option<RunningSink>, RunError> {
    let Some(listen) = address else { return Ok(None) };
    // Hits are asked for by HTTP: lines of JSON on stdout would run through the table.
    let options = SinkOptions { listen, script: Script::default(), record: RecordTo::Nowhere };
    Ok(Some(Sink::start(options).await.map_err(RunError::Sink)?))
}
