//! Children, made as they should be: server-side apply, then pruning.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, ValidationDirective};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::context::{Applied, Context, lock};
use super::error::{Error, api};
use super::resources::{Child, ChildKind};
use super::watch::ChildMeta;
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
    let hash = hash_of(child);
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
        if there.is_some_and(|there| !ChildMeta::of(&there).owners.contains(&owner.uid)) {
            return Err(Error::NameConflict { kind: kind.as_str(), name: child.name.clone() });
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
        Error::Api { source, .. } if matches!(&*source, kube::Error::Api(status) if [400, 422].contains(&status.code)) =>
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

fn hash_of(child: &Child) -> u64 {
    let mut hasher = DefaultHasher::new();
    child.value.to_string().hash(&mut hasher);
    hasher.finish()
}

/// Deletes children that are not wanted any more. Plans that pods still run stay.
pub(super) async fn prune(ctx: &Context, owner: &ObjectName, wanted: &[(ChildKind, String)]) -> Result<(), Error> {
    let named = plans_in_use(ctx, &owner.uid);
    for kind in ChildKind::ALL {
        for child in ctx.caches.children(kind, &owner.uid) {
            let is_wanted = wanted.iter().any(|(of, name)| *of == kind && *name == child.name);
            let is_used = kind == ChildKind::ConfigMap && named.contains(&child.name);
            if !is_wanted && !is_used && !child.deleting {
                delete(ctx, kind, &owner.namespace, &child.name).await?;
            }
        }
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

/// The config maps of plans that a pod names, or a ReplicaSet that may still start one.
fn plans_in_use(ctx: &Context, uid: &str) -> Vec<String> {
    let pods = ctx.caches.pods_of(uid);
    let volumes = pods.iter().filter_map(|pod| pod.spec.as_ref()?.volumes.as_ref()).flatten();
    let of_pods = volumes.filter_map(|volume| volume.config_map.as_ref().map(|map| map.name.clone()));
    let deployments = ctx.caches.deployments.state();
    let own =
        deployments.iter().filter(|deployment| deployment.owner_references().iter().any(|owner| owner.uid == uid));
    let templates = own.filter_map(|deployment| deployment.spec.as_ref()?.template.spec.as_ref()?.volumes.clone());
    let of_templates = templates.flatten().filter_map(|volume| volume.config_map.map(|map| map.name));
    of_pods.chain(of_templates).collect()
}
