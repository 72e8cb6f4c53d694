//! P6: callers that wait for the target's answer, over two ingress pods.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::cluster::shared;
use super::space::Space;
use crate::support::http::Connection;
use crate::support::{eventually, manifest, seconds};

const CALLERS: usize = 200;
const CALLS: usize = 50;

fn apply(space: &Space) {
    let rule =
        "rules:\n- name: ask\n  path: /ask\n  storeRef: {name: box}\n  reply: {timeout: 20s}\nworkload: {replicas: 2}";
    let worker = "storeRef: {name: box}\nordering: None\nconcurrency: 16\nworkload: {replicas: 2}\n\
                  target: {serviceRef: {name: sink, port: 9090}, timeout: 5s}\n\
                  retry: {maxRedeliveries: 0, whileUnreachable: Count}\nonFailure: {action: Drop}";
    space.apply(
        &[
            manifest::store("box", "queue: {consumers: Competing}"),
            manifest::object("IngressRoute", "in", rule),
            manifest::object("ForwardingProcessor", "out", worker),
        ]
        .concat(),
    );
    space.ready("iroute", "in");
    space.ready("fwp", "out");
}

#[test]
fn p6_everyone_gets_their_own_answer_and_a_killed_ingress_pod_fails_only_its_own_callers() {
    let Some(_shared) = shared() else { return };
    let space = Space::new("callers");
    apply(&space);
    space.script(&serde_json::json!({"statuses": [422], "body": "no such account"}));
    let refused = space.post("in", "/ask", "x");
    assert_eq!((refused.status, refused.text().as_str()), (422, "no such account"));
    space.script(&serde_json::json!({"statuses": [200], "echo": true}));
    let address = space.address("in", 80);
    let (answered, cut) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let open = || eventually("a pod takes connections", seconds(20), || Connection::open(address).ok());
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let (answered, cut) = (&answered, &cut);
                scope.spawn(move || {
                    let mut connection = open();
                    for call in 0..CALLS {
                        let body = format!("{caller}/{call}");
                        loop {
                            let Ok(answer) = connection.request("POST", "/ask", &[], body.as_bytes()) else {
                                cut.fetch_add(1, Ordering::Relaxed);
                                connection = open();
                                continue;
                            };
                            assert_eq!((answer.status, answer.text()), (200, body));
                            answered.fetch_add(1, Ordering::Relaxed);
                            if answer.closes() {
                                connection = open();
                            }
                            break;
                        }
                    }
                })
            })
            .collect();
        eventually("a third of the calls are answered", seconds(120), || {
            (answered.load(Ordering::Relaxed) > CALLERS * CALLS / 3).then_some(())
        });
        let pod = space.pods("in")[0]["metadata"]["name"].as_str().unwrap().to_owned();
        space.kubectl(&["delete", "pod", &pod, "--grace-period=0", "--force"]);
        for caller in callers {
            caller.join().unwrap();
        }
    });
    let cut = cut.load(Ordering::Relaxed);
    println!("    P6: {CALLERS} callers, {} answers, {cut} cut off, {:?}", CALLERS * CALLS, begun.elapsed());
    assert_eq!(answered.load(Ordering::Relaxed), CALLERS * CALLS);
    // A connection stays with its pod: about half of them, once each.
    assert!(cut < CALLERS, "{cut} of {CALLERS} callers were cut off");
    // Without a target.
    space.kubectl(&["scale", "deployment/sink", "--replicas=0"]);
    space.until("deployment", "sink", seconds(60), |object| object["status"]["replicas"].is_null());
    let answer = space.post("in", "/ask", "x");
    assert!(answer.status == 502 || answer.status == 504, "{}", answer.text());
    assert_eq!(answer.header("content-type").as_deref(), Some("application/problem+json"));
}
