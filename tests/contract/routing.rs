//! Routing: exchanges, bindings, and declarations that contradict each other.

use stagepost::core::topology::{ExchangeKind, Queue, Topology};
use stagepost::store::{PublishError, StoreError};

use crate::subject::{Subject, bound, competing, drain, exchange, numbered, on_queue, plain, queue};

pub(crate) async fn a_key_that_no_queue_is_bound_to_is_unroutable(subject: impl Subject) {
    let topology = bound("q", exchange("x", ExchangeKind::Direct), &["known"]);
    let store = subject.store("s", &topology).await.unwrap();
    let refused = store.publish(numbered(0), Some("unknown")).await;
    assert_eq!(refused, Err(PublishError::Unroutable("unknown".to_owned())));
    assert_eq!(store.depth().await.unwrap().ready, 0);
}

pub(crate) async fn the_default_exchange_routes_by_queue_name(subject: impl Subject) {
    let a = subject.store("a", &plain("queue-a")).await.unwrap();
    let b = subject.store("b", &plain("queue-b")).await.unwrap();
    a.publish(numbered(0), None).await.unwrap();
    a.publish(numbered(1), Some("queue-b")).await.unwrap();
    assert!(matches!(a.publish(numbered(2), Some("queue-c")).await, Err(PublishError::Unroutable(_))));
    assert_eq!(drain(&*a).await, ["m000000"]);
    assert_eq!(drain(&*b).await, ["m000001"]);
}

pub(crate) async fn a_direct_exchange_routes_by_exact_key(subject: impl Subject) {
    let a = subject.store("a", &bound("qa", exchange("x", ExchangeKind::Direct), &["red"])).await.unwrap();
    let b = subject.store("b", &bound("qb", exchange("x", ExchangeKind::Direct), &["green", "blue"])).await.unwrap();
    a.publish(numbered(0), None).await.unwrap();
    a.publish(numbered(1), Some("blue")).await.unwrap();
    b.publish(numbered(2), Some("red")).await.unwrap();
    b.publish(numbered(3), None).await.unwrap();
    assert_eq!(drain(&*a).await, ["m000000", "m000002"]);
    assert_eq!(drain(&*b).await, ["m000001", "m000003"]);
}

pub(crate) async fn a_topic_exchange_routes_by_pattern_and_once_a_queue(subject: impl Subject) {
    let topic = || exchange("x", ExchangeKind::Topic);
    let created = subject.store("a", &bound("created", topic(), &["orders.*.created", "*.*.created"])).await.unwrap();
    let orders = subject.store("b", &bound("orders", topic(), &["orders.#"])).await.unwrap();
    let audit = subject.store("c", &bound("audit", topic(), &["audit.#"])).await.unwrap();
    for (number, key) in [(0, "orders.eu.created"), (1, "orders.eu.x.created"), (2, "audit")] {
        created.publish(numbered(number), Some(key)).await.unwrap();
    }
    assert!(matches!(created.publish(numbered(3), Some("users.x")).await, Err(PublishError::Unroutable(_))));
    assert_eq!(drain(&*created).await, ["m000000"], "one copy, though two patterns match");
    assert_eq!(drain(&*orders).await, ["m000000", "m000001"]);
    assert_eq!(drain(&*audit).await, ["m000002"]);
}

pub(crate) async fn a_fanout_exchange_routes_to_every_queue(subject: impl Subject) {
    let fanout = || exchange("x", ExchangeKind::Fanout);
    let mut stores = Vec::new();
    for name in ["a", "b", "c"] {
        stores.push(subject.store(name, &bound(name, fanout(), &[])).await.unwrap());
    }
    stores[0].publish(numbered(0), Some("any key")).await.unwrap();
    for store in stores {
        assert_eq!(drain(&*store).await, ["m000000"]);
    }
}

