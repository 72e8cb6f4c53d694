//! The command line and the local mode, over the real binary: what is printed, what is refused and with which exit code,
//! how edits are taken over, who may ask the admin address.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod run {
    mod render;
}
mod support;

use serde_json::Value;
use support::{Recorder, Setup, Stagepost, eventually, http, manifest, process, rabbitmq, seconds};
use tempfile::TempDir;

/// Runs a command on one file of manifests, to its end.
fn on_file(command: &[&str], yaml: &str, flags: &[&str]) -> process::Done {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("stagepost.yaml");
    std::fs::write(&file, yaml).unwrap();
    process::run(&[command, &[file.to_str().unwrap()], flags].concat())
}

/// `run` with ports and a data folder of its own, expected to end by itself.
fn refused(yaml: &str, flags: &[&str]) -> process::Done {
    let data = TempDir::new().unwrap();
    let own = ["--data", data.path().to_str().unwrap(), "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    on_file(&["run"], yaml, &[&own, flags].concat())
}

fn condition(status: &Value, kind: &str) -> (String, String) {
    let found = status["conditions"].as_array().into_iter().flatten().find(|condition| condition["type"] == kind);
    let text = |field: &str| found.and_then(|found| found[field].as_str()).unwrap_or_default().to_owned();
    (text("status"), text("reason"))
}

fn is(found: &(String, String), status: &str, reason: &str) -> bool {
    found.0 == status && found.1 == reason
}

fn generation(run: &Stagepost, kind: &str, name: &str) -> Value {
    let all = run.get("/status").json();
    let items = all["items"].as_array().cloned().unwrap_or_default();
    let item = items.into_iter().find(|item| item["kind"] == kind && item["metadata"]["name"] == name);
    item.map(|item| item["metadata"]["generation"].clone()).unwrap_or_default()
}

fn with_service(name: &str) -> String {
    let target = format!("storeRef: {{name: box}}\ntarget: {{serviceRef: {{name: {name}, port: 8080, path: /pay}}}}");
    [
        manifest::store("box", ""),
        manifest::route("in", "/in", "box"),
        manifest::object("ForwardingProcessor", "out", &target),
    ]
    .concat()
}

#[test]
fn invalid_manifests_end_the_start_with_1_and_a_line_for_each_violation() {
    let yaml = manifest::line("http://127.0.0.1:1/", "retry: {maxRedelivery: 3}\nconcurrency: 5");
    let done = refused(&yaml, &[]);
    assert_eq!(done.code, 1, "{}", done.stderr);
    let errors: Vec<&str> = done.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(errors.len() >= 2, "{}", done.stderr);
    assert!(errors.iter().all(|line| line.contains("stagepost.yaml:")), "{}", done.stderr);
}

#[test]
fn a_path_that_does_not_exist_is_named() {
    let done = process::run(&["run", "/nowhere/stagepost.yaml", "--admin", "127.0.0.1:0"]);
    assert_eq!(done.code, 1, "{}", done.stderr);
    assert!(done.stderr.contains("/nowhere/stagepost.yaml"), "{}", done.stderr);
}

#[test]
fn overlapping_routes_end_the_start_with_both_names_unless_one_has_a_listener_of_its_own() {
    let yaml =
        [manifest::store("box", ""), manifest::route("one", "/{x}/in", "box"), manifest::route("two", "/a/{y}", "box")]
            .concat();
    let done = refused(&yaml, &[]);
    assert_eq!(done.code, 1, "{}", done.stderr);
    assert!(done.stderr.contains("one") && done.stderr.contains("two"), "{}", done.stderr);

    let run = Setup::manifests(yaml).arg("--route").arg("default/two=127.0.0.1:0").start();
    let address = run.status("IngressRoute", "two")["address"].as_str().unwrap().to_owned();
    let own = address.trim_start_matches("http://").parse().unwrap();
    assert_ne!(own, run.listen());
    assert_eq!(http::once(own, "POST", "/a/b", &[], b"x").unwrap().status, 202);
    assert_eq!(http::once(own, "POST", "/b/in", &[], b"x").unwrap().status, 404);
    assert_eq!(run.post("/b/in", &[], "x").status, 202);
    assert_eq!(run.post("/a/b", &[], "x").status, 404);
}

#[test]
fn flags_that_name_no_object_or_can_not_be_read_are_wrong_usage() {
    let yaml = manifest::line("http://127.0.0.1:1/", "");
    for flags in [
        ["--route", "nobody=127.0.0.1:0"],
        ["--route", "in=nowhere"],
        ["--service", "out=ftp://host"],
        ["--grace", "soon"],
        ["--admin", "host:1"],
    ] {
        let done = refused(&yaml, &flags);
        assert_eq!(done.code, 2, "{flags:?}: {}", done.stderr);
    }
}

#[test]
fn a_store_whose_secret_is_among_the_manifests_is_on_that_broker() {
    // Nobody listens there: callers are refused at once, and the status says why.
    let secret =
        "---\napiVersion: v1\nkind: Secret\nmetadata: {name: rabbitmq}\nstringData: {uri: 'amqp://127.0.0.1:1'}\n";
    let yaml = [manifest::line("http://127.0.0.1:1/", "").as_str(), secret].concat();
    let run = Setup::manifests(yaml.clone()).start();
    assert_eq!(run.post("/in", &[], "x").status, 503);
    let status =
        run.await_status("MessageStore", "box", seconds(5), |status| condition(status, "BrokerConnected").0 == "False");
    assert!(status.to_string().contains("Refused"), "{status:#}");
    drop(run);
    let run = Setup::manifests(yaml).arg("--embedded").start();
    assert_eq!(run.post("/in", &[], "x").status, 202);
}

/// The same manifests on a real broker: stored there, delivered from there, and again after it was killed.
#[test]
fn the_same_manifests_run_on_rabbitmq() {
    let Some(version) = rabbitmq::version() else {
        rabbitmq::leave_out("stagepost run on RabbitMQ");
        return;
    };
    let mut rabbit = rabbitmq::Rabbit::start(&version, "");
    let target = Recorder::start();
    let run = Setup::manifests(manifest::line(&target.url(), "")).arg("--amqp").arg(&rabbit.uri()).start();
    let store = |text: &str| {
        eventually("it is stored", seconds(40), || (run.post("/in", &[], text).status == 202).then_some(()));
    };
    store("one");
    target.await_hits(1, seconds(10));
    rabbit.kill();
    assert_eq!(run.post("/in", &[], "nobody there").status, 503);
    rabbit.run();
    store("two");
    let hits = target.await_hits(2, seconds(30));
    assert_eq!(hits.last().unwrap().body, b"two");
}

/// The metrics that `docs/operations.md` names, with their labels.
fn documented_metrics() -> Vec<(String, Vec<String>)> {
    let docs = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")).unwrap();
    let table = docs.split("| metric | labels |").nth(1).unwrap();
    let quoted = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').collect();
        // `processor` or `store`: one series has one of them.
        let labels = cells[2].replace("`processor` or `store`", "`processor`");
        (quoted(cells[1]).remove(0), quoted(&labels))
    })
    .collect()
}

