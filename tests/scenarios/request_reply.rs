//! L7 and P6: the caller waits, and gets the answer to its own request.

use std::time::Instant;

use crate::support::http::{Answer, Connection};
use crate::support::{Recorder, Reply, Setup, Stagepost, eventually, manifest, millis, seconds};

/// POST `/ask` into `box`, from there to `url`; the caller waits for the reply.
fn asking(timeout: &str, url: &str, spec: &str) -> String {
    let rule = format!("rules:\n- name: ask\n  path: /ask\n  storeRef: {{name: box}}\n  reply: {{timeout: {timeout}}}");
    [
        manifest::store("box", ""),
        manifest::object("IngressRoute", "in", &rule),
        manifest::processor("out", "box", url, spec),
    ]
    .concat()
}

const DROP: &str = "retry: {maxRedeliveries: 0}\nonFailure: {action: Drop}";

#[track_caller]
fn assert_problem(answer: &Answer, status: u16, kind: &str) {
    let problem = answer.json();
    assert_eq!((answer.status, &problem["status"]), (status, &status.into()), "{}", answer.text());
    assert_eq!(answer.header("content-type").as_deref(), Some("application/problem+json"));
    assert_eq!(problem["type"], format!("urn:stagepost:problem:{kind}"), "{problem:#}");
    for text in ["title", "detail", "remedy"] {
        assert!(problem[text].as_str().is_some_and(|text| !text.is_empty()), "{text}: {problem:#}");
    }
    assert!(answer.header("stagepost-message-id").is_some());
}

#[test]
fn p6_the_caller_gets_status_headers_and_body_of_the_target() {
    let target = Recorder::answering(|hit| {
        let headers = [
            ("Content-Type", "text/x-answer"),
            ("X-Two", "1"),
            ("X-Two", "2"),
            ("Connection", "X-Hop"),
            ("X-Hop", "1"),
        ];
        Reply::full(201, &headers, &[b"\x00\xffyou said ", hit.body.as_slice()].concat())
    });
    let run = Setup::manifests(asking("10s", &target.url(), "")).start();
    let answer = run.post("/ask", &[], "hello");
    assert_eq!((answer.status, answer.body.as_slice()), (201, b"\x00\xffyou said hello".as_slice()));
    assert_eq!(answer.header("content-type").as_deref(), Some("text/x-answer"));
    let two: Vec<_> = answer.headers.iter().filter(|(name, _)| name == "x-two").map(|(_, value)| value).collect();
    assert_eq!(two, [b"1", b"2"]);
    assert_eq!(answer.header("x-hop"), None, "it belongs to the target's connection");
    let hit = target.hits().remove(0);
    assert_eq!(answer.header("stagepost-message-id"), hit.header("stagepost-message-id"));
    run.await_status("ForwardingProcessor", "out", seconds(5), |status| status["delivered"] == 1);
    assert_eq!(run.metric("stagepost_replies_total", &["result=\"answered\""]), 1);
}

#[test]
fn p6_what_the_target_refuses_the_caller_is_told_at_once_and_it_is_a_dead_letter_as_always() {
    let target = Recorder::answering(|_| Reply::full(422, &[("Content-Type", "text/plain")], b"no such account"));
    let spec = "onFailure: {action: DeadLetter}";
    let run = Setup::manifests(asking("30s", &target.url(), spec)).start();
    let begun = Instant::now();
    let answer = run.post("/ask", &[], "x");
    assert_eq!((answer.status, answer.text().as_str()), (422, "no such account"));
    assert!(begun.elapsed() < seconds(5), "{:?}", begun.elapsed());
    run.await_status("ForwardingProcessor", "out", seconds(5), |status| status["deadLettered"] == 1);
}

#[test]
fn p6_fifty_callers_at_once_each_get_their_own() {
    let target = Recorder::answering(|hit| {
        let number: u64 = hit.text().parse().unwrap();
        Reply::full(200, &[], &hit.body).after(millis(number * 7 % 50))
    });
    let run = Setup::manifests(asking("30s", &target.url(), "ordering: None\nconcurrency: 16")).start();
    std::thread::scope(|scope| {
        for caller in 0..50 {
            let run = &run;
            scope.spawn(move || {
                let mut connection = Connection::open(run.listen()).unwrap();
                for round in 0..4 {
                    let body = (caller * 4 + round).to_string();
                    let answer = connection.request("POST", "/ask", &[], body.as_bytes()).unwrap();
                    assert_eq!((answer.status, answer.text()), (200, body));
                }
            });
        }
    });
    assert_eq!(run.metric("stagepost_replies_total", &["result=\"answered\""]), 200);
    assert_eq!(run.metric("stagepost_ingress_in_flight", &[]), 0);
}

