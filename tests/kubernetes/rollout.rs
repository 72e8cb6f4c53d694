//! K9, E1: pods are replaced under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::json;

use super::cluster::{shared, whole};
use super::space::Space;
use crate::support::checker::Saw;
use crate::support::http::Connection;
use crate::support::load::Load;
use crate::support::{eventually, is_full, millis, seconds};

/// Requests through a rolling restart of the ingress.
const REQUESTS: usize = 100_000;
const CLIENTS: usize = 32;

#[test]
fn k9_a_rolling_restart_of_the_ingress_fails_no_request_of_keep_alive_clients_and_loses_none() {
    let Some(_whole) = whole() else { return };
    let space = Space::new("rolling");
    space.line("suspend: true");
    space.until("fwp", "out", seconds(30), |object| object["status"]["state"] == "Suspended");
    let address = space.address("in", 80);
    let (next, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let done = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (next, failed, done) = (next.clone(), failed.clone(), done.clone());
            std::thread::spawn(move || {
                let mut connection: Option<Connection> = None;
                let mut sent = 0usize;
                while next.fetch_add(1, Ordering::Relaxed) < REQUESTS || !done.load(Ordering::Relaxed) {
                    let mut open = connection.take().unwrap_or_else(|| Connection::open(address).unwrap());
                    sent += 1;
                    match open.request("POST", "/in", &[], b"0123456789") {
                        Ok(answer) if answer.status == 202 => connection = (!answer.closes()).then_some(open),
                        other => {
                            println!("{other:?}");
                            failed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
                sent
            })
        })
        .collect();
    space.kubectl(&["rollout", "restart", "deployment/in-ingress"]);
    // The controller puts back what a restart by hand changes in the pods' template: both ways are a rollout.
    space.patch("iroute", "in", &json!({"spec": {"workload": {"podAnnotations": {"restarted": "now"}}}}));
    space.until("deployment", "in-ingress", seconds(180), |object| {
        object["spec"]["template"]["metadata"]["annotations"]["restarted"] == "now"
            && object["status"]["observedGeneration"] == object["metadata"]["generation"]
            && object["status"]["updatedReplicas"] == 2
            && object["status"]["availableReplicas"] == 2
            && object["status"]["replicas"] == 2
    });
    done.store(true, Ordering::Relaxed);
    let sent: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
    println!("    K9: {sent} requests, {} failed", failed.load(Ordering::Relaxed));
    assert!(sent >= REQUESTS);
    assert_eq!(failed.load(Ordering::Relaxed), 0);
    let queue = format!("{}.box", space.name);
    eventually("all are stored", seconds(30), || (space.queue(&queue)? == sent as u64).then_some(()));
    space.until("iroute", "in", seconds(30), |object| object["status"]["accepted"] == sent);
}

#[test]
fn e1_rollouts_of_a_strict_processor_under_load_keep_the_order_and_lose_nothing() {
    let Some(_shared) = shared() else { return };
    let space = Space::new("strict");
    space.line("");
    let mut load = Load::start(space.address("in", 80), 1, 0, millis(20));
    let rollouts = if is_full() { 20 } else { 3 };
    for round in 0..rollouts {
        let round = round.to_string();
        space.patch("fwp", "out", &json!({"spec": {"workload": {"podAnnotations": {"round": round}}}}));
        space.until("deployment", "out-forwarder", seconds(60), |object| {
            object["spec"]["template"]["metadata"]["annotations"]["round"] == round
                && object["status"]["observedGeneration"] == object["metadata"]["generation"]
                && object["status"]["updatedReplicas"] == 1
                && object["status"]["availableReplicas"] == 1
        });
        assert!(space.pods("out").len() <= 1, "two pods at once");
    }
    // And one that is deleted.
    space.kubectl(&["delete", "pod", &space.pod("out")]);
    let duplicated = judged("E1", &space, &mut load);
    assert_eq!(duplicated, 0, "an orderly end repeats nothing");
}

/// Stops the load, waits until everything is delivered, and judges it: nothing is lost, out of order or made up. Answers
/// how many came more than once.
#[track_caller]
pub(super) fn judged(what: &str, space: &Space, load: &mut Load) -> usize {
    load.finish();
    let checker = load.checker();
    eventually("all have come", seconds(120), || {
        checker.all_promised_in(space.hits().iter().map(|hit| hit.body.as_slice())).then_some(())
    });
    let hits = space.hits();
    let verdict = checker.judge(hits.iter().map(|hit| hit.body.as_slice()));
    println!("    {what}: {}", checker.summary(&verdict));
    assert!(verdict.lost.is_empty() && verdict.reordered.is_empty() && verdict.unexpected.is_empty(), "{verdict:?}");
    assert!(checker.count(Saw::Ok) > 100, "there was no load");
    verdict.duplicated.values().map(|times| times - 1).sum()
}
