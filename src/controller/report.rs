//! The status of an object, written when it changed, by one of two hands.
//!
//! Reconciles write what they decide; the sampler writes numbers. Each sends its whole part, and only that: server-side
//! apply would take away what one of them leaves out.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{ApiResource, DynamicObject, ObjectMeta, Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::context::Context;
use super::error::{Error, api};
use super::events;
use crate::api::API_VERSION;
use crate::api::condition::{self, Condition};
use crate::status::verdict::Verdict;
use crate::status::why::why;

/// Writes the numbers.
pub(super) const SAMPLER: &str = "stagepost-sampler";

/// A kind of ours.
pub(super) trait Ours:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + std::fmt::Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// The kind, as in `kind`.
    const KIND: &'static str;

    /// The conditions in its status.
    fn conditions(&self) -> &[Condition];

    /// What the conditions come to, in one word, of a kind that says so.
    fn reason(_conditions: &[Condition]) -> Option<&str> {
        None
    }
}

impl Ours for crate::api::MessageStore {
    const KIND: &'static str = "MessageStore";

    fn conditions(&self) -> &[Condition] {
        self.status.as_ref().map_or(&[], |status| &status.conditions)
    }
}

impl Ours for crate::api::IngressRoute {
    const KIND: &'static str = "IngressRoute";

    fn conditions(&self) -> &[Condition] {
        self.status.as_ref().map_or(&[], |status| &status.conditions)
    }
}

impl Ours for crate::api::ForwardingProcessor {
    const KIND: &'static str = "ForwardingProcessor";

    fn conditions(&self) -> &[Condition] {
        self.status.as_ref().map_or(&[], |status| &status.conditions)
    }

    fn reason(conditions: &[Condition]) -> Option<&str> {
        why(conditions)
    }
}

/// New conditions in place of the old: a time changes only with its status.
pub(super) fn merged(old: &[Condition], new: Vec<Condition>) -> Vec<Condition> {
    let mut merged: Vec<Condition> =
        old.iter().filter(|old| new.iter().any(|new| new.type_ == old.type_)).cloned().collect();
    for condition in new {
        condition::set(&mut merged, condition);
    }
    merged
}

/// Conditions of a spec that is not valid: what runs is what was valid before, and stays as it was said to be.
pub(super) fn rejected(old: &[Condition], rejected: &[Condition]) -> Vec<Condition> {
    let said = |kind: &str| rejected.iter().any(|new| new.type_ == kind);
    old.iter().filter(|old| !said(&old.type_)).chain(rejected).cloned().collect()
}

/// Writes the part of the status that reconciles own, if it is not there already, and tells what changed.
pub(super) async fn write<K: Ours, S: Serialize>(
    ctx: &Context,
    object: &K,
    status: &S,
    conditions: &[Condition],
) -> Result<(), Error> {
    let mut status = json!(status);
    if let Some(reason) = K::reason(conditions) {
        status["reason"] = json!(reason);
    }
    let present = serde_json::to_value(object).map(|mut value| value["status"].take()).unwrap_or_default();
    if is_there(&status, &present) {
        return Ok(());
    }
    patch(ctx, object, super::apply::MANAGER, &status).await?;
    for happened in events::between(object.conditions(), conditions) {
        ctx.events.tell(&reference(object), &happened).await;
    }
    Ok(())
}

