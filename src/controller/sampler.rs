//! Asks the workers, and writes the numbers.
//!
//! Inputs: the admin address of every worker pod; of stores that no worker uses, their brokers. Outputs: numbers in the
//! status, at most once in 10 s an object and only when they changed; marks for the controllers where something other
//! than a number changed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use kube::ResourceExt as _;
use reqwest::Client;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::ask;
use super::context::Context;
use super::counters;
use super::due::Key;
use super::events::Happened;
use super::fingerprint;
use super::report::{self, Ours, SAMPLER};
use super::samples::Together;
use super::watch::Guarded;
use super::{brokers, message_store};
use crate::api::condition::{self, RESOLVED_REFS, Time};
use crate::api::forwarding_processor::ForwarderWorker;
use crate::api::ingress_route::IngressWorker;
use crate::api::processor_status::{DeadLetterStatus, LastDelivery, LastFailure};
use crate::api::{ForwardingProcessor, IngressRoute, MessageStore};
use crate::core::duration;
use crate::plan::world;
use crate::plan::{ForwarderPlan, ObjectName, Plan, StorePlan, compile};
use crate::status::link::Link;
use crate::status::report::{StoreReport, WorkerReport};

/// Between two rounds.
const EVERY: Duration = Duration::from_secs(3);

/// Brokers that only we look at are asked every so many rounds.
const ROUNDS_BETWEEN_LOOKS: u64 = 3;

/// Between two writes of numbers into one object.
const WRITE_EVERY: Duration = Duration::from_secs(10);

/// Workers that are named in a status; it is what the schema allows.
const MOST_WORKERS: usize = 64;

/// Brokers that are asked at once.
const AT_ONCE: usize = 32;

/// Between two Events about dead letters of one processor.
const DEAD_LETTERS_TOLD_EVERY: Duration = Duration::from_secs(60);

/// See the module.
pub(super) struct Sampler {
    ctx: Arc<Context>,
    client: Client,
    round: u64,
    /// By uid.
    written: HashMap<String, Written>,
    /// What of an object is no number, by uid.
    facts: HashMap<String, u64>,
    /// Stores that no worker uses, by namespace and name.
    looked: BTreeMap<Key, StoreReport>,
}

/// What was written into one object.
#[derive(Debug, Clone, Default)]
struct Written {
    at: Option<Instant>,
    /// Without the time of the sample.
    value: Value,
    sums: Vec<u64>,
    forwarders: Vec<ForwarderWorker>,
    ingresses: Vec<IngressWorker>,
    dead_letters_told: Option<(Instant, u64)>,
    /// They outlive the pods that knew them.
    last_delivery: Option<LastDelivery>,
    last_failure: Option<LastFailure>,
}

