//! A MessageStore's plan, and that of the dead letter queue beside it.

use std::time::Duration;

use crate::api::MessageStore;
use crate::api::message_store::{
    Broker, Consumers as ApiConsumers, Exchange as ApiExchange, ExchangeType, Management as ApiManagement,
    Queue as ApiQueue, QueueType, StoreRetry as ApiRetry,
};
use crate::core::topology::{Consumers, Exchange, ExchangeKind, Management, Queue, QueueKind, Topology};
use crate::plan::finding::Finding;
use crate::plan::world::{Named, queue_name};
use crate::plan::{BrokerConnection, BrokerPlan, StorePlan, StoreRetry, TlsPlan};

use super::{read_ca, read_duration, read_size};

/// The plan of one store.
///
/// Its routing key is by default its queue's name; a publish-only store has the empty key then, which a fanout
/// exchange ignores and any other needs a rule's own `routingKey` for.
pub fn store(object: &MessageStore) -> Result<StorePlan, Finding> {
    let spec = &object.spec;
    Ok(StorePlan {
        name: object.name().to_owned(),
        broker: broker(&spec.broker)?,
        topology: topology(object)?,
        confirm_timeout: read_duration(&spec.confirm_timeout, "spec.confirmTimeout")?,
        retry: retry(&spec.retry)?,
        deadline: read_duration(&spec.deadline, "spec.deadline")?,
        failover: spec.failover_store_ref.as_ref().map(|reference| reference.name.clone()),
    })
}

/// The name of the dead letter store beside a source. No MessageStore can have it: names hold no dot.
pub fn dead_letter_store_name(source: &str) -> String {
    format!("{source}.dlc")
}

/// The default dead letter store: what a MessageStore on the source's broker that gives only a queue's name and
/// type would be.
pub(super) fn dead_letters_beside(source: &StorePlan) -> Option<StorePlan> {
    let queue = source.topology.queue.as_ref()?;
    let name = format!("{}.dlc", queue.name);
    Some(StorePlan {
        name: dead_letter_store_name(&source.name),
        broker: source.broker.clone(),
        topology: Topology {
            queue: Some(Queue {
                name: name.clone(),
                kind: queue.kind,
                management: Management::Declare,
                consumers: Consumers::SingleActive,
                max_length: None,
                max_length_bytes: None,
            }),
            exchange: None,
            bindings: Vec::new(),
            routing_key: name,
        },
        confirm_timeout: Duration::from_secs(5),
        retry: retry(&ApiRetry::default()).ok()?,
        deadline: Duration::from_secs(10),
        failover: None,
    })
}

fn broker(broker: &Broker) -> Result<BrokerPlan, Finding> {
    let connection = match (&broker.secret_ref, &broker.cluster_ref) {
        (Some(secret), None) => BrokerConnection::Secret(secret.name.clone()),
        (None, Some(cluster)) => BrokerConnection::Cluster(cluster.name.clone()),
        _ => return Err(Finding::invalid("spec.broker", crate::api::cel::BROKER_ONE.message)),
    };
    let tls = broker.tls.as_ref().map(|tls| TlsPlan {
        ca: tls.ca_ref.as_ref().map(read_ca),
        client_cert_secret: None,
        server_name: tls.server_name.clone(),
    });
    Ok(BrokerPlan { connection, virtual_host: broker.virtual_host.clone(), tls })
}

fn topology(object: &MessageStore) -> Result<Topology, Finding> {
    let spec = &object.spec;
    let queue = spec.queue.as_ref().map(|queue| queue_plan(object, queue)).transpose()?;
    let exchange = spec.exchange.as_ref().map(exchange_plan);
    if queue.is_none() && exchange.is_none() {
        return Err(Finding::invalid("spec", crate::api::cel::QUEUE_OR_EXCHANGE.message));
    }
    let default_key = || queue.as_ref().map(|queue| queue.name.clone()).unwrap_or_default();
    let routing_key = spec.routing_key.clone().unwrap_or_else(default_key);
    let bindings = match (&queue, &exchange, &spec.bindings) {
        (Some(_), Some(exchange), None) if exchange.kind == ExchangeKind::Direct => vec![routing_key.clone()],
        (Some(_), Some(exchange), Some(keys)) if exchange.kind == ExchangeKind::Direct && keys.is_empty() => {
            vec![routing_key.clone()]
        }
        (Some(_), Some(_), Some(keys)) => {
            // The order of bindings means nothing; a plan must not change with it.
            let mut keys = keys.clone();
            keys.sort();
            keys.dedup();
            keys
        }
        _ => Vec::new(),
    };
    Ok(Topology { queue, exchange, bindings, routing_key })
}

fn queue_plan(object: &MessageStore, queue: &ApiQueue) -> Result<Queue, Finding> {
    let read = |size| read_size(size, "spec.queue.maxLengthBytes");
    Ok(Queue {
        name: queue_name(object, queue),
        kind: match queue.kind {
            QueueType::Quorum => QueueKind::Quorum,
            QueueType::Classic => QueueKind::Classic,
        },
        management: management(queue.management),
        consumers: match queue.consumers {
            ApiConsumers::SingleActive => Consumers::SingleActive,
            ApiConsumers::Competing => Consumers::Competing,
        },
        max_length: queue.max_length,
        max_length_bytes: queue.max_length_bytes.as_ref().map(read).transpose()?,
    })
}

fn exchange_plan(exchange: &ApiExchange) -> Exchange {
    Exchange {
        name: exchange.name.clone(),
        kind: match exchange.kind {
            ExchangeType::Direct => ExchangeKind::Direct,
            ExchangeType::Topic => ExchangeKind::Topic,
            ExchangeType::Fanout => ExchangeKind::Fanout,
        },
        management: management(exchange.management),
    }
}

fn management(management: ApiManagement) -> Management {
    match management {
        ApiManagement::Declare => Management::Declare,
        ApiManagement::Existing => Management::Existing,
    }
}

fn retry(retry: &ApiRetry) -> Result<StoreRetry, Finding> {
    Ok(StoreRetry {
        max_retries: retry.max_retries,
        interval: read_duration(&retry.interval, "spec.retry.interval")?,
        backoff_factor: retry.backoff_factor,
        max_interval: read_duration(&retry.max_interval, "spec.retry.maxInterval")?,
    })
}
