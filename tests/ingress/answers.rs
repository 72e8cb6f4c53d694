//! What callers are told, and what is stored.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use stagepost::plan::{BodyKind, ResponsePlan, RulePlan};
use stagepost::store::PublishError;

use crate::harness::{Ingress, limits, post, post_with, rule};

#[tokio::test]
async fn an_accepted_request_is_202_with_an_id_and_an_empty_body() {
    let ingress = Ingress::simple().await;
    let reply = ingress.post("hello").await;
    assert_eq!((reply.status, reply.header("content-length"), reply.body.as_str()), (202, Some("0"), ""));
    assert_eq!(reply.header("content-type"), None);
    let message = &ingress.store.messages()[0];
    assert_eq!(reply.header("stagepost-message-id"), Some(message.id.as_str()));
    assert_eq!(message.id.as_str().as_bytes()[14], b'7', "the id is a UUIDv7: {}", message.id);
    assert_eq!(&message.body[..], b"hello");
    assert_eq!((ingress.counters.accepted(), ingress.counters.rejected(), ingress.counters.failed()), (1, 0, 0));
    ingress.metric(r#"stagepost_ingress_requests_total{route="shop/desk",code="202"} 1"#).await;
    ingress.idle().await;
}

#[tokio::test]
async fn method_path_query_headers_and_bytes_are_stored_unchanged() {
    let ingress = Ingress::start(
        vec![RulePlan { path: "/files/{*rest}".into(), methods: vec!["PUT".into()], ..rule() }],
        limits(),
    )
    .await;
    let mut request = b"PUT /files/a%20b//c?q=1&q=%zz HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nx-a: = ; , :\r\nX-U: \xc3\xa4\xff\r\n\
        Content-Type: application/pdf; x=\"Y\"\r\nContent-Encoding: gzip\r\nIdempotency-Key: k\r\nContent-Length: 4\r\n\r\n"
        .to_vec();
    request.extend_from_slice(&[0, 255, 13, 10]);
    assert_eq!(ingress.send(request).await.status, 202);
    let message = ingress.store.messages()[0].clone();
    let origin = message.origin.as_ref().unwrap();
    assert_eq!((origin.method.as_str(), origin.path.as_str()), ("PUT", "/files/a%20b//c"));
    assert_eq!((origin.query.as_deref(), origin.route.as_str()), (Some("q=1&q=%zz"), "shop/desk/take"));
    let headers: Vec<_> = message.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    let expected: [(&str, &[u8]); 4] =
        [("x-a", b"1"), ("x-a", b"= ; , :"), ("x-u", b"\xc3\xa4\xff"), ("idempotency-key", b"k")];
    assert_eq!(headers, expected);
    assert_eq!(message.content_type.as_ref().unwrap(), "application/pdf; x=\"Y\"");
    assert_eq!(message.content_encoding.as_ref().unwrap(), "gzip");
    assert_eq!(&message.body[..], [0, 255, 13, 10]);
    assert!(message.timestamp.is_some() && message.reply_to.is_none());
}

#[tokio::test]
async fn no_path_is_404_no_method_405_with_allow_no_content_type_415() {
    let other = RulePlan { name: "other".into(), methods: vec!["PUT".into(), "PATCH".into()], ..rule() };
    let taken = RulePlan { consumes: vec!["application/json".into()], ..rule() };
    let ingress = Ingress::start(vec![taken, other], limits()).await;
    let reply = ingress.send("POST /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!((reply.status, reply.header("content-type")), (404, Some("application/problem+json")));
    for method in ["GET", "OPTIONS", "DELETE", "BREW"] {
        let reply = ingress.send(format!("{method} /orders HTTP/1.0\r\n\r\n")).await;
        assert_eq!((reply.status, reply.header("allow")), (405, Some("PATCH, POST, PUT")), "{method}");
    }
    let mut client = ingress.connect().await;
    client.write("HEAD /orders HTTP/1.0\r\n\r\n").await;
    let answer = client.rest().await;
    assert!(answer.starts_with("HTTP/1.0 405") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert_eq!(ingress.post("{}").await.status, 415);
    assert_eq!(ingress.send(post_with("Content-Type: text/plain\r\n", "{}")).await.status, 415);
    let json = ingress.send(post_with("Content-Type: Application/JSON; charset=utf-8\r\n", "{}")).await;
    assert_eq!(json.status, 202);
    assert_eq!(ingress.store.messages().len(), 1);
    assert_eq!(ingress.counters.rejected(), 8);
}

#[tokio::test]
async fn a_problem_says_what_why_and_what_to_do() {
    let ingress = Ingress::simple().await;
    let reply = ingress.send("POST /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
    let problem: Value = serde_json::from_str(&reply.body).unwrap();
    assert_eq!(problem["status"], 404);
    assert_eq!(problem["type"], "urn:stagepost:problem:not-found");
    for field in ["title", "detail", "remedy"] {
        assert!(problem[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {problem}");
    }
}

#[tokio::test]
async fn a_rule_for_json_refuses_what_is_not_json_and_what_is_packed() {
    let given = RulePlan {
        body: BodyKind::Json,
        invalid: ResponsePlan {
            status: 400,
            headers: BTreeMap::new(),
            body: Some(r#"{"Message":"Invalid payload - Not a valid JSON payload"}"#.into()),
        },
        accepted: ResponsePlan { status: 200, headers: BTreeMap::new(), body: Some("taken".into()) },
        ..rule()
    };
    let ingress = Ingress::start(vec![given], limits()).await;
    let reply = ingress.post("not-json").await;
    assert_eq!((reply.status, reply.header("content-type")), (400, Some("application/json")));
    assert_eq!(reply.body, r#"{"Message":"Invalid payload - Not a valid JSON payload"}"#);
    assert_eq!(ingress.send(post_with("Content-Encoding: gzip\r\n", "{}")).await.status, 415);
    assert_eq!(ingress.post("").await.status, 400);
    assert!(ingress.store.messages().is_empty());
    let reply = ingress.post(r#" {"a": [1, 2]} "#).await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/plain; charset=utf-8")));
    assert_eq!(reply.body, "taken");
    assert_eq!(&ingress.store.messages()[0].body[..], br#" {"a": [1, 2]} "#);
}

#[tokio::test]
async fn a_body_that_breaks_the_schema_is_400_with_the_paths() {
    let schema = json!({"required": ["doctor"], "properties": {"age": {"type": "integer"}}});
    let ingress = Ingress::start(vec![RulePlan { schema: Some(schema), ..rule() }], limits()).await;
    let reply = ingress.post(r#"{"age": "x"}"#).await;
    assert_eq!(reply.status, 400);
    let problem: Value = serde_json::from_str(&reply.body).unwrap();
    let paths: Vec<_> = problem["violations"].as_array().unwrap().iter().map(|v| v["path"].clone()).collect();
    assert!(paths.contains(&json!("/age")) && paths.contains(&json!("")), "{problem}");
    assert_eq!(ingress.post("not json").await.status, 400);
    assert_eq!(ingress.post(r#"{"doctor": 1}"#).await.status, 202);
}

#[tokio::test]
async fn what_is_not_stored_is_never_202_and_names_when_to_come_again() {
    for error in [
        PublishError::Refused("full".into()),
        PublishError::Unknown("the connection to broker.internal was lost".into()),
        PublishError::Unroutable("key".into()),
        PublishError::NotConnected("10.0.0.1 refused".into()),
    ] {
        let ingress = Ingress::simple().await;
        ingress.store.refuse(error);
        let reply = ingress.post("x").await;
        assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")));
        assert_eq!(reply.header("stagepost-message-id"), None);
        assert!(!reply.body.contains("internal") && !reply.body.contains("10.0.0.1"), "{}", reply.body);
        assert_eq!((ingress.counters.accepted(), ingress.counters.failed()), (0, 1));
    }
}

#[tokio::test]
async fn a_message_that_no_store_can_take_is_a_4xx() {
    let ingress = Ingress::simple().await;
    ingress.store.refuse(PublishError::Invalid("headers over one frame".into()));
    assert_eq!(ingress.post("x").await.status, 400);
    assert_eq!((ingress.counters.rejected(), ingress.counters.failed()), (1, 0));
}

#[tokio::test]
async fn the_answers_of_a_rule_are_given_with_their_headers() {
    let accepted = ResponsePlan {
        status: 200,
        headers: BTreeMap::from([
            ("Content-Type".to_owned(), "application/vnd.x+json".to_owned()),
            ("X-Shop".to_owned(), "1".to_owned()),
        ]),
        body: Some(r#"{"Message":"placed"}"#.into()),
    };
    let store_failed =
        ResponsePlan { status: 503, headers: BTreeMap::from([("Retry-After".to_owned(), "7".to_owned())]), body: None };
    let ingress = Ingress::start(vec![RulePlan { accepted, store_failed, ..rule() }], limits()).await;
    let reply = ingress.post("x").await;
    assert_eq!((reply.status, reply.body.as_str()), (200, r#"{"Message":"placed"}"#));
    assert_eq!((reply.header("content-type"), reply.header("x-shop")), (Some("application/vnd.x+json"), Some("1")));
    assert!(reply.header("stagepost-message-id").is_some());
    ingress.store.refuse(PublishError::Refused("full".into()));
    let reply = ingress.post("x").await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("7")));
    assert_eq!(reply.header("content-type"), Some("application/problem+json"));
}

#[tokio::test]
async fn credentials_reach_the_store_only_if_they_are_forwarded() {
    let forwarding =
        RulePlan { name: "forwarding".into(), path: "/forwarding".into(), forward_credentials: true, ..rule() };
    let ingress = Ingress::start(vec![rule(), forwarding], limits()).await;
    let lines = "Authorization: Basic eA==\r\nCookie: a=b\r\nProxy-Authorization: Basic eA==\r\n";
    ingress.send(post_with(lines, "")).await;
    ingress.send(post_with(lines, "").replace("/orders", "/forwarding")).await;
    let names: Vec<Vec<String>> = ingress
        .store
        .messages()
        .iter()
        .map(|message| message.headers.keys().map(|name| name.as_str().to_owned()).collect())
        .collect();
    assert_eq!(names, [vec![], vec!["authorization".to_owned(), "cookie".to_owned()]]);
}

#[tokio::test]
async fn a_path_that_climbs_or_hides_a_slash_is_400() {
    let ingress = Ingress::start(vec![RulePlan { path: "/{*all}".into(), ..rule() }], limits()).await;
    for path in ["/a/../b", "/a/%2e%2e/b", "/a/..", "/a%2fb", "/a%5cb", "/a%00", "/a%zz", "/%ff"] {
        let reply = ingress.send(format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")).await;
        assert_eq!(reply.status, 400, "{path}");
    }
    assert!(ingress.store.messages().is_empty());
}

#[tokio::test]
async fn the_target_of_a_request_may_be_absolute_but_not_a_star_or_an_authority() {
    let ingress = Ingress::simple().await;
    let status = |request: &str| {
        let request = format!("{request} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        let sent = ingress.send(request);
        async move { sent.await.status }
    };
    assert_eq!(status("POST http://other:99/orders?x=1").await, 202);
    assert_eq!(status("OPTIONS *").await, 404);
    assert_eq!(status("CONNECT a:443").await, 400);
    let origin = ingress.store.messages()[0].origin.clone().unwrap();
    assert_eq!((origin.path.as_str(), origin.query.as_deref()), ("/orders", Some("x=1")));
}

#[tokio::test]
async fn a_reload_changes_the_rules_and_keeps_connections_and_counters() {
    let ingress = Ingress::simple().await;
    let mut client = ingress.connect().await;
    client.write(post("1")).await;
    assert_eq!(client.answer().await.status, 202);
    ingress.reload(vec![RulePlan { path: "/moved".into(), ..rule() }], limits());
    client.write(post("2")).await;
    assert_eq!(client.answer().await.status, 404);
    client.write(post("3").replace("/orders", "/moved")).await;
    assert_eq!(client.answer().await.status, 202);
    assert_eq!((ingress.counters.accepted(), ingress.counters.rejected()), (2, 1));
}
