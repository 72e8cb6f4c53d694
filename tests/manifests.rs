//! Manifests as users write them: valid ones load, invalid ones are refused with the text that was promised.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::format_push_string, clippy::format_collect)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use stagepost::plan::load::{Manifests, Options, load, load_text};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn listed(manifests: &Manifests) -> String {
    manifests.violations.iter().map(|violation| format!("{violation}\n")).collect()
}

/// `# expect: <path>: <text>` and `# by: cel|controller|yaml` at the head of a file.
struct Expected {
    lines: Vec<(String, String)>,
    by: String,
}

fn expected(text: &str) -> Expected {
    let mut lines = Vec::new();
    let mut by = String::new();
    for line in text.lines().take_while(|line| line.starts_with('#')) {
        if let Some(rest) = line.strip_prefix("# expect: ") {
            let (path, message) = rest.split_once(": ").unwrap_or(("", rest));
            // A violation of the file itself has no path.
            let (path, message) =
                if path.contains(' ') && !path.starts_with("spec.") { ("", rest) } else { (path, message) };
            lines.push((path.to_owned(), message.to_owned()));
        }
        if let Some(rest) = line.strip_prefix("# by: ") {
            rest.clone_into(&mut by);
        }
    }
    Expected { lines, by }
}

fn invalid_manifests() -> Vec<(String, String)> {
    let mut files: Vec<_> = std::fs::read_dir(folder("tests/invalid"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "yaml"))
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(&path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn each_invalid_manifest_is_refused_with_exactly_the_expected_messages() {
    let files = invalid_manifests();
    assert!(files.len() >= 60, "only {} invalid manifests", files.len());
    let mut wrong = String::new();
    for (name, text) in files {
        let expected = expected(&text);
        assert!(["cel", "controller", "yaml"].contains(&expected.by.as_str()), "{name} does not say by whom");
        assert!(!expected.lines.is_empty(), "{name} expects nothing");
        let found = load_text(&name, &text, &Options::default());
        let mut left: Vec<_> = found.violations.iter().collect();
        for (path, message) in &expected.lines {
            let at = left.iter().position(|v| v.path == *path && v.message.contains(message.as_str()));
            match at {
                Some(at) => {
                    left.remove(at);
                }
                None => wrong.push_str(&format!("{name}: missing: {path}: {message}\n")),
            }
        }
        for violation in left {
            wrong.push_str(&format!("{name}: not expected: {violation}\n"));
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn every_message_says_what_to_do_on_one_line() {
    for (name, text) in invalid_manifests() {
        for violation in load_text(&name, &text, &Options::default()).violations {
            let message = &violation.message;
            assert!(message.contains("; "), "{name}: no remedy: {message}");
            assert!(!message.contains('\n') && message.len() < 600, "{name}: {message}");
            assert!(!message.ends_with('.'), "{name}: {message}");
            assert!(violation.line > 0, "{name}: no line: {message}");
        }
    }
}

#[test]
fn the_invalid_manifests_break_every_rule() {
    let mut said = BTreeSet::new();
    for (name, text) in invalid_manifests() {
        said.extend(load_text(&name, &text, &Options::default()).violations.into_iter().map(|v| v.message));
    }
    // What must not change cannot be broken by one file.
    let over_time = ["queue-immutable", "exchange-immutable", "source-immutable"];
    for rule in stagepost::plan::rules::all() {
        let broken = said.iter().any(|message| message.contains(rule.message));
        let skipped = over_time.contains(&rule.id)
            // Their errors bring their own remedies, or a suggestion stands in for it.
            || ["template", "expression", "cron", "path-pattern", "store-exists"].contains(&rule.id);
        assert!(broken || skipped, "no invalid manifest breaks {}: {}", rule.id, rule.message);
    }
}

/// What stands in fences of a page as YAML and begins as an object of ours, each with its page and line.
fn shown_manifests(page: &Path) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(page).unwrap();
    let mut shown = Vec::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find("```yaml\n") {
        let block = rest[at + "```yaml\n".len()..].split("```").next().unwrap_or_default();
        let line = text[..text.len() - rest.len() + at].lines().count() + 1;
        if block.starts_with("apiVersion: stagepost.dev/") {
            shown.push((format!("{}:{line}", page.display()), block.to_owned()));
        }
        rest = &rest[at + "```yaml\n".len() + block.len()..];
    }
    shown
}

#[test]
fn every_manifest_that_a_page_shows_is_valid() {
    let mut pages = vec![folder("README.md")];
    pages.extend(std::fs::read_dir(folder("docs")).unwrap().map(|entry| entry.unwrap().path()));
    let examples = std::fs::read_dir(folder("examples")).unwrap().map(|entry| entry.unwrap().path().join("README.md"));
    pages.extend(examples.filter(|page| page.exists()));
    // A page may show a processor and speak of its store.
    let options = Options { allow_missing_refs: true, ..Options::default() };
    let (mut count, mut wrong) = (0, String::new());
    for (place, block) in pages.iter().flat_map(|page| shown_manifests(page)) {
        count += 1;
        let found = load_text(&place, &block, &options);
        if !found.is_valid() {
            wrong.push_str(&format!("{place}\n{}", listed(&found)));
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    assert!(count >= 12, "only {count} are shown");
}

#[test]
fn every_link_in_the_documentation_leads_somewhere() {
    let mut pages = vec![folder("README.md")];
    pages.extend(std::fs::read_dir(folder("docs")).unwrap().map(|entry| entry.unwrap().path()));
    // As GitHub makes it of a heading.
    let anchor = |heading: &str| -> String {
        let letters = heading.trim_start_matches('#').trim().to_lowercase();
        letters.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>().replace(' ', "-")
    };
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, part) = link.split_once('#').unwrap_or((link, ""));
            let to = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            let target = std::fs::read_to_string(&to);
            assert!(to.exists(), "{} links to {link}", page.display());
            let has = |part: &str| {
                target.as_ref().is_ok_and(|text| text.lines().any(|line| line.starts_with('#') && anchor(line) == part))
            };
            assert!(part.is_empty() || has(part), "{} links to {link}", page.display());
        }
    }
}

#[test]
fn every_example_is_valid_and_has_plans() {
    let Ok(entries) = std::fs::read_dir(folder("examples")) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        let manifest = path.is_dir() || path.extension().is_some_and(|end| end == "yaml");
        if !manifest {
            continue;
        }
        let found = load(std::slice::from_ref(&path), &Options::default());
        assert!(found.is_valid(), "{}\n{}", path.display(), listed(&found));
        assert!(found.stores.iter().all(|loaded| loaded.plan.is_some()));
        assert!(found.routes.iter().all(|loaded| loaded.plan.is_some()));
        assert!(found.processors.iter().all(|loaded| loaded.plan.is_some()));
    }
}
