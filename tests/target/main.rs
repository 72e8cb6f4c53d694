//! The HTTP target against a backend that keeps no rule: each fault has its outcome, and never another.

#![allow(clippy::expect_used, clippy::unwrap_used)]

#[path = "../support/backend.rs"]
mod backend;
mod tls;

use std::sync::Arc;
use std::time::{Duration, Instant};

use backend::{Answer, Backend, Hit, Options};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use stagepost::core::message::{Message, MessageId};
use stagepost::core::outcome::Outcome;
use stagepost::target::http::{HttpTarget, HttpTargetConfig};
use stagepost::target::{self, AnswerBody, Attempt, Target as _};

fn attempt(body: impl Into<Bytes>) -> Attempt {
    let body = body.into();
    Attempt {
        message: Arc::new(Message::new(MessageId::new("1"), body.clone())),
        method: Method::POST,
        append: None,
        headers: HeaderMap::new(),
        body,
    }
}

fn config(url: impl Into<String>) -> HttpTargetConfig {
    HttpTargetConfig {
        connect_timeout: Duration::from_secs(5),
        timeout: Duration::from_secs(5),
        reads_bodies: true,
        max_body: 64 * 1024,
        max_idle: 64,
        ..HttpTargetConfig::new(url)
    }
}

fn target(url: impl Into<String>) -> HttpTarget {
    HttpTarget::new(&config(url)).unwrap()
}

async fn send_once(backend: &Backend) -> target::Answer {
    target(backend.url("/")).send(attempt("hello")).await
}

fn status(answer: &target::Answer) -> u16 {
    answer.outcome.status().unwrap_or_else(|| panic!("no status: {:?}", answer.outcome))
}

fn no_response(answer: &target::Answer) -> &str {
    match &answer.outcome {
        Outcome::NoResponse(text) => text,
        other => panic!("not NoResponse: {other:?}"),
    }
}

fn connection_error(answer: &target::Answer) -> &str {
    match &answer.outcome {
        Outcome::ConnectionError(text) => text,
        other => panic!("not ConnectionError: {other:?}"),
    }
}

#[tokio::test]
async fn the_request_arrives_to_the_byte_with_our_host_and_length_and_every_header_value() {
    let backend = Backend::start(|_| Answer::full(202, &[("X-Two", "a"), ("X-Two", "b")], b"taken")).await;
    let target = target(backend.url("/base/?k=1"));
    let mut sent = attempt(Bytes::from_static(b"{    \"Status\":\"SUCCESS\"   }"));
    sent.append = Some("/order/7?x=%20y".to_owned());
    sent.headers.insert("content-type", HeaderValue::from_static("application/json"));
    sent.headers.append("x-many", HeaderValue::from_static("1"));
    sent.headers.append("x-many", HeaderValue::from_bytes(b"caf\xe9").unwrap());

    let answer = target.send(sent).await;

    let Outcome::Response { status, headers } = &answer.outcome else { panic!("{:?}", answer.outcome) };
    assert_eq!(*status, 202);
    assert_eq!(headers.get_all("x-two").iter().count(), 2);
    assert_eq!(answer.body, AnswerBody::Complete(Bytes::from_static(b"taken")));
    assert!(!answer.repeated);
    let hit = &backend.hits()[0];
    assert_eq!((hit.method.as_str(), hit.path.as_str()), ("POST", "/base/order/7?k=1&x=%20y"));
    assert_eq!(hit.body, b"{    \"Status\":\"SUCCESS\"   }");
    assert_eq!(hit.all("content-length"), ["27"]);
    assert_eq!(hit.all("host"), [backend.address().to_string()]);
    let many: Vec<&[u8]> =
        hit.headers.iter().filter(|(name, _)| name == "x-many").map(|(_, value)| value.as_slice()).collect();
    assert_eq!(many, [b"1".as_slice(), b"caf\xe9"]);
    assert_eq!(hit.all("transfer-encoding"), Vec::<String>::new());
}

#[tokio::test]
async fn any_method_goes_out_and_an_empty_post_has_a_length_of_zero() {
    let backend = Backend::with_status(200).await;
    let target = target(backend.url("/"));
    for method in ["GET", "POST", "DELETE", "HEAD", "PROPFIND", "X-Own"] {
        let sent = Attempt { method: method.parse().unwrap(), ..attempt("") };
        assert_eq!(status(&target.send(sent).await), 200, "{method}");
    }
    let hits = backend.hits();
    let seen: Vec<_> = hits.iter().map(|hit| (hit.method.as_str(), hit.header("content-length"))).collect();
    let zero = Some("0".to_owned());
    assert_eq!(
        seen,
        [("GET", None), ("POST", zero), ("DELETE", None), ("HEAD", None), ("PROPFIND", None), ("X-Own", None)]
    );
    assert_eq!(backend.accepted(), 1);
}

