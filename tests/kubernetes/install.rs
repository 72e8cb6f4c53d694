//! K1, K2, K3: installed by the chart, an example applied, numbers in the status, pods that may nothing.

use serde_json::{Value, json};

use super::cluster::{file, kubectl, list, run, shared};
use super::space::Space;
use crate::support::seconds;

/// Everything under a folder of `examples/`, in this namespace.
fn apply_example(space: &Space, name: &str) {
    space.apply(&std::fs::read_to_string(file(&format!("examples/{name}/stagepost.yaml"))).unwrap());
}

#[test]
fn k1_k2_the_payment_desk_is_ready_within_a_minute_and_its_numbers_are_right_within_15_seconds() {
    let Some(_shared) = shared() else { return };
    let space = Space::empty("payments");
    apply_example(&space, "payment-desk");
    space.broker();
    space.target();
    // The example names its target by a Service of this name and port.
    space.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: settlement}\nspec: {selector: {app: sink}, ports: [{port: 9090}]}\n",
    );
    for (kind, name) in [
        ("mstore", "payment-requests"),
        ("mstore", "settled-payments"),
        ("iroute", "payments"),
        ("fwp", "settle-payment"),
    ] {
        space.ready(kind, name);
    }
    let request = std::fs::read_to_string(file("examples/payment-desk/messages/payment.json")).unwrap();
    for _ in 0..3 {
        let answer = space.post("payments", "/healthcare/categories/surgery/reserve", &request);
        assert_eq!(answer.status, 200);
        assert!(answer.text().contains("Payment request successfully submitted"), "{}", answer.text());
    }
    let hits = space.await_hits(3, seconds(5));
    assert!(hits.iter().all(|hit| hit.path == "/healthcare/payments"), "{hits:?}");
    let processor = space.until("fwp", "settle-payment", seconds(15), |object| object["status"]["delivered"] == 3);
    assert_eq!(processor["status"]["state"], "Active");
    assert_eq!(processor["status"]["backlog"], 0);
    let namespace = &space.name;
    assert_eq!(processor["status"]["target"], format!("http://settlement.{namespace}.svc:9090/healthcare/payments"));
    space.until("iroute", "payments", seconds(15), |object| object["status"]["accepted"] == 3);
    space.until("mstore", "settled-payments", seconds(15), |object| object["status"]["messages"] == 3);
    let table = space.kubectl(&["get", "forwardingprocessors"]);
    let (head, row) = table.split_once('\n').unwrap();
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(
        words(head),
        ["NAME", "STORE", "TARGET", "STATE", "DELIVERED", "BACKLOG", "DLC", "READY", "REASON", "AGE"]
    );
    assert!(
        words(row)[..2] == ["settle-payment", "payment-requests"] && words(row)[3..6] == ["Active", "3", "0"],
        "{table}"
    );
    assert_eq!(space.column("fwp", "settle-payment", "REASON"), "Delivering");
    k3_pods_may_nothing_and_know_no_password(&space);
}

fn k3_pods_may_nothing_and_know_no_password(space: &Space) {
    let pods = list(&space.name, "pods", "app.kubernetes.io/managed-by=stagepost");
    assert_eq!(pods.len(), 3, "two ingress pods and a forwarder");
    for pod in &pods {
        let spec = &pod["spec"];
        assert_eq!(spec["automountServiceAccountToken"], false);
        let text = spec.to_string();
        assert!(!text.contains("kube-api-access"), "a token is mounted: {text}");
        let container = &spec["containers"][0];
        assert_eq!(container["env"], Value::Null, "nothing comes by the environment");
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        assert!(
            !container["resources"]["limits"]["memory"].is_null() && container["resources"]["limits"]["cpu"].is_null()
        );
    }
    for map in list(&space.name, "configmaps", "app.kubernetes.io/managed-by=stagepost") {
        assert_eq!(map["immutable"], true);
        assert!(!map["data"].to_string().contains("p@ss"), "a password stands in a config map");
    }
    let account = list(&space.name, "serviceaccounts", "app.kubernetes.io/managed-by=stagepost");
    assert_eq!(account.len(), 2);
}

#[test]
fn the_failover_example_stores_on_its_second_broker_what_the_first_does_not_take_and_drains_it() {
    let Some(_shared) = shared() else { return };
    let space = Space::empty("failover");
    space.target();
    // The brokers of the examples, whose image this node has under another name.
    for broker in ["rabbitmq", "rabbitmq-failover"] {
        let yaml = std::fs::read_to_string(file(&format!("examples/{broker}.yaml"))).unwrap();
        space.apply(&yaml.replace("docker.io/library/rabbitmq:4.0", "localhost/rabbitmq:4.0"));
    }
    space.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: orders-backend}\n\
         spec: {selector: {app: sink}, ports: [{port: 8080, targetPort: 9090}]}\n",
    );
    apply_example(&space, "failover-and-drain");
    for (kind, name) in
        [("mstore", "orders-failover"), ("fwp", "deliver-orders"), ("fwp", "drain-failover"), ("iroute", "orders")]
    {
        space.ready(kind, name);
    }
    assert_eq!(space.post("orders", "/orders", "order 0").status, 202);
    space.await_hits(1, seconds(10));
    let suspend = |suspend: bool| space.patch("fwp", "deliver-orders", &json!({"spec": {"suspend": suspend}}));
    suspend(true);
    space.shows("fwp", "deliver-orders", "REASON", "Suspended");
    for number in 1..=8 {
        assert_eq!(space.post("orders", "/orders", &format!("order {number}")).status, 202, "{number}");
    }
    // The first store is full; the drain holds the rest and says why.
    space.shows("fwp", "drain-failover", "REASON", "TargetUnreachable");
    assert_eq!(space.hits().len(), 1);
    suspend(false);
    let hits = space.await_hits(9, seconds(60));
    let mut bodies: Vec<String> = hits.iter().map(super::space::Hit::text).collect();
    bodies.sort();
    assert_eq!(bodies, (0..=8).map(|number| format!("order {number}")).collect::<Vec<_>>());
    space.shows("fwp", "drain-failover", "REASON", "Delivering");
}

#[test]
fn every_example_is_accepted_by_the_api_server() {
    let Some(_shared) = shared() else { return };
    let space = Space::empty("examples");
    let examples = std::fs::read_dir(file("examples")).unwrap().flatten().map(|entry| entry.path());
    let mut count = 0;
    for path in examples {
        // A folder as a whole, as people apply it.
        let name = path.display().to_string();
        let arguments = ["apply", "-n", &space.name, "--dry-run=server", "--validate=strict", "-f", &name];
        let printed = run("kubectl", &arguments, "");
        assert!(printed.ok, "{name}: {}", printed.err);
        count += 1;
    }
    assert!(count >= 5, "{count}");
}

#[test]
fn fields_are_explained_and_tools_are_told_where_to_scale() {
    let Some(_shared) = shared() else { return };
    let text = kubectl(&["explain", "forwardingprocessors.spec.suspend"]);
    assert!(text.contains("Stops delivery") && text.contains("stagepost.dev/paused"), "{text}");
    let text = kubectl(&["api-resources", "--categories=stagepost"]);
    for short in ["mstore", "iroute", "fwp"] {
        assert!(text.contains(short), "{text}");
    }
}
