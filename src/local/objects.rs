//! The objects that a local run works with at one moment. Replaced whole by a reload, read without a lock.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::keeper::Keeper;
use super::listeners::Route;
use super::stores::Key;
use crate::plan::{ForwarderPlan, StorePlan};
use crate::store::MessageStore;
use crate::telemetry::metrics::{ProcessorMetrics, StoreMetrics};

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct Objects {
    pub(super) stores: BTreeMap<Key, StoreObject>,
    pub(super) routes: BTreeMap<Key, RouteObject>,
    pub(super) processors: BTreeMap<Key, ProcessorObject>,
}

/// What every object has.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) namespace: String,
    pub(super) name: String,
    /// Counts the specs that were taken over under this name.
    pub(super) generation: i64,
    /// When it was first taken over.
    pub(super) created: Timestamp,
    /// As it stands in the manifest, defaults filled in.
    pub(super) spec: Value,
}

impl Facts {
    /// Of an object that was not there before, or that was.
    pub(super) fn new(key: &Key, spec: Value, before: Option<&Self>) -> Self {
        let (generation, created) = match before {
            None => (1, Timestamp::now()),
            Some(before) => (before.generation + i64::from(before.spec != spec), before.created),
        };
        Self { namespace: key.0.clone(), name: key.1.clone(), generation, created, spec }
    }

    /// `<namespace>/<name>`.
    pub(super) fn slashed(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// A MessageStore.
#[derive(Debug, Clone)]
pub(super) struct StoreObject {
    pub(super) facts: Facts,
    pub(super) plan: StorePlan,
    pub(super) store: Arc<dyn MessageStore>,
    pub(super) metrics: StoreMetrics,
}

/// An IngressRoute.
#[derive(Debug, Clone)]
pub(super) struct RouteObject {
    pub(super) facts: Facts,
    pub(super) route: Route,
}

/// A ForwardingProcessor.
#[derive(Debug, Clone)]
pub(super) struct ProcessorObject {
    pub(super) facts: Facts,
    pub(super) plan: ForwarderPlan,
    /// Every store that the plan names.
    pub(super) stores: BTreeMap<String, Arc<dyn MessageStore>>,
    pub(super) source: Arc<dyn MessageStore>,
    pub(super) dead_letters: Option<Arc<dyn MessageStore>>,
    pub(super) metrics: ProcessorMetrics,
    pub(super) keeper: Arc<Keeper>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_generation_counts_changes_of_the_spec() {
        let key = ("shop".to_owned(), "orders".to_owned());
        let first = Facts::new(&key, json!({"a": 1}), None);
        let same = Facts::new(&key, json!({"a": 1}), Some(&first));
        let changed = Facts::new(&key, json!({"a": 2}), Some(&same));
        assert_eq!((first.generation, same.generation, changed.generation), (1, 1, 2));
        assert_eq!(first.created, changed.created);
    }
}
