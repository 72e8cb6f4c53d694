//! The filters of the language. Each charges for what it makes, and none does I/O or reads a clock.

// The engine hands arguments over by value.
#![allow(clippy::needless_pass_by_value)]

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use minijinja::filters as engine;
use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State, Value};

use super::data::{defined, items, items_of, kind_name, list, member, text, to_json, undefined};
use super::limits::{ITEM, MAX_TEXT, charge, charge_text, charge_walk, exceeded, invalid};
use super::number::{self, Arithmetic, Number, calculate};
use super::{data, json, scope};

/// Every filter.
pub(super) const NAMES: [&str; 50] = [
    "abs",
    "attr",
    "b64decode",
    "b64encode",
    "bool",
    "capitalize",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "fromjson",
    "indent",
    "int",
    "items",
    "join",
    "keys",
    "last",
    "length",
    "lines",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "select",
    "selectattr",
    "sort",
    "split",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urldecode",
    "urlencode",
    "values",
    "wordcount",
    "zfill",
];

pub(super) fn add_to(environment: &mut Environment<'_>) {
    add_text_filters(environment);
    add_number_filters(environment);
    add_list_filters(environment);
    for name in ["default", "d"] {
        environment.add_filter(name, default);
    }
    environment.add_filter("tojson", |value: Value| to_json(&defined(value)?));
    environment.add_filter("fromjson", |value: Value| {
        let text = text(&value)?;
        charge(text.len().saturating_mul(3))?;
        let parsed = json::parse(&Bytes::copy_from_slice(text.as_bytes()));
        parsed.ok_or_else(|| invalid("this text is not JSON, or is nested deeper than 128"))
    });
}

/// What stands in for an undefined value, or with `true` as the second argument for a false or empty one.
fn default(value: Value, otherwise: Option<Value>, also_false: Option<bool>, named: Kwargs) -> Result<Value, Error> {
    let also_false = match also_false {
        Some(also_false) => also_false,
        None => named.get::<Option<bool>>("boolean")?.unwrap_or(false),
    };
    named.assert_all_used()?;
    let absent = value.is_undefined() || (also_false && !value.is_true());
    Ok(if absent { otherwise.unwrap_or_else(|| Value::from("")) } else { value })
}

fn text_filter<F>(environment: &mut Environment<'_>, name: &'static str, growth: usize, make: F)
where
    F: Fn(&str) -> String + Send + Sync + 'static,
{
    environment.add_filter(name, move |value: Value| {
        let text = text(&value)?;
        charge(text.len().saturating_mul(growth))?;
        let result = make(&text);
        charge_text(result.len())?;
        Ok::<_, Error>(result)
    });
}