#[test]
fn every_metric_that_is_documented_is_there_with_its_labels() {
    let target = Recorder::start();
    let asks = "rules:\n- {name: ask, path: /ask, storeRef: {name: box}, reply: {timeout: 20s}}";
    let yaml = manifest::line(&target.url(), "") + &manifest::object("IngressRoute", "asks", asks);
    let run = Setup::manifests(yaml).start();
    run.post("/in", &[], "x");
    assert_eq!(run.post("/ask", &[], "x").status, 200);
    run.await_status("ForwardingProcessor", "out", seconds(10), |status| status["delivered"] == 2);
    let text = run.get("/metrics").text();
    let documented = documented_metrics();
    assert!(documented.len() >= 15, "{documented:?}");
    for (name, labels) in &documented {
        let has = |line: &str| {
            let Some(rest) = line.strip_prefix(&format!("stagepost_{name}")) else { return false };
            let rest = rest.strip_prefix("_count").unwrap_or(rest);
            let set = rest.strip_prefix('{').and_then(|rest| rest.split('}').next()).unwrap_or_default();
            let found: Vec<&str> = set.split(',').filter_map(|pair| pair.split('=').next()).collect();
            found == *labels
        };
        assert!(text.lines().any(has), "{name}{labels:?} is not in:\n{text}");
    }
    // And nothing that is not documented.
    for kind in text.lines().filter_map(|line| line.strip_prefix("# TYPE stagepost_")) {
        let name = kind.split(' ').next().unwrap();
        let known = documented.iter().any(|(documented, _)| documented.trim_end_matches("_total") == name);
        assert!(known, "{name} is not documented");
    }
}

