//! Which bindings the stores of this process asked for, so that what none of them asks for any more can be removed.

use std::collections::{BTreeSet, HashMap};

use crate::core::topology::Topology;

/// By queue and exchange, and there by store: the binding keys that it asked for and that may be there.
#[derive(Debug, Default)]
pub(super) struct Bindings(HashMap<(String, String), HashMap<String, BTreeSet<String>>>);

impl Bindings {
    /// A store's bindings are about to be made. Returns the keys that it had and nobody asks for any more. All of them
    /// are remembered until [`made`](Self::made), for any step on the way there may fail.
    pub(super) fn make(&mut self, store: &str, topology: &Topology) -> Vec<String> {
        let Some(place) = place(topology) else { return Vec::new() };
        let stores = self.0.entry(place).or_default();
        let wanted: BTreeSet<String> = topology.bindings.iter().cloned().collect();
        let had = stores.entry(store.to_owned()).or_default();
        let gone: Vec<String> = had.difference(&wanted).cloned().collect();
        had.extend(wanted);
        let others = |key: &String| stores.iter().any(|(name, keys)| name != store && keys.contains(key));
        gone.into_iter().filter(|key| !others(key)).collect()
    }

    /// A store's bindings are as it asked for, no more and no less.
    pub(super) fn made(&mut self, store: &str, topology: &Topology) {
        let Some(place) = place(topology) else { return };
        let wanted = topology.bindings.iter().cloned().collect();
        self.0.entry(place).or_default().insert(store.to_owned(), wanted);
    }

    /// The queues behind an exchange.
    pub(super) fn queues(&self, exchange: &str) -> Vec<String> {
        self.0.keys().filter(|(_, from)| from == exchange).map(|(queue, _)| queue.clone()).collect()
    }
}

fn place(topology: &Topology) -> Option<(String, String)> {
    Some((topology.queue.as_ref()?.name.clone(), topology.exchange.as_ref()?.name.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::topology::{Consumers, Exchange, ExchangeKind, Management, Queue, QueueKind};

    fn topology(keys: &[&str]) -> Topology {
        Topology {
            queue: Some(Queue {
                name: "q".to_owned(),
                kind: QueueKind::Quorum,
                management: Management::Declare,
                consumers: Consumers::Competing,
                max_length: None,
                max_length_bytes: None,
            }),
            exchange: Some(Exchange {
                name: "e".to_owned(),
                kind: ExchangeKind::Topic,
                management: Management::Declare,
            }),
            bindings: keys.iter().map(|key| (*key).to_owned()).collect(),
            routing_key: String::new(),
        }
    }

    #[test]
    fn what_nobody_asks_for_any_more_is_removed_once() {
        let mut bindings = Bindings::default();
        assert!(bindings.make("a", &topology(&["x", "y"])).is_empty());
        bindings.made("a", &topology(&["x", "y"]));
        assert!(bindings.make("b", &topology(&["y"])).is_empty());
        bindings.made("b", &topology(&["y"]));
        assert_eq!(bindings.make("a", &topology(&["z"])), ["x"], "y is b's too");
        bindings.made("a", &topology(&["z"]));
        assert!(bindings.make("a", &topology(&["z"])).is_empty());
        assert_eq!(bindings.queues("e"), ["q"]);
        assert!(bindings.queues("other").is_empty());
    }

    #[test]
    fn a_change_that_failed_halfway_is_not_forgotten() {
        let mut bindings = Bindings::default();
        bindings.make("a", &topology(&["x"]));
        bindings.made("a", &topology(&["x"]));
        // `y` may have been bound, and `x` is still there.
        assert_eq!(bindings.make("a", &topology(&["y"])), ["x"]);
        assert_eq!(bindings.make("a", &topology(&["z"])), ["x", "y"]);
    }
}
