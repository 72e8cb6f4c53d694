//! The lists and mappings that templates build, and what holds for every value: its text, its JSON, equality, order.
//!
//! A container knows how deep it is, and refuses to become deeper than a thread's stack bears. Values of other kinds
//! (namespaces, macros, loops) never get into one, so nothing can contain itself.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use minijinja::value::{DynObject, Enumerator, Object, ObjectRepr, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::json::Node;
use super::limits::{ITEM, MAX_DEPTH, MAX_TEXT, charge, charge_items, charge_text, charge_walk, exceeded, invalid};
use super::number;

/// A list that a template built.
#[derive(Debug)]
pub(super) struct List {
    items: Vec<Value>,
    depth: usize,
}

/// A mapping that a template built: keys are texts, in the order in which they were written.
#[derive(Debug)]
pub(super) struct Mapping {
    entries: Vec<(Value, Value)>,
    by_key: HashMap<Arc<str>, usize>,
    depth: usize,
}

/// A list value of these items.
pub(super) fn list(items: Vec<Value>) -> Result<Value, Error> {
    charge_items(items.len())?;
    let mut deepest = 0;
    let mut kept = Vec::with_capacity(items.len());
    for item in items {
        let item = storable(item)?;
        deepest = deepest.max(depth(&item));
        kept.push(item);
    }
    Ok(Value::from_object(List { items: kept, depth: one_deeper(deepest)? }))
}

/// A mapping value of these pairs; the last of two equal keys counts.
pub(super) fn mapping(pairs: impl IntoIterator<Item = (Value, Value)>) -> Result<Value, Error> {
    let mut mapping = Mapping { entries: Vec::new(), by_key: HashMap::new(), depth: 0 };
    for (key, value) in pairs {
        charge(2 * ITEM)?;
        let key: Arc<str> = key_text(&key)?.into();
        let value = storable(value)?;
        mapping.depth = mapping.depth.max(depth(&value));
        if let Some(at) = mapping.by_key.get(&key) {
            mapping.entries[*at].1 = value;
        } else {
            mapping.by_key.insert(key.clone(), mapping.entries.len());
            mapping.entries.push((Value::from(key), value));
        }
    }
    mapping.depth = one_deeper(mapping.depth)?;
    Ok(Value::from_object(mapping))
}

fn key_text(key: &Value) -> Result<Cow<'_, str>, Error> {
    match key.kind() {
        ValueKind::String | ValueKind::Number | ValueKind::Bool => text(key),
        _ if number::of(key).is_some() => text(key),
        kind => Err(invalid(format!("a {kind} cannot be a key; use a text"))),
    }
}

fn one_deeper(depth: usize) -> Result<usize, Error> {
    if depth >= MAX_DEPTH { Err(exceeded("lists or mappings are nested deeper than 128")) } else { Ok(depth + 1) }
}

fn depth(value: &Value) -> usize {
    if let Some(list) = value.downcast_object_ref::<List>() {
        list.depth
    } else if let Some(mapping) = value.downcast_object_ref::<Mapping>() {
        mapping.depth
    } else {
        // The message's own depth is bounded when it is parsed.
        usize::from(value.downcast_object_ref::<Node>().is_some())
    }
}

/// What may be an item of a list, a value of a mapping or an attribute of a namespace: data, nothing else.
pub(super) fn storable(value: Value) -> Result<Value, Error> {
    let value = defined(value)?;
    let Some(object) = value.as_object() else { return Ok(value) };
    if object.is::<List>() || object.is::<Mapping>() || object.is::<Node>() || number::of(&value).is_some() {
        return Ok(value);
    }
    match object.repr() {
        ObjectRepr::Seq | ObjectRepr::Iterable => list(items(&value)?),
        _ if object.is::<super::scope::Names>() => mapping(pairs(&value)?),
        _ => Err(invalid("only texts, numbers, lists and mappings can be kept in another value")),
    }
}

/// Fails for an undefined value, and for one whose making failed.
pub(super) fn defined(value: Value) -> Result<Value, Error> {
    if value.is_undefined() { Err(undefined()) } else { value.validate_ok() }
}

/// The error of an undefined name. Where and which is added by who reports it.
pub(super) fn undefined() -> Error {
    Error::from(ErrorKind::UndefinedError)
}

/// Turns a value that carries an error into that error.
pub(super) trait ValidateOk: Sized {
    fn validate_ok(self) -> Result<Self, Error>;
}

impl ValidateOk for Value {
    fn validate_ok(self) -> Result<Self, Error> {
        if self.kind() != ValueKind::Invalid {
            return Ok(self);
        }
        let checked = Value::from(vec![self]).try_iter()?.checked().next();
        checked.unwrap_or_else(|| Err(invalid("a value could not be made")))
    }
}

