//! What must be done before an object may go, and never holds it up for long: a broker, Secret or namespace that is gone
//! counts as done.

use std::time::Duration;

use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource, ResourceExt as _};
use serde_json::json;
use tokio::time::timeout;

use super::context::Context;
use super::error::{Error, api};
use super::events::Happened;
use super::report::{self, Ours};
use super::resources::{ChildKind, Owner, Role, child_name};
use super::{apply, message_store, settle};
use crate::api::{ForwardingProcessor, MessageStore, PROCESSOR_FINALIZER, QUEUE_FINALIZER};
use crate::core::topology::Management;
use crate::plan::compile;
use crate::plan::world::Named;
use crate::store::rabbitmq::Removed;

/// An object is gone 60 s after its deletion at the latest; this leaves time for the last request.
const GIVE_UP_AFTER: Duration = Duration::from_secs(50);

/// One try at the broker.
const TRY_TIMEOUT: Duration = Duration::from_secs(15);

/// Until the next look.
const SOON: Duration = Duration::from_secs(1);

/// Sets or removes a finalizer, if that is not done yet.
pub(super) async fn finalizer<K: Ours>(ctx: &Context, object: &K, name: &str, wanted: bool) -> Result<(), Error> {
    let present = object.finalizers();
    if present.iter().any(|present| present == name) == wanted {
        return Ok(());
    }
    let mut finalizers: Vec<String> = present.iter().filter(|present| *present != name).cloned().collect();
    if wanted {
        finalizers.push(name.to_owned());
    }
    set(ctx, object, &finalizers).await
}

async fn set<K>(ctx: &Context, object: &K, finalizers: &[String]) -> Result<(), Error>
where
    K: Ours + Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    ctx.authority()?;
    ctx.metrics.requested("patch", K::KIND);
    // The version: another one's finalizer that came meanwhile must not be lost.
    let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": object.resource_version()}});
    let objects: Api<K> = Api::namespaced(ctx.client.clone(), Named::namespace(object));
    let params = PatchParams { field_manager: Some(apply::MANAGER.to_owned()), ..PatchParams::default() };
    match api("set finalizers", objects.patch(&object.name_any(), &params, &Patch::Merge(patch))).await {
        Ok(_) => Ok(()),
        Err(Error::Api { source, .. }) if matches!(&*source, kube::Error::Api(status) if status.code == 404) => Ok(()),
        Err(error) => Err(error),
    }
}

/// How long an object has been on its way out.
fn since<K: Ours>(object: &K) -> Duration {
    let deleted = object.meta().deletion_timestamp.as_ref().map(|time| time.0);
    let since = deleted.map(|deleted| Timestamp::now().duration_since(deleted));
    since.and_then(|since| since.try_into().ok()).unwrap_or_default()
}

/// Its workers end, then the queue of its deactivation record goes.
pub(super) async fn processor(ctx: &Context, object: &ForwardingProcessor) -> Result<Duration, Error> {
    if !object.finalizers().iter().any(|name| name == PROCESSOR_FINALIZER) {
        ctx.succeeded(object);
        return Ok(settle::again(false));
    }
    let name = object.object_name();
    let child = child_name(&Owner { role: Role::Forwarder, object: &name });
    let in_time = since(object) < GIVE_UP_AFTER;
    let deployment = ctx.caches.child(ChildKind::Deployment, &name.namespace, &child);
    if deployment.is_some_and(|deployment| deployment.owners.contains(&name.uid) && !deployment.deleting) {
        apply::delete(ctx, ChildKind::Deployment, &name.namespace, &child).await?;
        return Ok(SOON);
    }
    if in_time && !ctx.caches.pods_of(&name).is_empty() {
        return Ok(SOON);
    }
    if in_time && let Err(error) = remove_record(ctx, object).await {
        tracing::warn!(processor = %name.slashed(), %error, "the queue of its deactivation record can't be removed yet");
        return Ok(SOON * 3);
    }
    finalizer(ctx, object, PROCESSOR_FINALIZER, false).await?;
    ctx.succeeded(object);
    Ok(settle::again(false))
}