/// Sends one hand's part of the status.
pub(super) async fn patch<K: Ours>(ctx: &Context, object: &K, manager: &str, status: &Value) -> Result<(), Error> {
    ctx.authority()?;
    ctx.metrics.requested("apply-status", K::KIND);
    let name = object.name_any();
    let body = json!({
        "apiVersion": API_VERSION,
        "kind": K::KIND,
        // The uid: what is said of this object is not said of a new one of its name.
        "metadata": {"name": name, "namespace": object.namespace(), "uid": object.uid()},
        "status": status,
    });
    let objects: Api<K> = Api::namespaced(ctx.client.clone(), &object.namespace().unwrap_or_default());
    let params = PatchParams::apply(manager).force();
    match api("write a status", objects.patch_status(&name, &params, &Patch::Apply(&body))).await {
        Ok(_) => Ok(()),
        // It is gone, or another one has its name: nobody asks any more.
        Err(Error::Api { source, .. }) if matches!(&*source, kube::Error::Api(status) if status.code == 404 || status.code == 409) => {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Whether every field of `part` has the same value in `whole`, and no field that `part` could hold is there besides.
fn is_there(part: &Value, whole: &Value) -> bool {
    let empty = Map::new();
    let (part, whole) = (part.as_object().unwrap_or(&empty), whole.as_object().unwrap_or(&empty));
    let owned = whole.iter().filter(|(name, _)| OWNED.contains(&name.as_str()));
    part.iter().all(|(name, value)| whole.get(name) == Some(value))
        && owned.into_iter().all(|(name, _)| part.contains_key(name))
}

/// The fields of a status that reconciles own, of all kinds.
const OWNED: [&str; 13] = [
    "conditions",
    "observedGeneration",
    "queue",
    "bindings",
    "address",
    "replicas",
    "readyReplicas",
    "selector",
    "state",
    "reason",
    "target",
    "deactivation",
    "lastHandledReactivate",
];

/// Says of an object that it can't be read: its CRD is another version's, or the object is older than it.
pub(super) async fn unreadable<K: Ours>(ctx: &Context, meta: &ObjectMeta, why: &str) -> Result<(), Error> {
    let (name, namespace) = (meta.name.clone().unwrap_or_default(), meta.namespace.clone().unwrap_or_default());
    tracing::warn!(kind = K::KIND, name, namespace, why, "the object can't be read; it is left as it is");
    let message = format!("the object can't be read by this version ({why}); correct it");
    let generation = meta.generation.unwrap_or(0);
    let verdict = Verdict::rejected(generation, jiff::Timestamp::now(), "Unreadable", &message);
    let conditions = verdict.finish(None, "Ready");
    let objects: Api<DynamicObject> =
        Api::namespaced_with(ctx.client.clone(), &namespace, &ApiResource::erase::<K>(&()));
    let there = api("get an object", objects.get(&name)).await?;
    let is_said = there.data["status"]["conditions"].as_array().into_iter().flatten().any(|condition| {
        condition["reason"] == "Unreadable"
            && condition["message"] == message.as_str()
            && condition["observedGeneration"] == generation
    });
    if is_said {
        return Ok(());
    }
    ctx.authority()?;
    let mut body = json!({
        "apiVersion": API_VERSION, "kind": K::KIND,
        "metadata": {"name": name, "namespace": namespace, "uid": meta.uid},
        "status": {"conditions": conditions},
    });
    if let Some(reason) = K::reason(&conditions) {
        body["status"]["reason"] = json!(reason);
    }
    // Another hand: what the usual one wrote of an object that it could read stays.
    let params = PatchParams::apply("stagepost-unreadable").force();
    api("write a status", objects.patch_status(&name, &params, &Patch::Apply(&body))).await.map(|_| ())
}

/// What of a status reconciles own.
pub(super) fn owned(status: &Value) -> Map<String, Value> {
    let fields = status.as_object().into_iter().flatten();
    fields
        .filter(|(name, _)| OWNED.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// For Events.
pub(super) fn reference<K: Ours>(object: &K) -> ObjectReference {
    object.object_ref(&())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_is_there_is_not_written_again() {
        let whole = json!({"state": "Active", "delivered": 3, "observedGeneration": 1});
        assert!(is_there(&json!({"state": "Active", "observedGeneration": 1}), &whole));
        assert!(!is_there(&json!({"state": "Suspended", "observedGeneration": 1}), &whole));
        // A field that is to be taken away.
        assert!(!is_there(&json!({"state": "Active"}), &whole));
        assert!(!is_there(&json!({"state": "Active"}), &Value::Null));
    }
}
