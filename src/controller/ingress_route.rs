//! Reconciles an IngressRoute: pods that take requests, and a Service in front of them.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt as _;

use super::context::Context;
use super::error::Error;
use super::judge::{self, Judged};
use super::report::Ours as _;
use super::resources::{
    Child, Front, Owner, Pods, Role, child_name, config_map, deployment, front, network_policy, selector,
    service_account,
};
use super::rollout::{self, Rollout};
use super::{message_store, report, settle, workers};
use crate::api::{IngressRoute, IngressRouteStatus};
use crate::plan::Plan;
use crate::plan::advice::{self, Attempt};
use crate::plan::world::{Named, World};
use crate::status::verdict::{self, Missing, Verdict};

pub(super) async fn reconcile(ctx: &Context, object: &IngressRoute) -> Result<Duration, Error> {
    if object.metadata.deletion_timestamp.is_some() {
        // Its children go with it, by their owner reference.
        ctx.succeeded(object);
        return Ok(settle::again(false));
    }
    if settle::is_paused(object) {
        return settle::paused(ctx, object).await;
    }
    let objects = ctx.objects(Named::namespace(object));
    let world = objects.world();
    let plan = match judge::route(object, &world) {
        Judged::Valid(plan) => Arc::new(plan),
        Judged::Rejected { reason, message } => {
            return settle::rejected(ctx, object, reason, &message, &serde_json::Map::new()).await;
        }
        Judged::Unresolved(missing) => return status(ctx, object, None, Some(&missing), None).await,
    };
    let missing = missing(ctx, object, &plan, &world).await?;
    if let Some(missing) = &missing {
        return status(ctx, object, Some(&plan), Some(missing), None).await;
    }
    ctx.keep_plan(&object.uid().unwrap_or_default(), plan.clone());
    let refused = workers::make(ctx, &object.object_name(), children(ctx, object, &plan)).await?;
    status(ctx, object, Some(&plan), None, refused).await
}

/// What the stores of the plan need, by the first that is missing.
async fn missing(
    ctx: &Context,
    object: &IngressRoute,
    plan: &Plan,
    world: &World<'_>,
) -> Result<Option<Missing>, Error> {
    let namespace = Named::namespace(object).to_owned();
    let stores = plan.stores().keys().filter_map(|name| world.store(&namespace, name));
    let needs: Vec<_> = stores.flat_map(message_store::needs).collect();
    ctx.references.missing(&namespace, &needs).await
}

fn children(ctx: &Context, object: &IngressRoute, plan: &Plan) -> Vec<Child> {
    let name = object.object_name();
    let owner = Owner { role: Role::Ingress, object: &name };
    let replicas = object.spec.replicas();
    let pods = Pods { owner, plan, workload: &object.spec.workload, replicas };
    let mut children = vec![service_account(&owner), config_map(&owner, plan), deployment(&pods, &ctx.settings)];
    children.extend(front(&Front { owner, service: &object.spec.service, replicas }));
    children.extend(ctx.settings.admin_peers.as_ref().map(|peers| network_policy(&owner, peers)));
    children
}

async fn status(
    ctx: &Context,
    object: &IngressRoute,
    plan: Option<&Plan>,
    missing: Option<&Missing>,
    refused: Option<(&'static str, String)>,
) -> Result<Duration, Error> {
    let name = object.object_name();
    let owner = Owner { role: Role::Ingress, object: &name };
    let generation = object.metadata.generation.unwrap_or(0);
    let deployment = ctx.caches.deployment(&name.namespace, &child_name(&owner));
    let wanted = object.spec.replicas();
    let is_refused = refused.is_some();
    let against = refused.or_else(|| {
        let pods = ctx.caches.pods_of(&name);
        match rollout::of(deployment.as_deref(), wanted, &pods) {
            Rollout::Progressing(reason, message) if missing.is_none() => Some((reason, message)),
            _ => None,
        }
    });
    let mut verdict = Verdict::new(generation, Timestamp::now());
    verdict.references(missing);
    let links = workers::links(ctx, &name, plan.filter(|_| missing.is_none()), wanted > 0);
    settle::brokers(&mut verdict, object, &links, missing.is_some());
    let advice = advice(ctx, plan);
    verdict.degraded(advice.as_deref().map(|advice| (verdict::REPLY_TOO_SHORT, advice)));
    verdict.paused(false);
    let ready = if wanted == 0 { "ScaledToZero" } else { "Ready" };
    let conditions = report::merged(object.conditions(), verdict.finish(against, ready));
    let pods = deployment.as_ref().and_then(|deployment| deployment.status.clone()).unwrap_or_default();
    let status = IngressRouteStatus {
        address: Some(address(object)),
        replicas: u32::try_from(pods.replicas.unwrap_or(0)).ok(),
        ready_replicas: u32::try_from(pods.ready_replicas.unwrap_or(0)).ok(),
        selector: Some(workers::selector_text(&selector(&owner))),
        observed_generation: Some(generation),
        conditions: conditions.clone(),
        ..IngressRouteStatus::default()
    };
    report::write(ctx, object, &status, &conditions).await?;
    Ok(settle::again(missing.is_some() || is_refused))
}

/// What is valid, and will not do what it seems to.
fn advice(ctx: &Context, plan: Option<&Plan>) -> Option<String> {
    let Some(Plan::Ingress(route)) = plan else { return None };
    if !route.rules.iter().any(|rule| rule.reply_timeout.is_some()) {
        return None;
    }
    let objects = ctx.objects(&route.object.namespace);
    advice::reply_too_short(route, &Attempt::all_in(&objects.world(), &route.object.namespace))
}

/// Where callers in the cluster reach it.
fn address(object: &IngressRoute) -> String {
    let (name, namespace) = (object.name_any(), Named::namespace(object).to_owned());
    match object.spec.service.port {
        80 => format!("http://{name}.{namespace}.svc"),
        port => format!("http://{name}.{namespace}.svc:{port}"),
    }
}
