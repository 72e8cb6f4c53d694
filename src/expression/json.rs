//! JSON as templates see it: views over the bytes of the message, parsed as far as they are looked at.
//!
//! A body is checked once and never copied. Objects and arrays are slices of it; what passes through a template
//! unchanged is those bytes, with the numbers, the order and the spacing that came. Of a key that occurs twice the
//! last value counts, as with most parsers.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use minijinja::value::{Enumerator, Object, ObjectRepr};
use minijinja::{Error, State, Value};

use super::limits::{ITEM, MAX_DEPTH, charge, charge_text, charge_walk, or_invalid};
use super::{data, number};

/// Objects and arrays with up to this many members remember where those are, once they were asked twice.
const MAX_INDEXED: usize = 64 * 1024;
/// What walking past one member costs, as bytes.
const MEMBER: usize = 16;

/// Reads JSON; `None` if it is not, or is nested deeper than 128.
pub(super) fn parse(bytes: &Bytes) -> Option<Value> {
    serde_json::from_slice::<serde::de::IgnoredAny>(bytes).ok()?;
    std::str::from_utf8(bytes).ok()?;
    if depth(bytes) > MAX_DEPTH {
        return None;
    }
    let start = skip_space(bytes, 0);
    let end = skip_value(bytes, start);
    value_of(bytes, start..end).ok()
}

/// How deep brackets are nested, in text that was checked.
fn depth(bytes: &[u8]) -> usize {
    let (mut depth, mut deepest, mut at) = (0usize, 0, 0);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => {
                at = skip_string(bytes, at);
                continue;
            }
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    deepest
}

/// The value of a part of these bytes.
fn value_of(bytes: &Bytes, range: Range<usize>) -> Result<Value, Error> {
    let raw = &bytes[range.clone()];
    Ok(match raw.first() {
        Some(b'{') => Value::from_object(Node::new(bytes.slice(range), true)),
        Some(b'[') => Value::from_object(Node::new(bytes.slice(range), false)),
        Some(b'"') => Value::from(text_of(raw)?),
        Some(b't') => Value::from(true),
        Some(b'f') => Value::from(false),
        Some(b'n') | None => Value::from(()),
        Some(_) => number::from_json(std::str::from_utf8(raw).unwrap_or_default()),
    })
}

/// The text of a JSON string with its quotes. Half of a surrogate pair becomes U+FFFD.
fn text_of(raw: &[u8]) -> Result<String, Error> {
    let inner = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
    charge_text(inner.len())?;
    let mut text = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        text.push_str(std::str::from_utf8(&rest[..at]).unwrap_or_default());
        let (character, used) = unescape(&rest[at..]);
        text.push(character);
        rest = rest.get(at + used..).unwrap_or_default();
    }
    text.push_str(std::str::from_utf8(rest).unwrap_or_default());
    Ok(text)
}

/// The character of one escape, and the length of the escape.
fn unescape(rest: &[u8]) -> (char, usize) {
    let unit = |at: usize| {
        let hex = rest.get(at..at + 4).and_then(|hex| std::str::from_utf8(hex).ok());
        hex.and_then(|hex| u32::from_str_radix(hex, 16).ok())
    };
    match rest.get(1) {
        Some(b'n') => ('\n', 2),
        Some(b't') => ('\t', 2),
        Some(b'r') => ('\r', 2),
        Some(b'b') => ('\u{8}', 2),
        Some(b'f') => ('\u{c}', 2),
        Some(b'u') => {
            let first = unit(2).unwrap_or(0xFFFD);
            if (0xD800..0xDC00).contains(&first)
                && rest.get(6..8) == Some(b"\\u")
                && let Some(second) = unit(8).filter(|unit| (0xDC00..0xE000).contains(unit))
            {
                let both = 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
                return (char::from_u32(both).unwrap_or('\u{FFFD}'), 12);
            }
            (char::from_u32(first).unwrap_or('\u{FFFD}'), 6)
        }
        Some(other) => (char::from(*other), 2),
        None => ('\u{FFFD}', 1),
    }
}

