//! S3 and S4: the caller waits for the answer of the target, through the stores.

use std::time::Instant;

use crate::support::http;
use crate::support::{Recorder, Reply, Setup, Stagepost, manifest, millis, seconds};

/// POST `/ask` into a store whose processor's answer the caller waits for.
fn asking(target: &str, timeout: &str, spec: &str) -> Stagepost {
    let rules =
        format!("rules:\n- name: ask\n  path: /ask\n  storeRef: {{name: box}}\n  reply: {{timeout: {timeout}}}");
    let yaml = [
        manifest::store("box", ""),
        manifest::object("IngressRoute", "in", &rules),
        manifest::processor("out", "box", target, spec),
    ];
    Setup::manifests(yaml.concat()).start()
}

#[test]
fn p6_fifty_callers_at_once_each_get_their_own_reply() {
    let target = Recorder::answering(|hit| {
        Reply::full(201, &[("X-Echo", &hit.text()), ("Content-Type", "text/plain")], &hit.body).after(millis(50))
    });
    let run = asking(&target.url(), "20s", "ordering: None\nconcurrency: 16");
    std::thread::scope(|scope| {
        for caller in 0..50 {
            let run = &run;
            scope.spawn(move || {
                let text = format!("caller {caller}");
                let answer = run.post("/ask", &[], &text);
                assert_eq!((answer.status, answer.text()), (201, text.clone()));
                assert_eq!(answer.header("x-echo"), Some(text));
            });
        }
    });
    assert_eq!(target.count(), 50);
}

#[test]
fn p6_a_refusal_of_the_target_reaches_the_caller_at_once() {
    let target = Recorder::answering(|_| Reply::full(422, &[("Content-Type", "application/json")], br#"{"no":1}"#));
    let run = asking(&target.url(), "20s", "onFailure: {action: Drop}");
    let begun = Instant::now();
    let answer = run.post("/ask", &[], "x");
    assert_eq!((answer.status, answer.text().as_str()), (422, r#"{"no":1}"#));
    assert!(begun.elapsed() < seconds(3));
}

#[test]
fn l7_a_target_without_an_answer_is_a_504_at_the_time_out() {
    let target = Recorder::answering(|_| Reply::hang());
    let run = asking(&target.url(), "4s", "");
    let begun = Instant::now();
    let answer = http::once(run.listen(), "POST", "/ask", &[], b"x").unwrap();
    let took = begun.elapsed();
    assert_eq!(answer.status, 504, "{}", answer.text());
    assert!(took >= millis(3950) && took <= millis(4500), "after {took:?}");
    assert_eq!(answer.header("content-type").as_deref(), Some("application/problem+json"));
}

#[test]
fn p6_a_target_that_is_not_there_is_a_502_or_504() {
    let target = Recorder::down(|_| Reply::status(200));
    let spec = "retry: {maxRedeliveries: 1, interval: 100ms, whileUnreachable: Count}\nonFailure: {action: Drop}";
    let run = asking(&target.url(), "5s", spec);
    let answer = run.post("/ask", &[], "x");
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert_eq!(answer.header("content-type").as_deref(), Some("application/problem+json"));
}
