//! K9, D7, E1: pods come and go under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::json;

use super::cluster::{shared, whole};
use super::space::Space;
use crate::support::checker::{Checker, Id, Saw};
use crate::support::http::Connection;
use crate::support::{eventually, is_full, seconds};

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
    let address = space.address("in", 80);
    let checker = Arc::new(Checker::default());
    let stop = Arc::new(AtomicBool::new(false));
    let sender = {
        let (checker, stop) = (checker.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                let id = Id { sender: 0, number };
                let answer = Connection::open(address).unwrap().request("POST", "/in", &[], id.payload().as_bytes());
                checker.saw(id, if answer.is_ok_and(|answer| answer.status == 202) { Saw::Ok } else { Saw::Fail });
                number += 1;
                std::thread::sleep(crate::support::millis(20));
            }
        })
    };
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
    let pod = space.pods("out")[0]["metadata"]["name"].as_str().unwrap().to_owned();
    space.kubectl(&["delete", "pod", &pod]);
    stop.store(true, Ordering::Relaxed);
    sender.join().unwrap();
    eventually("all have come", seconds(60), || {
        checker.all_promised_in(space.hits().iter().map(|hit| hit.body.as_slice())).then_some(())
    });
    let hits = space.hits();
    let verdict = checker.judge(hits.iter().map(|hit| hit.body.as_slice()));
    println!("    E1: {}", checker.summary(&verdict));
    assert!(verdict.lost.is_empty() && verdict.reordered.is_empty() && verdict.unexpected.is_empty(), "{verdict:?}");
    assert!(verdict.duplicated.is_empty(), "an orderly end repeats nothing: {:?}", verdict.duplicated);
}