/// The items of a list, the keys of a mapping, the characters of a text.
pub(super) fn items(value: &Value) -> Result<Vec<Value>, Error> {
    if value.is_undefined() {
        return Err(undefined());
    }
    let mut items = Vec::new();
    for item in value.try_iter().map_err(|_| invalid(format!("a {} has no items", kind_name(value))))? {
        if items.len() % 1024 == 0 {
            charge_items(1024)?;
        }
        if items.len() >= super::limits::MAX_ITEMS {
            charge_items(items.len() + 1)?;
        }
        items.push(item.validate_ok()?);
    }
    Ok(items)
}

/// The pairs of a mapping.
pub(super) fn pairs(value: &Value) -> Result<Vec<(Value, Value)>, Error> {
    let object = value.as_object().filter(|object| object.repr() == ObjectRepr::Map);
    let Some(pairs) = object.and_then(DynObject::try_iter_pairs) else {
        return Err(invalid(format!("a {} is not a mapping", kind_name(value))));
    };
    let mut found = Vec::new();
    for (key, value) in pairs {
        charge(2 * ITEM)?;
        found.push((key.validate_ok()?, value.validate_ok()?));
    }
    Ok(found)
}

/// The methods that mappings have in other template languages.
pub(super) fn mapping_method(mapping: &Value, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    match (method, arguments) {
        ("items", []) => items_of(mapping),
        ("keys", []) => list(items(mapping)?),
        ("values", []) => list(pairs(mapping)?.into_iter().map(|(_, value)| value).collect()),
        ("get", [key]) => Ok(member(mapping, key)?.unwrap_or_else(|| Value::from(()))),
        ("get", [key, otherwise]) => Ok(member(mapping, key)?.unwrap_or_else(|| otherwise.clone())),
        ("items" | "keys" | "values" | "get", _) => Err(Error::from(ErrorKind::TooManyArguments)),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

/// The pairs of a mapping as lists of two.
pub(super) fn items_of(mapping: &Value) -> Result<Value, Error> {
    let pairs = pairs(mapping)?;
    list(pairs.into_iter().map(|(key, value)| list(vec![key, value])).collect::<Result<_, _>>()?)
}

/// The member of a mapping or the item of a list, or `None`.
pub(super) fn member(value: &Value, key: &Value) -> Result<Option<Value>, Error> {
    charge(ITEM)?;
    let found = value.get_item(&number::plain(key)).ok().filter(|found| !found.is_undefined());
    found.map(ValidateOk::validate_ok).transpose()
}

/// The number of characters, items or keys.
pub(super) fn length(value: &Value) -> Result<usize, Error> {
    if let Some(text) = value.as_str() {
        charge_walk(text.len())?;
        return Ok(text.chars().count());
    }
    if value.is_undefined() {
        return Err(undefined());
    }
    match value.len() {
        Some(length) => Ok(length),
        None => items(value).map(|items| items.len()),
    }
}

/// What a value is, in the words of this language.
pub(super) fn kind_name(value: &Value) -> &'static str {
    if number::of(value).is_some() {
        return "number";
    }
    match value.kind() {
        ValueKind::Undefined => "undefined value",
        ValueKind::None => "null",
        ValueKind::Bool => "boolean",
        ValueKind::String | ValueKind::Bytes => "text",
        ValueKind::Seq | ValueKind::Iterable => "list",
        ValueKind::Map => "mapping",
        _ => "value",
    }
}

/// The text of a value, as a template prints it: texts as they are, lists and mappings as JSON.
pub(super) fn text(value: &Value) -> Result<Cow<'_, str>, Error> {
    if let Some(text) = value.as_str() {
        return Ok(Cow::Borrowed(text));
    }
    if let Some(text) = number::kept_text(value) {
        return Ok(Cow::Borrowed(text));
    }
    match value.kind() {
        ValueKind::Undefined => Err(undefined()),
        ValueKind::None => Ok(Cow::Borrowed("null")),
        ValueKind::Bool => Ok(Cow::Borrowed(if value.is_true() { "true" } else { "false" })),
        ValueKind::Number => Ok(Cow::Owned(value.to_string())),
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => to_json(value).map(Cow::Owned),
        ValueKind::Invalid => Err(value.clone().validate_ok().err().unwrap_or_else(undefined)),
        _ => Err(invalid("this value has no text")),
    }
}

/// The JSON of a value. Numbers, objects and arrays of the message come out as they came in.
pub(super) fn to_json(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    write_json(value, &mut out, 0)?;
    Ok(out)
}

