//! The stores of a local run: declared once, shared by everything that names them.
//!
//! Inputs: store plans. Outputs: stores. Here stands which broker a store gets; at present that is always the
//! embedded one. What is removed from the manifests keeps its queue.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::launch::Turn;
use super::unusable::Unusable;
use crate::plan::{BrokerConnection, BrokerPlan, StorePlan};
use crate::store::embedded::Broker;
use crate::store::{MessageStore, StoreError};

/// Namespace and name of an object.
pub(super) type Key = (String, String);

/// A store, and the plan that it was declared by.
type Declared = (StorePlan, Arc<dyn MessageStore>);

/// The stores that are declared, by namespace and name. The default dead letter queue of a store is one of them.
#[derive(Debug)]
pub(super) struct Stores {
    broker: Broker,
    declared: Mutex<BTreeMap<Key, Declared>>,
    turns: Mutex<HashMap<(String, String), Turn>>,
}

impl Stores {
    pub(super) fn new(broker: Broker) -> Self {
        Self { broker, declared: Mutex::default(), turns: Mutex::default() }
    }

    /// The store of a plan. Declared anew if the plan is not the one that was declared; blocks for one commit then.
    pub(super) fn declare(&self, namespace: &str, plan: &StorePlan) -> Result<Arc<dyn MessageStore>, StoreError> {
        let key = (namespace.to_owned(), plan.name.clone());
        let mut declared = lock(&self.declared);
        if let Some((known, store)) = declared.get(&key)
            && known == plan
        {
            return Ok(store.clone());
        }
        let store = match self.broker.store(&virtual_host(namespace, &plan.broker), &plan.name, &plan.topology) {
            // The other objects are none the worse for it, and the status says what to do.
            Err(error @ StoreError::Mismatch(_)) => Arc::new(Unusable::new(&plan.name, error)),
            declared => declared?,
        };
        declared.insert(key, (plan.clone(), store.clone()));
        Ok(store)
    }

    /// Every store of these plans, by name.
    pub(super) fn declare_all<'a>(
        &self,
        namespace: &str,
        plans: impl IntoIterator<Item = &'a StorePlan>,
    ) -> Result<BTreeMap<String, Arc<dyn MessageStore>>, (String, StoreError)> {
        plans
            .into_iter()
            .map(|plan| match self.declare(namespace, plan) {
                Ok(store) => Ok((plan.name.clone(), store)),
                Err(error) => Err((format!("{namespace}/{}", plan.name), error)),
            })
            .collect()
    }

    /// Forgets what is not named any more. The queues stay.
    pub(super) fn keep_only(&self, named: impl Fn(&Key) -> bool) {
        lock(&self.declared).retain(|key, _| named(key));
    }

    /// The turn of a store's queue.
    pub(super) fn turn(&self, namespace: &str, plan: &StorePlan) -> Turn {
        let queue = plan.topology.queue.as_ref().map(|queue| queue.name.clone()).unwrap_or_default();
        lock(&self.turns).entry((virtual_host(namespace, &plan.broker), queue)).or_default().clone()
    }

    /// Finishes what waits and closes the file.
    pub(super) fn close(&self) {
        self.broker.close();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Single insertions and removals: a panicking holder leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Stores share queues and exchanges when namespace, connection and virtual host are the same.
fn virtual_host(namespace: &str, broker: &BrokerPlan) -> String {
    let connection = match &broker.connection {
        BrokerConnection::Secret(name) => format!("secret/{name}"),
        BrokerConnection::Cluster(name) => format!("cluster/{name}"),
    };
    format!("{namespace}/{connection}/{}", broker.virtual_host.as_deref().unwrap_or("/"))
}
