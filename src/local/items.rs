//! The status of each object, as the controller would write it, from facts that are read now.
//!
//! Inputs: an object of the supervisor. Output: an item of `/status`. Reading changes nothing.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::keeper::{Phase, What};
use super::objects::{Facts, ProcessorObject, RouteObject, StoreObject};
use crate::api::condition::Time;
use crate::api::processor_status::{DeadLetterStatus, ProcessorState};
use crate::api::{API_VERSION, ForwardingProcessorStatus, IngressRouteStatus, MessageStoreStatus};
use crate::plan::advice::{self, Attempt};
use crate::status::link::Link;
use crate::status::standing::Standing;
use crate::status::verdict::{self, Delivering, Verdict, unknown_limit};
use crate::status::why::why;
use crate::status::{numbers, queue_status};
use crate::store::{Connection, MessageStore, StoreError};

/// The parts of an item, besides its conditions' times.
pub(super) struct Item {
    pub(super) kind: &'static str,
    pub(super) value: Value,
}

fn item(kind: &'static str, facts: &Facts, status: &Value) -> Item {
    let value = json!({
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {
            "name": facts.name,
            "namespace": facts.namespace,
            "generation": facts.generation,
            "creationTimestamp": facts.created.round(jiff::Unit::Second).unwrap_or(facts.created),
        },
        "status": status,
    });
    Item { kind, value }
}

/// A MessageStore.
pub(super) async fn store(object: &StoreObject, now: Timestamp) -> Item {
    let topology = &object.plan.topology;
    let depth = object.store.depth().await;
    let mismatch = match (&depth, &*object.store.connection().borrow()) {
        (Err(error @ StoreError::Mismatch(_)), _) | (_, Connection::Down(error @ StoreError::Mismatch(_))) => {
            Some(("QueueMismatch", error.to_string()))
        }
        _ => None,
    };
    let mut verdict = Verdict::new(object.facts.generation, now);
    verdict.references(None);
    verdict.brokers([(object.plan.name.as_str(), link(&*object.store))]);
    verdict.degraded(topology.queue.as_ref().and_then(unknown_limit));
    let depth = depth.ok();
    let status = MessageStoreStatus {
        conditions: verdict.finish(mismatch, "Ready"),
        queue: queue_status(&object.plan),
        bindings: topology.exchange.as_ref().map(|_| topology.bindings.clone()),
        messages: depth.map(|depth| depth.ready),
        consumers: depth.map(|depth| depth.consumers),
        sampled_at: depth.map(|_| Time(now)),
        observed_generation: Some(object.facts.generation),
    };
    item("MessageStore", &object.facts, &json!(status))
}

/// An IngressRoute that is reached at `address`.
pub(super) fn route(object: &RouteObject, address: &str, attempts: &[Attempt], now: Timestamp) -> Item {
    let mut verdict = Verdict::new(object.facts.generation, now);
    verdict.references(None);
    verdict.brokers(object.route.stores.iter().map(|(name, store)| (name.as_str(), link(&**store))));
    let advice = advice::reply_too_short(&object.route.plan, attempts);
    verdict.degraded(advice.as_deref().map(|advice| (verdict::REPLY_TOO_SHORT, advice)));
    verdict.paused(false);
    let status = IngressRouteStatus {
        address: Some(address.to_owned()),
        conditions: verdict.finish(None, "Ready"),
        replicas: Some(1),
        ready_replicas: Some(1),
        accepted: Some(object.route.counters.accepted()),
        rejected: Some(object.route.counters.rejected()),
        failed: Some(object.route.counters.failed()),
        observed_generation: Some(object.facts.generation),
        ..IngressRouteStatus::default()
    };
    item("IngressRoute", &object.facts, &json!(status))
}

/// A ForwardingProcessor.
pub(super) async fn processor(object: &ProcessorObject, now: Timestamp) -> Item {
    let (phase, standing, last_handled) = object.keeper.read();
    let generation = object.facts.generation;
    let conditions = processor_verdict(object, &phase, &standing, now);
    let backlog = object.source.depth().await.ok().map(|depth| depth.ready + standing.held);
    let dead_letter = match &object.dead_letters {
        Some(store) => Some(DeadLetterStatus {
            queue: store.name().to_owned(),
            messages: store.depth().await.ok().map(|depth| depth.ready),
        }),
        None => None,
    };
    let replicas = object.plan.replicas;
    let status = ForwardingProcessorStatus {
        state: Some(state(object, &phase, &standing)),
        target: match object.keeper.wished().what {
            What::Run(launch) => Some(launch.target()),
            _ => None,
        },
        backlog,
        dead_letter,
        deactivation: standing.deactivation.as_ref().map(Into::into),
        last_handled_reactivate: last_handled,
        reason: why(&conditions).map(ToOwned::to_owned),
        replicas: Some(replicas),
        ready_replicas: Some(if phase == Phase::Running { replicas } else { 0 }),
        conditions,
        observed_generation: Some(generation),
        ..numbers(&standing)
    };
    let mut item = item("ForwardingProcessor", &object.facts, &json!(status));
    // For the column STORE of the table; the rest of the spec stays where it is.
    item.value["spec"] = json!({"storeRef": {"name": object.plan.source}});
    item
}

fn state(object: &ProcessorObject, phase: &Phase, standing: &Standing) -> ProcessorState {
    match phase {
        Phase::Suspended => ProcessorState::Suspended,
        Phase::Running if standing.deactivation.is_some() => ProcessorState::Deactivated,
        Phase::Running if object.plan.replicas > 0 => ProcessorState::Active,
        _ => ProcessorState::Pending,
    }
}

fn processor_verdict(
    object: &ProcessorObject,
    phase: &Phase,
    standing: &Standing,
    now: Timestamp,
) -> Vec<crate::api::condition::Condition> {
    let mut verdict = Verdict::new(object.facts.generation, now);
    verdict.references(match phase {
        Phase::Waiting(missing) => Some(missing),
        _ => None,
    });
    verdict.brokers(object.stores.iter().map(|(name, store)| (name.as_str(), link(&**store))));
    let last_error = standing.last_failure.as_ref().map_or("", |failure| failure.message.as_str());
    verdict.target(standing.target_reachable, last_error);
    verdict.delivering(match (phase, standing.hindrance) {
        (Phase::Suspended, _) => Delivering::Suspended,
        (Phase::Running, Some(hindrance)) => Delivering::Hindered(hindrance),
        (Phase::Running, None) => Delivering::Yes,
        _ => Delivering::NotStarted,
    });
    // Who died of a message in this process would not be asked: the log says it beforehand.
    verdict.degraded_processor(&[], standing.responses_lost);
    verdict.paused(false);
    let remedy = format!(
        "it stopped at a message that failed; repair the cause, then `stagepost reactivate {}`",
        object.facts.name
    );
    match phase {
        Phase::Running if standing.deactivation.is_some() => verdict.finish(Some(("Deactivated", remedy)), "Ready"),
        Phase::Running if object.plan.replicas == 0 => verdict.finish(None, "ScaledToZero"),
        Phase::Suspended => verdict.finish(None, "Suspended"),
        Phase::Starting => verdict.finish(Some(("Starting", "it is about to start".to_owned())), "Ready"),
        Phase::Failed(error) => verdict.finish(Some(("NotStarted", error.clone())), "Ready"),
        Phase::Running | Phase::Waiting(_) => verdict.finish(None, "Ready"),
    }
}

fn link(store: &dyn MessageStore) -> Link {
    Link::from(&*store.connection().borrow())
}
