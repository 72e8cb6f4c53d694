//! What can be wrong with a template, when it is compiled and when it is run.

use std::fmt;

use minijinja::ErrorKind;

use super::lower::Lowered;

/// A place in a template or expression, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The character in the line.
    pub column: usize,
}

impl Position {
    /// The place of a byte of a text.
    pub(super) fn of(source: &str, offset: usize) -> Self {
        let before = source.get(..offset).unwrap_or(source);
        let line = before.rsplit('\n').next().unwrap_or_default();
        Self { line: before.matches('\n').count() + 1, column: line.chars().count() + 1 }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// A template or expression that cannot be used, whatever the message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// It is longer than allowed.
    #[error("it has {length} bytes; at most {most} are allowed: shorten it")]
    TooLong {
        /// Its bytes.
        length: usize,
        /// The most.
        most: usize,
    },
    /// It is wrong at a place.
    #[error("{at}: {what}")]
    Invalid {
        /// Where.
        at: Position,
        /// What, and the remedy.
        what: String,
    },
    /// A header that a transform must not set.
    #[error("header `{name}`: {reason}")]
    Header {
        /// The name as written.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// A step of a transform is wrong.
    #[error("transform step {step} ({kind}): {source}")]
    Step {
        /// Counted from 1.
        step: usize,
        /// The step's kind.
        kind: &'static str,
        /// What is wrong with it.
        source: Box<CompileError>,
    },
    /// The machine refused the memory or the thread that compiling takes.
    #[error("there is not enough memory to compile it; try again")]
    NoMemory,
}

impl CompileError {
    /// An error of the engine, about the user's own text.
    pub(super) fn of_engine(error: &minijinja::Error, source: &str) -> Self {
        let at = error.range().map(|range| Position::of(source, range.start));
        let at = at.unwrap_or(Position { line: error.line().unwrap_or(1), column: 1 });
        Self::Invalid { at, what: describe(error) }
    }

    /// An error of the engine about the rewritten text.
    pub(super) fn of_lowered(error: &minijinja::Error, source: &str, lowered: &Lowered) -> Self {
        let place = error.range().and_then(|range| lowered.origin(&range));
        Self::Invalid { at: Position::of(source, place.map_or(0, |place| place.start)), what: describe(error) }
    }
}

/// A template or expression that failed on one message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// A name was undefined.
    #[error("{}`{name}` is undefined{why}; give it a value by default() or test it by `is defined`", place(.at.as_ref()))]
    Undefined {
        /// Where.
        at: Option<Position>,
        /// The expression that met it.
        name: String,
        /// Empty, or what the message has to do with it.
        why: &'static str,
    },
    /// It took too much time or memory.
    #[error("{}{what}; simplify the template or send a smaller message", place(.at.as_ref()))]
    TooMuch {
        /// Where.
        at: Option<Position>,
        /// Which bound was met.
        what: String,
    },
    /// An operation could not be done.
    #[error("{}{what}", place(.at.as_ref()))]
    Failed {
        /// Where.
        at: Option<Position>,
        /// What, and the remedy.
        what: String,
    },
}

fn place(at: Option<&Position>) -> String {
    at.map(|at| format!("{at}: ")).unwrap_or_default()
}

impl EvalError {
    /// The same, of a message whose body no expression can read.
    pub(super) fn without_body(mut self) -> Self {
        if let Self::Undefined { name, why, .. } = &mut self
            && name.split(|c: char| !c.is_alphanumeric() && c != '_').next() == Some("body")
        {
            *why = " (the message's body is not UTF-8 text)";
        }
        self
    }

    /// An error of the engine, at a place in the user's text.
    pub(super) fn of_engine(error: &minijinja::Error, source: &str, place: Option<std::ops::Range<usize>>) -> Self {
        let at = place.as_ref().map(|place| Position::of(source, place.start));
        match error.kind() {
            ErrorKind::UndefinedError => {
                let name = place.and_then(|place| source.get(place)).unwrap_or("a name");
                Self::Undefined { at, name: excerpt(name), why: "" }
            }
            ErrorKind::OutOfFuel => {
                let what = error.detail().unwrap_or("it takes too many steps").to_owned();
                Self::TooMuch { at, what }
            }
            _ => Self::Failed { at, what: describe(error) },
        }
    }
}

/// The first words of an expression, on one line.
fn excerpt(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= 60 { line } else { line.chars().take(59).chain(['…']).collect() }
}

/// The engine's words, in lower case, with its causes.
fn describe(error: &minijinja::Error) -> String {
    let text = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let mut text: String = text.chars().take(500).collect();
    if let Some(first) = text.get(..1) {
        let lower = first.to_ascii_lowercase();
        text.replace_range(..1, &lower);
    }
    text
}
