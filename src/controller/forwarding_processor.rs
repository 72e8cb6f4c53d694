//! Reconciles a ForwardingProcessor: pods that deliver, or none while it is suspended or has stopped itself.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt as _;
use serde_json::{Map, Value, json};

use super::context::Context;
use super::error::Error;
use super::judge::{self, Judged};
use super::phase::{Known, Phase};
use super::report::Ours as _;
use super::resources::{
    Child, Owner, Pods, Role, child_name, config_map, deployment, network_policy, selector, service_account,
};
use super::rollout::{self, Rollout};
use super::samples::Together;
use super::{apply, brokers, deletion, events, last_words, message_store, report, settle, workers};
use crate::api::condition::{self, Condition, TARGET_REACHABLE};
use crate::api::processor_status::{DeactivationStatus, ProcessorState};
use crate::api::{ForwardingProcessor, ForwardingProcessorStatus, PROCESSOR_FINALIZER, REACTIVATE_ANNOTATION};
use crate::forwarder::Hindrance;
use crate::plan::world::{Named, World};
use crate::plan::{Plan, TargetAddress, TargetPlan, keys};
use crate::status::verdict::{Delivering, Missing, Verdict};

/// For a broker that is not connected yet: others wait for this reconcile to end.
const PURGE_TIMEOUT: Duration = Duration::from_secs(5);

/// Until something that must happen first is looked at again.
const SOON: Duration = Duration::from_secs(1);

pub(super) async fn reconcile(ctx: &Context, object: &ForwardingProcessor) -> Result<Duration, Error> {
    if object.metadata.deletion_timestamp.is_some() {
        return deletion::processor(ctx, object).await;
    }
    deletion::finalizer(ctx, object, PROCESSOR_FINALIZER, true).await?;
    if settle::is_paused(object) {
        return settle::paused(ctx, object).await;
    }
    let objects = ctx.objects(Named::namespace(object));
    let world = objects.world();
    let plan = match judge::processor(object, &world) {
        Judged::Valid(plan) => Arc::new(plan),
        Judged::Rejected { reason, message } => {
            suspend_what_runs(ctx, object).await?;
            return settle::rejected(ctx, object, reason, &message, &state_of_what_runs(ctx, object)).await;
        }
        Judged::Unresolved(missing) => {
            suspend_what_runs(ctx, object).await?;
            return Report::new(ctx, object, None).missing(&missing).write().await;
        }
    };
    ctx.keep_plan(&object.uid().unwrap_or_default(), plan.clone());
    if let Some(missing) = missing(ctx, object, &plan, &world).await? {
        suspend_what_runs(ctx, object).await?;
        return Report::new(ctx, object, Some(&plan)).missing(&missing).write().await;
    }
    let together = ctx.samples.of(&object.object_name());
    let known = known(ctx, object, &together);
    let phase = Phase::of(known);
    if phase == Phase::Purging {
        match purge(ctx, object, &plan).await {
            Ok(again) => return Ok(again),
            Err(error) => tracing::warn!(
                processor = %object.object_name().slashed(), %error,
                "the record of a deactivation can't be removed yet; trying again"
            ),
        }
    }
    let children = children(ctx, object, &plan, phase.replicas(known));
    let refused = workers::make(ctx, &object.object_name(), children).await?;
    Report::new(ctx, object, Some(&plan)).phase(phase, known).refused(refused).write().await
}

/// What decides whether it runs.
fn known<'a>(ctx: &Context, object: &'a ForwardingProcessor, together: &Together) -> Known<'a> {
    let status = object.status.as_ref();
    let record = together.standing.deactivation.as_ref();
    Known {
        suspend: object.spec.suspend,
        replicas: object.spec.replicas(),
        annotation: object.annotations().get(REACTIVATE_ANNOTATION).map(String::as_str),
        state: status.and_then(|status| status.state),
        handled: status.and_then(|status| status.last_handled_reactivate.as_deref()),
        worker_deactivated: record.is_some(),
        has_pods: !ctx.caches.pods_of(&object.object_name()).is_empty(),
    }
}

