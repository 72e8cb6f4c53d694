//! D4: Secrets change while messages flow.

use serde_json::json;

use super::cluster::shared;
use super::space::Space;
use crate::support::{eventually, manifest, seconds};

#[test]
fn d4_a_changed_token_and_a_changed_password_are_used_within_90_seconds_without_a_restart() {
    let Some(_shared) = shared() else { return };
    let space = Space::new("rotation");
    space.apply("apiVersion: v1\nkind: Secret\nmetadata: {name: token}\nstringData: {value: old}\n");
    let spec = "storeRef: {name: box}\ntarget:\n  serviceRef: {name: sink, port: 9090}\n  auth: {bearer: {secretRef: {name: token, key: value}}}";
    space.apply(
        &[
            manifest::store("box", ""),
            manifest::route("in", "/in", "box"),
            manifest::object("ForwardingProcessor", "out", spec),
        ]
        .concat(),
    );
    space.ready("iroute", "in");
    space.ready("fwp", "out");
    let pods = |space: &Space| -> Vec<_> {
        [space.pods("out"), space.pods("in")].concat().iter().map(|pod| pod["metadata"]["uid"].clone()).collect()
    };
    let before = pods(&space);
    let send = || {
        let count = space.hits().len();
        assert_eq!(space.post("in", "/in", "x").status, 202);
        space.await_hits(count + 1, seconds(30)).last().unwrap().header("authorization").unwrap()
    };
    assert_eq!(send(), "Bearer old");
    space.patch("secret", "token", &json!({"stringData": {"value": "new"}}));
    // The broker's password changes with its Secret, and the broker is made to ask for it.
    space.kubectl(&[
        "exec",
        "deployment/rabbitmq",
        "--",
        "rabbitmqctl",
        "-q",
        "change_password",
        "stagepost",
        "another",
    ]);
    space.patch("secret", "rabbitmq", &json!({"stringData": {"password": "another"}}));
    eventually("the new token is used", seconds(90), || (send() == "Bearer new").then_some(()));
    space.kubectl(&["exec", "deployment/rabbitmq", "--", "rabbitmqctl", "-q", "close_all_connections", "rotated"]);
    // Each pod gets the new files when its kubelet looks.
    eventually("all pods take messages with the new password", seconds(90), || {
        (0..20).all(|_| space.post("in", "/in", "x").status == 202).then_some(())
    });
    space.until("fwp", "out", seconds(60), |object| object["status"]["backlog"] == 0);
    assert_eq!(send(), "Bearer new");
    let mut after = pods(&space);
    let mut sorted = before;
    sorted.sort_by_key(ToString::to_string);
    after.sort_by_key(ToString::to_string);
    assert_eq!(sorted, after, "a pod was restarted");
}