async fn remove_record(ctx: &Context, object: &ForwardingProcessor) -> Result<(), Error> {
    let name = object.object_name();
    let objects = ctx.objects(&name.namespace);
    let world = objects.world();
    let Some(source) = world.store(&name.namespace, &object.spec.store_ref.name) else { return Ok(()) };
    let Ok(plan) = compile::store(source) else { return Ok(()) };
    if ctx.references.missing(&name.namespace, &message_store::needs(source)).await?.is_some() {
        return Ok(());
    }
    let broker = ctx.brokers.broker(&name.namespace, &plan.broker);
    ctx.authority()?;
    let removed = async {
        broker.connected().await?;
        broker.remove_record(&name.dotted()).await
    };
    let no_answer = |_| crate::store::StoreError::NotConnected(format!("no answer in {TRY_TIMEOUT:?}"));
    timeout(TRY_TIMEOUT, removed).await.map_err(no_answer)??;
    Ok(())
}

/// With `deletionPolicy: Delete`: its queue goes if it is empty and nobody uses it.
pub(super) async fn store(ctx: &Context, object: &MessageStore) -> Result<Duration, Error> {
    let name = object.object_name();
    // We use it ourselves no more: a handle would declare the queue again.
    ctx.brokers.leave(&name.namespace, &name.name);
    if !object.finalizers().iter().any(|name| name == QUEUE_FINALIZER) {
        ctx.succeeded(object);
        return Ok(settle::again(false));
    }
    let in_time = since(object) < GIVE_UP_AFTER;
    let used = users(ctx, object);
    if in_time && (used.is_some() || !ctx.samples.is_warm()) {
        return Ok(SOON);
    }
    let removed = match used {
        Some(used) => Ok(Some(used)),
        None => remove_queue(ctx, object).await,
    };
    match removed {
        Ok(None) => {}
        Ok(Some(why)) => kept(ctx, object, &why).await,
        Err(error) if in_time => {
            tracing::warn!(store = %name.slashed(), %error, "its queue can't be removed yet");
            return Ok(SOON * 3);
        }
        Err(error) => kept(ctx, object, &error.to_string()).await,
    }
    finalizer(ctx, object, QUEUE_FINALIZER, false).await?;
    ctx.succeeded(object);
    Ok(settle::again(false))
}

/// Who may still put something into the queue, or have something of it in hand. That the broker shows no message and no
/// consumer is not enough: a worker that polls has left the queue while it delivers what it took.
fn users(ctx: &Context, object: &MessageStore) -> Option<String> {
    let name = object.object_name();
    let objects = ctx.objects(&name.namespace);
    let world = objects.world();
    if let Some(other) = world.same_queue(object) {
        return Some(format!("MessageStore `{other}` names the same queue"));
    }
    if let Some(user) = world.user_of(&name.namespace, &name.name) {
        return Some(format!("{user} still names the store"));
    }
    ctx.is_used(&name.namespace, &name.name).then(|| "a worker still uses it".to_owned())
}

/// Answers why the queue was kept, if it was.
async fn remove_queue(ctx: &Context, object: &MessageStore) -> Result<Option<String>, Error> {
    let name = object.object_name();
    let Ok(plan) = compile::store(object) else { return Ok(None) };
    // What somebody else declared is theirs to delete.
    let Some(queue) = plan.topology.queue.as_ref().filter(|queue| queue.management == Management::Declare) else {
        return Ok(None);
    };
    if ctx.references.missing(&name.namespace, &message_store::needs(object)).await?.is_some() {
        return Ok(None);
    }
    let broker = ctx.brokers.broker(&name.namespace, &plan.broker);
    ctx.authority()?;
    let removed = async {
        broker.connected().await?;
        broker.remove_queue(&queue.name).await
    };
    let no_answer = || crate::store::StoreError::NotConnected(format!("no answer in {TRY_TIMEOUT:?}"));
    Ok(match timeout(TRY_TIMEOUT, removed).await.map_err(|_| no_answer())?? {
        Removed::Gone => None,
        Removed::Kept(depth) => Some(format!(
            "the queue `{}` is kept (messages: {}, consumers: {}); delete it by hand when it is not needed",
            queue.name, depth.ready, depth.consumers
        )),
    })
}

async fn kept(ctx: &Context, object: &MessageStore, why: &str) {
    tracing::warn!(store = %object.object_name().slashed(), "its queue is kept: {why}");
    let happened = Happened { warning: true, reason: "QueueKept", note: why.to_owned() };
    ctx.events.tell(&report::reference(object), &happened).await;
}
