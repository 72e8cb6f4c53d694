//! The stores of a local run: declared once, shared by everything that names them.
//!
//! Inputs: store plans. Outputs: stores, each on the broker that [`super::brokers`] finds for it. What is removed from
//! the manifests keeps its queue.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::brokers::{Brokers, Place, virtual_host};
use super::launch::Turn;
use super::unusable::Unusable;
use crate::plan::StorePlan;
use crate::plan::keys::ManifestKeys;
use crate::store::{MessageStore, StoreError};

/// Namespace and name of an object.
pub(super) type Key = (String, String);

/// A store, the plan that it was declared by, and where.
type Declared = (StorePlan, Place, Arc<dyn MessageStore>);

/// The stores that are declared, by namespace and name. The default dead letter queue of a store is one of them.
#[derive(Debug)]
pub(super) struct Stores {
    brokers: Brokers,
    declared: Mutex<BTreeMap<Key, Declared>>,
    turns: Mutex<HashMap<(String, String), Turn>>,
}

impl Stores {
    pub(super) fn new(brokers: Brokers) -> Self {
        Self { brokers, declared: Mutex::default(), turns: Mutex::default() }
    }

    /// The store of a plan. Declared anew if the plan is not the one that was declared; blocks for one commit then.
    pub(super) fn declare(&self, namespace: &str, plan: &StorePlan) -> Result<Arc<dyn MessageStore>, StoreError> {
        let key = (namespace.to_owned(), plan.name.clone());
        let mut declared = lock(&self.declared);
        let place = self.brokers.place(namespace, &plan.broker);
        if let Some((known, at, store)) = declared.get(&key)
            && known == plan
            && *at == place
        {
            return Ok(store.clone());
        }
        let store = match self.brokers.store(namespace, &place, plan) {
            // The other objects are none the worse for it, and the status says what to do.
            Err(error @ StoreError::Mismatch(_)) => Arc::new(Unusable::new(&plan.name, error)),
            declared => declared?,
        };
        declared.insert(key, (plan.clone(), place, store.clone()));
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

    /// Takes the Secrets that edited manifests hold.
    pub(super) fn take_keys(&self, keys: &ManifestKeys) {
        self.brokers.take_keys(keys);
    }

    /// Where the stores are, by place.
    pub(super) fn places(&self) -> BTreeMap<Place, Vec<String>> {
        let mut places: BTreeMap<Place, Vec<String>> = BTreeMap::new();
        for ((_, name), (_, place, _)) in lock(&self.declared).iter() {
            places.entry(place.clone()).or_default().push(name.clone());
        }
        places
    }

    /// The turn of a store's queue.
    pub(super) fn turn(&self, namespace: &str, plan: &StorePlan) -> Turn {
        let queue = plan.topology.queue.as_ref().map(|queue| queue.name.clone()).unwrap_or_default();
        lock(&self.turns).entry((virtual_host(namespace, &plan.broker), queue)).or_default().clone()
    }

    /// Finishes what waits and closes the file.
    pub(super) fn close(&self) {
        self.brokers.close();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Single insertions and removals: a panicking holder leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