fn skip_space(bytes: &[u8], mut at: usize) -> usize {
    while matches!(bytes.get(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
        at += 1;
    }
    at
}

/// The end of the string that begins here, quotes included.
fn skip_string(bytes: &[u8], at: usize) -> usize {
    let mut end = at + 1;
    while let Some(found) = bytes.get(end..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        if bytes.get(end + found) == Some(&b'"') {
            return end + found + 1;
        }
        end += found + 2;
    }
    bytes.len()
}

/// The end of the value that begins here. Without recursion: depth costs nothing.
fn skip_value(bytes: &[u8], at: usize) -> usize {
    match bytes.get(at) {
        Some(b'"') => skip_string(bytes, at),
        Some(b'{' | b'[') => {
            let (mut depth, mut end) = (0usize, at);
            while let Some(byte) = bytes.get(end) {
                match byte {
                    b'"' => {
                        end = skip_string(bytes, end);
                        continue;
                    }
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => {
                        depth -= 1;
                        if depth == 0 {
                            return end + 1;
                        }
                    }
                    _ => {}
                }
                end += 1;
            }
            bytes.len()
        }
        _ => {
            let scalar = bytes[at.min(bytes.len())..].iter();
            at + scalar.take_while(|byte| !matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r')).count()
        }
    }
}

/// An object or an array: a slice of the message.
#[derive(Debug)]
pub(super) struct Node {
    raw: Bytes,
    object: bool,
    asked: AtomicBool,
    index: OnceLock<Index>,
    length: OnceLock<usize>,
}

#[derive(Debug, Default)]
struct Index {
    entries: Vec<Entry>,
    by_key: HashMap<Arc<str>, usize>,
}

#[derive(Debug)]
struct Entry {
    /// Undefined in an array.
    key: Value,
    raw: Range<usize>,
    value: OnceLock<Value>,
}

impl Node {
    fn new(raw: Bytes, object: bool) -> Self {
        Self { raw, object, asked: AtomicBool::new(false), index: OnceLock::new(), length: OnceLock::new() }
    }

    /// The bytes as they came.
    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.raw).unwrap_or_default()
    }

    fn members(&self) -> Members {
        Members { raw: self.raw.clone(), object: self.object, at: 1 }
    }

    fn value_at(&self, range: Range<usize>) -> Result<Value, Error> {
        value_of(&self.raw, range)
    }

    /// How many members there are; an object's keys are counted as often as they occur.
    fn len(&self) -> usize {
        *self.length.get_or_init(|| self.members().count())
    }

    /// Whether the index is to be used: from the second question on, if it is not too large.
    fn indexed(&self) -> bool {
        self.index.get().is_some() || (self.asked.swap(true, Ordering::Relaxed) && self.len() <= MAX_INDEXED)
    }

    fn member(&self, key: &str) -> Result<Option<Value>, Error> {
        if self.indexed() {
            let index = self.index()?;
            return index.by_key.get(key).map(|at| self.entry(&index.entries[*at])).transpose();
        }
        charge_walk(self.raw.len())?;
        let mut found = None;
        for (name, value) in self.members() {
            charge(MEMBER)?;
            if is_text(&self.raw[name], key) {
                found = Some(value);
            }
        }
        found.map(|range| self.value_at(range)).transpose()
    }

    fn item(&self, at: usize) -> Result<Option<Value>, Error> {
        if self.indexed() {
            return self.index()?.entries.get(at).map(|entry| self.entry(entry)).transpose();
        }
        charge_walk(self.raw.len())?;
        charge(at.saturating_mul(MEMBER))?;
        self.members().nth(at).map(|(_, range)| self.value_at(range)).transpose()
    }

    /// A value is made when it is first asked for.
    fn entry(&self, entry: &Entry) -> Result<Value, Error> {
        if let Some(value) = entry.value.get() {
            return Ok(value.clone());
        }
        let value = self.value_at(entry.raw.clone())?;
        Ok(entry.value.get_or_init(|| value).clone())
    }

    fn index(&self) -> Result<&Index, Error> {
        if let Some(index) = self.index.get() {
            return Ok(index);
        }
        charge_walk(self.raw.len())?;
        let mut index = Index::default();
        for (name, raw) in self.members() {
            charge(ITEM)?;
            if !self.object {
                index.entries.push(Entry { key: Value::UNDEFINED, raw, value: OnceLock::new() });
                continue;
            }
            charge(ITEM)?;
            let key: Arc<str> = text_of(&self.raw[name])?.into();
            if let Some(at) = index.by_key.get(&key) {
                index.entries[*at].raw = raw;
            } else {
                index.by_key.insert(key.clone(), index.entries.len());
                index.entries.push(Entry { key: Value::from(key), raw, value: OnceLock::new() });
            }
        }
        Ok(self.index.get_or_init(|| index))
    }
}

