//! D8: objects that were stored under definitions of an earlier version meet those of this one.

use serde_json::Value;

use super::cluster::{file, kubectl, run, whole};
use super::space::{Space, condition, has};
use crate::support::{manifest, seconds};

/// Definitions that know the same fields and fewer rules.
fn without_rules(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("x-kubernetes-validations");
            fields.values_mut().for_each(without_rules);
        }
        Value::Array(items) => items.iter_mut().for_each(without_rules),
        _ => {}
    }
}

/// Puts the definitions of this version back, however the test ends.
struct Definitions;

impl Drop for Definitions {
    fn drop(&mut self) {
        let folder = file("crds").display().to_string();
        let back = run("kubectl", &["apply", "--server-side", "--force-conflicts", "-f", &folder], "");
        assert!(back.ok || std::thread::panicking(), "{}", back.err);
    }
}

#[test]
fn d8_objects_that_an_earlier_version_took_are_named_if_they_are_not_valid_and_stop_no_other() {
    let Some(_whole) = whole() else { return };
    let space = Space::new("upgrade");
    let back = Definitions;
    let name = "forwardingprocessors.stagepost.dev";
    let mut definition: Value = serde_json::from_str(&kubectl(&["get", "crd", name, "-o", "json"])).unwrap();
    without_rules(&mut definition["spec"]);
    let replaced = run("kubectl", &["replace", "-f", "-"], &definition.to_string());
    assert!(replaced.ok, "{}", replaced.err);
    kubectl(&["wait", "crd", name, "--for=condition=Established", "--timeout=30s"]);
    space.line("");
    let bad = [
        manifest::store("other", ""),
        manifest::processor("bad", "other", "http://sink:9090/", "ordering: Strict\nconcurrency: 4"),
    ];
    crate::support::eventually("the API server takes what it refused", seconds(30), || {
        run("kubectl", &["apply", "-n", &space.name, "-f", "-"], &bad.concat()).ok.then_some(())
    });
    drop(back);
    let judged = space.until("fwp", "bad", seconds(30), |object| has(object, "Accepted", "False", "Invalid"));
    let message = condition(&judged, "Accepted")["message"].as_str().unwrap();
    assert!(message.contains("ordering Strict delivers one message at a time"), "{message}");
    assert_eq!(space.post("in", "/in", "x").status, 202);
    assert_eq!(space.await_hits(1, seconds(10))[0].text(), "x");
    space.until("fwp", "out", seconds(20), |object| object["status"]["delivered"] == 1);
    // Corrected, it is as any other.
    space.patch("fwp", "bad", &serde_json::json!({"spec": {"concurrency": 1}}));
    space.ready("fwp", "bad");
}