fn add_text_filters(environment: &mut Environment<'_>) {
    text_filter(environment, "lower", 1, str::to_lowercase);
    text_filter(environment, "upper", 1, str::to_uppercase);
    text_filter(environment, "title", 1, |text| engine::title(Cow::Borrowed(text)));
    text_filter(environment, "capitalize", 1, |text| {
        let mut characters = text.chars();
        let first = characters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
        first + &characters.as_str().to_lowercase()
    });
    text_filter(environment, "string", 0, str::to_owned);
    text_filter(environment, "b64encode", 1, |text| STANDARD.encode(text));
    text_filter(environment, "urlencode", 2, encode_percent);
    text_filter(environment, "urldecode", 1, |text| scope::decode_percent(text, false));
    text_filter(environment, "escape", 5, escape);
    text_filter(environment, "e", 5, escape);
    environment.add_filter("b64decode", |value: Value| {
        let text = text(&value)?;
        charge_text(text.len())?;
        let bytes = STANDARD.decode(text.trim()).map_err(|_| invalid("this text is not base64"))?;
        String::from_utf8(bytes).map_err(|_| invalid("what this base64 holds is not text (UTF-8)"))
    });
    environment.add_filter("trim", |value: Value, characters: Option<Cow<'_, str>>| {
        let text = text(&value)?;
        charge_text(text.len())?;
        let trimmed = match &characters {
            Some(these) => text.trim_matches(|character| these.contains(character)),
            None => text.trim(),
        };
        Ok::<_, Error>(trimmed.to_owned())
    });
    environment.add_filter("replace", |value: Value, from: Cow<'_, str>, to: Cow<'_, str>| {
        let text = text(&value)?;
        charge_walk(text.len())?;
        let occurrences = text.matches(&*from).count();
        charge_text(text.len().saturating_add(occurrences.saturating_mul(to.len())))?;
        Ok::<_, Error>(text.replace(&*from, &to))
    });
    environment.add_filter("split", split);
    environment.add_filter("lines", |value: Value| {
        let text = text(&value)?;
        charge_text(text.len())?;
        collect(text.lines().map(Value::from))
    });
    environment.add_filter("wordcount", |value: Value| {
        let text = text(&value)?;
        charge_walk(text.len())?;
        Ok::<_, Error>(text.split_whitespace().count())
    });
    environment.add_filter("indent", indent);
    environment.add_filter("truncate", |value: Value, length: Option<usize>, end: Option<Cow<'_, str>>| {
        let (text, length) = (text(&value)?, length.unwrap_or(255));
        charge_text(text.len())?;
        if text.chars().count() <= length {
            return Ok::<_, Error>(text.into_owned());
        }
        let end = end.unwrap_or(Cow::Borrowed("..."));
        let kept = text.chars().take(length.saturating_sub(end.chars().count())).collect::<String>();
        Ok(kept + &end)
    });
    environment.add_filter("zfill", |value: Value, width: usize| {
        let text = text(&value)?;
        let missing = width.saturating_sub(text.chars().count());
        charge_text(text.len().saturating_add(missing))?;
        let (sign, digits) = match text.strip_prefix(['-', '+']) {
            Some(digits) => text.split_at(text.len() - digits.len()),
            None => ("", &*text),
        };
        Ok::<_, Error>([sign, &"0".repeat(missing), digits].concat())
    });
}

/// A list of texts, charged as it grows.
fn collect<'t>(texts: impl Iterator<Item = Value> + 't) -> Result<Value, Error> {
    let mut found = Vec::new();
    for text in texts {
        charge(ITEM)?;
        found.push(text);
    }
    list(found)
}

fn split(value: Value, separator: Option<Cow<'_, str>>, most: Option<i64>) -> Result<Value, Error> {
    let text = text(&value)?;
    charge_text(text.len())?;
    let most = most.and_then(|most| usize::try_from(most).ok()).map_or(usize::MAX, |most| most.saturating_add(1));
    match separator.as_deref() {
        Some("") => Err(invalid("a text cannot be split by an empty text")),
        Some(separator) => collect(text.splitn(most, separator).map(Value::from)),
        None => collect(text.split_whitespace().take(most).map(Value::from)),
    }
}

fn indent(value: Value, width: Option<usize>, first: Option<bool>) -> Result<String, Error> {
    let (text, width) = (text(&value)?, width.unwrap_or(4));
    charge_walk(text.len())?;
    let lines = text.matches('\n').count() + 1;
    charge_text(text.len().saturating_add(lines.saturating_mul(width)))?;
    let margin = " ".repeat(width);
    let mut indented = String::new();
    for (at, line) in text.split_inclusive('\n').enumerate() {
        if (at > 0 || first == Some(true)) && !line.trim().is_empty() {
            indented.push_str(&margin);
        }
        indented.push_str(line);
    }
    Ok(indented)
}

