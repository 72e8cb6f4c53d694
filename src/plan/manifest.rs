//! From files to values: YAML and JSON, several documents a file, with the line of everything.
//!
//! Outputs: one [`Document`] an object, and a [`Violation`] for whatever cannot be read. A broken document hides
//! neither the others of its file nor other files. Hostile input costs time and memory in proportion to its size.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::finding::Violation;
use super::position::{Positions, positions};

/// Largest file. A `ConfigMap` or Secret has at most 1 MiB, and a file may hold many.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// One object in a file.
#[derive(Debug)]
pub(super) struct Document {
    /// Where it stands.
    pub(super) origin: Origin,
    /// The object.
    pub(super) value: Value,
}

/// Where an object stands.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The file as it was named.
    pub file: Arc<str>,
    /// The object's first line.
    pub line: u32,
    /// Where in the document, for the items of a List.
    prefix: String,
    positions: Arc<Positions>,
}

impl Origin {
    /// The line of a path in the object.
    pub fn line_of(&self, path: &str) -> u32 {
        if path.is_empty() {
            return self.line;
        }
        if self.prefix.is_empty() {
            return self.positions.line(path);
        }
        self.positions.line(&format!("{}.{path}", self.prefix))
    }

    /// Duplicate keys in this object, with their lines.
    pub(super) fn duplicates(&self) -> impl Iterator<Item = (&str, u32)> {
        self.positions.duplicates.iter().filter_map(|(path, line)| Some((self.below(path)?, *line)))
    }

    /// Plain scalars in this object that kubectl reads as booleans.
    pub(super) fn yaml_1_1_booleans(&self) -> impl Iterator<Item = (&str, &str)> {
        self.positions.yaml_1_1_booleans.iter().filter_map(|(path, text)| Some((self.below(path)?, text.as_str())))
    }

    fn below<'p>(&self, path: &'p str) -> Option<&'p str> {
        if self.prefix.is_empty() { Some(path) } else { path.strip_prefix(&self.prefix)?.strip_prefix('.') }
    }

    /// Of the same document.
    pub(super) fn item(&self, at: usize) -> Self {
        let prefix = format!("items[{at}]");
        Self { line: self.positions.line(&prefix), prefix, ..self.clone() }
    }
}

/// Everything that stands in some files.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) documents: Vec<Document>,
    pub(super) violations: Vec<Violation>,
    /// Files of a folder that are no manifests.
    pub(super) skipped: Vec<String>,
}

/// Reads files and folders. Of a folder: `*.yaml`, `*.yml` and `*.json`, by name, not those of its subfolders.
///
/// A folder may hold other JSON beside its manifests (a payload to try out): without `apiVersion` and `kind` it is
/// skipped there. YAML is taken for manifests everywhere.
pub(super) fn read(paths: &[PathBuf]) -> Files {
    let Files { mut documents, mut violations, mut skipped } = Files::default();
    for path in paths {
        match files(path) {
            Ok(files) if files.is_empty() => {
                violations.push(of_file(path, "the folder holds no *.yaml, *.yml or *.json; name another one"));
            }
            Ok(files) => {
                for file in files {
                    let before = documents.len();
                    read_file(&file, &mut documents, &mut violations);
                    let manifest = |document: &Document| {
                        document.value.get("apiVersion").is_some() || document.value.get("kind").is_some()
                    };
                    if file != *path && is_json(&file) && !documents[before..].iter().all(manifest) {
                        documents.truncate(before);
                        skipped.push(format!("{} (no manifest)", file.display()));
                    }
                }
            }
            Err(error) => violations.push(of_file(path, &format!("cannot be read ({error}); check the path"))),
        }
    }
    Files { documents, violations, skipped }
}

fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "json")
}

fn files(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    if !std::fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        let manifest = path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
        // Through links, as ConfigMaps are mounted. What is no file (a pipe) could block for ever.
        if manifest && std::fs::metadata(&path).is_ok_and(|data| data.is_file()) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_file(path: &Path, documents: &mut Vec<Document>, violations: &mut Vec<Violation>) {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
    if let Err(error) = read {
        violations.push(of_file(path, &format!("cannot be read ({error}); check the path and its permissions")));
        return;
    }
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let most = MAX_FILE_BYTES / (1024 * 1024);
        violations.push(of_file(path, &format!("larger than {most} MiB; split it")));
        return;
    }
    let Ok(text) = String::from_utf8(bytes) else {
        violations.push(of_file(path, "not UTF-8; save it as UTF-8"));
        return;
    };
    let file: Arc<str> = path.display().to_string().into();
    parse(&file, &text, is_json(path), documents, violations);
}

