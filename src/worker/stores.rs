//! The stores of a worker's plan, each on the broker that its Secret names.
//!
//! One pair of connections serves all stores of one broker.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::mounts::Mounts;
use crate::api::condition::Time;
use crate::broker;
use crate::plan::{BrokerPlan, Plan};
use crate::status::link::Link;
use crate::status::report::StoreReport;
use crate::store::rabbitmq::Broker;
use crate::store::{Connection, MessageStore};
use crate::telemetry::metrics::{Metrics, StoreMetrics};

/// A store bounds its answers itself; this is the net below.
const DEPTH_TIMEOUT: Duration = Duration::from_secs(3);

/// See the module.
#[derive(Debug)]
pub(super) struct Stores {
    brokers: Vec<(BrokerPlan, Broker)>,
    all: BTreeMap<String, Arc<dyn MessageStore>>,
    metrics: BTreeMap<String, StoreMetrics>,
}

impl Stores {
    /// Starts to connect.
    pub(super) fn start(plan: &Plan, namespace: &str, mounts: &Mounts, metrics: &Metrics) -> Self {
        let mut brokers: Vec<(BrokerPlan, Broker)> = Vec::new();
        let mut stores = BTreeMap::new();
        for (name, store) in plan.stores() {
            let known = brokers.iter().find(|(plan, _)| *plan == store.broker).map(|(_, broker)| broker.clone());
            let broker = known.unwrap_or_else(|| {
                let broker = Broker::start(
                    &format!("worker {namespace}/{}", store.broker.connection.secret()),
                    broker::address(&store.broker, Arc::new(mounts.clone())),
                );
                brokers.push((store.broker.clone(), broker.clone()));
                broker
            });
            let handle = broker.store(&format!("{namespace}/{name}"), &store.topology, store.confirm_timeout);
            stores.insert(name.clone(), handle);
        }
        let metrics = stores.keys().map(|name| (name.clone(), metrics.store(&format!("{namespace}/{name}")))).collect();
        Self { brokers, all: stores, metrics }
    }

    pub(super) fn all(&self) -> &BTreeMap<String, Arc<dyn MessageStore>> {
        &self.all
    }

    /// Waits until each store is connected, or known not to be.
    pub(super) async fn settled(&self) {
        for store in self.all.values() {
            let mut connection = store.connection();
            // An error means that the store is gone, and then nothing is to be waited for.
            let _ = connection.wait_for(|connection| *connection != Connection::Connecting).await;
        }
    }

    /// A Secret has changed: who is not connected tries again at once.
    pub(super) fn refresh(&self) {
        self.brokers.iter().for_each(|(_, broker)| broker.refresh());
    }

    /// How each stands. Sets the gauges as well.
    pub(super) async fn report(&self) -> BTreeMap<String, StoreReport> {
        let mut reports = BTreeMap::new();
        for (name, store) in &self.all {
            let connection = store.connection().borrow().clone();
            let depth = timeout(DEPTH_TIMEOUT, store.depth()).await.ok().and_then(Result::ok);
            if let Some(metrics) = self.metrics.get(name) {
                let up = connection == Connection::Up;
                metrics.connected("publish", up);
                metrics.connected("consume", up);
                if let Some(depth) = depth {
                    metrics.backlog.set(i64::try_from(depth.ready).unwrap_or(i64::MAX));
                }
            }
            let report = StoreReport {
                link: Link::from(&connection),
                ready: depth.map(|depth| depth.ready),
                consumers: depth.map(|depth| depth.consumers),
                made: store.made().map(Time),
            };
            reports.insert(name.clone(), report);
        }
        reports
    }
}
