//! K7: what is wrong is refused by the API server, or told by the controller, with the words of `stagepost check`.

use std::path::PathBuf;

use super::cluster::{file, run, shared};
use super::space::{Space, condition};
use crate::support::{eventually, seconds};

/// A file of `tests/invalid`: who finds it, and what is said.
struct Invalid {
    path: PathBuf,
    by: String,
    expected: Vec<(String, String)>,
    text: String,
}

fn invalid() -> Vec<Invalid> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(file("tests/invalid")).unwrap().flatten().map(|entry| entry.path()).collect();
    files.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        let head = || text.lines().take_while(|line| line.starts_with('#'));
        let by = head().find_map(|line| line.strip_prefix("# by: ")).unwrap_or_default().to_owned();
        let expected = head().filter_map(|line| line.strip_prefix("# expect: ")?.split_once(": "));
        let expected = expected.map(|(path, message)| (path.to_owned(), message.to_owned())).collect();
        Invalid { path, by, expected, text }
    };
    files.into_iter().filter(|path| path.extension().is_some_and(|ext| ext == "yaml")).map(read).collect()
}

#[test]
fn k7_the_api_server_refuses_what_it_can_judge_with_the_field_and_the_remedy() {
    let Some(_shared) = shared() else { return };
    let space = Space::empty("cel");
    let (mut count, mut ours) = (0, 0);
    for case in invalid().iter().filter(|case| case.by == "cel") {
        let printed = run("kubectl", &["apply", "-n", &space.name, "--dry-run=server", "-f", "-"], &case.text);
        let name = case.path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(!printed.ok, "{name} was accepted");
        // A rule of ours has our words; a bound or a type of the schema has the API server's, and names the field. What
        // else is wrong with the object is found when it is refused no more.
        let by_rule = case.expected.iter().any(|(_, message)| printed.err.contains(message.as_str()));
        // Of an entry that stands there twice the API server names the entry, not its field.
        let field = |path: &str| {
            let entry = path.rsplit_once('.').map_or(path, |(entry, _)| entry);
            printed.err.contains(path) || (entry.ends_with(']') && printed.err.contains(entry))
        };
        let by_field = case.expected.iter().any(|(path, _)| field(path));
        assert!(by_rule || by_field, "{name}: {:?} is not in\n{}", case.expected, printed.err);
        ours += usize::from(by_rule);
        count += 1;
    }
    println!("    K7: {count} refused by the API server, {ours} with the words of a rule");
    assert!(count >= 60 && ours >= 40, "{count}, {ours} with the words of a rule");
}

#[test]
fn k7_the_controller_tells_the_rest_with_the_same_words() {
    let Some(_shared) = shared() else { return };
    let mut count = 0;
    for case in invalid().iter().filter(|case| case.by == "controller") {
        let name = case.path.file_stem().unwrap().to_string_lossy().into_owned();
        let space = Space::empty(&format!("c-{}", &name[..name.len().min(30)].trim_end_matches('-')));
        // Some say where they are.
        let elsewhere = case.text.contains("namespace: shop").then(|| Space::empty("elsewhere"));
        let other = elsewhere.as_ref().map_or("", |space| space.name.as_str());
        for document in case.text.split("\n---\n") {
            let there = document.contains("namespace: shop");
            let namespace = if there { other } else { &space.name };
            let text = document.replace("namespace: shop", &format!("namespace: {other}"));
            // A large object does not fit into the annotation of a client-side apply.
            let printed = run("kubectl", &["apply", "--server-side", "-n", namespace, "-f", "-"], &text);
            assert!(printed.ok, "{name}: {}", printed.err);
        }
        for (path, message) in &case.expected {
            let message = message.replace("namespace `default`", &format!("namespace `{}`", space.name));
            let said = format!("{path}: {}", message.replace("namespace `shop`", &format!("namespace `{other}`")));
            eventually(&format!("{name}: some object says `{said}`"), seconds(30), || {
                let mut objects = super::cluster::list(&space.name, "stagepost", "");
                if elsewhere.is_some() {
                    objects.extend(super::cluster::list(other, "stagepost", ""));
                }
                let said_by = |object: &serde_json::Value| {
                    ["Accepted", "ResolvedRefs"].iter().any(|kind| {
                        let condition = condition(object, kind);
                        let text = condition["message"].as_str().unwrap_or_default();
                        condition["status"] == "False" && text.contains(&said)
                    })
                };
                objects.iter().any(said_by).then_some(())
            });
        }
        count += 1;
    }
    println!("    K7: {count} told by the controller");
    assert!(count >= 20, "{count}");
}
