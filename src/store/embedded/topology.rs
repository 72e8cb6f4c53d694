//! Exchanges, queues and bindings: what a declaration changes, and where a message goes.
//!
//! Each binding knows which store made it: what leaves the topology of a store is unbound, and what another store
//! bound stays.

use std::collections::HashMap;
use std::sync::Arc;

use redb::{Database, ReadableDatabase, ReadableTable, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::file::{BINDINGS, COUNTS, EXCHANGES, NEXT_QUEUE, NUMBERS, QUEUES};
use super::queue::{Counts, Queue};
use crate::core::topology::{self, Consumers, Exchange, ExchangeKind, Management, QueueKind, Topology};
use crate::store::StoreError;

const REMEDY: &str = "create a new store, and drain this one into it with `target.storeRef`";

/// All virtual hosts.
#[derive(Debug, Default)]
pub(super) struct Routes {
    vhosts: HashMap<String, Vhost>,
}

#[derive(Debug, Default)]
struct Vhost {
    queues: HashMap<String, Arc<Queue>>,
    exchanges: HashMap<String, Bound>,
}

#[derive(Debug)]
struct Bound {
    exchange: Exchange,
    bindings: Vec<Binding>,
}

/// A store's binding of a queue to an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Binding {
    store: String,
    exchange: String,
    queue: String,
    key: String,
}

/// What a declaration changes.
#[derive(Debug, Default)]
pub(super) struct Changes {
    queue: Option<topology::Queue>,
    exchange: Option<Exchange>,
    bind: Vec<Binding>,
    unbind: Vec<Binding>,
}

/// A queue as the file keeps it. A row of its own, so that the plan's types may change without the file's.
#[derive(Serialize, Deserialize)]
struct QueueRow {
    id: u32,
    kind: QueueKind,
    management: Management,
    consumers: Consumers,
    max_length: Option<u64>,
    max_length_bytes: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct ExchangeRow {
    kind: ExchangeKind,
    management: Management,
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_none() && self.exchange.is_none() && self.bind.is_empty() && self.unbind.is_empty()
    }
}

impl Routes {
    /// Reads everything from the file: a row a queue, exchange and binding, and no message.
    pub(super) fn read(database: &Database) -> Result<Self, redb::Error> {
        let transaction = database.begin_read()?;
        let mut routes = Self::default();
        let counts = transaction.open_table(COUNTS)?;
        for row in transaction.open_table(QUEUES)?.iter()? {
            let (key, value) = row?;
            let (vhost, name) = key.value();
            let row: QueueRow = parse(value.value())?;
            let (next, messages, bytes, delivered) = counts.get(row.id)?.map(|row| row.value()).unwrap_or_default();
            let arguments = topology::Queue {
                name: name.to_owned(),
                kind: row.kind,
                management: row.management,
                consumers: row.consumers,
                max_length: row.max_length,
                max_length_bytes: row.max_length_bytes,
            };
            let queue = Queue::new(row.id, arguments, Counts { next, messages, bytes, delivered });
            routes.vhost(vhost).queues.insert(name.to_owned(), Arc::new(queue));
        }
        for row in transaction.open_table(EXCHANGES)?.iter()? {
            let (key, value) = row?;
            let (vhost, name) = key.value();
            let ExchangeRow { kind, management } = parse(value.value())?;
            let exchange = Exchange { name: name.to_owned(), kind, management };
            routes.vhost(vhost).exchanges.insert(name.to_owned(), Bound { exchange, bindings: Vec::new() });
        }
        for row in transaction.open_table(BINDINGS)?.iter()? {
            let (key, _) = row?;
            let (vhost, store, exchange, queue, key) = key.value();
            let [store, exchange, queue, key] = [store, exchange, queue, key].map(str::to_owned);
            routes.bind(vhost, Binding { store, exchange, queue, key });
        }
        Ok(routes)
    }

    fn vhost(&mut self, name: &str) -> &mut Vhost {
        self.vhosts.entry(name.to_owned()).or_default()
    }

    fn bind(&mut self, vhost: &str, binding: Binding) {
        if let Some(bound) = self.vhost(vhost).exchanges.get_mut(&binding.exchange) {
            bound.bindings.push(binding);
        }
    }