#[test]
fn logs_are_one_json_object_a_line_if_machines_shall_read_them() {
    let mut run = Setup::manifests(with_service("pay")).arg("--log-format").arg("json").start();
    run.await_log(&["does not start"], seconds(5));
    assert_eq!(run.terminate(seconds(10)).code(), Some(0));
    // The announcement is for people, and on stdout.
    let lines: Vec<Value> = run.log().iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let is_text = |line: &String| serde_json::from_str::<Value>(line).is_err();
    let others: Vec<String> = run.log().into_iter().filter(is_text).collect();
    assert!(others.iter().all(|line| !line.contains("WARN") && !line.contains("INFO")), "{others:?}");
    let warning = lines.iter().find(|line| line["level"] == "WARN").expect("a warning");
    assert_eq!(warning["processor"], "default/out");
    assert!(warning["message"].as_str().is_some_and(|text| text.contains("--service pay=URL")), "{warning}");
    for line in &lines {
        assert!(line["timestamp"].is_string() && line["target"].is_string() && line["level"].is_string(), "{line}");
    }
}

#[test]
fn a_service_without_an_address_leaves_its_processor_pending_and_names_the_flag() {
    let run = Setup::manifests(with_service("pay")).start();
    let status = run.await_state("out", "Pending", seconds(5));
    assert!(is(&condition(&status, "ResolvedRefs"), "False", "NotFound"), "{status:#}");
    assert!(is(&condition(&status, "Ready"), "False", "NotFound"), "{status:#}");
    assert!(status.to_string().contains("--service pay=URL"), "{status:#}");
    assert_eq!(run.post("/in", &[], "x").status, 202);
    run.await_depth("box", 1, seconds(5));
}

#[test]
fn a_sink_takes_what_no_service_flag_names() {
    let run = Setup::manifests(with_service("pay")).arg("--sink").arg("127.0.0.1:0").start();
    assert_eq!(run.post("/in", &[], "hello").status, 202);
    let status = run.await_status("ForwardingProcessor", "out", seconds(10), |status| status["delivered"] == 1);
    let target = status["target"].as_str().unwrap().to_owned();
    assert!(target.starts_with("http://127.0.0.1:") && target.ends_with("/pay"), "{target}");
}

#[test]
fn what_can_be_tried_is_printed_as_a_curl_line_and_other_kinds_are_named_once() {
    let other = "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n";
    let run = Setup::manifests([manifest::line("http://127.0.0.1:1/", "").as_str(), other, other].concat()).start();
    run.await_log(&["try: curl -i -X POST", &format!("http://{}/in", run.listen())], seconds(5));
    run.await_log(&["embedded store in", "box"], seconds(5));
    run.await_log(&["skipped", "Deployment"], seconds(5));
    assert_eq!(run.log().iter().filter(|line| line.contains("Deployment")).count(), 1);
}

