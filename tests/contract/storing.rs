//! Storing: durable, unchanged, carried through.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use stagepost::core::message::{Death, MAX_BODY_BYTES, Message, MessageId, Origin, ReplyTo};
use stagepost::store::{Connection, PublishError};

use crate::subject::{Subject, drain, next, numbered, plain, until};

fn full_message() -> Message {
    let mut headers = HeaderMap::new();
    headers.insert("company", HeaderValue::from_static("WSO2"));
    Message {
        correlation_id: Some("c-1".to_owned()),
        timestamp: Some("2026-11-21T08:00:00Z".parse().unwrap()),
        content_type: Some(HeaderValue::from_static("application/json")),
        content_encoding: Some(HeaderValue::from_static("gzip")),
        origin: Some(Origin {
            method: Method::PUT,
            path: "/a%20b/c".to_owned(),
            query: Some("x=1&x=2".to_owned()),
            route: "default/shop/orders".to_owned(),
        }),
        headers,
        death: Some(Death {
            reason: "MaxRedeliveries".to_owned(),
            attempts: 6,
            last_status: Some(500),
            first_at: Some("2026-11-21T08:00:01Z".parse().unwrap()),
            last_at: Some("2026-11-21T08:00:16Z".parse().unwrap()),
            last_error: Some("status 500".to_owned()),
            processor: "default/settle".to_owned(),
            source: "payments".to_owned(),
        }),
        ..Message::new(MessageId::new("id-1"), "{}")
    }
}

pub(crate) async fn a_message_comes_back_as_it_was_stored(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    let message = Arc::new(full_message());
    store.publish(message.clone(), None).await.unwrap();
    let mut consumer = store.consume(1).await.unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.message, message);
    assert!(!delivery.redelivered);
}

pub(crate) async fn odd_headers_and_bytes_come_back_unchanged(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    let mut message = Message::new(MessageId::new("id-2"), (0..=255u8).collect::<Vec<u8>>());
    // Only a request that came in by a route has a caller who waits.
    message.origin = full_message().origin;
    for (name, value) in [
        ("x-a", b"1".as_slice()),
        ("x-b", b"= ; , : \""),
        ("x-a", b"2"),
        ("x-utf8", "gr\u{fc}n".as_bytes()),
        ("x-latin", b"gr\xfcn"),
        ("x-empty", b""),
        ("x-a", b"1"),
    ] {
        message.headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap());
    }
    message.reply_to =
        Some(ReplyTo { queue: "amq.gen-1".to_owned(), deadline: "2126-11-21T08:00:00.250Z".parse().unwrap() });
    let message = Arc::new(message);
    store.publish(message.clone(), None).await.unwrap();
    let mut consumer = store.consume(1).await.unwrap();
    assert_eq!(next(&mut consumer).await.message, message);
}

pub(crate) async fn a_body_of_15_mib_comes_back_unchanged(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    let body: Vec<u8> = (0..=250).cycle().take(MAX_BODY_BYTES).collect();
    let large = Arc::new(Message::new(MessageId::new("large"), body));
    store.publish(numbered(0), None).await.unwrap();
    store.publish(large.clone(), None).await.unwrap();
    store.publish(numbered(2), None).await.unwrap();
    let mut consumer = store.consume(3).await.unwrap();
    assert_eq!(next(&mut consumer).await.message, numbered(0));
    assert!(next(&mut consumer).await.message == large);
    assert_eq!(next(&mut consumer).await.message, numbered(2));
}

pub(crate) async fn a_body_that_no_store_takes_is_invalid(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    let message = Arc::new(Message::new(MessageId::new("too large"), vec![0; MAX_BODY_BYTES + 1]));
    assert!(matches!(store.publish(message, None).await, Err(PublishError::Invalid(_))));
    store.publish(numbered(1), None).await.unwrap();
    assert_eq!(drain(&*store).await, ["m000001"]);
}

pub(crate) async fn what_was_stored_survives_a_restart(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    store.publish(Arc::new(full_message()), None).await.unwrap();
    drop(store);
    let subject = subject.restart().await;
    let store = subject.store("s", &plain("q")).await.unwrap();
    let mut consumer = store.consume(1).await.unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!(*delivery.message, full_message());
    assert!(!delivery.redelivered, "it was never handed out");
}

pub(crate) async fn a_publish_whose_caller_went_away_is_carried_through(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    for number in 0..10 {
        let mut publish = store.publish(numbered(number), None);
        // Polled once, so that it has begun, and then dropped.
        let _ = futures_util::poll!(&mut publish);
    }
    until("ten messages are stored", || async { store.depth().await.unwrap().ready == 10 }).await;
    assert_eq!(drain(&*store).await.len(), 10);
}

pub(crate) async fn the_connection_is_up(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    let mut connection = store.connection();
    connection.wait_for(|state| *state == Connection::Up).await.unwrap();
}
