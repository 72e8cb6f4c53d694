//! What every reconcile works with.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::{Client, Resource, ResourceExt as _};

use super::brokers::Brokers;
use super::error::Error;
use super::events::Events;
use super::leader::Leadership;
use super::references::References;
use super::resources::{ChildKind, WorkerSettings};
use super::samples::Samples;
use super::watch::{Caches, Duties};
use crate::api::{ForwardingProcessor, IngressRoute, MessageStore, UID_LABEL};
use crate::plan::Plan;
use crate::plan::world::World;
use crate::telemetry::controller::ControllerMetrics;

/// See the module. One for each namespace that is watched, or one for all.
pub(super) struct Context {
    pub(super) client: Client,
    pub(super) settings: WorkerSettings,
    pub(super) caches: Caches,
    pub(super) duties: Duties,
    pub(super) references: References,
    pub(super) brokers: Brokers,
    pub(super) samples: Samples,
    pub(super) events: Events,
    pub(super) leadership: Leadership,
    pub(super) metrics: ControllerMetrics,
    /// What was applied last of each child, and what became of it.
    pub(super) applied: Mutex<HashMap<(String, ChildKind, String), Applied>>,
    /// The plan of each object that has one, by uid.
    plans: Mutex<BTreeMap<String, Arc<Plan>>>,
    /// Failures in a row, by kind, namespace and name.
    failures: Mutex<HashMap<String, u32>>,
}

/// What was applied, and how it looked when it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Applied {
    pub(super) hash: u64,
    pub(super) mark: String,
}

impl Context {
    #[expect(clippy::too_many_arguments, reason = "each is a part of its own, and named where it is made")]
    pub(super) fn new(
        client: Client,
        settings: WorkerSettings,
        caches: Caches,
        duties: Duties,
        references: References,
        events: Events,
        leadership: Leadership,
        metrics: ControllerMetrics,
    ) -> Self {
        Self {
            client,
            settings,
            caches,
            duties,
            brokers: Brokers::new(references.clone()),
            references,
            samples: Samples::default(),
            events,
            leadership,
            metrics,
            applied: Mutex::default(),
            plans: Mutex::default(),
            failures: Mutex::default(),
        }
    }

    /// Nothing is written by a controller that may have been followed by another.
    pub(super) fn authority(&self) -> Result<(), Error> {
        if self.leadership.is_ours() { Ok(()) } else { Err(Error::NotLeading) }
    }

    /// The objects of one namespace.
    pub(super) fn objects(&self, namespace: &str) -> Objects {
        let here = |object: &dyn Fn() -> Option<String>| object().as_deref() == Some(namespace);
        let stores = self.caches.stores.state().into_iter();
        let routes = self.caches.routes.state().into_iter();
        let processors = self.caches.processors.state().into_iter();
        Objects {
            stores: stores.filter(|object| here(&|| object.namespace())).collect(),
            routes: routes.filter(|object| here(&|| object.namespace())).collect(),
            processors: processors.filter(|object| here(&|| object.namespace())).collect(),
        }
    }

    pub(super) fn plan(&self, uid: &str) -> Option<Arc<Plan>> {
        lock(&self.plans).get(uid).cloned()
    }

    pub(super) fn keep_plan(&self, uid: &str, plan: Arc<Plan>) {
        lock(&self.plans).insert(uid.to_owned(), plan);
    }

    /// Whether a pod runs a plan with this store.
    pub(super) fn is_used(&self, namespace: &str, store: &str) -> bool {
        let pods = self.caches.pods.state();
        let here = pods.iter().filter(|pod| pod.namespace().as_deref() == Some(namespace));
        let mut plans = here.filter_map(|pod| self.plan(pod.labels().get(UID_LABEL)?));
        plans.any(|plan| plan.stores().contains_key(store)) || self.samples.store(namespace, store).is_some()
    }

    /// Forgets the plans of objects that are gone, when their pods are.
    pub(super) fn forget_plans(&self, objects: &HashSet<String>) {
        let pods = self.caches.pods.state();
        let of_pods: HashSet<&str> =
            pods.iter().filter_map(|pod| pod.labels().get(UID_LABEL)).map(String::as_str).collect();
        lock(&self.plans).retain(|uid, _| objects.contains(uid) || of_pods.contains(uid.as_str()));
    }

    /// Counts a failure; answers how many there were before it in a row.
    pub(super) fn failed<K: Resource<DynamicType = ()>>(&self, object: &K) -> u32 {
        let mut failures = lock(&self.failures);
        let count = failures.entry(name_of(object)).or_insert(0);
        *count += 1;
        *count - 1
    }

    pub(super) fn succeeded<K: Resource<DynamicType = ()>>(&self, object: &K) {
        lock(&self.failures).remove(&name_of(object));
    }
}

fn name_of<K: Resource<DynamicType = ()>>(object: &K) -> String {
    format!("{} {}/{}", K::kind(&()), object.namespace().unwrap_or_default(), object.name_any())
}

/// Objects to judge each other by.
pub(super) struct Objects {
    stores: Vec<Arc<super::watch::Guarded<MessageStore>>>,
    routes: Vec<Arc<super::watch::Guarded<IngressRoute>>>,
    processors: Vec<Arc<super::watch::Guarded<ForwardingProcessor>>>,
}

impl Objects {
    pub(super) fn world(&self) -> World<'_> {
        let unreadable = self.stores.iter().filter_map(|object| {
            let meta = object.0.as_ref().err()?;
            Some((meta.metadata.namespace.as_deref()?, meta.metadata.name.as_deref()?))
        });
        World::new(
            self.stores.iter().filter_map(|object| object.0.as_ref().ok()),
            self.routes.iter().filter_map(|object| object.0.as_ref().ok()),
            self.processors.iter().filter_map(|object| object.0.as_ref().ok()),
        )
        .with_unreadable_stores(unreadable)
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Single insertions and removals: a panicking holder leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