#[test]
fn foreign_hosts_and_origins_are_refused_at_the_admin_address() {
    let run = Setup::manifests(manifest::line("http://127.0.0.1:1/", "")).start();
    let ask = |method: &str, path: &str, headers: &[(&str, &[u8])]| {
        http::once(run.admin(), method, path, headers, b"").unwrap().status
    };
    let own = format!("http://{}", run.admin());
    for path in ["/status", "/metrics", "/livez", "/readyz"] {
        assert_eq!(ask("GET", path, &[]), 200);
        assert_eq!(ask("GET", path, &[("Origin", own.as_bytes())]), 200);
        assert_eq!(ask("GET", path, &[("Host", b"evil.example")]), 403);
        assert_eq!(ask("GET", path, &[("Origin", b"http://evil.example")]), 403);
    }
    assert_eq!(ask("POST", "/processors/out/reactivate", &[("Origin", b"http://evil.example")]), 403);
    assert_eq!(ask("POST", "/processors/out/reactivate", &[]), 200);
    assert_eq!(ask("POST", "/processors/default/out/reactivate", &[]), 200);
    assert_eq!(ask("POST", "/processors/default%2Fout/reactivate", &[]), 200);
    assert_eq!(ask("POST", "/processors/nobody/reactivate", &[]), 404);
    assert_eq!(ask("GET", "/processors/out/reactivate", &[]), 405);
}

#[test]
fn status_and_reactivate_say_5_when_nobody_answers_or_refuses() {
    for args in [["status", "--admin", "127.0.0.1:1"].as_slice(), &["reactivate", "out", "--admin", "127.0.0.1:1"]] {
        let done = process::run(args);
        assert_eq!(done.code, 5, "{args:?}: {}", done.stderr);
        assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
    }
    let run = Setup::manifests(manifest::line("http://127.0.0.1:1/", "")).start();
    assert_eq!(run.command(&["reactivate", "nobody"]).code, 5);
    assert_eq!(run.command(&["status", "nobody"]).code, 5);
    let table = run.command(&["status", "out"]);
    assert_eq!(table.code, 0, "{}", table.stderr);
    assert!(table.stdout.starts_with("NAME") && table.stdout.contains("STATE"), "{}", table.stdout);
    assert!(!table.stdout.contains("CONSUMERS"), "{}", table.stdout);
    let json: Value = serde_json::from_str(&run.command(&["status", "-o", "json"]).stdout).unwrap();
    assert_eq!(json["items"].as_array().unwrap().len(), 3);
}

#[test]
fn an_edit_changes_its_object_only_and_counts_its_generation() {
    let (first, second) = (Recorder::start(), Recorder::start());
    let run = Setup::manifests(manifest::line(&first.url(), "")).start();
    run.post("/in", &[], "one");
    first.await_hits(1, seconds(10));
    run.edit("stagepost.yaml", &first.url(), &second.url());
    eventually("the processor has its second generation", seconds(5), || {
        (generation(&run, "ForwardingProcessor", "out") == 2).then_some(())
    });
    assert_eq!(generation(&run, "IngressRoute", "in"), 1);
    run.post("/in", &[], "two");
    second.await_hits(1, seconds(10));
    // The target has it a moment before it is settled.
    let status = run.await_status("ForwardingProcessor", "out", seconds(5), |status| status["delivered"] == 2);
    assert_eq!(status["observedGeneration"], 2, "{status:#}");
}

#[test]
fn what_is_immutable_stays_and_the_edit_is_reported() {
    let target = Recorder::start();
    let run = Setup::manifests(manifest::line(&target.url(), "")).start();
    run.edit("stagepost.yaml", "queue: {}", "queue: {maxLength: 5}");
    run.await_log(&["not taken over", "MessageStore/box", "spec.queue"], seconds(5));
    assert_eq!(generation(&run, "MessageStore", "box"), 1);
    run.post("/in", &[], "still here");
    target.await_hits(1, seconds(10));
}

