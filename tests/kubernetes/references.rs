//! K5: what an object names and is not there is told by its name, and found when it comes.

use super::cluster::shared;
use super::space::{Space, condition, is};
use crate::support::{manifest, seconds};

#[track_caller]
fn misses(space: &Space, kind: &str, name: &str, what: &str) {
    let object = space.until(kind, name, seconds(40), |object| {
        let message = condition(object, "ResolvedRefs")["message"].as_str().unwrap_or_default();
        is(object, "ResolvedRefs", "False") && message.contains(what)
    });
    assert!(is(&object, "Ready", "False"), "{object:#}");
}

#[test]
fn k5_a_missing_store_secret_key_or_port_is_named_and_found_within_a_minute_of_its_coming() {
    let Some(_shared) = shared() else { return };
    let space = Space::empty("missing");
    let target =
        "target:\n  serviceRef: {name: sink, port: 9090}\n  auth: {bearer: {secretRef: {name: token, key: value}}}";
    space.apply(
        &[
            manifest::route("in", "/in", "box"),
            manifest::object("ForwardingProcessor", "out", &format!("storeRef: {{name: box}}\n{target}")),
        ]
        .concat(),
    );
    misses(&space, "iroute", "in", "`box`");
    misses(&space, "fwp", "out", "`box`");
    space.apply(&manifest::store("box", ""));
    misses(&space, "mstore", "box", "Secret `rabbitmq`");
    misses(&space, "iroute", "in", "Secret `rabbitmq`");
    space.broker();
    misses(&space, "fwp", "out", "Secret `token`");
    space.apply("apiVersion: v1\nkind: Secret\nmetadata: {name: token}\nstringData: {other: x}\n");
    misses(&space, "fwp", "out", "has no key value");
    space.apply("apiVersion: v1\nkind: Secret\nmetadata: {name: token}\nstringData: {value: t0ken}\n");
    misses(&space, "fwp", "out", "Service `sink`");
    assert!(space.pods("out").is_empty(), "no pod before its Secrets and its target are there");
    space.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: sink}\nspec: {selector: {app: sink}, ports: [{port: 80}]}\n",
    );
    misses(&space, "fwp", "out", "no port 9090, but 80");
    space.target();
    for (kind, name) in [("mstore", "box"), ("iroute", "in"), ("fwp", "out")] {
        space.ready(kind, name);
    }
    assert_eq!(space.post("in", "/in", "x").status, 202);
    let hits = space.await_hits(1, seconds(10));
    assert_eq!(hits[0].header("authorization").as_deref(), Some("Bearer t0ken"));
}

#[test]
fn a_cluster_of_the_rabbitmq_operator_is_found_by_its_default_user() {
    let Some(_shared) = shared() else { return };
    let space = Space::new("operator");
    space.apply(
        &[
            manifest::object("MessageStore", "box", "broker:\n  clusterRef: {name: rabbit}\nqueue: {}"),
            manifest::route("in", "/in", "box"),
        ]
        .concat(),
    );
    misses(&space, "mstore", "box", "`rabbit-default-user`");
    let host = format!("rabbitmq.{}.svc", space.name);
    // As the operator writes it.
    space.apply(&format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: rabbit-default-user}}\nstringData:\n  \
         connection_string: amqp://stagepost:p%40ss%2Fw%25rd@{host}:5672/\n  host: {host}\n  port: '5672'\n  \
         username: stagepost\n  password: p@ss/w%rd\n  provider: rabbitmq\n  type: rabbitmq\n"
    ));
    space.ready("mstore", "box");
    space.ready("iroute", "in");
    assert_eq!(space.post("in", "/in", "x").status, 202);
}
