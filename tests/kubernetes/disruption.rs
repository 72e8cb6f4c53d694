//! D7: pods are evicted, their node is drained, and they are killed for the memory that they use, all of it under load.

use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::cluster::{run, shared, signal, whole};
use super::rollout::judged;
use super::space::{Space, condition, has};
use crate::support::checker::{Id, Saw};
use crate::support::http::Connection;
use crate::support::load::Load;
use crate::support::{eventually, millis, seconds};

/// What `kubectl drain` and autoscalers ask for. False: a disruption budget does not allow it now.
fn evict(space: &Space, pod: &str) -> bool {
    let namespace = &space.name;
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}).to_string();
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/eviction");
    let printed = run("kubectl", &["create", "--raw", &path, "-f", "-"], &eviction);
    assert!(printed.ok || printed.err.contains("disruption budget"), "{printed:?}");
    printed.ok
}

fn names(pods: &[Value]) -> Vec<String> {
    pods.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

/// Waits until all pods are there again, none of them one of `before`.
fn replaced(space: &Space, before: &[String]) {
    for (deployment, count) in [("in-ingress", 2), ("out-forwarder", 1)] {
        space.until("deployment", deployment, seconds(90), |object| {
            object["status"]["availableReplicas"] == count && object["status"]["replicas"] == count
        });
    }
    eventually("the pods of before are gone", seconds(90), || {
        let now = [space.pods("in"), space.pods("out")].concat();
        (!names(&now).iter().any(|name| before.contains(name))).then_some(())
    });
}

/// Every request was answered, and each of them by a 202.
#[track_caller]
fn none_failed(load: &Load) {
    let checker = load.checker();
    assert_eq!((checker.count(Saw::Fail), checker.count(Saw::Unknown)), (0, 0), "callers noticed");
}

#[test]
fn d7_evictions_under_load_are_noticed_by_no_caller_and_lose_double_and_reorder_nothing() {
    let Some(_shared) = shared() else { return };
    let space = Space::new("evicted");
    space.line("");
    let mut load = Load::start(space.address("in", 80), 4, 0, millis(10));
    for _ in 0..2 {
        let forwarder = space.pod("out");
        let ingress = names(&space.pods("in"));
        assert!(evict(&space, &forwarder));
        // The budget learns a moment later that all pods are there.
        eventually("the budget allows one", seconds(60), || evict(&space, &ingress[0]).then_some(()));
        assert!(!evict(&space, &ingress[1]), "the disruption budget keeps one");
        eventually("the budget allows the other", seconds(60), || evict(&space, &ingress[1]).then_some(()));
        replaced(&space, &[vec![forwarder], ingress].concat());
    }
    let duplicated = judged("D7, evictions", &space, &mut load);
    none_failed(&load);
    assert_eq!(duplicated, 0, "an orderly end repeats nothing");
}

/// A node that takes pods again, however the test ends.
struct Drained {
    node: String,
    drain: Child,
}

impl Drained {
    /// Moves what is ours off the node: what it runs for others is no matter of this test.
    fn start() -> Self {
        let node = run("kubectl", &["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"], "").out;
        let drain = Command::new("kubectl")
            .args(["drain", &node, "--pod-selector=stagepost.dev/name in (in,out)", "--timeout=180s"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { node, drain }
    }

    fn uncordon(&self) {
        let back = run("kubectl", &["uncordon", &self.node], "");
        assert!(back.ok || std::thread::panicking(), "{back:?}");
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        let _ = self.drain.kill();
        let _ = self.drain.wait();
        self.uncordon();
    }
}

#[test]
fn d7_while_its_node_is_drained_a_route_keeps_a_pod_and_what_waits_is_delivered_afterwards() {
    let Some(_whole) = whole() else { return };
    let space = Space::new("drained");
    space.line("");
    let before = names(&[space.pods("in"), space.pods("out")].concat());
    let mut load = Load::start(space.address("in", 80), 4, 0, millis(10));
    let mut drained = Drained::start();
    // There is no other node: what was evicted waits for one.
    let waiting = space.until("fwp", "out", seconds(60), |object| has(object, "Ready", "False", "PodNotScheduled"));
    let why = condition(&waiting, "Ready")["message"].as_str().unwrap();
    assert!(why.contains("unschedulable"), "{why}");
    space.shows("fwp", "out", "REASON", "PodNotScheduled");
    let left = space.pods("in").iter().filter(|pod| pod["status"]["phase"] == "Running").count();
    assert_eq!(left, 1, "the disruption budget keeps one");
    let told = load.checker().count(Saw::Ok);
    eventually("requests are taken by the one that is left", seconds(10), || {
        (load.checker().count(Saw::Ok) > told + 50).then_some(())
    });
    assert!(drained.drain.try_wait().unwrap().is_none(), "it waits for the budget");
    drained.uncordon();
    let ended = eventually("the node is drained", seconds(120), || drained.drain.try_wait().unwrap());
    assert!(ended.success());
    replaced(&space, &before);
    let duplicated = judged("D7, node drained", &space, &mut load);
    none_failed(&load);
    assert_eq!(duplicated, 0, "an orderly end repeats nothing");
}

#[test]
fn d7_processes_that_are_killed_under_load_lose_nothing_and_repeat_what_was_in_flight() {
    let Some(_shared) = shared() else { return };
    let space = Space::new("sigkill");
    space.line("");
    let mut load = Load::start(space.address("in", 80), 4, 0, millis(10));
    let restarts = |name: &str| space.pods(name)[0]["status"]["containerStatuses"][0]["restartCount"].clone();
    // Once each: a container that ends again soon after is not started at once.
    for name in ["out", "in"] {
        let pod = names(&space.pods(name))[0].clone();
        signal(&space.name, &pod, "KILL");
        eventually("it runs again", seconds(60), || (restarts(name) == 1).then_some(()));
        space.until("pod", &pod, seconds(60), |pod| pod["status"]["containerStatuses"][0]["ready"] == true);
        std::thread::sleep(seconds(2));
    }
    let duplicated = judged("D7, killed", &space, &mut load);
    // One in flight, and what was settled in the last 10 ms; and requests whose caller did not hear the answer.
    assert!(duplicated <= 1 + 10, "{duplicated} came twice");
    assert_eq!(load.checker().count(Saw::Fail), 0);
}

/// Of the messages that do not fit.
const LARGE: usize = 200_000;
const LARGE_ONES: u32 = 60;

#[test]
fn d7_a_worker_that_is_killed_for_its_memory_says_so_and_loses_nothing_and_goes_on_with_more() {
    let Some(_shared) = shared() else { return };
    let space = Space::new("memory");
    let limit = |limit: &str| json!({"spec": {"workload": {"resources": {"limits": {"memory": limit}}}}});
    space.line("suspend: true");
    space.patch("fwp", "out", &limit("12Mi"));
    // What it takes ahead is more than it may use.
    let checker = crate::support::checker::Checker::default();
    let mut connection = Connection::open(space.address("in", 80)).unwrap();
    for number in 0..LARGE_ONES {
        let id = Id { sender: 9, number };
        let body = format!(r#"{{"sender":9,"number":{number},"pad":"{}"}}"#, "x".repeat(LARGE));
        assert_eq!(connection.request("POST", "/in", &[], body.as_bytes()).unwrap().status, 202);
        checker.saw(id, Saw::Ok);
    }
    // It must not empty the queue before it has taken much.
    space.script(&json!({"delay": "200ms"}));
    space.patch("fwp", "out", &json!({"spec": {"suspend": false}}));
    let killed = space.until("fwp", "out", seconds(120), |object| {
        condition(object, "Ready")["message"].as_str().is_some_and(|message| message.contains("OOMKilled"))
    });
    assert!(has(&killed, "Ready", "False", "PodNotStarted"), "{killed:#}");
    let restarts = || {
        let pods = space.pods("out");
        pods.first().map_or(0, |pod| pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(0))
    };
    let deaths = restarts() + 1;
    space.patch("fwp", "out", &limit("512Mi"));
    space.script(&json!({"delay": "0s"}));
    // What the target got is much: it is asked for once.
    let queue = format!("{}.box", space.name);
    eventually("all are delivered", seconds(120), || (space.queue(&queue) == Some(0)).then_some(()));
    let hits = space.hits();
    let verdict = checker.judge(hits.iter().map(|hit| hit.body.as_slice()));
    println!("    D7, out of memory {deaths} times: {}", checker.summary(&verdict));
    assert!(verdict.lost.is_empty() && verdict.reordered.is_empty() && verdict.unexpected.is_empty(), "{verdict:?}");
    let duplicated: usize = verdict.duplicated.values().map(|times| times - 1).sum();
    assert!(duplicated as u64 <= 2 * deaths, "{duplicated} came twice");
    space.ready("fwp", "out");
    space.shows("fwp", "out", "REASON", "Delivering");
}
