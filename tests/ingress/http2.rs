//! HTTP/2 by prior knowledge.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use stagepost::ingress::Drained;
use stagepost::plan::{Limits, RulePlan};
use tokio::net::TcpStream;

use crate::harness::{Ingress, limits, rule};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

async fn connect(ingress: &Ingress) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(ingress.address).await.unwrap();
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn post(sender: &mut SendRequest<Full<Bytes>>, body: impl Into<Bytes>) -> hyper::Result<Response<Incoming>> {
    let request = Request::post("http://a/orders?x=1").header("x-a", "1").body(Full::new(body.into())).unwrap();
    sender.send_request(request).await
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// `POST /orders`, scheme http, authority a: literal fields without indexing.
fn header_block() -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    for (name, value) in [(":path", "/orders"), (":authority", "a")] {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    block
}

#[tokio::test]
async fn requests_side_by_side_on_one_connection_are_stored() {
    let ingress = Ingress::simple().await;
    let sender = connect(&ingress).await;
    let large = vec![b'x'; 500_000];
    let sent = (0..20).map(|_| {
        let (mut sender, body) = (sender.clone(), large.clone());
        async move { post(&mut sender, body).await.unwrap() }
    });
    for reply in futures_util::future::join_all(sent).await {
        assert_eq!(reply.status(), 202);
        assert!(reply.headers().contains_key("stagepost-message-id"));
        assert!(reply.into_body().collect().await.unwrap().to_bytes().is_empty());
    }
    let message = ingress.store.messages()[0].clone();
    assert_eq!(message.body, large);
    let origin = message.origin.as_ref().unwrap();
    assert_eq!((origin.path.as_str(), origin.query.as_deref()), ("/orders", Some("x=1")));
    assert_eq!(message.headers.len(), 1);
    ingress.idle().await;
}

#[tokio::test]
async fn limits_hold_as_with_http_1() {
    let given = Limits { max_body_size: 10, max_in_flight: 1, max_header_size: 4096, ..limits() };
    let ingress = Ingress::start(vec![rule()], given).await;
    let mut sender = connect(&ingress).await;
    assert_eq!(post(&mut sender, "x".repeat(11)).await.unwrap().status(), 413);
    let request = Request::post("http://a/orders").header("x-a", "x".repeat(5000)).body(Full::default()).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 431);
    ingress.store.hold();
    let mut other = sender.clone();
    let held = tokio::spawn(async move { post(&mut other, "held").await.unwrap().status() });
    ingress.store.waiting(1).await;
    assert_eq!(post(&mut sender, "x").await.unwrap().status(), 503);
    ingress.store.release();
    assert_eq!(held.await.unwrap(), 202);
}

#[tokio::test]
async fn b7_a_stream_that_is_reset_while_it_is_stored_is_still_stored_and_counted() {
    let ingress = Ingress::simple().await;
    ingress.store.hold();
    let mut sender = connect(&ingress).await;
    let sent = tokio::spawn(async move {
        let _ = post(&mut sender, "x").await;
        sender
    });
    ingress.store.waiting(1).await;
    sent.abort();
    tokio::time::sleep(Duration::from_millis(100)).await;
    ingress.store.release();
    ingress.metric(r#"stagepost_ingress_requests_total{route="shop/desk",code="202"} 1"#).await;
    ingress.idle().await;
    assert_eq!(ingress.store.messages().len(), 1);
}

#[tokio::test]
async fn b7_rapid_resets_end_the_connection_and_leave_nothing_behind() {
    let ingress = Ingress::simple().await;
    ingress.store.hold();
    let mut client = ingress.connect().await;
    client.write([PREFACE, SETTINGS].concat()).await;
    for number in 0..2000 {
        let stream = 2 * number + 1;
        client.try_write([frame(1, 4, stream, &header_block()), frame(3, 0, stream, &[0, 0, 0, 8])].concat()).await;
    }
    // Ended by the server: nothing but frames came, and then the end.
    client.rest().await;
    ingress.idle().await;
    assert!(ingress.store.messages().is_empty());
    ingress.store.release();
    assert_eq!(ingress.post("others").await.status, 202);
}

#[tokio::test]
async fn b7_a_flood_of_continuation_frames_ends_the_connection() {
    let ingress = Ingress::simple().await;
    let mut client = ingress.connect().await;
    client.write([PREFACE, SETTINGS, &frame(1, 0, 1, &header_block())].concat()).await;
    let field = [&[0, 3][..], b"x-a", &[100], &[b'x'; 100]].concat();
    for _ in 0..20_000 {
        client.try_write(frame(9, 0, 1, &field)).await;
    }
    client.rest().await;
    assert!(ingress.store.messages().is_empty());
    assert_eq!(ingress.post("others").await.status, 202);
}

#[tokio::test]
async fn b1_a_connection_that_asks_for_nothing_is_closed() {
    let short = Duration::from_millis(300);
    let ingress = Ingress::start(vec![rule()], Limits { read_timeout: short, ..limits() }).await;
    for beginning in [
        [PREFACE, SETTINGS].concat(),
        PREFACE.to_vec(),
        [PREFACE, SETTINGS, &frame(1, 0, 1, &header_block()[..4])].concat(),
    ] {
        let started = Instant::now();
        let mut client = ingress.connect().await;
        client.write(beginning).await;
        client.rest().await;
        assert!(started.elapsed() < 10 * short);
    }
}

#[tokio::test]
async fn b11_a_stop_lets_streams_in_flight_end_in_their_answers() {
    let ingress = Ingress::simple().await;
    ingress.store.hold();
    let sender = connect(&ingress).await;
    let sent: Vec<_> = (0..5)
        .map(|_| {
            let mut sender = sender.clone();
            tokio::spawn(async move { post(&mut sender, "x").await.unwrap().status() })
        })
        .collect();
    ingress.store.waiting(5).await;
    ingress.stop();
    ingress.store.release();
    for status in sent {
        assert_eq!(status.await.unwrap(), 202);
    }
    assert_eq!(ingress.stopped().await, Drained::Complete);
}

#[tokio::test]
async fn cookies_that_came_as_several_fields_are_stored_as_one() {
    let rule = RulePlan { forward_credentials: true, ..rule() };
    let ingress = Ingress::start(vec![rule], limits()).await;
    let mut sender = connect(&ingress).await;
    let request = Request::post("http://a/orders").header("cookie", "a=1").header("x-a", "1").header("x-a", "2");
    let request = request.header("cookie", "b=2").header("cookie", "c=3").body(Full::new(Bytes::new())).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 202);
    let message = ingress.store.messages()[0].clone();
    let values = |name| message.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(values("cookie"), ["a=1; b=2; c=3"]);
    assert_eq!(values("x-a"), ["1", "2"]);
}

#[tokio::test]
async fn a_head_a_little_over_the_limit_is_refused_with_its_reason() {
    let ingress = Ingress::start(vec![rule()], Limits { max_header_size: 16 * 1024, ..limits() }).await;
    let mut sender = connect(&ingress).await;
    let request = Request::post("http://a/orders").header("x-a", "x".repeat(17 * 1024));
    let answer = sender.send_request(request.body(Full::new(Bytes::new())).unwrap()).await.unwrap();
    assert_eq!(
        (answer.status(), &answer.headers()["content-type"]),
        (431u16.try_into().unwrap(), &"application/problem+json".parse().unwrap())
    );
}
