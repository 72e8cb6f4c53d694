//! Where things stand in a YAML document: a pass over the parser's events, before any value is built.
//!
//! Outputs: the line of each path, duplicate keys, and refusals of what would cost too much to build: deep nesting
//! and aliases that expand without measure. Nothing here is recursive.

use std::collections::{HashMap, HashSet};

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput};

/// Deepest nesting of a document. No object of Kubernetes comes near.
const MAX_DEPTH: usize = 64;
/// Most values in a document, aliases counted as often as they are used.
const MAX_NODES: u64 = 500_000;
/// Longer paths are not remembered; what is wrong there is reported at the line of its parent.
const MAX_PATH: usize = 1024;

/// What the pass found in one document.
#[derive(Debug, Default)]
pub(super) struct Positions {
    lines: HashMap<String, u32>,
    /// Keys that stand twice in one mapping, with their lines.
    pub(super) duplicates: Vec<(String, u32)>,
    /// Paths of plain scalars that kubectl reads as booleans and YAML 1.2 as text, with that text.
    pub(super) yaml_1_1_booleans: Vec<(String, String)>,
}

/// Why a document is not read any further.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    /// Where, from 1.
    pub(super) line: u32,
    /// What is wrong; what to do.
    pub(super) message: String,
}

impl Positions {
    /// The line of a path, or of the nearest part of it that is there.
    pub(super) fn line(&self, path: &str) -> u32 {
        let mut path = path;
        loop {
            if let Some(line) = self.lines.get(path) {
                return *line;
            }
            let Some(at) = path.rfind(['.', '[']) else {
                return self.lines.get("").copied().unwrap_or(1);
            };
            path = &path[..at];
        }
    }
}

/// A mapping or sequence that is being read.
struct Frame {
    /// Of the mapping or sequence itself.
    path: String,
    kind: FrameKind,
    /// The anchor that this value has, if any.
    anchor: usize,
    /// The number of values before it, to know its size at its end.
    nodes_before: u64,
}

enum FrameKind {
    Sequence { next: usize },
    Mapping { key: Option<String>, seen: HashSet<String> },
}

/// Reads one document. `first_line` is where it begins in its file, from 1.
pub(super) fn positions(text: &str, first_line: u32) -> Result<Positions, Refused> {
    let mut reader = Reader { first_line, ..Reader::default() };
    let mut parser: Parser<'_, StrInput<'_>> = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| reader.syntax(&error))?;
        reader.event(&event, span)?;
    }
    Ok(reader.found)
}

#[derive(Default)]
struct Reader {
    first_line: u32,
    found: Positions,
    frames: Vec<Frame>,
    /// How many values each anchor stands for.
    anchors: HashMap<usize, u64>,
    nodes: u64,
}

impl Reader {
    fn event(&mut self, event: &Event<'_>, span: Span) -> Result<(), Refused> {
        let line = self.line_of(span.start.line());
        match event {
            Event::Scalar(text, style, anchor, _) => {
                if self.take_key(text, line) {
                    return Ok(());
                }
                let path = self.value_path();
                if *style == ScalarStyle::Plain && is_yaml_1_1_boolean(text) {
                    self.found.yaml_1_1_booleans.push((path.clone(), text.to_string()));
                }
                self.remember(path, line);
                self.count(1, line)?;
                self.anchors.insert(*anchor, 1);
                self.value_ended();
            }
            Event::Alias(anchor) => {
                let size = self.anchors.get(anchor).copied().unwrap_or(1);
                let path = self.value_path();
                self.remember(path, line);
                self.count(size, line)?;
                self.value_ended();
            }
            Event::SequenceStart(anchor, _) => self.open(FrameKind::Sequence { next: 0 }, *anchor, line)?,
            Event::MappingStart(anchor, _) => {
                self.open(FrameKind::Mapping { key: None, seen: HashSet::new() }, *anchor, line)?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(frame) = self.frames.pop() {
                    self.anchors.insert(frame.anchor, self.nodes - frame.nodes_before);
                }
                self.value_ended();
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {}
        }
        Ok(())
    }

    /// Whether this scalar is a key of the mapping being read.
    fn take_key(&mut self, text: &str, line: u32) -> bool {
        let Some(Frame { path, kind: FrameKind::Mapping { key: key @ None, seen }, .. }) = self.frames.last_mut()
        else {
            return false;
        };
        *key = Some(text.to_owned());
        let full = join(path, text);
        if !seen.insert(text.to_owned()) {
            self.found.duplicates.push((full.clone(), line));
        }
        // A field is found at its key, also when its value begins on a later line.
        self.remember(full, line);
        true
    }

    fn value_path(&self) -> String {
        match self.frames.last() {
            None => String::new(),
            Some(Frame { path, kind: FrameKind::Sequence { next }, .. }) => format!("{path}[{next}]"),
            Some(Frame { path, kind: FrameKind::Mapping { key, .. }, .. }) => {
                join(path, key.as_deref().unwrap_or_default())
            }
        }
    }

    fn value_ended(&mut self) {
        match self.frames.last_mut().map(|frame| &mut frame.kind) {
            Some(FrameKind::Sequence { next }) => *next += 1,
            Some(FrameKind::Mapping { key, .. }) => *key = None,
            None => {}
        }
    }

    fn open(&mut self, kind: FrameKind, anchor: usize, line: u32) -> Result<(), Refused> {
        if self.frames.len() >= MAX_DEPTH {
            let message = format!("nested more than {MAX_DEPTH} levels deep; flatten it");
            return Err(Refused { line, message });
        }
        // A mapping or list as a key has no path; its parts are read as if it had an empty one.
        if let Some(Frame { kind: FrameKind::Mapping { key: key @ None, .. }, .. }) = self.frames.last_mut()
            && !self.found.lines.is_empty()
        {
            let _ = key;
            return Err(Refused { line, message: "a mapping or list is used as a key; keys are text".to_owned() });
        }
        let path = self.value_path();
        self.remember(path.clone(), line);
        self.count(1, line)?;
        self.frames.push(Frame { path, kind, anchor, nodes_before: self.nodes - 1 });
        Ok(())
    }

    fn remember(&mut self, path: String, line: u32) {
        if path.len() <= MAX_PATH {
            self.found.lines.entry(path).or_insert(line);
        }
    }

    fn count(&mut self, nodes: u64, line: u32) -> Result<(), Refused> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes <= MAX_NODES {
            return Ok(());
        }
        let message = format!("more than {MAX_NODES} values, aliases included; write less, or split the file");
        Err(Refused { line, message })
    }

