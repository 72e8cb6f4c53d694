//! D8: objects that were stored under definitions of an earlier version meet those of this one.

use serde_json::{Map, Value, json};

use super::cluster::{file, kubectl, run, whole};
use super::space::{Space, condition, has, is};
use crate::support::{eventually, manifest, seconds};

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

/// Processors as another version defines them.
fn define(change: impl Fn(&mut Value)) {
    let name = "forwardingprocessors.stagepost.dev";
    let mut definition: Value = serde_json::from_str(&kubectl(&["get", "crd", name, "-o", "json"])).unwrap();
    change(&mut definition);
    let replaced = run("kubectl", &["replace", "-f", "-"], &definition.to_string());
    assert!(replaced.ok, "{}", replaced.err);
    kubectl(&["wait", "crd", name, "--for=condition=Established", "--timeout=30s"]);
}

/// The fields of a processor's spec, in its definition.
fn fields(definition: &mut Value) -> &mut Map<String, Value> {
    let schema = &mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    schema["properties"]["spec"]["properties"].as_object_mut().unwrap()
}

/// Applies what only another version's definitions allow; it takes the API server a moment to go by them.
fn apply_strictly(space: &Space, yaml: &str) {
    eventually("the API server goes by other definitions", seconds(30), || {
        run("kubectl", &["apply", "-n", &space.name, "--validate=strict", "-f", "-"], yaml).ok.then_some(())
    });
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
fn d8_objects_that_earlier_rules_let_through_are_named_if_they_are_not_valid_and_stop_no_other() {
    let Some(_whole) = whole() else { return };
    let space = Space::new("upgrade");
    let back = Definitions;
    define(|definition| without_rules(&mut definition["spec"]));
    space.line("");
    let bad = [
        manifest::store("other", ""),
        manifest::processor("bad", "other", "http://sink:9090/", "ordering: Strict\nconcurrency: 4"),
    ];
    apply_strictly(&space, &bad.concat());
    drop(back);
    let judged = space.until("fwp", "bad", seconds(30), |object| has(object, "Accepted", "False", "Invalid"));
    let message = condition(&judged, "Accepted")["message"].as_str().unwrap();
    assert!(message.contains("ordering Strict delivers one message at a time"), "{message}");
    assert_eq!(space.post("in", "/in", "x").status, 202);
    assert_eq!(space.await_hits(1, seconds(10))[0].text(), "x");
    space.until("fwp", "out", seconds(20), |object| object["status"]["delivered"] == 1);
    // Corrected, it is as any other.
    space.patch("fwp", "bad", &json!({"spec": {"concurrency": 1}}));
    space.ready("fwp", "bad");
}

/// What runs is what ran before, and delivers.
#[track_caller]
fn goes_on(space: &Space, pod: &str, body: &str) {
    let before = space.hits().len();
    assert_eq!(space.post("in", "/in", body).status, 202);
    assert_eq!(space.await_hits(before + 1, seconds(10)).last().unwrap().text(), body);
    assert_eq!(space.pod("out"), pod, "a worker that runs its plan is left alone");
}

#[test]
fn d8_a_field_of_a_later_version_stops_only_what_has_it_and_goes_with_the_definitions_that_know_it() {
    let Some(_whole) = whole() else { return };
    let space = Space::new("later");
    space.line("");
    let pod = space.pod("out");
    space.apply(&[manifest::store("other", ""), manifest::store("third", "")].concat());
    let back = Definitions;
    define(|definition| {
        fields(definition).insert("mood".to_owned(), json!({"type": "string"}));
    });
    apply_strictly(&space, &manifest::processor("moody", "other", "http://sink:9090/target", "mood: happy"));
    let judged = space.until("fwp", "moody", seconds(30), |object| has(object, "Accepted", "False", "Unreadable"));
    let message = condition(&judged, "Accepted")["message"].as_str().unwrap();
    assert!(message.contains("mood"), "{message}");
    space.shows("fwp", "moody", "REASON", "Unreadable");
    // One that has no such field is as any other.
    space.apply(&manifest::processor("plain", "third", "http://sink:9090/target", ""));
    space.ready("fwp", "plain");
    goes_on(&space, &pod, "beside a stranger");
    // One that runs, and gets the field: what ran before goes on.
    space.patch("fwp", "out", &json!({"spec": {"mood": "grim"}}));
    space.until("fwp", "out", seconds(30), |object| has(object, "Accepted", "False", "Unreadable"));
    goes_on(&space, &pod, "strange itself");
    // These definitions do not know the field: nobody sees it any more, and all are as they should be.
    drop(back);
    for name in ["moody", "plain", "out"] {
        // They are seen anew when their watch is: the API server ends those that began under other definitions, most often
        // within two minutes, and none lasts longer than five.
        let object = space.until("fwp", name, seconds(330), |object| is(object, "Ready", "True"));
        assert!(has(&object, "Accepted", "True", "Accepted") && object["spec"]["mood"].is_null(), "{object:#}");
        space.shows("fwp", name, "REASON", "Delivering");
    }
    goes_on(&space, &pod, "afterwards");
}

#[test]
fn d8_objects_of_an_earlier_version_that_knew_fewer_fields_have_their_defaults_and_keep_their_plans() {
    let Some(_whole) = whole() else { return };
    let space = Space::new("earlier");
    let back = Definitions;
    define(|definition| {
        let fields = fields(definition);
        for later in ["circuitBreaker", "outcomes", "response"] {
            assert!(fields.remove(later).is_some(), "{later}");
        }
        // And one that was there then, and is no more.
        fields.insert("legacy".to_owned(), json!({"type": "integer"}));
    });
    let spec = "storeRef: {name: box}\ntarget: {serviceRef: {name: sink, port: 9090, path: /target}}";
    let line = [
        manifest::store("box", ""),
        manifest::route("in", "/in", "box"),
        manifest::object("ForwardingProcessor", "out", spec),
        manifest::store("old", ""),
        manifest::processor("dated", "old", "http://sink:9090/target", "legacy: 7"),
    ];
    apply_strictly(&space, &line.concat());
    let stored = space.ready("fwp", "out");
    assert!(stored["spec"]["outcomes"].is_null(), "{stored:#}");
    space.ready("iroute", "in");
    let pod = space.pod("out");
    goes_on(&space, &pod, "before");
    drop(back);
    let upgraded = space.until("fwp", "out", seconds(30), |object| !object["spec"]["outcomes"].is_null());
    assert_eq!(upgraded["spec"]["outcomes"]["success"], json!(["2xx"]));
    // It is seen anew when its watch is: the API server ends those that began under other definitions, most often within
    // two minutes, and none lasts longer than five.
    let dated = space.until("fwp", "dated", seconds(330), |object| is(object, "Ready", "True"));
    assert!(dated["spec"]["legacy"].is_null(), "{dated:#}");
    // A default that is written out is no change.
    space.ready("fwp", "out");
    goes_on(&space, &pod, "after");
    let printed = run(
        "kubectl",
        &["apply", "-n", &space.name, "--validate=strict", "-f", "-"],
        &manifest::processor("dated", "old", "http://sink:9090/target", "legacy: 7"),
    );
    assert!(!printed.ok && printed.err.contains("unknown field \"spec.legacy\""), "{printed:?}");
}
