//! K6, D1, D2, D3, E6, E7: the controller dies, waits, is many; the API server goes; nobody loses a message by it.

use serde_json::json;

use super::cluster::{
    SYSTEM, await_controller, controllers, get, helm_install, kill_controller, run, shared, signal, whole,
};
use super::space::{Space, condition, is, line};
use crate::support::{eventually, is_full, millis, seconds};

#[test]
fn k6_a_controller_that_is_killed_at_any_moment_leaves_everything_as_it_should_be_in_the_end() {
    let Some(_whole) = whole() else { return };
    let space = Space::new("crashes");
    let mut random = crate::support::Random::new();
    space.apply(&line(""));
    for round in 0..5 {
        // In the middle of whatever it does about this.
        space.patch("iroute", "in", &json!({"spec": {"workload": {"podAnnotations": {"round": round.to_string()}}}}));
        space.patch(
            "fwp",
            "out",
            &json!({"spec": {"concurrency": 1, "response": {"log": if round % 2 == 0 { "None" } else { "Body" }}}}),
        );
        std::thread::sleep(millis(random.between(1, 800)));
        kill_controller();
    }
    space.ready("iroute", "in");
    space.ready("fwp", "out");
    assert_eq!(space.post("in", "/in", "x").status, 202);
    space.await_hits(1, seconds(10));
    eventually("old plans are removed", seconds(30), || {
        let maps = super::cluster::list(&space.name, "configmaps", "app.kubernetes.io/managed-by=stagepost");
        (maps.len() == 2).then_some(())
    });
}

#[test]
fn d3_of_two_controllers_one_acts_and_the_other_takes_over_within_20_seconds() {
    let Some(_whole) = whole() else { return };
    let space = Space::new("leader");
    helm_install(&["--set", "controller.replicas=2"]);
    let holder = || {
        get(SYSTEM, "lease", "stagepost-controller")["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
    };
    let first =
        eventually("somebody leads", seconds(30), || Some(holder()).filter(|holder| controllers().contains(holder)));
    space.apply(&line(""));
    space.ready("iroute", "in");
    // Stopped as a paused machine would stop it: its lease runs out.
    signal(SYSTEM, &first, "STOP");
    let paused = std::time::Instant::now();
    let second = eventually("the other leads", seconds(20), || Some(holder()).filter(|holder| *holder != first));
    println!("    D3: taken over after {:.1?}", paused.elapsed());
    space.patch("iroute", "in", &json!({"spec": {"workload": {"replicas": 1}}}));
    space.until("deployment", "in-ingress", seconds(20), |object| object["spec"]["replicas"] == 1);
    signal(SYSTEM, &first, "CONT");
    std::thread::sleep(seconds(5));
    assert_eq!(holder(), second, "the one that was paused does no harm");
    assert_eq!(space.get("deployment", "in-ingress")["spec"]["replicas"], 1);
    helm_install(&["--set", "controller.replicas=1"]);
}

/// Brings the API server back, however the test ends.
struct Back(String);

impl Drop for Back {
    fn drop(&mut self) {
        assert!(run(&self.0, &["apiserver", "start"], "").ok);
    }
}

#[test]
fn d2_while_the_api_server_is_away_messages_are_taken_and_delivered() {
    let Some(_whole) = whole() else { return };
    if std::env::var("STAGEPOST_TEST_CLUSTER").unwrap() != "own" {
        return;
    }
    let space = Space::new("apiserver");
    space.line("");
    let (ingress, sink) = (space.address("in", 80), space.address("sink", 9090));
    let script = super::cluster::file("tests/cluster/cluster").display().to_string();
    let back = Back(script.clone());
    let before = space.pods("out")[0]["metadata"]["uid"].clone();
    assert!(run(&script, &["apiserver", "stop"], "").ok);
    // Half a minute, or five.
    let count = if is_full() { 600 } else { 60 };
    for number in 0..count {
        let mut connection = crate::support::http::Connection::open(ingress).unwrap();
        let answer = connection.request("POST", "/in", &[], number.to_string().as_bytes()).unwrap();
        assert_eq!(answer.status, 202);
        std::thread::sleep(millis(500));
    }
    let mut connection = crate::support::http::Connection::open(sink).unwrap();
    let hits = connection.request("GET", "/__hits", &[], b"").unwrap().json();
    assert_eq!(hits.as_array().unwrap().len(), count);
    drop(back);
    await_controller();
    space.until("fwp", "out", seconds(60), |object| object["status"]["delivered"] == count);
    space.ready("fwp", "out");
    assert_eq!(space.pods("out")[0]["metadata"]["uid"], before, "the worker was not replaced");
    // It acts again.
    space.patch("fwp", "out", &json!({"spec": {"suspend": true}}));
    eventually("no pod", seconds(30), || space.pods("out").is_empty().then_some(()));
}

#[test]
fn e6_while_a_new_plan_can_not_start_the_old_pods_run_the_old_plan_also_after_a_restart() {
    let Some(_shared) = shared() else { return };
    let space = Space::new("stuck");
    space.line("");
    space.patch(
        "iroute",
        "in",
        &json!({"spec": {"workload": {"nodeSelector": {"no-such": "node"}}, "rules": [
            {"name": "post", "path": "/new", "storeRef": {"name": "box"}}]}}),
    );
    let stuck = space.until("iroute", "in", seconds(30), |object| is(object, "Ready", "False"));
    assert!(
        ["Progressing", "PodNotScheduled"].contains(&condition(&stuck, "Ready")["reason"].as_str().unwrap()),
        "{stuck:#}"
    );
    for pod in space.pods("in").iter().filter(|pod| pod["status"]["phase"] == "Running") {
        space.kubectl(&["delete", "pod", pod["metadata"]["name"].as_str().unwrap(), "--grace-period=0", "--force"]);
    }
    eventually("the old rule is served", seconds(60), || {
        let mut connection = crate::support::http::Connection::open(space.address("in", 80)).ok()?;
        let answer = connection.request("POST", "/in", &[], b"x").ok()?;
        (answer.status == 202).then_some(())
    });
    let why =
        space.until("iroute", "in", seconds(30), |object| condition(object, "Ready")["reason"] == "PodNotScheduled");
    assert!(condition(&why, "Ready")["message"].as_str().unwrap().contains("not scheduled"), "{why:#}");
}

#[test]
fn e7_numbers_and_conditions_do_not_delete_each_other_and_nothing_is_written_when_nothing_changes() {
    let Some(_shared) = shared() else { return };
    let space = Space::new("writers");
    space.line("");
    for round in 0..4 {
        assert_eq!(space.post("in", "/in", "x").status, 202);
        space.patch("fwp", "out", &json!({"metadata": {"annotations": {"round": round.to_string()}}}));
        let object = space.until("fwp", "out", seconds(15), |object| object["status"]["delivered"] == round + 1);
        assert_eq!(object["status"]["conditions"].as_array().unwrap().len(), 8, "{object:#}");
        assert!(!object["status"]["state"].is_null() && !object["status"]["backlog"].is_null(), "{object:#}");
    }
    std::thread::sleep(seconds(12));
    let version = |kind: &str, name: &str| space.get(kind, name)["metadata"]["resourceVersion"].clone();
    let all = [("mstore", "box"), ("iroute", "in"), ("fwp", "out"), ("deployment", "in-ingress")];
    let before: Vec<_> = all.iter().map(|(kind, name)| version(kind, name)).collect();
    std::thread::sleep(seconds(30));
    let after: Vec<_> = all.iter().map(|(kind, name)| version(kind, name)).collect();
    assert_eq!(before, after, "something was written though nothing changed");
}