    /// Every queue.
    pub(super) fn queues(&self) -> impl Iterator<Item = &Arc<Queue>> {
        self.vhosts.values().flat_map(|vhost| vhost.queues.values())
    }

    /// The queue of this name.
    pub(super) fn queue(&self, vhost: &str, name: &str) -> Option<Arc<Queue>> {
        self.vhosts.get(vhost)?.queues.get(name).cloned()
    }

    /// The queues that a message goes to, each once. Without an exchange: the queue that the key names.
    pub(super) fn route(&self, vhost: &str, exchange: Option<&str>, key: &str) -> Vec<Arc<Queue>> {
        let Some(vhost) = self.vhosts.get(vhost) else { return Vec::new() };
        let Some(exchange) = exchange else { return vhost.queues.get(key).cloned().into_iter().collect() };
        let Some(bound) = vhost.exchanges.get(exchange) else { return Vec::new() };
        let mut found: Vec<Arc<Queue>> = Vec::new();
        for binding in bound.bindings.iter().filter(|binding| bound.exchange.routes(&binding.key, key)) {
            if let Some(queue) = vhost.queues.get(&binding.queue)
                && !found.iter().any(|other| other.id == queue.id)
            {
                found.push(queue.clone());
            }
        }
        found
    }

    /// What must change so that `store` has this topology; or why it cannot have it.
    pub(super) fn plan(&self, vhost: &str, store: &str, wanted: &Topology) -> Result<Changes, StoreError> {
        let empty = Vhost::default();
        let vhost = self.vhosts.get(vhost).unwrap_or(&empty);
        let mut changes = Changes::default();
        if let Some(queue) = &wanted.queue {
            let existing = vhost.queues.get(&queue.name).map(|queue| queue.arguments());
            changes.queue = declare_queue(existing.as_ref(), queue)?;
        }
        if let Some(exchange) = &wanted.exchange {
            let existing = vhost.exchanges.get(&exchange.name).map(|bound| &bound.exchange);
            changes.exchange = declare_exchange(existing, exchange)?;
        }
        let bindings = bindings(store, wanted);
        let old: Vec<&Binding> = vhost
            .exchanges
            .values()
            .flat_map(|bound| &bound.bindings)
            .filter(|binding| binding.store == store)
            .collect();
        changes.unbind = old.iter().copied().filter(|binding| !bindings.contains(binding)).cloned().collect();
        changes.bind = bindings.into_iter().filter(|binding| !old.contains(&binding)).collect();
        Ok(changes)
    }

    /// Takes over what [`write`] stored. `id` is that of a new queue.
    pub(super) fn apply(&mut self, vhost_name: &str, changes: Changes, id: u32) {
        let vhost = self.vhost(vhost_name);
        if let Some(arguments) = changes.queue {
            if let Some(queue) = vhost.queues.get(&arguments.name) {
                queue.set_arguments(arguments);
            } else {
                let name = arguments.name.clone();
                vhost.queues.insert(name, Arc::new(Queue::new(id, arguments, Counts::default())));
            }
        }
        if let Some(exchange) = changes.exchange {
            let name = exchange.name.clone();
            let bindings = vhost.exchanges.remove(&name).map(|bound| bound.bindings).unwrap_or_default();
            vhost.exchanges.insert(name, Bound { exchange, bindings });
        }
        for binding in &changes.unbind {
            if let Some(bound) = vhost.exchanges.get_mut(&binding.exchange) {
                bound.bindings.retain(|other| other != binding);
            }
        }
        for binding in changes.bind {
            self.bind(vhost_name, binding);
        }
    }
}

/// Writes the changes. Returns the id that a new queue has.
pub(super) fn write(transaction: &WriteTransaction, vhost: &str, changes: &Changes) -> Result<u32, redb::Error> {
    let mut id = 0;
    if let Some(queue) = &changes.queue {
        let mut queues = transaction.open_table(QUEUES)?;
        let existing = match queues.get((vhost, queue.name.as_str()))? {
            Some(row) => Some(parse::<QueueRow>(row.value())?.id),
            None => None,
        };
        id = match existing {
            Some(id) => id,
            None => next_id(transaction)?,
        };
        let row = QueueRow {
            id,
            kind: queue.kind,
            management: queue.management,
            consumers: queue.consumers,
            max_length: queue.max_length,
            max_length_bytes: queue.max_length_bytes,
        };
        queues.insert((vhost, queue.name.as_str()), json(&row)?.as_slice())?;
    }
    if let Some(exchange) = &changes.exchange {
        let row = json(&ExchangeRow { kind: exchange.kind, management: exchange.management })?;
        transaction.open_table(EXCHANGES)?.insert((vhost, exchange.name.as_str()), row.as_slice())?;
    }
    let mut bindings = transaction.open_table(BINDINGS)?;
    for Binding { store, exchange, queue, key } in &changes.unbind {
        bindings.remove((vhost, store.as_str(), exchange.as_str(), queue.as_str(), key.as_str()))?;
    }
    for Binding { store, exchange, queue, key } in &changes.bind {
        bindings.insert((vhost, store.as_str(), exchange.as_str(), queue.as_str(), key.as_str()), ())?;
    }
    Ok(id)
}

