//! K8, D6: everything can be deleted, in any order, and what is worth keeping is kept.

use super::cluster::{SYSTEM, run, shared, whole};
use super::space::Space;
use crate::support::{eventually, manifest, seconds};

#[test]
fn d6_a_queue_with_messages_is_kept_and_an_empty_one_goes_with_its_store() {
    let Some(_shared) = shared() else { return };
    let space = Space::new("delete");
    for name in ["full", "empty"] {
        space.apply(
            &[manifest::store(name, "deletionPolicy: Delete"), manifest::route(&format!("to-{name}"), "/in", name)]
                .concat(),
        );
        space.ready("mstore", name);
        space.ready("iroute", &format!("to-{name}"));
    }
    for _ in 0..5 {
        assert_eq!(space.post("to-full", "/in", "x").status, 202);
    }
    let queue = |name: &str| space.queue(&format!("{}.{name}", space.name));
    eventually("they are there", seconds(15), || (queue("full") == Some(5)).then_some(()));
    // A store that is still used is not touched; its users are told.
    space.kubectl(&["delete", "iroute", "to-full", "to-empty"]);
    space.kubectl(&["delete", "mstore", "full", "empty", "--timeout=60s"]);
    assert_eq!(queue("full"), Some(5));
    assert_eq!(queue("empty"), None);
    let events = space.kubectl(&[
        "get",
        "events",
        "--field-selector",
        "reason=QueueKept",
        "-o",
        "jsonpath={.items[*].note}{.items[*].message}",
    ]);
    assert!(events.contains("messages: 5"), "{events}");
}

#[test]
fn k8_objects_go_though_their_broker_secret_or_store_went_first() {
    let Some(_shared) = shared() else { return };
    let space = Space::new("orphans");
    space.line("");
    space.apply(&manifest::store("gone", "deletionPolicy: Delete"));
    space.ready("mstore", "gone");
    space.kubectl(&["delete", "deployment", "rabbitmq"]);
    space.kubectl(&["delete", "mstore", "box"]);
    space.kubectl(&["delete", "secret", "rabbitmq"]);
    space.kubectl(&["delete", "fwp", "out", "--timeout=60s"]);
    space.kubectl(&["delete", "mstore", "gone", "--timeout=60s"]);
    space.kubectl(&["delete", "iroute", "in", "--timeout=60s"]);
}

#[test]
fn k8_a_namespace_goes_with_all_that_is_in_it() {
    let Some(_shared) = shared() else { return };
    let space = Space::new("namespace");
    space.line("");
    space.apply(&manifest::store("more", "deletionPolicy: Delete"));
    space.ready("mstore", "more");
    let printed = run("kubectl", &["delete", "namespace", &space.name, "--timeout=120s"], "");
    assert!(printed.ok, "{printed:?}");
}

#[test]
fn k8_the_chart_is_upgraded_and_uninstalled_and_deliveries_go_on() {
    let Some(_whole) = whole() else { return };
    let space = Space::new("uninstall");
    space.line("");
    super::cluster::helm_install(&["--set", "controller.replicas=2"]);
    assert_eq!(super::cluster::controllers().len(), 2);
    let printed = run("helm", &["test", "stagepost", "-n", SYSTEM, "--timeout", "60s"], "");
    assert!(printed.ok, "{printed:?}");
    let printed = run("helm", &["uninstall", "stagepost", "-n", SYSTEM, "--wait", "--timeout", "120s"], "");
    assert!(printed.ok, "{printed:?}");
    // Nobody is there who could remove a finalizer; the workers do not mind.
    assert_eq!(space.post("in", "/in", "without a controller").status, 202);
    space.await_hits(1, seconds(10));
    space.kubectl(&["delete", "fwp", "out", "--timeout=20s"]);
    space.kubectl(&["delete", "mstore", "box", "--timeout=20s"]);
    // Kept, so that an upgrade or a mistake deletes no object.
    assert!(run("kubectl", &["get", "crd", "messagestores.stagepost.dev"], "").ok);
    super::cluster::helm_install(&[]);
    space.ready("iroute", "in");
}
