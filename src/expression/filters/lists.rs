//! Filters over lists and mappings.

// The engine hands arguments over by value.
#![allow(clippy::needless_pass_by_value)]

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::HashSet;

use minijinja::filters as engine;
use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State, Value};

use super::super::data::{self, defined, items, items_of, list, member, text, to_json, undefined};
use super::super::limits::{ITEM, MAX_TEXT, charge, charge_text, exceeded};
use super::super::number;

pub(super) fn add_to(environment: &mut Environment<'_>) {
    for name in ["length", "count"] {
        environment.add_filter(name, |value: Value| data::length(&value));
    }
    environment.add_filter("first", |value: Value| end_of(&value, true));
    environment.add_filter("last", |value: Value| end_of(&value, false));
    environment.add_filter("list", |value: Value| list(items(&value)?));
    environment.add_filter("keys", |value: Value| list(data::pairs(&value)?.into_iter().map(|(key, _)| key).collect()));
    environment.add_filter("values", |value: Value| list(data::pairs(&value)?.into_iter().map(|(_, v)| v).collect()));
    environment.add_filter("items", |value: Value| items_of(&defined(value)?));
    // A key that is there already keeps its place, so what is not touched stays as it came.
    environment.add_filter("combine", |value: Value, others: Rest<Value>| {
        let mut pairs = data::pairs(&defined(value)?)?;
        for other in others.iter() {
            pairs.extend(data::pairs(&defined(other.clone())?)?);
        }
        data::mapping(pairs)
    });
    environment.add_filter("dictsort", |value: Value| {
        let pairs = data::pairs(&defined(value)?)?;
        let keys = pairs.iter().map(|(key, _)| key.clone()).collect();
        let pairs = pairs.into_iter().map(|(key, value)| list(vec![key, value])).collect::<Result<_, _>>()?;
        list(sorted(pairs, keys, false)?)
    });
    environment.add_filter("attr", |value: Value, key: Value| {
        Ok::<_, Error>(member(&defined(value)?, &key)?.unwrap_or(Value::UNDEFINED))
    });
    environment.add_filter("join", join);
    environment.add_filter("reverse", |value: Value| match value.as_str() {
        Some(text) => {
            charge_text(text.len())?;
            Ok(Value::from(text.chars().rev().collect::<String>()))
        }
        None => list(items(&value)?.into_iter().rev().collect()),
    });
    environment.add_filter("sort", |values: Value, reverse: Option<bool>, named: Kwargs| {
        let reverse = named.get::<Option<bool>>("reverse")?.or(reverse).unwrap_or(false);
        let items = items(&values)?;
        let keys = attributes(items.clone(), &named)?;
        list(sorted(items, keys, reverse)?)
    });
    environment.add_filter("unique", |values: Value, named: Kwargs| {
        let items = items(&values)?;
        let keys = attributes(items.clone(), &named)?;
        let (mut kept, mut seen) = (Vec::new(), HashSet::new());
        charge(items.len().saturating_mul(4 * ITEM))?;
        for (item, key) in items.into_iter().zip(keys) {
            if seen.insert(identity(&key)?) {
                kept.push(item);
            }
        }
        list(kept)
    });
    environment.add_filter("min", |values: Value, named: Kwargs| extreme(&values, &named, Ordering::Less));
    environment.add_filter("max", |values: Value, named: Kwargs| extreme(&values, &named, Ordering::Greater));
    environment.add_filter("map", |state: &mut State<'_, '_>, values: Value, rest: Rest<ValueOrKwargs>| {
        list(engine::map(state, walkable(values)?, rest)?)
    });
    environment.add_filter(
        "select",
        |state: &mut State<'_, '_>, values: Value, test: Option<Cow<'_, str>>, rest: Rest<ValueOrKwargs>| {
            list(engine::select(state, walkable(values)?, test, rest)?)
        },
    );
    environment.add_filter(
        "reject",
        |state: &mut State<'_, '_>, values: Value, test: Option<Cow<'_, str>>, rest: Rest<ValueOrKwargs>| {
            list(engine::reject(state, walkable(values)?, test, rest)?)
        },
    );
    environment.add_filter("selectattr", selectattr);
    environment.add_filter("rejectattr", rejectattr);
}

fn selectattr(
    state: &mut State<'_, '_>,
    values: Value,
    attribute: Cow<'_, str>,
    test: Option<Cow<'_, str>>,
    rest: Rest<ValueOrKwargs>,
) -> Result<Value, Error> {
    list(engine::selectattr(state, walkable(values)?, attribute, test, rest)?)
}

