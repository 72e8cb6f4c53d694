//! From the desired objects to running parts, and what is known of them.
//!
//! Inputs: the objects of the manifests, at the start and at each reload. Outputs: declared stores, route tables,
//! processors that run; status and metrics. What did not change is not touched; what left the manifests is stopped, and
//! its queue is kept. It must not read files and must not decide what is valid.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::brokers::Place;
use super::desired::{Desired, Processor};
use super::items::{self, Item};
use super::keeper::{Identity, Keeper, What, Wish};
use super::launch::{Ingredients, Launch, Services};
use super::listeners::{self, Bound, Listeners, Route, Tables};
use super::names::{InvalidFlag, Wanted, Which};
use super::objects::{Facts, Objects, ProcessorObject, RouteObject, StoreObject};
use super::stores::{Key, Stores};
use crate::api::condition::{self, Condition};
use crate::ingress::RouteTable;
use crate::plan::advice::Attempt;
use crate::plan::keys::ManifestKeys;
use crate::store::{Connection, MessageStore, StoreError};
use crate::telemetry::metrics::Metrics;

/// For an object that left the manifests: above what any attempt takes.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(20 * 60);

/// See the module.
#[derive(Debug)]
pub struct Supervisor {
    metrics: Metrics,
    stores: Stores,
    services: Services,
    hold_limit: Option<Duration>,
    listeners: OnceLock<Listeners>,
    objects: ArcSwap<Objects>,
    /// The conditions as they were read last, for the times of their transitions.
    read: Mutex<BTreeMap<(&'static str, Key), Vec<Condition>>>,
    /// Processors that left the manifests and may still have an attempt under way.
    leaving: Mutex<Vec<(Key, Arc<Keeper>)>>,
    ready: AtomicBool,
}

/// A processor that was told to deliver again.
#[derive(Debug)]
pub(super) struct Reactivated {
    /// `<namespace>/<name>`.
    pub(super) processor: String,
    pub(super) was_deactivated: bool,
}

/// Why a processor was not reactivated.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReactivateError {
    #[error(transparent)]
    Name(#[from] InvalidFlag),
    #[error("ForwardingProcessor {0}; `stagepost status` lists all")]
    Which(#[from] Which),
    #[error("{0} is suspended; set spec.suspend to false, which ends a deactivation as well")]
    Suspended(String),
    #[error("the record of the deactivation can't be removed: {0}; try again")]
    Store(#[from] StoreError),
}

/// A change that is complete and can't fail any more.
struct Change {
    objects: Objects,
    wishes: Vec<(Key, Wish)>,
    tables: Tables,
}

impl Supervisor {
    /// Nothing runs yet.
    pub(super) fn new(stores: Stores, services: Services, hold_limit: Option<Duration>) -> Self {
        Self {
            metrics: Metrics::default(),
            stores,
            services,
            hold_limit,
            listeners: OnceLock::new(),
            objects: ArcSwap::default(),
            read: Mutex::default(),
            leaving: Mutex::default(),
            ready: AtomicBool::new(false),
        }
    }

    /// Starts everything.
    pub(super) fn start(&self, desired: Desired, bound: Bound, grace: Duration) -> Result<(), Vec<String>> {
        let change = self.prepare(desired, &bound.own())?;
        let Change { objects, wishes, tables } = change;
        let _ = self.listeners.set(bound.serve(tables, grace));
        self.take_over(objects, wishes);
        self.ready.store(true, Ordering::Release);
        Ok(())
    }

    /// Takes edited objects over, all of them or none.
    pub(super) fn reload(&self, desired: Desired) -> Result<(), Vec<String>> {
        let Some(listeners) = self.listeners.get() else { return Ok(()) };
        let Change { objects, wishes, tables } = self.prepare(desired, &listeners.own())?;
        listeners.swap(tables);
        self.take_over(objects, wishes);
        Ok(())
    }

    /// Everything that can fail: first what leaves no trace, for declaring binds and unbinds queues that are in use.
    fn prepare(&self, desired: Desired, own: &[Key]) -> Result<Change, Vec<String>> {
        let checked = desired.routes.values().map(|wanted| RouteTable::check(&wanted.plan));
        let wrong: Vec<String> = checked.filter_map(Result::err).map(|error| error.to_string()).collect();
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let before = self.objects.load();
        self.stores.take_keys(&desired.keys);
        let mut failed = Vec::new();
        let mut objects = Objects::default();
        for (key, wanted) in &desired.stores {
            match self.stores.declare(&key.0, &wanted.plan) {
                Ok(store) => {
                    let facts =
                        Facts::new(key, wanted.spec.clone(), before.stores.get(key).map(|object| &object.facts));
                    let metrics = self.metrics.store(&facts.slashed());
                    let object = StoreObject { facts, plan: wanted.plan.clone(), store, metrics };
                    objects.stores.insert(key.clone(), object);
                }
                Err(error) => failed.push(not_declared(&format!("{}/{}", key.0, key.1), &error)),
            }
        }
        for (key, wanted) in desired.routes {
            let old = before.routes.get(&key);
            let facts = Facts::new(&key, wanted.spec, old.map(|object| &object.facts));
            match self.stores.declare_all(&key.0, wanted.plan.stores.values()) {
                Ok(stores) => {
                    let counters = old.map(|object| object.route.counters.clone()).unwrap_or_default();
                    let metrics = self.metrics.route(&facts.slashed());
                    let route = Route { plan: wanted.plan, stores, metrics, counters };
                    objects.routes.insert(key, RouteObject { facts, route });
                }
                Err((store, error)) => failed.push(not_declared(&store, &error)),
            }
        }
        let mut wishes = Vec::new();
        for (key, wanted) in desired.processors {
            match self.processor(&key, wanted, &desired.keys, before.processors.get(&key)) {
                Ok((object, wish)) => {
                    wishes.push((key.clone(), wish));
                    objects.processors.insert(key, object);
                }
                Err((store, error)) => failed.push(not_declared(&store, &error)),
            }
        }
        let routes = objects.routes.iter().map(|(key, object)| (key.clone(), object.route.clone()));
        match listeners::tables(routes, own, &self.metrics) {
            Ok(tables) if failed.is_empty() => Ok(Change { objects, wishes, tables }),
            Ok(_) => Err(failed),
            Err(error) => {
                failed.push(error);
                Err(failed)
            }
        }
    }

    /// A new processor gets a keeper that waits; its wish comes when the change is taken over.
    fn processor(
        &self,
        key: &Key,
        wanted: Processor,
        keys: &ManifestKeys,
        before: Option<&ProcessorObject>,
    ) -> Result<(ProcessorObject, Wish), (String, StoreError)> {
        let plan = wanted.plan;
        let stores = self.stores.declare_all(&key.0, plan.stores.values())?;
        let facts = Facts::new(key, wanted.spec, before.map(|object| &object.facts));
        let find = |name: &str| stores.get(name).cloned();
        let missing = || (facts.slashed(), StoreError::NotFound(format!("store `{}`", plan.source)));
        let (source, source_plan) = find(&plan.source).zip(plan.stores.get(&plan.source)).ok_or_else(missing)?;
        let what = if wanted.suspend {
            What::Suspend(source.clone())
        } else {
            let with = Ingredients {
                stores: stores.clone(),
                turn: self.stores.turn(&key.0, source_plan),
                values: &keys.of(&key.0),
                services: &self.services,
                hold_limit: self.hold_limit,
            };
            Launch::new(plan.clone(), with).map_or_else(What::Wait, |launch| What::Run(Arc::new(launch)))
        };
        let wish = Wish { what, reactivate: wanted.reactivate };
        let metrics = self.metrics.processor(&facts.slashed());
        let keeper = before.map(|before| before.keeper.clone());
        let keeper = keeper.unwrap_or_else(|| {
            let identity =
                Identity { slashed: facts.slashed(), dotted: format!("{}.{}", key.0, key.1), metrics: metrics.clone() };
            Arc::new(Keeper::new(identity, wish.reactivate.clone(), self.predecessors(key)))
        });
        let dead_letters = plan.dead_letters.as_deref().and_then(find);
        Ok((ProcessorObject { facts, plan, stores, source, dead_letters, metrics, keeper }, wish))
    }

    /// Those of the same name that were removed and have not ended.
    fn predecessors(&self, key: &Key) -> Vec<CancellationToken> {
        let leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        leaving.iter().filter(|(name, _)| name == key).map(|(_, keeper)| keeper.ended()).collect()
    }

    /// Nothing here can fail. Suspensions first: they are due within 2 s.
    fn take_over(&self, objects: Objects, mut wishes: Vec<(Key, Wish)>) {
        let before = self.objects.load_full();
        for (key, object) in before.processors.iter().filter(|(key, _)| !objects.processors.contains_key(*key)) {
            let what = What::Remove(object.source.clone(), Instant::now() + LONGEST_ATTEMPT);
            object.keeper.wish(Wish { what, reactivate: None });
            tracing::info!(processor = %object.facts.slashed(), "removed; its queue is kept");
            let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
            leaving.retain(|(_, keeper)| !keeper.has_ended());
            leaving.push((key.clone(), object.keeper.clone()));
            drop(leaving);
            self.forget("processor", "ForwardingProcessor", key);
        }
        wishes.sort_by_key(|(_, wish)| !matches!(wish.what, What::Suspend(_)));
        for (key, wish) in wishes {
            if let Some(object) = objects.processors.get(&key) {
                say(&object.facts, before.processors.get(&key).map(|object| &object.facts), "ForwardingProcessor");
                if let What::Wait(missing) = &wish.what {
                    tracing::warn!(processor = %object.facts.slashed(), "does not start: {}", missing.message);
                }
                object.keeper.wish(wish);
            }
        }
        for (key, object) in &objects.routes {
            say(&object.facts, before.routes.get(key).map(|object| &object.facts), "IngressRoute");
        }
        for key in before.routes.keys().filter(|key| !objects.routes.contains_key(*key)) {
            tracing::info!(route = %format!("{}/{}", key.0, key.1), "removed");
            self.forget("route", "IngressRoute", key);
        }
        for key in before.stores.keys().filter(|key| !objects.stores.contains_key(*key)) {
            tracing::info!(store = %format!("{}/{}", key.0, key.1), "removed; its queue is kept");
            self.forget("store", "MessageStore", key);
        }
        let named = named_stores(&objects);
        self.stores.keep_only(|key| named.contains(key));
        self.objects.store(Arc::new(objects));
    }

    fn forget(&self, label: &'static str, kind: &'static str, key: &Key) {
        self.metrics.forget(label, &format!("{}/{}", key.0, key.1));
        self.read.lock().unwrap_or_else(PoisonError::into_inner).remove(&(kind, key.clone()));
    }

    /// Where a route is reached.
    pub(super) fn address(&self, route: &Key) -> Option<std::net::SocketAddr> {
        self.listeners.get().map(|listeners| listeners.address(route))
    }

    /// The routes, in order of their names.
    pub(super) fn routes(&self) -> Vec<(Key, crate::plan::IngressPlan)> {
        self.objects.load().routes.iter().map(|(key, object)| (key.clone(), object.route.plan.clone())).collect()
    }

    /// Where the stores are, by place.
    pub(super) fn places(&self) -> BTreeMap<Place, Vec<String>> {
        self.stores.places()
    }

    /// What `/status` answers.
    pub(super) async fn status(&self, listen: std::net::SocketAddr) -> Value {
        json!({"listen": listen.to_string(), "items": self.items().await})
    }

    /// The status of every object.
    pub(super) async fn items(&self) -> Vec<Value> {
        let (objects, now) = (self.objects.load_full(), Timestamp::now());
        let mut found = Vec::new();
        for (key, object) in &objects.stores {
            found.push(self.with_times(key, items::store(object, now).await));
        }
        for (key, object) in &objects.routes {
            let address = self.address(key).map_or_else(String::new, |address| format!("http://{address}"));
            let neighbours =
                objects.processors.values().filter(|other| other.facts.namespace == object.facts.namespace);
            let attempts: Vec<_> = neighbours.filter_map(|other| Attempt::of_plan(&other.plan)).collect();
            found.push(self.with_times(key, items::route(object, &address, &attempts, now)));
        }
        for (key, object) in &objects.processors {
            found.push(self.with_times(key, items::processor(object, now).await));
        }
        found
    }

    /// A condition keeps the time at which it was first seen with its status.
    fn with_times(&self, key: &Key, item: Item) -> Value {
        let mut item_value = item.value;
        let slot = &mut item_value["status"]["conditions"];
        let Ok(fresh) = serde_json::from_value::<Vec<Condition>>(slot.take()) else { return item_value };
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let known = read.entry((item.kind, key.clone())).or_default();
        for condition in fresh {
            condition::set(known, condition);
        }
        *slot = json!(known);
        item_value
    }

    /// What `/metrics` answers. Gauges that cost a look at a store are set here, when somebody asks.
    pub(super) async fn scrape(&self) -> String {
        let objects = self.objects.load_full();
        for object in objects.stores.values() {
            let connected = *object.store.connection().borrow() == Connection::Up;
            object.metrics.connected("publish", connected);
            object.metrics.connected("consume", connected);
            if let Ok(depth) = object.store.depth().await {
                object.metrics.backlog.set(i64::try_from(depth.ready).unwrap_or(i64::MAX));
            }
        }
        for object in objects.processors.values() {
            // Reading sets the age of the oldest message that is held.
            let _ = object.keeper.read();
            if let Some(store) = &object.dead_letters
                && let Ok(depth) = store.depth().await
            {
                object.metrics.dead_letters.set(i64::try_from(depth.ready).unwrap_or(i64::MAX));
            }
        }
        self.metrics.encode()
    }

    /// Plans are loaded and listeners are open, and nothing has begun to stop.
    pub(super) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Ends the Deactivated state of a processor: NAME or NAMESPACE/NAME.
    pub(super) async fn reactivate(&self, name: &str) -> Result<Reactivated, ReactivateError> {
        let wanted: Wanted = name.parse()?;
        let objects = self.objects.load_full();
        let names = objects.processors.keys().map(|(namespace, name)| (namespace.as_str(), name.as_str()));
        let (namespace, name) = wanted.find(names)?;
        let key = (namespace.to_owned(), name.to_owned());
        let Some(object) = objects.processors.get(&key) else {
            return Err(Which::None(wanted.to_string()).into());
        };
        if matches!(object.keeper.wished().what, What::Suspend(_)) {
            return Err(ReactivateError::Suspended(object.facts.slashed()));
        }
        let was_deactivated = object.keeper.reactivate(&*object.source).await?;
        Ok(Reactivated { processor: object.facts.slashed(), was_deactivated })
    }

    /// Whether something that should run until the drain has ended before, which only a bug can do.
    pub(super) fn has_lost_a_part(&self) -> bool {
        let objects = self.objects.load();
        let lost_listener = self.listeners.get().is_some_and(Listeners::has_ended);
        let lost_store = objects.stores.values().any(|object| is_closed(&*object.store));
        let lost = lost_listener || lost_store || objects.processors.values().any(|object| object.keeper.has_ended());
        lost && self.is_ready()
    }

    /// Gives up: what is stored is stored, the rest is made again.
    pub(super) fn close(&self) {
        self.ready.store(false, Ordering::Release);
        self.stores.close();
    }

    /// Ends everything: callers and processors side by side, then the stores, which both need to the last. Answers
    /// whether all that was under way ended within the grace period.
    pub(super) async fn drain(&self, grace: Duration) -> bool {
        self.ready.store(false, Ordering::Release);
        let deadline = Instant::now() + grace;
        let objects = self.objects.load_full();
        let leaving = std::mem::take(&mut *self.leaving.lock().unwrap_or_else(PoisonError::into_inner));
        let leaving = leaving.iter().map(|(_, keeper)| keeper);
        let keepers: Vec<_> = objects.processors.values().map(|object| &object.keeper).chain(leaving).collect();
        // Before anything is waited for: a caller that is slow to send its body must not keep attempts starting.
        for keeper in &keepers {
            keeper.wish(Wish { what: What::End(deadline), reactivate: None });
        }
        let listeners = async {
            match self.listeners.get() {
                Some(listeners) => listeners.drain().await,
                None => true,
            }
        };
        let ends = join_all(keepers.into_iter().map(|keeper| keeper.end(deadline)));
        let (answered, ended) = tokio::join!(listeners, ends);
        self.stores.close();
        answered && ended.into_iter().all(|cut_off| cut_off == Some(0))
    }
}

fn not_declared(store: &str, error: &StoreError) -> String {
    format!(
        "MessageStore {store} can't be declared: {error}; create a new store under another queue name and drain this one with target.storeRef"
    )
}

/// Every store that an object is or names, default dead letter queues included.
fn named_stores(objects: &Objects) -> std::collections::BTreeSet<Key> {
    let of = |namespace: &String, names: Vec<&String>| -> Vec<Key> {
        names.into_iter().map(|name| (namespace.clone(), name.clone())).collect()
    };
    let routes = objects.routes.iter().flat_map(|(key, object)| of(&key.0, object.route.plan.stores.keys().collect()));
    let processors =
        objects.processors.iter().flat_map(|(key, object)| of(&key.0, object.plan.stores.keys().collect()));
    objects.stores.keys().cloned().chain(routes).chain(processors).collect()
}

/// Nobody but the drain closes a store.
fn is_closed(store: &dyn MessageStore) -> bool {
    *store.connection().borrow() == Connection::Down(StoreError::Closed)
}

/// One line for what is new or changed.
fn say(now: &Facts, before: Option<&Facts>, kind: &'static str) {
    match before {
        None => tracing::info!("{kind} {}: taken over", now.slashed()),
        Some(before) if before.generation != now.generation => {
            tracing::info!(generation = now.generation, "{kind} {}: changed", now.slashed());
        }
        Some(_) => {}
    }
}

#[cfg(test)]
mod tests;
