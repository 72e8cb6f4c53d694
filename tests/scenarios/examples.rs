//! Every folder of `examples/`: read, written and read again, checked, and run as its reader would run it.

use std::path::{Path, PathBuf};

use serde::de::{Deserialize, DeserializeOwned};
use serde_json::Value;
use stagepost::api::{ForwardingProcessor, IngressRoute, MessageStore};

use crate::support::curl::{Curl, shell_lines, unlooped};
use crate::support::{Recorder, Reply, Setup, Stagepost, eventually, process, seconds};

fn folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    assert!(folders.len() >= 12, "{folders:?}");
    folders
}

/// The documents of all manifests in a folder.
fn documents(folder: &Path) -> Vec<Value> {
    let mut documents = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let text = std::fs::read_to_string(&path).unwrap();
            for document in serde_yaml::Deserializer::from_str(&text) {
                documents.push(Value::deserialize(document).unwrap());
            }
        }
    }
    documents.retain(|document| !document.is_null());
    documents
}

/// Typed, to YAML and to JSON, and back: the same.
fn assert_round_trip<K: DeserializeOwned + serde::Serialize + Clone>(document: &Value) {
    let typed: K = serde_json::from_value(document.clone()).unwrap();
    let json = serde_json::to_value(&typed).unwrap();
    let by_json: K = serde_json::from_value(json.clone()).unwrap();
    let by_yaml: K = serde_yaml::from_str(&serde_yaml::to_string(&typed).unwrap()).unwrap();
    assert_eq!(serde_json::to_value(by_json).unwrap(), json);
    assert_eq!(serde_json::to_value(by_yaml).unwrap(), json);
    assert_contains(&json, document, "");
}

/// Everything that was written is still there; defaults may have come to it.
fn assert_contains(all: &Value, part: &Value, at: &str) {
    match (all, part) {
        (Value::Object(all), Value::Object(part)) => {
            for (key, value) in part {
                assert_contains(all.get(key).unwrap_or(&Value::Null), value, &format!("{at}.{key}"));
            }
        }
        (Value::Array(all), Value::Array(part)) => {
            assert_eq!(all.len(), part.len(), "{at}");
            for (index, (all, part)) in all.iter().zip(part).enumerate() {
                assert_contains(all, part, &format!("{at}[{index}]"));
            }
        }
        // 1 and 1.0 are the same number.
        (Value::Number(all), Value::Number(part)) => assert_eq!(all.as_f64(), part.as_f64(), "{at}"),
        _ => assert_eq!(all, part, "{at}"),
    }
}

#[test]
fn every_example_is_read_written_and_read_again_the_same() {
    for folder in folders() {
        let documents = documents(&folder);
        assert!(!documents.is_empty(), "{} has no manifest", folder.display());
        for document in documents {
            match document["kind"].as_str().unwrap() {
                "MessageStore" => assert_round_trip::<MessageStore>(&document),
                "IngressRoute" => assert_round_trip::<IngressRoute>(&document),
                "ForwardingProcessor" => assert_round_trip::<ForwardingProcessor>(&document),
                other => println!("{}: a {other}", folder.display()),
            }
        }
    }
}

#[test]
fn every_example_passes_the_check_and_has_a_readme() {
    for folder in folders() {
        let done = process::run(&["check", folder.to_str().unwrap()]);
        assert_eq!(done.code, 0, "{}: {}{}", folder.display(), done.stdout, done.stderr);
        assert!(folder.join("README.md").exists(), "{} has no README.md", folder.display());
    }
}

/// Starts it. A batch at night becomes one that is due at once.
fn start(setup: Setup) -> Stagepost {
    let run = setup.start();
    let yaml = std::fs::read_to_string(run.manifests().join("stagepost.yaml")).unwrap();
    let nightly = r#"cron: "0 0 2 * * ?""#;
    if yaml.contains(nightly) {
        run.edit("stagepost.yaml", nightly, r#"cron: "* * * * * ?""#);
    }
    run
}

/// The `stagepost run` line of a README, and every `curl` line that posts to it.
fn readme_lines(folder: &Path) -> (String, Vec<String>) {
    let all = shell_lines(&std::fs::read_to_string(folder.join("README.md")).unwrap());
    let run = all.iter().find(|line| line.starts_with("stagepost run")).cloned().unwrap_or_default();
    let each = all.iter().flat_map(|line| unlooped(line));
    (run, each.filter(|line| line.starts_with("curl ")).collect())
}

#[test]
fn every_example_delivers_the_message_of_its_readme() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in folders() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let (run_line, curls) = readme_lines(&folder);
        assert!(run_line.contains(&format!("examples/{name}")), "{name}: its README does not say how to run it");
        let first = curls.iter().map(|line| Curl::read(line, root)).find(|curl| !curl.path.starts_with("/__"));
        let first = first.unwrap_or_else(|| panic!("{name}: its README posts nothing"));
        let run = start(Setup::folder(&folder).arg("--sink").arg("127.0.0.1:0"));
        let answer = first.send(run.listen());
        assert!(answer.status < 300, "{name}: {} {}", answer.status, answer.text());
        eventually(&format!("{name}: a message is delivered to the sink"), seconds(10), || {
            (run.metric("stagepost_settled_total", &["result=\"delivered\""]) >= 1).then_some(())
        });
    }
}

#[test]
fn every_example_delivers_what_its_printed_curl_lines_post() {
    for folder in folders() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let target = Recorder::answering(|_| Reply::full(200, &[("Content-Type", "application/json")], b"{}"));
        let documents = documents(&folder);
        let rules: usize =
            documents.iter().filter_map(|document| document["spec"]["rules"].as_array()).map(Vec::len).sum();
        assert!(rules > 0, "{name}: no rule can be tried");
        let mut setup = Setup::folder(&folder);
        for document in &documents {
            if let Some(service) = document.pointer("/spec/target/serviceRef/name").and_then(Value::as_str) {
                setup = setup.service(service, &target.url());
            }
        }
        let run = start(setup);
        // The lines come after the one that says it is ready.
        let printed = eventually(&format!("{name}: a curl line for each of {rules} rules"), seconds(5), || {
            let lines: Vec<String> = run.log().into_iter().filter(|line| line.starts_with("try: curl ")).collect();
            (lines.len() == rules).then_some(lines)
        });
        for line in printed {
            let before = target.count();
            let curl = Curl::read(&line, &folder);
            assert_eq!(curl.host, run.listen().to_string(), "{line}");
            let answer = curl.send(run.listen());
            assert!(answer.status < 300, "{name}: {line}: {} {}", answer.status, answer.text());
            target.await_hits(before + 1, seconds(10));
        }
    }
}