pub(crate) async fn a_publish_only_store_publishes_and_has_nothing_to_consume(subject: impl Subject) {
    let topic = || exchange("x", ExchangeKind::Topic);
    let publisher = Topology {
        queue: None,
        exchange: Some(topic()),
        bindings: Vec::new(),
        routing_key: "orders.eu.created".to_owned(),
    };
    let publisher = subject.store("p", &publisher).await.unwrap();
    assert!(matches!(publisher.publish(numbered(0), None).await, Err(PublishError::Unroutable(_))));
    let store = subject.store("a", &bound("q", topic(), &["orders.#"])).await.unwrap();
    publisher.publish(numbered(1), None).await.unwrap();
    assert_eq!(publisher.name(), "x");
    assert!(matches!(publisher.consume(1).await.map(|_| ()), Err(StoreError::NotFound(_))));
    assert!(matches!(publisher.depth().await, Err(StoreError::NotFound(_))));
    assert_eq!(drain(&*store).await, ["m000001"]);
}

pub(crate) async fn a_binding_that_left_the_topology_is_unbound(subject: impl Subject) {
    let direct = || exchange("x", ExchangeKind::Direct);
    let store = subject.store("s", &bound("q", direct(), &["old", "kept"])).await.unwrap();
    store.publish(numbered(0), Some("old")).await.unwrap();
    let store = subject.store("s", &bound("q", direct(), &["kept", "new"])).await.unwrap();
    assert!(matches!(store.publish(numbered(1), Some("old")).await, Err(PublishError::Unroutable(_))));
    store.publish(numbered(2), Some("kept")).await.unwrap();
    store.publish(numbered(3), Some("new")).await.unwrap();
    assert_eq!(drain(&*store).await, ["m000000", "m000002", "m000003"]);
}

pub(crate) async fn a_binding_that_another_store_made_stays(subject: impl Subject) {
    let direct = || exchange("x", ExchangeKind::Direct);
    let a = subject.store("a", &bound("qa", direct(), &["key"])).await.unwrap();
    let b = subject.store("b", &bound("qb", direct(), &["key"])).await.unwrap();
    subject.store("a", &bound("qa", direct(), &["other"])).await.unwrap();
    a.publish(numbered(0), Some("key")).await.unwrap();
    assert_eq!(drain(&*a).await, Vec::<String>::new());
    assert_eq!(drain(&*b).await, ["m000000"]);
}

pub(crate) async fn bindings_and_queues_survive_a_restart(subject: impl Subject) {
    let topic = || exchange("x", ExchangeKind::Topic);
    subject.store("a", &bound("q", topic(), &["orders.#"])).await.unwrap();
    let subject = subject.restart().await;
    // Only the publisher is declared; the queue is still there, and still bound.
    let publisher = Topology { queue: None, exchange: Some(topic()), bindings: vec![], routing_key: "orders".into() };
    let publisher = subject.store("p", &publisher).await.unwrap();
    publisher.publish(numbered(0), None).await.unwrap();
    let store = subject.store("a", &bound("q", topic(), &["orders.#"])).await.unwrap();
    assert_eq!(drain(&*store).await, ["m000000"]);
}

pub(crate) async fn a_queue_with_other_arguments_is_a_mismatch_that_names_them(subject: impl Subject) {
    let store = subject.store("s", &on_queue(Queue { max_length: Some(5), ..queue("q") })).await.unwrap();
    store.publish(numbered(0), None).await.unwrap();
    for other in [on_queue(Queue { max_length: Some(6), ..queue("q") }), plain("q"), competing("q")] {
        let Err(StoreError::Mismatch(text)) = subject.store("s", &other).await else { panic!("a mismatch") };
        assert!(text.contains("`q`") || text.contains("'q'"), "names the queue: {text}");
    }
    assert_eq!(drain(&*store).await, ["m000000"], "what is there is untouched");
}

pub(crate) async fn an_exchange_of_another_type_is_a_mismatch(subject: impl Subject) {
    subject.store("a", &bound("qa", exchange("x", ExchangeKind::Direct), &["key"])).await.unwrap();
    let other = bound("qb", exchange("x", ExchangeKind::Topic), &["key"]);
    assert!(matches!(subject.store("b", &other).await, Err(StoreError::Mismatch(_))));
}

pub(crate) async fn declaring_the_same_again_changes_nothing(subject: impl Subject) {
    let topology = bound("q", exchange("x", ExchangeKind::Direct), &["key"]);
    let store = subject.store("s", &topology).await.unwrap();
    store.publish(numbered(0), None).await.unwrap();
    let again = subject.store("s", &topology).await.unwrap();
    again.publish(numbered(1), None).await.unwrap();
    assert_eq!(drain(&*store).await, ["m000000", "m000001"]);
}
