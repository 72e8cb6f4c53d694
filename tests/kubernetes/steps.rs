//! D1: a controller that dies at each of its writes, before and after it. And what one of many objects costs.

use std::time::Instant;

use serde_json::json;

use super::apart::{Apart, Death};
use super::cluster::{get, list, whole};
use super::space::{Space, is, line};
use crate::support::{eventually, http, is_full, manifest, millis, seconds};

/// Lives of a controller: each ends one write later than the one before, until one has nothing to write any more.
/// Answers how many have ended early.
fn die_at_every_write(apart: &Apart, space: &Space, done: impl Fn() -> bool) -> usize {
    let mut deaths = 0;
    for write in 1.. {
        let death = if deaths % 2 == 0 { Death::Before(write) } else { Death::After(write) };
        let mut controller = apart.controller(&space.name, death);
        let born = Instant::now();
        loop {
            if controller.is_dead() {
                deaths += 1;
                break;
            }
            // It has looked at everything, and there is nothing to do.
            if born.elapsed() > seconds(4) && done() {
                return deaths;
            }
            assert!(born.elapsed() < seconds(60), "a controller neither wrote nor was done");
            std::thread::sleep(millis(10));
        }
        assert!(deaths < 100, "it never ends");
    }
    deaths
}

/// Two minutes in which nothing happens, once it has been silent for a while: not one write.
fn idles(apart: &Apart, space: &Space) {
    let _controller = apart.controller(&space.name, Death::Never);
    let writes =
        || -> Vec<String> { apart.requests().into_iter().filter(|request| !request.starts_with("GET ")).collect() };
    eventually("nothing is to be written", seconds(60), || {
        std::thread::sleep(seconds(12));
        writes().is_empty().then_some(())
    });
    std::thread::sleep(seconds(120));
    let written = writes();
    assert!(written.is_empty(), "written though nothing changed: {written:#?}");
}

#[test]
fn d1_a_controller_that_dies_at_each_of_its_writes_comes_to_the_same_end() {
    let Some(_whole) = whole() else { return };
    let space = Space::new("steps");
    let apart = Apart::start();
    space.apply(&line("retry: {maxRedeliveries: -1, maxInterval: 2s}"));
    let is_ready = |kind: &str, name: &str| is(&get(&space.name, kind, name), "Ready", "True");
    let all_ready = || is_ready("mstore", "box") && is_ready("iroute", "in") && is_ready("fwp", "out");
    let made = die_at_every_write(&apart, &space, all_ready);
    idles(&apart, &space);
    let count = |kind: &str| list(&space.name, kind, "app.kubernetes.io/managed-by=stagepost").len();
    let children = || ["deployments", "services", "serviceaccounts", "configmaps", "poddisruptionbudgets"].map(count);
    assert_eq!(children(), [2, 1, 2, 2, 1]);
    // What is stored waits while all of this goes on.
    let queue = format!("{}.box", space.name);
    space.answers(&[503]);
    assert_eq!(space.post("in", "/in", "before").status, 202);
    space.await_hits(1, seconds(10));
    space.patch("iroute", "in", &json!({"spec": {"workload": {"replicas": 1}, "limits": {"maxInFlight": 7}}}));
    space.patch("fwp", "out", &json!({"spec": {"response": {"log": "Body"}}}));
    let changed = die_at_every_write(&apart, &space, || {
        all_ready() && get(&space.name, "deployment", "in-ingress")["spec"]["replicas"] == 1 && count("configmaps") == 2
    });
    assert_eq!(children(), [2, 1, 2, 2, 0], "a new plan for each, and no disruption budget for one replica");
    assert_eq!(space.queue(&queue), Some(1), "the message waits in its queue");
    space.answers(&[200]);
    eventually("it is delivered", seconds(30), || (space.queue(&queue) == Some(0)).then_some(()));
    assert_eq!(space.hits().last().unwrap().text(), "before");
    // One more, which outlives the objects.
    space.answers(&[503]);
    assert_eq!(space.post("in", "/in", "left behind").status, 202);
    eventually("it is in its queue", seconds(30), || (space.queue(&queue) == Some(1)).then_some(()));
    space.kubectl(&["delete", "fwp/out", "iroute/in", "mstore/box", "--wait=false"]);
    let gone = || list(&space.name, "stagepost", "").is_empty();
    let removed = die_at_every_write(&apart, &space, gone);
    eventually("nothing is left", seconds(60), || (children() == [0; 5]).then_some(()));
    println!(
        "    D1: {made} deaths while it made everything, {changed} while it changed it, {removed} while it removed it"
    );
    assert!(made > 10 && changed > 6, "{made} {changed} {removed}");
    assert_eq!(space.queue(&queue), Some(1), "no step deletes a queue with a message in it");
    space.answers(&[200]);
    space.apply(&line(""));
    let _controller = apart.controller(&space.name, Death::Never);
    eventually("it is delivered", seconds(60), || (space.queue(&queue) == Some(0)).then_some(()));
    assert_eq!(space.hits().last().unwrap().text(), "left behind");
}