fn next_id(transaction: &WriteTransaction) -> Result<u32, redb::Error> {
    let mut numbers = transaction.open_table(NUMBERS)?;
    let next = numbers.get(NEXT_QUEUE)?.map_or(1, |number| number.value());
    let id = u32::try_from(next).map_err(|_| redb::Error::Corrupted("no queue ids are left".to_owned()))?;
    numbers.insert(NEXT_QUEUE, next + 1)?;
    Ok(id)
}

pub(super) fn parse<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, redb::Error> {
    serde_json::from_slice(bytes).map_err(|error| redb::Error::Corrupted(error.to_string()))
}

pub(super) fn json<T: Serialize>(value: &T) -> Result<Vec<u8>, redb::Error> {
    serde_json::to_vec(value).map_err(|error| redb::Error::Corrupted(error.to_string()))
}

fn bindings(store: &str, wanted: &Topology) -> Vec<Binding> {
    let (Some(queue), Some(exchange)) = (&wanted.queue, &wanted.exchange) else { return Vec::new() };
    let binding = |key: &str| Binding {
        store: store.to_owned(),
        exchange: exchange.name.clone(),
        queue: queue.name.clone(),
        key: key.to_owned(),
    };
    if exchange.kind == ExchangeKind::Fanout {
        return vec![binding("")];
    }
    let mut found: Vec<Binding> = Vec::new();
    for binding in wanted.bindings.iter().map(|key| binding(key)) {
        if !found.contains(&binding) {
            found.push(binding);
        }
    }
    found
}

/// `Existing` means elsewhere that somebody else made it. Nobody else can reach this file, so what is missing is made,
/// and whoever declares it later gives it its arguments.
fn declare_queue(
    existing: Option<&topology::Queue>,
    wanted: &topology::Queue,
) -> Result<Option<topology::Queue>, StoreError> {
    let Some(existing) = existing else { return Ok(Some(wanted.clone())) };
    if wanted.management == Management::Existing || existing == wanted {
        return Ok(None);
    }
    if existing.management == Management::Existing {
        return Ok(Some(wanted.clone()));
    }
    let limit = |limit: Option<u64>| limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string());
    let fields = [
        ("type", format!("{:?}", existing.kind), format!("{:?}", wanted.kind)),
        ("consumers", format!("{:?}", existing.consumers), format!("{:?}", wanted.consumers)),
        ("maxLength", limit(existing.max_length), limit(wanted.max_length)),
        ("maxLengthBytes", limit(existing.max_length_bytes), limit(wanted.max_length_bytes)),
    ];
    let differences: Vec<String> = fields
        .iter()
        .filter(|(_, is, wanted)| is != wanted)
        .map(|(field, is, wanted)| format!("{field} is {is}, not {wanted}"))
        .collect();
    Err(StoreError::Mismatch(format!("queue `{}` exists: {}; {REMEDY}", wanted.name, differences.join(", "))))
}

fn declare_exchange(existing: Option<&Exchange>, wanted: &Exchange) -> Result<Option<Exchange>, StoreError> {
    let Some(existing) = existing else { return Ok(Some(wanted.clone())) };
    if wanted.management == Management::Existing || existing == wanted {
        return Ok(None);
    }
    if existing.management == Management::Existing {
        return Ok(Some(wanted.clone()));
    }
    Err(StoreError::Mismatch(format!(
        "exchange `{}` exists: type is {:?}, not {:?}; give the exchange another name",
        wanted.name, existing.kind, wanted.kind
    )))
}