#[test]
fn without_reload_edits_wait_for_the_next_start() {
    let run = Setup::manifests(manifest::line("http://127.0.0.1:1/", "")).arg("--no-reload").start();
    run.edit("stagepost.yaml", "/in", "/other");
    // Longer than a reload takes anywhere else in these tests.
    std::thread::sleep(support::millis(1500));
    assert_eq!(run.post("/in", &[], "x").status, 202);
    assert_eq!(run.post("/other", &[], "x").status, 404);
}

#[test]
fn a_new_value_of_the_annotation_reactivates_once() {
    let target = Recorder::answering(|_| support::Reply::status(410));
    let spec = "outcomes: {deactivate: [410]}\nonFailure: {action: Deactivate}";
    let yaml = manifest::line(&target.url(), spec)
        .replace("{name: out}", "{name: out, annotations: {stagepost.dev/reactivate: \"1\"}}");
    let run = Setup::manifests(yaml).start();
    run.post("/in", &[], "x");
    run.await_state("out", "Deactivated", seconds(10));
    assert_eq!(run.processor("out")["lastHandledReactivate"], "1");
    assert_eq!(target.hits().len(), 1);
    run.edit("stagepost.yaml", "reactivate: \"1\"", "reactivate: \"2\"");
    target.await_hits(2, seconds(10));
    run.await_state("out", "Deactivated", seconds(10));
    assert_eq!(run.processor("out")["lastHandledReactivate"], "2");
    assert_eq!(target.hits().len(), 2);
}

#[test]
fn a_queue_that_exists_with_other_arguments_is_said_and_stops_nothing_else() {
    let target = Recorder::start();
    let yaml = |most: u32| {
        let store = manifest::store("other", &format!("queue: {{maxLength: {most}}}"));
        [manifest::line(&target.url(), ""), store, manifest::route("other", "/other", "other")].concat()
    };
    let mut run = Setup::manifests(yaml(5)).start();
    run.kill9();
    run.write("stagepost.yaml", &yaml(6));
    run.launch();
    let status = run.status("MessageStore", "other");
    assert!(is(&condition(&status, "Ready"), "False", "QueueMismatch"), "{status:#}");
    assert_eq!(run.post("/other", &[], "x").status, 503);
    run.post("/in", &[], "x");
    target.await_hits(1, seconds(10));
}

#[test]
fn an_orderly_end_has_exit_code_0() {
    let mut run = Setup::manifests(manifest::line("http://127.0.0.1:1/", "")).start();
    run.post("/in", &[], "x");
    assert_eq!(run.terminate(seconds(10)).code(), Some(0));
}

#[test]
fn check_prints_json_for_editors() {
    let done = on_file(&["check", "-o", "json"], &manifest::line("http://127.0.0.1:1/", "concurrency: 5"), &[]);
    assert_eq!(done.code, 1, "{}", done.stderr);
    let found: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(found["violations"][0]["name"], "out");
    assert!(found["violations"][0]["line"].as_u64().is_some_and(|line| line > 1), "{found:#}");
    let done = on_file(&["check"], &manifest::route("in", "/in", "elsewhere"), &["--allow-missing-refs"]);
    assert_eq!(done.code, 0, "{}", done.stdout);
}

#[test]
fn definitions_and_completions_are_printed() {
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join("crds");
    assert_eq!(process::run(&["crds", "--dir", folder.to_str().unwrap()]).code, 0);
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 3);
    let printed = process::run(&["crds"]).stdout;
    assert_eq!(printed.matches("kind: CustomResourceDefinition").count(), 3);
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let done = process::run(&["completions", shell]);
        assert_eq!(done.code, 0, "{}", done.stderr);
        for command in ["run", "check", "render", "sink", "status", "reactivate"] {
            assert!(done.stdout.contains(command), "{shell}: {command}");
        }
        assert!(done.stdout.contains("object"), "{shell} does not know the flags of render");
    }
}