#[tokio::test]
async fn one_connection_serves_one_message_after_another() {
    let backend = Backend::start(|_| Answer::full(200, &[], &[b'x'; 5000])).await;
    let target = target(backend.url("/"));
    for _ in 0..50 {
        assert!(matches!(target.send(attempt("m")).await.body, AnswerBody::Complete(body) if body.len() == 5000));
    }
    assert_eq!(backend.accepted(), 1);
}

#[tokio::test]
async fn attempts_side_by_side_use_no_more_connections_than_there_are_attempts() {
    let backend = Backend::start(|_| Answer::full(200, &[], b"ok")).await;
    let target = Arc::new(target(backend.url("/")));
    let mut lanes = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let target = Arc::clone(&target);
        lanes.spawn(async move {
            for _ in 0..20 {
                assert_eq!(status(&target.send(attempt("m")).await), 200);
            }
        });
    }
    while let Some(done) = lanes.join_next().await {
        done.unwrap();
    }
    assert_eq!(backend.hits().len(), 64 * 20);
    assert!(backend.accepted() <= 64, "{}", backend.accepted());
}

#[tokio::test]
async fn an_answer_that_nobody_wants_leaves_the_connection_for_the_next_message() {
    let backend = Backend::start(|_| Answer::full(200, &[], &vec![b'x'; 30_000])).await;
    let target = HttpTarget::new(&HttpTargetConfig { reads_bodies: false, ..config(backend.url("/")) }).unwrap();
    for _ in 0..5 {
        assert_eq!(target.send(attempt("m")).await.body, AnswerBody::None);
    }
    assert_eq!(backend.accepted(), 1);

    backend.script(|_| Answer::head(200, &[("Content-Length", "1000000")]).then_hang());
    let started = Instant::now();
    assert_eq!(status(&target.send(attempt("m")).await), 200);
    assert!(started.elapsed() < Duration::from_secs(1), "nobody waits for a body that nobody wants");
    backend.until_open(0).await;
}

// C3

