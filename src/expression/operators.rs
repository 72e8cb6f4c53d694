//! The operators of the language, as the filters into which [`super::lower`] turns them.

// The engine hands arguments over by value.
#![allow(clippy::needless_pass_by_value)]

use std::cmp::Ordering;

use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, Value};

use super::data::{ValidateOk as _, defined, undefined};
use super::limits::{MAX_ITEMS, charge, charge_items, charge_text, charge_walk, exceeded, invalid};
use super::number::{self, Arithmetic, calculate};
use super::{data, limits};

pub(super) fn add_to(environment: &mut Environment<'_>) {
    environment.add_filter("__add", add);
    environment.add_filter("__multiply", multiply);
    for (name, operation) in [
        ("__subtract", Arithmetic::Subtract),
        ("__divide", Arithmetic::Divide),
        ("__floor_divide", Arithmetic::FloorDivide),
        ("__remainder", Arithmetic::Remainder),
        ("__power", Arithmetic::Power),
    ] {
        environment.add_filter(name, move |a: Value, b: Value| arithmetic(operation, &a, &b));
    }
    environment.add_filter("__negate", |value: Value| match number::of(&defined(value)?) {
        Some(number) => number.negated(),
        None => Err(invalid("only a number can be negated")),
    });
    environment.add_filter("__concat", |a: Value, b: Value| concat(&data::text(&a)?, &data::text(&b)?));
    for name in ["==", "!=", "<", "<=", ">", ">=", "in", "not in"] {
        let filter = match name {
            "==" => "__eq",
            "!=" => "__ne",
            "<" => "__lt",
            "<=" => "__le",
            ">" => "__gt",
            ">=" => "__ge",
            "in" => "__in",
            _ => "__not_in",
        };
        environment.add_filter(filter, move |a: Value, b: Value| compare(name, &a, &b));
    }
    environment.add_filter("__chain", chain);
    environment.add_filter("__not", |value: Value| Ok::<_, Error>(!defined(value)?.is_true()));
    environment.add_filter("__defined", defined);
    environment.add_filter("__bounded", bounded);
    environment.add_filter("__storable", data::storable);
    environment.add_filter("__items", iterable);
    environment.add_filter("__item", item);
    environment.add_filter("__slice", slice);
    environment.add_filter("__list", |value: Value| data::list(data::items(&value)?));
    environment.add_filter("__mapping", mapping);
}