/// Objects of each kind.
const OBJECTS: usize = 100;

#[test]
fn what_three_hundred_objects_cost() {
    if !is_full() {
        return;
    }
    let Some(_whole) = whole() else { return };
    let space = Space::new("many");
    let apart = Apart::start();
    let mut yaml = String::new();
    for number in 0..OBJECTS {
        let (store, route) = (format!("s{number}"), format!("r{number}"));
        // No pods: one node would not hold them.
        let rule =
            format!("rules:\n- {{name: post, path: /in, storeRef: {{name: {store}}}}}\nworkload: {{replicas: 0}}");
        yaml += &manifest::store(&store, "queue: {type: Classic}");
        yaml += &manifest::object("IngressRoute", &route, &rule);
        yaml += &manifest::processor(&format!("p{number}"), &store, "http://sink:9090/", "suspend: true");
    }
    space.apply(&yaml);
    let ready = || {
        ["mstore", "iroute", "fwp"].iter().all(|kind| {
            let all = list(&space.name, kind, "");
            all.len() == OBJECTS && all.iter().all(|object| is(object, "Ready", "True"))
        })
    };
    let resident = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    };
    for what in ["made", "found as they should be"] {
        apart.requests();
        let begun = Instant::now();
        let controller = apart.controller(&space.name, Death::Never);
        let answers =
            || http::once(controller.listen, "GET", "/readyz", &[], b"").is_ok_and(|answer| answer.status == 200);
        eventually("it is ready", seconds(30), || answers().then_some(()));
        eventually("all are ready", seconds(300), || ready().then_some(()));
        // Until it has been silent for a while.
        let mut last = begun.elapsed();
        let mut requests = apart.requests();
        eventually("it has nothing to do", seconds(300), || {
            std::thread::sleep(seconds(5));
            let new: Vec<_> = apart.requests().into_iter().filter(|request| !request.contains("watch=")).collect();
            let is_silent = new.is_empty();
            if !is_silent {
                last = begun.elapsed();
            }
            requests.extend(new);
            is_silent.then_some(())
        });
        println!(
            "    {} objects {what}: {last:.0?} and {} requests, {} MiB",
            3 * OBJECTS,
            requests.len(),
            resident(controller.pid())
        );
        if what != "made" {
            std::thread::sleep(seconds(120));
            let idle = apart.requests();
            let writes: Vec<_> = idle.iter().filter(|request| !request.starts_with("GET ")).collect();
            println!(
                "    two idle minutes: {} requests, {} of them writes, {} MiB",
                idle.len(),
                writes.len(),
                resident(controller.pid())
            );
            assert!(writes.is_empty(), "{writes:#?}");
        }
    }
}