/// Whether a raw JSON string has this text; without copying, as keys seldom hold escapes.
fn is_text(raw: &[u8], text: &str) -> bool {
    let inner = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
    if inner.contains(&b'\\') { text_of(raw).is_ok_and(|decoded| decoded == text) } else { inner == text.as_bytes() }
}

/// Where the members of an object or an array are, in order. In an array the key is empty.
struct Members {
    raw: Bytes,
    object: bool,
    at: usize,
}

impl Iterator for Members {
    type Item = (Range<usize>, Range<usize>);

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = &self.raw;
        let mut at = skip_space(bytes, self.at);
        if bytes.get(at) == Some(&b',') {
            at = skip_space(bytes, at + 1);
        }
        if matches!(bytes.get(at), None | Some(b'}' | b']')) {
            self.at = bytes.len();
            return None;
        }
        let mut key = 0..0;
        if self.object {
            key = at..skip_string(bytes, at);
            // Over the colon, which the check has seen.
            at = skip_space(bytes, skip_space(bytes, key.end) + 1);
        }
        let end = skip_value(bytes, at);
        self.at = end;
        Some((key, at..end))
    }
}

/// Gives an iterator its known length, from which `loop.length` and `loop.last` come.
struct Sized<I>(I, usize);

impl<I: Iterator> Iterator for Sized<I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        self.1 = self.1.saturating_sub(1);
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.1, Some(self.1))
    }
}

impl Object for Node {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        if self.object { ObjectRepr::Map } else { ObjectRepr::Seq }
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        if self.object {
            return self.get_value_by_str(key.as_str()?);
        }
        let at = key.as_i64()?;
        let at = if at < 0 { usize::try_from(i64::try_from(self.len()).ok()? + at) } else { usize::try_from(at) };
        self.item(at.ok()?).map_err(Value::from).unwrap_or_else(Some)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        if !self.object {
            return None;
        }
        self.member(key).map_err(Value::from).unwrap_or_else(Some)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        if let Err(error) = charge_walk(self.raw.len()) {
            return Enumerator::Values(vec![Value::from(error)]);
        }
        if !self.object {
            let node = self.clone();
            let items = self.members().map(move |(_, range)| or_invalid(node.value_at(range)));
            return Enumerator::Iter(Box::new(Sized(items, self.len())));
        }
        match self.index() {
            Ok(_) => {
                let node = self.clone();
                let pairs = (0..).map_while(move |at| {
                    let entry = node.index.get()?.entries.get(at)?;
                    Some((entry.key.clone(), or_invalid(node.entry(entry))))
                });
                Enumerator::KeyValueIter(Box::new(pairs))
            }
            Err(error) => Enumerator::Values(vec![Value::from(error)]),
        }
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        if self.object { self.index().ok().map(|index| index.entries.len()) } else { Some(self.len()) }
    }

    fn is_true(self: &Arc<Self>) -> bool {
        self.members().next().is_some()
    }

    fn call_method(self: &Arc<Self>, _: &mut State<'_, '_>, method: &str, arguments: &[Value]) -> Result<Value, Error> {
        data::mapping_method(&Value::from_dyn_object(self.clone()), method, arguments)
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}
