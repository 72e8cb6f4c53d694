//! Reconciles a MessageStore: its queue is declared by whoever uses it, by us if nobody does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt as _;
use kube::runtime::reflector::ObjectRef;

use super::context::Context;
use super::error::Error;
use super::events::Happened;
use super::judge::{self, Judged};
use super::report::Ours as _;
use super::{brokers, deletion, report, settle};
use crate::api::condition::Time;
use crate::api::message_store::{DeletionPolicy, QueueStatus};
use crate::api::{MessageStore, MessageStoreStatus, QUEUE_FINALIZER};
use crate::plan::{StorePlan, compile, keys};
use crate::status::link::Link;
use crate::status::queue::since;
use crate::status::queue_status;
use crate::status::verdict::{Missing, Verdict, unknown_limit};
use crate::store;

pub(super) async fn reconcile(ctx: &Context, object: &MessageStore) -> Result<Duration, Error> {
    if object.metadata.deletion_timestamp.is_some() {
        return deletion::store(ctx, object).await;
    }
    ctx.brokers.stay(&object.namespace().unwrap_or_default(), &object.name_any());
    let wants_finalizer = object.spec.deletion_policy == DeletionPolicy::Delete;
    deletion::finalizer(ctx, object, QUEUE_FINALIZER, wants_finalizer).await?;
    if settle::is_paused(object) {
        return settle::paused(ctx, object).await;
    }
    let namespace = object.namespace().unwrap_or_default();
    let objects = ctx.objects(&namespace);
    let plan = match judge::store(object, &objects.world()) {
        Judged::Valid(plan) => plan,
        Judged::Rejected { reason, message } => {
            return settle::rejected(ctx, object, reason, &message, &serde_json::Map::new()).await;
        }
        Judged::Unresolved(missing) => return status(ctx, object, None, Some(&missing)).await,
    };
    let missing = ctx.references.missing(&namespace, &needs(object)).await?;
    if missing.is_none() && settle::was_unresolved(object) {
        ctx.brokers.refresh(&namespace);
    }
    status(ctx, object, Some(&plan), missing.as_ref()).await
}

/// What must be there so that the broker can be reached.
pub(super) fn needs(store: &MessageStore) -> Vec<keys::Need> {
    keys::of_store(store).into_iter().chain(keys::of_cluster(store)).collect()
}

async fn status(
    ctx: &Context,
    object: &MessageStore,
    plan: Option<&StorePlan>,
    missing: Option<&Missing>,
) -> Result<Duration, Error> {
    let namespace = object.namespace().unwrap_or_default();
    let generation = object.metadata.generation.unwrap_or(0);
    let (link, made) = match plan.filter(|_| missing.is_none()) {
        Some(plan) => found(ctx, &namespace, plan),
        None => (Link::Connecting, None),
    };
    let (queue, recreated) = queue(object, plan, &link, made.as_ref());
    let mut verdict = Verdict::new(generation, Timestamp::now());
    verdict.references(missing);
    let links = BTreeMap::from([(object.name_any(), link)]);
    settle::brokers(&mut verdict, object, &links, missing.is_some());
    verdict.degraded(plan.and_then(|plan| plan.topology.queue.as_ref()).and_then(unknown_limit));
    let conditions = report::merged(object.conditions(), verdict.finish(None, "Ready"));
    let status = MessageStoreStatus {
        queue,
        bindings: plan.filter(|plan| plan.topology.exchange.is_some()).map(|plan| plan.topology.bindings.clone()),
        observed_generation: Some(generation),
        conditions: conditions.clone(),
        ..MessageStoreStatus::default()
    };
    report::write(ctx, object, &status, &conditions).await?;
    if let Some(happened) = recreated {
        ctx.events.tell(&report::reference(object), &happened).await;
    }
    Ok(settle::again(missing.is_some()))
}

/// The queue with the time since when it has been there; and what is to be told if it had been there before.
fn queue(
    object: &MessageStore,
    plan: Option<&StorePlan>,
    link: &Link,
    made: Option<&Time>,
) -> (Option<QueueStatus>, Option<Happened>) {
    let before = object.status.as_ref().and_then(|status| status.queue.as_ref());
    // Something that it names is missing: its queue is what it was.
    let Some(plan) = plan else { return (before.cloned(), None) };
    let Some(mut queue) = queue_status(plan) else { return (None, None) };
    let since = since(before, &queue, made, *link == Link::Up, Timestamp::now());
    queue.since = since.time;
    let note = format!(
        "queue `{}` was not there any more, and was declared again; what was in it is lost, what is stored from now on is \
         safe. See who deleted it, or whether the broker lost its data; if the Secret names another broker now, it still lies \
         on the one before",
        queue.name
    );
    (Some(queue), since.recreated.then_some(Happened { warning: true, reason: "QueueRecreated", note }))
}

/// How a store's broker stands: as its workers say, else as we find it.
pub(super) fn link(ctx: &Context, namespace: &str, plan: &StorePlan) -> Link {
    found(ctx, namespace, plan).0
}

/// The same, and when its queue was found missing last, and declared.
fn found(ctx: &Context, namespace: &str, plan: &StorePlan) -> (Link, Option<Time>) {
    if let Some(report) = ctx.samples.store(namespace, &plan.name) {
        return (report.link, report.made);
    }
    // Nobody knows yet who looks after it.
    if !ctx.samples.is_warm() {
        return (Link::Connecting, None);
    }
    match handle(ctx, namespace, plan) {
        Some(store) => (brokers::link(&*store), store.made().map(Time)),
        None => (Link::Connecting, None),
    }
}

/// A store to look at ourselves. What a processor's plan says of it may be old (it is paused, or its spec is not valid
/// now): its own object says what it is. `None` while that is on its way out.
pub(super) fn handle(ctx: &Context, namespace: &str, plan: &StorePlan) -> Option<Arc<dyn store::MessageStore>> {
    let reference = ObjectRef::new(&plan.name).within(namespace);
    let object = ctx.caches.stores.get(&reference);
    let own = object.as_ref().and_then(|object| object.0.as_ref().ok()).and_then(|object| compile::store(object).ok());
    ctx.brokers.store(namespace, own.as_ref().unwrap_or(plan))
}