impl Sampler {
    pub(super) fn new(ctx: Arc<Context>) -> Result<Self, reqwest::Error> {
        let client = ask::client()?;
        Ok(Self { ctx, client, round: 0, written: HashMap::new(), facts: HashMap::new(), looked: BTreeMap::new() })
    }

    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = self.ctx.caches.synced() => {}
        }
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.round() => {}
            }
        }
    }

    async fn round(&mut self) {
        ask::all(&self.ctx, &self.client).await;
        let ctx = self.ctx.clone();
        let stores = ctx.caches.stores.state();
        let routes = ctx.caches.routes.state();
        let processors = ctx.caches.processors.state();
        if self.round.is_multiple_of(ROUNDS_BETWEEN_LOOKS) {
            self.look(&stores, &processors).await;
        }
        self.round += 1;
        for store in stores.iter().filter_map(|object| object.0.as_ref().ok()) {
            self.store(store).await;
        }
        for route in routes.iter().filter_map(|object| object.0.as_ref().ok()) {
            self.route(route).await;
        }
        for processor in processors.iter().filter_map(|object| object.0.as_ref().ok()) {
            self.processor(processor).await;
        }
        let uids: HashSet<String> = stores
            .iter()
            .filter_map(|object| object.uid())
            .chain(routes.iter().filter_map(|object| object.uid()))
            .chain(processors.iter().filter_map(|object| object.uid()))
            .collect();
        self.written.retain(|uid, _| uids.contains(uid));
        self.facts.retain(|uid, _| uids.contains(uid));
        ctx.forget_plans(&uids);
    }

    /// Looks at the stores that no worker looks at: side by side, for a broker that does not answer takes its time.
    async fn look(&mut self, stores: &[Arc<Guarded<MessageStore>>], processors: &[Arc<Guarded<ForwardingProcessor>>]) {
        let ctx = self.ctx.clone();
        let mut wanted: BTreeMap<Key, StorePlan> = BTreeMap::new();
        for store in stores.iter().filter_map(|object| object.0.as_ref().ok()).filter(|store| is_settled(*store)) {
            if let Ok(plan) = compile::store(store) {
                wanted.insert((store.namespace().unwrap_or_default(), store.name_any()), plan);
            }
        }
        // The default dead letter queue has no object of its own.
        for processor in
            processors.iter().filter_map(|object| object.0.as_ref().ok()).filter(|object| is_settled(*object))
        {
            let plan = ctx.plan(&processor.uid().unwrap_or_default());
            let namespace = processor.namespace().unwrap_or_default();
            let named = plan.iter().flat_map(|plan| plan.stores());
            wanted.extend(named.map(|(name, plan)| ((namespace.clone(), name.clone()), plan.clone())));
        }
        wanted.retain(|(namespace, name), _| {
            let is_sampled = ctx.samples.store(namespace, name).is_some();
            if is_sampled {
                ctx.brokers.release(namespace, name);
            }
            !is_sampled
        });
        let looks = wanted.into_iter().filter_map(|(key, plan)| {
            let handle = message_store::handle(&ctx, &key.0, &plan)?;
            Some(async move { (key, brokers::look(&*handle).await) })
        });
        self.looked = stream::iter(looks).buffer_unordered(AT_ONCE).collect().await;
    }

    fn report_of(&self, namespace: &str, name: &str) -> Option<StoreReport> {
        let looked = || self.looked.get(&(namespace.to_owned(), name.to_owned())).cloned();
        self.ctx.samples.store(namespace, name).or_else(looked)
    }

    async fn store(&mut self, store: &MessageStore) {
        let namespace = store.namespace().unwrap_or_default();
        let Some(found) = self.report_of(&namespace, &store.name_any()) else { return };
        let facts = fingerprint::of(&json!([found.link, found.made]));
        if self.turned(store.uid(), facts) {
            self.ctx.duties.stores.mark(&namespace, &store.name_any());
        }
        // What can't be asked now is left as it was.
        let (Some(ready), Some(consumers)) = (found.ready, found.consumers) else { return };
        let numbers = json!({"messages": ready, "consumers": consumers});
        let Some(mut numbers) = self.due(store, numbers) else { return };
        numbers["sampledAt"] = json!(Time(Timestamp::now()));
        self.send(store, numbers).await;
    }

    async fn route(&mut self, route: &IngressRoute) {
        let together = self.ctx.samples.of(&world::Named::object_name(route));
        let links = self.links(route, &together);
        if self.turned(route.uid(), facts(&together, &links)) {
            self.ctx.duties.routes.mark(&route.namespace().unwrap_or_default(), &route.name_any());
        }
        let status = route.status.clone().unwrap_or_default();
        let written = self.written.entry(route.uid().unwrap_or_default()).or_insert_with(|| Written {
            sums: vec![status.accepted.unwrap_or(0), status.rejected.unwrap_or(0), status.failed.unwrap_or(0)],
            ingresses: status.workers.clone(),
            ..Written::default()
        });
        let seen: Vec<IngressWorker> = together.workers.iter().filter_map(ingress_worker).collect();
        let mut sums = [0; 3];
        sums.copy_from_slice(&written.sums);
        let there = pods_there(&self.ctx, &world::Named::object_name(route));
        let workers = counters::add(&mut sums, &written.ingresses, &seen, |worker| there.contains(&worker.pod));
        written.sums = sums.to_vec();
        written.ingresses.clone_from(&workers);
        let numbers = json!({"accepted": sums[0], "rejected": sums[1], "failed": sums[2], "workers": named(&workers)});
        if let Some(numbers) = self.due(route, numbers) {
            self.send(route, numbers).await;
        }
    }

    async fn processor(&mut self, processor: &ForwardingProcessor) {
        let (namespace, uid) = (processor.namespace().unwrap_or_default(), processor.uid().unwrap_or_default());
        let together = self.ctx.samples.of(&world::Named::object_name(processor));
        let links = self.links(processor, &together);
        if self.turned(processor.uid(), facts(&together, &links)) {
            self.ctx.duties.processors.mark(&namespace, &processor.name_any());
        }
        let status = processor.status.clone().unwrap_or_default();
        let written = self.written.entry(uid.clone()).or_insert_with(|| Written {
            sums: [status.delivered, status.failed_attempts, status.dead_lettered, status.dropped, status.filtered]
                .map(Option::unwrap_or_default)
                .to_vec(),
            forwarders: status.workers.clone(),
            last_delivery: status.last_delivery,
            last_failure: status.last_failure,
            ..Written::default()
        });
        let standing = &together.standing;
        written.last_delivery = standing.last_delivery.clone().or(written.last_delivery.take());
        written.last_failure = standing.last_failure.clone().or(written.last_failure.take());
        let (last_delivery, last_failure) = (written.last_delivery.clone(), written.last_failure.clone());
        let seen: Vec<ForwarderWorker> = together.workers.iter().filter_map(forwarder_worker).collect();
        let mut sums = [0; 5];
        sums.copy_from_slice(&written.sums);
        let there = pods_there(&self.ctx, &world::Named::object_name(processor));
        let workers = counters::add(&mut sums, &written.forwarders, &seen, |worker| there.contains(&worker.pod));
        written.sums = sums.to_vec();
        written.forwarders.clone_from(&workers);
        self.tell_dead_letters(processor, sums[2]).await;
        let mut numbers = json!({
            "delivered": sums[0], "failedAttempts": sums[1], "deadLettered": sums[2], "dropped": sums[3],
            "filtered": sums[4], "workers": named(&workers),
        });
        let mut put = |name: &str, value: Value| {
            if !value.is_null() {
                numbers[name] = value;
            }
        };
        put("held", json!(standing.held));
        let age = standing.oldest_taken_age.map(|age| duration::format(Duration::from_secs(age.as_secs())));
        put("oldestTakenAge", json!(age));
        put("nextTick", json!(standing.next_tick));
        put("lastDelivery", json!(last_delivery));
        put("lastFailure", json!(last_failure));
        if let Some(Plan::Forwarder(plan)) = self.ctx.plan(&uid).as_deref() {
            let backlog = self.ready(&namespace, &plan.source, &together).map(|ready| ready + standing.held);
            put("backlog", json!(backlog.or(status.backlog)));
            let before = status.dead_letter.as_ref().and_then(|before| before.messages);
            put("deadLetter", json!(self.dead_letters(&namespace, plan, &together, before)));
        } else {
            // Not known before the next reconcile.
            put("backlog", json!(status.backlog));
            put("deadLetter", json!(status.dead_letter));
        }
        if let Some(numbers) = self.due(processor, numbers) {
            self.send(processor, numbers).await;
        }
    }

    /// How the brokers of an object stand: as its workers say; without any, as we find it.
    fn links<K: Ours>(&self, object: &K, together: &Together) -> BTreeMap<String, Link> {
        if !together.workers.is_empty() || !condition::is_true(object.conditions(), RESOLVED_REFS) {
            return together.stores.iter().map(|(name, store)| (name.clone(), store.link.clone())).collect();
        }
        let plan = self.ctx.plan(&object.uid().unwrap_or_default());
        let namespace = object.namespace().unwrap_or_default();
        let stores = plan.iter().flat_map(|plan| plan.stores());
        stores.map(|(name, store)| (name.clone(), message_store::link(&self.ctx, &namespace, store))).collect()
    }

    fn dead_letters(
        &self,
        namespace: &str,
        plan: &ForwarderPlan,
        together: &Together,
        before: Option<u64>,
    ) -> Option<DeadLetterStatus> {
        let name = plan.dead_letters.as_ref()?;
        let store = plan.stores.get(name)?;
        let queue = store.topology.queue.as_ref().map(|queue| queue.name.clone()).unwrap_or_default();
        Some(DeadLetterStatus { queue, messages: self.ready(namespace, name, together).or(before) })
    }

    /// What waits in a store: as the object's workers say, as others say, or as we found it.
    fn ready(&self, namespace: &str, name: &str, together: &Together) -> Option<u64> {
        let own = together.stores.get(name).and_then(|store| store.ready);
        own.or_else(|| self.report_of(namespace, name)?.ready)
    }

    /// Says that there are new dead letters, not more than once a minute.
    async fn tell_dead_letters(&mut self, processor: &ForwardingProcessor, dead_lettered: u64) {
        let Some(written) = self.written.get_mut(&processor.uid().unwrap_or_default()) else { return };
        let (at, told) = *written.dead_letters_told.get_or_insert((Instant::now(), dead_lettered));
        if dead_lettered <= told || (told > 0 && at.elapsed() < DEAD_LETTERS_TOLD_EVERY) {
            return;
        }
        written.dead_letters_told = Some((Instant::now(), dead_lettered));
        let count = dead_lettered - told;
        let messages = if count == 1 { "1 message was".to_owned() } else { format!("{count} messages were") };
        let note = format!(
            "{messages} moved to the dead letter store; status.deadLetter names its queue, status.lastFailure why"
        );
        let happened = Happened { warning: true, reason: "DeadLettered", note };
        self.ctx.events.tell(&report::reference(processor), &happened).await;
    }

    /// Whether what is no number changed.
    fn turned(&mut self, uid: Option<String>, facts: u64) -> bool {
        self.facts.insert(uid.unwrap_or_default(), facts) != Some(facts)
    }

    /// The numbers, if they changed and it is time to write.
    fn due<K: Ours>(&mut self, object: &K, numbers: Value) -> Option<Value> {
        let written = self.written.entry(object.uid().unwrap_or_default()).or_default();
        let is_new = written.value != numbers;
        let is_time = written.at.is_none_or(|at| at.elapsed() >= WRITE_EVERY);
        if !is_new || !is_time || object.meta().deletion_timestamp.is_some() {
            return None;
        }
        if written.value.is_null() && holds(object, &numbers) {
            // A controller that was restarted finds what it wrote before.
            written.value = numbers;
            return None;
        }
        written.value.clone_from(&numbers);
        written.at = Some(Instant::now());
        Some(numbers)
    }

    async fn send<K: Ours>(&mut self, object: &K, numbers: Value) {
        if let Err(error) = report::patch(&self.ctx, object, SAMPLER, &numbers).await {
            tracing::debug!(%error, kind = K::KIND, name = object.name_any(), "the numbers could not be written");
            // Again with the next round.
            if let Some(written) = self.written.get_mut(&object.uid().unwrap_or_default()) {
                (written.value, written.at) = (Value::Null, None);
            }
        }
    }
}

