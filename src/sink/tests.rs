use clap::Parser as _;
use serde_json::{Value, json};

use super::*;

async fn sink(script: Script) -> RunningSink {
    sink_recording(script, RecordTo::Nowhere).await
}

async fn sink_recording(script: Script, record: RecordTo) -> RunningSink {
    let listen = "127.0.0.1:0".parse().unwrap();
    Sink::start(SinkOptions { listen, script, record }).await.unwrap()
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

fn url(sink: &RunningSink, path: &str) -> String {
    format!("http://{}{path}", sink.address())
}

async fn post(sink: &RunningSink, body: &'static str) -> u16 {
    client().post(url(sink, "/x")).body(body).send().await.unwrap().status().as_u16()
}

async fn put_script(sink: &RunningSink, script: &Value) -> (u16, String) {
    let answer = client().put(url(sink, "/__script")).body(script.to_string()).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

async fn hits(sink: &RunningSink) -> Vec<Value> {
    let answer = client().get(url(sink, "/__hits")).send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/json");
    serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
}

#[tokio::test]
async fn every_hit_is_kept_with_all_there_was_to_see() {
    let sink = sink(Script::default().with_statuses(&[202]).unwrap()).await;
    let request = client().request("PROPFIND".parse().unwrap(), url(&sink, "/a%20b/c?x=1&x=2"));
    let request = request.header("x-many", "1").header("x-many", "2").body("{\"a\":1}");
    assert_eq!(request.send().await.unwrap().status(), 202);
    client().post(url(&sink, "/binary")).body(vec![0xff, 0]).send().await.unwrap();

    let hits = hits(&sink).await;
    assert_eq!(hits.len(), 2);
    assert_eq!(hits[0]["method"], "PROPFIND");
    assert_eq!(hits[0]["path"], "/a%20b/c");
    assert_eq!(hits[0]["query"], "x=1&x=2");
    assert_eq!(hits[0]["headers"]["x-many"], json!(["1", "2"]));
    assert_eq!(hits[0]["body"], json!({"base64": "eyJhIjoxfQ==", "text": "{\"a\":1}"}));
    assert_eq!(hits[0]["status"], 202);
    assert!(hits[0]["time"].as_str().unwrap().parse::<Timestamp>().is_ok());
    assert_eq!(hits[1]["body"], json!({"base64": "/wA=", "text": null}));
    assert_eq!(hits[1]["query"], Value::Null);
}

#[tokio::test]
async fn statuses_come_one_a_hit_and_the_last_repeats() {
    let sink = sink(Script::default().with_statuses(&[500, 503, 202]).unwrap()).await;
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(post(&sink, "m").await);
    }
    assert_eq!(seen, [500, 503, 202, 202, 202]);
}

#[tokio::test]
async fn the_script_changes_while_it_runs_and_what_is_not_named_stays() {
    let sink = sink(Script::default()).await;
    let change =
        json!({"statuses": [201], "body": {"ok": true}, "headers": {"X-A": "1", "X-B": ["2", "3"]}, "delay": "20ms"});
    assert_eq!(put_script(&sink, &change).await.0, 204);
    assert_eq!(put_script(&sink, &json!([500, 503])).await.0, 204);

    let started = std::time::Instant::now();
    let answer = client().post(url(&sink, "/")).send().await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(20));
    assert_eq!(answer.status(), 500);
    assert_eq!(answer.headers()["content-type"], "application/json");
    assert_eq!(answer.headers().get_all("x-b").iter().count(), 2);
    assert_eq!(answer.text().await.unwrap(), "{\"ok\":true}");
    assert_eq!(post(&sink, "m").await, 503);
    // A new list begins with its first status.
    put_script(&sink, &json!([418])).await;
    assert_eq!(post(&sink, "m").await, 418);
}

#[tokio::test]
async fn a_script_that_cannot_be_answered_is_refused_and_the_old_one_stays() {
    let sink = sink(Script::default()).await;
    for (script, says) in [
        (json!([]), "at least one"),
        (json!([100]), "100 is not a final status"),
        (json!([1000]), "1000 is not a final status"),
        (json!({"status": [200]}), "unknown field `status`"),
        (json!({"delay": "1 day"}), "write it like"),
        (json!({"headers": {"a b": "c"}}), "cannot be sent"),
        (json!("x"), "give a list of statuses"),
    ] {
        let (status, text) = put_script(&sink, &script).await;
        assert_eq!(status, 400, "{script}");
        assert!(text.contains(says), "{script}: {text}");
    }
    assert_eq!(post(&sink, "m").await, 200);
}

