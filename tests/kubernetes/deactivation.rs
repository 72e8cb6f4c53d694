//! R5, E5: a processor that has stopped itself stays stopped until somebody says otherwise.

use serde_json::json;

use super::cluster::{kill_controller, run, shared, whole};
use super::space::{Hit, Space, has};
use crate::support::{eventually, seconds};

const STOPS: &str =
    "retry: {maxRedeliveries: 2, interval: 250ms, backoffFactor: 1, jitter: 0}\nonFailure: {action: Deactivate}";

fn texts(hits: &[Hit]) -> Vec<String> {
    hits.iter().map(Hit::text).collect()
}

#[test]
fn r5_a_deactivated_processor_survives_restarts_and_delivers_in_order_when_it_is_reactivated() {
    let Some(_whole) = whole() else { return };
    let space = Space::new("deactivated");
    space.line(STOPS);
    space.answers(&[500]);
    assert_eq!(space.post("in", "/in", "one").status, 202);
    let stopped = space.until("fwp", "out", seconds(20), |object| object["status"]["state"] == "Deactivated");
    assert!(has(&stopped, "Ready", "False", "Deactivated"), "{stopped:#}");
    assert_eq!(stopped["status"]["deactivation"]["attempts"], 3);
    assert_eq!(space.column("fwp", "out", "REASON"), "Deactivated");
    eventually("its pods are gone", seconds(30), || space.pods("out").is_empty().then_some(()));
    assert_eq!(space.post("in", "/in", "two").status, 202);
    space.until("fwp", "out", seconds(15), |object| object["status"]["backlog"] == 2);
    kill_controller();
    std::thread::sleep(seconds(5));
    let still = space.get("fwp", "out");
    assert_eq!(still["status"]["state"], "Deactivated");
    assert_eq!(texts(&space.hits()), ["one", "one", "one"]);
    space.answers(&[200]);
    // By the command, which sets the annotation.
    let stagepost = env!("CARGO_BIN_EXE_stagepost");
    let printed = run(stagepost, &["reactivate", "out", "--namespace", &space.name], "");
    assert!(printed.ok && printed.out.contains("asked to deliver again"), "{printed:?}");
    let hits = space.await_hits(5, seconds(60));
    assert_eq!(texts(&hits[3..]), ["one", "two"]);
    assert_eq!(hits[3].header("stagepost-attempt").as_deref(), Some("1"));
    let active = space.ready("fwp", "out");
    assert_eq!(active["status"]["state"], "Active");
    assert_eq!(active["status"]["deactivation"], json!(null));
    let events = space.kubectl(&["get", "events", "-o", "jsonpath={.items[*].reason}"]);
    assert!(events.contains("Deactivated") && events.contains("Reactivated"), "{events}");
}

#[test]
fn e5_one_whose_worker_dies_before_anybody_asked_it_is_deactivated_all_the_same() {
    let Some(_shared) = shared() else { return };
    let space = Space::new("unsampled");
    space.line(STOPS);
    space.answers(&[500]);
    assert_eq!(space.post("in", "/in", "one").status, 202);
    space.await_hits(3, seconds(10));
    // The record is on the broker; whether the controller has seen it is chance.
    let queue = format!("stagepost.{}.out.deactivated", space.name);
    eventually("the record is stored", seconds(10), || (space.queue(&queue)? == 1).then_some(()));
    for pod in space.pods("out") {
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        run("kubectl", &["delete", "pod", "-n", &space.name, &name, "--grace-period=0", "--force"], "");
    }
    space.until("fwp", "out", seconds(30), |object| object["status"]["state"] == "Deactivated");
    std::thread::sleep(seconds(3));
    assert_eq!(space.hits().len(), 3);
    // A suspension and its end are another way out.
    space.answers(&[200]);
    space.patch("fwp", "out", &json!({"spec": {"suspend": true}}));
    space.until("fwp", "out", seconds(15), |object| object["status"]["state"] == "Suspended");
    space.patch("fwp", "out", &json!({"spec": {"suspend": false}}));
    assert_eq!(texts(&space.await_hits(4, seconds(60))[3..]), ["one"]);
}
