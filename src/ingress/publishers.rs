//! From the stores of a route's plan to what its rules publish through.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::core::retry::Backoff;
use crate::plan::{IngressPlan, StorePlan};
use crate::store::MessageStore;
use crate::store::publisher::{Link, Publisher};
use crate::telemetry::metrics::Metrics;

/// A publisher for each store that a rule names: the store, then its chain of failover stores.
pub fn publishers(
    plan: &IngressPlan,
    stores: &BTreeMap<String, Arc<dyn MessageStore>>,
    metrics: &Metrics,
) -> BTreeMap<String, Arc<Publisher>> {
    let link = |store: &StorePlan| {
        Some(Link {
            store: stores.get(&store.name)?.clone(),
            keyed: store.topology.exchange.is_some(),
            max_retries: store.retry.max_retries,
            backoff: Backoff {
                interval: store.retry.interval,
                factor: store.retry.backoff_factor,
                max_interval: store.retry.max_interval,
                jitter: 0.0,
            },
            metrics: metrics.store(&format!("{}/{}", plan.object.namespace, store.name)),
        })
    };
    let named = plan.rules.iter().map(|rule| &rule.store);
    named
        .filter_map(|name| {
            let first = plan.stores.get(name)?;
            let mut links = Vec::new();
            let mut next = Some(first);
            // Plans hold no cycle; the bound is there in case one does.
            while let Some(store) = next.filter(|_| links.len() < plan.stores.len()) {
                links.push(link(store)?);
                next = store.failover.as_ref().and_then(|name| plan.stores.get(name));
            }
            let mut links = links.into_iter();
            let publisher = Publisher::new(links.next()?, links.collect(), first.deadline);
            Some((name.clone(), Arc::new(publisher)))
        })
        .collect()
}
