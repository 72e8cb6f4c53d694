//! The listeners of a local run: one for all routes, and one for each route that has an address of its own.
//!
//! Inputs: addresses, route plans with their stores. Output: tables that are swapped whole, so a request is answered by
//! the old rules or by the new ones.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::stores::Key;
use crate::ingress::{Drain, Drained, RouteCounters, RouteInput, RouteTable, Server, publishers};
use crate::plan::IngressPlan;
use crate::store::MessageStore;
use crate::telemetry::metrics::{Metrics, RouteMetrics};

/// One listener at work.
#[derive(Debug)]
struct Listener {
    address: SocketAddr,
    table: Arc<ArcSwap<RouteTable>>,
    task: Mutex<Option<JoinHandle<Drained>>>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Listeners {
    shared: Listener,
    own: BTreeMap<Key, Listener>,
    stop: CancellationToken,
}

/// One route as it is put into a table.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) plan: IngressPlan,
    pub(super) stores: BTreeMap<String, Arc<dyn MessageStore>>,
    pub(super) metrics: RouteMetrics,
    pub(super) counters: Arc<RouteCounters>,
}

/// Tables that were compiled and not yet taken over.
#[derive(Debug)]
pub(super) struct Tables {
    shared: RouteTable,
    own: BTreeMap<Key, RouteTable>,
}

/// Why an address can't be listened on.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on {address} ({flag}): {source}; choose another address, or port 0 for any free one")]
pub(super) struct BindError {
    address: SocketAddr,
    flag: &'static str,
    source: io::Error,
}

/// Binds, or says which flag to change.
pub(super) fn bind<T>(
    address: SocketAddr,
    flag: &'static str,
    how: impl FnOnce(SocketAddr) -> io::Result<T>,
) -> Result<T, BindError> {
    how(address).map_err(|source| BindError { address, flag, source })
}

/// Listeners that are bound: callers who connect wait in the kernel until they serve.
#[derive(Debug)]
pub(super) struct Bound {
    shared: Server,
    own: BTreeMap<Key, Server>,
}

impl Bound {
    /// Binds the shared listener and those of single routes.
    pub(super) fn new(listen: SocketAddr, own: &BTreeMap<Key, SocketAddr>) -> Result<Self, BindError> {
        let shared = bind(listen, "--listen", Server::bind)?;
        let own = own.iter().map(|(key, address)| Ok((key.clone(), bind(*address, "--route", Server::bind)?)));
        Ok(Self { shared, own: own.collect::<Result<_, _>>()? })
    }

    /// The shared listener's address.
    pub(super) fn address(&self) -> SocketAddr {
        self.shared.local_addr()
    }

    /// Starts serving.
    pub(super) fn serve(self, tables: Tables, grace: Duration) -> Listeners {
        let stop = CancellationToken::new();
        // Nobody withdraws endpoints here: new connections are refused at once.
        let drain = Drain { linger: Duration::ZERO, grace };
        let start = |server: Server, table: RouteTable| {
            let table = Arc::new(ArcSwap::from_pointee(table));
            let address = server.local_addr();
            let task = tokio::spawn(server.serve(table.clone(), stop.clone(), drain));
            Listener { address, table, task: Mutex::new(Some(task)) }
        };
        let Tables { shared, own: mut tables } = tables;
        let shared = start(self.shared, shared);
        let own = self.own.into_iter().filter_map(|(key, server)| {
            let table = tables.remove(&key)?;
            Some((key, start(server, table)))
        });
        Listeners { shared, own: own.collect(), stop: stop.clone() }
    }

    /// The routes that have a listener of their own.
    pub(super) fn own(&self) -> Vec<Key> {
        self.own.keys().cloned().collect()
    }
}

impl Listeners {
    /// Takes compiled tables over, each at once.
    pub(super) fn swap(&self, mut tables: Tables) {
        self.shared.table.store(Arc::new(tables.shared));
        for (key, listener) in &self.own {
            if let Some(table) = tables.own.remove(key) {
                listener.table.store(Arc::new(table));
            }
        }
    }

    /// Where a route is reached.
    pub(super) fn address(&self, route: &Key) -> SocketAddr {
        self.own.get(route).unwrap_or(&self.shared).address
    }

    /// The routes that have a listener of their own.
    pub(super) fn own(&self) -> Vec<Key> {
        self.own.keys().cloned().collect()
    }

    /// Whether one of them has ended, which none does by itself.
    pub(super) fn has_ended(&self) -> bool {
        std::iter::once(&self.shared).chain(self.own.values()).any(|listener| {
            listener.task.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(JoinHandle::is_finished)
        })
    }

    /// Stops accepting, and waits until every request is answered or the grace period is over. Answers whether all
    /// were answered.
    pub(super) async fn drain(&self) -> bool {
        self.stop.cancel();
        let mut complete = true;
        for listener in std::iter::once(&self.shared).chain(self.own.values()) {
            let task = listener.task.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(task) = task {
                complete &= matches!(task.await, Ok(Drained::Complete));
            }
        }
        complete
    }
}

/// Compiles the tables of all listeners. Nothing is taken over yet.
pub(super) fn tables(
    routes: impl IntoIterator<Item = (Key, Route)>,
    own: &[Key],
    metrics: &Metrics,
) -> Result<Tables, String> {
    let mut shared = Vec::new();
    let mut apart: BTreeMap<Key, Vec<RouteInput>> = own.iter().map(|key| (key.clone(), Vec::new())).collect();
    for (key, route) in routes {
        let input = RouteInput {
            publishers: publishers(&route.plan, &route.stores, metrics),
            metrics: route.metrics,
            counters: route.counters,
            plan: route.plan,
        };
        apart.get_mut(&key).unwrap_or(&mut shared).push(input);
    }
    let compile = |inputs| RouteTable::compile(inputs).map_err(|error| error.to_string());
    let own = apart.into_iter().map(|(key, inputs)| Ok((key, compile(inputs)?)));
    Ok(Tables { shared: compile(shared)?, own: own.collect::<Result<_, String>>()? })
}