#[test]
fn p6_without_a_target_the_caller_gets_a_problem() {
    let target = Recorder::down(|_| Reply::status(200));
    // It waits for the target, as every message does, until nobody waits for it.
    let run = Setup::manifests(asking("1s", &target.url(), DROP)).start();
    assert_problem(&run.post("/ask", &[], "x"), 504, "reply-timeout");
    // Or an unreachable target counts like any failure.
    let counted = "retry: {maxRedeliveries: 1, interval: 100ms, whileUnreachable: Count}\nonFailure: {action: Drop}";
    let run = Setup::manifests(asking("20s", &target.url(), counted)).start();
    let begun = Instant::now();
    assert_problem(&run.post("/ask", &[], "x"), 502, "target-unreachable");
    assert!(begun.elapsed() < seconds(10), "{:?}", begun.elapsed());
}

#[test]
fn every_way_to_fail_has_its_problem() {
    let target = Recorder::answering(|hit| match hit.text().as_str() {
        "silent" => Reply::raw(b""),
        "slow" => Reply::hang(),
        "large" => Reply::full(200, &[], &[b'x'; 5000]),
        other => Reply::full(200, &[], other.as_bytes()),
    });
    let spec = format!(
        "{DROP}\nordering: None\nconcurrency: 4\nresponse: {{maxBodySize: 4Ki}}\ntransform:\n\
         - filter: {{when: \"body != 'unwanted'\"}}\n\
         - setBody: {{template: \"{{{{ (1 // 0) if body == 'broken' else body }}}}\"}}"
    );
    let yaml = asking("20s", &target.url(), &spec).replace("target: {url", "target: {timeout: 1s, url");
    let run = Setup::manifests(yaml).start();
    assert_problem(&run.post("/ask", &[], "silent"), 502, "target-no-response");
    assert_problem(&run.post("/ask", &[], "slow"), 504, "target-timeout");
    assert_problem(&run.post("/ask", &[], "large"), 502, "reply-unusable");
    assert_problem(&run.post("/ask", &[], "broken"), 502, "transform-failed");
    assert_problem(&run.post("/ask", &[], "unwanted"), 502, "filtered");
    let answer = run.post("/ask", &[], "good");
    assert_eq!((answer.status, answer.text().as_str()), (200, "good"));
}

#[test]
fn retries_are_made_as_long_as_the_caller_waits() {
    let target = Recorder::statuses(&[500, 503, 200]);
    let spec = "retry: {maxRedeliveries: 5, interval: 200ms}\nonFailure: {action: Drop}";
    let run = Setup::manifests(asking("20s", &target.url(), spec)).start();
    assert_eq!(run.post("/ask", &[], "x").status, 200);
    assert_eq!(target.count(), 3);
}

#[test]
fn l7_without_an_answer_the_caller_gets_504_when_its_time_is_over() {
    let target = Recorder::answering(|_| Reply::hang());
    let run = Setup::manifests(asking("3s", &target.url(), DROP)).start();
    let begun = Instant::now();
    assert_problem(&run.post("/ask", &[], "x"), 504, "reply-timeout");
    let took = begun.elapsed();
    assert!(took >= seconds(3) && took < seconds(5), "{took:?}");
    assert_eq!(run.metric("stagepost_replies_total", &["result=\"timed_out\""]), 1);
}

#[test]
fn a_request_that_nobody_waits_for_is_not_executed() {
    let target = Recorder::start();
    let yaml = asking("1s", &target.url(), &format!("{DROP}\nsuspend: true"));
    let run = Setup::manifests(yaml).start();
    assert_problem(&run.post("/ask", &[], "too late"), 504, "reply-timeout");
    run.edit("stagepost.yaml", "suspend: true", "suspend: false");
    run.await_state("out", "Active", seconds(10));
    assert_eq!(run.post("/ask", &[], "in time").status, 200);
    assert_eq!(target.texts(), ["in time"]);
    run.await_depth("box", 0, seconds(5));
}

