//! Callers that leave, and processes that stop.

use std::time::Duration;

use stagepost::ingress::{Drain, Drained};
use stagepost::store::PublishError;

use crate::harness::{Ingress, limits, post, rule};

#[tokio::test]
async fn b5_a_caller_that_leaves_after_its_body_neither_stops_the_publish_nor_leaks() {
    let ingress = Ingress::simple().await;
    ingress.store.hold();
    let mut gone = ingress.connect().await;
    gone.write(post("left alone")).await;
    ingress.store.waiting(1).await;
    socket2::SockRef::from(&gone.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(gone);
    // Give the reset time to be seen: the connection's own tasks are gone before the publish goes on.
    tokio::time::sleep(Duration::from_millis(100)).await;
    ingress.store.release();
    ingress.metric(r#"stagepost_ingress_requests_total{route="shop/desk",code="202"} 1"#).await;
    ingress.idle().await;
    assert_eq!(ingress.store.messages().len(), 1);
    assert_eq!(ingress.counters.accepted(), 1);
}

#[tokio::test]
async fn a_caller_that_closes_its_sending_half_gets_its_answer() {
    let ingress = Ingress::simple().await;
    ingress.store.hold();
    let mut client = ingress.connect().await;
    client.write(post("half closed")).await;
    tokio::io::AsyncWriteExt::shutdown(&mut client.stream).await.unwrap();
    ingress.store.waiting(1).await;
    ingress.store.release();
    assert_eq!(client.answer().await.status, 202);
}

#[tokio::test]
async fn b11_a_stop_lets_each_request_in_flight_end_in_its_answer() {
    let ingress = Ingress::simple().await;
    ingress.store.hold();
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = ingress.connect().await;
        client.write(post("in flight")).await;
        clients.push(client);
    }
    ingress.store.waiting(5).await;
    let mut idle = ingress.connect().await;
    ingress.stop();
    assert!(idle.is_closed().await);
    ingress.store.release();
    for mut client in clients {
        let reply = client.answer().await;
        assert!(reply.status == 202 && reply.closes(), "{reply:?}");
        assert!(client.is_closed().await);
    }
    let (store, address) = (ingress.store.clone(), ingress.address);
    assert_eq!(ingress.stopped().await, Drained::Complete);
    assert_eq!(store.messages().len(), 5);
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "the port is free");
}

#[tokio::test]
async fn b11_a_stop_while_the_store_refuses_ends_in_503() {
    let ingress = Ingress::simple().await;
    ingress.store.hold();
    let mut client = ingress.connect().await;
    client.write(post("in flight")).await;
    ingress.store.waiting(1).await;
    ingress.stop();
    ingress.store.refuse(PublishError::Refused("closing".into()));
    ingress.store.release();
    assert_eq!(client.answer().await.status, 503);
    assert_eq!(ingress.stopped().await, Drained::Complete);
}

#[tokio::test]
async fn b11_while_it_lingers_new_connections_are_served_and_told_to_close() {
    let drain = Drain { linger: Duration::from_millis(500), grace: Duration::from_secs(10) };
    let ingress = Ingress::start_with(vec![rule()], limits(), drain).await;
    let mut kept = ingress.connect().await;
    kept.write(post("before")).await;
    assert!(!kept.answer().await.closes());
    ingress.stop();
    let fresh = ingress.post("while lingering").await;
    assert!(fresh.status == 202 && fresh.closes(), "{fresh:?}");
    kept.write(post("also while lingering")).await;
    let reply = kept.answer().await;
    assert!(reply.status == 202 && reply.closes(), "{reply:?}");
    assert_eq!(ingress.stopped().await, Drained::Complete);
}

#[tokio::test]
async fn b11_what_does_not_end_within_the_grace_period_is_cut_off_and_said_so() {
    let drain = Drain { linger: Duration::ZERO, grace: Duration::from_millis(200) };
    let ingress = Ingress::start_with(vec![rule()], limits(), drain).await;
    ingress.store.hold();
    let mut client = ingress.connect().await;
    client.write(post("stuck")).await;
    ingress.store.waiting(1).await;
    ingress.stop();
    assert!(matches!(ingress.stopped().await, Drained::CutOff(_)));
    assert!(client.try_answer().await.is_none());
}

#[tokio::test]
async fn b11_a_publish_whose_caller_left_is_waited_for() {
    let ingress = Ingress::simple().await;
    ingress.store.hold();
    let mut gone = ingress.connect().await;
    gone.write(post("left alone")).await;
    ingress.store.waiting(1).await;
    socket2::SockRef::from(&gone.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(gone);
    ingress.stop();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let store = ingress.store.clone();
    store.release();
    assert_eq!(ingress.stopped().await, Drained::Complete);
    assert_eq!(store.messages().len(), 1);
}
