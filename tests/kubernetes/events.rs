//! A13, A15: Events that tell of messages: those that went with their queue, and those at which workers die.

use serde_json::json;

use super::cluster::{shared, signal};
use super::space::{Space, condition, has, is, line};
use crate::support::{eventually, manifest, seconds};

#[test]
fn a13_a_queue_that_vanished_is_declared_again_and_that_is_told_once() {
    let Some(_shared) = shared() else { return };
    let space = Space::new("vanished");
    space.line("");
    // Nobody uses this one but the controller, which looks at it.
    space.apply(&manifest::store("idle", ""));
    space.ready("mstore", "idle");
    let queue = |store: &str| format!("{}.{store}", space.name);
    let since =
        |store: &str| space.get("mstore", store)["status"]["queue"]["since"].as_str().unwrap_or_default().to_owned();
    eventually("they are known to be there", seconds(30), || {
        (!since("box").is_empty() && !since("idle").is_empty()).then_some(())
    });
    // What is found missing right after it was made may be the word of one who was late.
    std::thread::sleep(seconds(6));
    let told = |store: &str, times: usize| {
        let notes = eventually("it is told", seconds(90), || {
            let notes = space.events("QueueRecreated", store);
            (notes.len() >= times).then_some(notes)
        });
        assert_eq!(notes.len(), times, "{notes:?}");
        let name = queue(store);
        assert!(notes.iter().all(|note| note.contains(&name) && note.contains("what was in it is lost")), "{notes:?}");
    };
    for store in ["box", "idle"] {
        let before = since(store);
        space.kubectl(&["exec", "deployment/rabbitmq", "--", "rabbitmqctl", "-q", "delete_queue", &queue(store)]);
        eventually("it is there again", seconds(60), || space.queue(&queue(store)));
        told(store, 1);
        assert!(since(store) > before, "{} {before}", since(store));
        space.ready("mstore", store);
    }
    // A broker that comes back without its data.
    std::thread::sleep(seconds(6));
    space.kubectl(&["rollout", "restart", "deployment/rabbitmq"]);
    space.await_deployment("rabbitmq");
    told("box", 2);
    told("idle", 2);
    for (kind, name) in [("mstore", "box"), ("iroute", "in"), ("fwp", "out")] {
        space.ready(kind, name);
    }
    assert_eq!(space.post("in", "/in", "afterwards").status, 202);
    assert_eq!(space.await_hits(1, seconds(10))[0].text(), "afterwards");
}

#[test]
fn a15_a_message_at_which_its_worker_dies_again_and_again_is_named_until_it_has_an_outcome() {
    let Some(_shared) = shared() else { return };
    let space = Space::new("poison");
    space.line("");
    // An attempt lasts until its worker is killed.
    space.apply(&line("").replace("path: /target}}", "path: /target}, timeout: 2m}"));
    space.until("fwp", "out", seconds(60), |object| is(object, "Ready", "True"));
    space.script(&json!({"delay": "60s"}));
    let id = space.post("in", "/in", "poison").header("stagepost-message-id").unwrap();
    assert_eq!(space.post("in", "/in", "behind it").status, 202);
    for death in 1..=5 {
        space.await_hits(death, seconds(60));
        // By its pod: a container that ends again and again is started later and later.
        space.kubectl(&["delete", "pod", &space.pod("out"), "--grace-period=0", "--force"]);
    }
    // Each of them may have been an accident.
    space.await_hits(6, seconds(60));
    assert_eq!(space.events("PoisonSuspected", "out"), Vec::<String>::new());
    let pod = space.pod("out");
    signal(&space.name, &pod, "KILL");
    let suspected = space.until("fwp", "out", seconds(30), |object| has(object, "Degraded", "True", "PoisonSuspected"));
    let message = condition(&suspected, "Degraded")["message"].as_str().unwrap().to_owned();
    assert!(message.contains(&id) && message.contains("nothing is lost"), "{message}");
    space.shows("fwp", "out", "REASON", "PoisonSuspected");
    // So does `kubectl describe pod`, once the next container runs.
    space.until("pod", &pod, seconds(60), |pod| {
        let ended = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["message"];
        ended.as_str().is_some_and(|ended| ended.contains(&id))
    });
    // It goes on being what it dies of, and is told once.
    space.await_hits(7, seconds(60));
    signal(&space.name, &pod, "KILL");
    space.until("pod", &pod, seconds(60), |pod| pod["status"]["containerStatuses"][0]["restartCount"] == 2);
    assert_eq!(space.events("PoisonSuspected", "out"), [message]);
    // The target is repaired: it has its outcome, and the one behind it comes.
    space.script(&json!({"delay": "0s"}));
    let hits = eventually("both are delivered", seconds(150), || {
        Some(space.hits()).filter(|hits| hits.last().is_some_and(|hit| hit.text() == "behind it"))
    });
    assert!(hits[..hits.len() - 1].iter().all(|hit| hit.text() == "poison"), "it stays first");
    space.until("fwp", "out", seconds(30), |object| has(object, "Degraded", "False", "AsExpected"));
    space.shows("fwp", "out", "REASON", "Delivering");
    assert_eq!(space.events("PoisonSuspected", "out").len(), 1);
}