/// The user's wish to stop holds whatever else is wrong with the object.
async fn suspend_what_runs(ctx: &Context, object: &ForwardingProcessor) -> Result<(), Error> {
    let name = object.object_name();
    let child = child_name(&Owner { role: Role::Forwarder, object: &name });
    let Some(deployment) = ctx.caches.deployment(&name.namespace, &child) else { return Ok(()) };
    let runs = deployment.spec.as_ref().is_some_and(|spec| spec.replicas != Some(0));
    let is_ours = deployment.owner_references().iter().any(|owner| owner.uid == name.uid);
    if object.spec.suspend && runs && is_ours {
        apply::scale_to_zero(ctx, &name.namespace, &child).await?;
    }
    Ok(())
}

/// What of the status follows the pods that run, whatever the spec is by now.
fn state_of_what_runs(ctx: &Context, object: &ForwardingProcessor) -> Map<String, Value> {
    let record = ctx.samples.of(&object.object_name()).standing.deactivation;
    let mut fields = Map::new();
    if object.spec.suspend {
        fields.insert("state".to_owned(), json!(ProcessorState::Suspended));
    } else if let Some(record) = record {
        fields.insert("state".to_owned(), json!(ProcessorState::Deactivated));
        fields.insert("deactivation".to_owned(), json!(DeactivationStatus::from(&record)));
    } else if object.status.as_ref().is_none_or(|status| status.state.is_none()) {
        fields.insert("state".to_owned(), json!(ProcessorState::Pending));
    }
    fields
}

/// What the stores and the target need, by the first that is missing.
async fn missing(
    ctx: &Context,
    object: &ForwardingProcessor,
    plan: &Plan,
    world: &World<'_>,
) -> Result<Option<Missing>, Error> {
    let namespace = Named::namespace(object).to_owned();
    let stores = plan.stores().keys().filter_map(|name| world.store(&namespace, name));
    let needs: Vec<_> = stores.flat_map(message_store::needs).chain(keys::of_processor(object)).collect();
    if let Some(missing) = ctx.references.missing(&namespace, &needs).await? {
        return Ok(Some(missing));
    }
    match plan {
        Plan::Forwarder(plan) => match &plan.target {
            TargetPlan::Http(http) => match &http.address {
                TargetAddress::Service { name, port, .. } => ctx.references.service(&namespace, name, *port).await,
                TargetAddress::Url(_) => Ok(None),
            },
            TargetPlan::Store(_) => Ok(None),
        },
        Plan::Ingress(_) => Ok(None),
    }
}

/// Removes the record of a deactivation, and then says so: only the next reconcile may start pods.
async fn purge(ctx: &Context, object: &ForwardingProcessor, plan: &Plan) -> Result<Duration, Error> {
    let Plan::Forwarder(forwarder) = plan else { return Ok(SOON) };
    let name = object.object_name();
    let Some(source) = forwarder.stores.get(&forwarder.source) else { return Ok(SOON) };
    let Some(store) = message_store::handle(ctx, &name.namespace, source) else { return Ok(SOON) };
    ctx.authority()?;
    brokers::connected(&*store, PURGE_TIMEOUT).await?;
    store.reactivate(&name.dotted()).await?;
    tracing::info!(processor = %name.slashed(), "the record of a deactivation is removed, if there was one");
    ctx.samples.forget_deactivation(&name);
    Report::new(ctx, object, Some(plan)).reactivated().write().await?;
    Ok(SOON)
}

fn children(ctx: &Context, object: &ForwardingProcessor, plan: &Plan, replicas: u32) -> Vec<Child> {
    let name = object.object_name();
    let owner = Owner { role: Role::Forwarder, object: &name };
    let pods = Pods { owner, plan, workload: &object.spec.workload, replicas };
    let mut children = vec![service_account(&owner), config_map(&owner, plan), deployment(&pods, &ctx.settings)];
    children.extend(ctx.settings.admin_peers.as_ref().map(|peers| network_policy(&owner, peers)));
    children
}