#[tokio::test]
async fn hits_are_cleared_on_request_and_the_sinks_own_requests_are_none() {
    let sink = sink(Script::default()).await;
    post(&sink, "m").await;
    assert_eq!(hits(&sink).await.len(), 1);
    assert_eq!(client().delete(url(&sink, "/__hits")).send().await.unwrap().status(), 204);
    assert_eq!(hits(&sink).await, Vec::<Value>::new());
    assert_eq!(client().post(url(&sink, "/__hits")).send().await.unwrap().status(), 405);
    assert_eq!(client().get(url(&sink, "/__script")).send().await.unwrap().headers()["allow"], "PUT");
    assert!(sink.hits().is_empty());
}

#[tokio::test]
async fn a_record_file_has_one_line_a_hit_when_the_sink_has_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hits.jsonl");
    for round in 1..=2 {
        let sink = sink_recording(Script::default(), RecordTo::File(path.clone())).await;
        for _ in 0..20 {
            post(&sink, "line\nbreak").await;
        }
        sink.stop().await;
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 20 * round, "a second run appends");
        for line in text.lines() {
            assert_eq!(serde_json::from_str::<Value>(line).unwrap()["body"]["text"], "line\nbreak");
        }
    }
}

#[tokio::test]
async fn http_2_without_tls_is_understood() {
    let sink = sink(Script::default().with_body("two")).await;
    let stream = TcpStream::connect(sink.address()).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post(url(&sink, "/h2")).body(Full::new(Bytes::from_static(b"m"))).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "two");
    assert_eq!(sink.hits()[0].uri.path(), "/h2");
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_and_not_kept() {
    let sink = sink(Script::default()).await;
    let answer = client().post(url(&sink, "/")).body(vec![0; MAX_BODY + 1]).send().await;
    // The client may notice the close before it reads the answer.
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status() == 413));
    assert!(sink.hits().is_empty());
}

#[test]
fn only_the_last_hits_are_kept_by_number_and_by_weight() {
    let hit = |size: usize| {
        Arc::new(Hit {
            time: Timestamp::UNIX_EPOCH,
            method: Method::POST,
            uri: "/".parse().unwrap(),
            headers: http::HeaderMap::new(),
            body: vec![0; size].into(),
            status: StatusCode::OK,
        })
    };
    let mut kept = Kept::new(Script::default());
    for _ in 0..MAX_HITS + 5 {
        kept.keep(hit(1));
    }
    assert_eq!((kept.hits.len(), kept.bytes), (MAX_HITS, MAX_HITS));
    for _ in 0..12 {
        kept.keep(hit(MAX_BODY));
    }
    assert!(kept.bytes <= MAX_HIT_BYTES);
    assert_eq!(kept.hits.len(), MAX_HIT_BYTES / MAX_BODY);
}

#[tokio::test]
async fn a_port_that_is_taken_is_an_error_that_names_the_flag() {
    let sink = sink(Script::default()).await;
    let options = SinkOptions { listen: sink.address(), script: Script::default(), record: RecordTo::Nowhere };
    let error = Sink::start(options).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("--listen {}: ", sink.address())), "{error}");
}

#[test]
fn the_flags_say_what_is_answered() {
    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: SinkArgs,
    }
    let parse = |flags: &[&str]| {
        let args = std::iter::once("sink").chain(flags.iter().copied());
        Command::try_parse_from(args).map(|command| command.args.options())
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("body.json");
    std::fs::write(&file, "{}").unwrap();
    let flags =
        ["--status", "500,500,202", "--delay", "1s", "--body", file.to_str().unwrap(), "--header", "X-A: b", "--quiet"];
    let options = parse(&flags).unwrap().unwrap();
    let script = Script::default().with_statuses(&[500, 500, 202]).unwrap().with_delay(Duration::from_secs(1));
    assert_eq!(options.script, script.with_body("{}").with_header("x-a", "b").unwrap());
    assert_eq!(options.record, RecordTo::Nowhere);
    let text = parse(&["--body", "not a file"]).unwrap().unwrap();
    assert_eq!(text.script, Script::default().with_body("not a file"));
    assert_eq!(text.record, RecordTo::Stdout);
    assert!(parse(&["--delay", "soon"]).is_err());
    assert!(parse(&["--header", "nothing"]).unwrap().is_err());
    assert!(parse(&["--status", "99"]).unwrap().is_err());
}

#[tokio::test]
async fn an_echo_is_what_was_sent_until_it_is_told_otherwise() {
    let sink = sink(Script::default().echoing()).await;
    let sent = |body: &'static str, kind: &'static str| {
        client().post(url(&sink, "/x")).header("content-type", kind).body(body)
    };
    let answer = sent("<a/>", "text/xml").send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/xml");
    assert_eq!(answer.text().await.unwrap(), "<a/>");
    assert_eq!(put_script(&sink, &json!({"statuses": [422]})).await.0, 204);
    let answer = sent("{}", "application/json").send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.text().await.unwrap().as_str()), (422, "{}"));
    assert_eq!(put_script(&sink, &json!({"echo": false})).await.0, 204);
    assert_eq!(sent("{}", "application/json").send().await.unwrap().text().await.unwrap(), "");
}