/// Whether an object stays, and what it names is there.
fn is_settled<K: Ours>(object: &K) -> bool {
    object.meta().deletion_timestamp.is_none() && condition::is_true(object.conditions(), RESOLVED_REFS)
}

/// As many as a status may name.
fn named<W: serde::Serialize>(workers: &[W]) -> Value {
    json!(workers.iter().take(MOST_WORKERS).collect::<Vec<_>>())
}

fn pods_there(ctx: &Context, object: &ObjectName) -> Vec<String> {
    ctx.caches.pods_of(object).iter().map(|pod| pod.name_any()).collect()
}

fn ingress_worker((pod, report): &(String, WorkerReport)) -> Option<IngressWorker> {
    let counts = report.ingress?;
    Some(IngressWorker {
        pod: pod.clone(),
        started: Some(whole_seconds(&report.started)),
        accepted: counts.accepted,
        rejected: counts.rejected,
        failed: counts.failed,
    })
}

fn forwarder_worker((pod, report): &(String, WorkerReport)) -> Option<ForwarderWorker> {
    let standing = report.forwarder.as_ref()?;
    Some(ForwarderWorker {
        pod: pod.clone(),
        started: Some(whole_seconds(&report.started)),
        delivered: standing.delivered,
        failed_attempts: standing.failed_attempts,
        dead_lettered: standing.dead_lettered,
        dropped: standing.dropped,
        filtered: standing.filtered,
    })
}

