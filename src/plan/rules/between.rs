//! Rules between objects of one namespace: what is named must be there and fit, and nothing may run in circles.

use crate::api::forwarding_processor::Ordering;
use crate::api::message_store::{Broker, Consumers};
use crate::api::shared::StoreRef;
use crate::api::{ForwardingProcessor, IngressRoute, MessageStore};
use crate::plan::compile::store_not_found;
use crate::plan::finding::{Finding, Reason};
use crate::plan::world::{Named, World, is_older, queue_name};

use super::Controlled;

const fn rule(id: &'static str, field: &'static str, remedy: &'static str) -> Controlled {
    Controlled { id, field, remedy }
}

const STORE_EXISTS: Controlled = rule("store-exists", "spec", "create it, or correct the name");
const ONE_QUEUE: Controlled = rule("one-queue", "spec.queue.name", "give each store a queue of its own");
const ONE_EXCHANGE_TYPE: Controlled =
    rule("one-exchange-type", "spec.exchange.type", "give both the same type, or this one another exchange");
const FAILOVER_CYCLE: Controlled = rule(
    "failover-cycle",
    "spec.failoverStoreRef.name",
    "remove failoverStoreRef from one of these stores, so that the chain ends",
);
const ROUTING_KEY_NEEDS_EXCHANGE: Controlled =
    rule("routing-key-needs-exchange", "spec.rules[].routingKey", "remove routingKey, or give the store an exchange");
const SOURCE_NEEDS_QUEUE: Controlled =
    rule("source-needs-queue", "spec.storeRef.name", "name a store with a queue, bound to the same exchange");
const OTHER_THAN_SOURCE: Controlled =
    rule("other-than-source", "spec", "name another store, else each message would come back for ever");
const ORDER_ON_COMPETING: Controlled =
    rule("order-on-competing", "spec.ordering", "use ordering: None, or a store with consumers: SingleActive");
const REPLICAS_ON_SINGLE_ACTIVE: Controlled = rule(
    "replicas-on-single-active",
    "spec.workload.replicas",
    "use replicas: 1, or a store with consumers: Competing",
);
const STORE_IN_USE: Controlled = rule(
    "store-in-use",
    "spec.storeRef.name",
    "give this one a store of its own, or use a store with consumers: Competing and ordering: None on both",
);

/// For the list of all rules.
pub(super) const RULES: &[Controlled] = &[
    STORE_EXISTS,
    ONE_QUEUE,
    ONE_EXCHANGE_TYPE,
    FAILOVER_CYCLE,
    ROUTING_KEY_NEEDS_EXCHANGE,
    SOURCE_NEEDS_QUEUE,
    OTHER_THAN_SOURCE,
    ORDER_ON_COMPETING,
    REPLICAS_ON_SINGLE_ACTIVE,
    STORE_IN_USE,
];

fn broken(rule: &Controlled, path: impl Into<String>, what: impl AsRef<str>) -> Finding {
    Finding::invalid(path, format!("{}; {}", what.as_ref(), rule.remedy))
}

/// Checks a MessageStore among the others.
pub(in crate::plan) fn check_store(object: &MessageStore, world: &World<'_>, findings: &mut Vec<Finding>) {
    let namespace = object.namespace();
    if let Some(queue) = &object.spec.queue {
        let name = queue_name(object, queue);
        let first = world.stores_in(namespace).find(|other| {
            other.name() != object.name()
                && is_older(*other, object)
                && same_broker(&other.spec.broker, &object.spec.broker)
                && other.spec.queue.as_ref().is_some_and(|queue| queue_name(other, queue) == name)
        });
        if let Some(first) = first {
            let what = format!("the queue `{name}` is already that of MessageStore `{}`", first.name());
            findings.push(Finding { reason: Reason::StoreInUse, ..broken(&ONE_QUEUE, "spec.queue.name", what) });
        }
    }
    if let Some(exchange) = &object.spec.exchange {
        // The oldest says what it is: another one may be as wrong as this.
        let mut oldest: Option<&MessageStore> = None;
        for other in world.stores_in(namespace) {
            let is_of_it = other.spec.exchange.as_ref().is_some_and(|theirs| theirs.name == exchange.name)
                && same_broker(&other.spec.broker, &object.spec.broker);
            if is_of_it && oldest.is_none_or(|oldest| is_older(other, oldest)) {
                oldest = Some(other);
            }
        }
        let theirs = oldest.and_then(|other| Some((other, other.spec.exchange.as_ref()?)));
        if let Some((other, theirs)) = theirs.filter(|(_, theirs)| theirs.kind != exchange.kind) {
            let what = format!(
                "the exchange `{}` is of type {:?} in MessageStore `{}`, and of type {:?} here",
                exchange.name,
                theirs.kind,
                other.name(),
                exchange.kind
            );
            findings.push(broken(&ONE_EXCHANGE_TYPE, "spec.exchange.type", what));
        }
    }
    let path = "spec.failoverStoreRef.name";
    let Some(next) = &object.spec.failover_store_ref else { return };
    if world.lacks_store(namespace, &next.name) {
        findings.push(store_not_found(world, namespace, &next.name, path));
    } else if let Some(chain) = failover_cycle(object, world) {
        findings.push(broken(&FAILOVER_CYCLE, path, format!("the failover stores form a cycle: {chain}")));
    }
}

