//! K4, E9, E10, D5: what others do to our children, and what is refused.

use serde_json::json;

use super::cluster::{list, run, shared};
use super::space::{Space, condition, has, line};
use crate::support::{eventually, manifest, seconds};

#[test]
fn k4_children_that_are_deleted_or_edited_are_put_back() {
    let Some(_shared) = shared() else { return };
    let space = Space::new("repair");
    space.line("");
    let map = list(&space.name, "configmaps", "app.kubernetes.io/component=forwarder")[0]["metadata"]["name"].clone();
    for (kind, name) in [
        ("deployment", "out-forwarder"),
        ("deployment", "in-ingress"),
        ("service", "in"),
        ("serviceaccount", "in-ingress"),
        ("poddisruptionbudget", "in-ingress"),
        ("configmap", map.as_str().unwrap()),
    ] {
        let before = space.get(kind, name)["metadata"]["uid"].clone();
        space.kubectl(&["delete", kind, name, "--wait=false"]);
        space.until(kind, name, seconds(30), |object| !object.is_null() && object["metadata"]["uid"] != before);
    }
    space.patch("deployment", "out-forwarder", &json!({"spec": {"replicas": 3}}));
    space.until("deployment", "out-forwarder", seconds(20), |object| object["spec"]["replicas"] == 1);
    space.patch("service", "in", &json!({"spec": {"selector": {"stagepost.dev/name": "other"}}}));
    space.until("service", "in", seconds(20), |object| object["spec"]["selector"]["stagepost.dev/name"] == "in");
    space.ready("iroute", "in");
    space.ready("fwp", "out");
    assert_eq!(space.post("in", "/in", "x").status, 202);
    space.await_hits(1, seconds(10));
    // The object gone, its children go; the queue stays.
    space.kubectl(&["delete", "iroute", "in"]);
    space.kubectl(&["delete", "fwp", "out"]);
    eventually("the children are gone", seconds(60), || {
        let left = list(
            &space.name,
            "deployments,services,configmaps,serviceaccounts,pods",
            "app.kubernetes.io/managed-by=stagepost",
        );
        left.is_empty().then_some(())
    });
    space.kubectl(&["delete", "mstore", "box"]);
    assert_eq!(space.queue(&format!("{}.box", space.name)), Some(0));
}

#[test]
fn e9_more_pods_than_order_allows_are_refused_with_the_reason() {
    let Some(_shared) = shared() else { return };
    let space = Space::new("scale");
    for spec in ["", "ordering: None\npoll: {interval: 1s}", "ordering: None\nrateLimit: {requests: 1, per: 1s}"] {
        space.apply(&line(spec));
        let printed = run("kubectl", &["scale", "-n", &space.name, "fwp/out", "--replicas=3"], "");
        assert!(!printed.ok && printed.err.contains("replicas"), "{spec}: {printed:?}");
        space.kubectl(&["delete", "fwp", "out"]);
    }
}

#[test]
fn e10_objects_of_others_that_have_a_name_of_ours_are_not_touched() {
    let Some(_shared) = shared() else { return };
    let space = Space::new("taken");
    space.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: in}\nspec: {selector: {app: theirs}, ports: [{port: 7}]}\n---\n\
         apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: out-forwarder, labels: {theirs: 'yes'}}\n",
    );
    space.apply(&line(""));
    for (kind, name, child) in [("iroute", "in", "Service `in`"), ("fwp", "out", "ServiceAccount `out-forwarder`")] {
        let object = space.until(kind, name, seconds(30), |object| has(object, "Ready", "False", "NameConflict"));
        let message = condition(&object, "Ready")["message"].as_str().unwrap().to_owned();
        assert!(message.contains(child), "{message}");
    }
    let service = space.get("service", "in");
    assert_eq!(service["spec"]["selector"], json!({"app": "theirs"}));
    assert_eq!(service["metadata"]["ownerReferences"], json!(null));
    // Out of the way, it goes on.
    space.kubectl(&["delete", "service", "in"]);
    space.kubectl(&["delete", "serviceaccount", "out-forwarder"]);
    space.ready("iroute", "in");
    space.ready("fwp", "out");
}

#[test]
fn d5_what_can_not_change_is_refused_and_an_invalid_change_leaves_what_runs() {
    let Some(_shared) = shared() else { return };
    let space = Space::new("immutable");
    space.line("");
    let change = manifest::store("box", "queue: {type: Classic}");
    let printed = run("kubectl", &["apply", "-n", &space.name, "-f", "-"], &change);
    assert!(!printed.ok && printed.err.contains("immutable"), "{printed:?}");
    // Only the controller can tell that this is no expression.
    space.patch("fwp", "out", &json!({"spec": {"ordering": "PerKey", "orderingKey": "headers['x"}}));
    let object = space.until("fwp", "out", seconds(20), |object| has(object, "Accepted", "False", "Invalid"));
    let message = condition(&object, "Accepted")["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("spec.orderingKey: "), "{message}");
    assert_eq!(space.post("in", "/in", "x").status, 202);
    space.await_hits(1, seconds(10));
    // The user's wish to stop holds all the same.
    space.patch("fwp", "out", &json!({"spec": {"suspend": true}}));
    eventually("no pod", seconds(15), || space.pods("out").is_empty().then_some(()));
}

#[test]
fn a_queue_that_exists_with_other_arguments_is_told_and_left_alone() {
    let Some(_shared) = shared() else { return };
    let space = Space::new("mismatch");
    let name = format!("{}.box", space.name);
    let declare = format!(
        "rabbit_amqqueue:declare(rabbit_misc:r(<<\"/\">>, queue, <<\"{name}\">>), true, false, [], none, <<\"test\">>)."
    );
    space.kubectl(&["exec", "deployment/rabbitmq", "--", "rabbitmqctl", "-q", "eval", &declare]);
    space.apply(&line(""));
    let store = space.until("mstore", "box", seconds(60), |object| has(object, "Ready", "False", "QueueMismatch"));
    let message = condition(&store, "Ready")["message"].as_str().unwrap().to_owned();
    assert!(message.contains(&name) && message.contains("target.storeRef"), "{message}");
    assert_eq!(space.queue(&name), Some(0));
}
