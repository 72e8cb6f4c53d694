//! The architecture, held by a test: who may use whom, how long files are, what may not stand in the code.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Module -> what it may use. A module may always use itself; every process module may use `shutdown`.
const EDGES: [(&str, &[&str]); 18] = [
    (
        "cli",
        &[
            "api",
            "plan",
            "expression",
            "controller",
            "local",
            "worker",
            "ingress",
            "forwarder",
            "sink",
            "telemetry",
            "core",
            "shutdown",
        ],
    ),
    ("controller", &["plan", "api", "status", "broker", "store", "forwarder", "telemetry", "core", "shutdown"]),
    (
        "local",
        &["api", "plan", "status", "broker", "store", "ingress", "forwarder", "sink", "telemetry", "core", "shutdown"],
    ),
    (
        "worker",
        &["api", "plan", "status", "broker", "store", "target", "ingress", "forwarder", "telemetry", "shutdown"],
    ),
    ("status", &["api", "plan", "store", "forwarder", "core"]),
    ("broker", &["plan", "store"]),
    ("ingress", &["plan", "store", "expression", "telemetry", "core", "shutdown"]),
    ("forwarder", &["plan", "store", "target", "expression", "telemetry", "core", "shutdown"]),
    ("sink", &["shutdown"]),
    ("target", &["store", "core"]),
    ("store", &["core", "telemetry"]),
    ("plan", &["api", "core", "expression"]),
    ("expression", &["core"]),
    ("telemetry", &[]),
    ("shutdown", &[]),
    ("core", &[]),
    ("api", &[]),
    ("lib", &[]),
];

/// Longest file, its tests not counted.
const MOST_LINES: usize = 450;
const MOST_LINES_IN_MAIN: usize = 30;

struct Source {
    path: PathBuf,
    /// The first folder or file name under `src`.
    module: String,
    /// Without the test module at its end.
    code: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    let only_for_tests: BTreeSet<PathBuf> = files.iter().flat_map(|path| test_files(path)).collect();
    files
        .into_iter()
        .filter(|path| !only_for_tests.contains(path))
        .map(|path| path.strip_prefix(&root).unwrap().to_owned())
        .map(|path| {
            let first = path.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
            let text = std::fs::read_to_string(root.join(&path)).unwrap();
            Source { module: first.trim_end_matches(".rs").to_owned(), code: without_tests(&text), path }
        })
        .collect()
}

/// The files that a file declares behind `#[cfg(test)]`: `mod name;`.
fn test_files(path: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(path).unwrap();
    let folder = match path.file_stem().unwrap().to_str().unwrap() {
        "mod" | "lib" | "main" => path.parent().unwrap().to_owned(),
        _ => path.with_extension(""),
    };
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let declared = lines.windows(2).filter(|pair| pair[0] == "#[cfg(test)]").filter_map(|pair| {
        pair[1].strip_prefix("pub(crate) ").unwrap_or(pair[1]).strip_prefix("mod ")?.strip_suffix(';')
    });
    declared.flat_map(|name| [folder.join(format!("{name}.rs")), folder.join(name).join("mod.rs")]).collect()
}

/// Cuts the items behind `#[cfg(test)]` off: a module up to the closing brace at its indent, else one line.
fn without_tests(text: &str) -> String {
    let mut kept = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            kept.push_str(line);
            kept.push('\n');
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let end = format!("{}}}", " ".repeat(indent));
        let opened = lines.by_ref().find(|line| line.ends_with(['{', ';', '}']));
        if opened.is_some_and(|line| line.ends_with('{')) {
            lines.by_ref().find(|line| *line == end);
        }
    }
    kept
}

/// The code without comments and doc comments; text in quotes stays.
fn statements(code: &str) -> impl Iterator<Item = (usize, &str)> {
    code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")).map(|(at, line)| (at + 1, line))
}

/// The modules of ours that a file names by `crate::`, grouped `use crate::{a, b::c}` included.
fn used_modules(code: &str) -> BTreeSet<String> {
    let code: String = statements(code).map(|(_, line)| line).collect::<Vec<_>>().join("\n");
    let mut used = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0_u32;
            let mut name = String::new();
            for char in group.chars() {
                match char {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => drop(used.insert(head(&std::mem::take(&mut name)))),
                    _ if depth == 0 => name.push(char),
                    _ => {}
                }
            }
            used.insert(head(&name));
        } else {
            used.insert(head(rest));
        }
    }
    used.remove("");
    used
}

fn head(path: &str) -> String {
    path.trim_start().chars().take_while(|char| char.is_alphanumeric() || *char == '_').collect()
}

#[test]
fn modules_use_only_what_the_architecture_allows() {
    let edges: BTreeMap<&str, BTreeSet<&str>> =
        EDGES.iter().map(|(module, uses)| (*module, uses.iter().copied().collect())).collect();
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| source.module != "main") {
        let Some(allowed) = edges.get(source.module.as_str()) else {
            wrong.push(format!("{}: the architecture knows no module `{}`", source.path.display(), source.module));
            continue;
        };
        for used in used_modules(&source.code) {
            if used != source.module && !allowed.contains(used.as_str()) {
                wrong.push(format!("{}: `{}` must not use `{used}`", source.path.display(), source.module));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn main_only_parses_and_dispatches() {
    let main = sources().into_iter().find(|source| source.module == "main").unwrap();
    let lines = main.code.lines().count();
    assert!(lines < MOST_LINES_IN_MAIN, "src/main.rs has {lines} lines");
}

#[test]
fn files_have_one_subject_and_a_length_that_can_be_read() {
    let long: Vec<String> = sources()
        .iter()
        .map(|source| (source.path.display(), source.code.lines().count()))
        .filter(|(_, lines)| *lines > MOST_LINES)
        .map(|(path, lines)| format!("src/{path}: {lines} lines"))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn nothing_panics_on_purpose_and_nothing_is_left_open() {
    let forbidden =
        [".unwrap()", ".expect(", ".unwrap_err()", ".expect_err(", "panic!(", "todo!(", "unimplemented!(", "dbg!("];
    let mut found = Vec::new();
    for source in sources() {
        for (number, line) in statements(&source.code) {
            let code = line.split("//").next().unwrap_or(line);
            for word in forbidden.iter().filter(|word| code.contains(**word)) {
                found.push(format!("src/{}:{number}: {word}", source.path.display()));
            }
        }
        for (number, line) in source.code.lines().enumerate() {
            for word in ["TODO", "FIXME", "XXX"].iter().filter(|word| line.contains(**word)) {
                found.push(format!("src/{}:{}: {word}", source.path.display(), number + 1));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_reader_of_uses_sees_groups_and_paths() {
    let code = "use crate::{core::{retry, outcome}, store};\n// crate::comment\nlet x = crate::plan::Plan;\n";
    let used = used_modules(code);
    assert_eq!(used.iter().map(String::as_str).collect::<Vec<_>>(), ["core", "plan", "store"]);
    let text = "a\n#[cfg(test)]\nmod tests {\n    x.unwrap();\n}\nb\n#[cfg(test)]\nmod tests;\nc\n";
    assert_eq!(without_tests(text), "a\nb\nc\n");
}