/// Two brokers that may be one: the same names. Secrets of different names may still lead to one broker.
fn same_broker(one: &Broker, other: &Broker) -> bool {
    one.secret_ref == other.secret_ref
        && one.cluster_ref == other.cluster_ref
        && one.virtual_host.as_deref().unwrap_or("/") == other.virtual_host.as_deref().unwrap_or("/")
}

fn failover_cycle(object: &MessageStore, world: &World<'_>) -> Option<String> {
    let mut chain = vec![object.name()];
    let mut store = object;
    while let Some(next) = &store.spec.failover_store_ref {
        if chain.contains(&next.name.as_str()) {
            // A store that only leads into a cycle is not part of it; those in it are told.
            return (next.name == object.name()).then(|| format!("{} -> {}", chain.join(" -> "), next.name));
        }
        store = world.store(object.namespace(), &next.name)?;
        chain.push(store.name());
    }
    None
}

/// Checks an IngressRoute among the others.
pub(in crate::plan) fn check_route(object: &IngressRoute, world: &World<'_>, findings: &mut Vec<Finding>) {
    let namespace = object.namespace();
    for (at, rule) in object.spec.rules.iter().enumerate() {
        let name = &rule.store_ref.name;
        if world.lacks_store(namespace, name) {
            findings.push(store_not_found(world, namespace, name, &format!("spec.rules[{at}].storeRef.name")));
        }
        let Some(store) = world.store(namespace, name) else { continue };
        if rule.routing_key.is_some() && store.spec.exchange.is_none() {
            let what = format!("MessageStore `{name}` has no exchange that a routing key could mean something to");
            findings.push(broken(&ROUTING_KEY_NEEDS_EXCHANGE, format!("spec.rules[{at}].routingKey"), what));
        }
    }
}

/// Checks a ForwardingProcessor among the others.
pub(in crate::plan) fn check_processor(object: &ForwardingProcessor, world: &World<'_>, findings: &mut Vec<Finding>) {
    let spec = &object.spec;
    let namespace = object.namespace();
    let source = &spec.store_ref.name;
    let others: [(&Option<StoreRef>, &str, &str); 3] = [
        (&spec.target.store_ref, "spec.target.storeRef.name", "the target"),
        (&spec.on_failure.dead_letter_store_ref, "spec.onFailure.deadLetterStoreRef.name", "the dead letter store"),
        (&spec.response.store_ref, "spec.response.storeRef.name", "the response store"),
    ];
    for (reference, path, what) in others {
        let Some(reference) = reference else { continue };
        if reference.name == *source {
            findings.push(broken(&OTHER_THAN_SOURCE, path, format!("{what} is the source, `{source}`")));
        } else if world.lacks_store(namespace, &reference.name) {
            findings.push(store_not_found(world, namespace, &reference.name, path));
        }
    }
    if world.lacks_store(namespace, source) {
        findings.push(store_not_found(world, namespace, source, "spec.storeRef.name"));
    }
    if let Some(store) = world.store(namespace, source) {
        check_source(object, store, world, findings);
    }
}

fn check_source(object: &ForwardingProcessor, store: &MessageStore, world: &World<'_>, findings: &mut Vec<Finding>) {
    let spec = &object.spec;
    let source = store.name();
    let Some(queue) = &store.spec.queue else {
        let what = format!("MessageStore `{source}` is publish-only: it has no queue to take messages from");
        findings.push(broken(&SOURCE_NEEDS_QUEUE, "spec.storeRef.name", what));
        return;
    };
    let unordered = spec.ordering == Ordering::None;
    if queue.consumers == Consumers::Competing && !unordered {
        let what = format!(
            "ordering {:?} cannot be kept on MessageStore `{source}`, whose consumers are Competing",
            spec.ordering
        );
        findings.push(broken(&ORDER_ON_COMPETING, "spec.ordering", what));
    }
    if queue.consumers == Consumers::SingleActive && spec.replicas() > 1 {
        let what = format!(
            "MessageStore `{source}` serves one consumer at a time (SingleActive), so {} replicas would idle but one",
            spec.replicas()
        );
        findings.push(broken(&REPLICAS_ON_SINGLE_ACTIVE, "spec.workload.replicas", what));
    }
    let shared = |other: &&ForwardingProcessor| {
        other.name() != object.name()
            && other.spec.store_ref == spec.store_ref
            && is_older(*other, object)
            && !(unordered && other.spec.ordering == Ordering::None && queue.consumers == Consumers::Competing)
    };
    if let Some(first) = world.processors_in(object.namespace()).find(shared) {
        let what = format!("ForwardingProcessor `{}` already takes from MessageStore `{source}`", first.name());
        findings.push(Finding { reason: Reason::StoreInUse, ..broken(&STORE_IN_USE, "spec.storeRef.name", what) });
    }
}
