//! Which objects a change concerns besides the one that changed. Pure.

use std::collections::BTreeSet;

use kube::ResourceExt as _;

use crate::api::{ForwardingProcessor, IngressRoute, MessageStore};
use crate::plan::world::Named;

/// What has changed, come or gone.
#[derive(Debug)]
pub(super) enum Change<'a> {
    /// A MessageStore: namespace and name.
    Store(&'a str, &'a str),
    /// A ForwardingProcessor.
    Processor(&'a ForwardingProcessor),
}

/// Stores judge each other by the queues they name and the chains of failover stores; they are few.
pub(super) fn store_is_concerned(store: &MessageStore, change: &Change<'_>) -> bool {
    match change {
        Change::Store(namespace, name) => Named::namespace(store) == *namespace && Named::name(store) != *name,
        // A store is sampled by its workers, or by us if there are none.
        Change::Processor(processor) => {
            Named::namespace(store) == Named::namespace(*processor)
                && Named::name(store) == processor.spec.store_ref.name
        }
    }
}

/// The objects that name a changed store, also by way of a chain of failover stores.
#[derive(Debug)]
pub(super) struct Concerns<'a> {
    namespace: &'a str,
    /// Of stores.
    names: BTreeSet<String>,
    /// A processor that changed: others on its store judge themselves by it.
    processor: Option<&'a str>,
}

impl<'a> Concerns<'a> {
    pub(super) fn of(change: &Change<'a>, stores: &[&MessageStore]) -> Self {
        match change {
            Change::Processor(processor) => Self {
                namespace: Named::namespace(*processor),
                names: BTreeSet::from([processor.spec.store_ref.name.clone()]),
                processor: Some(Named::name(*processor)),
            },
            Change::Store(namespace, name) => {
                let mut names = BTreeSet::from([(*name).to_owned()]);
                // Whoever fails over to one of them is concerned too.
                loop {
                    let before = names.len();
                    for store in stores.iter().filter(|store| Named::namespace(**store) == *namespace) {
                        let next = store.spec.failover_store_ref.as_ref();
                        if next.is_some_and(|next| names.contains(&next.name)) {
                            names.insert(store.name_any());
                        }
                    }
                    if names.len() == before {
                        break;
                    }
                }
                Self { namespace, names, processor: None }
            }
        }
    }

    pub(super) fn route(&self, route: &IngressRoute) -> bool {
        // A processor is of interest to those whose callers wait for it.
        let rules = route.spec.rules.iter().filter(|rule| self.processor.is_none() || rule.reply.is_some());
        let names = rules.map(|rule| &rule.store_ref.name);
        Named::namespace(route) == self.namespace && self.names_one_of(names)
    }

    pub(super) fn processor(&self, processor: &ForwardingProcessor) -> bool {
        if Named::namespace(processor) != self.namespace || self.processor == Some(Named::name(processor)) {
            return false;
        }
        let spec = &processor.spec;
        if self.processor.is_some() {
            return self.names.contains(&spec.store_ref.name);
        }
        let others = [&spec.target.store_ref, &spec.on_failure.dead_letter_store_ref, &spec.response.store_ref];
        let others = others.into_iter().flatten().map(|reference| &reference.name);
        self.names_one_of(std::iter::once(&spec.store_ref.name).chain(others))
    }

    fn names_one_of<'n>(&self, mut names: impl Iterator<Item = &'n String>) -> bool {
        names.any(|name| self.names.contains(name))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn store(name: &str, failover: Option<&str>) -> MessageStore {
        let mut spec = json!({"broker": {"secretRef": {"name": "rabbitmq"}}, "queue": {}});
        if let Some(failover) = failover {
            spec["failoverStoreRef"] = json!({"name": failover});
        }
        object(name, &spec)
    }

    fn object<K: serde::de::DeserializeOwned>(name: &str, spec: &Value) -> K {
        serde_json::from_value(json!({"apiVersion": "stagepost.dev/v1alpha1", "kind": "MessageStore",
            "metadata": {"name": name, "namespace": "shop"}, "spec": spec}))
        .unwrap()
    }

    fn processor(name: &str, of: &str) -> ForwardingProcessor {
        let mut value = json!({"apiVersion": "stagepost.dev/v1alpha1", "kind": "ForwardingProcessor",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"storeRef": {"name": of}, "target": {"url": "http://settle"}}});
        value["spec"]["onFailure"] = json!({"action": "Drop"});
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_store_concerns_whoever_reaches_it_by_failover() {
        let stores = [store("first", Some("second")), store("second", Some("third")), store("third", None)];
        let stores: Vec<&MessageStore> = stores.iter().collect();
        let change = Change::Store("shop", "third");
        let concerns = Concerns::of(&change, &stores);
        assert!(concerns.processor(&processor("out", "first")));
        let change = Change::Store("shop", "first");
        assert!(!Concerns::of(&change, &stores).processor(&processor("out", "second")));
        let change = Change::Store("other", "third");
        assert!(!Concerns::of(&change, &stores).processor(&processor("out", "third")));
    }

    #[test]
    fn a_processor_concerns_the_others_on_its_store_and_not_itself() {
        let changed = processor("one", "orders");
        let change = Change::Processor(&changed);
        let concerns = Concerns::of(&change, &[]);
        assert!(concerns.processor(&processor("two", "orders")));
        assert!(!concerns.processor(&processor("one", "orders")));
        assert!(!concerns.processor(&processor("two", "payments")));
    }
}