fn write_json(value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH + 2 {
        return Err(exceeded("lists or mappings are nested deeper than 128"));
    }
    if let Some(node) = value.downcast_object_ref::<Node>() {
        return append(out, node.text());
    }
    if let Some(text) = value.as_str() {
        return write_json_text(text, out);
    }
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            append(out, "[")?;
            for (at, item) in items(value)?.iter().enumerate() {
                append(out, if at == 0 { "" } else { "," })?;
                write_json(item, out, depth + 1)?;
            }
            append(out, "]")
        }
        ValueKind::Map => {
            append(out, "{")?;
            for (at, (key, value)) in pairs(value)?.iter().enumerate() {
                append(out, if at == 0 { "" } else { "," })?;
                write_json_text(&text(key)?, out)?;
                append(out, ":")?;
                write_json(value, out, depth + 1)?;
            }
            append(out, "}")
        }
        ValueKind::Number if number::of(value).is_some_and(|number| !number.as_f64().is_finite()) => {
            Err(invalid("JSON has no such number; keep within its range"))
        }
        _ => append(out, &text(value)?),
    }
}

fn append(out: &mut String, text: &str) -> Result<(), Error> {
    if out.len() + text.len() > MAX_TEXT {
        return charge_text(out.len() + text.len());
    }
    charge(text.len())?;
    out.push_str(text);
    Ok(())
}

fn write_json_text(text: &str, out: &mut String) -> Result<(), Error> {
    charge(text.len())?;
    let quoted = serde_json::to_string(text).map_err(|_| invalid("this text cannot be written as JSON"))?;
    append(out, &quoted)
}

/// Equality by value: numbers as numbers, lists item by item, mappings whatever their order.
pub(super) fn equal(a: &Value, b: &Value) -> Result<bool, Error> {
    equal_within(a, b, MAX_DEPTH + 2)
}

fn equal_within(a: &Value, b: &Value, depth: usize) -> Result<bool, Error> {
    if let (Some(a), Some(b)) = (a.as_str(), b.as_str()) {
        charge(a.len().min(b.len()) / 8)?;
        return Ok(a == b);
    }
    if let (Some(a), Some(b)) = (number::of(a), number::of(b)) {
        charge(ITEM / 2)?;
        return Ok(a.compare(b) == Ordering::Equal);
    }
    charge(ITEM)?;
    let Some(depth) = depth.checked_sub(1) else { return Err(exceeded("values are nested deeper than 128")) };
    match (a.kind(), b.kind()) {
        (ValueKind::Seq | ValueKind::Iterable, ValueKind::Seq | ValueKind::Iterable) => {
            let (a, b) = (items(a)?, items(b)?);
            if a.len() != b.len() {
                return Ok(false);
            }
            for (a, b) in a.iter().zip(&b) {
                if !equal_within(a, b, depth)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        (ValueKind::Map, ValueKind::Map) => {
            let (ours, theirs) = (pairs(a)?, pairs(b)?);
            if ours.len() != theirs.len() {
                return Ok(false);
            }
            for (key, value) in &ours {
                match member(b, key)? {
                    Some(other) if equal_within(value, &other, depth)? => {}
                    _ => return Ok(false),
                }
            }
            Ok(true)
        }
        (ValueKind::Bool, ValueKind::Bool) => Ok(a.is_true() == b.is_true()),
        (ValueKind::None, ValueKind::None) => Ok(true),
        _ => Ok(false),
    }
}

/// The order of two values of one kind. Others have none: a text is not less than a number.
pub(super) fn compare(a: &Value, b: &Value) -> Result<Ordering, Error> {
    if let (Some(a), Some(b)) = (a.as_str(), b.as_str()) {
        charge(a.len().min(b.len()) / 8)?;
        return Ok(a.cmp(b));
    }
    if let (Some(a), Some(b)) = (number::of(a), number::of(b)) {
        return Ok(a.compare(b));
    }
    if a.kind() == ValueKind::Bool && b.kind() == ValueKind::Bool {
        return Ok(a.is_true().cmp(&b.is_true()));
    }
    Err(invalid(format!(
        "a {} and a {} have no order; convert one of them with int, float or string",
        kind_name(a),
        kind_name(b)
    )))
}

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let at = key.as_i64()?;
        let at = if at < 0 { i64::try_from(self.items.len()).ok()?.checked_add(at)? } else { at };
        self.items.get(usize::try_from(at).ok()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.items.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[...]")
    }
}

impl Object for Mapping {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(&key_text(key).ok()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        let at = self.by_key.get(key)?;
        self.entries.get(*at).map(|(_, value)| value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.entries.iter().map(|(key, _)| key.clone()).collect())
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.entries.len())
    }

    fn call_method(self: &Arc<Self>, _: &mut State<'_, '_>, method: &str, arguments: &[Value]) -> Result<Value, Error> {
        mapping_method(&Value::from_dyn_object(self.clone()), method, arguments)
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{...}")
    }
}
