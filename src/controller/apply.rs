//! Children, made as they should be: server-side apply, then pruning.

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, ValidationDirective,
};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::context::{Applied, Context, lock};
use super::error::{Error, api};
use super::fingerprint;
use super::resources::{Child, ChildKind};
use super::watch::ChildMeta;
use crate::api::UID_LABEL;
use crate::plan::ObjectName;

/// Owns children, and the part of the status that reconciles write.
pub(super) const MANAGER: &str = "stagepost";

fn api_of(ctx: &Context, kind: ChildKind, namespace: &str) -> Api<DynamicObject> {
    let (group, version) = kind.api_version().split_once('/').unwrap_or(("", kind.api_version()));
    let named = GroupVersionKind::gvk(group, version, kind.as_str());
    let resource = ApiResource::from_gvk_with_plural(&named, kind.plural());
    Api::namespaced_with(ctx.client.clone(), namespace, &resource)
}

/// Applies each child that is not as it should be, in order.
pub(super) async fn apply(ctx: &Context, owner: &ObjectName, mut children: Vec<Child>) -> Result<(), Error> {
    children.sort_by_key(|child| child.kind);
    for child in &children {
        apply_one(ctx, owner, child).await?;
    }
    Ok(())
}

async fn apply_one(ctx: &Context, owner: &ObjectName, child: &Child) -> Result<(), Error> {
    let (kind, name) = (child.kind, child.name.as_str());
    let key = (owner.namespace.clone(), kind, child.name.clone());
    let hash = fingerprint::of(&child.value);
    let seen = ctx.caches.child(kind, &owner.namespace, name);
    let is_ours = |meta: &ChildMeta| meta.owners.contains(&owner.uid);
    if let Some(seen) = seen.as_ref().filter(|seen| is_ours(seen) && !seen.deleting) {
        let known = lock(&ctx.applied).get(&key).cloned();
        if known == Some(Applied { hash, mark: seen.mark.clone() }) {
            return Ok(());
        }
    }
    let objects = api_of(ctx, kind, &owner.namespace);
    if !seen.as_ref().is_some_and(is_ours) {
        // The cache holds what carries our labels only: somebody else's object of this name is not in it.
        ctx.metrics.requested("get", kind.as_str());
        let there = api("get a child", objects.get_metadata_opt(name)).await?;
        if let Some(there) = there.filter(|there| !ChildMeta::of(there).owners.contains(&owner.uid)) {
            let predecessor = |reference: &OwnerReference| {
                reference.api_version == crate::api::API_VERSION && reference.name == owner.name
            };
            let is_left_over = there.owner_references().iter().any(predecessor);
            let (kind, name) = (kind.as_str(), child.name.clone());
            return Err(if is_left_over { Error::Leaving { kind, name } } else { Error::NameConflict { kind, name } });
        }
    }
    ctx.authority()?;
    ctx.metrics.requested("apply", kind.as_str());
    let mut params = PatchParams::apply(MANAGER).force();
    params.field_validation = Some(ValidationDirective::Strict);
    let applied = api("apply a child", objects.patch(name, &params, &Patch::Apply(&child.value))).await;
    let applied = applied.map_err(|error| rejected(error, child))?;
    lock(&ctx.applied).insert(key, Applied { hash, mark: ChildMeta::of(&applied).mark });
    tracing::debug!(kind = kind.as_str(), name, "applied");
    Ok(())
}

/// What the API server says of pods is the user's to repair.
fn rejected(error: Error, child: &Child) -> Error {
    match error {
        Error::Api { source, .. } if matches!(&*source, kube::Error::Api(status) if [400, 403, 422].contains(&status.code)) =>
        {
            let message = match *source {
                kube::Error::Api(status) => status.message,
                other => other.to_string(),
            };
            Error::Rejected { kind: child.kind.as_str(), name: child.name.clone(), message }
        }
        other => other,
    }
}

/// Deletes children that are not wanted any more. Plans that a pod runs, or may still be started with, stay.
pub(super) async fn prune(ctx: &Context, owner: &ObjectName, wanted: &[(ChildKind, String)]) -> Result<(), Error> {
    let mut old_plans = Vec::new();
    for kind in ChildKind::ALL {
        for child in ctx.caches.children(kind, &owner.uid) {
            let is_wanted = wanted.iter().any(|(of, name)| *of == kind && *name == child.name);
            match kind {
                _ if is_wanted || child.deleting => {}
                ChildKind::ConfigMap => old_plans.push(child.name),
                _ => delete(ctx, kind, &owner.namespace, &child.name).await?,
            }
        }
    }
    if old_plans.is_empty() {
        return Ok(());
    }
    let used = plans_in_use(ctx, owner).await?;
    for plan in old_plans.iter().filter(|plan| !used.contains(plan)) {
        delete(ctx, ChildKind::ConfigMap, &owner.namespace, plan).await?;
    }
    Ok(())
}

/// Deletes a child, whether or not it is there.
pub(super) async fn delete(ctx: &Context, kind: ChildKind, namespace: &str, name: &str) -> Result<(), Error> {
    ctx.authority()?;
    ctx.metrics.requested("delete", kind.as_str());
    let objects = api_of(ctx, kind, namespace);
    match api("delete a child", objects.delete(name, &DeleteParams::background())).await {
        Ok(_) => {
            lock(&ctx.applied).remove(&(namespace.to_owned(), kind, name.to_owned()));
            Ok(())
        }
        Err(Error::Api { source, .. }) if matches!(&*source, kube::Error::Api(status) if status.code == 404) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Sets the number of pods of a Deployment that is not applied anew: its object is not valid now.
pub(super) async fn scale_to_zero(ctx: &Context, namespace: &str, name: &str) -> Result<(), Error> {
    ctx.authority()?;
    ctx.metrics.requested("patch", "Deployment");
    let patch = Patch::Merge(json!({"spec": {"replicas": 0}}));
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let deployments = api_of(ctx, ChildKind::Deployment, namespace);
    api("scale a Deployment", deployments.patch(name, &params, &patch)).await.map(|_| ())
}

/// The config maps of plans that a pod names, or a `ReplicaSet` that still wants pods: while a rollout is stuck, a pod of
/// the old one starts again with the old plan.
async fn plans_in_use(ctx: &Context, owner: &ObjectName) -> Result<Vec<String>, Error> {
    fn of(pod: Option<&PodSpec>) -> impl Iterator<Item = String> {
        let volumes = pod.and_then(|pod| pod.volumes.as_ref()).into_iter().flatten();
        volumes.filter_map(|volume| volume.config_map.as_ref().map(|map| map.name.clone()))
    }
    ctx.metrics.requested("list", "ReplicaSet");
    let sets: Api<ReplicaSet> = Api::namespaced(ctx.client.clone(), &owner.namespace);
    let own = ListParams::default().labels(&format!("{UID_LABEL}={}", owner.uid));
    let sets = api("list ReplicaSets", sets.list(&own)).await?;
    let wanting = sets.items.iter().filter_map(|set| set.spec.as_ref()).filter(|spec| spec.replicas != Some(0));
    let of_sets = wanting.filter_map(|spec| spec.template.as_ref()).flat_map(|template| of(template.spec.as_ref()));
    let pods = ctx.caches.pods_of(owner);
    Ok(of_sets.chain(pods.iter().flat_map(|pod| of(pod.spec.as_ref()))).collect())
}