    fn line_of(&self, line: usize) -> u32 {
        self.first_line.saturating_add(u32::try_from(line.saturating_sub(1)).unwrap_or(u32::MAX))
    }

    fn syntax(&self, error: &ScanError) -> Refused {
        let info = error.info();
        let message = if info.contains("tab") || info.contains('\t') {
            format!("not YAML: {info}; indent with spaces")
        } else {
            format!("not YAML: {info}; check indentation, colons and quotes around here")
        };
        Refused { line: self.line_of(error.marker().line()), message }
    }
}

fn join(path: &str, key: &str) -> String {
    // A key with a dot in it is written as in a JSON path, so that it cannot be taken for two.
    let key = if key.contains(['.', '[', ']']) { format!("[{key:?}]") } else { key.to_owned() };
    if path.is_empty() {
        key
    } else if key.starts_with('[') {
        format!("{path}{key}")
    } else {
        format!("{path}.{key}")
    }
}

fn is_yaml_1_1_boolean(text: &str) -> bool {
    matches!(
        text,
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_has_the_line_of_its_key() {
        let text = "a: 1\nb:\n  c:\n  - x\n  - d: 2\n    'e.f': 3\n";
        let found = positions(text, 10).unwrap();
        for (path, line) in [
            ("a", 10),
            ("b", 11),
            ("b.c", 12),
            ("b.c[0]", 13),
            ("b.c[1]", 14),
            ("b.c[1].d", 14),
            ("b.c[1][\"e.f\"]", 15),
        ] {
            assert_eq!(found.line(path), line, "{path}");
        }
        assert_eq!(found.line("b.c[1].missing"), 14);
        assert_eq!(found.line("nothing"), 10);
    }

    #[test]
    fn keys_that_stand_twice_are_found_with_their_second_line() {
        let found = positions("a: 1\nb: {c: 1, c: 2}\na: 2\n", 1).unwrap();
        assert_eq!(found.duplicates, [("b.c".to_owned(), 2), ("a".to_owned(), 3)]);
    }

    #[test]
    fn what_kubectl_takes_for_booleans_is_found_unless_it_is_quoted() {
        let found = positions("a: yes\nb: 'no'\nc: [on, \"off\"]\n", 1).unwrap();
        assert_eq!(found.yaml_1_1_booleans, [("a".to_owned(), "yes".to_owned()), ("c[0]".to_owned(), "on".to_owned())]);
    }

    #[test]
    fn aliases_that_expand_without_measure_are_refused() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let before = level - 1;
            let items = vec![format!("*a{before}"); 9].join(", ");
            let line = format!("a{level}: &a{level} [{items}]\n");
            text.push_str(&line);
        }
        assert!(positions(&text, 1).unwrap_err().message.contains("aliases"));
    }

    #[test]
    fn deep_nesting_is_refused_early() {
        for open in ["[", "{a: ", "- "] {
            let text = open.repeat(100_000);
            assert!(positions(&text, 1).is_err(), "{open}");
        }
    }
}
