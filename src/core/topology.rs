//! What a store declares on its broker: a queue, an exchange, the bindings between them.

use serde::{Deserialize, Serialize};

/// The queue and exchange of one store. At least one of the two is present.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Topology {
    /// Absent in a publish-only store.
    pub queue: Option<Queue>,
    /// Absent: the broker's default exchange, which routes by queue name.
    pub exchange: Option<Exchange>,
    /// Binding keys from the exchange to the queue. Empty with `Fanout`, where none is needed.
    pub bindings: Vec<String>,
    /// The key used when a publish names none.
    pub routing_key: String,
}

/// A durable queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Queue {
    /// The queue's name on the broker.
    pub name: String,
    /// Replicated (`Quorum`) or on one node (`Classic`).
    pub kind: QueueKind,
    /// Whether we make it.
    pub management: Management,
    /// Whether the broker lets one consumer or several take from it.
    pub consumers: Consumers,
    /// Most messages it may hold; beyond it a publish is refused.
    pub max_length: Option<u64>,
    /// Most bytes of bodies it may hold; beyond it a publish is refused.
    pub max_length_bytes: Option<u64>,
}

/// A durable exchange.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Exchange {
    /// The exchange's name on the broker.
    pub name: String,
    /// How it routes.
    pub kind: ExchangeKind,
    /// Whether we make it.
    pub management: Management,
}

/// The kind of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum QueueKind {
    /// Replicated by Raft.
    Quorum,
    /// On one node.
    Classic,
}

/// Whether a queue or exchange is ours to declare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Management {
    /// We declare it.
    Declare,
    /// It must be there; only its existence is checked.
    Existing,
}

/// How many consumers take from a queue at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Consumers {
    /// One: a fence against a pod that was thought dead.
    SingleActive,
    /// Several (Competing Consumers).
    Competing,
}

/// How an exchange routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExchangeKind {
    /// To the queues bound with exactly the routing key.
    Direct,
    /// To the queues whose binding pattern matches: `*` is one word, `#` any number of words.
    Topic,
    /// To every bound queue.
    Fanout,
}

impl Exchange {
    /// Whether a binding of this exchange takes a message with this routing key.
    pub fn routes(&self, binding: &str, routing_key: &str) -> bool {
        match self.kind {
            ExchangeKind::Direct => binding == routing_key,
            ExchangeKind::Fanout => true,
            ExchangeKind::Topic => topic_matches(binding, routing_key),
        }
    }
}

/// Topic matching as AMQP 0-9-1 defines it: words divided by dots, `*` exactly one word, `#` zero or more.
pub fn topic_matches(pattern: &str, key: &str) -> bool {
    let words: Vec<&str> = if key.is_empty() { Vec::new() } else { key.split('.').collect() };
    // reachable[i]: the pattern read so far can end just before words[i]; linear in both, whatever the number of `#`.
    let mut reachable = vec![false; words.len() + 1];
    reachable[0] = true;
    for part in pattern.split('.') {
        let mut next = vec![false; words.len() + 1];
        match part {
            "#" => {
                let mut seen = false;
                for (at, slot) in next.iter_mut().enumerate() {
                    seen |= reachable[at];
                    *slot = seen;
                }
            }
            _ => {
                for at in 0..words.len() {
                    next[at + 1] = reachable[at] && (part == "*" || part == words[at]);
                }
            }
        }
        reachable = next;
    }
    reachable[words.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_patterns_match_word_by_word() {
        for (pattern, key, expected) in [
            ("orders.*.created", "orders.eu.created", true),
            ("orders.*.created", "orders.eu.x.created", false),
            ("orders.#", "orders.eu.x.created", true),
            ("orders.#", "orders", true),
            ("audit.#", "audit", true),
            ("audit.#", "users.x", false),
            ("#", "", true),
            ("#", "a.b", true),
            ("*", "", false),
            ("*", "a", true),
            ("#.b", "a.b", true),
            ("#.b.#", "b", true),
            ("a.#.#.d", "a.d", true),
            ("a.*.#", "a", false),
        ] {
            assert_eq!(topic_matches(pattern, key), expected, "{pattern} against {key}");
        }
    }
}
