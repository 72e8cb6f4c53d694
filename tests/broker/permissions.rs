//! The permissions that `docs/rabbitmq.md` tells people to give.

use super::common::{Share, connected, shared};
use crate::support::{Recorder, Reply, Setup, manifest, seconds};

/// The page's command, for another namespace; its patterns are the contract.
fn grant(share: &Share, user: &str) {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/rabbitmq.md")).unwrap();
    let (_, command) = page.split_once("rabbitmqctl set_permissions").unwrap();
    let (command, _) = command.split_once("```").unwrap();
    let patterns: Vec<String> =
        command.split('\'').skip(1).step_by(2).map(|pattern| pattern.replace("shop", "default")).collect();
    assert_eq!(patterns.len(), 3, "{command}");
    share.rabbit.ctl(&["add_user", user, "secret"]);
    share.rabbit.ctl(&["set_permissions", "-p", &share.name, user, &patterns[0], &patterns[1], &patterns[2]]);
}

#[test]
fn a_user_with_the_documented_permissions_and_no_more_is_enough() {
    let Some(share) = shared() else { return };
    let user = format!("user-{}", share.name);
    grant(&share, &user);
    let target = Recorder::answering(|hit| Reply::status(if hit.text() == "bad" { 400 } else { 200 }));
    let rules = "rules:\n- {name: post, path: /in, storeRef: {name: box}, routingKey: \"{{ headers['x-key'] }}\"}";
    let asks = "rules:\n- {name: ask, path: /ask, storeRef: {name: calls}, reply: {timeout: 20s}}";
    let yaml = [
        manifest::store("calls", "queue: {}"),
        manifest::object("IngressRoute", "asks", asks),
        manifest::processor("answers", "calls", &target.url(), ""),
        manifest::store(
            "box",
            "queue: {}\nexchange: {name: orders, type: Topic}\nbindings: [\"eu.*\"]\nroutingKey: eu.x",
        ),
        manifest::object("IngressRoute", "in", rules),
        manifest::processor("out", "box", &target.url(), ""),
        manifest::store("other", "queue: {}"),
        manifest::route("stop", "/stop", "other"),
        manifest::processor("stops", "other", &target.url(), "onFailure: {action: Deactivate}"),
    ];
    let uri = share.uri.replacen("guest:guest", &format!("{user}:secret"), 1);
    let run = Setup::manifests(yaml.concat()).arg("--amqp").arg(&uri).start();
    connected(&run, "box");
    connected(&run, "other");
    for body in ["good", "bad"] {
        assert_eq!(run.post("/in", &[("x-key", "eu.de")], body).status, 202);
    }
    let status = run.await_status("ForwardingProcessor", "out", seconds(15), |status| status["deadLettered"] == 1);
    assert_eq!(status["deadLetter"]["messages"], 1, "{status:#}");
    assert_eq!(run.post("/stop", &[], "bad").status, 202);
    run.await_state("stops", "Deactivated", seconds(15));
    run.reactivate("stops");
    target.await_hits(4, seconds(10));
    connected(&run, "calls");
    assert_eq!(run.post("/ask", &[], "good").status, 200);
    assert!(!run.log().iter().any(|line| line.contains("ACCESS_REFUSED")), "{:#?}", run.log());
}

#[test]
fn a_queue_whose_claim_the_permissions_do_not_cover_is_consumed_all_the_same_and_it_is_said() {
    let Some(share) = shared() else { return };
    let user = format!("narrow-{}", share.name);
    share.rabbit.ctl(&["add_user", &user, "secret"]);
    let own = "^(orders$|default\\.|stagepost\\.default\\.|amq\\.default$)";
    share.rabbit.ctl(&["set_permissions", "-p", &share.name, &user, own, own, own]);
    let target = Recorder::start();
    let yaml = [
        manifest::store("box", "queue: {name: orders}"),
        manifest::route("in", "/in", "box"),
        manifest::processor("out", "box", &target.url(), ""),
    ];
    let uri = share.uri.replacen("guest:guest", &format!("{user}:secret"), 1);
    let run = Setup::manifests(yaml.concat()).arg("--amqp").arg(&uri).start();
    connected(&run, "box");
    assert_eq!(run.post("/in", &[], "x").status, 202);
    target.await_hits(1, seconds(10));
    run.await_log(&["stagepost.orders.taking", "permission"], seconds(5));
}