/// Reads the documents of one file.
pub(super) fn parse(
    file: &Arc<str>,
    text: &str,
    json: bool,
    documents: &mut Vec<Document>,
    violations: &mut Vec<Violation>,
) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let parts = if json { vec![(1, text)] } else { split(text) };
    for (first_line, part) in parts {
        let result = if json { parse_json(part) } else { parse_yaml(part, first_line) };
        match result {
            Ok((_, Value::Null)) => {}
            Ok((positions, value)) => {
                let line = positions.line("");
                let origin = Origin { file: file.clone(), line, prefix: String::new(), positions: Arc::new(positions) };
                documents.push(Document { origin, value });
            }
            Err((line, message)) => violations.push(Violation {
                file: file.clone(),
                line,
                kind: String::new(),
                name: String::new(),
                path: String::new(),
                message,
            }),
        }
    }
}

fn parse_yaml(text: &str, first_line: u32) -> Result<(Positions, Value), (u32, String)> {
    // First: nothing is built of what this pass refuses.
    let positions = positions(text, first_line).map_err(|refused| (refused.line, refused.message))?;
    let value = Value::deserialize(serde_yaml::Deserializer::from_str(text)).map_err(|error| {
        let line = error.location().map_or(0, |at| u32::try_from(at.line().saturating_sub(1)).unwrap_or(0));
        let message = format!("not YAML of an object: {error}; keys are text, and tags are not used");
        (first_line.saturating_add(line), message)
    })?;
    Ok((positions, value))
}

fn parse_json(text: &str) -> Result<(Positions, Value), (u32, String)> {
    let value = serde_json::from_str(text).map_err(|error| {
        let line = u32::try_from(error.line()).unwrap_or(0);
        (line, format!("not JSON: {error}; check commas and quotes around here"))
    })?;
    // JSON is YAML nearly everywhere. Where it is not, only the lines are lost.
    Ok((positions(text, 1).unwrap_or_default(), value))
}

/// Splits at lines that begin a document, as kubectl does, so that a broken one hides no other.
fn split(text: &str) -> Vec<(u32, &str)> {
    let mut parts = Vec::new();
    let mut begin = 0;
    let mut begin_line = 1;
    let mut at = 0;
    for (line, number) in text.split_inclusive('\n').zip(1u32..) {
        let marker =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker && at > begin {
            parts.push((begin_line, &text[begin..at]));
            begin = at;
            begin_line = number;
        }
        at += line.len();
    }
    parts.push((begin_line, &text[begin..]));
    let blank = |part: &str| {
        part.lines().all(|line| {
            let line = line.trim();
            line.is_empty() || line.starts_with('#') || line == "---"
        })
    };
    parts.retain(|(_, part)| !blank(part));
    parts
}

fn of_file(path: &Path, message: &str) -> Violation {
    Violation {
        file: path.display().to_string().into(),
        line: 0,
        kind: String::new(),
        name: String::new(),
        path: String::new(),
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> (Vec<Document>, Vec<Violation>) {
        let (mut documents, mut violations) = (Vec::new(), Vec::new());
        parse(&"a.yaml".into(), text, false, &mut documents, &mut violations);
        (documents, violations)
    }

    #[test]
    fn a_broken_document_hides_no_other() {
        let (documents, violations) = read_text("# first\na: 1\n---\nb: [\n---\nc: 3\n---\n# nothing\n");
        assert_eq!(documents.iter().map(|d| d.origin.line).collect::<Vec<_>>(), [2, 6]);
        assert_eq!(violations.len(), 1);
        assert!((4..=5).contains(&violations[0].line), "{}", violations[0]);
    }

    #[test]
    fn aliases_are_followed() {
        let (documents, _) = read_text("a: &x {b: 1}\nc: *x\n");
        assert_eq!(documents[0].value, serde_json::json!({"a": {"b": 1}, "c": {"b": 1}}));
    }

    #[test]
    fn json_is_read_with_tabs_and_lines() {
        let (mut documents, mut violations) = (Vec::new(), Vec::new());
        parse(&"a.json".into(), "{\n\t\"a\": {\n\t\t\"b\": 1\n\t}\n}\n", true, &mut documents, &mut violations);
        assert_eq!(documents[0].origin.line_of("a.b"), 3);
        assert!(violations.is_empty());
    }
}
