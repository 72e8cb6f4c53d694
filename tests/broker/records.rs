//! The deactivation record and the topology, at the port: what looking at them for days must not use up.

use std::sync::Arc;

use stagepost::core::deactivation::Deactivation;
use stagepost::core::topology::{Consumers, Exchange, ExchangeKind, Management, Queue, QueueKind, Topology};
use stagepost::store::{Connection, MessageStore, PublishError, StoreError, rabbitmq};

use super::common::{Share, shared};
use crate::support::{millis, seconds};

const PROCESSOR: &str = "default.out";

fn topology(kind: QueueKind) -> Topology {
    let queue = Queue {
        name: "default.box".to_owned(),
        kind,
        management: Management::Declare,
        consumers: Consumers::SingleActive,
        max_length: None,
        max_length_bytes: None,
    };
    Topology { routing_key: queue.name.clone(), queue: Some(queue), exchange: None, bindings: vec![] }
}

fn broker(uri: &str) -> rabbitmq::Broker {
    let address = rabbitmq::Address::parse(uri).unwrap();
    rabbitmq::Broker::start("test", Arc::new(move || Ok(address.clone())))
}

async fn store(broker: &rabbitmq::Broker, topology: &Topology) -> Arc<dyn MessageStore> {
    let store = broker.store("default/box", topology, seconds(10));
    let mut connection = store.connection();
    let up = connection.wait_for(|now| *now == Connection::Up);
    tokio::time::timeout(seconds(30), up).await.expect("it connects").unwrap();
    store
}

async fn share() -> Option<Share> {
    tokio::task::spawn_blocking(shared).await.unwrap()
}

fn record(id: &str) -> Deactivation {
    Deactivation {
        uid: "uid".to_owned(),
        time: jiff::Timestamp::UNIX_EPOCH,
        message_id: id.to_owned(),
        reason: "MaxRedeliveries".to_owned(),
        message: String::new(),
        attempts: 4,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_is_read_by_many_and_stays_until_it_is_removed() {
    for kind in [QueueKind::Quorum, QueueKind::Classic] {
        let Some(share) = share().await else { return };
        let brokers = [broker(&share.uri), broker(&share.uri)];
        let stores = [store(&brokers[0], &topology(kind)).await, store(&brokers[1], &topology(kind)).await];
        assert_eq!(stores[0].deactivation(PROCESSOR).await.unwrap(), None);
        stores[0].deactivate(PROCESSOR, &record("m1")).await.unwrap();
        stores[1].deactivate(PROCESSOR, &record("m2")).await.unwrap();
        for round in 0..200 {
            for store in &stores {
                let found = store.deactivation(PROCESSOR).await.unwrap();
                assert!(found.is_some(), "{kind:?}: gone in round {round}");
            }
        }
        assert_eq!(stores[1].deactivation(PROCESSOR).await.unwrap(), Some(record("m1")), "the first one counts");
        let newcomers: Vec<_> = (0..8).map(|_| broker(&share.uri)).collect();
        let reads = newcomers.iter().map(|broker| {
            let broker = broker.clone();
            tokio::spawn(async move { store(&broker, &topology(kind)).await.deactivation(PROCESSOR).await })
        });
        for read in reads.collect::<Vec<_>>() {
            assert!(read.await.unwrap().unwrap().is_some(), "{kind:?}: a newcomer sees it, whoever else is reading");
        }
        stores[1].reactivate(PROCESSOR).await.unwrap();
        for store in &stores {
            assert_eq!(store.deactivation(PROCESSOR).await.unwrap(), None);
        }
        stores[0].deactivate(PROCESSOR, &record("m3")).await.unwrap();
        assert_eq!(stores[1].deactivation(PROCESSOR).await.unwrap(), Some(record("m3")));
    }
}

/// A connection has some 2,000 channels, and each refusal of the broker takes one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looking_thousands_of_times_for_what_is_not_there_leaves_the_store_as_it_was() {
    let Some(share) = share().await else { return };
    let broker = broker(&share.uri);
    let there = store(&broker, &topology(QueueKind::Classic)).await;
    let mut missing = topology(QueueKind::Classic);
    missing.queue.as_mut().unwrap().name = "missing".to_owned();
    missing.queue.as_mut().unwrap().management = Management::Existing;
    let missing = broker.store("default/missing", &missing, seconds(10));
    for _ in 0..2_200 {
        assert!(matches!(missing.depth().await, Err(StoreError::NotFound(_) | StoreError::NotConnected(_))));
    }
    let deadline = std::time::Instant::now() + seconds(30);
    while there.consume(10).await.is_err() {
        assert!(std::time::Instant::now() < deadline, "the store works no more");
        tokio::time::sleep(millis(50)).await;
    }
    there.depth().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_or_a_binding_that_was_deleted_is_made_again() {
    let Some(share) = share().await else { return };
    let mut wanted = topology(QueueKind::Classic);
    wanted.exchange =
        Some(Exchange { name: "keys".to_owned(), kind: ExchangeKind::Direct, management: Management::Declare });
    wanted.bindings = vec!["bound".to_owned()];
    wanted.routing_key = "bound".to_owned();
    let broker = broker(&share.uri);
    let store = store(&broker, &wanted).await;
    let publish = async || store.publish(super::confirms::message(1, 1), None).await;
    publish().await.unwrap();
    let uri = share.uri.clone();
    let delete = async |exchange: bool| {
        let connection = lapin::Connection::connect(&uri, lapin::ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        if exchange {
            channel.exchange_delete("keys".into(), lapin::options::ExchangeDeleteOptions::default()).await.unwrap();
        } else {
            let arguments = lapin::types::FieldTable::default();
            channel.queue_unbind("default.box".into(), "keys".into(), "bound".into(), arguments).await.unwrap();
        }
    };
    for exchange in [false, true] {
        delete(exchange).await;
        let first = publish().await;
        assert!(first.is_err() && !matches!(first, Err(PublishError::Invalid(_))), "{first:?}");
        let deadline = std::time::Instant::now() + seconds(10);
        while publish().await.is_err() {
            assert!(std::time::Instant::now() < deadline, "never made again, exchange: {exchange}");
            tokio::time::sleep(millis(20)).await;
        }
    }
}