#[test]
fn an_answer_that_comes_too_late_is_counted_and_changes_nothing() {
    let target = Recorder::answering(|_| Reply::status(200).after(seconds(2)));
    let run = Setup::manifests(asking("1s", &target.url(), DROP)).start();
    assert_problem(&run.post("/ask", &[], "x"), 504, "reply-timeout");
    run.await_status("ForwardingProcessor", "out", seconds(10), |status| status["delivered"] == 1);
    eventually("it is counted", seconds(5), || {
        (run.metric("stagepost_replies_total", &["result=\"late\""]) == 1).then_some(())
    });
    assert_eq!(target.count(), 1);
}

#[test]
fn a_caller_is_told_before_the_processor_stops() {
    let target = Recorder::answering(|_| Reply::full(500, &[], b"broken"));
    let run =
        Setup::manifests(asking("20s", &target.url(), "retry: {maxRedeliveries: 0}\nonFailure: {action: Deactivate}"))
            .start();
    let answer = run.post("/ask", &[], "x");
    assert_eq!((answer.status, answer.text().as_str()), (500, "broken"));
    run.await_state("out", "Deactivated", seconds(10));
    run.await_depth("box", 1, seconds(5));
}

#[test]
fn a_request_may_go_through_several_stores_and_its_answer_may_be_stored_too() {
    let target = Recorder::answering(|_| Reply::full(200, &[], b"from the far end"));
    let copies = Recorder::start();
    let yaml = [
        asking("20s", &target.url(), "").replace("target: {url", "target: {storeRef: {name: far}} #"),
        manifest::store("far", ""),
        manifest::processor("last", "far", &target.url(), "response: {storeRef: {name: answers}}"),
        manifest::store("answers", ""),
        manifest::processor("copy", "answers", &copies.url(), ""),
    ];
    let run = Setup::manifests(yaml.concat()).start();
    let answer = run.post("/ask", &[], "x");
    assert_eq!((answer.status, answer.text().as_str()), (200, "from the far end"));
    let copy = copies.await_hits(1, seconds(10)).remove(0);
    assert_eq!(copy.text(), "from the far end");
    assert_eq!(copy.header("stagepost-correlation-id"), answer.header("stagepost-message-id"));
    assert_eq!(copy.header("stagepost-response-status").as_deref(), Some("200"));
}

#[test]
fn who_waits_when_the_process_is_told_to_stop_still_gets_the_answer() {
    let target = Recorder::answering(|_| Reply::full(200, &[], b"done").after(seconds(2)));
    let mut run: Stagepost = Setup::manifests(asking("20s", &target.url(), "")).start();
    let to = run.listen();
    let caller = std::thread::spawn(move || Connection::open(to).unwrap().request("POST", "/ask", &[], b"x").unwrap());
    target.await_hits(1, seconds(5));
    assert_eq!(run.terminate(seconds(15)).code(), Some(0));
    let answer = caller.join().unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "done"));
}

#[test]
fn a_caller_that_leaves_gives_its_place_back() {
    let target = Recorder::answering(|_| Reply::status(200).after(seconds(2)));
    let run = Setup::manifests(asking("30s", &target.url(), "")).start();
    let mut caller = Connection::open(run.listen()).unwrap();
    caller.send_raw(b"POST /ask HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx").unwrap();
    target.await_hits(1, seconds(5));
    drop(caller);
    eventually("it is not in flight any more", seconds(1), || {
        (run.metric("stagepost_ingress_in_flight", &[]) == 0).then_some(())
    });
    assert_eq!(run.metric("stagepost_replies_total", &["result=\"abandoned\""]), 1);
    run.await_status("ForwardingProcessor", "out", seconds(10), |status| status["delivered"] == 1);
}

#[test]
fn a_caller_that_waits_for_less_than_an_attempt_may_take_is_a_warning() {
    let target = Recorder::start();
    let run = Setup::manifests(asking("10s", &target.url(), "")).start();
    let degraded = |status: &serde_json::Value| {
        let conditions = status["conditions"].as_array().unwrap();
        conditions.iter().find(|condition| condition["type"] == "Degraded").unwrap().clone()
    };
    let condition = degraded(&run.status("IngressRoute", "in"));
    assert_eq!((&condition["status"], &condition["reason"]), (&"True".into(), &"RetryExceedsReply".into()));
    let expected = "rule `ask` makes its caller wait for 10s, and one attempt of ForwardingProcessor `out` may take 35s; \
                    raise reply.timeout, or lower target.timeout and target.connectTimeout";
    assert_eq!(condition["message"], expected);
    run.edit("stagepost.yaml", "timeout: 10s", "timeout: 40s");
    run.await_status("IngressRoute", "in", seconds(10), |status| degraded(status)["status"] == "False");
}