fn arithmetic(operation: Arithmetic, a: &Value, b: &Value) -> Result<Value, Error> {
    match (number::of(a), number::of(b)) {
        (Some(a), Some(b)) => calculate(operation, a, b),
        _ if a.is_undefined() || b.is_undefined() => Err(undefined()),
        _ => Err(invalid(format!(
            "cannot calculate with a {} and a {}; convert texts with int or float",
            data::kind_name(a),
            data::kind_name(b)
        ))),
    }
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

fn add(a: Value, b: Value) -> Result<Value, Error> {
    if let (Some(a), Some(b)) = (a.as_str(), b.as_str()) {
        return concat(a, b);
    }
    if is_list(&a) && is_list(&b) {
        let mut items = data::items(&a)?;
        items.extend(data::items(&b)?);
        return data::list(items);
    }
    arithmetic(Arithmetic::Add, &a, &b)
}

fn concat(a: &str, b: &str) -> Result<Value, Error> {
    charge_text(a.len() + b.len())?;
    Ok(Value::from([a, b].concat()))
}

/// Multiplies numbers, and repeats texts and lists.
fn multiply(a: Value, b: Value) -> Result<Value, Error> {
    let (repeated, times) = if a.as_str().is_some() || is_list(&a) { (&a, &b) } else { (&b, &a) };
    let times = match number::of(times) {
        Some(number::Number::Whole(times)) => usize::try_from(times.max(0)).unwrap_or(usize::MAX),
        _ => return arithmetic(Arithmetic::Multiply, &a, &b),
    };
    if let Some(text) = repeated.as_str() {
        check_repetitions(times)?;
        charge_text(text.len().saturating_mul(times))?;
        return Ok(Value::from(text.repeat(times)));
    }
    if is_list(repeated) {
        check_repetitions(times)?;
        let items = data::items(repeated)?;
        charge_items(items.len().saturating_mul(times))?;
        return data::list(items.iter().cycle().take(items.len() * times).cloned().collect());
    }
    arithmetic(Arithmetic::Multiply, &a, &b)
}

fn check_repetitions(times: usize) -> Result<(), Error> {
    if times > MAX_ITEMS { Err(exceeded("a text or list is repeated more than 1048576 times")) } else { Ok(()) }
}

/// One comparison or membership.
pub(super) fn compare(operator: &str, a: &Value, b: &Value) -> Result<bool, Error> {
    if a.is_undefined() || b.is_undefined() {
        return Err(undefined());
    }
    Ok(match operator {
        "==" => data::equal(a, b)?,
        "!=" => !data::equal(a, b)?,
        "<" => data::compare(a, b)? == Ordering::Less,
        "<=" => data::compare(a, b)? != Ordering::Greater,
        ">" => data::compare(a, b)? == Ordering::Greater,
        ">=" => data::compare(a, b)? != Ordering::Less,
        "in" => contains(b, a)?,
        _ => !contains(b, a)?,
    })
}

/// `a < b <= c`: the operators are texts between the values.
fn chain(first: Value, links: Rest<Value>) -> Result<bool, Error> {
    let mut left = &first;
    for link in links.chunks_exact(2) {
        if !compare(link[0].as_str().unwrap_or_default(), left, &link[1])? {
            return Ok(false);
        }
        left = &link[1];
    }
    Ok(true)
}

fn contains(container: &Value, wanted: &Value) -> Result<bool, Error> {
    if let Some(text) = container.as_str() {
        let Some(part) = wanted.as_str() else {
            return Err(invalid(format!("a text cannot hold a {}; convert it with string", data::kind_name(wanted))));
        };
        charge_walk(text.len())?;
        return Ok(text.contains(part));
    }
    match container.kind() {
        ValueKind::Map => Ok(data::member(container, wanted)?.is_some()),
        ValueKind::Seq | ValueKind::Iterable => {
            for item in data::items(container)? {
                if data::equal(&item, wanted)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        _ => Err(invalid(format!("`in` needs a text, a list or a mapping, not a {}", data::kind_name(container)))),
    }
}

/// A value that a call or a captured block made: a text must not be too long.
fn bounded(value: Value) -> Result<Value, Error> {
    let value = value.validate_ok()?;
    if value.as_str().is_some_and(|text| text.len() > limits::MAX_TEXT) {
        return Err(exceeded("a text is longer than 16 MiB"));
    }
    Ok(value)
}

/// What `for` walks through.
fn iterable(value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Undefined => Err(undefined()),
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => Ok(value),
        ValueKind::String => {
            charge_walk(value.as_str().map_or(0, str::len))?;
            Ok(value)
        }
        _ => Err(invalid(format!("a {} has no items to loop over", data::kind_name(&value)))),
    }
}

/// `value[key]`. Undefined if there is none.
fn item(value: Value, key: Value) -> Result<Value, Error> {
    if key.is_undefined() {
        return Err(undefined());
    }
    if let Some(text) = value.as_str() {
        let Some(number::Number::Whole(at)) = number::of(&key) else {
            return Err(invalid("a text is indexed by whole numbers"));
        };
        charge(text.len().saturating_mul(2))?;
        let at = if at < 0 { at + i128::try_from(text.chars().count()).unwrap_or(0) } else { at };
        let character = usize::try_from(at).ok().and_then(|at| text.chars().nth(at));
        return Ok(character.map_or(Value::UNDEFINED, Value::from));
    }
    Ok(data::member(&value, &key)?.unwrap_or(Value::UNDEFINED))
}

/// `value[start:end:stride]`, with the meaning that these have in Python.
fn slice(value: Value, start: Value, end: Value, stride: Value) -> Result<Value, Error> {
    let bound = |value: &Value| match number::of(value) {
        Some(number::Number::Whole(whole)) => Ok(Some(whole)),
        _ if value.is_none() => Ok(None),
        _ if value.is_undefined() => Err(undefined()),
        _ => Err(invalid("a slice is bounded by whole numbers")),
    };
    let (start, end, stride) = (bound(&start)?, bound(&end)?, bound(&stride)?.unwrap_or(1));
    if stride == 0 {
        return Err(invalid("a slice cannot step by 0"));
    }
    if let Some(text) = value.as_str() {
        charge_text(text.len())?;
        charge(text.chars().count().saturating_mul(4))?;
        let characters: Vec<char> = text.chars().collect();
        return Ok(Value::from(
            chosen(characters.len(), start, end, stride).map(|at| characters[at]).collect::<String>(),
        ));
    }
    if !is_list(&value) {
        let kind = data::kind_name(&value);
        return Err(if value.is_undefined() { undefined() } else { invalid(format!("a {kind} cannot be sliced")) });
    }
    let items = data::items(&value)?;
    data::list(chosen(items.len(), start, end, stride).map(|at| items[at].clone()).collect())
}

/// The indices that a slice chooses; all are below `length`.
fn chosen(length: usize, start: Option<i128>, end: Option<i128>, stride: i128) -> impl Iterator<Item = usize> {
    let length = i128::try_from(length).unwrap_or(i128::MAX);
    let (lowest, highest) = if stride > 0 { (0, length) } else { (-1, length - 1) };
    let place = |bound: Option<i128>, otherwise: i128| {
        bound.map_or(otherwise, |at| if at < 0 { at.saturating_add(length) } else { at }.clamp(lowest, highest))
    };
    let (start, end) = if stride > 0 {
        (place(start, lowest), place(end, highest))
    } else {
        (place(start, highest), place(end, lowest))
    };
    let mut next = Some(start);
    std::iter::from_fn(move || {
        let at = next.filter(|at| if stride > 0 { *at < end } else { *at > end })?;
        next = at.checked_add(stride);
        usize::try_from(at).ok()
    })
}

fn mapping(value: Value) -> Result<Value, Error> {
    let items = data::items(&value)?;
    data::mapping(items.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())))
}