/// The status in the making.
struct Report<'a> {
    ctx: &'a Context,
    object: &'a ForwardingProcessor,
    plan: Option<&'a Plan>,
    missing: Option<Missing>,
    phase: Option<Phase>,
    known: Known<'a>,
    refused: Option<(&'static str, String)>,
    together: Together,
}

impl<'a> Report<'a> {
    fn new(ctx: &'a Context, object: &'a ForwardingProcessor, plan: Option<&'a Plan>) -> Self {
        let together = ctx.samples.of(&object.object_name());
        let known = known(ctx, object, &together);
        Self { ctx, object, plan, missing: None, phase: None, known, refused: None, together }
    }

    fn missing(mut self, missing: &Missing) -> Self {
        self.missing = Some(missing.clone());
        self
    }

    fn phase(mut self, phase: Phase, known: Known<'a>) -> Self {
        (self.phase, self.known) = (Some(phase), known);
        self
    }

    fn refused(mut self, refused: Option<(&'static str, String)>) -> Self {
        self.refused = refused;
        self
    }

    /// Nothing keeps it stopped any more.
    fn reactivated(mut self) -> Self {
        self.known.state = Some(ProcessorState::Pending);
        self.known.handled = self.known.annotation;
        self.phase = Some(Phase::Running);
        self
    }

    fn state(&self) -> ProcessorState {
        match self.phase {
            Some(Phase::Running) if self.known.replicas > 0 && !self.has_a_ready_pod() => ProcessorState::Pending,
            Some(phase) => phase.state(self.known),
            None if self.known.suspend => ProcessorState::Suspended,
            // What ran before goes on.
            None => self.known.state.unwrap_or(ProcessorState::Pending),
        }
    }

    fn has_a_ready_pod(&self) -> bool {
        let name = self.object.object_name();
        let child = child_name(&Owner { role: Role::Forwarder, object: &name });
        let deployment = self.ctx.caches.deployment(&name.namespace, &child);
        deployment.and_then(|deployment| deployment.status.as_ref()?.available_replicas).unwrap_or(0) > 0
    }

    async fn write(self) -> Result<Duration, Error> {
        let object = self.object;
        let name = object.object_name();
        let owner = Owner { role: Role::Forwarder, object: &name };
        let state = self.state();
        let before = object.status.as_ref();
        let conditions = report::merged(object.conditions(), self.conditions(state));
        let deployment = self.ctx.caches.deployment(&name.namespace, &child_name(&owner));
        let pods = deployment.as_ref().and_then(|deployment| deployment.status.clone()).unwrap_or_default();
        let deactivation = match state {
            ProcessorState::Deactivated => {
                let told = self.together.standing.deactivation.as_ref().map(Into::into);
                told.or_else(|| before.and_then(|before| before.deactivation.clone()))
            }
            _ => None,
        };
        let note = deactivation.as_ref().map_or_else(String::new, |record| {
            format!("stopped at message {} after {} attempts: {}", record.message_id, record.attempts, record.message)
        });
        let status = ForwardingProcessorStatus {
            state: Some(state),
            target: self.plan.map(|plan| target(&name.namespace, plan)),
            deactivation,
            last_handled_reactivate: match self.known.state {
                // What is already there when an object is first seen was meant for an earlier one.
                None => self.known.annotation.map(ToOwned::to_owned),
                Some(_) => self.known.handled.map(ToOwned::to_owned),
            },
            replicas: u32::try_from(pods.replicas.unwrap_or(0)).ok(),
            ready_replicas: u32::try_from(pods.ready_replicas.unwrap_or(0)).ok(),
            selector: Some(workers::selector_text(&selector(&owner))),
            observed_generation: object.metadata.generation,
            conditions: conditions.clone(),
            ..ForwardingProcessorStatus::default()
        };
        report::write(self.ctx, object, &status, &conditions).await?;
        if let Some(happened) = events::of_states(before.and_then(|before| before.state), state, &note) {
            self.ctx.events.tell(&report::reference(object), &happened).await;
        }
        Ok(match self.phase {
            Some(Phase::Ending | Phase::Purging) => SOON * 3,
            _ => settle::again(self.missing.is_some() || self.refused.is_some()),
        })
    }

    fn conditions(&self, state: ProcessorState) -> Vec<Condition> {
        let name = self.object.object_name();
        let standing = &self.together.standing;
        let mut verdict = Verdict::new(self.object.metadata.generation.unwrap_or(0), Timestamp::now());
        verdict.references(self.missing.as_ref());
        let wants = matches!(state, ProcessorState::Active | ProcessorState::Pending) && self.known.replicas > 0;
        let links = workers::links(self.ctx, &name, self.plan.filter(|_| self.missing.is_none()), wants);
        settle::brokers(&mut verdict, self.object, &links, self.missing.is_some());
        let last_error = standing.last_failure.as_ref().map_or("", |failure| failure.message.as_str());
        match condition::find(self.object.conditions(), TARGET_REACHABLE) {
            // Without a worker, what was known last is what is known.
            Some(before) if standing.target_reachable.is_none() => verdict.as_before(before),
            _ => verdict.target(standing.target_reachable, last_error),
        }
        verdict.delivering(match (state, standing.hindrance) {
            (ProcessorState::Suspended, _) => Delivering::Suspended,
            (ProcessorState::Deactivated, _) => Delivering::Hindered(Hindrance::Deactivated),
            (_, Some(hindrance)) => Delivering::Hindered(hindrance),
            (ProcessorState::Active, None) if !self.together.workers.is_empty() => Delivering::Yes,
            _ => Delivering::NotStarted,
        });
        let suspected = last_words::suspected(&self.ctx.caches.pods_of(&name), &standing.cleared);
        verdict.degraded_processor(&suspected, standing.responses_lost);
        verdict.paused(false);
        let (against, ready) = self.readiness(state);
        verdict.finish(against, ready)
    }

    /// What speaks against being ready, and how it is ready if nothing does.
    fn readiness(&self, state: ProcessorState) -> (Option<(&'static str, String)>, &'static str) {
        let name = self.object.object_name();
        let replicas = self.object.spec.replicas();
        if let Some(refused) = &self.refused {
            return (Some(refused.clone()), "Ready");
        }
        match state {
            ProcessorState::Suspended if self.object.spec.suspend => return (None, "Suspended"),
            ProcessorState::Deactivated => {
                let (name, namespace) = (&name.name, &name.namespace);
                let message = format!(
                    "it stopped itself at a message that failed, and keeps it; repair the cause, then `stagepost reactivate \
                     {name} -n {namespace}`, or `kubectl annotate fwp {name} -n {namespace} --overwrite \
                     stagepost.dev/reactivate=$(date +%s)`"
                );
                return (Some(("Deactivated", message)), "Ready");
            }
            _ if self.missing.is_some() => return (None, "Ready"),
            _ if matches!(self.phase, Some(Phase::Ending | Phase::Purging)) => {
                let message = "it begins as soon as its old pods have ended and the broker has removed the record that stopped it";
                return (Some(("Reactivating", message.to_owned())), "Ready");
            }
            _ if replicas == 0 => return (None, "ScaledToZero"),
            _ => {}
        }
        let child = child_name(&Owner { role: Role::Forwarder, object: &name });
        let deployment = self.ctx.caches.deployment(&name.namespace, &child);
        match rollout::of(deployment.as_deref(), replicas, &self.ctx.caches.pods_of(&name)) {
            Rollout::Complete => (None, "Ready"),
            Rollout::Progressing(reason, message) => (Some((reason, message)), "Ready"),
        }
    }
}

/// The target without its query: what stands there may be a secret.
fn target(namespace: &str, plan: &Plan) -> String {
    let Plan::Forwarder(plan) = plan else { return String::new() };
    let url = match &plan.target {
        TargetPlan::Store(name) => return format!("store {name}"),
        TargetPlan::Http(http) => http.address.in_cluster(namespace),
    };
    url.split('?').next().unwrap_or_default().to_owned()
}