fn rejectattr(
    state: &mut State<'_, '_>,
    values: Value,
    attribute: Cow<'_, str>,
    test: Option<Cow<'_, str>>,
    rest: Rest<ValueOrKwargs>,
) -> Result<Value, Error> {
    list(engine::rejectattr(state, walkable(values)?, attribute, test, rest)?)
}

/// A list whose length was charged for, before the engine walks through it and calls a filter or test for each item.
fn walkable(values: Value) -> Result<Value, Error> {
    let items = items(&values)?;
    charge(items.len().saturating_mul(2 * ITEM))?;
    list(items)
}

fn end_of(value: &Value, first: bool) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        let character = if first { text.chars().next() } else { text.chars().next_back() };
        return Ok(character.map_or(Value::UNDEFINED, Value::from));
    }
    let mut items = items(value)?;
    let end = if first { items.into_iter().next() } else { items.pop() };
    Ok(end.unwrap_or(Value::UNDEFINED))
}

fn join(values: Value, separator: Option<Cow<'_, str>>, named: Kwargs) -> Result<String, Error> {
    let separator = separator.unwrap_or_default();
    let mut joined = String::new();
    for (at, item) in attributes(items(&values)?, &named)?.iter().enumerate() {
        let part = text(item)?;
        let between = if at == 0 { "" } else { &*separator };
        if joined.len() + between.len() + part.len() > MAX_TEXT {
            return Err(exceeded("a text is longer than 16 MiB"));
        }
        charge(between.len() + part.len())?;
        joined.push_str(between);
        joined.push_str(&part);
    }
    Ok(joined)
}

/// The attribute that `attribute=` names, of each item; else the items.
pub(super) fn attributes(items: Vec<Value>, named: &Kwargs) -> Result<Vec<Value>, Error> {
    let path = named.get::<Option<Cow<'_, str>>>("attribute")?;
    named.assert_all_used()?;
    match path {
        Some(path) => items.iter().map(|item| attribute(item, &path)).collect(),
        None => Ok(items),
    }
}

/// `a.b.0` below a value. Fails if there is none.
fn attribute(value: &Value, path: &str) -> Result<Value, Error> {
    let mut found = value.clone();
    for part in path.split('.') {
        let index = part.parse::<i64>().ok().filter(|_| found.kind() != ValueKind::Map);
        let key = index.map_or_else(|| Value::from(part), Value::from);
        found = member(&found, &key)?.ok_or_else(undefined)?;
    }
    Ok(found)
}

fn extreme(values: &Value, named: &Kwargs, wanted: Ordering) -> Result<Value, Error> {
    let items = items(values)?;
    let keys = attributes(items.clone(), named)?;
    let mut found: Option<(Value, Value)> = None;
    for (item, key) in items.into_iter().zip(keys) {
        let better = match &found {
            Some((_, best)) => data::compare(&key, best)? == wanted,
            None => true,
        };
        if better {
            found = Some((item, key));
        }
    }
    Ok(found.map_or(Value::UNDEFINED, |(item, _)| item))
}

/// Sorts by keys, keeping the order of equals. Fails if two keys have no order.
fn sorted(items: Vec<Value>, keys: Vec<Value>, reverse: bool) -> Result<Vec<Value>, Error> {
    // All of one kind, so that no comparison below can fail: a sort that is lied to panics.
    if let Some(first) = keys.first() {
        for key in &keys {
            data::compare(first, key)?;
        }
    }
    // One comparison costs about as much as a short text.
    charge(items.len().saturating_mul(64))?;
    let mut pairs: Vec<(Value, Value)> = keys.into_iter().zip(items).collect();
    pairs.sort_by(|(a, _), (b, _)| {
        let order = match (a.as_str(), b.as_str(), number::of(a), number::of(b)) {
            (Some(a), Some(b), ..) => a.cmp(b),
            (_, _, Some(a), Some(b)) => a.compare(b),
            _ => a.is_true().cmp(&b.is_true()),
        };
        if reverse { order.reverse() } else { order }
    });
    Ok(pairs.into_iter().map(|(_, item)| item).collect())
}

/// A text that equal values share.
fn identity(value: &Value) -> Result<String, Error> {
    Ok(match number::of(value) {
        Some(number) => number.canonical(),
        None => to_json(value)?,
    })
}