#[tokio::test]
async fn c3_a_target_that_never_answers_is_a_timeout() {
    let backend = Backend::start(|_| Answer::nothing().then_hang()).await;
    let config = HttpTargetConfig { timeout: Duration::from_millis(300), ..config(backend.url("/")) };
    let started = Instant::now();
    let answer = HttpTarget::new(&config).unwrap().send(attempt("m")).await;
    assert_eq!(answer.outcome, Outcome::Timeout);
    assert!((300..2000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    backend.until_open(0).await;
}

#[tokio::test]
async fn c3_a_head_that_trickles_in_is_a_timeout() {
    let gap = Duration::from_millis(50);
    let backend = Backend::start(move |_| Answer::nothing().then_trickle("HTTP/1.1 200 OK\r\nX: y\r\n\r\n", gap)).await;
    let config = HttpTargetConfig { timeout: Duration::from_millis(300), ..config(backend.url("/")) };
    let answer = HttpTarget::new(&config).unwrap().send(attempt("m")).await;
    assert_eq!(answer.outcome, Outcome::Timeout);
}

#[tokio::test]
async fn c3_a_body_that_trickles_in_never_changes_what_the_head_said() {
    let gap = Duration::from_millis(50);
    let backend =
        Backend::start(move |_| Answer::head(200, &[("Content-Length", "1000")]).then_trickle([b'x'; 1000], gap)).await;
    let config = HttpTargetConfig { timeout: Duration::from_millis(300), ..config(backend.url("/")) };
    let target = HttpTarget::new(&config).unwrap();
    let answer = target.send(attempt("m")).await;
    assert_eq!(status(&answer), 200);
    assert_eq!(answer.body, AnswerBody::Unusable("too slow"));
    assert!(answer.elapsed < Duration::from_millis(300), "it is the time to the head");
    assert_eq!(backend.hits().len(), 1);
}

// C4

#[tokio::test]
async fn c4_a_reset_before_the_head_is_no_response_and_is_not_repeated_on_a_fresh_connection() {
    let backend = Backend::start(|_| Answer::nothing().then_reset()).await;
    let answer = send_once(&backend).await;
    assert_eq!(no_response(&answer), "connection reset before a complete response head");
    assert!(!answer.repeated);
    assert_eq!(backend.hits().len(), 1);
}

#[tokio::test]
async fn c4_a_close_in_the_middle_of_the_head_is_no_response() {
    let backend = Backend::start(|_| Answer::raw("HTTP/1.1 200 OK\r\nContent-Le").then_close()).await;
    let answer = send_once(&backend).await;
    assert_eq!(no_response(&answer), "connection closed before a complete response head");
}

#[tokio::test]
async fn c4_a_reset_in_the_middle_of_the_head_is_no_response_even_on_a_reused_connection() {
    let backend = Backend::with_answers([
        Answer::status(200),
        Answer::raw("HTTP/1.1 200 OK\r\n").then_pause(Duration::from_millis(100)).then_reset(),
    ])
    .await;
    let target = target(backend.url("/"));
    assert_eq!(status(&target.send(attempt("1")).await), 200);
    let answer = target.send(attempt("2")).await;
    assert_eq!(no_response(&answer), "connection reset before a complete response head");
    assert!(!answer.repeated, "the target had begun to answer");
    assert_eq!(backend.hits().len(), 2);
}

#[tokio::test]
async fn c4_after_a_complete_head_a_reset_costs_only_the_body() {
    for rest in ["", "half of it"] {
        let backend = Backend::start(move |_| {
            let head = Answer::head(200, &[("Content-Length", "1000")]).then_send(rest);
            head.then_pause(Duration::from_millis(50)).then_reset()
        })
        .await;
        let target = target(backend.url("/"));
        let answer = target.send(attempt("pay")).await;
        assert_eq!(status(&answer), 200);
        assert_eq!(answer.body, AnswerBody::Unusable("cut off"));
        assert_eq!(backend.hits().len(), 1, "a payment is not sent again");
    }
}

#[tokio::test]
async fn c4_a_request_that_is_reset_while_it_is_sent_is_no_response() {
    let options = Options { at_accept: Some(Answer::nothing().then_reset()), ..Options::default() };
    let backend = Backend::start_with(options, |_| Answer::status(200)).await;
    let answer = target(backend.url("/")).send(attempt(vec![b'x'; 4 << 20])).await;
    no_response(&answer);
}

#[tokio::test]
async fn an_answer_that_comes_before_the_whole_request_is_taken_counts() {
    let early = Answer::full(413, &[("Connection", "close")], b"").then_hang();
    let options = Options { at_accept: Some(early), ..Options::default() };
    let backend = Backend::start_with(options, |_| Answer::status(200)).await;
    let answer = target(backend.url("/")).send(attempt(vec![b'x'; 8 << 20])).await;
    assert_eq!(status(&answer), 413);
}

// C5

#[tokio::test]
async fn c5_a_head_over_64_kib_is_no_response() {
    let lines = "X-Pad: 0123456789\r\n".repeat(60_000);
    let backend = Backend::start(move |_| Answer::raw(format!("HTTP/1.1 200 OK\r\n{lines}\r\n"))).await;
    let answer = send_once(&backend).await;
    assert!(no_response(&answer).contains("64 KiB"), "{:?}", answer.outcome);

    let value = "x".repeat(1 << 20);
    backend.script(move |_| Answer::raw(format!("HTTP/1.1 200 OK\r\nX-Pad: {value}\r\n\r\n")));
    let answer = send_once(&backend).await;
    assert!(no_response(&answer).contains("64 KiB"), "{:?}", answer.outcome);
}

#[tokio::test]
async fn c5_a_head_of_60_kib_and_500_lines_is_read() {
    let lines = format!("X-Pad: {}\r\n", "x".repeat(110)).repeat(500);
    let backend =
        Backend::start(move |_| Answer::raw(format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: 0\r\n\r\n"))).await;
    let Outcome::Response { headers, .. } = send_once(&backend).await.outcome else { panic!("no response") };
    assert_eq!(headers.get_all("x-pad").iter().count(), 500);
}

#[tokio::test]
async fn c5_an_endless_body_is_cut_at_the_limit_and_its_connection_dropped() {
    let chunk = format!("400\r\n{}\r\n", "x".repeat(0x400));
    let backend =
        Backend::start(move |_| Answer::head(201, &[("Transfer-Encoding", "chunked")]).then_endless(chunk.clone()))
            .await;
    let target = target(backend.url("/"));
    let answer = target.send(attempt("m")).await;
    assert_eq!(status(&answer), 201);
    assert_eq!(answer.body, AnswerBody::Unusable("larger than the limit"));
    backend.until_open(0).await;
}

#[tokio::test]
async fn c5_a_body_that_announces_more_than_the_limit_is_not_read() {
    let backend = Backend::start(|_| Answer::head(200, &[("Content-Length", "1000000000")]).then_hang()).await;
    let answer = send_once(&backend).await;
    assert_eq!((status(&answer), answer.body), (200, AnswerBody::Unusable("larger than the limit")));
}

#[tokio::test]
async fn c5_a_compressed_body_is_passed_on_as_it_is() {
    let bomb = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    let backend = Backend::start(move |_| Answer::full(200, &[("Content-Encoding", "gzip")], &bomb)).await;
    let answer = send_once(&backend).await;
    assert_eq!(answer.body, AnswerBody::Complete(Bytes::copy_from_slice(&bomb)));
    assert_eq!(backend.hits()[0].header("accept-encoding"), None);
}

// C6: what is made of it is decided elsewhere; it must get there as it came.

#[tokio::test]
async fn c6_every_retry_after_value_is_handed_on_as_it_came() {
    let values = ["0", "3600", "Sat, 21 Nov 2026 08:00:30 GMT", "-1", "1e9", "soon", ""];
    let headers: Vec<(&str, &str)> = values.iter().map(|value| ("Retry-After", *value)).collect();
    let bytes = Answer::full(503, &headers, b"");
    let backend = Backend::start(move |_| bytes.clone()).await;
    let Outcome::Response { headers, .. } = send_once(&backend).await.outcome else { panic!("no response") };
    let seen: Vec<_> = headers.get_all("retry-after").iter().map(|value| value.to_str().unwrap()).collect();
    assert_eq!(seen, values);
}

// C7

#[tokio::test]
async fn c7_every_status_is_handed_on_as_it_came() {
    let backend = Backend::with_status(200).await;
    let target = target(backend.url("/"));
    for code in [200, 204, 205, 299, 301, 304, 400, 404, 418, 451, 500, 503, 599, 600, 999] {
        backend.script(move |_| match code {
            204 | 304 => Answer::head(code, &[]),
            _ => Answer::status(code),
        });
        assert_eq!(status(&target.send(attempt("m")).await), code);
    }
    assert_eq!(backend.accepted(), 1);
}

#[tokio::test]
async fn c7_a_redirect_is_an_answer_and_is_never_followed() {
    let elsewhere = Backend::with_status(200).await;
    let location = elsewhere.url("/internal");
    let backend = Backend::start(move |_| Answer::full(307, &[("Location", &location)], b"")).await;
    assert_eq!(status(&send_once(&backend).await), 307);
    assert_eq!(elsewhere.accepted(), 0);
}

#[tokio::test]
async fn c7_informational_answers_are_skipped_until_the_final_one() {
    let backend = Backend::start(|_| {
        let early = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n";
        Answer::raw(early)
            .then_pause(Duration::from_millis(20))
            .then_send("HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n")
    })
    .await;
    let Outcome::Response { status, headers } = send_once(&backend).await.outcome else { panic!("no response") };
    assert_eq!(status, 201);
    assert!(headers.get("link").is_none());
}

#[tokio::test]
async fn c7_an_informational_answer_alone_is_a_timeout() {
    let backend = Backend::start(|_| Answer::raw("HTTP/1.1 100 Continue\r\n\r\n").then_hang()).await;
    let config = HttpTargetConfig { timeout: Duration::from_millis(200), ..config(backend.url("/")) };
    let answer = HttpTarget::new(&config).unwrap().send(attempt("m")).await;
    assert_eq!(answer.outcome, Outcome::Timeout);
}

#[tokio::test]
async fn c7_an_upgrade_that_nobody_asked_for_is_the_answer_101() {
    let backend =
        Backend::start(|_| Answer::head(101, &[("Upgrade", "websocket"), ("Connection", "upgrade")]).then_hang()).await;
    let target = target(backend.url("/"));
    assert_eq!(status(&target.send(attempt("m")).await), 101);
    assert_eq!(status(&target.send(attempt("m")).await), 101);
    assert_eq!(backend.accepted(), 2, "such a connection is not used again");
}

#[tokio::test]
async fn c7_what_is_not_http_is_no_response() {
    for junk in [
        "hello\r\n\r\n",
        "<html>HTTP/0.9 has no head</html>",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 099 Low\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "\0\0\0\0\0\0\0\0",
        "SSH-2.0-OpenSSH_9.2\r\n",
    ] {
        let backend = Backend::start(move |_| Answer::raw(junk).then_close()).await;
        let answer = send_once(&backend).await;
        assert!(matches!(answer.outcome, Outcome::NoResponse(_)), "{junk:?}: {:?}", answer.outcome);
        assert_eq!(backend.hits().len(), 1);
    }
}

#[tokio::test]
async fn c7_a_close_without_a_byte_is_no_response() {
    let backend = Backend::start(|_| Answer::nothing().then_close()).await;
    assert_eq!(no_response(&send_once(&backend).await), "connection closed before a complete response head");
}

#[tokio::test]
async fn c7_an_answer_that_ends_with_its_connection_is_read_to_the_end() {
    let backend = Backend::start(|_| Answer::raw("HTTP/1.0 200 OK\r\n\r\nall of it").then_close()).await;
    let answer = send_once(&backend).await;
    assert_eq!(answer.body, AnswerBody::Complete(Bytes::from_static(b"all of it")));
}

// C9 and the addresses that are refused

#[tokio::test]
async fn c9_a_name_that_does_not_exist_is_a_connection_error_that_says_so() {
    let answer = target("http://no-such-host.invalid/").send(attempt("m")).await;
    assert!(connection_error(&answer).starts_with("name not resolved: no-such-host.invalid: "), "{:?}", answer.outcome);
}

#[tokio::test]
async fn c9_refused_addresses_are_never_dialled_in_any_notation() {
    let started = Instant::now();
    for (host, reason) in [
        ("169.254.169.254", "address 169.254.169.254 is refused: link-local"),
        ("[fe80::1]", "address fe80::1 is refused: link-local"),
        ("[fd00:ec2::254]", "address fd00:ec2::254 is refused: cloud metadata"),
        ("[::ffff:169.254.169.254]", "address ::ffff:169.254.169.254 is refused: link-local"),
        ("[64:ff9b::a9fe:a9fe]", "address 64:ff9b::a9fe:a9fe is refused: link-local"),
        ("0.0.0.0", "address 0.0.0.0 is refused: unspecified"),
        ("[::]", "address :: is refused: unspecified"),
        // The resolver's own notations of 169.254.169.254.
        ("2852039166", "address 169.254.169.254 is refused: link-local"),
        ("0xa9fea9fe", "address 169.254.169.254 is refused: link-local"),
        ("169.254.43518", "address 169.254.169.254 is refused: link-local"),
        ("0251.0376.0251.0376", "address 169.254.169.254 is refused: link-local"),
    ] {
        let answer = target(format!("http://{host}:1/")).send(attempt("m")).await;
        assert_eq!(connection_error(&answer), reason, "{host}");
    }
    assert!(started.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn c9_loopback_is_refused_where_a_cluster_wants_it_also_behind_a_name() {
    let backend = Backend::with_status(200).await;
    let port = backend.address().port();
    for host in ["127.0.0.1", "localhost", "127.1", "[::ffff:127.0.0.1]"] {
        let config = HttpTargetConfig { refuse_loopback: true, ..config(format!("http://{host}:{port}/")) };
        let answer = HttpTarget::new(&config).unwrap().send(attempt("m")).await;
        assert!(connection_error(&answer).ends_with("is refused: loopback"), "{host}: {:?}", answer.outcome);
    }
    assert_eq!(backend.accepted(), 0);
    assert_eq!(status(&target(format!("http://localhost:{port}/")).send(attempt("m")).await), 200);
}

// C10

#[tokio::test]
async fn c10_a_port_where_nobody_listens_is_connection_refused() {
    let backend = Backend::with_status(200).await;
    let target = target(backend.url("/"));
    assert_eq!(status(&target.send(attempt("m")).await), 200);
    let address = backend.stop().await;
    assert_eq!(connection_error(&target.send(attempt("m")).await), "connection refused");

    let backend = Backend::start_at(address, |_| Answer::status(200)).await;
    assert_eq!(status(&target.send(attempt("m")).await), 200, "it needs no restart to find the target back");
    assert_eq!(backend.hits().len(), 1);
}

#[tokio::test]
async fn c10_a_connect_that_nobody_answers_ends_at_the_connect_timeout() {
    // A listener whose backlog is full: further connects are neither accepted nor refused.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut fillers = Vec::new();
    while let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_millis(200), tokio::net::TcpStream::connect(address)).await
    {
        fillers.push(stream);
    }
    let config =
        HttpTargetConfig { connect_timeout: Duration::from_millis(250), ..config(format!("http://{address}/")) };
    let answer = HttpTarget::new(&config).unwrap().send(attempt("m")).await;
    assert_eq!(connection_error(&answer), "connect timed out after 250ms");
}

// C11

#[tokio::test]
async fn c11_a_connection_that_was_closed_while_idle_is_noticed_before_use() {
    let options = Options { close_after_idle: Some(Duration::from_millis(100)), ..Options::default() };
    let backend = Backend::start_with(options, |_| Answer::status(200)).await;
    let target = target(backend.url("/"));
    for sent in 1..=3 {
        let answer = target.send(attempt("m")).await;
        assert_eq!((status(&answer), answer.repeated), (200, false));
        assert_eq!(backend.hits().len(), sent);
        backend.until_open(0).await;
    }
    assert_eq!(backend.accepted(), 3);
}

#[tokio::test]
async fn c11_a_reused_connection_that_is_reset_under_the_request_gets_one_fresh_try() {
    for reset in [true, false] {
        let backend = Backend::start(move |hit: &Hit| match hit.on_connection {
            1 => Answer::status(200),
            _ if reset => Answer::nothing().then_reset(),
            _ => Answer::nothing().then_close(),
        })
        .await;
        let target = target(backend.url("/"));
        assert!(!target.send(attempt("1")).await.repeated);
        let answer = target.send(attempt("2")).await;
        assert_eq!((status(&answer), answer.repeated), (200, true));
        let seen: Vec<_> = backend.hits().iter().map(|hit| (hit.connection, hit.text())).collect();
        assert_eq!(seen, [(1, "1".to_owned()), (1, "2".to_owned()), (2, "2".to_owned())]);
    }
}

#[tokio::test]
async fn c11_the_fresh_try_is_the_only_one() {
    let backend = Backend::start(|hit: &Hit| match hit.number {
        1 => Answer::status(200),
        _ => Answer::nothing().then_reset(),
    })
    .await;
    let target = target(backend.url("/"));
    target.send(attempt("1")).await;
    let answer = target.send(attempt("2")).await;
    no_response(&answer);
    assert!(answer.repeated);
    assert_eq!(backend.hits().len(), 3);
}

#[tokio::test]
async fn c11_a_timeout_on_a_reused_connection_is_not_repeated() {
    let backend = Backend::start(|hit: &Hit| match hit.number {
        1 => Answer::status(200),
        _ => Answer::nothing().then_hang(),
    })
    .await;
    let config = HttpTargetConfig { timeout: Duration::from_millis(200), ..config(backend.url("/")) };
    let target = HttpTarget::new(&config).unwrap();
    target.send(attempt("1")).await;
    let answer = target.send(attempt("2")).await;
    assert_eq!((answer.outcome, answer.repeated), (Outcome::Timeout, false));
    assert_eq!(backend.hits().len(), 2);
}

#[tokio::test]
async fn c11_bytes_that_nobody_asked_for_cost_the_connection_not_the_next_message() {
    let backend = Backend::start(|hit: &Hit| match hit.number {
        1 => Answer::status(200).then_send("HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"),
        _ => Answer::status(201),
    })
    .await;
    let target = target(backend.url("/"));
    assert_eq!(status(&target.send(attempt("1")).await), 200);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(status(&target.send(attempt("2")).await), 201);
    assert_eq!(backend.accepted(), 2);
}

// Cancelling

#[tokio::test]
async fn an_attempt_that_is_dropped_closes_its_connection() {
    let backend = Backend::start(|_| Answer::nothing().then_hang()).await;
    let target = Arc::new(target(backend.url("/")));
    let attempting = tokio::spawn({
        let target = Arc::clone(&target);
        async move { target.send(attempt("m")).await }
    });
    backend.until_hits(1).await;
    attempting.abort();
    backend.until_open(0).await;
}

#[tokio::test]
async fn a_target_that_is_dropped_closes_its_idle_connections() {
    let backend = Backend::with_status(200).await;
    let target = target(backend.url("/"));
    target.send(attempt("m")).await;
    backend.until_open(1).await;
    drop(target);
    backend.until_open(0).await;
}

#[tokio::test]
async fn a_debug_text_shows_no_query_and_no_credentials() {
    let target = target("http://127.0.0.1:1/path?token=secret");
    assert_eq!(target.display_url(), "http://127.0.0.1:1/path");
    assert!(!format!("{target:?}").contains("secret"));
}