/// Everything but the unreserved characters of RFC 3986.
fn encode_percent(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// For XML and HTML.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

fn add_number_filters(environment: &mut Environment<'_>) {
    environment.add_filter("int", |value: Value, otherwise: Option<Value>| to_whole(&defined(value)?, otherwise));
    environment.add_filter("float", |value: Value, otherwise: Option<Value>| to_float(&defined(value)?, otherwise));
    environment.add_filter("abs", |value: Value| match number_of(&value)? {
        Number::Whole(whole) if whole < 0 => Number::Whole(whole).negated(),
        Number::Float(float) => Ok(Value::from(float.abs())),
        number @ Number::Whole(_) => Ok(number.to_value()),
    });
    environment.add_filter("round", round);
    environment.add_filter("bool", |value: Value| Ok::<_, Error>(defined(value)?.is_true()));
    environment.add_filter("sum", |values: Value, named: Kwargs| {
        let mut sum = Value::from(0);
        for item in attributes(items(&values)?, &named)? {
            charge(ITEM)?;
            sum = calculate(Arithmetic::Add, number_of(&sum)?, number_of(&item)?)?;
        }
        Ok::<_, Error>(sum)
    });
}

fn number_of(value: &Value) -> Result<Number, Error> {
    if value.is_undefined() {
        return Err(undefined());
    }
    number::of(value)
        .ok_or_else(|| invalid(format!("a {} is not a number; convert it with int or float", kind_name(value))))
}

fn not_convertible(value: &Value, to: &str, otherwise: Option<Value>) -> Result<Value, Error> {
    otherwise.ok_or_else(|| invalid(format!("this {} is not a {to}; give a default as the argument", kind_name(value))))
}

fn to_whole(value: &Value, otherwise: Option<Value>) -> Result<Value, Error> {
    let parsed = match value.as_str() {
        Some(text) => {
            let text = text.trim();
            let whole = text.parse::<i128>().ok().map(Number::Whole);
            whole.or_else(|| text.parse::<f64>().ok().map(Number::Float))
        }
        None if value.kind() == ValueKind::Bool => Some(Number::Whole(i128::from(value.is_true()))),
        None => number::of(value),
    };
    // Beyond this a float holds no exact whole number that i128 could.
    #[allow(clippy::cast_possible_truncation)]
    match parsed {
        Some(Number::Whole(whole)) => Ok(Number::Whole(whole).to_value()),
        Some(Number::Float(float)) if float.abs() < 1e38 => Ok(Number::Whole(float.trunc() as i128).to_value()),
        _ => not_convertible(value, "whole number", otherwise),
    }
}

fn to_float(value: &Value, otherwise: Option<Value>) -> Result<Value, Error> {
    let parsed = match value.as_str() {
        Some(text) => text.trim().parse::<f64>().ok(),
        None if value.kind() == ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        None => number::of(value).map(Number::as_f64),
    };
    match parsed.filter(|float| float.is_finite()) {
        Some(float) => Ok(Value::from(float)),
        None => not_convertible(value, "number", otherwise),
    }
}

/// To so many decimals; half is rounded away from zero.
fn round(value: Value, decimals: Option<i32>, method: Option<Cow<'_, str>>) -> Result<Value, Error> {
    let number = number_of(&value)?;
    let decimals = decimals.unwrap_or(0).clamp(-300, 300);
    if let (Number::Whole(_), 0..) = (number, decimals) {
        return Ok(number.to_value());
    }
    let (float, scale) = (number.as_f64(), 10f64.powi(decimals));
    let scaled = float * scale;
    let rounded = match method.as_deref() {
        None | Some("common") => scaled.round(),
        Some("ceil") => scaled.ceil(),
        Some("floor") => scaled.floor(),
        Some(_) => return Err(invalid("round knows the methods common, ceil and floor")),
    };
    let result = rounded / scale;
    // A scale beyond the range of f64 changes nothing about the number.
    Ok(Value::from(if result.is_finite() { result } else { float }))
}

fn add_list_filters(environment: &mut Environment<'_>) {
    for name in ["length", "count"] {
        environment.add_filter(name, |value: Value| data::length(&value));
    }
    environment.add_filter("first", |value: Value| Ok::<_, Error>(end_of(&value, true)?));
    environment.add_filter("last", |value: Value| Ok::<_, Error>(end_of(&value, false)?));
    environment.add_filter("list", |value: Value| list(items(&value)?));
    environment.add_filter("keys", |value: Value| list(data::pairs(&value)?.into_iter().map(|(key, _)| key).collect()));
    environment.add_filter("values", |value: Value| list(data::pairs(&value)?.into_iter().map(|(_, v)| v).collect()));
    environment.add_filter("items", |value: Value| items_of(&defined(value)?));
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
fn attributes(items: Vec<Value>, named: &Kwargs) -> Result<Vec<Value>, Error> {
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