/// As the API server keeps times: what comes back must be equal to what was sent.
fn whole_seconds(time: &Time) -> Time {
    Time(Timestamp::from_second(time.0.as_second()).unwrap_or(time.0))
}

/// What of an object is no number.
fn facts(together: &Together, links: &BTreeMap<String, Link>) -> u64 {
    let standing = &together.standing;
    fingerprint::of(&json!({
        "links": links,
        "workers": !together.workers.is_empty(),
        "deactivation": standing.deactivation,
        "reachable": standing.target_reachable,
        "hindrance": standing.hindrance,
        "lost": standing.responses_lost,
        "cleared": standing.cleared,
    }))
}

/// Numbers that a status does not always have.
const SOMETIMES: [&str; 7] =
    ["held", "oldestTakenAge", "nextTick", "lastDelivery", "lastFailure", "backlog", "deadLetter"];

/// Whether the object's status has these numbers, and no others.
fn holds<K: Ours>(object: &K, numbers: &Value) -> bool {
    let status = serde_json::to_value(object).map(|mut value| value["status"].take()).unwrap_or_default();
    // An empty list and none are the same once they are read.
    let is_empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
    let has =
        |(name, value): (&String, &Value)| status.get(name).map_or_else(|| is_empty(value), |found| found == value);
    let is_left = |name: &&str| status.get(name).is_some() && numbers.get(name).is_none();
    numbers.as_object().is_some_and(|numbers| numbers.iter().all(has)) && !SOMETIMES.iter().any(is_left)
}
