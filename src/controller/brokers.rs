//! Brokers that the controller dials itself: for stores that no worker uses, and to remove what objects leave behind.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::due::Key;
use super::references::References;
use crate::api::condition::Time;
use crate::broker;
use crate::plan::{BrokerPlan, StorePlan};
use crate::status::link::Link;
use crate::status::report::StoreReport;
use crate::store::rabbitmq::{Broker, WeakBroker};
use crate::store::{Connection, MessageStore, StoreError};

/// A store bounds its answers itself; this is the net below.
const DEPTH_TIMEOUT: Duration = Duration::from_secs(5);

/// A store that nobody asked for since is not held any more.
const UNUSED_AFTER: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub(super) struct Brokers {
    references: References,
    dialled: Mutex<HashMap<(String, BrokerHash), WeakBroker>>,
    stores: Mutex<BTreeMap<Key, Held>>,
    /// Stores whose objects are on their way out: a handle would declare a queue that is being deleted.
    leaving: Mutex<BTreeSet<Key>>,
}

/// A broker as it is named, for lookups.
type BrokerHash = String;

#[derive(Debug)]
struct Held {
    plan: StorePlan,
    store: Arc<dyn MessageStore>,
    used: Instant,
}

impl Brokers {
    pub(super) fn new(references: References) -> Self {
        Self { references, dialled: Mutex::default(), stores: Mutex::default(), leaving: Mutex::default() }
    }

    /// A store, declared as soon as there is a connection. Kept while it is asked for. `None` while its object is on its
    /// way out.
    pub(super) fn store(&self, namespace: &str, plan: &StorePlan) -> Option<Arc<dyn MessageStore>> {
        let key = (namespace.to_owned(), plan.name.clone());
        let leaving = lock(&self.leaving);
        if leaving.contains(&key) {
            return None;
        }
        let mut stores = lock(&self.stores);
        stores.retain(|_, held| held.used.elapsed() < UNUSED_AFTER);
        if let Some(held) = stores.get_mut(&key)
            && held.plan == *plan
        {
            held.used = Instant::now();
            return Some(held.store.clone());
        }
        let broker = self.broker(namespace, &plan.broker);
        let store = broker.store(&format!("{namespace}/{}", plan.name), &plan.topology, plan.confirm_timeout);
        let held = Held { plan: plan.clone(), store: store.clone(), used: Instant::now() };
        stores.insert(key, held);
        Some(store)
    }

    /// The object of a store is on its way out: from now on there is no handle of ours.
    pub(super) fn leave(&self, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        lock(&self.leaving).insert(key.clone());
        lock(&self.stores).remove(&key);
    }

    /// An object of this name is there, and stays.
    pub(super) fn stay(&self, namespace: &str, name: &str) {
        lock(&self.leaving).remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// Lets go of a store that workers look after.
    pub(super) fn release(&self, namespace: &str, name: &str) {
        lock(&self.stores).remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// One pair of connections for all stores that name the same broker.
    pub(super) fn broker(&self, namespace: &str, plan: &BrokerPlan) -> Broker {
        let named = serde_json::to_string(plan).unwrap_or_default();
        let mut dialled = lock(&self.dialled);
        dialled.retain(|_, broker| broker.upgrade().is_some());
        let key = (namespace.to_owned(), named);
        if let Some(broker) = dialled.get(&key).and_then(WeakBroker::upgrade) {
            return broker;
        }
        let broker = Broker::start(
            &format!("controller {namespace}/{}", plan.connection.secret()),
            broker::address_from_afar(plan, self.references.values(namespace), namespace),
        );
        dialled.insert(key, broker.downgrade());
        broker
    }

    /// A Secret may have changed: who is not connected tries again.
    pub(super) fn refresh(&self, namespace: &str) {
        let dialled = lock(&self.dialled);
        let here = dialled.iter().filter(|((of, _), _)| of == namespace);
        here.filter_map(|(_, broker)| broker.upgrade()).for_each(|broker| broker.refresh());
    }
}

/// How a store's broker stands.
pub(super) fn link(store: &dyn MessageStore) -> Link {
    Link::from(&*store.connection().borrow())
}

/// The same, with what waits in its queue.
pub(super) async fn look(store: &dyn MessageStore) -> StoreReport {
    let link = link(store);
    let depth = match link {
        Link::Up => timeout(DEPTH_TIMEOUT, store.depth()).await.ok().and_then(Result::ok),
        _ => None,
    };
    StoreReport {
        link,
        ready: depth.map(|depth| depth.ready),
        consumers: depth.map(|depth| depth.consumers),
        made: store.made().map(Time),
    }
}

/// Waits until a store is connected.
pub(super) async fn connected(store: &dyn MessageStore, within: Duration) -> Result<(), StoreError> {
    let mut connection = store.connection();
    let up = connection.wait_for(|connection| *connection == Connection::Up);
    match timeout(within, up).await {
        Ok(Ok(_)) => Ok(()),
        _ => Err(match &*store.connection().borrow() {
            Connection::Down(error) => error.clone(),
            _ => StoreError::NotConnected(format!("not connected in {within:?}")),
        }),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Single insertions and removals: a panicking holder leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
