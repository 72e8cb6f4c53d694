//! What is wrong with an object, and what is wrong in a file.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

/// Something wrong with one object, before anybody knows which file it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where in the object: `spec.rules[0].path`.
    pub path: String,
    /// What is wrong; what to do.
    pub message: String,
    /// What it means for the object's conditions.
    pub reason: Reason,
}

/// What a finding means for an object's conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The spec itself: `Accepted=False`.
    Invalid,
    /// The queue is somebody else's: `Accepted=False`.
    StoreInUse,
    /// It does not fit into a `ConfigMap`: `Accepted=False`.
    PlanTooLarge,
    /// Something that the spec names does not exist: `ResolvedRefs=False`.
    NotFound,
}

impl Reason {
    /// The reason of the condition.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "Invalid",
            Self::StoreInUse => "StoreInUse",
            Self::PlanTooLarge => "PlanTooLarge",
            Self::NotFound => "NotFound",
        }
    }
}

impl Finding {
    /// The spec itself is wrong.
    pub fn invalid(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into(), reason: Reason::Invalid }
    }

    /// Something that the spec names does not exist.
    pub fn not_found(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into(), reason: Reason::NotFound }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.path, self.message) }
    }
}

/// Something wrong in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The file as it was named.
    pub file: Arc<str>,
    /// From 1; 0 if it is about the file as a whole.
    pub line: u32,
    /// The object's kind; empty if it is about no object.
    pub kind: String,
    /// The object's name.
    pub name: String,
    /// Where in the object; empty for the whole of it.
    pub path: String,
    /// What is wrong; what to do.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        f.write_str(": ")?;
        match (self.kind.is_empty(), self.name.is_empty()) {
            (false, false) => write!(f, "{}/{}: ", self.kind, self.name)?,
            (false, true) => write!(f, "{}: ", self.kind)?,
            _ => {}
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

impl Violation {
    /// By file and line, then by what is said.
    pub fn by_place(&self, other: &Self) -> Ordering {
        (&self.file, self.line, &self.path, &self.message).cmp(&(&other.file, other.line, &other.path, &other.message))
    }
}
